"""LiNeS: scale the update of every block by its depth, after training.

A fine-tune, or a merge of several, has forgotten part of what the base knew. LiNeS shrinks the
update of early blocks, which hold what tasks share, and keeps that of late ones. No data, no
training, one multiplication per parameter.

Wang, Dimitriadis, Favero, Ortiz-Jimenez, Fleuret, Frossard: "LiNeS: Post-training Layer Scaling
Prevents Forgetting and Enhances Model Merging", arXiv 2410.17146 (ICLR 2025).

With tau = theta - theta_0 the update and l = 1..L the residual blocks of one stack:

    lambda_l = alpha + beta (l - 1) / (L - 1),   lambda_1 = alpha + beta when L = 1
    theta'   = theta_0 + lambda_l tau_l

    alpha = (1 / T) ||sum_t tau_t||_1 / ||tau_merged||_1        (merging T tasks; sum before trims)

What stands outside the blocks takes alpha, as in the official code; an output head that is not
tied may take alpha + beta instead (``after="last"``). The two families a sceptic compares with
are the same functions: uniform scaling is ``beta=0``, reversed scaling has alpha and alpha + beta
exchanged (``alpha=a + b, beta=-b``).

Blocks are found from the names of the tensors themselves (`zeitgeist.merging.blocks`). A model with
several stacks (encoder and decoder, vision and text tower) has each scaled over its own depth.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Shaped
from torch import Tensor

from zeitgeist.errors import InputInvalid
from zeitgeist.merging.blocks import BlockStack, compiled_pattern, detect_blocks
from zeitgeist.merging.options import option
from zeitgeist.merging.rounding import round_once

Outside = Literal["alpha", "last"]
_PAPER = "arXiv 2410.17146"


@dataclass(frozen=True)
class LinesOptions:
    """How strongly, and where, the update is scaled.

    Parameters
    ----------
    alpha
        Scale of the first block. ``None``: for a merge of several experts the paper's rule
        (:func:`alpha_rule`); a single fine-tune has no rule, there it must be given (the paper
        sweeps 1.0, 0.9, ..., 0).
    beta
        What is added over the depth. ``None``: 1 - alpha, but not below 0, so that the last block
        stays as it was (the paper's setting for a single fine-tune; for merges it tunes beta over
        0.1, ..., 1.0, for TIES up to 1.5).
    keep_last
        beta = 1 - alpha whatever alpha is, also above 1. Excludes ``beta``.
    before
        Scale of what comes before the blocks (embeddings): ``"alpha"`` (paper) or ``"last"``,
        which is alpha + beta.
    after
        Scale of what comes after the blocks (final norm, head): ``"alpha"`` (official code) or
        ``"last"``, which is alpha + beta.
    pattern
        Regular expression that finds the block number in a tensor's name, one group per number:
        ``r"layers\\.(\\d+)\\."``. ``None``: the blocks are detected.

    Examples
    --------
    >>> LinesOptions(alpha=0.1).strengths(1)
    (0.1, 0.9)
    """

    alpha: float | None = option(None, "scale of the first block; unset: the paper's rule", _PAPER)
    beta: float | None = option(
        None, "what the scale gains over the depth; unset: 1 - alpha, at least 0", _PAPER
    )
    keep_last: bool = option(False, "beta = 1 - alpha: the last block as it was", _PAPER)
    before: Literal["alpha", "last"] = option(
        "alpha", "scale of what comes before the blocks", _PAPER
    )
    after: Literal["alpha", "last"] = option(
        "alpha", "scale of what comes after the blocks", "wang-kee/LiNeS"
    )
    pattern: str | None = option(None, "regular expression for the block number", "ours")

    def __post_init__(self) -> None:
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            if value is not None and not math.isfinite(value):
                raise InputInvalid(f"{name} of LiNeS is {value!r}", mend="give a finite number")
        if self.keep_last and self.beta is not None:
            raise InputInvalid(
                f"LiNeS got both keep_last and beta {self.beta!r}",
                mend="keep_last means beta = 1 - alpha: give one of the two",
            )
        if self.pattern is not None:
            compiled_pattern(self.pattern)

    def strengths(
        self, n: int, l1_sum: float | None = None, l1_merged: float | None = None
    ) -> tuple[float, float]:
        """Alpha and beta as numbers.

        Parameters
        ----------
        n
            How many experts were merged; 1 for a single fine-tune.
        l1_sum, l1_merged
            ||sum_t tau_t||_1 and ||tau_merged||_1 over all parameters; needed only when
            ``alpha`` is ``None``.
        """
        alpha = self.alpha
        if alpha is None:
            if n == 1:
                raise InputInvalid(
                    "LiNeS on a single fine-tune got no alpha",
                    mend="give alpha between 0 (forget nothing) and 1 (change nothing)",
                )
            if l1_sum is None or l1_merged is None:
                raise InputInvalid(
                    "the alpha rule of LiNeS got no L1 norms",
                    mend="give alpha, or the norms of the summed and of the merged update",
                )
            alpha = alpha_rule(n, l1_sum, l1_merged)
        if self.beta is not None:
            return alpha, self.beta
        return alpha, 1.0 - alpha if self.keep_last else max(0.0, 1.0 - alpha)


# Last module of a path that sits behind the blocks: final norms, poolers, heads, projections out.
_AFTER = re.compile(
    r"(^|\.)(lm_head|embed_out|output|head|heads|classifier|score|fc|cls|qa_outputs|pooler"
    r"|visual_projection|text_projection|text_proj|proj|norm|norm_f|ln_f|ln_final|ln_post"
    r"|final_layer_norm|final_layernorm|post_layernorm|last_layernorm|layernorm|layer_norm"
    r"|final_norm)(\.|$)"
)
_BEFORE = re.compile(r"embed(?!_out)|wte|wpe|(^|\.)(conv1|ln_pre|pre_layrnorm|patch\w*)(\.|$)")


def alpha_rule(n: int, l1_sum: float, l1_merged: float) -> float:
    """The paper's alpha for a merge of ``n`` tasks: (1/n) ||sum of updates||_1 / ||merged||_1.

    Experts equal to their base make both norms 0; then alpha is 1/n.

    Examples
    --------
    >>> alpha_rule(4, l1_sum=8.0, l1_merged=8.0)  # task arithmetic: the merge is the sum
    0.25
    >>> alpha_rule(4, l1_sum=8.0, l1_merged=2.0)  # averaging
    1.0
    """
    return (l1_sum / l1_merged if l1_merged > 0 else 1.0) / n


def block_scales(
    names: Iterable[str],
    alpha: float,
    beta: float,
    *,
    before: Outside = "alpha",
    after: Outside = "alpha",
    pattern: str | None = None,
    stacks: Sequence[BlockStack] | None = None,
) -> dict[str, float]:
    """The scale lambda of every tensor.

    Parameters
    ----------
    names
        Names of tensors.
    alpha, beta
        The first block gets alpha, the last alpha + beta. When they sum to 1 up to rounding the
        last scale is exactly 1.
    before, after
        ``"alpha"`` or ``"last"`` for what stands before and behind the blocks. Only what is
        known as an output (final norm, head, pooler, projection out) is behind.
    pattern
        See :func:`detect_blocks`.
    stacks
        The stacks, when they are known already (an adapter that touches some blocks only takes
        those of its base).

    Returns
    -------
    dict
        Name to scale, in the order of ``names``.

    Raises
    ------
    InputInvalid
        When no block is found.

    Examples
    --------
    >>> block_scales(["emb.weight"] + [f"h.{i}.mlp.weight" for i in range(3)], 0.2, 0.6)
    {'emb.weight': 0.2, 'h.0.mlp.weight': 0.2, 'h.1.mlp.weight': 0.5, 'h.2.mlp.weight': 0.8}
    """
    ordered = list(dict.fromkeys(names))
    found = detect_blocks(ordered, pattern) if stacks is None else list(stacks)
    if not found:
        raise InputInvalid(
            f"no stack of blocks among {len(ordered)} tensors ({', '.join(ordered[:3])}, ...)",
            mend=r"give the pattern that finds the block number, as layers\.(\d+)\.",
        )
    last = alpha + beta
    if math.isclose(last, 1.0, rel_tol=1e-12):
        last = 1.0
    inside = {
        name: last if depth == 1.0 else alpha + beta * depth
        for stack in found
        for depth, members in zip(stack.depths, stack.names, strict=True)
        for name in members
    }
    ends = {"alpha": alpha, "last": last}
    return {
        name: inside[name] if name in inside else ends[after if is_behind(name) else before]
        for name in ordered
    }


def is_behind(name: str) -> bool:
    """Whether a tensor outside the blocks is an output: final norm, pooler, head, projection.

    Examples
    --------
    >>> [is_behind(name) for name in ("lm_head.weight", "model.norm.weight", "wte.weight")]
    [True, True, False]
    """
    return _AFTER.search(name) is not None and _BEFORE.search(name) is None


def scale_update(
    base: Shaped[Tensor, "*shape"], tuned: Shaped[Tensor, "*shape"], scale: float
) -> Shaped[Tensor, "*shape"]:
    """base + scale (tuned - base), in float64, rounded once to the dtype of ``tuned``.

    Scale 1 is ``tuned`` and scale 0 is ``base`` to the bit; integer and boolean tensors are
    ``tuned``.

    Examples
    --------
    >>> import torch
    >>> scale_update(torch.zeros(2), torch.ones(2), 0.25)
    tensor([0.2500, 0.2500])
    """
    if scale == 1.0 or not tuned.is_floating_point():
        return tuned
    if scale == 0.0:
        return round_once(base.double(), tuned.dtype)
    start = base.double()
    return round_once(start + scale * (tuned.double() - start), tuned.dtype)


@dataclass(frozen=True)
class ScaledTensors:
    """Result of :func:`scale_layers`: the tensors, the scale of each, and what to know."""

    tensors: dict[str, Tensor]
    scales: dict[str, float]
    notes: tuple[str, ...]


def scale_layers(
    base: Mapping[str, Tensor],
    tuned: Mapping[str, Tensor],
    options: LinesOptions,
    *,
    n: int = 1,
    l1_sum: float | None = None,
    l1_merged: float | None = None,
) -> ScaledTensors:
    """LiNeS on two state dicts.

    Parameters
    ----------
    base, tuned
        Tensors by name: before the fine-tune, and after it or after a merge.
    options
        Strengths and rules.
    n, l1_sum, l1_merged
        See :meth:`LinesOptions.strengths`.

    Returns
    -------
    ScaledTensors
        Every name of either input, in the dtype of ``tuned``. What only the base has is copied;
        what only ``tuned`` has, also the rows of a vocabulary that grew, stays at full strength.
        Tensors that share memory in ``tuned`` share it in the result and take the scale of the
        first of their names.

    Raises
    ------
    InputInvalid
        No blocks, NaN (names the tensor), or shapes that differ in more than the number of rows.

    Examples
    --------
    >>> import torch
    >>> base = {f"h.{i}.mlp.weight": torch.zeros(1) for i in range(3)}
    >>> tuned = {name: torch.ones(1) for name in base}
    >>> [t.item() for t in scale_layers(base, tuned, LinesOptions(alpha=0.0)).tensors.values()]
    [0.0, 0.5, 1.0]
    """
    alpha, beta = options.strengths(n, l1_sum, l1_merged)
    stacks = detect_blocks(tuned, options.pattern)
    scales = block_scales(
        tuned, alpha, beta, before=options.before, after=options.after, stacks=stacks
    )
    notes = [note for stack in stacks for note in stack.notes]
    tensors: dict[str, Tensor] = {}
    by_memory: dict[tuple[int, torch.Size, torch.dtype], str] = {}
    for name, after in tuned.items():
        first = by_memory.setdefault((after.data_ptr(), after.shape, after.dtype), name)
        if first != name and after.numel():
            tensors[name], scales[name] = tensors[first], scales[first]
            continue
        before = base.get(name)
        if before is None:
            tensors[name], scales[name] = after, 1.0
            notes.append(f"{name}: not in the base, kept at full strength")
            continue
        if before.shape[1:] != after.shape[1:] or before.ndim != after.ndim:
            raise InputInvalid(
                f"{name} is {list(before.shape)} in the base and {list(after.shape)} after",
                mend="LiNeS needs a base and a fine-tune of one architecture",
            )
        for tensor, which in ((before, "base"), (after, "fine-tune")):
            if tensor.is_floating_point() and bool(tensor.isnan().any()):
                raise InputInvalid(f"{name} of the {which} holds NaN")
        rows = min(len(before), len(after)) if after.ndim else 0
        if after.ndim and len(before) != len(after):
            notes.append(f"{name}: {len(before)} rows in the base, {len(after)} after")
            common = scale_update(before[:rows], after[:rows], scales[name])
            tensors[name] = torch.cat([common, after[rows:]])
        else:
            tensors[name] = scale_update(before, after, scales[name])
    for name in base:
        if name not in tensors:
            tensors[name], scales[name] = base[name], 0.0
            notes.append(f"{name}: only in the base, copied")
    return ScaledTensors(tensors, scales, tuple(notes))


def scale_adapter(
    factors: Mapping[str, tuple[Tensor, Tensor]],
    alpha: float,
    beta: float,
    *,
    before: Outside = "alpha",
    after: Outside = "alpha",
    pattern: str | None = None,
    base_names: Iterable[str] | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """LiNeS on an adapter: B of block l times lambda_l, exact and without the base.

    Parameters
    ----------
    factors
        Module path to (A, B), the update being B A.
    alpha, beta, before, after, pattern
        See :func:`block_scales`.
    base_names
        The base's tensor names. Needed only when the adapter leaves out the first or the last
        blocks, whose number its own names do not tell.

    Examples
    --------
    >>> import torch
    >>> one = (torch.ones(1, 2), torch.ones(2, 1))
    >>> scaled = scale_adapter({"h.0.attn": one, "h.1.attn": one}, 0.0, 0.5)
    >>> [b[0].item() for _, b in scaled.values()]
    [0.0, 0.5]
    """
    own = {module: f"{module}.weight" for module in factors}
    names = list(own.values()) if base_names is None else [*base_names, *own.values()]
    scales = block_scales(names, alpha, beta, before=before, after=after, pattern=pattern)
    return {module: (a, b * scales[own[module]]) for module, (a, b) in factors.items()}
