"""Linear probes, many at once: logistic regression per cell of a map of layers and tokens.

The probe of Orgad, Toker, Gekhman, Reichart, Szpektor, Kotek, Belinkov: "LLMs know more than they
show", arXiv 2410.02707, is scikit-learn's logistic regression,

    minimise  sum_i c_i log(1 + exp(-t_i f_i)) + |w|^2 / 2,    f_i = w x_i + b,   t_i = +-1

with c_i = C (times the weight of its class); b is free. There are hundreds of features for a few
hundred rows, so the problem is solved among the rows: w = sum_i a_i x_i, and with K = X X^T

    f = K a + b,     at the minimum  a_i = c_i (y_i - sigmoid(f_i))  and  sum_i a_i = 0.

A Newton step solves (I + W K) a' = W f + g - W b' with W = c p (1 - p) and g = c (y - p), through
the Cholesky factor of I + W^1/2 K W^1/2 (Rasmussen and Williams, "Gaussian processes for machine
learning", algorithm 3.1), for all cells in one batch. With W held at its bound c / 4 (Boehning and
Lindsay, 1988) the same step needs one inverse for any number of labellings, which is what a
permutation test asks for.

n rows   d features   c cells   m labellings
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeitgeist.errors import ExtraMissing, InputInvalid

__all__ = ["PUBLISHED", "ProbeOptions", "Probes", "fit_probes"]

_PAPER = "arXiv 2410.02707"
_TINY = 1e-12


def _told(meaning: str, source: str = "ours") -> dict[str, str]:
    return {"meaning": meaning, "source": source}


@dataclass(frozen=True)
class ProbeOptions:
    """How a probe is fitted and asked; `PUBLISHED` is the paper's, which suits 10,000 rows.

    Parameters
    ----------
    C
        Inverse strength of the penalty, as in scikit-learn.
    standardise
        Bring every feature to mean 0 and deviation 1 over the training rows. Residual streams have
        coordinates a hundred times the rest, which would otherwise be all that is penalised little.
    class_weight
        ``"balanced"``: both classes count alike.
    folds, inner_folds
        Of cross-validation; the inner ones choose the cell inside the training rows.
    min_class
        Rows that each class must have.
    max_iterations, tolerance
        Newton steps, and the largest error of the optimality condition in units of C.
    """

    C: float = field(default=0.01, metadata=_told("inverse strength of the penalty"))
    standardise: bool = field(default=True, metadata=_told("features to mean 0, deviation 1"))
    class_weight: Literal["none", "balanced"] = field(
        default="none", metadata=_told("whether both classes count alike", _PAPER)
    )
    folds: int = field(default=5, metadata=_told("folds of cross-validation"))
    inner_folds: int = field(default=4, metadata=_told("folds that choose the cell"))
    min_class: int = field(default=15, metadata=_told("rows that each class must have"))
    max_iterations: int = field(default=100, metadata=_told("Newton steps", _PAPER))
    tolerance: float = field(default=1e-8, metadata=_told("error of the optimality condition"))

    def __post_init__(self) -> None:
        for name in ("C", "tolerance"):
            if not getattr(self, name) > 0:
                raise InputInvalid(f"{name} is {getattr(self, name)}", mend="give more than 0")
        for name in ("folds", "inner_folds", "min_class"):
            if getattr(self, name) < 2:
                raise InputInvalid(f"{name} is {getattr(self, name)}", mend="give at least 2")
        if self.max_iterations < 1:
            raise InputInvalid(f"max_iterations is {self.max_iterations}", mend="give at least 1")
        if self.class_weight not in ("none", "balanced"):
            raise InputInvalid(
                f"class_weight is {self.class_weight!r}", mend="give 'none' or 'balanced'"
            )


PUBLISHED = ProbeOptions(C=1.0, standardise=False)
"""scikit-learn's defaults, as the paper has them."""


@dataclass(frozen=True)
class Probes:
    """One probe per cell: f = weights (x - mean) / scale + intercept."""

    weights: Float[Tensor, "c d"]
    intercept: Float[Tensor, " c"]
    mean: Float[Tensor, "c d"]
    scale: Float[Tensor, "c d"]

    def score(self, x: Float[Tensor, "c n d"]) -> Float[Tensor, "c n"]:
        """Log-odds of the positive class."""
        z = (x.to(self.weights.dtype) - self.mean[:, None]) / self.scale[:, None]
        return (z @ self.weights[..., None])[..., 0] + self.intercept[:, None]


def check_classes(y: Bool[Tensor, " n"], least: int = 15, *, of: str = "") -> None:
    """Refuse rows from which nothing can be learnt.

    Raises
    ------
    InputInvalid
        One of the classes has fewer than ``least`` rows.

    Examples
    --------
    >>> check_classes(torch.tensor([True] * 20 + [False] * 3), of="capitals")
    Traceback (most recent call last):
    zeitgeist.errors.InputInvalid: capitals: 20 answers are right and 3 wrong; a probe needs 15 ...
    """
    ones = int(y.sum())
    if min(ones, len(y) - ones) < least:
        raise InputInvalid(
            f"{ones} answers are right and {len(y) - ones} wrong",
            origin=of,
            mend=f"a probe needs {least} of each: ask more questions, or easier or harder ones",
        )


def moments(
    x: Float[Tensor, "c n d"], present: Bool[Tensor, "c n"] | None = None
) -> tuple[Float[Tensor, "c d"], Float[Tensor, "c d"]]:
    """Mean and deviation of every feature; a feature that never changes has deviation 1."""
    if present is None:
        mean, deviation = x.mean(1), x.std(1, correction=0)
    else:
        counts = present.sum(1)[:, None].clamp_min(1)
        mean = (x * present[..., None]).sum(1) / counts
        apart = (x - mean[:, None]) * present[..., None]
        deviation = (apart.square().sum(1) / counts).sqrt()
    # What rounding leaves of a constant is no deviation.
    constant = deviation <= 1e-6 * mean.abs() + 1e-30
    return mean, torch.where(constant, torch.ones_like(deviation), deviation)


def row_costs(
    y: Bool[Tensor, "*#b n"], options: ProbeOptions, present: Bool[Tensor, "*#b n"] | None = None
) -> Float[Tensor, "*b n"]:
    """c of every row: C, times its class's weight; 0 where the row has no such token."""
    y, here = torch.broadcast_tensors(y, torch.ones_like(y) if present is None else present)
    cost: Tensor = options.C * here.double()
    if options.class_weight == "balanced":
        total = here.sum(-1, keepdim=True)
        ones = (y & here).sum(-1, keepdim=True)
        cost = cost * total / (2 * torch.where(y, ones, total - ones).clamp_min(1))
    return cost


def solve(
    gram: Float[Tensor, "c n n"],
    y: Bool[Tensor, "c n"],
    cost: Float[Tensor, "c n"],
    options: ProbeOptions,
) -> tuple[Float[Tensor, "c n"], Float[Tensor, " c"]]:
    """Newton's method in a batch: a and b with f = K a + b.

    Raises
    ------
    InputInvalid
        ``max_iterations`` do not suffice.
    """
    gram, target = gram.double(), y.double()
    sign = 2 * target - 1
    unit = cost.amax(-1, keepdim=True)
    a, b = torch.zeros_like(target), target.new_zeros(len(target))

    def evaluate(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        inner = (gram @ a[..., None])[..., 0]
        f = inner + b[:, None]
        fit = (cost * torch.nn.functional.softplus(-sign * f)).sum(-1)
        return f, fit + (a * inner).sum(-1) / 2

    f, loss = evaluate(a, b)
    for _ in range(options.max_iterations):
        p = f.sigmoid()
        g = cost * (target - p)
        off = torch.maximum((a - g).abs().amax(-1), g.sum(-1).abs())
        if (off <= options.tolerance * unit[:, 0]).all():
            return a, b
        root = (cost * p * (1 - p)).clamp_min(_TINY * unit).sqrt()
        inner = root[..., :, None] * gram * root[..., None, :]
        inner.diagonal(dim1=-2, dim2=-1).add_(1.0)
        factor = torch.linalg.cholesky(inner)
        # (I + W K)^-1 v = v - W^1/2 B^-1 W^1/2 K v; the right sides are W f + g and W 1.
        r = root.square() * f + g
        right = torch.stack([root * (gram @ r[..., None])[..., 0], root], -1)
        solved = torch.cholesky_solve(right, factor) * root[..., None]
        h, u = r - solved[..., 0], solved[..., 1]
        to_b = h.sum(-1) / u.sum(-1)
        to_a = h - to_b[:, None] * u
        a, b, f, loss = _descend(evaluate, (a, b), (to_a, to_b), loss)
    p = f.sigmoid()
    off = ((a - cost * (target - p)).abs() / unit).max()
    if off > 1e-4:
        raise InputInvalid(
            f"after {options.max_iterations} Newton steps a probe is {float(off):.1e} of C from "
            "its optimum",
            mend="raise max_iterations or lower C",
        )
    return a, b


def _descend(
    evaluate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    here: tuple[Tensor, Tensor],
    there: tuple[Tensor, Tensor],
    loss: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Go all the way, or half, or a quarter, as each cell's loss allows."""
    step = torch.ones_like(loss)
    for _ in range(30):
        a = here[0] + step[:, None] * (there[0] - here[0])
        b = here[1] + step * (there[1] - here[1])
        f, new = evaluate(a, b)
        # The last steps change the loss by less than it is rounded.
        worse = ~(new <= loss + 1e-12 * loss.abs())
        if not worse.any():
            break
        step = torch.where(worse, step / 2, step)
    return a, b, f, new


def solve_many(
    gram: Float[Tensor, "c n n"],
    labels: Bool[Tensor, "m n"],
    cost: Float[Tensor, "c #m n"],
    *,
    options: ProbeOptions,
    tolerance: float = 1e-3,
    max_iterations: int = 60,
) -> tuple[Float[Tensor, "c n m"], Float[Tensor, "c m"]]:
    """Every cell under every labelling, with W at its bound: one inverse a cell, then products.

    Good to ``tolerance`` of C, which leaves ranks, and so the area under the curve, as they are to
    the third digit; `solve` is the exact twin, and takes over where these steps do not get there.
    """
    target = labels.T.to(gram.dtype)
    cost = cost.to(gram.dtype).mT
    bound = cost.amax(-1) / 4
    root = bound.sqrt()
    inner = root[..., :, None] * gram * root[..., None, :]
    inner.diagonal(dim1=-2, dim2=-1).add_(1.0)
    # With S = W^1/2 B^-1 W^1/2 it is (I + W K)^-1 = I - S K, and S 1 is what b takes away.
    spread = torch.cholesky_inverse(torch.linalg.cholesky(inner))
    spread = root[..., :, None] * spread * root[..., None, :]
    u = spread.sum(-1, keepdim=True)
    whole = u.sum(-2)
    back = -(spread @ gram)
    back.diagonal(dim1=-2, dim2=-1).add_(1.0)
    a = gram.new_zeros(len(gram), *target.shape)
    b = gram.new_zeros(len(gram), target.shape[1])
    f = torch.zeros_like(a)
    unit = cost.amax((-2, -1), keepdim=True)
    for _ in range(max_iterations):
        g = cost * (target - f.sigmoid())
        if ((a - g).abs() <= tolerance * unit).all():
            break
        h = back @ (bound[..., None] * f + g)
        b = h.sum(-2) / whole
        a = h - u * b[:, None]
        f = gram @ a + b[:, None]
    else:
        wide = cost.expand(-1, -1, len(labels))
        each = [
            solve(gram, labels[m].expand(len(gram), -1), wide[..., m].double(), options)
            for m in range(len(labels))
        ]
        a = torch.stack([one for one, _ in each], -1).to(gram.dtype)
        b = torch.stack([one for _, one in each], -1).to(gram.dtype)
    return a, b


def fit_probes(
    x: Float[Tensor, "c n d"],
    y: Bool[Tensor, " n"],
    options: ProbeOptions | None = None,
    *,
    present: Bool[Tensor, "c n"] | None = None,
) -> Probes:
    """Fit the probe of every cell, all in one batch.

    Parameters
    ----------
    x
        Features of every cell and row.
    y
        Labels; True: the answer is right.
    options
        None: the defaults of `ProbeOptions`.
    present
        Rows that have the cell's token; others are left out of its fit.

    Returns
    -------
    Probes
        Weights for features as they are standardised, in float64.

    Raises
    ------
    InputInvalid
        A class has too few rows, or features are not finite.

    Examples
    --------
    >>> y = torch.arange(40) % 2 == 0
    >>> x = torch.stack([y.float(), 1 - y.float()])[..., None]
    >>> fit_probes(x, y).weights.sign().flatten()
    tensor([ 1., -1.], dtype=torch.float64)
    """
    chosen = options or ProbeOptions()
    check_classes(y, chosen.min_class)
    check_finite(x)
    x = x.double()
    mean, scale = moments(x, present)
    if not chosen.standardise:
        scale = torch.ones_like(scale)
    z = (x - mean[:, None]) / scale[:, None]
    if present is not None:
        z = z * present[..., None]
    labels = y.expand(len(x), -1)
    a, b = solve(z @ z.mT, labels, row_costs(labels, chosen, present), chosen)
    return Probes((a[:, None] @ z)[:, 0], b, mean, scale)


def check_finite(x: Float[Tensor, "*b"]) -> None:
    """Refuse features that overflowed where they were stored."""
    if not bool(torch.isfinite(x).all()):
        raise InputInvalid(
            "some features are not finite",
            mend="store them as float32 or bfloat16: residual streams overflow float16",
        )


def fit_plainly(
    x: Float[Tensor, "n d"], y: Bool[Tensor, " n"], options: ProbeOptions | None = None
) -> Probes:
    """One cell by scikit-learn: the specification of `fit_probes`.

    Raises
    ------
    ExtraMissing
        scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise ExtraMissing.named("studies", "the reference probe") from None
    chosen = options or ProbeOptions()
    x = x.double()
    mean = x.mean(0)
    scale = moments(x[None])[1][0] if chosen.standardise else torch.ones_like(mean)
    weight = None if chosen.class_weight == "none" else "balanced"
    model = LogisticRegression(C=chosen.C, tol=1e-10, max_iter=100_000, class_weight=weight)
    model.fit(((x - mean) / scale).numpy(), y.numpy())
    return Probes(
        torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_), mean[None], scale[None]
    )
