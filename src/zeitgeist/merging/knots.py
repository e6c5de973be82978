"""KnOTS: turn the updates of several adapters into one shared basis, then merge them there.

Methods made for full fine-tunes, TIES above all, work poorly on LoRA adapters because each adapter
chooses its own low-rank subspace. KnOTS rotates the updates of a layer into a basis they share and
merges in that basis. No data, no gradients, no hyperparameter of its own.

Stoica, Ramesh, Ecsedi, Choshen, Hoffman: "Model merging with SVD to tie the KnOTS",
arXiv 2410.19735 (ICLR 2025). For a layer with updates dW_i = B_i A_i (scale alpha/r in B_i):

    [dW_1 ... dW_n] = U S V^T,  V^T = [V_1^T ... V_n^T]      one thin SVD, columns side by side
    P_i = S V_i^T,  dW_i = U P_i                             what is merged is P_i, never V_i alone
    ties:             P = mean over experts of the entries of P_i that agree with the elected sign,
                      after keeping the largest |P_i|
    dare_ties:        the same without the trim, on P_i * Bernoulli(1 - p) / (1 - p)
    task_arithmetic:  P = sum_i w_i P_i                      then U P = sum_i w_i dW_i exactly
    dW = lambda U P                                          a LoRA of rank k: B = U, A = lambda P

The rotation is in `zeitgeist.merging.shared_basis`, the steps of TIES in
`zeitgeist.merging.task_vectors`; here they are put together over the layers of a model.

One choice is not in the paper. The SVD leaves cells of P that should be 0 at some 1e-17, and the
mean would count them: |p| <= guard * max|p| is set to 0 (``guard``, off in `parity_options`).

n experts, O outputs, I inputs, R sum of the adapters' ranks, k rank kept
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from zeitgeist.errors import InputInvalid
from zeitgeist.merging.low_rank import (
    Alignment,
    Update,
    alignment,
    alignment_of_entries,
    truncate,
)
from zeitgeist.merging.options import option
from zeitgeist.merging.randomness import kept, uniforms
from zeitgeist.merging.shared_basis import SharedBasis, align
from zeitgeist.merging.task_vectors import (
    disjoint_mean,
    elect_sign,
    keep_count,
    sign_balance,
    sum_in_order,
    trim_by_magnitude,
    weighted_sum,
)

Combine = Literal["ties", "dare_ties", "task_arithmetic"]
_CODE = "gstoica27/KnOTS, configs/vitB_r16_knots_ties.py"


@dataclass(frozen=True)
class KnotsOptions:
    """How updates in the shared basis become one.

    The defaults are those of the authors' configuration for eight ViT-B/32 adapters, where they
    were tuned on validation data; tune lambda here too.
    """

    combine: Literal["ties", "dare_ties", "task_arithmetic"] = option(
        "ties", "how to merge in the shared basis", "arXiv 2410.19735"
    )
    density: float = option(0.2, "share of entries per expert that TIES keeps", _CODE, "(0, 1]")
    drop: float = option(
        0.1, "chance that DARE drops an entry", _CODE.replace("ties", "dare_ties"), "[0, 1)"
    )
    lambda_: float = option(0.6, "scale of the merged update", _CODE)
    trim_scope: Literal["global", "layer"] = option(
        "global", "threshold of the trim over all layers together or per layer", _CODE
    )
    seed: int = option(0, "seed of DARE's masks", "ours")
    guard: float = option(
        1e-9, "entries of at most this share of the layer's largest count as zero", "ours", "[0, 1)"
    )
    tolerance: float = option(
        1e-7, "singular values of at most this share of the largest are dropped", "ours", "[0, 1)"
    )
    floor: float = option(0.0, "singular values of at most this are dropped", "ours", "[0, inf)")
    beyond: int = option(0, "entries kept beyond int(density * entries)", "ours", "[0, inf)")

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise InputInvalid(f"density is {self.density!r}", mend="give 0 < density <= 1")
        if not 0 <= self.drop < 1:
            raise InputInvalid(f"drop is {self.drop!r}", mend="give 0 <= drop < 1")


def published_options(combine: Combine = "ties", *, weighted: bool = False) -> KnotsOptions:
    """The authors' settings for each way to combine.

    Lambda is .6 for TIES and .7 for DARE-TIES. Task arithmetic does not depend on the basis, so it
    takes its own paper's .4 (arXiv 2212.04089), or 1 when weights are given.

    Examples
    --------
    >>> published_options("dare_ties").lambda_
    0.7
    """
    lambdas = {"ties": 0.6, "dare_ties": 0.7, "task_arithmetic": 1.0 if weighted else 0.4}
    return KnotsOptions(combine, lambda_=lambdas[combine])


def parity_options(combine: Combine = "ties", *, weighted: bool = False) -> KnotsOptions:
    """The numerics of the official code: what it makes of the same updates.

    Singular values above 1e-5, no guard against rounding dust, and a threshold that is the
    (d - int(d density))-th smallest magnitude, which keeps one entry more than int(d density).

    Examples
    --------
    >>> parity_options().guard, parity_options().floor
    (0.0, 1e-05)
    """
    return replace(
        published_options(combine, weighted=weighted),
        guard=0.0,
        tolerance=0.0,
        floor=1e-5,
        beyond=1,
    )


@dataclass(frozen=True)
class LayerReport:
    """What happened to one layer.

    Parameters
    ----------
    rank
        Rank of the result.
    spectrum
        Singular values of the updates side by side.
    before
        The updates as they came.
    after
        What the sign election saw: entries in the shared basis, after trim or drop. Cosines differ
        from ``before`` only by what was trimmed, because U is orthonormal; sign conflicts differ
        because the entries are others.
    kept
        Share of entries per expert that trim or drop left.
    energy_lost
        Share of the squared norm of the merged update that truncation to ``out_rank`` cost.
    """

    rank: int
    spectrum: Float[Tensor, " k"]
    before: Alignment
    after: Alignment
    kept: tuple[float, ...]
    energy_lost: float


@dataclass(frozen=True)
class KnotsMerge:
    """Merged factors (A, B) per layer in float64, lambda included, and the report per layer."""

    factors: dict[str, tuple[Tensor, Tensor]]
    layers: dict[str, LayerReport]


def magnitude_thresholds(
    stacks: Callable[[], Iterable[Float[Tensor, "n ..."]]], count: Callable[[int], int]
) -> tuple[float, ...]:
    """The ``count(entries)``-th largest magnitude of every expert over all ``stacks``, exactly.

    Magnitudes are compared as float32. Two passes, each over a histogram of half their bits: no
    sort, and never more than one stack in memory.

    Examples
    --------
    >>> import torch
    >>> chunks = [torch.tensor([[1.0, -5.0]]), torch.tensor([[3.0]])]
    >>> magnitude_thresholds(lambda: chunks, lambda entries: entries - 1)
    (3.0,)
    """
    upper = sum(
        (_histogram(_bits(stack) >> 15, 1 << 16) for stack in stacks()),
        start=torch.zeros((), dtype=torch.int64),
    )
    places = [_from_top(histogram, count(int(histogram.sum()))) for histogram in upper]
    bins = torch.tensor([bin_ for bin_, _ in places], dtype=torch.int32)
    lower = torch.zeros(len(places), 1 << 15, dtype=torch.int64)
    for stack in stacks():
        bits = _bits(stack)
        inside = bits >> 15 == bins[:, None].to(bits.device)
        lower += _histogram(torch.where(inside, bits & 0x7FFF, 1 << 15), (1 << 15) + 1)[:, :-1]
    exact = [
        bin_ << 15 | _from_top(row, left)[0]
        for row, (bin_, left) in zip(lower, places, strict=True)
    ]
    return tuple(torch.tensor(exact, dtype=torch.int32).view(torch.float32).tolist())


def _histogram(values: Int[Tensor, "n entries"], bins: int) -> Int[Tensor, "n bins"]:
    return torch.stack([torch.bincount(row, minlength=bins) for row in values]).cpu()


def _bits(stack: Tensor) -> Int[Tensor, "n entries"]:
    return stack.abs().float().flatten(1).contiguous().view(torch.int32)


def _from_top(histogram: Int[Tensor, " bins"], count: int) -> tuple[int, int]:
    """The bin that holds the ``count``-th entry from the top, and its place inside."""
    above = histogram.flip(0).cumsum(0)
    place = int(torch.searchsorted(above, count))
    return len(histogram) - 1 - place, count - (int(above[place - 1]) if place else 0)


def represent(
    p: Float[Tensor, "n k I"], options: KnotsOptions, name: str
) -> Float[Tensor, "n k I"]:
    """What the experts hand to the trim: P_i without rounding dust, and for DARE with its mask."""
    n = len(p)
    if options.combine == "task_arithmetic" or p.numel() == 0:
        return p
    if options.guard > 0 and n > 1:
        p = torch.where(p.abs() <= options.guard * p.abs().amax(), 0.0, p)
    if options.combine == "dare_ties":
        keep, entries = 1.0 - options.drop, p[0].numel()
        masks = [kept(uniforms(options.seed, i, name, 0, entries), keep) for i in range(n)]
        mask = torch.stack([torch.from_numpy(one) for one in masks]).view(p.shape).to(p.device)
        p = torch.where(mask, p / keep, 0.0)
    return p


def merge_stack(
    stack: Float[Tensor, "n k I"],
    options: KnotsOptions,
    weights: Float[Tensor, " n"],
    zero_sum: int = 1,
) -> Float[Tensor, "k I"]:
    """One P from those the experts hand in after trim or drop, lambda included."""
    if options.combine == "task_arithmetic":
        return options.lambda_ * weighted_sum(stack, weights)
    signs = elect_sign(stack, weights, zero_sum=zero_sum)
    return options.lambda_ * disjoint_mean(stack, weights, signs)


def merge_layers(
    layers: Mapping[str, Sequence[Update]],
    options: KnotsOptions | None = None,
    *,
    weights: Sequence[float] | None = None,
    out_rank: int | None = None,
    progress: bool | None = None,
) -> KnotsMerge:
    """Merge the experts' updates of every layer in the layer's shared basis.

    Parameters
    ----------
    layers
        Name of the layer to the experts' updates, one per expert and always in the same order:
        factors (A, B) with A of r x I and B of O x r, scale included; a full update; or ``None``
        where the expert leaves the layer alone. It may load them when asked: layers are visited
        one at a time, once, and under a global trim three times (the P_i are computed again
        instead of being kept).
    options
        ``None``: KnOTS-TIES with its published defaults.
    weights
        One per expert; ``None``: all 1. Task arithmetic sums w_i dW_i; TIES elects signs without
        them and averages with them.
    out_rank
        Truncate every merged update to at most this rank.
    progress
        Show a bar on stderr; ``None``: when it is a terminal.

    Returns
    -------
    KnotsMerge
        Factors in the order of ``layers``. Each is a LoRA of rank k, exact unless truncated, with
        equal norms in A and B.

    Raises
    ------
    InputInvalid
        Experts that do not fit together, or NaN; names the layer.

    Notes
    -----
    Peak memory is the result and the work on one layer: some copies of the n P_i of k x I and the
    factors of O x R, in float64.

    Examples
    --------
    >>> import torch
    >>> left, right = torch.tensor([[2.0], [0.0]]), torch.tensor([[0.0], [1.0]])
    >>> layer = [(torch.ones(1, 3), left), (torch.ones(1, 3), right)]
    >>> merged = merge_layers({"q_proj": layer}, KnotsOptions(density=1.0, lambda_=1.0))
    >>> a, b = merged.factors["q_proj"]
    >>> (b @ a).round(decimals=6).tolist()
    [[2.0, 2.0, 2.0], [1.0, 1.0, 1.0]]
    """
    options = KnotsOptions() if options is None else options
    if not layers:
        raise InputInvalid("there are no layers to merge")
    n = len(layers[next(iter(layers))])
    if weights is not None and len(weights) != n:
        raise InputInvalid(f"{len(weights)} weights for {n} experts")
    voices = torch.tensor(weights or [1.0] * n, dtype=torch.float64)
    trims = options.combine == "ties" and options.density < 1
    passes = 3 if trims and options.trim_scope == "global" else 1
    hidden = None if progress is None else not progress
    with tqdm(total=passes * len(layers), desc="KnOTS", unit="layer", disable=hidden) as bar:

        def represented(name: str) -> tuple[Sequence[Update], SharedBasis, Tensor]:
            updates = layers[name]
            try:
                if len(updates) != n:
                    raise InputInvalid(f"{len(updates)} updates where other layers have {n}")
                basis = align(updates, tolerance=options.tolerance, floor=options.floor)
            except InputInvalid as error:
                raise InputInvalid(error.what, origin=name, mend=error.mend) from error
            bar.update()
            return updates, basis, represent(basis.p, options, name)

        def count(entries: int) -> int:
            return min(entries, keep_count(options.density, entries) + options.beyond)

        shared = None
        if passes == 3:
            shared = magnitude_thresholds(lambda: (represented(name)[-1] for name in layers), count)

        def trimmed(name: str) -> tuple[Sequence[Update], SharedBasis, Tensor]:
            updates, basis, stack = represented(name)
            if trims and stack.numel():
                limits = shared or magnitude_thresholds(lambda: [stack], count)
                stack = trim_by_magnitude(stack, [options.density] * n, thresholds=limits)
            return updates, basis, stack

        done: dict[str, tuple[tuple[Tensor, Tensor], LayerReport]] = {}
        balance, undecided = 0, []
        for name in layers:
            updates, basis, stack = trimmed(name)
            own = sign_balance(stack, voices.to(stack.device))
            balance += own
            # A sum that cancels exactly takes the majority over all layers, known only at the end.
            cancels = (sum_in_order(stack) == 0) & (stack != 0).any(dim=0)
            if options.trim_scope == "global" and bool(cancels.any()):
                undecided.append(name)
            else:
                sign = -1 if own < 0 else 1
                done[name] = _finished(updates, basis, stack, options, voices, sign, out_rank)
        bar.total = passes * len(layers) + len(undecided)
        for name in undecided:
            sign = -1 if balance < 0 else 1
            done[name] = _finished(*trimmed(name), options, voices, sign, out_rank)
    return KnotsMerge(
        {name: done[name][0] for name in layers}, {name: done[name][1] for name in layers}
    )


def _finished(
    updates: Sequence[Update],
    basis: SharedBasis,
    stack: Tensor,
    options: KnotsOptions,
    weights: Tensor,
    zero_sum: int,
    out_rank: int | None,
) -> tuple[tuple[Tensor, Tensor], LayerReport]:
    merged = merge_stack(stack, options, weights.to(stack.device), zero_sum)
    a, b = _balanced(basis.u, merged)
    a, b, lost = truncate(a, b, len(a) if out_rank is None else out_rank)
    left = stack.flatten(1).count_nonzero(dim=1) / max(1, stack[0].numel())
    return (a, b), LayerReport(
        len(a),
        basis.s,
        alignment(updates),
        alignment_of_entries(stack),
        tuple(left.tolist()),
        lost,
    )


def _balanced(
    u: Float[Tensor, "O k"], p: Float[Tensor, "k I"]
) -> tuple[Float[Tensor, "r I"], Float[Tensor, "O r"]]:
    """U P as factors of equal norms per direction; directions the merge emptied are left out."""
    norms = p.norm(dim=1)
    root = norms[norms > 0].sqrt()
    return p[norms > 0] / root[:, None], u[:, norms > 0] * root
