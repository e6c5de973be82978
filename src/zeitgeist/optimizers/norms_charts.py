"""The picture of `zeitgeist norms`: norms by layer, and how singular values are spread."""

from collections.abc import Sequence

from zeitgeist.errors import ExtraMissing
from zeitgeist.evidence.figures import Figure
from zeitgeist.optimizers.diagnosis import LayerNorms, whole_histogram

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#F0E442", "#999999",
           "#000000")  # fmt: skip


def norms_chart(
    layers: Sequence[LayerNorms], kinds: Sequence[str], *, dual: bool = False
) -> Figure:
    """Every norm over the matrices in order, and the singular values of all of them.

    Parameters
    ----------
    layers
        Of one model.
    kinds
        The norms that were asked for.
    dual
        Draw the dual norms.
    """
    matrices = [layer for layer in layers if len(layer.shape) >= 2]
    points = [
        {"tensor": layer.name, "place": place, "norm": kind, "value": value}
        for place, layer in enumerate(matrices)
        for kind, value in (layer.dual if dual else layer.norms).items()
        if value > 0
    ]
    word = "dual norm" if dual else "norm"
    scale = alt.Scale(domain=list(kinds), range=list(COLOURS[: len(kinds)]))
    by_layer = (
        alt.Chart(alt.InlineData(values=points), width=560, height=240)
        .mark_point(filled=True, size=30, opacity=0.9)
        .encode(
            x=alt.X("place:Q", title="matrix, in the order of the file"),
            y=alt.Y("value:Q", title=f"{word} (log)", scale=alt.Scale(type="log")),
            color=alt.Color("norm:N", title=None, scale=scale),
            shape=alt.Shape("norm:N", title=None, scale=alt.Scale(domain=list(kinds))),
            tooltip=["tensor:N", "norm:N", alt.Tooltip("value:Q", format=".3~e")],
        )
    )
    # An orthogonalised update has all its singular values at 1.
    before = [
        {"from": low, "to": high, "share": share} for low, high, share in whole_histogram(layers)
    ]
    title = "singular value / the largest of its matrix (log; the first bar has all below)"
    x_scale = alt.Scale(type="log", domain=[1e-4, 1.0])
    spread = (
        alt.Chart(alt.InlineData(values=before), width=560, height=160)
        .mark_bar(color=COLOURS[1])
        .encode(
            x=alt.X("from:Q", title=title, scale=x_scale, axis=alt.Axis(format=".0e")),
            x2="to:Q",
            y=alt.Y("share:Q", title="share", axis=alt.Axis(format="%")),
            y2=alt.value(160),
        )
    )
    line = alt.Chart(alt.InlineData(values=[{"at": 1.0}])).mark_rule(
        strokeDash=[4, 3], strokeWidth=2
    )
    panels: list[alt.Chart | alt.LayerChart | alt.FacetChart] = [by_layer]
    if before:
        panels.append(alt.layer(spread, line.encode(x=alt.X("at:Q", title=title, scale=x_scale))))
    return Figure(
        "norms",
        f"How large each layer's update is, under every {word}",
        "Below: singular values before orthogonalising (bars); afterwards all lie at the dashed "
        "line.",
        alt.vconcat(*panels).resolve_scale(color="independent"),
    )
