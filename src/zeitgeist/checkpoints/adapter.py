"""LoRA adapters on disk, in and out, without the model they stand on.

LoRA (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685) stores an
update of a weight as two factors, and PEFT stores those in ``adapter_model.safetensors`` beside an
``adapter_config.json``::

    delta = scale * b @ a        scale = alpha / r          (section 4.1 of the paper)
                                 scale = alpha / sqrt(r)    (rank-stabilised, arXiv:2312.03732)

``alpha`` and ``r`` may be given per module (``alpha_pattern``, ``rank_pattern``: regular
expressions over module paths, the first that matches decides). Some weights are stored by the base
model as (in, out): GPT-2's Conv1D (``fan_in_fan_out``) and every embedding; their update is the
transpose of ``b @ a``. What is more than a pair of factors (DoRA, a bias of its own, an
initialisation that changes the base) cannot be merged as low-rank factors and is refused by name.

r rank, i input features, o output features
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from zeitgeist.checkpoints.atomic import new_directory
from zeitgeist.errors import CheckpointInvalid, InputInvalid

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLES = ("adapter_model.bin", "adapter_model.pt", "pytorch_adapter.bin")
PREFIX = "base_model.model."
KEY = re.compile(
    rf"{re.escape(PREFIX)}(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(\.weight)?"
)
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SIDECARS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.jinja",
    "LICENSE*",
)
# What of a configuration outlives the training run.
KEPT = (
    "auto_mapping",
    "base_model_name_or_path",
    "fan_in_fan_out",
    "peft_version",
    "revision",
    "task_type",
)

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
    "layer_replication": "layer replication changes the base model's depth",
    "target_parameters": "target_parameters adapts stacked experts",
    "trainable_token_indices": "trainable tokens replace rows of the embedding",
}
# Initialisations that subtract from the base weight what they put in the factors.
BASE_CHANGING = ("pissa", "corda", "olora", "loftq", "lora_ga")


@dataclass(frozen=True)
class LoraFactors:
    """One module's update, ``delta = scale * b @ a``, in the dtype it is stored in.

    Parameters
    ----------
    a
        First factor, applied to the inputs. Convolution kernels are flattened into ``i``.
    b
        Second factor.
    scale
        ``alpha / r`` or ``alpha / sqrt(r)``; not yet multiplied into the factors.
    transposed
        The base stores this weight as (in, out), so its update is ``delta.T``.
    shape
        Shape of the weight in the base.
    """

    a: Float[Tensor, "r i"]
    b: Float[Tensor, "o r"]
    scale: float
    transposed: bool
    shape: tuple[int, ...]

    def delta(self) -> Float[Tensor, "..."]:
        """The update in float32, in the base weight's own layout and shape.

        Examples
        --------
        >>> a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]])
        >>> LoraFactors(a, b, scale=0.5, transposed=False, shape=(2, 2)).delta().tolist()
        [[1.5, 3.0], [2.0, 4.0]]
        """
        product = self.scale * (self.b.float() @ self.a.float())
        return (product.T if self.transposed else product).reshape(self.shape).contiguous()


@dataclass(frozen=True)
class _Pair:
    a_key: str
    b_key: str
    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]
    embedding: bool


class Adapter:
    """A LoRA adapter opened from its header; tensors are mapped when asked for.

    Made by :func:`open_adapter`.

    Attributes
    ----------
    path
        The adapter's directory.
    config
        ``adapter_config.json`` as it stands.
    base
        What the adapter says it was trained on (``base_model_name_or_path``), if anything.
    modules
        Paths of the adapted modules inside the base model, in file order, such as
        ``model.layers.0.self_attn.q_proj``; the weight adapted is ``<module>.weight``.
    extra
        Names, as in the base model, of the tensors that replace the base's own: those of
        ``modules_to_save``, of trained biases and of an embedding saved along.
    sidecars
        Tokenizer and licence files that travel with the adapter.
    """

    def __init__(self, path: Path, config: dict[str, Any], weights: Any) -> None:
        self.path, self.config, self._weights = path, config, weights
        self.base: str | None = config.get("base_model_name_or_path") or None
        self._pairs, self._extra = _pairs_and_extra(path / WEIGHTS, weights)
        self.modules = tuple(self._pairs)
        self.extra = tuple(self._extra)
        self.sidecars = tuple(
            sorted({file for glob in SIDECARS for file in path.glob(glob) if file.is_file()})
        )
        for module in self.modules:
            self._check_rank(module)

    def rank(self, module: str) -> int:
        """Rank r of one module's factors, from the header."""
        return self._pair(module).a_shape[0]

    def scale(self, module: str) -> float:
        """``alpha / r`` or, rank-stabilised, ``alpha / sqrt(r)`` for one module."""
        rank = self.rank(module)
        alpha = _by_pattern(self.config, "alpha_pattern", module, self.config.get("lora_alpha", 8))
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def transposed(self, module: str) -> bool:
        """Whether the base stores this module's weight as (in, out)."""
        pair = self._pair(module)
        return pair.embedding or (
            bool(self.config.get("fan_in_fan_out")) and len(pair.a_shape) == 2
        )

    def shape(self, module: str) -> tuple[int, ...]:
        """Shape of the base weight that one module's update belongs to, from the header."""
        pair = self._pair(module)
        out, inputs = pair.b_shape[0], pair.a_shape[1:]
        return (*inputs, out) if self.transposed(module) else (out, *inputs)

    def factors(self, module: str) -> LoraFactors:
        """The two factors of one module, as stored.

        Raises
        ------
        CheckpointInvalid
            A factor holds NaN or infinity.
        InputInvalid
            The adapter has no such module.
        """
        pair = self._pair(module)
        return LoraFactors(
            a=self._finite(pair.a_key).flatten(1),
            b=self._finite(pair.b_key).flatten(1),
            scale=self.scale(module),
            transposed=self.transposed(module),
            shape=self.shape(module),
        )

    def delta(self, module: str) -> Float[Tensor, "..."]:
        """The float32 update of ``<module>.weight``, in that weight's layout and shape.

        (out, in) for a linear layer; (in, out) where the base stores it so: an embedding
        (vocabulary, features) or a Conv1D.
        """
        return self.factors(module).delta()

    def replacement(self, name: str) -> Tensor:
        """One of the ``extra`` tensors, which takes the place of the base's tensor ``name``."""
        if name not in self._extra:
            raise InputInvalid(
                f"the adapter replaces no tensor {name!r}",
                origin=self.path,
                mend=f"it replaces {', '.join(self.extra) or 'none'}",
            )
        return self._finite(self._extra[name])

    def check_values(self) -> None:
        """Read every tensor once and refuse the first that holds NaN or infinity."""
        for key in self._weights.keys():  # noqa: SIM118  (the handle is no mapping)
            self._finite(key)

    def _pair(self, module: str) -> _Pair:
        if module not in self._pairs:
            raise InputInvalid(
                f"the adapter has no module {module!r}",
                origin=self.path,
                mend=f"it adapts {len(self.modules)} modules, such as {self.modules[0]!r}",
            )
        return self._pairs[module]

    def _finite(self, key: str) -> Tensor:
        tensor: Tensor = self._weights.get_tensor(key)
        bad = tensor.numel() - int(torch.isfinite(tensor).sum())
        if bad:
            raise CheckpointInvalid(
                f"tensor {key!r} holds {bad} values that are NaN or infinite",
                origin=self.path / WEIGHTS,
                mend="the training run diverged: take an earlier checkpoint of this adapter",
            )
        return tensor

    def _check_rank(self, module: str) -> None:
        said = _by_pattern(self.config, "rank_pattern", module, self.config.get("r", 8))
        if self.rank(module) != said:
            raise CheckpointInvalid(
                f"the factors of {module!r} have rank {self.rank(module)} where the configuration "
                f"says {said}",
                origin=self.path / CONFIG,
                mend="r and rank_pattern must be those of the training run, or the scale is wrong",
            )


def _by_pattern(config: Mapping[str, Any], field: str, module: str, default: Any) -> Any:
    for pattern, value in (config.get(field) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _pairs_and_extra(file: Path, weights: Any) -> tuple[dict[str, _Pair], dict[str, str]]:
    sides: dict[str, dict[str, str]] = {}
    embeddings: set[str] = set()
    extra: dict[str, str] = {}
    for key in weights.keys():  # noqa: SIM118  (the handle is no mapping)
        match = KEY.fullmatch(key)
        if match:
            sides.setdefault(match["module"], {})[match["side"]] = key
            if match["kind"]:
                embeddings.add(match["module"])
        elif key.startswith(PREFIX) and "lora_" not in key and ".token_adapter." not in key:
            extra[key.removeprefix(PREFIX).replace(".base_layer.", ".")] = key
        else:
            raise CheckpointInvalid(
                f"tensor {key!r} is neither a LoRA factor nor a saved module",
                origin=file,
                mend="only plain LoRA adapters in PEFT's own format can be read",
            )
    pairs = {module: _pair(file, module, keys, weights) for module, keys in sides.items()}
    if not pairs:
        raise CheckpointInvalid("there are no LoRA factors in this file", origin=file)
    return {
        module: _Pair(*pair, embedding=module in embeddings) for module, pair in pairs.items()
    }, extra


def _pair(
    file: Path, module: str, keys: Mapping[str, str], weights: Any
) -> tuple[str, str, tuple[int, ...], tuple[int, ...]]:
    for side in "AB":
        if side not in keys:
            raise CheckpointInvalid(f"{module!r} has no lora_{side}", origin=file)
        found = weights.get_slice(keys[side]).get_dtype()
        if found not in FLOATS:
            raise CheckpointInvalid(
                f"tensor {keys[side]!r} has dtype {found}",
                origin=file,
                mend=f"one of {', '.join(FLOATS)} is needed",
            )
    a, b = (tuple(weights.get_slice(keys[side]).get_shape()) for side in "AB")
    if len(a) < 2 or len(a) != len(b) or math.prod(a) * math.prod(b) == 0:
        raise CheckpointInvalid(
            f"the factors of {module!r} have shapes {list(a)} and {list(b)}",
            origin=file,
            mend="sharded training must gather its parameters before saving",
        )
    if a[0] != b[1] or set(b[2:]) - {1}:
        raise CheckpointInvalid(
            f"the factors of {module!r} do not multiply: lora_A is {list(a)}, lora_B is {list(b)}",
            origin=file,
            mend="grouped convolutions are not supported",
        )
    return keys["A"], keys["B"], a, b


def _check_config(file: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointInvalid(
            f"the adapter's peft_type is {kind!r}",
            origin=file,
            mend="only LoRA adapters are pairs of factors; merge this one into its base with "
            "PEFT's merge_and_unload and give the result as a checkpoint",
        )
    reasons = [why for option, why in REFUSED.items() if config.get(option)]
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(BASE_CHANGING):
        reasons.append(f"init_lora_weights {start!r} changes the base weight")
    if reasons:
        raise CheckpointInvalid(
            f"{reasons[0]}, so this adapter is more than a pair of factors",
            origin=file,
            mend="merge it into its base with PEFT's merge_and_unload and give the result as a "
            "checkpoint",
        )


def open_adapter(path: str | Path) -> Adapter:
    """Open a PEFT LoRA adapter from its headers.

    Parameters
    ----------
    path
        Directory that holds ``adapter_config.json`` and ``adapter_model.safetensors``.

    Returns
    -------
    Adapter
        Its modules are known; their factors are read when asked for.

    Raises
    ------
    CheckpointInvalid
        No adapter, a pickle, damaged weights, or an adapter that is not plain LoRA.

    Examples
    --------
    >>> open_adapter("no/such/adapter")
    Traceback (most recent call last):
    zeitgeist.errors.CheckpointInvalid: no/such/adapter: there is no 'adapter_config.json' here; ...
    """
    path = Path(path)
    if not (path / CONFIG).is_file():
        raise CheckpointInvalid(
            f"there is no {CONFIG!r} here",
            origin=path,
            mend="give the directory that PEFT's save_pretrained wrote",
        )
    try:
        config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not a mapping")
    except ValueError as error:
        raise CheckpointInvalid(f"not a JSON mapping ({error})", origin=path / CONFIG) from error
    _check_config(path / CONFIG, config)
    if not (path / WEIGHTS).is_file():
        pickle = next((name for name in PICKLES if (path / name).is_file()), None)
        raise CheckpointInvalid(
            f"{pickle!r} is a pickle, which can run code when read"
            if pickle
            else f"there is no {WEIGHTS!r} here",
            origin=path,
            mend=_conversion(path / pickle) if pickle else "the adapter is incomplete",
        )
    try:
        weights = safe_open(path / WEIGHTS, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointInvalid(f"damaged: {error}", origin=path / WEIGHTS) from error
    return Adapter(path, config, weights)


def _conversion(pickle: Path) -> str:
    code = (
        "import torch; from safetensors.torch import save_file; "
        f"w = torch.load({str(pickle)!r}, weights_only=True, map_location='cpu'); "
        "save_file({k: v.clone().contiguous() for k, v in w.items()}, "
        f"{str(pickle.with_name(WEIGHTS))!r})"
    )
    return f'convert it once with: python -c "{code}"'


def write_adapter(
    out: Path,
    factors: Mapping[str, tuple[Float[Tensor, "r i"], Float[Tensor, "o r"]]],
    *,
    like: Adapter | Sequence[Adapter],
    overwrite: bool = False,
    inputs: Sequence[Path] = (),
    card: str = "",
) -> Path:
    """Write factors as an adapter that ``PeftModel.from_pretrained`` opens.

    Parameters
    ----------
    out
        Directory to make.
    factors
        Per module (a, b) in the layout of :class:`LoraFactors`, the scale already in them.
        Ranks may differ; a rank of zero is written as one direction of zeros.
    like
        The adapters these factors came from: the first gives the base model and task type, each
        tells the kind (linear, embedding, convolution) of the modules it adapts.
    overwrite
        Replace what is at ``out``.
    inputs
        Paths that ``out`` may not touch, besides those of ``like``.
    card
        Text of README.md; none is written when empty.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    InputInvalid
        Nothing to write, or a module that none of ``like`` adapts.
    OutputExists
        ``out`` exists and ``overwrite`` is false.
    """
    likes = (like,) if isinstance(like, Adapter) else tuple(like)
    if not factors or not likes:
        raise InputInvalid("no factors to write, or no adapter to be like")
    tensors = dict(_stored(factors, likes))
    ranks = {module: max(1, a.shape[0]) for module, (a, _) in factors.items()}
    top = max(ranks.values())
    # alpha = r makes PEFT's scale exactly one; "^" and escaping pin a pattern to one module.
    pattern = {f"^{re.escape(module)}": r for module, r in ranks.items() if r != top}
    config = {key: likes[0].config[key] for key in KEPT if key in likes[0].config} | {
        "peft_type": "LORA",
        "r": top,
        "lora_alpha": top,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": sorted(factors),
        "inference_mode": True,
    }
    with new_directory(
        out, overwrite=overwrite, inputs=[*inputs, *(adapter.path for adapter in likes)]
    ) as partial:
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        for file in likes[0].sidecars:
            (partial / file.name).write_bytes(file.read_bytes())
        if card:
            (partial / "README.md").write_text(card, encoding="utf-8")
    return out


def _stored(
    factors: Mapping[str, tuple[Tensor, Tensor]], likes: Sequence[Adapter]
) -> Iterator[tuple[str, Tensor]]:
    for module, (a, b) in factors.items():
        pair = next((one._pair(module) for one in likes if module in one.modules), None)
        if pair is None:
            raise InputInvalid(f"none of the given adapters adapts {module!r}")
        shapes = (a.shape[1], b.shape[0]), (math.prod(pair.a_shape[1:]), pair.b_shape[0])
        if shapes[0] != shapes[1] or a.shape[0] != b.shape[1]:
            raise InputInvalid(
                f"factors of {module!r} have shapes {list(a.shape)} and {list(b.shape)}, which do "
                f"not fit {shapes[1][0]} inputs and {shapes[1][1]} outputs"
            )
        if a.shape[0] == 0:
            a, b = a.new_zeros(1, a.shape[1]), b.new_zeros(b.shape[0], 1)
        for key, value, shape in (
            (pair.a_key, a, (-1, *pair.a_shape[1:])),
            (pair.b_key, b, (pair.b_shape[0], -1, *pair.b_shape[2:])),
        ):
            # clone: safetensors refuses tensors that share storage, and views are not contiguous
            yield (
                key,
                value.detach().cpu().reshape(shape).clone(memory_format=torch.contiguous_format),
            )
