"""Which multiples of memory gradients to add so that a step raises no remembered loss.

For a gradient g and memory gradients m_1, ..., m_k (rows of M), GEM's direction is

    z = argmin |z - g|^2 / 2   with  <z, m_s> >= 0 for all s,      z = g + M' v
    v = argmin v' K v / 2 + c' v   over  v >= 0,                   K = M M',  c = M g

so only K (k x k) and c (k) are needed, however many parameters there are. A memory strength gamma
asks for v >= gamma instead; with v = gamma + u that is the same problem with c + gamma K 1 for c:
*memory strength adds gamma times the replayed gradients, then projects.*

Lopez-Paz, Ranzato: "Gradient Episodic Memory for Continual Learning", arXiv 1706.08840; the blocks
are those of Liu, Ye, Stone, Liu, arXiv 2410.00868.

Nothing here has a scale: rows of M are brought to unit length, and no ridge is added to K. (The
ridge of .001 of the published code is larger than K itself where gradients are small, and lets the
constraints be violated.) Gradients of zero and doubled gradients are no special case.

B blocks or any number of leading dimensions, k constraints
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeitgeist.errors import InputInvalid

Solver = Literal["exact", "sweeps"]
TOLERANCE = 1e-11  # of a constraint, where all lengths are 1
SINGULAR = 1e-12  # share of the largest eigenvalue that counts as none
WARM = 3  # sweeps that guess which constraints bind


class Dual(NamedTuple):
    """The multipliers v, and whether the solver stopped because it was done."""

    v: Float[Tensor, "*B k"]
    converged: Bool[Tensor, "*B"]


def solve_dual(
    gram: Float[Tensor, "*B k k"],
    cross: Float[Tensor, "*B k"],
    strength: Float[Tensor, "*B"] | float = 0.0,
    *,
    solver: Solver = "exact",
    sweeps: int = 30,
) -> Dual:
    """The multipliers of every block, all blocks at once.

    Parameters
    ----------
    gram, cross
        K and c of every block.
    strength
        gamma, the least multiplier: one for all, or one per block.
    solver
        ``"exact"``: an active-set method, finite and without a step size; ``"sweeps"``: cyclic
        coordinate descent, which stops after so many sweeps wherever it is.
    sweeps
        See there.

    Returns
    -------
    Dual
        In float64.

    Raises
    ------
    InputInvalid
        A number is not finite, or the strength is negative.

    Examples
    --------
    >>> gram, cross = torch.tensor([[4.0, 0.0], [0.0, 1.0]]), torch.tensor([-2.0, 3.0])
    >>> solve_dual(gram, cross).v.tolist()
    [0.5, 0.0]
    >>> solve_dual(gram, cross, 1.0).v.tolist()
    [1.0, 1.0]
    """
    least = torch.as_tensor(strength, dtype=torch.float64, device=gram.device)
    if not bool(torch.isfinite(least).all()) or bool((least < 0).any()):
        raise InputInvalid(f"the strength is {float(least.min())}", mend="give at least 0")
    if not bool(torch.isfinite(gram).all() & torch.isfinite(cross).all()):
        raise InputInvalid(
            "a gradient holds values that are not numbers",
            mend="leave this step out; lower the learning rate if it happens often",
        )
    k = cross.shape[-1]
    if not k:
        holds = torch.ones(cross.shape[:-1], dtype=torch.bool, device=cross.device)
        return Dual(cross.double(), holds)
    wide, c = gram.double().reshape(-1, k, k), cross.double().reshape(-1, k)
    floor = least.expand(cross.shape[:-1]).reshape(-1, 1)
    c = c + floor * wide.sum(dim=-1)
    length = wide.diagonal(dim1=-2, dim2=-1).clamp(min=0.0).sqrt()
    there = length > 0
    unit = torch.where(there, 1 / length.where(there, torch.ones_like(length)), 0.0)
    # A constraint of length zero always holds: it becomes a row of its own that never binds.
    scaled = wide * unit[:, :, None] * unit[:, None, :]
    scaled.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    towards = c * unit
    size = towards.abs().amax(dim=-1, keepdim=True)
    towards = towards / size.where(size > 0, torch.ones_like(size))
    u = torch.zeros_like(towards)
    done = torch.ones(len(u), dtype=torch.bool, device=u.device)
    todo = (towards < 0).any(dim=-1).nonzero()[:, 0]
    if len(todo):
        some, c_some = scaled[todo], towards[todo]
        if solver == "exact":
            u[todo], done[todo] = _active_set(some, c_some)
        else:
            u[todo] = swept = _sweep(some, c_some, sweeps)
            done[todo] = _settled(some, c_some, swept)
    v = floor + u * size * unit
    return Dual(v.reshape(cross.shape), done.reshape(cross.shape[:-1]))


def _settled(
    gram: Float[Tensor, "B k k"], cross: Float[Tensor, "B k"], u: Float[Tensor, "B k"]
) -> Bool[Tensor, " B"]:
    """Whether the conditions of Karush, Kuhn and Tucker hold."""
    slope = _product(gram, u) + cross
    scale = TOLERANCE * 100
    holds = (slope > -scale).all(dim=-1)
    return holds & ((u * slope).abs() < scale).all(dim=-1)


def _product(gram: Float[Tensor, "B k k"], u: Float[Tensor, "B k"]) -> Float[Tensor, "B k"]:
    product: Tensor = (gram @ u.unsqueeze(-1)).squeeze(-1)
    return product


def _sweep(
    gram: Float[Tensor, "B k k"], cross: Float[Tensor, "B k"], sweeps: int
) -> Float[Tensor, "B k"]:
    """v_s <- max(0, v_s - (K v + c)_s / K_ss), one s after the other; here K_ss = 1."""
    u = torch.zeros_like(cross)
    slope = cross.clone()
    for _ in range(sweeps):
        for s in range(cross.shape[-1]):
            fresh = (u[:, s] - slope[:, s]).clamp(min=0.0)
            slope += gram[:, :, s] * (fresh - u[:, s]).unsqueeze(-1)
            u[:, s] = fresh
    return u


def _active_set(
    gram: Float[Tensor, "B k k"], cross: Float[Tensor, "B k"]
) -> tuple[Float[Tensor, "B k"], Bool[Tensor, " B"]]:
    """Non-negative least squares after Lawson and Hanson, from a guess, all blocks at once.

    Each round minimises over the free entries; where one of them would turn negative the step ends
    there and that entry is fixed at zero, else the entry with the steepest descent is freed.
    """
    blocks, k = cross.shape
    u = _sweep(gram, cross, WARM)
    free = u > 0
    barred = torch.zeros_like(free)
    left = torch.arange(blocks, device=cross.device)
    done = torch.zeros(blocks, dtype=torch.bool, device=cross.device)
    for _ in range(10 * k + 10):
        K, c, now, f, out = gram[left], cross[left], u[left], free[left], barred[left]
        goal = _minimum(K, c, f)
        blocking = f & (goal <= 0)
        ratio = torch.where(blocking, now / (now - goal).clamp(min=1e-300), torch.inf)
        step = ratio.amin(dim=-1, keepdim=True).clamp(max=1.0)
        stuck = blocking.any(dim=-1, keepdim=True) & (step <= 0)
        # A freed entry that rounding sends straight back is not freed again before a real step.
        leaving = blocking & (ratio <= step)
        out = torch.where(stuck, out | leaving, torch.zeros_like(out))
        moved = torch.where(f, now + step * (goal - now), 0.0)
        moved = torch.where(leaving, 0.0, moved).clamp(min=0.0)
        f = f & ~leaving
        slope = (_product(K, moved) + c).where(~f & ~out, torch.zeros_like(c))
        steepest = slope.argmin(dim=-1, keepdim=True)
        whole = ~blocking.any(dim=-1, keepdim=True)
        enters = whole & (slope.gather(-1, steepest) < -TOLERANCE)
        f = f | (torch.zeros_like(f).scatter(-1, steepest, True) & enters)
        u[left], free[left], barred[left] = moved, f, out
        finished = (whole & ~enters).squeeze(-1)
        done[left[finished]] = True
        left = left[~finished]
        if not len(left):
            break
    return u, done


def _minimum(
    gram: Float[Tensor, "B k k"], cross: Float[Tensor, "B k"], free: Bool[Tensor, "B k"]
) -> Float[Tensor, "B k"]:
    """The minimiser over the free entries, the others at zero."""
    both = free.unsqueeze(-1) & free.unsqueeze(-2)
    masked = torch.where(both, gram, 0.0)
    masked.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    target = torch.where(free, -cross, 0.0).unsqueeze(-1)
    root, failed = torch.linalg.cholesky_ex(masked)
    found = torch.cholesky_solve(target, root)
    singular = (failed > 0) | (root.diagonal(dim1=-2, dim2=-1).amin(dim=-1) < SINGULAR**0.5)
    if bool(singular.any()):
        # c lies in the range of K, so the shortest least-squares solution is a minimiser.
        inverse = torch.linalg.pinv(masked[singular], hermitian=True, rtol=SINGULAR)
        found[singular] = inverse @ target[singular]
    return found.squeeze(-1)
