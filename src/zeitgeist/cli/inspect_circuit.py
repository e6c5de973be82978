"""``zeitgeist inspect circuit``."""

from cyclopts import App

app = App(
    name="circuit", help="Whether a set of edges does a task: find it, run it alone, test it."
)
