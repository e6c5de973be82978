"""Merging tensors in memory: any method by name, in float64, rounded once. The slow, plain way.

This is what the streaming merge must equal, and the door for tensors that are already at hand.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from zeitgeist.errors import InputInvalid
from zeitgeist.merging import interpolation
from zeitgeist.merging.methods import (
    Compat,
    Method,
    TaskVectorRule,
    check_weights,
    find_method,
    make_options,
    task_vector_rule,
)
from zeitgeist.merging.randomness import uniforms
from zeitgeist.merging.rounding import round_once
from zeitgeist.merging.sparsify import (
    breadcrumbs,
    consensus,
    drop_at_random,
    energy_weights,
    keep_probabilities,
    l1_rescale,
    select_by_variance,
)
from zeitgeist.merging.task_vectors import (
    disjoint_mean,
    elect_sign,
    per_expert,
    sign_balance,
    sum_in_order,
    trim_by_magnitude,
    trim_threshold,
    weighted_sum,
)

# mergekit 0.1.5 weighs the experts of SCE equally below this sum of mean squares, and divides by
# at least this
SCE_TOO_SMALL = 1e-6


def _of_each(options: Any, field: str, count: int) -> list[float]:
    value = getattr(options, field)
    if not isinstance(value, tuple):
        return [value] * count
    if len(value) != count:
        raise InputInvalid(
            f"{field} is {value!r} for {count} experts", mend="give one value, or one per expert"
        )
    return list(value)


def sparsified(
    deltas: Float64[Tensor, "n *shape"],
    rule: TaskVectorRule,
    options: Any,
    *,
    draws: Float64[Tensor, "n *shape"] | None = None,
    thresholds: Sequence[float] | None = None,
) -> Float64[Tensor, "n *shape"]:
    """The entries of each task vector that a method keeps, rescaled as it does.

    Parameters
    ----------
    deltas
        Task vectors (n, *shape) of one tensor.
    rule, options
        From `task_vector_rule` and `make_options`.
    draws
        Uniform numbers in [0, 1), for the methods that drop at random.
    thresholds
        Magnitudes of a trim over the whole model, one per expert.
    """
    n, compat = len(deltas), rule.compat is not None
    kept = deltas
    if rule.sparsify == "variance":
        return deltas * select_by_variance(deltas, options.select_topk, as_mergekit=compat)
    if rule.sparsify not in ("magnitude", "band", "random", "ranked"):
        return deltas
    densities = _of_each(options, "density", n)
    if rule.sparsify == "magnitude":
        if thresholds is None:
            thresholds = [
                trim_threshold([delta], density) if density > 0 else float("inf")
                for delta, density in zip(deltas, densities, strict=True)
            ]
        kept = trim_by_magnitude(deltas, densities, thresholds=thresholds)
    elif rule.sparsify == "band":
        kept = breadcrumbs(deltas, densities, _of_each(options, "gamma", n), as_mergekit=compat)
    else:
        if draws is None:
            raise InputInvalid("no random draws were given")
        chances_of = torch.tensor(densities, dtype=torch.float64, device=deltas.device)
        probabilities = per_expert(chances_of, deltas)
        if rule.sparsify == "ranked":
            # mergekit's epsilon is half the window, and it ranks along dimension 1
            axis = 1 if compat and deltas.dim() > 3 else -1
            widths = [e * (2 if compat else 1) for e in _of_each(options, "epsilon", n)]
            chances = [
                keep_probabilities(delta, density, width, axis=axis)
                if density > 0
                else torch.zeros_like(delta)
                for delta, density, width in zip(deltas, densities, widths, strict=True)
            ]
            probabilities = torch.stack(chances)
        kept = drop_at_random(deltas, probabilities, draws, rescale=rule.rescale == "probability")
    return l1_rescale(kept, deltas) if rule.rescale == "l1" else kept


def merged_update(
    deltas: Float64[Tensor, "n *shape"],
    weights: Float64[Tensor, " n"],
    rule: TaskVectorRule,
    options: Any,
    *,
    draws: Float64[Tensor, "n *shape"] | None = None,
    thresholds: Sequence[float] | None = None,
    majority: int | None = None,
) -> Float64[Tensor, "*shape"]:
    """What a task-vector method adds to the base, lambda included.

    Parameters
    ----------
    deltas, weights
        Task vectors (n, *shape) of one tensor and the weights of the experts.
    rule, options
        From `task_vector_rule` and `make_options`.
    draws, thresholds
        See `sparsified`.
    majority
        Where zero sums follow the majority over the whole model: its sign. Without, the majority
        over this tensor.

    Returns
    -------
    torch.Tensor
        lambda times the merged task vector, float64.
    """
    kept = sparsified(deltas, rule, options, draws=draws, thresholds=thresholds)
    if rule.sparsify == "variance":
        smallest = SCE_TOO_SMALL if rule.compat else 0.0
        weights = energy_weights(kept, too_small=smallest)
        return disjoint_mean(kept, weights, elect_sign(kept, weights), smallest_divisor=smallest)
    if rule.elect == "none":
        # mergekit divides by 1 where the weights sum to almost nothing
        normalize = rule.normalize and not (rule.compat and abs(weights.sum().item()) < 1e-8)
        merged = weighted_sum(kept, weights, normalize=normalize)
        if rule.sparsify == "tall":
            merged = consensus(deltas, merged, options.tall_lambda, options.k)
    else:
        if rule.zero_sum == "positive":
            majority = 1
        elif majority is None:
            majority = sign_balance(kept, weights, rule.elect)
        zero_sum = -1 if majority < 0 else 1
        signs = elect_sign(kept, weights, election=rule.elect, zero_sum=zero_sum)
        merged = disjoint_mean(kept, weights, signs, election=rule.elect, normalize=rule.normalize)
    return rule.lambda_ * merged


def _combined(
    method: Method,
    experts: Float64[Tensor, "n *shape"],
    base: Float64[Tensor, "*shape"] | None,
    weights: Float64[Tensor, " n"],
    options: Any,
    compat: Compat,
) -> Float64[Tensor, "*shape"]:
    name, shape = method.name, experts.shape[1:]
    if name == "linear":
        divisor = interpolation.linear_divisor(weights, normalize=options.normalize)
        return _mix(experts, weights) / divisor
    vectors, start = experts, None
    if base is not None and name == "slerp":
        vectors = torch.cat([base.unsqueeze(0), experts])
        weights = torch.ones(len(vectors), dtype=torch.float64, device=vectors.device)
    elif base is not None:
        vectors, start = experts - base, base
    flatten = getattr(options, "nuslerp_flatten", True) and not getattr(
        options, "filter_wise", False
    )
    along = 0 if getattr(options, "nuslerp_row_wise", False) else -1
    rows = _rows(vectors, flatten=flatten, along=along)
    gram = interpolation.gram_matrix(rows)
    c = interpolation.coefficients(
        name, gram[0] if flatten else gram, weights, options, as_mergekit=compat is not None
    )
    if flatten:
        update = _mix(vectors, c)
    else:
        update = _unrows((c.unsqueeze(-1) * rows).sum(-2), shape, along)
    return update if start is None else start + update


def _mix(
    vectors: Float64[Tensor, "n *shape"], coefficients: Float64[Tensor, " n"]
) -> Float64[Tensor, "*shape"]:
    return sum_in_order(per_expert(coefficients, vectors) * vectors)


def _rows(
    stack: Float64[Tensor, "n *shape"], *, flatten: bool, along: int
) -> Float64[Tensor, "rows n size"]:
    """The vectors of each input that belong together: whole tensors, or rows."""
    if flatten or stack.dim() == 2:
        return stack.flatten(1).unsqueeze(0)
    if along == 0:
        stack = stack.transpose(1, -1)
    return stack.flatten(1, -2).transpose(0, 1)


def _unrows(
    rows: Float64[Tensor, "rows size"], shape: torch.Size, along: int
) -> Float64[Tensor, "*shape"]:
    if along != 0 or len(shape) == 1:
        return rows.reshape(shape)
    turned = [*shape]
    turned[0], turned[-1] = turned[-1], turned[0]
    return rows.reshape(turned).transpose(0, -1)


def _draws(name: str, count: int, shape: torch.Size, seed: int) -> Float64[Tensor, "n *shape"]:
    rows = [torch.from_numpy(uniforms(seed, i, name, 0, shape.numel())) for i in range(count)]
    return torch.stack(rows).to(torch.float64).reshape(count, *shape) * 2.0**-32


def _check(
    method: Method, tensors: Sequence[Tensor], base: Tensor | None, weights: Sequence[float] | None
) -> None:
    name = method.name
    if method.needs_base == "yes" and base is None:
        raise InputInvalid(f"{name} needs a base", mend="give base=")
    if method.needs_base == "no" and base is not None:
        raise InputInvalid(f"{name} takes no base", mend="give it as one of the tensors, or not")
    low, high = method.min_experts, method.max_experts
    if name == "slerp":
        low = high = 2 if base is None else 1
    if not low <= len(tensors) <= (high or len(tensors)):
        wanted = f"{low}" if low == high else f"at least {low}"
        raise InputInvalid(
            f"{name} was given {len(tensors)} tensors besides the base", mend=f"give {wanted}"
        )
    if weights is not None:
        if "weight" not in method.per_model:
            raise InputInvalid(f"{name} takes no weights", mend="leave them out")
        if len(weights) != len(tensors):
            raise InputInvalid(f"{len(weights)} weights for {len(tensors)} tensors")
    for i, tensor in enumerate([*tensors, *([base] if base is not None else [])]):
        who = f"tensor {i}" if i < len(tensors) else "the base"
        if not tensor.is_floating_point():
            raise InputInvalid(f"{who} has dtype {tensor.dtype}", mend="copy it instead of merging")
        if tensor.shape != tensors[0].shape:
            raise InputInvalid(
                f"{who} has shape {tuple(tensor.shape)}, tensor 0 {tuple(tensors[0].shape)}"
            )
        if method.family != "copy" and not bool(torch.isfinite(tensor).all()):
            raise InputInvalid(f"{who} holds NaN or infinity", mend="repair the checkpoint first")


def merge_tensors(
    method: str,
    tensors: Sequence[Float[Tensor, "..."]],
    *,
    base: Float[Tensor, "..."] | None = None,
    weights: Sequence[float] | None = None,
    name: str = "",
    seed: int = 0,
    compat: Compat = None,
    **options: Any,
) -> Float[Tensor, "..."]:
    """Merge the versions of one tensor that several models have.

    Parameters
    ----------
    method
        A key of `zeitgeist.merging.methods.METHODS`.
    tensors
        The experts' tensors, one shape. Slerp takes two, or one and the base.
    base
        The tensor of the model they were fine-tuned from, for the methods that use it.
    weights
        One per expert; 1 each when not given.
    name
        Name of the tensor: random masks belong to it.
    seed
        Seed of the random masks.
    compat
        ``"mergekit"`` for the defaults and rules of mergekit 0.1.5.
    **options
        Of the method, see its dataclass in `zeitgeist.merging.options`; a parameter that may
        differ from model to model can be a list. The global trim of TIES is over this tensor, the
        only one there is.

    Returns
    -------
    torch.Tensor
        The merged tensor, in the dtype that the inputs promote to, rounded once from float64.

    Raises
    ------
    InputInvalid
        A method, option, number, shape or dtype that does not fit; NaN or infinity in a tensor
        (passthrough copies them).

    Examples
    --------
    >>> base = torch.zeros(1)
    >>> experts = [torch.tensor([0.5]), torch.tensor([0.25]), torch.tensor([-0.6])]
    >>> merge_tensors("ties", experts, base=base, density=1.0)
    tensor([0.3750])
    """
    told = find_method(method)
    chosen = make_options(method, options, compat=compat)
    if not tensors:
        raise InputInvalid(f"{method} was given no tensors")
    _check(told, tensors, base, weights)
    check_weights(method, chosen, weights or [1.0] * len(tensors), compat=compat)
    dtype = tensors[0].dtype
    for tensor in [*tensors, *([base] if base is not None else [])]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    shape = tensors[0].shape
    if not shape.numel():
        return tensors[0].to(dtype, copy=True)
    experts = torch.stack([tensor.to(torch.float64) for tensor in tensors])
    experts = experts.reshape(len(tensors), *(shape or (1,)))
    start = None if base is None else base.to(torch.float64).reshape(experts.shape[1:])
    scales = experts.new_tensor(weights or [1.0] * len(tensors))

    if told.family == "copy":
        merged = experts[0] * _of_each(chosen, "scale", 1)[0]
    elif told.family == "combination":
        merged = _combined(told, experts, start, scales, chosen, compat)
    elif start is None:
        raise InputInvalid(f"{method} needs a base", mend="give base=")
    elif told.family == "nearswap":
        merged = interpolation.nearswap(start, experts[0], chosen.t, as_mergekit=compat is not None)
    else:
        rule = task_vector_rule(method, chosen, weights_given=weights is not None, compat=compat)
        whole = rule.sparsify == "none" and not rule.normalize
        if whole and len(tensors) == 1 and rule.lambda_ * scales[0] == 1:
            merged = experts[0]  # b + (x - b) may differ from x in the last bit
        else:
            draws = None
            if rule.sparsify in ("random", "ranked"):
                draws = _draws(name, len(tensors), experts.shape[1:], seed).to(experts.device)
            merged = start + merged_update(experts - start, scales, rule, chosen, draws=draws)
    return round_once(merged.reshape(shape), dtype)
