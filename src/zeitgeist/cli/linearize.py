"""``zeitgeist linearize``: transfer, finetune, evaluate and export."""

from dataclasses import asdict
from json import dumps
from os import environ
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from zeitgeist.cli.numbers import numbers
from zeitgeist.cli.pictures import check_picture, write_picture

if TYPE_CHECKING:
    from zeitgeist.compression.linearize import LinearizedReport
    from zeitgeist.compression.linearize_costs import Evaluation

app = App(name="linearize", help="Make a softmax model linear: constant cost per token.")

Output = Annotated[Path, Parameter(name=["--output", "-o"])]
Kind = Literal["sliding", "terraced"]
Map = Literal["hedgehog", "t2r"]


@app.command
def transfer(
    model: str,
    /,
    *,
    text: str,
    output: Output,
    window: int = 64,
    kind: Kind = "sliding",
    blocks: int = 2,
    sinks: int = 0,
    feature_map: Map = "hedgehog",
    feature_dim: int | None = None,
    layers: str = "",
    length: int = 1024,
    windows: int = 64,
    validation: int = 8,
    steps: int = 200,
    batch_size: int = 8,
    learning_rate: float = 1e-2,
    mse_weight: float = 1000.0,
    xent_weight: float = 0.0,
    seed: int = 0,
    picture: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Teach feature maps what softmax attention answers, layer by layer; goes on where it stopped.

    Parameters
    ----------
    model
        A directory, hub:org/name or pypi:package.
    text
        To learn from: a file, or the text itself.
    output
        Directory to make: maps that go with the untouched model.
    window
        Tokens that softmax still sees; 0: none.
    kind
        Of window: sliding or terraced.
    blocks
        Of a terraced window, 1 or 2.
    sinks
        First tokens that always stay near; an extension.
    feature_map
        hedgehog or t2r.
    feature_dim
        Columns of a map; default: half the head dimension for hedgehog, all of it for t2r.
    layers
        Which to convert, such as 0,1,5-9; default: all.
    length
        Tokens of a window of text.
    windows
        Windows to learn from; fewer where the text has fewer.
    validation
        Windows to score on, from the end of the text.
    steps
        Optimiser steps per layer.
    batch_size
        Windows per step.
    learning_rate
        Of AdamW.
    mse_weight
        Of the squared error.
    xent_weight
        Of the cross-entropy between attention weights.
    seed
        Of the order of windows.
    picture
        A picture to write: .png or .svg.
    overwrite
        Replace an existing output.
    json
        Print a machine-readable report.
    """
    check_picture(picture, overwrite=overwrite)
    chosen = numbers("--layers", layers)
    from zeitgeist.compression.linearize import LolcatsOptions, linearize

    options = LolcatsOptions(
        window=window,
        kind=kind,
        blocks=blocks,
        sinks=sinks,
        feature_map=feature_map,
        feature_dim=feature_dim,
        layers=chosen,
        length=length,
        windows=windows,
        validation=validation,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        mse_weight=mse_weight,
        xent_weight=xent_weight,
        seed=seed,
    )
    report = linearize(model, text, output, options=options, overwrite=overwrite)
    _tell(report, json)
    if picture is not None:
        from zeitgeist.compression.linearize_charts import teaching_chart

        write_picture(teaching_chart(report), picture)


@app.command
def finetune(
    model: str,
    /,
    *,
    text: str,
    output: Output,
    steps: int = 200,
    batch_size: int = 8,
    learning_rate: float = 1e-4,
    rank: int = 8,
    alpha: int = 16,
    length: int = 1024,
    windows: int = 512,
    validation: int = 8,
    seed: int = 0,
    base: str = "",
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Train LoRA on the attention projections of a taught model.

    Parameters
    ----------
    model
        What transfer wrote.
    text
        To learn from: a file, or the text itself.
    output
        Directory to make: maps and adapter.
    steps
        Optimiser steps.
    batch_size
        Windows per step.
    learning_rate
        Peak of AdamW.
    rank
        Of LoRA.
    alpha
        LoRA is scaled by alpha / rank.
    length
        Tokens of a window of text.
    windows
        Windows to learn from; fewer where the text has fewer.
    validation
        Windows to score on, from the end of the text.
    seed
        Of the order of windows and of LoRA's start.
    base
        Where the softmax model is, if it was moved.
    overwrite
        Replace an existing output.
    json
        Print a machine-readable report.
    """
    from zeitgeist.compression.linearize import finetune as finetune_model
    from zeitgeist.training import LoraSettings

    settings = LoraSettings(
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        rank=rank,
        alpha=alpha,
        seed=seed,
    )
    report = finetune_model(
        model,
        text,
        output,
        settings=settings,
        length=length,
        windows=windows,
        validation=validation,
        base=base,
        overwrite=overwrite,
    )
    _tell(report, json)


@app.command
def evaluate(
    model: str,
    /,
    *,
    text: str,
    length: int = 1024,
    windows: int = 8,
    contexts: str = "1024,4096,16384",
    base: str = "",
    picture: Path | None = None,
    json: bool = False,
) -> None:
    """Compare with the softmax model: perplexity, agreement, time and bytes of a token.

    Parameters
    ----------
    model
        What transfer, finetune or export wrote; the last with --base.
    text
        To score: a file, or the text itself.
    length
        Tokens of a window.
    windows
        How many at most.
    contexts
        Tokens before the one that is timed.
    base
        Where the softmax model is, if it was moved.
    picture
        A picture to write: .png or .svg.
    json
        Print a machine-readable report.
    """
    from zeitgeist.errors import InputInvalid

    check_picture(picture)
    if not all(word.isdecimal() for word in contexts.split(",")):
        raise InputInvalid(f"--contexts {contexts!r} are no numbers", mend="such as 1024,4096")
    from zeitgeist.compression.linearize_costs import evaluate as evaluate_model

    found = evaluate_model(
        model,
        text,
        length=length,
        windows=windows,
        contexts=[int(word) for word in contexts.split(",")],
        base=base,
    )
    _tell_costs(found, json)
    if picture is not None:
        from zeitgeist.compression.linearize_charts import costs_chart

        write_picture(costs_chart(found), picture)


@app.command
def export(
    model: str,
    /,
    *,
    output: Output,
    base: str = "",
    overwrite: bool = False,
) -> None:
    """Write a taught model whole: base, maps and LoRA in one transformers directory.

    Parameters
    ----------
    model
        What transfer or finetune wrote.
    output
        Directory to make.
    base
        Where the softmax model is, if it was moved.
    overwrite
        Replace an existing output.
    """
    from zeitgeist.compression.linearize import export as export_model

    print(export_model(model, output, base=base, overwrite=overwrite))


def _tell(report: "LinearizedReport", json: bool) -> None:
    if int(environ.get("RANK", "0")):
        return  # one of several processes tells
    if json:
        print(dumps(asdict(report), indent=2))
        return
    print("layer  before  taught   (squared error of attention / its variance)")
    for layer, (before, after) in enumerate(zip(report.before, report.after, strict=True)):
        told = "softmax" if before is None else f"{before:6.3f}  {after:6.3f}"
        print(f"{layer:5d}  {told}")
    print(
        f"perplexity  {report.perplexity_softmax:.4g} softmax -> {report.perplexity:.4g} linearized"
    )
    print(f"trained  {report.trained:,} of {report.parameters:,} parameters")
    print(
        f"kept  {report.state_bytes:,} bytes when the window has filled; "
        f"softmax {report.kv_bytes:,} per token"
    )
    _tell_break_even(report.break_even)
    print("nothing shrinks but the cost of a token: the base's weights stay and maps are added")
    print(report.out)


def _tell_costs(found: "Evaluation", json: bool) -> None:
    if json:
        print(dumps(asdict(found), indent=2))
        return
    print(
        f"perplexity  {found.perplexity_softmax:.4g} softmax -> {found.perplexity:.4g} linearized"
    )
    print(f"same likeliest next token  {found.top1:.1%}")
    print(
        f"{'context':>9s} {'ms/token':>10s} {'softmax':>10s} {'bytes kept':>14s} {'softmax':>14s}"
    )
    for cost in found.costs:
        print(
            f"{cost.context:9,d} {1e3 * cost.seconds:10.1f} {1e3 * cost.seconds_softmax:10.1f} "
            f"{cost.bytes:14,d} {cost.bytes_softmax:14,d}"
        )
    _tell_break_even(found.break_even)


def _tell_break_even(tokens: int | None) -> None:
    least = "at no length" if tokens is None else f"from {tokens:,} tokens on"
    print(f"keeps less than softmax {least}")
