"""``zeitgeist inspect``: what is inside a model."""

from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from zeitgeist.cli import inspect_circuit, inspect_heads, inspect_truth

app = App(name="inspect", help="Look inside a model: where what flows, and what it would cost.")
app.command(inspect_truth.app)
app.command(inspect_circuit.app)
app.command(inspect_heads.app)


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


@app.command
def capture(
    model: str,
    texts: Path,
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    sites: str = "resid_post",
    layers: str = "",
    positions: str = "last",
    batch_size: int = 8,
    overwrite: bool = False,
) -> None:
    """Write what chosen sites hold for each text of a file, as safetensors.

    Parameters
    ----------
    model
        A directory, hub:org/name or pypi:package.
    texts
        One per line (.txt), or .jsonl with a "text" in each line.
    output
        The file to write: a tensor per site and layer, texts x positions x ....
    sites
        Such as resid_post,z, or paths of modules.
    layers
        Such as 0,8-16; default: all.
    positions
        last, or tokens counted from the start, such as 0,1.
    batch_size
        Texts at a time.
    overwrite
        Replace an existing output.
    """
    from zeitgeist.cli.numbers import numbers
    from zeitgeist.errors import InputInvalid, OutputExists

    wanted = numbers("--layers", layers)
    at = positions if positions == "last" else numbers("--positions", positions)
    if output.suffix != ".safetensors":
        raise InputInvalid(f"the output '{output}' is no .safetensors", mend="name it so")
    if output.exists() and not overwrite:
        raise OutputExists(f"the output '{output}' is already there", mend="choose another name")
    rows = _texts(texts)

    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from zeitgeist.activations.texts import capture_texts
    from zeitgeist.checkpoints import resolve

    place = resolve(model)
    opened = AutoModelForCausalLM.from_pretrained(place, dtype="auto", local_files_only=True)
    found = capture_texts(
        opened.eval().to("cuda" if torch.cuda.is_available() else "cpu"),
        AutoTokenizer.from_pretrained(place, local_files_only=True),
        rows,
        sites.split(","),
        layers=wanted,
        positions=at or "last",
        batch_size=batch_size,
    )
    named = {k if isinstance(k, str) else f"{k[0]}.{k[1]}": x for k, x in found.items()}
    partial = output.with_name(f".{output.name}.partial")
    save_file({name: x.contiguous() for name, x in named.items()}, partial)
    partial.replace(output)
    for name, x in named.items():
        print(f"{name:24s} {' x '.join(map(str, x.shape))}")
    print(output)


def _texts(path: Path) -> list[str]:
    import json

    from zeitgeist.errors import InputInvalid

    if path.suffix not in (".txt", ".jsonl"):
        raise InputInvalid("the texts are no .txt or .jsonl", origin=path, mend="name them so")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputInvalid(f"cannot be read: {error}", origin=path, mend="give UTF-8") from error
    if path.suffix == ".txt":
        return lines
    found = []
    for number, line in enumerate(lines, 1):
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError):
            text = None
        if not isinstance(text, str):
            raise InputInvalid(f'line {number} has no "text"', origin=path, mend="give one")
        found.append(text)
    return found


def _size(count: int) -> str:
    scaled = float(count)
    for unit in ("B", "kB", "MB"):
        if scaled < 1000:
            return f"{scaled:.3g} {unit}"
        scaled /= 1000
    return f"{scaled:.3g} GB"
