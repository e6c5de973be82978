"""``zeitgeist inspect``: what is inside a model."""

from dataclasses import asdict
from json import dumps

from cyclopts import App

app = App(name="inspect", help="Look inside a model: where what flows, and what it would cost.")


@app.command
def sites(model: str, /, *, batch: int = 1, tokens: int = 128, json: bool = False) -> None:
    """List the places that can be captured and patched, with shapes and bytes; runs nothing.

    Parameters
    ----------
    model
        A directory, hub:org/name or pypi:package.
    batch
        Rows of the run that the shapes are of.
    tokens
        Of each row.
    json
        Print machine-readable rows.
    """
    from zeitgeist.activations.overview import blank, site_table
    from zeitgeist.checkpoints import resolve

    rows = site_table(blank(resolve(model)), batch=batch, tokens=tokens)
    if json:
        print(dumps([asdict(row) for row in rows], indent=2))
        return
    width = 4 + max(len(row.path) for row in rows)
    print(f"{'site':10s} {'module (layer 0)':{width}s} {'shape':22s} {'a layer':>10s} {'all':>11s}")
    for row in rows:
        path = row.path + {"in": " in", "pattern": " *"}.get(row.side, "")
        sizes = f"{_size(row.bytes):>10s} {_size(row.bytes * row.layers):>11s}"
        print(f"{row.site:10s} {path:{width}s} {' x '.join(map(str, row.shape)):22s} {sizes}")
    print(f"{rows[0].layers} layers; * weights, by plain attention; any module's path works too")


def _size(count: int) -> str:
    scaled = float(count)
    for unit in ("B", "kB", "MB"):
        if scaled < 1000:
            return f"{scaled:.3g} {unit}"
        scaled /= 1000
    return f"{scaled:.3g} GB"
