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

Blocks are found from the names of the tensors themselves. A model with several stacks (encoder
and decoder, vision and text tower) has each scaled over its own depth.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Shaped
from torch import Tensor

from zeitgeist.errors import InputInvalid

Outside = Literal["alpha", "last"]


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

    alpha: float | None = field(
        default=None, metadata={"meaning": "scale of the first block; none: the paper's rule"}
    )
    beta: float | None = field(
        default=None, metadata={"meaning": "added over the depth; none: 1 - alpha, at least 0"}
    )
    keep_last: bool = field(
        default=False, metadata={"meaning": "beta = 1 - alpha: the last block as it was"}
    )
    before: Outside = field(default="alpha", metadata={"meaning": "scale before the blocks"})
    after: Outside = field(default="alpha", metadata={"meaning": "scale after the blocks"})
    pattern: str | None = field(
        default=None, metadata={"meaning": "regular expression for the block number"}
    )

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
            _compiled(self.pattern)

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


@dataclass(frozen=True)
class BlockStack:
    """One stack of residual blocks.

    Parameters
    ----------
    prefix
        What stands before the block's number, as ``model.layers``.
    indices
        The numbers of the blocks, ascending. One number each, or (stage, block) where blocks are
        grouped into stages.
    names
        The tensors of each block, in the order of ``indices``.
    """

    prefix: str
    indices: tuple[tuple[int, ...], ...]
    names: tuple[tuple[str, ...], ...]

    @property
    def depths(self) -> tuple[float, ...]:
        """(l - 1) / (L - 1) of every block: 0 for the first, 1 for the last and for a lone one.

        Plain numbers count as they stand, so that a gap does not shift the blocks behind it.
        """
        numbers = [index[0] for index in self.indices]
        if len(self.indices[0]) > 1:
            numbers = list(range(len(self.indices)))
        first, span = numbers[0], numbers[-1] - numbers[0]
        return tuple((number - first) / span if span else 1.0 for number in numbers)

    @property
    def gaps(self) -> tuple[int, ...]:
        """Numbers between the first and the last block that no tensor has."""
        if len(self.indices[0]) > 1:
            return ()
        present = {index[0] for index in self.indices}
        return tuple(i for i in range(min(present), max(present)) if i not in present)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know about the numbering: a late start, gaps."""
        found = []
        if self.indices[0][0] > 1:
            found.append(f"{self.prefix}: numbering starts at {self.indices[0][0]}")
        if self.gaps:
            found.append(f"{self.prefix}: blocks {', '.join(map(str, self.gaps))} are missing")
        return tuple(found)


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


def detect_blocks(names: Iterable[str], pattern: str | None = None) -> list[BlockStack]:
    r"""Find the stacks of residual blocks from tensor names alone.

    A block is a numbered entry of a list of modules that itself contains modules
    (``model.layers.3.mlp.up_proj.weight``); the outermost such number counts, so that sub-layers
    (T5's ``block.3.layer.1``) do not, and the number of a mixture's expert never does. Stages
    whose members are alike (``layers.1.blocks.0`` in Swin) are one stack over the blocks of all
    stages. ``head.0.weight`` is a list of parameters, not of blocks.

    Parameters
    ----------
    names
        Names of tensors, not of modules.
    pattern
        Regular expression with a group for every number; what stands before the first group
        tells stacks apart.

    Returns
    -------
    list of BlockStack
        Sorted by prefix; empty when nothing looks like a block.

    Examples
    --------
    >>> names = ["wte.weight", "h.0.attn.c_attn.weight", "h.1.attn.c_attn.weight", "ln_f.weight"]
    >>> [(stack.prefix, stack.indices) for stack in detect_blocks(names)]
    [('h', ((0,), (1,)))]
    >>> detect_blocks(["a.0.b.1.w", "a.0.b.2.w"], pattern=r"b\.(\d+)")[0].prefix
    'a.0.b'
    """
    ordered = list(dict.fromkeys(names))
    places = _matched(ordered, pattern) if pattern is not None else _detected(ordered)
    stacks: dict[str, dict[tuple[int, ...], list[str]]] = {}
    for name, (prefix, index) in places.items():
        stacks.setdefault(prefix, {}).setdefault(index, []).append(name)
    return [
        BlockStack(prefix, tuple(sorted(blocks)), tuple(tuple(blocks[i]) for i in sorted(blocks)))
        for prefix, blocks in sorted(stacks.items())
    ]


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputInvalid(
            f"block pattern {pattern!r} is no regular expression ({error})"
        ) from error
    if compiled.groups == 0:
        raise InputInvalid(
            f"block pattern {pattern!r} has no group", mend=r"put the number in one: layers\.(\d+)"
        )
    return compiled


def _matched(names: Sequence[str], pattern: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    compiled, places = _compiled(pattern), {}
    for name in names:
        match = compiled.search(name)
        if match is None:
            continue
        if not all(group is not None and group.isdecimal() for group in match.groups()):
            raise InputInvalid(
                f"block pattern {pattern!r} finds {match.groups()!r} in {name!r}",
                mend="its groups must hold block numbers only",
            )
        prefix = name[: match.start(1)].rstrip(".")
        places[name] = (prefix, tuple(int(group) for group in match.groups()))
    if not places:
        raise InputInvalid(
            f"block pattern {pattern!r} matches no tensor", mend=f"names look like {names[:3]}"
        )
    return places


def _detected(names: Sequence[str]) -> dict[str, tuple[str, tuple[int, ...]]]:
    # Every numbered list: its path, then for each number the suffixes behind it.
    lists: dict[tuple[str, ...], dict[int, set[tuple[str, ...]]]] = {}
    parts = {name: tuple(name.split(".")) for name in names}
    for part in parts.values():
        for p in range(1, len(part) - 1):
            if part[p].isdecimal() and "expert" not in part[p - 1].lower():
                lists.setdefault(part[:p], {}).setdefault(int(part[p]), set()).add(part[p + 1 :])
    # A block contains modules, each with parameters of its own; a lone parameter list does not.
    blocks = {
        path
        for path, members in lists.items()
        if any(len(s) >= 2 and not s[0].isdecimal() for m in members.values() for s in m)
    }
    places: dict[str, tuple[str, tuple[int, ...]]] = {}
    staged: dict[tuple[str, ...], str | None] = {}
    for name, part in parts.items():
        for p in range(1, len(part) - 1):
            path = part[:p]
            if path not in blocks or not part[p].isdecimal():
                continue
            if path not in staged:
                staged[path] = _stage_list(lists[path])
            index: tuple[int, ...] = (int(part[p]),)
            inner = staged[path]
            if inner is not None:
                if len(part) > p + 3 and part[p + 1] == inner and part[p + 2].isdecimal():
                    index = (index[0], int(part[p + 2]))
                else:  # what closes a stage (downsampling) goes with its last block
                    held = lists.get((*part[: p + 1], inner), {})
                    index = (index[0], max(held, default=0))
            places[name] = (".".join(path), index)
            break
    return places


def _stage_list(members: Mapping[int, set[tuple[str, ...]]]) -> str | None:
    """Name of the list of blocks right inside every member, if the members are stages."""
    containers = {s[0] for m in members.values() for s in m if len(s) > 3 and s[1].isdecimal()}
    for container in sorted(containers):
        inside: dict[tuple[int, str], set[tuple[str, ...]]] = {}
        for number, suffixes in members.items():
            for s in suffixes:
                if s[0] == container and len(s) > 3 and s[1].isdecimal():
                    inside.setdefault((number, s[1]), set()).add(s[2:])
        union = set().union(*inside.values())
        alike = all(2 * len(block) >= len(union) for block in inside.values())
        everywhere = {number for number, _ in inside} == set(members)
        if (
            "expert" not in container.lower()
            and alike
            and everywhere
            and len(inside) > len(members)
        ):
            return container
    return None


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
        return base.to(tuned.dtype)
    start = base.double()
    return (start + scale * (tuned.double() - start)).to(tuned.dtype)


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
