"""``zeitgeist drop``: score, apply and sweep."""

from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from zeitgeist.cli.pictures import check_picture, write_picture

if TYPE_CHECKING:
    from zeitgeist.compression.drop_ranking import DropOptions
    from zeitgeist.compression.drop_sweep import SweepRow
    from zeitgeist.compression.layer_scores import LayerScores
    from zeitgeist.training import LoraSettings

app = App(name="drop", help="Take out attention layers that a model hardly needs, no training.")

Metric = Literal["cosine", "angular", "perplexity"]
Output = Annotated[Path | None, Parameter(name=["--output", "-o"])]


@app.command
def score(
    model: str,
    /,
    *,
    text: str,
    samples: int = 256,
    length: int = 2048,
    output: Output = None,
    json: bool = False,
) -> None:
    """Say how little each attention layer, MLP and block changes a text's residual stream.

    Parameters
    ----------
    model
        A directory, hub:org/name or pypi:package.
    text
        Calibration text: a file, or the text itself.
    samples
        Windows of it, evenly spaced; fewer where it has fewer.
    length
        Tokens of each window.
    output
        A picture to write: .png or .svg.
    json
        Print a machine-readable report.
    """
    from zeitgeist.compression.drop import score as score_model

    check_picture(output)
    found = score_model(model, text, _options(samples, length))
    table = {
        kind: [float(value) for value in found.similarity(kind)]
        for kind in ("attention", "mlp", "block")
    }
    later = {
        kind: [float(value) for value in found.similarity(kind, without_first=True)]
        for kind in table
    }
    ranks = {kind: found.rank_interval(kind) for kind in table}
    if json:
        order = {kind: [int(i) for i in found.ranking(kind)] for kind in table}
        joint = [[kind, int(i)] for kind, i in found.joint_ranking()]
        told = {
            "similarity": table,
            "similarity_without_first": later,
            "ranking": order,
            "rank_interval": ranks,
            "joint": joint,
        }
        print(dumps(told, indent=2))
    else:
        _tell_scores(found, table, later, ranks)
    if output is not None:
        from zeitgeist.compression.drop_charts import similarity_chart

        write_picture(similarity_chart(table), output)


@app.command
def apply(
    model: str,
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    text: str | None = None,
    attention: int = 0,
    mlp: int = 0,
    blocks: int = 0,
    joint: int = 0,
    layers: str = "",
    samples: int = 256,
    length: int = 2048,
    metric: Metric = "cosine",
    iterative: bool = False,
    protect_first: int = 0,
    protect_last: int = 0,
    heal: int = 0,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Write a model without the layers that a text needs least.

    Parameters
    ----------
    model
        A directory, hub:org/name or pypi:package.
    output
        Directory to make.
    text
        Calibration text: a file, or the text itself. Not needed with --layers alone.
    attention
        How many attention layers go.
    mlp
        How many MLPs go.
    blocks
        How many whole blocks go.
    joint
        How many attention layers and MLPs go, from one list.
    layers
        Those that go by name, such as 25,26,mlp:3,block:7; a number alone is attention.
    samples
        Windows of the text, evenly spaced; fewer where it has fewer.
    length
        Tokens of each window.
    metric
        What ranks sub-layers: cosine, angular or perplexity.
    iterative
        Score again after each one that goes.
    protect_first
        Layers at the beginning that stay whole.
    protect_last
        Layers at the end that stay whole.
    heal
        Steps of LoRA training on the text afterwards; 0: none.
    overwrite
        Replace an existing output.
    json
        Print a machine-readable report.
    """
    named = _named(layers)
    from zeitgeist.compression.drop import drop

    report = drop(
        model,
        output,
        attention=attention,
        mlp=mlp,
        blocks=blocks,
        joint=joint,
        layers=named,
        text=text,
        options=_options(samples, length, metric, iterative, protect_first, protect_last),
        heal=_lora(heal),
        overwrite=overwrite,
    )
    if json:
        print(dumps(asdict(report), indent=2))
        return
    print(f"without attention: {_listed(report.attention)}; without MLP: {_listed(report.mlp)}")
    print(f"parameters  {report.parameters_before:,} -> {report.parameters_after:,}")
    print(f"cache bytes per token  {report.kv_bytes_before:,} -> {report.kv_bytes_after:,}")
    if report.perplexity_before is not None:
        print(
            f"perplexity of the calibration text  {report.perplexity_before:.4g} -> "
            f"{report.perplexity_after:.4g}"
        )
    print(report.out)


@app.command
def sweep(
    model: str,
    /,
    *,
    text: str,
    evaluation: str | None = None,
    ways: str = "attention,mlp,blocks,joint",
    counts: str = "1,2,4,8",
    context: int = 512,
    samples: int = 32,
    length: int = 512,
    metric: Metric = "cosine",
    iterative: bool = False,
    protect_first: int = 0,
    protect_last: int = 0,
    heal: int = 0,
    output: Output = None,
    json: bool = False,
) -> None:
    """Measure what each way of dropping costs and saves: perplexity, speed, cache.

    Parameters
    ----------
    model
        A directory, hub:org/name or pypi:package.
    text
        Calibration text: a file, or the text itself.
    evaluation
        Text to score; default: the second half of the calibration windows.
    ways
        What goes: attention, mlp, blocks, joint.
    counts
        How many.
    context
        Tokens of prefill, and before decoding.
    samples
        Windows of each text, evenly spaced; fewer where it has fewer.
    length
        Tokens of each window.
    metric
        What ranks sub-layers: cosine, angular or perplexity.
    iterative
        Score again after each one that goes.
    protect_first
        Layers at the beginning that stay whole.
    protect_last
        Layers at the end that stay whole.
    heal
        Steps of LoRA training on the calibration text for each model; 0: none.
    output
        A picture to write: .png or .svg.
    json
        Print a machine-readable report.
    """
    numbers = _numbers(counts)
    check_picture(output)
    from zeitgeist.compression.drop_sweep import pareto
    from zeitgeist.compression.drop_sweep import sweep as run_sweep

    rows = run_sweep(
        model,
        text,
        ways=ways.split(","),
        counts=numbers,
        options=_options(samples, length, metric, iterative, protect_first, protect_last),
        evaluation=evaluation,
        context=context,
        heal=_lora(heal),
    )
    best = pareto(rows)
    if json:
        print(dumps([{**asdict(row), "pareto": row in best} for row in rows], indent=2))
    else:
        _tell_rows(rows, best)
    if output is not None:
        from zeitgeist.compression.drop_charts import pareto_chart

        write_picture(pareto_chart(rows), output)


def _tell_rows(rows: "list[SweepRow]", best: "list[SweepRow]") -> None:
    print(
        f"{'dropped':14s} {'perplexity':>10s} {'top-1':>6s} {'prefill/s':>10s} {'decode/s':>9s} "
        f"{'cache B/token':>13s} {'parameters':>13s}"
    )
    for row in rows:
        name = row.way if row.way == "whole" else f"{row.count} {row.way}"
        healed = "" if row.healed is None else f"  healed {row.healed:.4g}"
        star = " *" if row in best else ""
        print(
            f"{name:14s} {row.perplexity:10.4g} {row.top1:6.3f} {row.prefill:10.0f} "
            f"{row.decode:9.1f} {row.kv_bytes:13,} {row.parameters:13,}{star}{healed}"
        )
    print("* no other row is better in both perplexity and decoding speed")


def _tell_scores(
    found: "LayerScores",
    table: dict[str, list[float]],
    later: dict[str, list[float]],
    ranks: dict[str, list[tuple[int, int]]],
) -> None:
    print("1 - similarity of input and output, * without position 0; between which ranks (95 %)")
    print("layer" + "".join(f"{kind:>11s}          *   ranks" for kind in table))
    for layer in range(len(later["block"])):
        print(
            f"{layer:5d}"
            + "".join(
                f"{1 - table[kind][layer]:11.5f}{1 - later[kind][layer]:11.5f}{low:5d}-{high:<2d}"
                for kind in table
                for low, high in [ranks[kind][layer]]
            )
        )
    for kind in table:
        first = " ".join(str(int(i)) for i in found.ranking(kind)[:8])
        print(f"first to go, {kind}: {first}")


def _options(
    samples: int,
    length: int,
    metric: Metric = "cosine",
    iterative: bool = False,
    protect_first: int = 0,
    protect_last: int = 0,
) -> "DropOptions":
    from zeitgeist.compression.drop_ranking import DropOptions

    return DropOptions(samples, length, metric, iterative, protect_first, protect_last)


def _lora(steps: int) -> "LoraSettings | None":
    from zeitgeist.training import LoraSettings

    return LoraSettings(steps=steps) if steps else None


def _named(layers: str) -> list[tuple[str, int]]:
    from zeitgeist.errors import InputInvalid

    named = []
    for word in filter(None, layers.split(",")):
        kind, _, number = word.rpartition(":")
        if not number.isdecimal():
            raise InputInvalid(f"--layers {word!r} is no layer", mend="such as 25,26,mlp:3")
        named.append((kind or "attention", int(number)))
    return named


def _numbers(counts: str) -> list[int]:
    from zeitgeist.errors import InputInvalid

    words = counts.split(",")
    if not all(word.isdecimal() for word in words):
        raise InputInvalid(f"--counts {counts!r} is no list of numbers", mend="such as 1,2,4,8")
    return [int(word) for word in words]


def _listed(layers: tuple[int, ...]) -> str:
    return " ".join(map(str, layers)) or "none"
