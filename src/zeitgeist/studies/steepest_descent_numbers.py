"""What is measured of steepest descent: equalities, and how the best rate moves with width.

Bernstein, Newhouse, arXiv 2409.20325. Two parts (column ``part``):

    equalities  in float64: known optimisers against steepest descent under their norm
    transfer    a small network that predicts characters, at several widths, with a sweep of rates

The network: 8 characters, an embedding of width/16 each, two hidden layers of relu, an output head,
biases. All rates of a sweep train at once, as one batch of networks. Every way has the same number
of rates, a factor 2 apart, momentum .9 and a rate that falls linearly to 0.

L rates, B windows, V characters, w width
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from zeitgeist.evidence import Group, Measured
from zeitgeist.evidence.study import Setting
from zeitgeist.optimizers.norms import NORMS, direction, dual_norm, duality_map, norm
from zeitgeist.optimizers.presets import preset
from zeitgeist.optimizers.steepest import Steepest
from zeitgeist.studies.prose import documents

CONTEXT, CHARACTERS, HELD_OUT = 8, 96, 2048
MOMENTUM = 0.9
TRANSFER = ("sgd", "frobenius", "sign", "spectral", "modular")
ROLES: Mapping[str, Mapping[str, str]] = {
    "frobenius": {"embedding": "frobenius", "linear": "frobenius", "bias": "frobenius"},
    "sign": {"embedding": "max_entry", "linear": "max_entry", "bias": "max_entry"},
    "spectral": {"embedding": "spectral", "linear": "spectral", "bias": "frobenius"},
    "modular": {"embedding": "row_rms", "linear": "rms_spectral", "bias": "rms"},
}
"""The norm of each role; a bias has no singular values but its length."""
CENTRE: Mapping[str, float] = {
    "sgd": 1.0,
    "frobenius": -1.0,
    "sign": -7.0,
    "spectral": -3.5,
    "modular": -4.0,
}
"""log2 of the middle rate of each sweep."""


def applies(arm: str, setting: Setting) -> bool:
    """Which arms a part has.

    Examples
    --------
    >>> [applies(arm, {"part": "transfer"}) for arm in ("identity", "sign")]
    [False, True]
    """
    return arm in {"equalities": ("identity",), "transfer": TRANSFER}[str(setting["part"])]


def measure(arm: str, group: Group) -> Iterable[Measured]:
    """The numbers of one arm in one part.

    Equalities, by ``equality``: ``error``. Transfer, by ``width``: ``loss`` (also by ``rate``, in
    log2), ``best_loss``, ``best_rate`` (log2); over all widths ``spread``, ``beyond_factor_two``,
    ``transfer_cost`` and ``at_edge``.
    """
    if group.setting["part"] == "equalities":
        return [
            Measured("error", error, {"equality": name})
            for name, error in equalities(group.seed).items()
        ]
    return list(_transfer(arm, group.seed, group.parameters))


def equalities(seed: int) -> dict[str, float]:
    """Largest difference of each pair that should be equal, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def gaussian(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "adam-sign": _one_step("adam", gaussian(9, 6), torch.sign),
        "adam-torch": _against_torch(gaussian),
        "shampoo-polar": _one_step("shampoo", gaussian(12, 7), _polar),
        "shampoo-low-rank": _one_step(
            "shampoo", gaussian(9, 3) @ gaussian(3, 8), lambda g: duality_map(g, "spectral")
        ),
        "muon-polar": _one_step(
            "muon", gaussian(12, 7), lambda g: (12 / 7) ** 0.5 * _polar(g), orthogonalise="exact"
        ),
        "prodigy-recursion": _prodigy(gaussian),
        "optimum": _optimum(gaussian),
        "hoelder": max(_hoelder(gaussian(5, 8), kind) for kind in NORMS),
    }


def _one_step(name: str, g: Tensor, expected: Callable[[Tensor], Tensor], **options: Any) -> float:
    """A preset without averages moves by -expected(G) at rate 1."""
    p = nn.Parameter(torch.zeros_like(g))
    p.grad = g.clone()
    preset(name, [p], averages=False, lr=1.0, **options).step()
    return float((p.detach() + expected(g)).abs().max())


def _polar(g: Tensor) -> Tensor:
    from scipy.linalg import polar

    return torch.from_numpy(polar(g.numpy())[0])


def _against_torch(gaussian: Callable[..., Tensor]) -> float:
    start = gaussian(4, 3)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    pair = preset("adam", [ours], lr=0.1), torch.optim.Adam([theirs], lr=0.1)
    for _ in range(20):
        g = gaussian(4, 3)
        for p, optimizer in zip((ours, theirs), pair, strict=True):
            p.grad = g.clone()
            optimizer.step()
    return float((ours - theirs).detach().abs().max())


def _prodigy(gaussian: Callable[..., Tensor], steps: int = 60) -> float:
    """On a quadratic, against w - eta sign(g), eta = max(eta, <g, w0 - w> / |g|_1)."""
    a, target = gaussian(12, 6), gaussian(6)
    p = nn.Parameter(torch.zeros(6, dtype=torch.float64))
    w, start, eta = p.detach().clone(), p.detach().clone(), 1e-6
    optimizer = preset("prodigy", [p], averages=False)
    worst = 0.0
    for _ in range(steps):
        p.grad = a.T @ (a @ (p.detach() - target))
        optimizer.step()
        g = a.T @ (a @ (w - target))
        following = max(eta, float(g @ (start - w) / g.abs().sum()))
        w, eta = w - eta * g.sign(), following
        worst = max(worst, float((p.detach() - w).abs().max()))
    return worst


def _optimum(gaussian: Callable[..., Tensor], lam: float = 3.0) -> float:
    """<G, D> + lam/2 |D|^2 of an unnormalised step against -|G|*^2 / (2 lam), relative."""
    kinds = ("spectral", "max_entry", "rms_spectral", "row_rms")
    parameters = [nn.Parameter(torch.zeros(5, 4, dtype=torch.float64)) for _ in kinds]
    for p in parameters:
        p.grad = gaussian(5, 4)
    groups = [{"params": [p], "norm": kind} for p, kind in zip(parameters, kinds, strict=True)]
    told: dict[str, Any] = {"momentum": 0.0, "orthogonalise": "exact", "normalised": False}
    Steepest(groups, lr=1 / lam, **told).step()
    pairs = [(p.grad, p.detach(), k) for p, k in zip(parameters, kinds, strict=True)]
    gained = sum(float((g * d).sum()) for g, d, _ in pairs if g is not None)
    longest = max(float(norm(d, kind)) for _, d, kind in pairs)
    dual = sum(float(dual_norm(g, kind)) for g, _, kind in pairs if g is not None)
    best = -(dual**2) / (2 * lam)
    return abs((gained + lam / 2 * longest**2) / best - 1)


def _hoelder(g: Tensor, kind: str) -> float:
    t, dual = duality_map(g, kind), float(dual_norm(g, kind))
    return max(abs(float((g * t).sum()) / dual - 1), abs(float(norm(t, kind)) - 1))


def _transfer(arm: str, seed: int, numbers: Mapping[str, Any]) -> Iterator[Measured]:
    widths, count = numbers["widths"], numbers["rates"]
    rates = [CENTRE[arm] + i - (count - 1) / 2 for i in range(count)]
    curves = {
        width: train(arm, width, rates, seed, numbers["steps"], numbers["batch"])
        for width in widths
    }
    best = {}
    for width, losses in curves.items():
        for rate, loss in zip(rates, losses, strict=True):
            yield Measured("loss", loss, {"width": width, "rate": rate})
        least = min(range(count), key=losses.__getitem__)
        best[width] = lowest(rates, losses)
        yield Measured("best_loss", losses[least], {"width": width})
        yield Measured("best_rate", best[width], {"width": width})
        yield Measured("at_edge", float(least in (0, count - 1)), {"width": width})
    spread = max(best.values()) - min(best.values())
    yield Measured("spread", spread)
    yield Measured("beyond_factor_two", spread - 1.0)
    widest = curves[max(widths)]
    carried = at_rate(rates, widest, best[min(widths)])
    yield Measured("transfer_cost", carried - min(widest))


def lowest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate of least loss, by the parabola through the lowest point and its neighbours.

    Examples
    --------
    >>> lowest([0.0, 1.0, 2.0], [1.0, 0.0, 1.0]), lowest([0.0, 1.0, 2.0], [0.0, 1.0, 2.0])
    (1.0, 0.0)
    """
    i = min(range(len(losses)), key=losses.__getitem__)
    around = losses[max(i - 1, 0) : i + 2]
    if len(around) < 3 or not all(map(math.isfinite, around)):
        return rates[i]
    left, middle, right = around
    bend = left - 2 * middle + right
    return rates[i] + ((left - right) / (2 * bend) if bend > 0 else 0.0)


def at_rate(rates: Sequence[float], losses: Sequence[float], rate: float) -> float:
    """The loss at a rate between those tried, straight in log2.

    Examples
    --------
    >>> at_rate([0.0, 1.0, 2.0], [1.0, 2.0, 4.0], 1.5)
    3.0
    """
    i = min(max(math.floor(rate - rates[0]), 0), len(rates) - 2)
    part = rate - rates[i]
    return (1 - part) * losses[i] + part * losses[i + 1] if part else losses[i]


def train(
    arm: str, width: int, rates: Sequence[float], seed: int, steps: int, batch: int
) -> list[float]:
    """Held-out loss (nats per character) after training at every rate.

    Parameters
    ----------
    arm
        One of `TRANSFER`.
    width
        Of the hidden layers.
    rates
        log2.
    seed
        Of the text, the start and the order of windows.
    steps, batch
        How long.

    Returns
    -------
    list of float
        A rate that diverged has the loss of knowing nothing, or what it had if that is more.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    text, held_out = (_letters(seed, part).to(device) for part in ("train", "evaluation"))
    generator = torch.Generator().manual_seed(seed)
    weights = {k: w.to(device) for k, w in _start(width, len(rates), generator).items()}
    averages = {name: torch.zeros_like(w) for name, w in weights.items()}
    sizes = 2.0 ** torch.tensor(rates, device=device).view(-1, 1, 1)
    for step in range(steps):
        places = torch.randint(len(text) - CONTEXT, (batch,), generator=generator)
        for w in weights.values():
            w.requires_grad_()
        loss = losses_of(weights, *_windows(text, places.to(device))).sum()
        gradients = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            for (name, w), g in zip(weights.items(), gradients, strict=True):
                averages[name].lerp_(g, 1 - MOMENTUM)
                moved = _towards(arm, name, averages[name])
                weights[name] = w.detach() - sizes * (1 - step / steps) * moved
    places = torch.linspace(0, len(held_out) - CONTEXT - 1, HELD_OUT).long().to(device)
    with torch.no_grad():
        found = losses_of(weights, *_windows(held_out, places))
    # What ran away has no number; any large one says that it is worst.
    return found.nan_to_num(nan=99.0, posinf=99.0).clamp(max=99.0).tolist()


def losses_of(
    weights: Mapping[str, Float[Tensor, "L _ _"]],
    windows: Int64[Tensor, "B 8"],
    following: Int64[Tensor, " B"],
) -> Float[Tensor, " L"]:
    """The mean loss of every network of the batch."""
    x = weights["embedding"][:, windows].flatten(2)
    for layer in ("first", "second"):
        x = torch.relu(_layer(weights, layer, x))
    logits = _layer(weights, "head", x)
    spread = following.expand(len(logits), -1)
    return (
        F.cross_entropy(logits.flatten(0, 1), spread.flatten(), reduction="none")
        .view(len(logits), -1)
        .mean(1)
    )


def _layer(weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return torch.baddbmm(weights[f"{name}_bias"], x, weights[name].mT)


def _start(width: int, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """The same start for every rate: entries of N(0, 2 / inputs) before a relu."""
    part = max(1, width // 16)
    shapes = {
        "embedding": (CHARACTERS, part, 1.0),
        "first": (width, CONTEXT * part, (2 / (CONTEXT * part)) ** 0.5),
        "second": (width, width, (2 / width) ** 0.5),
        "head": (CHARACTERS, width, (1 / width) ** 0.5),
    }
    made = {
        name: size * torch.randn(m, n, generator=generator) for name, (m, n, size) in shapes.items()
    }
    for name in ("first", "second", "head"):
        made[f"{name}_bias"] = torch.zeros(1, len(made[name]))
    return {name: w.expand(count, *w.shape).clone() for name, w in made.items()}


def _towards(arm: str, name: str, average: Tensor) -> Tensor:
    """The update of norm 1 of a batch of layers; SGD's is the average itself."""
    if arm == "sgd":
        return average
    role = "bias" if name.endswith("bias") else "embedding" if name == "embedding" else "linear"
    kind = ROLES[arm][role]
    return direction(average, kind, method="polar_express", dtype=torch.float32)


@cache
def _letters(seed: int, part: str) -> Int64[Tensor, " n"]:
    """Printable ASCII as 0 to 95; what is not, as a space."""
    text = "\n".join(documents(seed)[part])
    codes = torch.tensor([ord(letter) - 32 for letter in text])
    return torch.where((codes >= 0) & (codes < CHARACTERS), codes, 0)


def _windows(text: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    windows = text[places[:, None] + torch.arange(CONTEXT, device=places.device)]
    return windows, text[places + CONTEXT]
