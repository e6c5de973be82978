"""Methods whose result lies in the span of their inputs: the coefficients, from inner products.

A tensor is one vector, a checkpoint's worth of it per input. Slerp, the spherical means and Model
Stock only need the Gram matrix G_ij = <x_i, x_j> of the inputs, n x n numbers that a single pass
over the weights gathers; their result is then one linear combination, a second pass.

    linear       c_i = w_i [/ sum w]
    slerp        c = (sin((1-t) a), sin(t a)) / sin a, a the angle between the two
                 (Shoemake, SIGGRAPH 1985)
    nuslerp      slerp at t = w_2 / (w_1 + w_2)                                 (mergekit 0.1.5)
    multislerp   u_i = x_i / |x_i|, m = sum w_i u_i; (m / |m|) sum w_i |x_i|    (mergekit 0.1.5)
    karcher      u = argmin sum_i angle(u, u_i)^2 on the sphere, by steps
                 T = sum_i (a_i / sin a_i)(u_i - <u, u_i> u) / n, u <- cos|T| u + sin|T| T / |T|;
                 u mean_i |x_i|                                (Wang et al., arXiv 2603.04972)
    model stock  b + t (mean x - b), t = n c / (1 + (n-1) c), c the mean cosine of pairs of d_i
                                                      (Jang, Yun, Han, arXiv 2403.19522)
    nearswap     b + clamp(t / |x - b|, 0, 1) (x - b), entry by entry: not in the span

mergekit's multislerp maps to the tangent space at m and back; with the same weights on both ways
the tangent vectors sum to zero, so the closed form above is the same vector.

``as_mergekit`` switches to the guards of mergekit 0.1.5, which stand at fixed sizes: slerp becomes
linear above a cosine of .9995 (fine-tunes of one model are above it), small norms are replaced.
Without, a guard only catches what has no answer: zero vectors, exact opposites.

Dimensions: n inputs, *batch independent groups (rows), size entries of a vector.
"""

from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from zeitgeist.errors import InputInvalid

# Closer to (anti)parallel than this, 1 - |cos|, the circle through two vectors is not defined by
# float64 numbers; the chord is the same to 1e-12
PARALLEL = 1e-12

Gram = Float64[Tensor, "*batch n n"]
Coefficients = Float64[Tensor, "*batch n"]


def gram_matrix(vectors: Float[Tensor, "*batch n size"]) -> Gram:
    """Inner products of n vectors, in float64.

    Examples
    --------
    >>> gram_matrix(torch.tensor([[3.0, 4.0], [1.0, 0.0]])).tolist()
    [[25.0, 3.0], [3.0, 1.0]]
    """
    values = vectors.to(torch.float64)
    return values @ values.transpose(-1, -2)


def _norms_and_cosines(gram: Gram, smallest: float = 0.0) -> tuple[Coefficients, Gram]:
    norms = gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    safe = torch.where(norms > smallest, norms, 1.0)
    cosines = gram / (safe.unsqueeze(-1) * safe.unsqueeze(-2))
    return norms, cosines.clamp(-1, 1)


def linear_coefficients(
    weights: Float64[Tensor, " n"], *, normalize: bool = True
) -> Float64[Tensor, " n"]:
    """Weights, scaled to sum 1 if asked.

    Raises
    ------
    InputInvalid
        ``normalize`` and the weights sum to 0.

    Examples
    --------
    >>> linear_coefficients(torch.tensor([1.0, 3.0], dtype=torch.float64)).tolist()
    [0.25, 0.75]
    """
    return weights / linear_divisor(weights, normalize=normalize)


def linear_divisor(weights: Float64[Tensor, " n"], *, normalize: bool = True) -> float:
    """What a weighted sum is divided by to be a mean; 1 where it is to stay a sum.

    Dividing the sum once rounds a mean once; coefficients w / sum(w) are rounded before it.

    Raises
    ------
    InputInvalid
        ``normalize`` and the weights sum to 0.

    Examples
    --------
    >>> linear_divisor(torch.tensor([1.0, 3.0], dtype=torch.float64))
    4.0
    """
    if not normalize:
        return 1.0
    total = weights.sum()
    if total.abs() <= 1e-12 * weights.abs().sum():
        raise InputInvalid(
            f"weights {weights.tolist()} sum to 0 and cannot be normalized",
            mend="change them, or give normalize: false",
        )
    return float(total)


def slerp_coefficients(
    gram: Float64[Tensor, "*batch 2 2"], t: float, *, as_mergekit: bool = False
) -> Float64[Tensor, "*batch 2"]:
    """Coefficients of the point at ``t`` on the arc from the first vector to the second.

    Parameters
    ----------
    gram
        Inner products of the two.
    t
        Position, 0 = first; outside [0, 1] the arc goes on.
    as_mergekit
        The chord instead of the arc where abs(cos) > .9995.

    Returns
    -------
    torch.Tensor
        Where either vector is 0 or they are (anti)parallel: (1 - t, t), the chord.

    Examples
    --------
    >>> slerp_coefficients(torch.eye(2, dtype=torch.float64), 0.5).tolist()
    [0.7071067811865475, 0.7071067811865475]
    """
    norms, cosines = _norms_and_cosines(gram, 1e-8 if as_mergekit else 0.0)
    cosine = cosines[..., 0, 1]
    if as_mergekit:
        chord = cosine.abs() > 0.9995
    else:
        chord = (cosine.abs() > 1 - PARALLEL) | (norms == 0).any(-1)
    return _arc(cosine, chord, t)


def _arc(cosine: Tensor, chord: Tensor, t: float) -> Tensor:
    angle = torch.where(chord, 0.0, cosine).acos()
    first = torch.where(chord, 1 - t, ((1 - t) * angle).sin() / angle.sin())
    second = torch.where(chord, t, (t * angle).sin() / angle.sin())
    return torch.stack([first, second], dim=-1)


def nuslerp_coefficients(
    gram: Float64[Tensor, "*batch 2 2"],
    weights: Float64[Tensor, " 2"],
    *,
    as_mergekit: bool = False,
) -> Float64[Tensor, "*batch 2"]:
    """`slerp_coefficients` at t = w_2 / (w_1 + w_2).

    Parameters
    ----------
    gram, weights
        Inner products and weights of the two vectors.
    as_mergekit
        Half way where the weights sum to less than 1e-6; norms are at least 1e-7.

    Raises
    ------
    InputInvalid
        The weights sum to 0.

    Examples
    --------
    >>> ones = torch.ones(2, dtype=torch.float64)
    >>> nuslerp_coefficients(torch.eye(2, dtype=torch.float64), ones).tolist()
    [0.7071067811865475, 0.7071067811865475]
    """
    if not as_mergekit:
        return slerp_coefficients(gram, linear_coefficients(weights)[1].item())
    total = weights.sum().item()
    t = 0.5 if abs(total) < 1e-6 else weights[1].item() / total
    norms = gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt().clamp(min=1e-7)
    cosine = (gram[..., 0, 1] / norms.prod(-1)).clamp(-1, 1)
    return _arc(cosine, 1 - cosine.square() <= 1e-16, t)


def multislerp_coefficients(
    gram: Float64[Tensor, "n n"],
    weights: Float64[Tensor, " n"],
    *,
    normalize_weights: bool = True,
    eps: float = 1e-8,
    as_mergekit: bool = False,
) -> Float64[Tensor, " n"]:
    """Direction of the weighted mean of directions, length the weighted mean of lengths.

    Parameters
    ----------
    gram, weights
        Inner products and weights of the n vectors.
    normalize_weights
        Make the weights sum to 1.
    eps
        Added to a length before dividing by it; a mean shorter than this has no direction.
    as_mergekit
        Refuse a mean without direction when n > 2, as mergekit does. Without, the weighted mean
        of the vectors is returned, as mergekit does for n = 2.

    Raises
    ------
    InputInvalid
        The weights sum to 0, or see ``as_mergekit``.

    Examples
    --------
    >>> gram = torch.diag(torch.tensor([4.0, 16.0], dtype=torch.float64))
    >>> ones = torch.ones(2, dtype=torch.float64)
    >>> [round(c, 6) for c in multislerp_coefficients(gram, ones).tolist()]
    [1.06066, 0.53033]
    """
    if len(weights) == 1:
        return torch.ones_like(weights)
    weights = linear_coefficients(weights, normalize=normalize_weights)
    norms = gram.diagonal().clamp(min=0).sqrt()
    units = weights / (norms + eps)
    length = (units @ gram @ units).clamp(min=0).sqrt()
    if length < eps:
        if as_mergekit and len(weights) > 2:
            raise InputInvalid(
                f"the directions cancel with weights {weights.tolist()}",
                mend="change the weights; without compat the mean is taken",
            )
        return weights
    return units * ((weights @ norms) / length)


def karcher_coefficients(
    gram: Float64[Tensor, "n n"],
    *,
    max_iter: int = 10,
    tol: float = 1e-5,
    as_mergekit: bool = False,
) -> Float64[Tensor, " n"]:
    """Coefficients of the Riemannian mean of the directions, times the mean length.

    Parameters
    ----------
    gram
        Inner products of the n vectors.
    max_iter, tol
        At most this many steps, until one is shorter than ``tol`` (radians).
    as_mergekit
        Leave out directions of vectors shorter than ``tol``, and start from the first vector where
        the directions cancel. Without, only zero vectors have no direction, and where directions
        cancel or are exact opposites (no unique mean) the plain mean is returned.

    Examples
    --------
    >>> gram = torch.diag(torch.tensor([4.0, 16.0], dtype=torch.float64))
    >>> [round(c, 6) for c in karcher_coefficients(gram).tolist()]
    [1.06066, 0.53033]
    """
    n = len(gram)
    plain = torch.full((n,), 1 / n, dtype=torch.float64, device=gram.device)
    norms, cosines = _norms_and_cosines(gram)
    directed = norms > (tol if as_mergekit else 0.0)
    if n == 1 or not directed.any():
        return torch.ones_like(plain) if n == 1 else torch.zeros_like(plain)
    weights = directed.to(torch.float64) / directed.sum()

    # `mean` holds coefficients of the unit vectors; <a, b> = a @ cosines @ b
    mean = weights.clone()
    length = _length(mean, cosines)
    if length < tol:
        if not as_mergekit:
            return plain
        mean = torch.nn.functional.one_hot(directed.to(torch.int64).argmax(), n).to(torch.float64)
    else:
        mean = mean / length
    for _ in range(max_iter):
        dots = (cosines @ mean).clamp(-1, 1)
        if not as_mergekit and (directed & (dots < PARALLEL - 1)).any():
            return plain
        angles = dots.acos()
        far = directed & (angles >= tol)
        pull = torch.where(far, weights * angles / torch.where(far, angles.sin(), 1.0), 0.0)
        tangent = pull - (pull @ dots) * mean
        step = _length(tangent, cosines)
        if step < tol:
            break
        mean = step.cos() * mean + step.sin() * (tangent / step)
        mean = mean / _length(mean, cosines)
    return torch.where(directed, mean / torch.where(directed, norms, 1.0), 0.0) * norms.mean()


def _length(coefficients: Tensor, cosines: Tensor) -> Tensor:
    return (coefficients @ cosines @ coefficients).clamp(min=0).sqrt()


def model_stock_ratio(gram: Gram, *, as_mergekit: bool = False) -> Float64[Tensor, "*batch"]:
    """How far from the base towards the mean of the experts the estimated centre lies.

    Parameters
    ----------
    gram
        Inner products of the task vectors, n >= 2.
    as_mergekit
        Products of norms are at least 1e-6 in the cosine, which makes the ratio of tensors with
        small updates too small; a negative cosine extrapolates away from the experts. Without, the
        ratio is kept in [0, 1].

    Returns
    -------
    torch.Tensor
        t of b + t (mean x - b).

    Examples
    --------
    >>> gram = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    >>> round(model_stock_ratio(gram).item(), 6)
    0.666667
    """
    n = gram.shape[-1]
    if as_mergekit:
        norms = gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
        products = (norms.unsqueeze(-1) * norms.unsqueeze(-2)).clamp(min=1e-6)
        cosines = (gram / products).clamp(-1, 1)
    else:
        cosines = _norms_and_cosines(gram)[1]
    first, second = torch.triu_indices(n, n, 1)
    cosine = cosines[..., first, second].mean(-1)
    if not as_mergekit:
        cosine = cosine.clamp(min=0)
    divisor = 1 + (n - 1) * cosine
    singular = divisor.abs() < 1e-6
    return torch.where(singular, 0.0, n * cosine / torch.where(singular, 1.0, divisor))


def coefficients(
    method: str,
    gram: Gram,
    weights: Float64[Tensor, " n"],
    options: Any,
    *,
    as_mergekit: bool = False,
) -> Coefficients:
    """What each vector is multiplied with, for any method whose result lies in their span.

    Parameters
    ----------
    method
        ``slerp``, ``karcher``, ``multislerp``, ``nuslerp`` or ``model_stock``.
    gram
        Inner products of the vectors: of the tensors for slerp and karcher (and for the others
        without a base), else of the task vectors. A batch for methods that work by rows.
    weights, options
        Of the experts, and the method's options.
    as_mergekit
        The rules of mergekit 0.1.5.
    """
    if method == "slerp":
        return slerp_coefficients(gram, options.t, as_mergekit=as_mergekit)
    if method == "nuslerp":
        return nuslerp_coefficients(gram, weights, as_mergekit=as_mergekit)
    if method == "karcher":
        return karcher_coefficients(
            gram, max_iter=options.max_iter, tol=options.tol, as_mergekit=as_mergekit
        )
    if method == "multislerp":
        return multislerp_coefficients(
            gram,
            weights,
            normalize_weights=options.normalize_weights,
            eps=options.eps,
            as_mergekit=as_mergekit,
        )
    ratio = model_stock_ratio(gram, as_mergekit=as_mergekit)
    n = gram.shape[-1]
    return (ratio / n).unsqueeze(-1).expand(*ratio.shape, n)


def nearswap(
    base: Float[Tensor, "*shape"],
    other: Float[Tensor, "*shape"],
    t: float,
    *,
    as_mergekit: bool = False,
) -> Float64[Tensor, "*shape"]:
    """Move every entry of the base by at most ``t`` towards the other model.

    Parameters
    ----------
    base, other
        The two models' tensors.
    t
        Largest step; an entry nearer than this is taken over.
    as_mergekit
        Distances count as at least 1e-6, which matters for t < 1e-6 only.

    Examples
    --------
    >>> nearswap(torch.zeros(3), torch.tensor([0.5, -0.25, 3.0]), 1.0).tolist()
    [0.5, -0.25, 1.0]
    """
    start, end = base.to(torch.float64), other.to(torch.float64)
    distance = (end - start).abs()
    near = distance <= t
    if as_mergekit:
        share = (t / distance.clamp(min=1e-6)).clamp(0, 1)
        return share * end + (1 - share) * start
    return torch.where(near, end, start + t * (end - start).sign())
