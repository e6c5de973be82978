"""What ``zeitgeist inspect truth`` prints and writes."""

from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zeitgeist.errors import InputInvalid, OutputExists

if TYPE_CHECKING:
    from zeitgeist.inspection.answers import Answers
    from zeitgeist.inspection.truth_report import TruthReport


def ranked(sampled: "Answers", scores: Any, count: int) -> list[str]:
    """A line per question, its samples in the probe's order."""
    lines = []
    for at, values in enumerate(scores.tolist()):
        rows = sampled.rows[at * count : (at + 1) * count]
        order = sorted(range(count), key=lambda k: -values[k])
        told = [
            {
                "answer": rows[k].text.strip(),
                "exact": rows[k].exact,
                "right": rows[k].correct,
                "log_odds": values[k] if values[k] > float("-inf") else None,
            }
            for k in order
        ]
        lines.append(
            dumps({"question": rows[0].question, "samples": told}, ensure_ascii=False) + "\n"
        )
    return lines


def answer_lines(answers: "Answers", report: "TruthReport | None" = None) -> list[str]:
    """A line per answer, with P(right) where it could be probed; no report: without P(right)."""
    p: dict[int, float] = {}
    if report is not None:
        usable = answers.usable.nonzero()[:, 0].tolist()
        p = dict(zip(usable, map(float, report.probabilities), strict=True))
    lines = []
    for at, row in enumerate(answers.rows):
        told: dict[str, Any] = {
            "question": row.question,
            "aliases": row.aliases,
            "entity": row.entity,
            "answer": row.text.strip(),
            "exact": row.exact,
            "span": row.span,
            "right": row.correct,
            "right_strictly": row.strict,
            "status": row.status,
        }
        if report is not None:
            told["p_right"] = p.get(at)
        told["scores"] = {
            name: value if value == value else None
            for name, values in answers.scores.items()
            for value in [float(values[at])]
        }
        lines.append(dumps(told, ensure_ascii=False) + "\n")
    return lines


def as_json(report: "TruthReport") -> dict[str, Any]:
    """A report for programs."""
    layer, position = report.map.best
    return {
        "answers": report.answers,
        "usable": report.usable,
        "right": report.right,
        "right_strictly": report.right_strictly,
        "reference": report.reference,
        "detectors": [asdict(row) for row in report.rows],
        "chosen_layers": {
            name: sorted(report.layers[cell[0]] for run in runs for cell in run.cells)
            for name, runs in report.probes.items()
        },
        "map": {
            "layers": report.layers,
            "positions": report.positions,
            "auc": [
                [None if value != value else value for value in row]
                for row in report.map.auc.tolist()
            ],
            "rows": report.map.rows,
            "best": [report.layers[layer], report.positions[position]],
            "shuffled_maxima": report.map.null.tolist(),
            "p": report.map.p,
        },
        "reliability": asdict(report.reliability),
    }


def print_report(report: "TruthReport") -> None:
    """A report for people."""
    share = report.right / report.answers
    print(
        f"{report.right} of {report.answers} answers are right ({share:.0%}; strictly "
        f"{report.right_strictly}), {report.usable} have an exact answer and are probed"
    )
    layer, position = report.map.best
    found = report.map
    print(
        f"map of {found.auc.numel()} cells: largest AUC {float(found.auc[found.best]):.3f}, layer "
        f"{report.layers[layer]} at {report.positions[position]}"
    )
    if len(found.null):
        print(
            f"with shuffled labels the largest is {float(found.null.mean()):.3f} on average, "
            f"{float(found.null.quantile(0.95)):.3f} in one of twenty (p = {found.p:.3f})"
        )
    behind = f"behind {report.reference}"
    print(f"{'detector':26s}{'AUC':>7s} {'95 %':>13s}   {behind}")
    for row in report.rows:
        told = f"{row.behind:+.3f} ({row.behind_low:+.3f} to {row.behind_high:+.3f})"
        print(
            f"{row.name:26s}{row.auc:7.3f} {row.low:6.3f}-{row.high:5.3f}   "
            f"{'' if row.name == report.reference else told}"
        )
    print("below 0.5 a score tells as much the other way round: 0.2 is 0.8 with its sign turned")
    print(
        f"calibrated: expected calibration error {report.reliability.ece:.3f}, "
        f"Brier score {report.reliability.brier:.3f}"
    )


def write_lines(output: Path, lines: list[str]) -> None:
    """Write a file whole or not at all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial")
    partial.write_text("".join(lines), encoding="utf-8")
    partial.replace(output)


def check_lines(output: Path | None, *, overwrite: bool) -> None:
    """Refuse a .jsonl file that could not be written later.

    Examples
    --------
    >>> check_lines(Path("questions.txt"), overwrite=False)
    Traceback (most recent call last):
    zeitgeist.errors.InputInvalid: the output 'questions.txt' is no .jsonl; name it so
    """
    if output is None:
        return
    if output.suffix.lower() != ".jsonl":
        raise InputInvalid(f"the output '{output}' is no .jsonl", mend="name it so")
    check_parents(output)
    if output.is_dir():
        raise InputInvalid(f"the output '{output}' is a directory", mend="choose another name")
    if output.exists() and not overwrite:
        raise OutputExists(f"the output '{output}' is already there", mend="choose another name")


def check_parents(output: Path) -> None:
    """Refuse an output in what is no directory."""
    if any(parent.is_file() for parent in output.parents):
        raise InputInvalid(f"the output '{output}' lies in a file", mend="choose another name")
