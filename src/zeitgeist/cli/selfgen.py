"""``zeitgeist selfgen``: mix, train, gap and answer."""

from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from zeitgeist.cli.pictures import check_picture, write_picture

if TYPE_CHECKING:
    from zeitgeist.alignment.prefix_gap import GapReport

app = App(
    name="selfgen",
    help="Fine-tune on demonstrations and a model's own tokens (BASH and RAC).",
)

Method = Literal["bash", "rac", "both"]
Mode = Literal["sequential", "parallel", "uniform"]
Output = Annotated[Path, Parameter(name=["--output", "-o"])]
INSTRUCTION = "Check your answer and give a corrected one."


@app.command
def train(
    model: str,
    demonstrations: Path,
    /,
    *,
    output: Output,
    held_out: Path | None = None,
    method: Method = "bash",
    rounds: int = 3,
    gold_share: str = "linear",
    floor: float = 0.8,
    mode: Mode = "sequential",
    temperature: float = 1.0,
    clean_share: float = 0.2,
    correction: str = INSTRUCTION,
    splice: float = 0.0,
    warm_start: float = 1.0,
    epochs: float = 1.0,
    steps: int | None = None,
    max_length: int = 1024,
    full: bool = False,
    rank: int = 8,
    alpha: int = 16,
    learning_rate: float | None = None,
    batch_size: int = 32,
    generation_batch: int = 32,
    seed: int = 0,
    picture: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Fine-tune on demonstrations, in rounds, on contexts that the model helps to write.

    Parameters
    ----------
    model
        A directory, hub:org/name or pypi:package.
    demonstrations
        A .jsonl, .json or .parquet file with prompt and completion, or messages.
    output
        Directory to make: a LoRA adapter, or a model with --full.
    held_out
        Demonstrations to measure the gap on, before and after.
    method
        bash: mixed contexts; rac: corrections of own drafts; both.
    rounds
        Times that contexts are made anew.
    gold_share
        How likely the gold token stays: linear, exponential, inverse_sigmoid, constant, a number,
        or numbers such as 0.9,0.8,0.8.
    floor
        Of a named schedule.
    mode
        sequential: after own tokens; parallel: after gold ones, one pass; uniform: at random.
    temperature
        Of replacements and drafts.
    clean_share
        Share of contexts that stay gold.
    correction
        Asks for a corrected answer.
    splice
        Share of drafts that begin as gold.
    warm_start
        Epochs on plain demonstrations before the first round.
    epochs
        Of every round.
    steps
        Of every round, instead of epochs.
    max_length
        Tokens of a context.
    full
        Train all weights instead of an adapter.
    rank
        Of LoRA.
    alpha
        LoRA's scale times its rank.
    learning_rate
        Of AdamW; default 2e-4 for LoRA, 1e-5 for all weights.
    batch_size
        Contexts of a step.
    generation_batch
        Examples decoded at a time.
    seed
        Of everything that is drawn.
    picture
        A picture of the gap to write: .png or .svg; needs --held-out.
    overwrite
        Replace an existing output.
    json
        Print a machine-readable report.
    """
    from zeitgeist.errors import InputInvalid

    check_picture(picture, overwrite=overwrite)
    if picture is not None and held_out is None:
        raise InputInvalid("--picture shows the gap on --held-out", mend="give both")
    shares = _shares(gold_share)
    from zeitgeist.alignment.self_generated import SelfGeneratedOptions
    from zeitgeist.alignment.self_generated import train as run

    options = SelfGeneratedOptions(
        method=method,
        rounds=rounds,
        gold_share=shares,
        floor=floor,
        mode=mode,
        temperature=temperature,
        clean_share=clean_share,
        correction=correction,
        splice=splice,
        warm_start=warm_start,
        epochs=epochs,
        steps=steps,
        max_length=max_length,
        adapt="full" if full else "lora",
        rank=rank,
        alpha=alpha,
        learning_rate=learning_rate,
        batch_size=batch_size,
        generation_batch=generation_batch,
        seed=seed,
    )
    report = run(
        model, demonstrations, output, options=options, held_out=held_out, overwrite=overwrite
    )
    if json:
        print(dumps(asdict(report), indent=2))
    else:
        print("round  gold share  replaced  own token was gold  loss")
        for stage in report.stages:
            last = stage.losses[-10:]
            print(
                f"{stage.round:5d}  {stage.gold_share:10.3f}  {stage.replaced.replaced:8,}  "
                f"{stage.agreement:18.1%}  {sum(last) / len(last):.3f}"
            )
        for when, found in (("before", report.before), ("after", report.after)):
            if found is not None:
                _tell_gap(when, found)
        print(report.out)
    if picture is not None and report.before is not None and report.after is not None:
        from zeitgeist.alignment.prefix_gap_charts import gap_chart

        write_picture(gap_chart({"before": report.before, "after": report.after}), picture)


@app.command
def mix(
    model: str,
    demonstrations: Path,
    /,
    *,
    output: Output,
    gold_share: float = 0.8,
    method: Method = "bash",
    mode: Mode = "sequential",
    temperature: float = 1.0,
    clean_share: float = 0.2,
    correction: str = INSTRUCTION,
    splice: float = 0.0,
    max_length: int = 1024,
    generation_batch: int = 32,
    seed: int = 0,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Write contexts as input_ids and labels, for a trainer of your own.

    Parameters
    ----------
    model
        A model or an adapter, whose tokens they are: a directory, hub:org/name or pypi:package.
    demonstrations
        A .jsonl, .json or .parquet file with prompt and completion, or messages.
    output
        A .jsonl or .parquet file.
    gold_share
        How likely the gold token stays.
    method
        bash: mixed contexts; rac: corrections of own drafts beside the demonstrations; both.
    mode
        sequential: after own tokens; parallel: after gold ones, one pass; uniform: at random.
    temperature
        Of replacements and drafts.
    clean_share
        Share of contexts that stay gold.
    correction
        Asks for a corrected answer.
    splice
        Share of drafts that begin as gold.
    max_length
        Tokens of a context.
    generation_batch
        Examples decoded at a time.
    seed
        Of everything that is drawn.
    overwrite
        Replace an existing output.
    json
        Print a machine-readable report.
    """
    from zeitgeist.alignment.context_files import check_file
    from zeitgeist.alignment.demonstrations import read_demonstrations
    from zeitgeist.alignment.policies import open_policy
    from zeitgeist.alignment.schedules import gold_shares
    from zeitgeist.alignment.self_generated import SelfGeneratedOptions, build_mixed

    options = SelfGeneratedOptions(
        method=method,
        mode=mode,
        temperature=temperature,
        clean_share=clean_share,
        correction=correction,
        splice=splice,
        max_length=max_length,
        generation_batch=generation_batch,
        seed=seed,
    )
    check_file(output, overwrite=overwrite, inputs=[demonstrations])
    gold_shares(gold_share, 1, floor=options.floor)
    read_demonstrations(demonstrations)  # before a model is opened for them
    opened, tokenizer = open_policy(model)
    mixed = build_mixed(
        opened,
        tokenizer,
        demonstrations,
        output,
        gold_share=gold_share,
        options=options,
        overwrite=overwrite,
    )
    found = mixed.replaced
    if json:
        told = {"contexts": len(mixed.contexts), **asdict(found), "agreement": found.agreement}
        print(dumps({"out": str(output), **told}, indent=2))
        return
    print(f"{len(mixed.contexts):,} contexts")
    print(
        f"replaced {found.replaced:,} of {found.positions:,} positions, by another token than gold "
        f"{found.differing:,}"
    )
    print(output)


@app.command
def gap(
    model: str,
    demonstrations: Path,
    /,
    *,
    against: str | None = None,
    correct: bool = False,
    correction: str = INSTRUCTION,
    max_length: int = 1024,
    batch_size: int = 32,
    picture: Path | None = None,
    json: bool = False,
) -> None:
    """Say how right a model is after gold prefixes and after its own.

    Parameters
    ----------
    model
        A model or an adapter: a directory, hub:org/name or pypi:package.
    demonstrations
        That it never saw: a .jsonl, .json or .parquet file with prompt and completion, or messages.
    against
        Another model or adapter to set beside it, such as the one before training.
    correct
        Ask for second answers as well, and count what they mend and spoil.
    correction
        Asks for a corrected answer.
    max_length
        Tokens of prompt and answers together.
    batch_size
        Demonstrations at a time.
    picture
        A picture to write: .png or .svg.
    json
        Print a machine-readable report.
    """
    check_picture(picture)
    from zeitgeist.alignment.demonstrations import check_whole, read_demonstrations
    from zeitgeist.alignment.policies import open_policy
    from zeitgeist.alignment.prefix_gap import gap as measure
    from zeitgeist.errors import InputInvalid

    if batch_size < 1:
        raise InputInvalid(f"batch_size is {batch_size}", mend="give at least 1")
    check_whole(correction, "the correction")
    read_demonstrations(demonstrations)  # before a model is opened for them
    reports: dict[str, GapReport] = {}
    for reference in filter(None, (against, model)):
        opened, tokenizer = open_policy(reference)
        reports[reference] = measure(
            opened,
            tokenizer,
            demonstrations,
            correction=correction if correct else None,
            max_length=max_length,
            batch_size=batch_size,
        )
    if json:
        print(dumps({name: asdict(report) for name, report in reports.items()}, indent=2))
    else:
        for name, report in reports.items():
            _tell_gap(name, report)
    if picture is not None:
        from zeitgeist.alignment.prefix_gap_charts import gap_chart

        write_picture(gap_chart(reports), picture)


@app.command
def answer(
    model: str,
    prompts: Path,
    /,
    *,
    passes: int = 2,
    correction: str = INSTRUCTION,
    max_new_tokens: int = 128,
    max_length: int = 1024,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 32,
) -> None:
    """Answer prompts and correct the answers; prints one JSON object per line.

    Parameters
    ----------
    model
        A model or an adapter: a directory, hub:org/name or pypi:package.
    prompts
        A .jsonl, .json or .parquet file with prompt: text or messages.
    passes
        1: drafts alone; 2: each is corrected.
    correction
        Asks for a corrected answer; what the model was trained with.
    max_new_tokens
        Of an answer.
    max_length
        Tokens of prompt, draft and correction together.
    temperature
        0: the likeliest token.
    seed
        Of the draws.
    batch_size
        Prompts at a time.
    """
    from zeitgeist.alignment.answering import answer as run
    from zeitgeist.alignment.answering import check_answering
    from zeitgeist.alignment.demonstrations import read_prompts
    from zeitgeist.alignment.policies import open_policy

    check_answering(
        passes=passes,
        correction=correction,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
    )
    asked = read_prompts(prompts)
    opened, tokenizer = open_policy(model)
    for found in run(
        opened,
        tokenizer,
        asked,
        passes=passes,
        correction=correction,
        max_new_tokens=max_new_tokens,
        max_length=max_length,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
    ):
        print(dumps(asdict(found), ensure_ascii=False))


def _tell_gap(name: str, report: "GapReport") -> None:
    print(
        f"{name}: token accuracy {report.gold_accuracy:.1%} after gold, {report.own_accuracy:.1%} "
        f"after own tokens, gap {100 * report.gap:.1f} points"
    )
    print(
        f"  {report.exact_match:.1%} of {report.demonstrations:,} answers wholly right, "
        f"{report.edit_distance:.3f} edits per token"
    )
    if (again := report.corrected) is not None:
        print(
            f"  second answers: {again.second:.1%} right; {again.wrong_to_right:.1%} mended, "
            f"{again.right_to_wrong:.1%} spoilt, {again.copied:.1%} copied"
        )


def _shares(text: str) -> Any:
    """A schedule's name, a number, or numbers."""
    from zeitgeist.errors import InputInvalid

    if text.replace("_", "").isalpha():
        return text
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        raise InputInvalid(
            f"--gold-share {text!r} is no schedule", mend="such as linear, 0.8 or 0.9,0.8,0.8"
        ) from None
    return found if "," in text else found[0]
