"""Softmax attention over a window, linear attention over everything older, in one normaliser.

Zhang, Arora, Chalamala, Wu, Spector, Singhal, Ramesh, Re: "LoLCATs: On Low-Rank Linearizing of
Large Language Models", arXiv 2410.10254. For a token at position n with window W(n) and the keys
P(n) before it, per head:

    y_n = ( sum_W g exp(q_n.k_i s - c_n) v_i + phi(q_n)^T sum_P phi(k_j) v_j^T )
        / ( sum_W g exp(q_n.k_i s - c_n)     + phi(q_n)^T sum_P phi(k_j) )

with s = 1/sqrt(d), c_n the largest q_n.k_i s in the window and g in (0, 1) learned per head.
Windows:

    sliding     the last w keys, the token's own among them; none at w = 0
    terraced    the token's block of w and the blocks - 1 before it (the paper's main results: 2)

``sinks`` first tokens that always belong to the window are an extension and not the paper's.
Three forms agree: `hybrid_quadratic` is the definition, `hybrid_chunked` trains and reads prompts
in O(n w + (n/w) f d) without a product of key and value per position, `hybrid_step` and `fold`
write one token after the other. Sums are in float32, or in float64 for inputs that are.

    b batch   h query heads   r key heads   n queries   m keys   d head dimension   f features
    e = d + 1: values with a one behind them, so that a sum carries its normaliser
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from zeitgeist.errors import InputInvalid

LEAST_CHUNK = 32
"""Narrower sliding windows are cut into chunks of this many tokens."""
LINEAR_CHUNK = 64
"""Tokens per chunk where there is no window."""


def check_window(window: int, kind: str, blocks: int, sinks: int) -> None:
    """Refuse windows that mean nothing.

    Raises
    ------
    InputInvalid
        A negative window or number of sinks, an unknown kind, terraces without a window or of
        other than one or two blocks.
    """
    if window < 0 or sinks < 0:
        name, value = ("window", window) if window < 0 else ("sinks", sinks)
        raise InputInvalid(f"{name} is {value}", mend="give 0 or more tokens")
    if kind not in ("sliding", "terraced"):
        raise InputInvalid(f"the window is {kind!r}", mend="give sliding or terraced")
    if kind == "terraced" and (window == 0 or blocks not in (1, 2)):
        raise InputInvalid(
            f"a terraced window of {blocks} blocks of {window} tokens",
            mend="give one or two blocks of at least one token",
        )


def window_start(
    positions: Int[Tensor, "*n"], window: int, kind: str = "sliding", blocks: int = 2
) -> Int[Tensor, "*n"]:
    """The first position inside the window of a token (beyond the token: an empty window).

    Examples
    --------
    >>> window_start(torch.arange(5), 2)
    tensor([-1,  0,  1,  2,  3])
    >>> window_start(torch.arange(5), 2, "terraced", 1)
    tensor([0, 0, 2, 2, 4])
    """
    if kind == "sliding":
        return positions - (window - 1)
    return (positions // window - (blocks - 1)) * window


def _wide(*tensors: Tensor) -> list[Tensor]:
    dtype = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    return [tensor.to(dtype) for tensor in tensors]


def _with_one(v: Float[Tensor, "*m d"]) -> Float[Tensor, "*m e"]:
    return pad(v, (0, 1), value=1.0)


def _softly(
    logits: Float[Tensor, "*n m"], near: Bool[Tensor, "*#n #m"], gamma: Float[Tensor, "*#n #m"]
) -> Float[Tensor, "*n m"]:
    """Weights of the window: gamma at its largest logit, 0 outside it."""
    masked = logits.masked_fill(~near, -torch.inf)
    largest = masked.amax(-1, keepdim=True)
    largest = torch.where(largest == -torch.inf, torch.zeros_like(largest), largest)
    return gamma * (masked - largest).exp()


def _divided(sums: Float[Tensor, "*n e"], dtype: torch.dtype) -> Float[Tensor, "*n d"]:
    """Sums by their normaliser; 0 where nothing was seen."""
    total = sums[..., -1:]
    return (sums[..., :-1] / torch.where(total == 0, torch.ones_like(total), total)).to(dtype)


def fold(
    state: Float[Tensor, "b h f e"],
    phi_k: Float[Tensor, "b h m f"],
    v: Float[Tensor, "b h m d"],
    keep: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b h f e"]:
    """Add keys with their values to the state that stands for everything older than the window.

    Parameters
    ----------
    state
        sum phi(k) [v, 1]^T so far; zeros at the start.
    phi_k, v
        Features of the keys, and their values.
    keep
        Which of them to add; None: all.

    Examples
    --------
    >>> fold(torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 3, 1), torch.ones(1, 1, 3, 1))
    tensor([[[[3., 3.]]]])
    """
    if keep is not None:
        phi_k = phi_k * keep[:, None, :, None]
    return state + phi_k.to(state.dtype).transpose(-1, -2) @ _with_one(v.to(state.dtype))


def hybrid_quadratic(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h m d"],
    v: Float[Tensor, "b h m c"],
    phi_q: Float[Tensor, "b h n f"],
    phi_k: Float[Tensor, "b h m f"],
    gamma: Float[Tensor, " h"],
    *,
    scale: float,
    window: int,
    kind: str = "sliding",
    blocks: int = 2,
    sinks: int = 0,
    query_positions: Int[Tensor, "b n"] | None = None,
    key_positions: Int[Tensor, "b m"] | None = None,
    valid: Bool[Tensor, "b m"] | None = None,
    state: Float[Tensor, "b h f _"] | None = None,
) -> Float[Tensor, "b h n c"]:
    """Every query against every key: the definition.

    Parameters
    ----------
    q, k, v
        After RoPE; keys and values repeated to the query heads. Values may have another dimension:
        with the identity for values the outputs are the weights.
    phi_q, phi_k
        Their features.
    gamma
        Weight of the window per head.
    scale
        Of the window's logits, 1/sqrt(d).
    window, kind, blocks, sinks
        See above.
    query_positions, key_positions
        Default: keys 0, ..., m - 1, and queries the last n of them.
    valid
        False for keys that nobody sees.
    state
        Keys older than all of ``k``, as `fold` sums them.

    Returns
    -------
    Tensor
        In the dtype of ``q``; 0 for a query that sees nothing.

    Examples
    --------
    >>> x, one = torch.randn(1, 1, 6, 4), torch.ones(1)
    >>> y = hybrid_quadratic(x, x, x, x.exp(), x.exp(), one, scale=0.5, window=6)
    >>> peer = torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)
    >>> bool(torch.allclose(y, peer, atol=1e-5))
    True
    """
    dtype = q.dtype
    q, k, v, phi_q, phi_k, gamma = _wide(q, k, v, phi_q, phi_k, gamma)
    keys = torch.arange(k.shape[2], device=k.device).expand(k.shape[0], -1)
    key_positions = keys if key_positions is None else key_positions
    if query_positions is None:
        query_positions = key_positions[:, key_positions.shape[1] - q.shape[2] :]
    here, there = query_positions[:, None, :, None], key_positions[:, None, None, :]
    seen = there <= here
    if valid is not None:
        seen = seen & valid[:, None, None, :]
    near = seen & ((there >= window_start(here, window, kind, blocks)) | (there < sinks))
    weights = _softly(q @ k.transpose(-1, -2) * scale, near, gamma[:, None, None])
    weights = weights + (phi_q @ phi_k.transpose(-1, -2)).masked_fill(~(seen & ~near), 0.0)
    sums = weights @ _with_one(v)
    if state is not None:
        sums = sums + phi_q @ state.to(sums.dtype)
    return _divided(sums, dtype)


def hybrid_chunked(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h n d"],
    v: Float[Tensor, "b h n d"],
    phi_q: Float[Tensor, "b h n f"],
    phi_k: Float[Tensor, "b h n f"],
    gamma: Float[Tensor, " h"],
    *,
    scale: float,
    window: int,
    kind: str = "sliding",
    blocks: int = 2,
    sinks: int = 0,
    valid: Bool[Tensor, "b n"] | None = None,
) -> Float[Tensor, "b h n d"]:
    """Whole sequences: dense inside two neighbouring chunks, by the state before them.

    Parameters
    ----------
    q, k, v, phi_q, phi_k, gamma, scale, window, kind, blocks, sinks
        As for `hybrid_quadratic`, at positions 0, ..., n - 1.
    valid
        False for padding, at the end of a row.

    Examples
    --------
    >>> x, g = torch.randn(1, 1, 7, 4), torch.full((1,), 0.1)
    >>> many = hybrid_chunked(x, x, x, x.exp(), x.exp(), g, scale=0.5, window=2)
    >>> slow = hybrid_quadratic(x, x, x, x.exp(), x.exp(), g, scale=0.5, window=2)
    >>> bool(torch.allclose(many, slow, atol=1e-5))
    True
    """
    dtype, length = q.dtype, q.shape[2]
    q, k, v, phi_q, phi_k, gamma = _wide(q, k, v, phi_q, phi_k, gamma)
    size = window if kind == "terraced" else max(window, LEAST_CHUNK) if window else LINEAR_CHUNK
    chunks = -(-length // size)
    rest = chunks * size - length
    first_k, first_v = k[:, :, None, :sinks], _with_one(v[:, :, None, :sinks])
    use = (torch.arange(length, device=q.device) >= sinks).expand(q.shape[0], -1)
    if valid is not None:
        use = use & valid

    def cut(x: Tensor) -> Tensor:
        filled: Tensor = pad(x, (0, 0, 0, rest))
        return filled.view(*x.shape[:2], chunks, size, -1)

    def and_before(x: Tensor) -> Tensor:
        """Each chunk behind the one before it; zeros before the first."""
        return torch.cat([pad(x[:, :, :-1], (0, 0, 0, 0, 1, 0)), x], 3)

    q, k, ve, phi_q, phi_k = cut(q), cut(k), cut(_with_one(v)), cut(phi_q), cut(phi_k)
    use = pad(use, (0, rest)).unflatten(1, (chunks, size))
    within = torch.arange(chunks * size, device=q.device).view(chunks, size)
    here = within[:, :, None]
    there = torch.cat([within - size, within], 1)[:, None, :]
    before = pad(use[:, :-1], (0, 0, 1, 0))
    seen = (there <= here) & torch.cat([before, use], 2)[:, None, :, None, :]
    inside = there >= window_start(here, window, kind, blocks)
    near, far = seen & inside, seen & ~inside
    two_k, two_v, two_phi = and_before(k), and_before(ve), and_before(phi_k)
    logits = q @ two_k.transpose(-1, -2) * scale
    if sinks:
        early = torch.arange(first_k.shape[3], device=q.device) <= here
        if valid is not None:
            early = early & valid[:, None, None, None, :sinks]
        logits = torch.cat([q @ first_k.transpose(-1, -2) * scale, logits], -1)
        near = torch.cat([early.expand(*near.shape[:-1], -1), near], -1)
    weights = _softly(logits, near, gamma[:, None, None, None])
    linear = (phi_q @ two_phi.transpose(-1, -2)).masked_fill(~far, 0.0)
    early_weights, weights = weights.split([first_k.shape[3] if sinks else 0, 2 * size], -1)
    sums = (weights + linear) @ two_v
    if sinks:
        sums = sums + early_weights @ first_v
    if chunks > 2:
        kept = phi_k[:, :, :-2] * use[:, None, :-2, :, None]
        states = (kept.transpose(-1, -2) @ ve[:, :, :-2]).cumsum(2)
        late = sums[:, :, 2:] + phi_q[:, :, 2:] @ states
        sums = torch.cat([sums[:, :, :2], late], 2)
    return _divided(sums.flatten(2, 3)[:, :, :length], dtype)


def hybrid_step(
    q: Float[Tensor, "b h 1 d"],
    k: Float[Tensor, "b r m d"],
    v: Float[Tensor, "b r m d"],
    phi_q: Float[Tensor, "b h 1 f"],
    gamma: Float[Tensor, " h"],
    state: Float[Tensor, "b h f e"],
    *,
    scale: float,
    valid: Bool[Tensor, "b m"] | None = None,
) -> Float[Tensor, "b h 1 d"]:
    """One token: its window, and the state of everything older.

    Parameters
    ----------
    q, phi_q
        The token's query and its features.
    k, v
        The keys of its window and nothing else, per key head (h a multiple of r).
    gamma, scale, valid
        As for `hybrid_quadratic`.
    state
        As `fold` sums the keys before the window.

    Examples
    --------
    >>> x, state = torch.randn(1, 2, 1, 4), torch.zeros(1, 2, 3, 5)
    >>> one = hybrid_step(x, x, x, torch.ones(1, 2, 1, 3), torch.ones(2), state, scale=0.5)
    >>> bool(torch.allclose(one, x))
    True
    """
    dtype = q.dtype
    q, k, v, phi_q, gamma = _wide(q, k, v, phi_q, gamma)
    groups = k.shape[1]
    sums = phi_q @ state.to(q.dtype)
    if k.shape[2]:
        together = q.squeeze(2).unflatten(1, (groups, -1))
        logits = together @ k.transpose(-1, -2) * scale
        near = (
            torch.ones_like(logits, dtype=torch.bool)
            if valid is None
            else (valid[:, None, None, :].expand_as(logits))
        )
        weights = _softly(logits, near, gamma.view(groups, -1, 1))
        sums = sums + (weights @ _with_one(v)).flatten(1, 2).unsqueeze(2)
    return _divided(sums, dtype)
