"""``zeitgeist inspect truth``."""

from cyclopts import App

app = App(
    name="truth",
    help="Whether a model knows that its answer is wrong.",
)
