"""``zeitgeist inspect heads``."""

from cyclopts import App

app = App(
    name="heads",
    help="Attention sinks, drained values, residual peaks, dormant heads.",
)
