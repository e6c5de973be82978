"""The basis that the updates of one layer share: KnOTS' rotation, through factors or dense.

Stoica et al., arXiv 2410.19735, section 4. For updates dW_i = B_i A_i (scale alpha/r in B_i):

    [dW_1 ... dW_n] = U S V^T,  V^T = [V_1^T ... V_n^T]      one thin SVD, columns side by side
    P_i = S V_i^T,  dW_i = U P_i

The matrix on the left has O x nI entries and rank R = sum r_i, so it is never formed:

    [B_1 ... B_n] = Q_b R_b,  A_i^T = Q_i R_i                thin QR
    R_b blockdiag(R_1^T ... R_n^T) = U_c S V_c^T             the core, R x R
    U = Q_b U_c,  P_i = (S V_c^T)[:, block i] Q_i^T

which is exact and costs O(O R^2 + n I r^2 + R^3) time and O((O + n I) R) memory, in float64.

U, S, V are unique up to signs, which no merge can see, and up to rotations inside equal singular
values, which TIES can see: adapters with equal singular values have no unique KnOTS-TIES merge.

n experts, O outputs, I inputs, r rank of one adapter, R = sum of r, k rank kept
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from zeitgeist.merging.low_rank import Update, check_updates, dense_update


@dataclass(frozen=True)
class SharedBasis:
    """The updates of one layer in one basis: dW_i = u p_i.

    Parameters
    ----------
    u
        Orthonormal columns.
    s
        Singular values of the updates side by side, descending.
    p
        P_i = S V_i^T per expert.
    """

    u: Float[Tensor, "O k"]
    s: Float[Tensor, " k"]
    p: Float[Tensor, "n k I"]


def align(updates: Sequence[Update], *, tolerance: float = 1e-7, floor: float = 0.0) -> SharedBasis:
    """Rotate the updates of a layer into their shared basis, through factors where that is cheaper.

    Parameters
    ----------
    updates
        One per expert: (A, B), a matrix, or ``None``. Ranks may differ.
    tolerance, floor
        Singular values up to ``max(floor, tolerance * largest)`` are dropped.

    Returns
    -------
    SharedBasis
        Of rank 0 when every update is zero. The factored form is used when all updates are
        factors and their ranks add up to at most half of n I; beyond that, and for full updates,
        the SVD of the dense matrix is the cheaper of the two.

    Examples
    --------
    >>> import torch
    >>> one, nothing = (torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [0.0]])), None
    >>> basis = align([one, nothing])
    >>> [round(s, 6) for s in basis.s.tolist()], basis.p.shape
    ([5.0], torch.Size([2, 1, 2]))
    """
    _, inputs = check_updates(updates)
    given = [update for update in updates if isinstance(update, tuple)]
    full = any(isinstance(update, Tensor) for update in updates)
    if full or 2 * sum(a.shape[0] for a, _ in given) > len(updates) * inputs:
        return align_dense(updates, tolerance=tolerance, floor=floor)
    q_b, r_b = torch.linalg.qr(torch.cat([b.double() for _, b in given], dim=1))
    halves = [torch.linalg.qr(a.double().T) for a, _ in given]
    core = r_b @ torch.block_diag(*[half.R.T for half in halves])
    u_c, s, vt = _thin_svd(core, tolerance, floor)
    p = s.new_zeros(len(updates), len(s), inputs)
    present = [i for i, update in enumerate(updates) if update is not None]
    blocks = (s[:, None] * vt).split([half.R.shape[0] for half in halves], dim=1)
    for i, block, half in zip(present, blocks, halves, strict=True):
        p[i] = block @ half.Q.T
    return SharedBasis(q_b @ u_c, s, p)


def align_dense(
    updates: Sequence[Update], *, tolerance: float = 1e-7, floor: float = 0.0
) -> SharedBasis:
    """What :func:`align` computes, by the SVD of the whole O x nI matrix: the definition."""
    shape = check_updates(updates)
    parts = [dense_update(update, shape) for update in updates]
    device = next(part.device for part, u in zip(parts, updates, strict=True) if u is not None)
    side_by_side = torch.cat([part.to(device) for part in parts], dim=1)
    u, s, vt = _thin_svd(side_by_side, tolerance, floor)
    p = (s[:, None] * vt).reshape(len(s), len(updates), shape[1])
    return SharedBasis(u, s, p.permute(1, 0, 2).contiguous())


def _thin_svd(matrix: Tensor, tolerance: float, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    k = int((s > max(floor, tolerance * float(s[0]))).sum())
    return u[:, :k], s[:k], vt[:k]
