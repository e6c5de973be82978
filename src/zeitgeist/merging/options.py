"""What can be set on each merge method: one frozen dataclass per method, published defaults.

Every field carries its meaning, the place where its default was published, and its range.
A parameter that may differ from model to model (density, epsilon, gamma, scale) is one number or
a tuple with one per expert.

Notation: b base, x_i expert i of n, d_i = x_i - b task vector, w_i weight (1 unless given), lambda
the scale of the merged update.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

TIES = "Yadav et al., TIES-Merging, arXiv 2306.01708"
TASK_ARITHMETIC = "Ilharco et al., Editing Models with Task Arithmetic, arXiv 2212.04089"
SOUPS = "Wortsman et al., Model soups, arXiv 2203.05482"
DARE = "Yu et al., Language Models are Super Mario, arXiv 2311.03099"
DELLA = "Deep et al., DELLA-Merging, arXiv 2406.11617"
BREADCRUMBS = "Davari and Belilovsky, Model Breadcrumbs, arXiv 2312.06795"
SCE = "Wan et al., FuseChat, arXiv 2408.07990"
TALL = "Wang et al., Localizing Task Information (TALL masks), arXiv 2405.07813"
MODEL_STOCK = "Jang, Yun, Han, Model Stock, arXiv 2403.19522"
LINES = "Wang et al., LiNeS, arXiv 2410.17146"
SLERP = "Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985"
MERGEKIT = "Goddard et al., Arcee's MergeKit, arXiv 2403.13257; mergekit 0.1.5"
KARCHER = "Wang et al., LLM Merging on the Fisher-Rao Manifold, arXiv 2603.04972"
NEARSWAP = "alchemonaut, QuartetAnemoi-70B-t0.0001 (model card)"


def option(default: Any, meaning: str, source: str, within: str = "") -> Any:
    """A field of an options dataclass: default, meaning, where the default was published, range.

    ``within`` is an interval such as ``"(0, 1]"``; empty means any value.
    """
    metadata = {"meaning": meaning, "source": source, "within": within}
    return dataclasses.field(default=default, metadata=metadata)


def in_range(value: float, within: str) -> bool:
    """Whether a number lies in an interval written as ``(low, high]``; NaN never does.

    Examples
    --------
    >>> in_range(0.0, "(0, 1]"), in_range(1.0, "(0, 1]"), in_range(float("nan"), "")
    (False, True, False)
    """
    if not within:
        return value == value
    low, high = (float(end) for end in within[1:-1].split(","))
    above = value >= low if within[0] == "[" else value > low
    return above and (value <= high if within[-1] == "]" else value < high)


def _lambda(default: float | None, source: str, *, unweighted: float = 0.0) -> Any:
    meaning = "scale of the merged update"
    if default is None:
        meaning += f"; unset: {unweighted} when no weight is given, 1 when weights are"
    return option(default, meaning, source)


def _density(default: float, source: str) -> Any:
    return option(default, "fraction of each task vector that is kept", source, "(0, 1]")


def _election() -> Any:
    meaning = "whether weights vote on the sign: plain = no, weighted = yes"
    return option("plain", meaning, "arXiv 2306.01708, step 2")


def _normalize(default: bool, source: str) -> Any:
    return option(default, "divide by the sum of the weights that took part", source)


def _rescale(default: bool, source: str) -> Any:
    meaning = "make up for dropped entries: by 1/p if dropped at random, else to the old L1 norm"
    return option(default, meaning, source)


@dataclass(frozen=True)
class Linear:
    """sum_i w_i x_i [/ sum_i w_i]; equal weights are the uniform soup."""

    normalize: bool = _normalize(True, "arXiv 2203.05482, uniform soup = mean")


@dataclass(frozen=True)
class TaskArithmetic:
    """b + lambda sum_i w_i d_i."""

    lambda_: float | None = _lambda(None, "arXiv 2212.04089, 0.4", unweighted=0.4)
    normalize: bool = _normalize(False, "arXiv 2212.04089, a sum")


@dataclass(frozen=True)
class Ties:
    """Trim each d_i to its largest entries, elect a sign per entry, average those that agree."""

    density: float | tuple[float, ...] = _density(0.2, "arXiv 2306.01708, top-k 20 %")
    lambda_: float | None = _lambda(1.0, "arXiv 2306.01708, 1 without validation data")
    trim_scope: Literal["global", "tensor"] = option(
        "global",
        "where the largest entries are sought: the whole model or each tensor",
        "reference code prateeky2806/ties-merging: all parameters flattened together",
    )
    election: Literal["plain", "weighted"] = _election()
    zero_sum: Literal["majority", "positive"] = option(
        "majority",
        "sign of an entry whose sum is exactly 0: the majority over the trim scope, or +",
        "reference code prateeky2806/ties-merging",
    )
    normalize: bool = _normalize(True, "arXiv 2306.01708, step 3 (disjoint mean)")
    rescale: bool = _rescale(False, "arXiv 2306.01708, none")


@dataclass(frozen=True)
class DareLinear:
    """Drop entries of d_i at random, divide the rest by density, then task arithmetic."""

    density: float | tuple[float, ...] = _density(
        0.5, "arXiv 2311.03099, middle of the searched .1 to .9"
    )
    lambda_: float | None = _lambda(None, "arXiv 2212.04089, 0.4", unweighted=0.4)
    normalize: bool = _normalize(False, "arXiv 2212.04089, a sum")
    rescale: bool = _rescale(True, "arXiv 2311.03099, 1/(1 - drop rate)")


@dataclass(frozen=True)
class DareTies:
    """DARE in the place of the trim of TIES."""

    density: float | tuple[float, ...] = _density(
        0.5, "arXiv 2311.03099, middle of the searched .1 to .9"
    )
    lambda_: float | None = _lambda(1.0, "arXiv 2306.01708, 1 without validation data")
    election: Literal["plain", "weighted"] = _election()
    normalize: bool = _normalize(True, "arXiv 2306.01708, step 3 (disjoint mean)")
    rescale: bool = _rescale(True, "arXiv 2311.03099, 1/(1 - drop rate)")


def _epsilon() -> Any:
    meaning = "width of the window of keep probabilities around density (mergekit: half the width)"
    return option(0.14, meaning, "declare-lab/della README, --window_size 0.14", "[0, 1)")


@dataclass(frozen=True)
class DellaLinear:
    """Drop entries of d_i at random, the small ones of a row more often; then task arithmetic."""

    density: float | tuple[float, ...] = _density(0.7, "declare-lab/della README, --drop_rate 0.3")
    epsilon: float | tuple[float, ...] = _epsilon()
    lambda_: float | None = _lambda(None, "arXiv 2212.04089, 0.4", unweighted=0.4)
    normalize: bool = _normalize(False, "arXiv 2212.04089, a sum")
    rescale: bool = _rescale(True, "arXiv 2406.11617, 1/(1 - p_i)")


@dataclass(frozen=True)
class Della:
    """Drop entries of d_i at random, the small ones more often; elect signs; average."""

    density: float | tuple[float, ...] = _density(0.7, "declare-lab/della README, --drop_rate 0.3")
    epsilon: float | tuple[float, ...] = _epsilon()
    lambda_: float | None = _lambda(1.1, "declare-lab/della README, --lambda_factor 1.1")
    election: Literal["plain", "weighted"] = _election()
    normalize: bool = _normalize(True, "arXiv 2406.11617, step 3 (mean)")
    rescale: bool = _rescale(True, "arXiv 2406.11617, 1/(1 - p_i)")


_CRUMBS = "rezazzr/breadcrumbs find_best_hyperparam.py, first point of middle_keep"


def _gamma() -> Any:
    meaning = "fraction of the largest entries that is dropped as outliers"
    return option(0.006, meaning, _CRUMBS, "[0, 1)")


@dataclass(frozen=True)
class Breadcrumbs:
    """Drop the largest gamma and the smallest entries of d_i, then task arithmetic.

    Entries are ranked over the whole tensor, as in mergekit; the authors' code ranks within rows.
    """

    density: float | tuple[float, ...] = _density(0.15, _CRUMBS)
    gamma: float | tuple[float, ...] = _gamma()
    lambda_: float | None = _lambda(None, _CRUMBS, unweighted=0.2)
    normalize: bool = _normalize(False, "arXiv 2312.06795, a sum")
    rescale: bool = _rescale(False, "arXiv 2312.06795, none")


@dataclass(frozen=True)
class BreadcrumbsTies:
    """Drop the largest gamma and the smallest entries of d_i; elect signs; average."""

    density: float | tuple[float, ...] = _density(0.15, _CRUMBS)
    gamma: float | tuple[float, ...] = _gamma()
    lambda_: float | None = _lambda(1.0, "arXiv 2306.01708, 1 without validation data")
    election: Literal["plain", "weighted"] = _election()
    normalize: bool = _normalize(True, "arXiv 2306.01708, step 3 (disjoint mean)")
    rescale: bool = _rescale(False, "arXiv 2312.06795, none")


@dataclass(frozen=True)
class Sce:
    """Select entries that vary across experts, weigh experts by energy, erase minority signs.

    What is not selected is not merged, as in mergekit; the code released with FuseChat uses the
    selection only to weigh the experts.
    """

    select_topk: float = option(
        0.1,
        "fraction of the entries, by variance across experts, that is merged",
        "FuseAI FuseChat/mergekit/fusechat_configs/fusechat-sce.yml",
        "(0, 1]",
    )


@dataclass(frozen=True)
class Consensus:
    """Keep of the summed task vectors the entries that at least k experts find useful.

    A TALL mask claims an entry at exactly its limit; in the authors' code it does not.
    """

    k: int = option(2, "TALL masks that must agree", "arXiv 2405.07813, prun_thre_k 2", "[0, inf)")
    tall_lambda: float = option(
        0.4,
        "strictness of a TALL mask: |d_i| >= tall_lambda |sum d - d_i|",
        "arXiv 2405.07813, the middle of the published grid .2 to .6",
        "[0, inf)",
    )
    lambda_: float | None = _lambda(
        None, "arXiv 2405.07813 tunes .1 to 1; as task arithmetic", unweighted=0.4
    )


@dataclass(frozen=True)
class ModelStock:
    """b + t (mean x - b), t = n c / (1 + (n - 1) c), c the mean pairwise cosine of the d_i."""

    filter_wise: bool = option(
        False, "one ratio per row instead of per tensor", "arXiv 2403.19522, layer-wise"
    )


@dataclass(frozen=True)
class Slerp:
    """Along the great circle from the base (or the first model) to the other."""

    t: float = option(0.5, "position between the two, 0 = the first", "half way; no published one")


@dataclass(frozen=True)
class Nuslerp:
    """Slerp of two models (or of their task vectors) at w_2 / (w_1 + w_2)."""

    nuslerp_flatten: bool = option(True, "a tensor is one vector", "mergekit 0.1.5")
    nuslerp_row_wise: bool = option(
        False, "without flatten: vectors run along the first dimension, not the last", "mergekit"
    )


@dataclass(frozen=True)
class Multislerp:
    """Direction of the weighted mean of unit vectors, length the weighted mean of the lengths."""

    normalize_weights: bool = option(True, "make the weights sum to 1", "mergekit 0.1.5")
    eps: float = option(
        1e-8, "added to lengths before dividing by them", "mergekit 0.1.5", "[0, 1)"
    )


@dataclass(frozen=True)
class Karcher:
    """Mean on the sphere of directions (equal weights), times the mean length."""

    max_iter: int = option(10, "most steps", "mergekit 0.1.5", "[1, inf)")
    tol: float = option(1e-5, "stop when a step is shorter", "mergekit 0.1.5", "[0, 1)")


@dataclass(frozen=True)
class Nearswap:
    """b + clamp(t / |x - b|, 0, 1) (x - b): near entries are taken over, far ones pulled by t."""

    t: float = option(1e-4, "distance below which an entry is taken over", NEARSWAP, "[0, inf)")


@dataclass(frozen=True)
class Passthrough:
    """One model as it is; stacking layer ranges of several makes a frankenmerge."""

    scale: float | tuple[float, ...] = option(1.0, "factor on every weight", "mergekit 0.1.5")


@dataclass(frozen=True)
class Lines:
    """One expert as it is, meant with the depth scaling of LiNeS as post-step."""

    lambda_: float | None = _lambda(1.0, "arXiv 2410.17146, single-task editing")
