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
SAMPLED_ENTRIES = 1 << 17
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

    Signs are counted on evenly spaced rows with about 131 000 entries: all of a small matrix.
    """
    shape = check_updates(updates)
    step = -(-shape[0] // max(1, SAMPLED_ENTRIES // shape[1]))
    rows = len(range(0, shape[0], step))
    sampled = [dense_update(_rows(update, step), (rows, shape[1])).cpu() for update in updates]
    opposed, shared = _sign_counts(torch.stack(sampled))
    return Alignment(_dots(updates, shape), opposed, shared)


def alignment_of_entries(stack: Float[Tensor, "n *shape"]) -> Alignment:
    """Cosines and sign conflicts of experts given entry by entry."""
    flat = stack.flatten(1)
    return Alignment((flat @ flat.T).cpu(), *_sign_counts(flat))


def _sign_counts(stack: Float[Tensor, "n *shape"]) -> tuple[Tensor, Tensor]:
    n = len(stack)
    agreeing = torch.zeros(n, n, dtype=torch.float64)
    shared = torch.zeros(n, n, dtype=torch.float64)
    for part in stack.flatten(1).split(_ENTRIES, dim=1):
        sign = part.sign().float()  # sums of up to 2^22 ones are exact
        agreeing += (sign @ sign.T).double().cpu()
        sign.abs_()
        shared += (sign @ sign.T).double().cpu()
    return (shared - agreeing) / 2, shared


def _rows(update: Update, step: int) -> Update:
    if isinstance(update, tuple):
        return update[0], update[1][::step]
    return None if update is None else update[::step]


def _dots(updates: Sequence[Update], shape: tuple[int, int]) -> Float[Tensor, "n n"]:
    """Inner products: from the Gram matrices of the factors, or entry by entry of full updates."""
    n = len(updates)
    dots = torch.zeros(n, n, dtype=torch.float64)
    present = [i for i, update in enumerate(updates) if update is not None]
    pairs = [update for update in updates if isinstance(update, tuple)]
    if len(pairs) < len(present):
        flat = torch.stack([dense_update(updates[i], shape).flatten() for i in present])
        between = flat @ flat.T
    else:
        a = torch.cat([pair[0].double() for pair in pairs])
        b = torch.cat([pair[1].double() for pair in pairs], dim=1)
        ranks = [len(pair[0]) for pair in pairs]
        by_expert = torch.block_diag(*[torch.ones(1, r, dtype=torch.float64) for r in ranks])
        by_expert = by_expert.to(a.device)
        between = by_expert @ ((b.T @ b) * (a @ a.T)) @ by_expert.T
    dots[torch.tensor(present)[:, None], torch.tensor(present)] = between.cpu()
    return dots
