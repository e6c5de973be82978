"""Sinks, drains and peaks of the toy as they form, and the model that can be solved.

Arms are compared from the first record on at which the loss after triggers is at most `LEARNED`:
who has not learned to copy has no reason for a sink. From there to the end of training

    growth       slope of the first token's residual norm behind layer 0, per 1,000 steps
    steadiness   that slope in the second half / in the first half
    logit_slope  slope of the relative logit D against log t
    logit_fit    R^2 of D against log t, less R^2 of D against t

Sink, drain and losses are means over the last three records, at the layer that attends most to the
token before a trigger.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float

from zeitgeist.evidence import Group, Measured
from zeitgeist.inspection.heads_bigram import bigram_table
from zeitgeist.inspection.heads_theory import alpha_flow
from zeitgeist.inspection.heads_toy import LayerRecord, ToyRecord, train_toy
from zeitgeist.inspection.heads_toy_model import Optimiser, ToyOptions

LEARNED = 0.05
LAST = 3
Line = Float[np.ndarray, " t"]


def toy(arm: str, group: Group) -> Iterator[Measured]:
    """Part ``toy``: one arm, trained."""
    known, layers = group.parameters, int(group.setting["layers"])
    optimiser: Optimiser = "sgd" if arm == "sgd" else "adam"
    run = train_toy(
        ToyOptions(
            **known["toy"],
            layers=layers,
            attention="relu" if arm == "relu" else "softmax",
            optimiser=optimiser,
            learning_rate=known["rates"][optimiser][layers],
            seed=group.seed,
        ),
        device="cuda" if torch.cuda.is_available() else "cpu",
        progress=False,
    )
    yield from curves(run.records)
    yield from ends(run.records)
    yield from slopes(run.records)


def ends(records: Sequence[ToyRecord]) -> Iterator[Measured]:
    """What training came to."""
    last = records[-LAST:]
    where = records[-1].copying_layer
    rows = [record.layers[where] for record in last]
    for tokens, name in (("idle", "sink_idle"), ("trigger", "sink_trigger")):
        yield Measured("sink", _mean([getattr(row, name) for row in rows]), {"tokens": tokens})
    yield Measured("drain", 1 - _mean([_ratio(row) for row in rows]))
    yield Measured("copy_loss", _mean([record.copy_loss or 0.0 for record in last]))
    yield Measured("excess", _mean([record.bigram_excess or 0.0 for record in last]))


def slopes(records: Sequence[ToyRecord]) -> Iterator[Measured]:
    """How things grow once copying is learned; nothing where it never is, or only at the end."""
    losses = [record.copy_loss or 0.0 for record in records]
    start = next((i for i, loss in enumerate(losses) if loss <= LEARNED), len(records))
    late = records[start:]
    if len(late) < 6:
        return
    t = np.array([record.step for record in late], float)
    norm = np.array([record.layers[0].stream_first for record in late])
    half = len(late) // 2
    yield Measured("growth", 1000 * slope(t, norm))
    yield Measured(
        "steadiness", slope(t[half:], norm[half:]) / slope(t[: half + 1], norm[: half + 1])
    )
    where = records[-1].copying_layer
    logit = np.array([record.layers[where].sink_logit for record in late], float)
    yield Measured("logit_slope", slope(np.log(t), logit))
    yield Measured("logit_fit", explained(np.log(t), logit) - explained(t, logit))


def curves(records: Sequence[ToyRecord]) -> Iterator[Measured]:
    """Every record, for pictures."""
    where = records[-1].copying_layer
    for record in records:
        at, own = {"step": record.step}, record.layers[where]
        for layer, row in enumerate(record.layers):
            for token, norm in (("first", row.stream_first), ("others", row.stream_others)):
                yield Measured("stream_at", norm, {**at, "layer": layer, "token": token})
        yield Measured("sink_at", own.sink_idle or 0.0, {**at, "tokens": "idle"})
        yield Measured("sink_at", own.sink_trigger or 0.0, {**at, "tokens": "trigger"})
        yield Measured("logit_at", own.sink_logit or 0.0, at)
        yield Measured("value_at", _ratio(own), at)
        yield Measured("copy_at", record.copy_loss or 0.0, at)


def flow(arm: str, group: Group) -> Iterator[Measured]:
    """Part ``theory``: the slope of every alpha against log t, late in the flow.

    Bigrams are those of the toy; the seed draws how often each character was seen, and its value.
    """
    table = bigram_table()
    generator = torch.Generator().manual_seed(group.seed)
    pi = table.marginal.double()
    # log p must be finite: characters that never follow each other do so once in a million.
    p = (table.following.double() + 1e-6).clamp_min(0)
    log_p = (p / p.sum(1, keepdim=True)).log()
    seen = torch.multinomial(pi, 48, replacement=True, generator=generator).bincount(
        minlength=len(pi)
    )
    value = 10 * torch.rand(len(pi), generator=generator, dtype=torch.float64)
    log_t, alpha = alpha_flow(pi, log_p, 0 * pi, seen * value, 48.0, until=40.0)
    late = len(log_t) // 4
    slopes_ = (alpha[-1] - alpha[-late]) / (log_t[-1] - log_t[-late])
    yield Measured("half", float((pi * slopes_).sum()) - 0.5)


def slope(x: Line, y: Line) -> float:
    """Least squares.

    Examples
    --------
    >>> slope(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0]))
    2.0
    """
    centred = x - x.mean()
    return float(centred @ (y - y.mean()) / (centred @ centred))


def explained(x: Line, y: Line) -> float:
    """Share of the variance of y that a line in x explains.

    Examples
    --------
    >>> round(explained(np.array([0.0, 1.0, 2.0]), np.array([1.0, 3.0, 5.0])), 6)
    1.0
    """
    total = float(np.square(y - y.mean()).sum())
    left = y - y.mean() - slope(x, y) * (x - x.mean())
    return 1 - float(np.square(left).sum()) / total if total > 0 else 0.0


def _ratio(row: LayerRecord) -> float:
    return (row.value_first or 0.0) / (row.value_others or 1.0)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
