"""What many sampled answers to the same questions say: kinds of errors, and which answer to pick.

n questions   K samples
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.answer_selection import Selection, select
from zeitgeist.inspection.answers import Answers
from zeitgeist.inspection.error_types import (
    Clusters,
    TypeTable,
    cluster,
    predict_types,
    tabulate,
    types_of,
)
from zeitgeist.inspection.probes import ProbeOptions
from zeitgeist.inspection.truth_report import score_samples

__all__ = ["ErrorReport", "error_report", "pick_answers"]


@dataclass(frozen=True)
class ErrorReport:
    """Clusters and types of every question, the table of types, and how well probes tell them.

    ``predicted`` has an area under the curve per type; None where too few questions have it.
    """

    questions: tuple[str, ...]
    clusters: tuple[Clusters, ...]
    types: tuple[frozenset[str], ...]
    table: TypeTable
    predicted: dict[str, float | None]


def cluster_samples(samples: Answers, count: int) -> tuple[Clusters, ...]:
    """The samples of each question, ``count`` rows that follow each other."""
    if count < 1 or len(samples.rows) % count:
        raise InputInvalid(
            f"{len(samples.rows)} samples are no multiple of {count}",
            mend="give as many samples for every question",
        )
    found = []
    for at in range(0, len(samples.rows), count):
        rows = samples.rows[at : at + count]
        found.append(cluster([row.exact or None for row in rows], [row.correct for row in rows]))
    return tuple(found)


def error_report(
    answers: Answers,
    samples: Answers,
    *,
    count: int,
    options: ProbeOptions | None = None,
    position: str = "exact_last",
    seed: int = 0,
) -> ErrorReport:
    """Sort questions by how their samples err, and ask whether the greedy answer's states say so.

    Parameters
    ----------
    answers
        Greedy answers, one per question.
    samples
        ``count`` for each question, in the same order.
    count
        K.
    options, position, seed
        Of the probes that predict the types.

    Raises
    ------
    InputInvalid
        There are not ``count`` samples for each answer.
    """
    clusters = _checked(answers, samples, count)
    types = tuple(map(types_of, clusters))
    there = answers.present[:, answers.positions.index(position)]
    rows = (answers.usable & there).nonzero()[:, 0].tolist()
    predicted = predict_types(
        answers.at(position)[rows][:, :, None],
        [types[row] for row in rows],
        [answers.groups[row] for row in rows],
        options,
        seed=seed,
    )
    questions = tuple(row.question for row in answers.rows)
    return ErrorReport(questions, clusters, types, tabulate(types), predicted)


def pick_answers(
    answers: Answers,
    samples: Answers,
    *,
    count: int,
    options: ProbeOptions | None = None,
    position: str = "exact_last",
    seed: int = 0,
    draws: int = 2000,
) -> tuple[Selection, Tensor]:
    """Pick one of every question's samples, by a probe of other entities and by what needs none.

    Parameters
    ----------
    answers, samples, count, options, position, seed
        As for `error_report`; the greedy answers teach the probes.
    draws
        Of the bootstrap over entities.

    Returns
    -------
    Selection and Tensor
        Accuracies overall and by error type, and the log-odds of every sample, n x K.

    Raises
    ------
    InputInvalid
        There are not ``count`` samples for each answer, or a class has too few answers.
    """
    clusters = _checked(answers, samples, count)
    score = score_samples(answers, samples, options, position=position, seed=seed)
    score = score.view(-1, count)
    found = select(
        samples.correct.view(-1, count),
        score,
        score.isfinite(),
        torch.tensor([each.largest for each in clusters]),
        answers.correct,
        answers.groups,
        kinds=list(map(types_of, clusters)),
        draws=draws,
        seed=seed,
    )
    return found, score


def _checked(answers: Answers, samples: Answers, count: int) -> tuple[Clusters, ...]:
    clusters = cluster_samples(samples, count)
    asked: Sequence[str] = [row.question for row in samples.rows[::count]]
    if asked != [row.question for row in answers.rows]:
        raise InputInvalid(
            f"there are {len(answers.rows)} answers and samples of {len(asked)} questions, "
            "in another order or of other questions",
            mend="sample the questions that were answered",
        )
    return clusters
