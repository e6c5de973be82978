"""``zeitgeist inspect truth``: the verbs that sample many answers to every question."""

from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING

from zeitgeist.cli.asked_questions import SET, Asked, Output, open_model, source_of
from zeitgeist.cli.pictures import check_picture, write_picture
from zeitgeist.cli.truth_tables import check_lines, ranked, write_lines

if TYPE_CHECKING:
    from zeitgeist.inspection.answers import Answers


def select(
    model: str,
    /,
    *,
    questions: Path | None = None,
    set_: SET = "",
    asked: Asked | None = None,
    samples: int = 10,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    output: Output = None,
    picture: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Sample many answers to every question and let a probe pick one of each.

    Parameters
    ----------
    model
        A directory, hub:org/name or pypi:package.
    questions
        A .jsonl or .csv file with "question" and "aliases", the right answers.
    set_
        A ready set instead.
    samples
        Answers per question.
    temperature
        Of the draw.
    top_p
        Of the draw; 1: all tokens.
    top_k
        Of the draw; 0: all tokens.
    output
        A .jsonl file to write: every question with its samples in the probe's order.
    picture
        Accuracies by error type to draw: .png or .svg.
    overwrite
        Replace existing outputs.
    json
        Print machine-readable rows.
    """
    check_lines(output, overwrite=overwrite)
    draw = temperature, top_p, top_k
    given, answers, sampled = _sampled(
        model, source_of(questions, set_, asked), asked, samples, draw, picture, overwrite
    )
    from zeitgeist.inspection.error_types import TYPES
    from zeitgeist.inspection.truth_samples import pick_answers

    found, scores = pick_answers(
        answers,
        sampled,
        count=samples,
        options=given.probe(),
        position=given.position,
        seed=given.seed,
    )
    if json:
        print(dumps([asdict(row) for row in found.rows], indent=2))
    else:
        print(
            f"{'questions':42s}{'picked by':10s}{'right':>7s} {'95 %':>12s}   {'probe gains':>12s}"
        )
        for row in found.rows:
            kind = f"{row.kind} {TYPES.get(row.kind, '')}".strip() + f" ({row.questions})"
            gain = f"{row.gain:+.3f} ({row.gain_low:+.3f} to {row.gain_high:+.3f})"
            print(
                f"{kind:42s}{row.way:10s}{row.accuracy:7.3f} {row.low:5.2f} - {row.high:4.2f}   "
                f"{'' if row.way == 'probe' else gain}"
            )
    if output is not None:
        write_lines(output, ranked(sampled, scores, samples))
    if picture is not None:
        from zeitgeist.inspection.truth_charts import selection_chart

        write_picture(selection_chart(found), picture)


def errors(
    model: str,
    /,
    *,
    questions: Path | None = None,
    set_: SET = "",
    asked: Asked | None = None,
    samples: int = 10,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    json: bool = False,
) -> None:
    """Sample many answers to every question and sort questions by how they err.

    Parameters
    ----------
    model
        A directory, hub:org/name or pypi:package.
    questions
        A .jsonl or .csv file with "question" and "aliases", the right answers.
    set_
        A ready set instead.
    samples
        Answers per question; the paper has 30.
    temperature
        Of the draw.
    top_p
        Of the draw; 1: all tokens.
    top_k
        Of the draw; 0: all tokens.
    json
        Print a machine-readable report.
    """
    draw = temperature, top_p, top_k
    given, answers, sampled = _sampled(
        model, source_of(questions, set_, asked), asked, samples, draw, None, False
    )
    from zeitgeist.inspection.error_types import TYPES
    from zeitgeist.inspection.truth_samples import error_report

    found = error_report(
        answers,
        sampled,
        count=samples,
        options=given.probe(),
        position=given.position,
        seed=given.seed,
    )
    table = found.table
    if json:
        told = {
            "questions": [
                {"question": question, "types": sorted(types), **asdict(clusters)}
                for question, types, clusters in zip(
                    found.questions, found.types, found.clusters, strict=True
                )
            ],
            "counts": table.counts,
            "overlaps": [[table.overlaps[a, b] for b in TYPES] for a in TYPES],
            "untyped": table.untyped,
            "several": table.several,
            "predicted": found.predicted,
        }
        print(dumps(told, indent=2))
        return
    print(f"{'type':30s}{'questions':>10s}{'probe AUC':>11s}   of these also")
    for name, meaning in TYPES.items():
        also = [
            f"{other} {table.overlaps[name, other]}"
            for other in TYPES
            if other != name and table.overlaps[name, other]
        ]
        value = found.predicted[name]
        told_auc = "-" if value is None else f"{value:.3f}"
        print(f"{name + ' ' + meaning:30s}{table.counts[name]:10d}{told_auc:>11s}   "
              + ", ".join(also))  # fmt: skip
    print(f"{table.untyped} of {table.questions} have no type, {table.several} several")


def _sampled(
    model: str,
    source: str | Path,
    asked: Asked | None,
    samples: int,
    draw: tuple[float, float, int],
    picture: Path | None,
    overwrite: bool,
) -> "tuple[Asked, Answers, Answers]":
    """Greedy answers and samples to the same questions."""
    given = asked or Asked()
    check_picture(picture, overwrite=overwrite)
    rows = given.questions(source)
    given.probe()
    options = given.answers(given.position)
    extractor = given.extractor()
    from zeitgeist.inspection.answers import SamplingOptions, sample_answers

    temperature, top_p, top_k = draw
    sampling = SamplingOptions(samples, temperature, top_p, top_k, given.seed)
    opened = open_model(model)
    answers = given.generate(opened, rows, given.position)
    sampled = sample_answers(*opened, rows, options, sampling, extractor=extractor)
    return given, answers, sampled
