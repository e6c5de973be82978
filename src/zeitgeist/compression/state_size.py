"""How many vectors can a fixed state remember? A task, five ways to mix tokens, and their accuracy.

What a causal model has read it knows only through its state. One that reads n vectors before the
questions come cannot answer all of them once n l exceeds what its state holds: a counting argument,
free of conjectures, and the measurable cousin of

Alman, Yu: "Fundamental Limitations on Subquadratic Alternatives to Transformers", arXiv 2410.04271,

whose theorem (conditional, worst case, about time) no experiment of this kind tests.

The task, "B then A": n vectors b_j of l random signs are read, then queries come, each a copy of
some b_j with every sign flipped with probability 5 %, or fresh; yes or no per query. Every query
follows B alone. The model is one block around a mixer; embedding, MLPs and head are the same:

    x = E v + U gelu(V v) + flag,   y = x + mix(norm x),   logit = w . (y + MLP(norm y))

    softmax   sum_j e^{q.k_j} v_j / (e^c + sum_j e^{q.k_j})        c: the null key; state 2 n d
    window    the same over the last w of B                         state 2 w d
    linear    phi(q) S / (e^c + phi(q) z),  S = sum_j phi(k_j) v_j^T,  z = sum_j phi(k_j)
                                                                    state s^2 + s
    hybrid    softmax over the last w and linear over the rest, one normaliser (LoLCATs, Zhang et
              al., arXiv 2410.10254)                                state 2 w d + s^2 + s
    mingru    h_t = (1 - z_t) h_{t-1} + z_t g_t,  z_t = sigmoid(W x_t),  g_t = G x_t; a query takes
              one more step (Feng et al., arXiv 2410.01201)         state h

phi is Hedgehog's (`zeitgeist.compression.feature_maps`) with s features. Dimensions:

    b batch   n vectors   m queries   l signs   d width   s features
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from zeitgeist.compression.feature_maps import hedgehog
from zeitgeist.errors import InputInvalid

Mixing = Literal["softmax", "linear", "mingru", "window", "hybrid"]
MIXERS: tuple[Mixing, ...] = get_args(Mixing)


@dataclass(frozen=True)
class StateSizeOptions:
    """The task, the network and its training; the same for every mixer.

    Parameters
    ----------
    signs, flips, queries
        l; the chance that a sign of a copy is flipped; questions per sequence.
    width, window, recurrent
        d; w of the window and the hybrid; the state of minGRU.
    steps, batch, learning_rate
        Adam's, with a linear warm-up over a tenth and a cosine to zero. Every step sees one n,
        all in turn.
    test
        Sequences per n that accuracy is taken over.
    """

    signs: int = field(default=24, metadata={"meaning": "signs per vector"})
    flips: float = field(default=0.05, metadata={"meaning": "chance that a copied sign flips"})
    queries: int = field(default=32, metadata={"meaning": "queries per sequence"})
    width: int = field(default=64, metadata={"meaning": "width of the network"})
    window: int = field(default=16, metadata={"meaning": "vectors that a window sees"})
    recurrent: int = field(default=256, metadata={"meaning": "state of minGRU"})
    steps: int = field(default=1200, metadata={"meaning": "training steps, all n in turn"})
    batch: int = field(default=32, metadata={"meaning": "sequences per step"})
    learning_rate: float = field(default=3e-3, metadata={"meaning": "peak step size of Adam"})
    test: int = field(default=64, metadata={"meaning": "test sequences per n"})

    def __post_init__(self) -> None:
        if not 0 <= self.flips < 0.5:
            raise InputInvalid(f"flips is {self.flips}", mend="give at least 0 and less than 0.5")
        for name in ("signs", "queries", "width", "window", "recurrent", "steps", "batch", "test"):
            if getattr(self, name) < 1:
                raise InputInvalid(f"{name} is {getattr(self, name)}", mend="give at least 1")
        if not self.learning_rate > 0:
            raise InputInvalid(
                f"learning_rate is {self.learning_rate}", mend="give more than 0, as 0.003"
            )


def b_then_a(
    n: int, options: StateSizeOptions, *, batch: int, random: torch.Generator
) -> tuple[Float[Tensor, "b n l"], Float[Tensor, "b m l"], Bool[Tensor, "b m"]]:
    """Draw vectors B, queries A, and which queries are copies.

    Parameters
    ----------
    n
        Vectors per sequence.
    options
        l, flips and queries.
    batch
        Sequences.
    random
        Where everything is drawn from.

    Examples
    --------
    >>> random = torch.Generator().manual_seed(0)
    >>> b, a, known = b_then_a(5, StateSizeOptions(flips=0.0), batch=2, random=random)
    >>> agree = (b @ a.mT).amax(1) == 24
    >>> bool((agree == known).all())
    True
    """
    length, m = options.signs, options.queries

    def signs(*shape: int) -> Tensor:
        return 2.0 * torch.randint(2, shape, generator=random) - 1

    vectors, fresh = signs(batch, n, length), signs(batch, m, length)
    source = torch.randint(n, (batch, m), generator=random)
    flipped = torch.rand(batch, m, length, generator=random) < options.flips
    copies = vectors.gather(1, source[..., None].expand(-1, -1, length))
    copies = torch.where(flipped, -copies, copies)
    known = torch.rand(batch, m, generator=random) < 0.5
    return vectors, torch.where(known[..., None], copies, fresh), known


def mingru_last(
    gates: Float[Tensor, "b n h"],
    candidates: Float[Tensor, "b n h"],
    start: Float[Tensor, "b h"] | None = None,
) -> Float[Tensor, "b h"]:
    """State of a minGRU after n steps, in one parallel pass.

    h_n = sum_t z_t g_t prod_{r > t} (1 - z_r): products as sums of logarithms, none above 0, so
    that nothing overflows.

    Parameters
    ----------
    gates
        Before the sigmoid.
    candidates
        g.
    start
        h_0; None: zero.

    Examples
    --------
    >>> mingru_last(torch.zeros(1, 2, 1), torch.ones(1, 2, 1))
    tensor([[0.7500]])
    """
    keep = functional.logsigmoid(-gates)
    total = keep.sum(1)
    after = total[:, None] - keep.cumsum(1)
    last = ((functional.logsigmoid(gates) + after).exp() * candidates).sum(1)
    return last if start is None else last + total.exp() * start


def attend(
    q: Float[Tensor, "b m d"],
    k: Float[Tensor, "b n d"],
    v: Float[Tensor, "b n e"],
    null: Float[Tensor, ""],
) -> Float[Tensor, "b m e"]:
    """Softmax attention with a null key of logit ``null`` and value 0.

    Examples
    --------
    >>> attend(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2), torch.ones(1, 1, 1), torch.tensor(0.0))
    tensor([[[0.5000]]])
    """
    logits = q @ k.mT
    nothing = null.expand(*logits.shape[:-1], 1)
    return torch.cat([logits, nothing], -1).softmax(-1)[..., :-1] @ v


def attend_linear(
    q: Float[Tensor, "b m s"],
    k: Float[Tensor, "b n s"],
    v: Float[Tensor, "b n e"],
    null: Float[Tensor, ""],
) -> Float[Tensor, "b m e"]:
    """Linear attention of features through its state of s e + s numbers, with a null key.

    Examples
    --------
    >>> one = torch.ones(1, 1, 1)
    >>> attend_linear(one, one, one, torch.tensor(0.0))
    tensor([[[0.5000]]])
    """
    state, norm = k.mT @ v, k.sum(1)[..., None]
    return (q @ state) / (null.exp() + q @ norm)


def attend_hybrid(
    q: Float[Tensor, "b m d"],
    k: Float[Tensor, "b w d"],
    v: Float[Tensor, "b w e"],
    features: tuple[Float[Tensor, "b m s"], Float[Tensor, "b r s"], Float[Tensor, "b r e"]],
    null: Float[Tensor, ""],
) -> Float[Tensor, "b m e"]:
    """Softmax over a window and linear attention over the rest, under one normaliser.

    Parameters
    ----------
    q, k, v
        Of the window.
    features
        phi(q), phi(k) and values of what lies before the window (r may be 0).
    null
        Logit of the null key.
    """
    logits = q @ k.mT
    top = torch.maximum(logits.amax(-1, keepdim=True), null).detach()
    weights, scale = (logits - top).exp(), (-top).exp()
    phi_q, phi_k, rest = features
    above = weights @ v + scale * (phi_q @ (phi_k.mT @ rest))
    below = weights.sum(-1, keepdim=True) + scale * (phi_q @ phi_k.sum(1)[..., None])
    return above / (below + (null - top).exp())


class Reader(nn.Module):
    """One block that reads B and answers queries.

    Parameters
    ----------
    mixer
        One of `MIXERS`.
    options
        Sizes.
    features
        s of linear attention and the hybrid, even.
    random
        Where weights are drawn from.
    """

    def __init__(
        self, mixer: Mixing, options: StateSizeOptions, features: int, random: torch.Generator
    ) -> None:
        super().__init__()
        d, signs = options.width, options.signs
        self.mixer, self.window = mixer, options.window
        inner = {"linear": features, "mingru": options.recurrent}.get(mixer, d)
        self.embed, self.up, self.down = (
            nn.Linear(signs, d),
            nn.Linear(signs, 2 * d),
            nn.Linear(2 * d, d),
        )
        self.flag = nn.Parameter(torch.zeros(2, d))
        self.before, self.after = nn.LayerNorm(d), nn.LayerNorm(d)
        if mixer == "mingru":
            self.gate, self.candidate = nn.Linear(d, inner), nn.Linear(d, inner)
        else:
            self.q, self.k = (nn.Linear(d, inner, bias=False) for _ in range(2))
            self.v = nn.Linear(d, features if mixer == "hybrid" else inner, bias=False)
            self.null = nn.Parameter(torch.tensor(0.0))
        if mixer in ("linear", "hybrid"):
            self.map_q, self.map_k = (
                nn.Parameter(torch.empty(1, inner, features // 2)) for _ in range(2)
            )
        self.out = nn.Linear(features if mixer == "hybrid" else inner, d)
        self.mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))
        self.head = nn.Linear(d, 1)
        with torch.no_grad():
            for weight in self.parameters():
                if weight.ndim > 1 and weight is not self.flag:
                    fan = weight.shape[-2 if weight.ndim == 3 else -1]
                    weight.normal_(std=fan**-0.5, generator=random)
            for module in self.modules():
                if isinstance(module, nn.Linear) and module.bias is not None:
                    module.bias.zero_()

    def forward(
        self, vectors: Float[Tensor, "b n l"], queries: Float[Tensor, "b m l"]
    ) -> Float[Tensor, "b m"]:
        """Logits of "is a copy"."""
        b, a = (
            self.embed(x) + self.down(functional.gelu(self.up(x))) + self.flag[i]
            for i, x in enumerate((vectors, queries))
        )
        y = a + self.out(self._mix(self.before(b), self.before(a)))
        logits: Tensor = self.head(y + self.mlp(self.after(y))).squeeze(-1)
        return logits

    def _mix(self, b: Float[Tensor, "b n d"], a: Float[Tensor, "b m d"]) -> Float[Tensor, "b m e"]:
        if self.mixer == "mingru":
            state = mingru_last(self.gate(b), self.candidate(b))[:, None]
            z = self.gate(a).sigmoid()
            mixed: Tensor = (1 - z) * state + z * self.candidate(a)
            return mixed
        q, k, v = self.q(a), self.k(b), self.v(b)
        w, scale = self.window, q.shape[-1] ** -0.5
        if self.mixer == "softmax":
            return attend(scale * q, k, v, self.null)
        if self.mixer == "window":
            return attend(scale * q, k[:, -w:], v[:, -w:], self.null)
        phi_q = hedgehog(q[:, None], self.map_q)[:, 0]
        phi_k = hedgehog(k[:, None], self.map_k)[:, 0]
        if self.mixer == "linear":
            return attend_linear(phi_q, phi_k, v, self.null)
        rest = max(0, k.shape[1] - w)
        features = (phi_q, phi_k[:, :rest], v[:, :rest])
        return attend_hybrid(scale * q, k[:, rest:], v[:, rest:], features, self.null)


def state_size(mixer: Mixing, n: int, options: StateSizeOptions, features: int = 64) -> int:
    """Numbers that a mixer carries from B to the queries.

    Examples
    --------
    >>> [state_size(mixer, 100, StateSizeOptions(), 32) for mixer in MIXERS]
    [12800, 1056, 256, 2048, 2592]
    """
    seen = min(n, options.window)
    linear = features * features + features
    return {
        "softmax": 2 * n * options.width,
        "linear": linear,
        "mingru": options.recurrent,
        "window": 2 * seen * options.width,
        "hybrid": seen * (options.width + features) + linear,
    }[mixer]


def load(n: int, signs: int, state: int) -> float:
    """n l / state: signs to remember per number of state, the variable of the collapse.

    Examples
    --------
    >>> load(64, 24, 1536)
    1.0
    """
    return n * signs / state


def unexplained(accuracy: Float[Tensor, " p"], variable: Float[Tensor, " p"]) -> float:
    """Share of the variance of accuracy that one curve through all points leaves over.

    The curve is a parabola in the logarithm of the variable, fitted by least squares: the same
    freedom whatever the variable is.

    Parameters
    ----------
    accuracy
        Of several n and states.
    variable
        n, or n l / state; positive.

    Examples
    --------
    >>> x = torch.tensor([1.0, 2.0, 4.0, 8.0])
    >>> unexplained(1 - 0.1 * x.log(), x) < 1e-9
    True
    """
    x, y = variable.double().log(), accuracy.double()
    x = (x - x.mean()) / x.std().clamp(min=1e-12)
    columns = torch.stack([torch.ones_like(x), x, x * x], 1)
    rest = y - columns @ (torch.linalg.pinv(columns) @ y)
    spread = (y - y.mean()).square().sum()
    return float(rest.square().sum() / spread) if spread > 0 else 0.0


def train_reader(
    mixer: Mixing,
    sizes: Sequence[int],
    options: StateSizeOptions,
    *,
    features: int = 64,
    seed: int = 0,
    progress: bool | None = False,
) -> dict[int, float]:
    """Train one reader on all n in turn, and its accuracy at every n.

    Parameters
    ----------
    mixer
        One of `MIXERS`.
    sizes
        Every n.
    options
        Task, network and training.
    features
        s of linear attention and the hybrid: an even number.
    seed
        Of weights and data; test data are the same for all mixers.
    progress
        Show a bar; None: when stderr is a terminal.

    Returns
    -------
    dict
        n to the share of test queries answered rightly. Half is chance.

    Raises
    ------
    InputInvalid
        No such mixer, no n, an n below 1, or features that are not even and positive.

    Examples
    --------
    >>> small = StateSizeOptions(signs=8, width=8, steps=2, batch=2, queries=4, test=2)
    >>> list(train_reader("linear", [2, 5], small, features=4))
    [2, 5]
    """
    if mixer not in MIXERS:
        raise InputInvalid(f"there is no mixer {mixer!r}", mend=f"give one of {', '.join(MIXERS)}")
    if not sizes or min(sizes) < 1:
        raise InputInvalid(f"sizes are {list(sizes)}", mend="give at least one n, each at least 1")
    if features < 2 or features % 2:
        raise InputInvalid(f"features is {features}", mend="give an even number, at least 2")
    random = torch.Generator().manual_seed(seed)
    reader = Reader(mixer, options, features, random)
    adam = torch.optim.Adam(reader.parameters(), lr=options.learning_rate)
    warm = max(1, options.steps // 10)

    def rate(step: int) -> float:
        through = max(0, step - warm) / max(1, options.steps - warm)
        return min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * through))

    schedule = torch.optim.lr_scheduler.LambdaLR(adam, rate)
    hidden = None if progress is None else not progress
    for step in tqdm(range(options.steps), desc=mixer, leave=False, disable=hidden):
        n = sizes[step % len(sizes)]
        vectors, queries, known = b_then_a(n, options, batch=options.batch, random=random)
        loss = functional.binary_cross_entropy_with_logits(reader(vectors, queries), known.float())
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        adam.step()
        schedule.step()
    return {n: _accuracy(reader, n, options, seed) for n in sizes}


@torch.no_grad()
def _accuracy(reader: Reader, n: int, options: StateSizeOptions, seed: int) -> float:
    random = torch.Generator().manual_seed(1_000_003 * (seed + 1) + n)
    vectors, queries, known = b_then_a(n, options, batch=options.test, random=random)
    return float(((reader(vectors, queries) > 0) == known).double().mean())
