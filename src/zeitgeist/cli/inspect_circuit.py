"""``zeitgeist inspect circuit``."""

from cyclopts import App

app = App(
    name="circuit", help="Find the edges that do a task, run them alone, test them."
)
