"""The picture of a logit lens: the likeliest next token after every layer."""

from collections.abc import Sequence

from zeitgeist.errors import ExtraMissing
from zeitgeist.evidence.figures import Figure
from zeitgeist.inspection.logit_lens import Lens

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing


def _shown(word: str) -> str:
    """Without spaces around it, or quoted: what draws dies of control characters."""
    bare = word.strip()
    return bare if bare and bare.isprintable() else repr(word)


def lens_chart(lens: Lens, read: Sequence[str], said: Sequence[Sequence[str]]) -> Figure:
    """Layers upwards, tokens to the right; each cell says the likeliest next token.

    Parameters
    ----------
    lens
        Of one text.
    read
        Its tokens, as text.
    said
        Per depth, the likeliest next token of every position, as text.
    """
    names = ["embedding", *(str(layer) for layer in range(len(said) - 1))]
    places = [f"{at} {_shown(token)}" for at, token in enumerate(read)]
    cells = [
        {"layer": name, "token": place, "says": _shown(word), "probability": chance}
        for name, words, chances in zip(names, said, lens.probabilities[:, 0, :, 0], strict=True)
        for place, word, chance in zip(places, words, chances.tolist(), strict=True)
    ]
    base = alt.Chart(
        alt.InlineData(values=cells), width=max(90, 64 * len(read)), height=13 * len(names)
    ).encode(
        x=alt.X("token:N", title=None, sort=places, axis=alt.Axis(orient="top", labelAngle=-30)),
        y=alt.Y("layer:N", title="after layer", sort=names[::-1]),
    )
    colour = alt.Color(
        "probability:Q", title="probability", scale=alt.Scale(scheme="blues", domain=[0, 1])
    )
    ink = alt.condition("datum.probability > 0.6", alt.value("white"), alt.value("#1b1b1b"))
    chart = alt.layer(
        base.mark_rect().encode(color=colour),
        base.mark_text(fontSize=9).encode(text="says:N", color=ink),
    )
    return Figure(
        "lens",
        "What the model would say after each layer",
        "The likeliest next token if the model stopped there; dark: it is sure of it.",
        chart,
    )
