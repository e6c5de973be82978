"""Updates as products of two factors: sums, truncation and geometry without the dense matrix.

A LoRA expert changes a layer by dW_i = B_i A_i (scale included). Everything a merge needs to know
about such updates follows from the factors:

    sum_i c_i B_i A_i = [c_1 B_1 ... c_n B_n] [A_1; ...; A_n]        exact, ranks add up
    <dW_i, dW_j>      = sum((B_i^T B_j) * (A_i A_j^T))               O((O + I) r^2)
    B A               = Q_b (R_b R_a^T) Q_a^T                        thin QR of B and of A^T; the
                                                                     SVD of the small core truncates

PEFT's ``add_weighted_adapter`` with ``linear`` adds A's and B's separately, which brings in cross
terms B_i A_j; the sum here has none.

n experts, O outputs, I inputs, r rank of one expert
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from zeitgeist.errors import InputInvalid

# What one expert does to one layer: factors (A, B), a full update, or nothing.
Update = tuple[Tensor, Tensor] | Tensor | None
SAMPLED_ROWS = 256
_ENTRIES = 1 << 22  # of a dense product that exist at once


@dataclass(frozen=True)
class Alignment:
    """How the updates of n experts lie to each other; alignments of layers add up.

    Parameters
    ----------
    dots
        Inner products.
    opposed, shared
        Numbers of entries that are nonzero in both experts: those whose signs differ, and all.
    """

    dots: Float[Tensor, "n n"]
    opposed: Float[Tensor, "n n"]
    shared: Float[Tensor, "n n"]

    @property
    def cosine(self) -> Float[Tensor, "n n"]:
        """Pairwise cosine; 0 with an expert that does nothing."""
        norms = self.dots.diagonal().clamp(min=0).sqrt()
        return self.dots / (norms[:, None] * norms).clamp(min=torch.finfo(torch.float64).tiny)

    @property
    def conflict(self) -> Float[Tensor, "n n"]:
        """Pairwise share of the common entries whose signs differ; 0 without common entries."""
        return self.opposed / self.shared.clamp(min=1)

    def __add__(self, other: "Alignment") -> "Alignment":
        return Alignment(
            self.dots + other.dots, self.opposed + other.opposed, self.shared + other.shared
        )


def check_updates(updates: Sequence[Update]) -> tuple[int, int]:
    """(O, I) of the updates of one layer, which must be matrices of one shape and finite."""
    shapes: dict[int, tuple[int, int]] = {}
    for i, update in enumerate(updates):
        if update is None:
            continue
        tensors = (update,) if isinstance(update, Tensor) else update
        if any(tensor.ndim != 2 for tensor in tensors):
            raise InputInvalid(
                f"expert {i} has shapes {[list(tensor.shape) for tensor in tensors]}",
                mend="give matrices; flatten a convolution from its second dimension on",
            )
        if any(not bool(torch.isfinite(tensor).all()) for tensor in tensors):
            raise InputInvalid(f"expert {i} holds NaN or infinity")
        if len(tensors) == 2 and tensors[0].shape[0] != tensors[1].shape[1]:
            raise InputInvalid(
                f"the factors of expert {i} have ranks {tensors[0].shape[0]} and "
                f"{tensors[1].shape[1]}",
                mend="give (A, B) with A of r x I and B of O x r",
            )
        shapes[i] = (tensors[-1].shape[0], tensors[0].shape[1])
    if not shapes:
        raise InputInvalid("no expert changes this layer", mend="leave the layer out")
    if len(set(shapes.values())) > 1:
        raise InputInvalid(f"the experts change matrices of different shapes: {shapes}")
    return next(iter(shapes.values()))


def dense_update(update: Update, shape: tuple[int, int]) -> Float[Tensor, "O I"]:
    """One update as a float64 matrix; zeros for an expert that leaves the layer alone."""
    if update is None:
        return torch.zeros(shape, dtype=torch.float64)
    if isinstance(update, Tensor):
        return update.double()
    a, b = update
    return b.double() @ a.double()


def concatenate(
    updates: Sequence[tuple[Tensor, Tensor] | None], coefficients: Sequence[float]
) -> tuple[Float[Tensor, "R I"], Float[Tensor, "O R"]]:
    """sum_i c_i B_i A_i as one pair of factors, exact, in float64.

    Examples
    --------
    >>> import torch
    >>> one, two = (torch.ones(1, 2), torch.ones(3, 1)), (torch.eye(2), torch.ones(3, 2))
    >>> a, b = concatenate([one, None, two], [1.0, 5.0, -0.5])
    >>> a.shape, (b @ a)[0].tolist()
    (torch.Size([3, 2]), [0.5, 0.5])
    """
    given = [(*u, c) for u, c in zip(updates, coefficients, strict=True) if u is not None]
    return (
        torch.cat([a.double() for a, _, _ in given]),
        torch.cat([c * b.double() for _, b, c in given], dim=1),
    )


def truncate(
    a: Float[Tensor, "r I"], b: Float[Tensor, "O r"], rank: int
) -> tuple[Float[Tensor, "k I"], Float[Tensor, "O k"], float]:
    """The best approximation of ``b @ a`` of at most this rank, and the energy it loses.

    Parameters
    ----------
    a, b
        Factors. Returned as they are (in float64) when their rank is not above ``rank``.
    rank
        Of the result.

    Returns
    -------
    a, b
        Factors with equal norms: A = sqrt(S) V^T, B = U sqrt(S).
    float
        Share of the squared Frobenius norm that is lost.

    Examples
    --------
    >>> import torch
    >>> _, _, lost = truncate(torch.diag(torch.tensor([2.0, 1.0])), torch.eye(2), 1)
    >>> round(lost, 3)
    0.2
    """
    a, b = a.double(), b.double()
    if a.shape[0] <= rank:
        return a, b, 0.0
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    u, s, vt = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    energy = s.square()
    total = float(energy.sum())
    root = s[:rank].sqrt()
    lost = float(energy[rank:].sum()) / total if total > 0 else 0.0
    return root[:, None] * (vt[:rank] @ q_a.T), (q_b @ u[:, :rank]) * root, lost


def row_chunks(
    a: Float[Tensor, "r I"], b: Float[Tensor, "O r"]
) -> Iterator[Float[Tensor, "rows I"]]:
    """The dense product some rows at a time, in float64."""
    a, b = a.double(), b.double()
    for rows in b.split(max(1, _ENTRIES // max(1, a.shape[1]))):
        yield rows @ a


def alignment(updates: Sequence[Update]) -> Alignment:
    """Cosines of updates from their factors, and sign conflicts.

    Signs are counted on at most 256 evenly spaced rows, which is every row of a small matrix.
    """
    shape = check_updates(updates)
    n = len(updates)
    dots = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(i + 1):
            dots[i, j] = dots[j, i] = _dot(updates[i], updates[j], shape)
    step = -(-shape[0] // SAMPLED_ROWS)
    sampled = [_rows(update, step) for update in updates]
    rows = len(range(0, shape[0], step))
    return _counted(
        torch.stack([dense_update(update, (rows, shape[1])).cpu() for update in sampled]), dots
    )


def alignment_of_entries(stack: Float[Tensor, "n *shape"]) -> Alignment:
    """Cosines and sign conflicts of experts given entry by entry."""
    flat = stack.flatten(1)
    return _counted(flat, (flat @ flat.T).cpu())


def _counted(stack: Float[Tensor, "n *shape"], dots: Float[Tensor, "n n"]) -> Alignment:
    sign = stack.flatten(1).sign()
    agreeing, shared = sign @ sign.T, sign.abs() @ sign.abs().T
    return Alignment(dots, ((shared - agreeing) / 2).cpu(), shared.cpu())


def _rows(update: Update, step: int) -> Update:
    if isinstance(update, tuple):
        return update[0], update[1][::step]
    return None if update is None else update[::step]


def _dot(one: Update, other: Update, shape: tuple[int, int]) -> float:
    if one is None or other is None:
        return 0.0
    if isinstance(one, tuple) and isinstance(other, tuple):
        (a, b), (c, d) = one, other
        return float(((b.double().T @ d.double()) * (a.double() @ c.double().T)).sum())
    return float((dense_update(one, shape) * dense_update(other, shape)).sum())
