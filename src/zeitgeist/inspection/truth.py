"""Truthfulness probes in one call: ask, label, look where the signal is, keep a probe.

Orgad, Toker, Gekhman, Reichart, Szpektor, Kotek, Belinkov: "LLMs Know More Than They Show",
arXiv 2410.02707. The parts are in modules of their own: `answers` (what a model says and what is
kept of it), `exact_answer` (which tokens decide), `probes` and `probe_evaluation` (what states
tell of unseen entities), `truth_report`, `truth_transfer`, `truth_samples`, `truth_score`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeitgeist.errors import InputInvalid, did_you_mean
from zeitgeist.inspection.answers import AnswerOptions, Answers, generate_answers
from zeitgeist.inspection.probes import ProbeOptions
from zeitgeist.inspection.question_sets import question_set
from zeitgeist.inspection.questions import read_questions
from zeitgeist.inspection.truth_calibration import Method
from zeitgeist.inspection.truth_files import Probe
from zeitgeist.inspection.truth_report import TruthReport, evaluate_answers, fit_probe
from zeitgeist.inspection.truth_score import extractor_of

__all__ = ["Truth", "find_truth"]


@dataclass(frozen=True)
class Truth:
    """A model's answers, what its states say about them, and the probe that was kept."""

    answers: Answers
    report: TruthReport
    probe: Probe


def find_truth(
    model: Any,
    tokenizer: Any,
    questions: str | Path | Any,
    *,
    asking: AnswerOptions | None = None,
    probing: ProbeOptions | None = None,
    extraction: str = "blind",
    position: str = "exact_last",
    by_entity: bool = True,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    permutations: int = 100,
    calibration: Method = "platt",
    progress: bool | None = None,
) -> Truth:
    """Ask a model, and find where its states tell its right answers from its wrong ones.

    arXiv 2410.02707, with exact answers located by one rule for right and wrong ones, entities kept
    whole, and the layer chosen inside the training folds.

    Parameters
    ----------
    model, tokenizer
        A causal transformers model and its tokenizer.
    questions
        Name of a ready set, a ``.jsonl`` or ``.csv`` file, a DataFrame or a list of records.
    asking
        How it is asked and what is kept; None: the defaults.
    probing
        How probes are fitted; None: the defaults.
    extraction
        What locates exact answers: ``blind``, ``published`` (sees the label) or ``pattern:`` and a
        regular expression.
    position
        The token whose probe is compared with the others and kept.
    by_entity
        Keep entities whole in cross-validation; else rows are split at random, which flatters.
    seeds
        Of cross-validation.
    permutations
        Shufflings of the labels, for what luck reaches.
    calibration
        ``"platt"`` or ``"isotonic"``.
    progress
        Show bars on stderr; None: when it is a terminal.

    Returns
    -------
    Truth
        ``report.rows`` has who tells right from wrong how well, ``probe.save`` keeps the probe.

    Raises
    ------
    InputInvalid
        A question, position, seed or option is wrong, or fewer than 15 answers are right, or wrong.

    Examples
    --------
    >>> find_truth(None, None, "capitols")
    Traceback (most recent call last):
    zeitgeist.errors.InputInvalid: there is no question set 'capitols'; did you mean 'capitals'?
    """
    rule = extractor_of(extraction)
    kept = (asking or AnswerOptions()).positions
    if position not in kept:
        raise InputInvalid(f"position {position!r} is not kept", mend=did_you_mean(position, kept))
    if not seeds or min(seeds) < 0:
        raise InputInvalid(f"the seeds are {list(seeds)}", mend="give numbers from 0 on")
    if isinstance(questions, str) and Path(questions).suffix.lower() not in (".jsonl", ".csv"):
        asked = question_set(questions)
    else:
        asked = read_questions(questions)
    answers = generate_answers(model, tokenizer, asked, asking, extractor=rule, progress=progress)
    report = evaluate_answers(
        answers,
        probing,
        position=position,
        by_entity=by_entity,
        seeds=seeds,
        permutations=permutations,
        calibration=calibration,
        progress=progress,
    )
    probe = fit_probe(
        answers,
        probing,
        position=position,
        extraction=extraction,
        calibration=calibration,
        seed=seeds[0],
    )
    return Truth(answers, report, probe)
