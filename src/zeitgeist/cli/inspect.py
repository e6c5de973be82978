"""``zeitgeist inspect``: what is inside a model."""

from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from zeitgeist.cli import inspect_circuit, inspect_heads, inspect_truth

app = App(name="inspect", help="Look inside a model: where what flows, and what it would cost.")
app.command(inspect_truth.app)
app.command(inspect_circuit.app)
app.command(inspect_heads.app)


@app.default
def overview(
    model: str,
    /,
    *,
    sentence: str = "The capital of France is the city of",
    texts: Path | None = None,
    questions: str = "",
    windows: int = 4,
    length: int = 128,
    json: bool = False,
    picture: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Look at a model from a distance: sinks, norms of its layers, and what each would say.

    Parameters
    ----------
    model
        A directory, hub:org/name or pypi:package.
    sentence
        What the logit lens is on.
    texts
        What heads are scanned on, .txt or .jsonl; default: the help topics of Python.
    questions
        A .jsonl or .csv of questions with gold answers, or a ready set such as capitals: also say
        where the model's states tell its wrong answers from right ones.
    windows
        How many windows of the texts.
    length
        Tokens of each window.
    json
        Print machine-readable rows.
    picture
        Draw the lens, and the map of the questions, as .png or .svg.
    overwrite
        Replace an existing picture.
    """
    from zeitgeist.cli.opening import check_texts
    from zeitgeist.cli.pictures import check_picture, write_picture

    check_picture(picture, overwrite=overwrite)
    given = None if texts is None else ["\n".join(_texts(texts))]
    opened, tokenizer = _opened(model)
    check_texts(opened, tokenizer, [sentence], "--sentence")

    from zeitgeist.inspection.overview import overview as look

    seen = look(
        opened, tokenizer, sentence, given, questions or None, windows=windows, length=length
    )
    if json:
        print(dumps(seen.told(), indent=2))
    else:
        _print_overview(seen)
    if picture is not None:
        from zeitgeist.inspection.lens_charts import overview_chart

        write_picture(overview_chart(seen), picture)


def _print_overview(seen: Any) -> None:
    shape = seen.model
    print(
        f"{shape['class']} ({shape['layout']}): {shape['layers']} layers, {shape['heads']} heads "
        f"({shape['kv_heads']} for keys and values), width {shape['width']}, "
        f"{shape['vocabulary']:,} tokens, {shape['parameters'] / 1e6:,.1f} M parameters"
    )
    for row in seen.heads.sinks[:3]:
        tokens = ", ".join(map(repr, row.tokens))
        print(f"sink at position {row.position} in {row.share:.0%} of windows: {tokens}")
    if not seen.heads.sinks:
        print("no token is a sink")
    for row in seen.heads.massive[:3]:
        print(
            f"massive coordinate {row.coordinate} in layers {row.first} to {row.last}: "
            f"{row.value:,.0f} after layer {row.largest}, {row.ratio:,.0f} times the median"
        )
    if seen.known is not None:
        print(
            "{right} of {answers} answers are right; states tell which best after layer {layer} at "
            "{position}: AUC {auc:.2f} (shuffled labels {shuffled:.2f}, p = {p:.2f})".format(
                **seen.known
            )
        )
    print(f"\n{seen.heads.options.windows} windows of {seen.heads.options.length} tokens; ", end="")
    print(f"next token of {''.join(seen.read)!r}")
    print("layer  on sinks  dormant  |sink|  |median|  would say            p  from the end")
    for row in seen.layers:
        sink = "-" if row.sink is None else f"{row.sink:,.0f}"
        print(
            f"{row.layer:5d} {row.sink_mass:9.2f} {row.dormant:8d} {sink:>7s} {row.median:9,.0f}  "
            f"{row.says!r:16.16s} {row.probability:5.2f} {row.kl:9.2f} nats"
        )


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
    from zeitgeist.cli.opening import check_texts
    from zeitgeist.errors import InputInvalid, OutputExists

    wanted = numbers("--layers", layers)
    at = positions if positions == "last" else numbers("--positions", positions)
    if output.suffix != ".safetensors":
        raise InputInvalid(f"the output '{output}' is no .safetensors", mend="name it so")
    if output.is_dir() or any(parent.is_file() for parent in output.parents):
        raise InputInvalid(f"the output '{output}' can be no file", mend="choose another name")
    if output.exists() and not overwrite:
        raise OutputExists(
            f"the output '{output}' is already there", mend="choose another name or --overwrite"
        )
    if batch_size < 1:
        raise InputInvalid(f"--batch-size is {batch_size}", mend="give 1 or more")
    named_sites = [name.strip() for name in sites.split(",") if name.strip()]
    if not named_sites:
        raise InputInvalid(f"--sites {sites!r} names none", mend="such as resid_post,z")
    rows = _texts(texts)

    from safetensors.torch import save_file

    from zeitgeist.activations.texts import capture_texts

    opened, tokenizer = _opened(model)
    check_texts(opened, tokenizer, rows, texts)
    found = capture_texts(
        opened,
        tokenizer,
        rows,
        named_sites,
        layers=wanted,
        positions=at or "last",
        batch_size=batch_size,
    )
    named = {k if isinstance(k, str) else f"{k[0]}.{k[1]}": x for k, x in found.items()}
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial")
    save_file({name: x.contiguous() for name, x in named.items()}, partial)
    partial.replace(output)
    for name, x in named.items():
        print(f"{name:24s} {' x '.join(map(str, x.shape))}")
    print(output)


def _opened(model: str) -> tuple[Any, Any]:
    """A model in the precision it was saved in, and its tokenizer."""
    from zeitgeist.cli.opening import open_model

    return open_model(model, "auto")


def _texts(path: Path) -> list[str]:
    from zeitgeist.cli.text_files import json_texts, lines_of
    from zeitgeist.errors import InputInvalid

    if path.suffix not in (".txt", ".jsonl"):
        raise InputInvalid("the texts are no .txt or .jsonl", origin=path, mend="name them so")
    return lines_of(path) if path.suffix == ".txt" else json_texts(path)


def _size(count: int) -> str:
    scaled = float(count)
    for unit in ("B", "kB", "MB"):
        if scaled < 1000:
            return f"{scaled:.3g} {unit}"
        scaled /= 1000
    return f"{scaled:.3g} GB"
