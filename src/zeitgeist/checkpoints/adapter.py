"""LoRA adapters on disk, in and out, without the model they stand on.

LoRA (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685) stores an
update of a weight as two factors, and PEFT stores those in ``adapter_model.safetensors`` beside an
``adapter_config.json``::

    delta = scale * b @ a        scale = alpha / r          (section 4.1 of the paper)
                                 scale = alpha / sqrt(r)    (rank-stabilised, arXiv:2312.03732)

``alpha`` and ``r`` may be given per module (``alpha_pattern``, ``rank_pattern``: regular
expressions over module paths, the first that matches decides). Some weights are stored by the base
model as (in, out): GPT-2's Conv1D (``fan_in_fan_out``) and every embedding; their update is the
transpose of ``b @ a``.

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
from safetensors.torch import save_file
from torch import Tensor

from zeitgeist.checkpoints.atomic import new_directory
from zeitgeist.checkpoints.peft_format import (
    CONFIG,
    WEIGHTS,
    FactorPair,
    by_pattern,
    open_weights,
    read_config,
    read_names,
)
from zeitgeist.errors import CheckpointInvalid, InputInvalid

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
        self._pairs, self._extra = read_names(path / WEIGHTS, weights)
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
        alpha = by_pattern(
            self.config.get("alpha_pattern"), module, self.config.get("lora_alpha", 8)
        )
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

    def _pair(self, module: str) -> FactorPair:
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
        said = by_pattern(self.config.get("rank_pattern"), module, self.config.get("r", 8))
        if self.rank(module) != said:
            raise CheckpointInvalid(
                f"the factors of {module!r} have rank {self.rank(module)} where the configuration "
                f"says {said}",
                origin=self.path / CONFIG,
                mend="r and rank_pattern must be those of the training run, or the scale is wrong",
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
    return Adapter(path, read_config(path), open_weights(path))


def write_adapter(
    out: Path,
    factors: Mapping[str, tuple[Float[Tensor, "_ _"], Float[Tensor, "_ _"]]],
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
            # safetensors refuses tensors that share storage or are not contiguous
            owned = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            yield key, owned.reshape(shape)
