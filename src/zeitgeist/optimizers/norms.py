"""Steepest descent under a norm: the norm, its dual, and the direction, for every role of a layer.

Bernstein, Newhouse: "Old Optimizer, New Norm: An Anthology", arXiv 2409.20325. For a gradient G

    argmin_D <G, D> + lam/2 |D|^2  =  -(|G|* / lam) T(G)
    |G|* = max over |T| = 1 of <G, T>          T(G): where that is reached
    value there: -|G|*^2 / (2 lam)

Adam, Shampoo and Prodigy without their averages are this rule under different norms:

    name           norm of D                      dual norm of G              T(G)
    frobenius      |D|_F                          |G|_F                       G / |G|_F
    max_entry      largest |entry|  (Adam)        sum of |entries|            sign(G)
    spectral       largest singular value         sum of singular values      U V'
    rms_spectral   sqrt(n/m) spectral             sqrt(m/n) nuclear           sqrt(m/n) U V'
    column_rms     max RMS of a column            sqrt(m) sum |column|_2      column / RMS
    row_rms        max RMS of a row               sqrt(n) sum |row|_2         row / RMS
    row_l2         max |row|_2                    sum |row|_2                 row / |row|_2
    rms_inf        sqrt(n) max |row|_2            sum |row|_2 / sqrt(n)       row / (|row|_2 sqrt n)
    rms            |d|_2 / sqrt(size)             sqrt(size) |g|_2            g / RMS(g)

*rms_spectral* is the operator norm from RMS to RMS (a linear layer), *column_rms* that from l1 to
RMS (an embedding with one token per column; torch's has one per row: *row_rms*), *row_l2* that from
l2 to the largest entry, *rms_inf* that from RMS to the largest entry (an output head).

m, n rows (outputs) and columns (inputs); further dimensions in front are a batch
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from zeitgeist.errors import InputInvalid, did_you_mean
from zeitgeist.optimizers.orthogonalise import orthogonalise, wide

NORMS = (
    "frobenius",
    "max_entry",
    "spectral",
    "rms_spectral",
    "column_rms",
    "row_rms",
    "row_l2",
    "rms_inf",
    "rms",
)
OF_VECTORS = ("frobenius", "max_entry", "rms")
"""Those that ask nothing of rows and columns."""
SPECTRAL = ("spectral", "rms_spectral")


def norm(d: Float[Tensor, "..."], kind: str) -> Float[Tensor, "..."]:
    """How large an update is.

    Parameters
    ----------
    d
        A vector, a matrix, or a batch of matrices.
    kind
        One of `NORMS`; vectors have those of `OF_VECTORS`.

    Returns
    -------
    Tensor
        One number per matrix, in float32 or wider.

    Raises
    ------
    InputInvalid
        No such norm, a norm of matrices of a vector, or a value that is not finite.

    Examples
    --------
    >>> norm(torch.diag(torch.tensor([3.0, 4.0])), "spectral")
    tensor(4.)
    """
    x = _checked(d, kind)
    m, n = x.shape[-2:]
    found: Tensor
    if kind in SPECTRAL:
        found = torch.linalg.matrix_norm(x, 2) * _fan(kind, n, m)
    elif kind == "max_entry":
        found = x.abs().amax((-2, -1))
    elif kind in ("frobenius", "rms"):
        found = torch.linalg.matrix_norm(x) / _fan(kind, m * n, 1)
    else:
        found = _lengths(x, kind).amax((-2, -1)) / _row_length(kind, m, n)
    return found


def dual_norm(g: Float[Tensor, "..."], kind: str) -> Float[Tensor, "..."]:
    """How much a gradient promises per unit of an update: |G|* = max of <G, T> over |T| = 1.

    Parameters
    ----------
    g
        A vector, a matrix, or a batch of matrices.
    kind
        The norm (not the dual's name): one of `NORMS`.

    Returns
    -------
    Tensor
        One number per matrix, in float32 or wider.

    Raises
    ------
    InputInvalid
        As `norm`.

    Examples
    --------
    >>> dual_norm(torch.diag(torch.tensor([3.0, 4.0])), "spectral")
    tensor(7.)
    """
    x = _checked(g, kind)
    m, n = x.shape[-2:]
    found: Tensor
    if kind in SPECTRAL:
        found = torch.linalg.svdvals(x).sum(-1) * _fan(kind, m, n)
    elif kind == "max_entry":
        found = x.abs().sum((-2, -1))
    elif kind in ("frobenius", "rms"):
        found = torch.linalg.matrix_norm(x) * _fan(kind, m * n, 1)
    else:
        found = _lengths(x, kind).sum((-2, -1)) * _row_length(kind, m, n)
    return found


def duality_map(
    g: Float[Tensor, "..."], kind: str, *, method: str = "exact"
) -> Float[Tensor, "..."]:
    """The update of norm 1 that descends most steeply (times -1): T(G).

    Parameters
    ----------
    g
        A vector, a matrix, or a batch of matrices.
    kind
        One of `NORMS`.
    method
        How U V' is found, for the spectral norms.

    Returns
    -------
    Tensor
        Like ``g``. Zeros (and zero rows or columns, singular values of 0) stay zero.

    Raises
    ------
    InputInvalid
        As `norm`.

    Examples
    --------
    >>> duality_map(torch.tensor([[0.5, -2.0], [0.0, 1.0]]), "max_entry")
    tensor([[ 1., -1.],
            [ 0.,  1.]])
    """
    return direction(_checked(g, kind), kind, method=method).view(g.shape).to(g.dtype)


def direction(
    x: Float[Tensor, "... m n"],
    kind: str,
    *,
    method: str = "exact",
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "... m n"]:
    """T of matrices that are known to be finite; reads no value back, so that it compiles.

    Parameters
    ----------
    x
        Matrices.
    kind
        One of `NORMS`.
    method, dtype
        As for `orthogonalise`.
    """
    m, n = x.shape[-2:]
    if kind in SPECTRAL:
        return orthogonalise(x, method, dtype=dtype) * _fan(kind, m, n)
    if kind == "max_entry":
        return x.sign()
    if kind in ("frobenius", "rms"):
        size = torch.linalg.matrix_norm(x, keepdim=True)
        return _divided(x, size) * _fan(kind, m * n, 1)
    return _divided(x, _lengths(x, kind)) * _row_length(kind, m, n)


def _lengths(x: Tensor, kind: str) -> Tensor:
    """The l2 norms of rows, or of columns."""
    found: Tensor = torch.linalg.vector_norm(
        x, dim=-2 if kind == "column_rms" else -1, keepdim=True
    )
    return found


def _divided(x: Tensor, size: Tensor) -> Tensor:
    """Zeros have no direction and stay zero."""
    return x / torch.where(size > 0, size, 1.0)


def _fan(kind: str, above: int, below: int) -> float:
    return math.sqrt(above / below) if kind in ("rms_spectral", "rms") else 1.0


def _row_length(kind: str, m: int, n: int) -> float:
    """The l2 norm that a row (a column) of T has."""
    return {
        "column_rms": math.sqrt(m),
        "row_rms": math.sqrt(n),
        "row_l2": 1.0,
        "rms_inf": 1 / math.sqrt(n),
    }[kind]


def _checked(g: Tensor, kind: str) -> Tensor:
    if kind not in NORMS:
        raise InputInvalid(f"there is no norm {kind!r}", mend=did_you_mean(kind, NORMS))
    if g.ndim < 2 and kind not in OF_VECTORS:
        raise InputInvalid(
            f"the norm {kind!r} is of matrices, and this has shape {tuple(g.shape)}",
            mend=f"give a matrix, or one of {', '.join(OF_VECTORS)}",
        )
    if not g.numel():
        raise InputInvalid(f"a tensor of shape {tuple(g.shape)} has no values", mend="leave it out")
    if not bool(torch.isfinite(g).all()):
        bad = int((~torch.isfinite(g)).sum())
        raise InputInvalid(
            f"{bad} of {g.numel()} values are NaN or infinite",
            mend="lower the learning rate, or look at what made them",
        )
    x = g.to(wide(g.dtype))
    return x if g.ndim >= 2 else x.reshape(1, -1)
