"""What PEFT's adapter files say: the names in them, and the options that decide what they mean.

An adapter is plain LoRA when every adapted weight is ``base + scale * b @ a``. What is more than
that (DoRA, a bias of its own, an initialisation that changes the base) is refused here by name.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from zeitgeist.errors import CheckpointInvalid

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLES = ("adapter_model.bin", "adapter_model.pt")
PREFIX = "base_model.model."
FACTOR = re.compile(
    rf"{re.escape(PREFIX)}(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(\.weight)?"
)
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})

# Options of PEFT 0.21's LoraConfig under which the weights are not base + scale * b @ a.
REFUSED = {
    "use_dora": "DoRA rescales the columns of the weight after adding the update",
    "lora_bias": "lora_bias adds a bias to every module",
    "use_qalora": "QA-LoRA pools the inputs before the first factor",
    "use_bdlora": "BD-LoRA's factors are block diagonal",
    "kasa_config": "KaSA truncates the base weight",
    "monteclora_config": "MonteCLoRA samples its factors",
    "arrow_config": "Arrow routes every token to adapters of its own choice",
    "alora_invocation_tokens": "activated LoRA applies only after an invocation",
    "layer_replication": "layer_replication changes the base model's depth",
    "target_parameters": "target_parameters adapts stacked experts",
    "trainable_token_indices": "trainable_token_indices replace rows of the embedding",
}
# Initialisations that subtract from the base weight what they put in the factors.
BASE_CHANGING = ("pissa", "corda", "olora", "loftq", "lora_ga")
MERGE_FIRST = (
    "merge it into its base with PEFT's merge_and_unload and give the result as a checkpoint"
)


@dataclass(frozen=True)
class FactorPair:
    """Where one module's factors lie in the file.

    Parameters
    ----------
    a_key, b_key
        Names of the two tensors.
    a_shape
        (r, in), or (r, in, kernel...) for a convolution.
    b_shape
        (out, r), or (out, r, 1...).
    embedding
        The module is an embedding, whose weight is (vocabulary, features).
    """

    a_key: str
    b_key: str
    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]
    embedding: bool


def read_config(path: Path) -> dict[str, Any]:
    """The configuration of the adapter in a directory, if it is plain LoRA.

    Raises
    ------
    CheckpointInvalid
        There is none, it is not JSON, or it describes more than pairs of factors.
    """
    file = path / CONFIG
    if not file.is_file():
        raise CheckpointInvalid(
            f"there is no {CONFIG!r} here",
            origin=path,
            mend="give the directory that PEFT's save_pretrained wrote",
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointInvalid(f"this is not JSON ({error})", origin=file) from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else config
        raise CheckpointInvalid(
            f"the adapter's peft_type is {kind!r}, and only 'LORA' is a pair of factors",
            origin=file,
            mend=MERGE_FIRST,
        )
    reasons = [why for option, why in REFUSED.items() if config.get(option)]
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(BASE_CHANGING):
        reasons.append(f"init_lora_weights {start!r} changes the base weight")
    if reasons:
        raise CheckpointInvalid(
            f"{reasons[0]}, so this adapter is more than pairs of factors",
            origin=file,
            mend=MERGE_FIRST,
        )
    _check_numbers(file, config)
    return config


def _check_numbers(file: Path, config: Mapping[str, Any]) -> None:
    for field, patterns in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        values = {field: config.get(field, 8)} | (config.get(patterns) or {})
        for name, value in values.items():
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise CheckpointInvalid(f"{name!r} is {value!r}, which is no number", origin=file)
            try:
                re.compile(name)
            except re.error as error:
                raise CheckpointInvalid(
                    f"{name!r} in {patterns} is no regular expression ({error})", origin=file
                ) from error


def open_weights(path: Path) -> Any:
    """A lazy handle on the tensors of the adapter in a directory.

    Raises
    ------
    CheckpointInvalid
        There are none, they are a pickle, or the file is damaged.
    """
    file = path / WEIGHTS
    if not file.is_file():
        pickle = next((path / name for name in PICKLES if (path / name).is_file()), None)
        if pickle is None:
            raise CheckpointInvalid(f"there is no {WEIGHTS!r} here", origin=path)
        code = (
            "import torch; from safetensors.torch import save_file; "
            f"w = torch.load({str(pickle)!r}, weights_only=True, map_location='cpu'); "
            f"save_file({{k: v.clone().contiguous() for k, v in w.items()}}, {str(file)!r})"
        )
        raise CheckpointInvalid(
            f"{pickle.name!r} is a pickle, which can run code when read",
            origin=path,
            mend=f'convert it once with: python -c "{code}"',
        )
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointInvalid(f"the file is damaged ({error})", origin=file) from error


def read_names(file: Path, weights: Any) -> tuple[dict[str, FactorPair], dict[str, str]]:
    """The factor pairs by module, and the key of every tensor that replaces one of the base.

    Raises
    ------
    CheckpointInvalid
        A tensor that is neither, half a pair, factors that do not multiply, or no factors at all.
    """
    sides: dict[str, dict[str, str]] = {}
    embeddings: set[str] = set()
    replaced: dict[str, str] = {}
    for key in weights.keys():  # noqa: SIM118  (the handle is no mapping)
        match = FACTOR.fullmatch(key)
        if match:
            sides.setdefault(match["module"], {})[match["side"]] = key
            if match["kind"]:
                embeddings.add(match["module"])
        elif key.startswith(PREFIX) and "lora_" not in key and ".token_adapter." not in key:
            replaced[key.removeprefix(PREFIX).replace(".base_layer.", ".")] = key
        else:
            raise CheckpointInvalid(
                f"tensor {key!r} is neither a LoRA factor nor a saved module",
                origin=file,
                mend="only plain LoRA adapters in PEFT's own format can be read",
            )
    if not sides:
        raise CheckpointInvalid("there are no LoRA factors in this file", origin=file)
    pairs = {
        module: _pair(file, module, keys, weights, embedding=module in embeddings)
        for module, keys in sides.items()
    }
    return pairs, replaced


def _pair(
    file: Path, module: str, keys: Mapping[str, str], weights: Any, *, embedding: bool
) -> FactorPair:
    for side in "AB":
        if side not in keys:
            raise CheckpointInvalid(f"{module!r} has no lora_{side}", origin=file)
        dtype = weights.get_slice(keys[side]).get_dtype()
        if dtype not in FLOATS:
            raise CheckpointInvalid(
                f"tensor {keys[side]!r} has dtype {dtype}",
                origin=file,
                mend=f"one of {', '.join(sorted(FLOATS))} is needed",
            )
    a, b = (tuple(weights.get_slice(keys[side]).get_shape()) for side in "AB")
    if len(a) < 2 or len(a) != len(b) or math.prod(a) * math.prod(b) == 0:
        raise CheckpointInvalid(
            f"the factors of {module!r} have shapes {list(a)} and {list(b)}",
            origin=file,
            mend="a sharded training run must gather its parameters before it saves them",
        )
    if a[0] != b[1] or set(b[2:]) - {1}:
        raise CheckpointInvalid(
            f"the factors of {module!r} do not multiply: lora_A is {list(a)}, lora_B is {list(b)}",
            origin=file,
            mend="the file is damaged, or the module is a grouped convolution, which is not "
            "supported",
        )
    return FactorPair(keys["A"], keys["B"], a, b, embedding)


def by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern that matches a module path, or the default.

    A pattern is a regular expression that must match the path, or the end of it after a dot.

    Examples
    --------
    >>> by_pattern({"q_proj": 4, r"layers\\.0\\..*": 8}, "layers.0.attn.q_proj", 2)
    4
    >>> by_pattern({"^attn.q_proj": 4}, "layers.0.attn.q_proj", 2)
    2
    """
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
