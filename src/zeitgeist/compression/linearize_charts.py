"""Pictures of `zeitgeist linearize`: what teaching missed and where, and what a token costs."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from zeitgeist.errors import ExtraMissing
from zeitgeist.evidence.figures import Figure

if TYPE_CHECKING:
    from zeitgeist.compression.linearize import LinearizedReport
    from zeitgeist.compression.linearize_costs import Evaluation

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing

COLOURS = ("#0072B2", "#E69F00")
WIDTH, HEIGHT = 320, 220


def teaching_chart(report: "LinearizedReport") -> Figure:
    """Error by layer, error against softmax's entropy, and the window's weight per head.

    Parameters
    ----------
    report
        Of `zeitgeist.compression.linearize.linearize`.
    """
    layers = [
        {"layer": layer, "stage": stage, "error": error, "entropy": entropy}
        for stage, errors in (("before", report.before), ("taught", report.after))
        for layer, (error, entropy) in enumerate(zip(errors, report.entropy, strict=True))
        if error
    ]
    gates = [
        {"layer": layer, "head": head, "gamma": gamma}
        for layer, heads in enumerate(report.gamma)
        for head, gamma in enumerate(heads)
    ]
    stage = alt.Scale(domain=["before", "taught"], range=[*COLOURS])
    log = alt.Scale(type="log")
    base = alt.Chart(alt.InlineData(values=layers), width=WIDTH, height=HEIGHT).encode(
        color=alt.Color("stage:N", title=None, scale=stage),
        shape=alt.Shape("stage:N", title=None, scale=alt.Scale(domain=["before", "taught"])),
        y=alt.Y("error:Q", title="squared error / variance", scale=log),
    )
    by_layer = base.mark_line(point=True).encode(x=alt.X("layer:Q", title="layer"))
    by_entropy = base.mark_point(filled=True, opacity=1).encode(
        x=alt.X("entropy:Q", title="entropy of softmax (nats)", scale=alt.Scale(zero=False))
    )
    heat = (
        alt.Chart(alt.InlineData(values=gates), width=WIDTH, height=HEIGHT)
        .mark_rect()
        .encode(
            x=alt.X("layer:O", title="layer"),
            y=alt.Y("head:O", title="head"),
            color=alt.Color("gamma:Q", title="window", scale=alt.Scale(scheme="cividis")),
        )
    )
    return Figure(
        "teaching",
        "What each layer's linear attention misses",
        "Left: error on validation windows, 1 is as bad as answering the mean. Middle: against how "
        "widely softmax attends. Right: the weight of the window per head, 0.1 at the start.",
        (by_layer | by_entropy | heat).resolve_scale(color="independent"),
    )


def costs_chart(evaluation: "Evaluation") -> Figure:
    """Speed and bytes against context, linearized beside softmax.

    Parameters
    ----------
    evaluation
        Of `zeitgeist.compression.linearize_costs.evaluate`.
    """
    names = ["linearized", "softmax"]
    base = alt.Chart(
        alt.InlineData(values=list(_costs(evaluation))), width=WIDTH, height=HEIGHT
    ).encode(
        x=alt.X("context:Q", title="tokens before", scale=alt.Scale(type="log", base=2)),
        color=alt.Color("model:N", title=None, scale=alt.Scale(domain=names, range=[*COLOURS])),
        strokeDash=alt.StrokeDash("model:N", title=None, scale=alt.Scale(domain=names)),
    )
    speed = base.mark_line(point=True).encode(y=alt.Y("speed:Q", title="tokens / s"))
    kept = base.mark_line(point=True).encode(
        y=alt.Y("bytes:Q", title="bytes kept", scale=alt.Scale(type="log"), axis={"format": "s"})
    )
    least = "never" if evaluation.break_even is None else f"from {evaluation.break_even} tokens on"
    return Figure(
        "costs",
        "What a token costs",
        f"Decoding on this machine, and what is kept between tokens: less than softmax {least}.",
        speed | kept,
    )


def _costs(evaluation: "Evaluation") -> Iterator[dict[str, Any]]:
    for cost in evaluation.costs:
        for model, seconds, size in (
            ("linearized", cost.seconds, cost.bytes),
            ("softmax", cost.seconds_softmax, cost.bytes_softmax),
        ):
            known = {"context": cost.context, "model": model}
            yield {**known, "speed": 1 / seconds, "bytes": size}
