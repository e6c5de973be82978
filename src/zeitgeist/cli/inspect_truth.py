"""``zeitgeist inspect truth``: find the signal, keep a probe, use it."""

import sys
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from zeitgeist.cli import inspect_truth_samples
from zeitgeist.cli.asked_questions import SET, Asked, Output, at_least, open_model, source_of
from zeitgeist.cli.pictures import check_picture, write_picture
from zeitgeist.cli.truth_tables import (
    answer_lines,
    as_json,
    check_lines,
    check_parents,
    print_report,
    write_lines,
)
from zeitgeist.errors import InputInvalid

if TYPE_CHECKING:
    from zeitgeist.inspection.answers import Answers

app = App(
    name="truth",
    help="Whether a model knows that its answer is wrong.",
)
app.command(inspect_truth_samples.select)
app.command(inspect_truth_samples.errors)

ANSWERS, REPORT, PROBE = "answers.jsonl", "report.json", "probe"


@app.default
def look(
    model: str,
    /,
    *,
    questions: Path | None = None,
    set_: SET = "",
    asked: Asked | None = None,
    split: Literal["entity", "random"] = "entity",
    seeds: int = 5,
    permutations: int = 100,
    calibration: Literal["platt", "isotonic"] = "platt",
    output: Output = None,
    picture: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Ask a model, label its answers, and see where its states tell right ones from wrong ones.

    Parameters
    ----------
    model
        A directory, hub:org/name or pypi:package.
    questions
        A .jsonl or .csv file with "question" and "aliases", the right answers.
    set_
        A ready set instead: capitals, currencies, elements, sums-1, sums-2, coreference.
    split
        What cross-validation keeps whole: entities, or only rows, which flatters.
    seeds
        Of cross-validation, counted from --seed.
    permutations
        Shufflings of the labels that say what luck reaches.
    calibration
        How the probe's scores become probabilities.
    output
        Directory to make: answers.jsonl, report.json and the probe.
    picture
        The map of layers and tokens to draw: .png or .svg.
    overwrite
        Replace existing outputs.
    json
        Print a machine-readable report.
    """
    given = asked or Asked()
    source = source_of(questions, set_, asked)
    _check(output, picture, overwrite)
    at_least("--seeds", seeds, 1)
    at_least("--permutations", permutations, 0)
    rows = given.questions(source)
    options = given.probe()
    given.answers(p_true=True)
    given.extractor()

    from zeitgeist.inspection.truth_report import evaluate_answers, fit_probe

    answers = given.generate(open_model(model), rows, p_true=True)
    try:
        report = evaluate_answers(
            answers,
            options,
            position=given.position,
            by_entity=split == "entity",
            seeds=range(given.seed, given.seed + seeds),
            permutations=permutations,
            calibration=calibration,
        )
        probe = fit_probe(
            answers,
            options,
            position=given.position,
            extraction=given.rule,
            calibration=calibration,
            seed=given.seed,
        )
    except InputInvalid as error:
        if output is None:
            raise
        kept = _keep(answers, output, overwrite)
        raise InputInvalid(
            f"{error.what} (the answers are in '{kept}')", origin=error.origin, mend=error.mend
        ) from error
    except KeyboardInterrupt:
        if output is not None:
            print(f"the answers are in '{_keep(answers, output, overwrite)}'", file=sys.stderr)
        raise
    told = as_json(report)
    if json:
        print(dumps(told, indent=2))
    else:
        print_report(report)
    if output is not None:
        from zeitgeist.checkpoints.atomic import new_directory

        with new_directory(output, overwrite=overwrite, replaces=(ANSWERS,)) as partial:
            (partial / PROBE).mkdir()
            probe.write(partial / PROBE)
            (partial / REPORT).write_text(dumps(told, indent=2) + "\n", encoding="utf-8")
            lines = answer_lines(answers, report)
            (partial / ANSWERS).write_text("".join(lines), encoding="utf-8")
        if not json:
            print(f"{output}: the answers, and a probe of layer {probe.layer}")
    if picture is not None:
        from zeitgeist.inspection.truth_charts import map_chart

        write_picture(map_chart(report.map, report.layers, report.positions), picture)


@app.command
def score(
    model: str,
    /,
    *,
    probe: Path,
    question: str,
    answer: str = "",
    max_new_tokens: int = 64,
    picture: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Say how likely one answer is right, by a probe that was kept.

    Parameters
    ----------
    model
        The model that the probe was fitted on.
    probe
        Directory that `zeitgeist inspect truth -o` made.
    question
        What the model is asked.
    answer
        What it answered; default: let it answer.
    max_new_tokens
        Tokens that its answer may have.
    picture
        The answer's tokens, coloured by the probe, to draw: .png or .svg.
    overwrite
        Replace an existing picture.
    json
        Print a machine-readable answer.
    """
    check_picture(picture, overwrite=overwrite)
    at_least("--max-new-tokens", max_new_tokens, 1)
    if not question.strip():
        raise InputInvalid("--question is empty", mend="ask something")
    from zeitgeist.inspection.truth_files import load_probe
    from zeitgeist.inspection.truth_score import score_answer

    kept = load_probe(probe)
    found = score_answer(*open_model(model), kept, question, answer, max_new_tokens=max_new_tokens)
    if json:
        print(dumps(asdict(found), indent=2))
    else:
        print(found.answer)
        print(
            f"P(right) {found.probability:.3f}, read at {kept.position} of "
            f"{found.exact or 'no exact answer'!r} after layer {kept.layer}"
        )
        each = zip(found.tokens, found.each, strict=True)
        print(" ".join(f"{t.strip() or repr(t)}|{p:.2f}" for t, p in each))
    if picture is not None:
        from zeitgeist.inspection.truth_charts import tokens_chart

        write_picture(tokens_chart(found), picture)


@app.command
def transfer(
    model: str,
    /,
    *,
    sets: str,
    asked: Asked | None = None,
    seeds: int = 5,
    picture: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Teach a probe on every question set and test it on every other.

    Parameters
    ----------
    model
        A directory, hub:org/name or pypi:package.
    sets
        Names of ready sets and .jsonl or .csv files, such as capitals,currencies,mine.jsonl.
    seeds
        Of cross-validation, counted from --seed.
    picture
        Both matrices to draw: .png or .svg.
    overwrite
        Replace an existing picture.
    json
        Print a machine-readable report.
    """
    given = asked or Asked()
    check_picture(picture, overwrite=overwrite)
    at_least("--seeds", seeds, 1)
    words = [word for word in sets.split(",") if word]
    if len(words) < 2 or len(set(words)) < len(words):
        raise InputInvalid(f"--sets {sets!r} names no two sets", mend="such as capitals,currencies")
    rows = {word: given.questions(word) for word in words}
    options = given.probe()
    given.answers(p_true=True)
    given.extractor()

    from zeitgeist.inspection.truth_report import probed_set
    from zeitgeist.inspection.truth_transfer import transfer as run_transfer

    opened = open_model(model)
    probed = {
        word: probed_set(
            given.generate(opened, each, given.position, p_true=True),
            options,
            position=given.position,
            of=word,
        )
        for word, each in rows.items()
    }
    found = run_transfer(probed, options, seeds=range(given.seed, given.seed + seeds))
    if json:
        told = {
            "sets": found.names,
            "auc": found.auc.tolist(),
            "gain": found.gain.tolist(),
            "best_without_training": [
                {"score": name, "auc": value}
                for name, value in zip(found.free_names, found.free.tolist(), strict=True)
            ],
        }
        print(dumps(told, indent=2))
    else:
        wide = max(12, *(len(word) for word in words)) + 1
        print("AUC, and in brackets what is left after the best score without training")
        print(f"{'taught by':{wide}s}" + "".join(f"{word:>{wide + 4}s}" for word in words))
        for name, values, gains in zip(words, found.auc, found.gain, strict=True):
            cells = [f"{v:.3f} ({g:+.3f})" for v, g in zip(values, gains, strict=True)]
            print(f"{name:{wide}s}" + "".join(f"{cell:>{wide + 4}s}" for cell in cells))
        for word, name, value in zip(words, found.free_names, found.free, strict=True):
            print(f"{word}: the best score without training is {name}, {value:.3f}")
    if picture is not None:
        from zeitgeist.inspection.truth_charts import transfer_chart

        write_picture(transfer_chart(found), picture)


@app.command(name="questions")
def write_questions(
    name: str,
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    count: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Write a ready question set as JSONL, to be read, changed and used.

    Parameters
    ----------
    name
        capitals, currencies, elements, sums-1, sums-2 or coreference.
    output
        The .jsonl file to write.
    count
        Questions to draw; default: all.
    seed
        Of the draw.
    overwrite
        Replace an existing output.
    """
    check_lines(output, overwrite=overwrite)
    at_least("--seed", seed, 0)
    from zeitgeist.inspection.question_sets import question_set

    rows = question_set(name, count=count, seed=seed)
    told = [{k: v for k, v in asdict(row).items() if v} for row in rows]
    write_lines(output, [dumps(row, ensure_ascii=False) + "\n" for row in told])
    print(f"{output}: {len(rows)} questions")


def _check(output: Path | None, picture: Path | None, overwrite: bool) -> None:
    check_picture(picture, overwrite=overwrite)
    if output is not None:
        from zeitgeist.checkpoints import check_output

        check_parents(output)
        check_output(output, overwrite=overwrite, replaces=(ANSWERS,))


def _keep(answers: "Answers", output: Path, overwrite: bool) -> Path:
    """The answers alone, of a run that came no further: they took longest."""
    from zeitgeist.checkpoints.atomic import new_directory

    with new_directory(output, overwrite=overwrite, replaces=(ANSWERS,)) as partial:
        (partial / ANSWERS).write_text("".join(answer_lines(answers)), encoding="utf-8")
    return output / ANSWERS
