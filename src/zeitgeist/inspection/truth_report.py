"""Everything that is asked of a model's answers at once: where the signal is, and what it beats.

From `zeitgeist.inspection.answers.Answers` to the areas under the curve of probes and of scores
that need no training, a map of layers and tokens with what luck alone would reach, reliability, and
a probe to keep. Answers whose exact answer was not found are counted and left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zeitgeist.errors import InputInvalid, did_you_mean
from zeitgeist.inspection.answer_scores import CONTROLS
from zeitgeist.inspection.answers import Answers
from zeitgeist.inspection.probe_comparison import Compared, compare
from zeitgeist.inspection.probe_evaluation import (
    HeatMap,
    Nested,
    choose_cell,
    heat_map,
    nested,
    score_cell,
)
from zeitgeist.inspection.probes import ProbeOptions, check_classes, fit_probes
from zeitgeist.inspection.truth_calibration import (
    Method,
    Reliability,
    calibrate,
    cross_calibrated,
    reliability,
)
from zeitgeist.inspection.truth_files import Probe
from zeitgeist.inspection.truth_transfer import ProbedSet

__all__ = ["TruthReport", "evaluate_answers", "fit_probe", "probed_set", "score_samples"]

PROBED = ("exact_last", "exact_first", "minus_1", "question_last")
"""Tokens that are always compared, where they were kept."""


@dataclass(frozen=True)
class TruthReport:
    """What a model's states say about its answers.

    ``answers`` counts all, ``usable`` those whose exact answer was found, ``right`` and
    ``right_strictly`` the right ones among all. ``probes`` has what cross-validation found per
    token and seed, ``rows`` areas under the curve with intervals, probes first; ``probabilities``
    are of the usable answers, by the reference's probes of other entities.
    """

    answers: int
    usable: int
    right: int
    right_strictly: int
    reference: str
    positions: tuple[str, ...]
    layers: tuple[int, ...]
    probes: Mapping[str, tuple[Nested, ...]]
    rows: tuple[Compared, ...]
    map: HeatMap
    probabilities: Tensor
    reliability: Reliability


def _with_token(answers: Answers, position: str) -> Tensor:
    """Usable answers that have a token, or all that are usable."""
    if not position:
        return answers.usable
    if position not in answers.positions:
        raise InputInvalid(
            f"position {position!r} was not kept", mend=did_you_mean(position, answers.positions)
        )
    return answers.usable & answers.present[:, answers.positions.index(position)]


def usable_rows(
    answers: Answers, options: ProbeOptions, *, position: str = "", of: str = ""
) -> tuple[Tensor, Tensor, list[str]]:
    """Which answers can be probed, their labels and entities; refused where too few can.

    Those whose exact answer was found and, where ``position`` is named, that have this token.

    Raises
    ------
    InputInvalid
        A class has too few rows.
    """
    rows = _with_token(answers, position).nonzero()[:, 0]
    y = answers.correct[rows]
    lost = len(answers.rows) - len(rows)
    lacking = f"exact answer or no {position} token" if position else "exact answer"
    what = f"{lost} answers have no {lacking}; of the others" if lost else ""
    check_classes(y, options.min_class, of=": ".join(filter(None, (of, what))))
    groups = answers.groups
    return rows, y, [groups[int(row)] for row in rows]


def evaluate_answers(
    answers: Answers,
    options: ProbeOptions | None = None,
    *,
    position: str = "exact_last",
    by_entity: bool = True,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    permutations: int = 100,
    calibration: Method = "platt",
    draws: int = 2000,
    progress: bool | None = None,
) -> TruthReport:
    """Compare probes at several tokens with scores that need no training, and map all cells.

    Parameters
    ----------
    answers
        Of `zeitgeist.inspection.answers.generate_answers`.
    options
        Of the probes; None: the defaults.
    position
        The token whose probe the others are compared with.
    by_entity
        Keep entities whole in cross-validation and bootstrap; else rows are split at random.
    seeds
        Of cross-validation.
    permutations
        Shufflings of the labels, for the maximum of the map by luck.
    calibration
        ``"platt"`` or ``"isotonic"``.
    draws
        Of the bootstrap over entities.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Returns
    -------
    TruthReport
        The layer of every probe is chosen inside the training folds.

    Raises
    ------
    InputInvalid
        The position was not kept, or a class has too few rows.
    """
    chosen = options or ProbeOptions()
    if position not in answers.positions:
        raise InputInvalid(
            f"position {position!r} was not kept", mend=did_you_mean(position, answers.positions)
        )
    if not seeds:
        raise InputInvalid("there are no seeds", mend="give at least one")
    rows, y, groups = usable_rows(answers, chosen)
    if not by_entity:
        groups = [str(int(row)) for row in rows]
    x, present = answers.features[rows], answers.present[rows]
    probed = [position, *(at for at in PROBED if at in answers.positions and at != position)]
    probes = {}
    for name in probed:
        at = answers.positions.index(name)
        one, here = x[:, :, at : at + 1], present[:, at : at + 1]
        probes[f"probe {name}"] = tuple(
            nested(one, y, groups, chosen, seed=seed, present=here) for seed in seeds
        )
    scores = complete(answers, rows)
    reference = f"probe {position}"
    table = compare(y, groups, probes, scores, reference=reference, draws=draws)
    found = heat_map(
        x, y, groups, chosen, seeds=seeds[:1], permutations=permutations, present=present,
        progress=progress,
    )  # fmt: skip
    first = probes[reference][0]
    p = cross_calibrated(first.score, y, first.fold, calibration)
    return TruthReport(
        len(answers.rows),
        len(rows),
        int(answers.correct.sum()),
        sum(row.strict for row in answers.rows),
        reference,
        answers.positions,
        answers.layers,
        probes,
        table,
        found,
        p,
        reliability(p, y),
    )


def probed_set(
    answers: Answers,
    options: ProbeOptions | None = None,
    *,
    position: str = "exact_last",
    of: str = "",
) -> ProbedSet:
    """Usable answers at one token, as transfer between sets takes them.

    Parameters
    ----------
    answers
        To one set.
    options
        None: the defaults of `ProbeOptions`.
    position
        The token.
    of
        The set's name, for refusals.

    Raises
    ------
    InputInvalid
        The position was not kept, or a class has too few rows.
    """
    rows, y, groups = usable_rows(answers, options or ProbeOptions(), position=position, of=of)
    scores = complete(answers, rows)
    free = {name: score for name, score in scores.items() if name not in CONTROLS}
    return ProbedSet(answers.at(position)[rows][:, :, None], y, groups, free)


def complete(answers: Answers, rows: Tensor) -> dict[str, Tensor]:
    """Scores that all of these answers have."""
    taken = {name: score[rows] for name, score in answers.scores.items()}
    return {name: score for name, score in taken.items() if bool(torch.isfinite(score).all())}


def fit_probe(
    answers: Answers,
    options: ProbeOptions | None = None,
    *,
    position: str = "exact_last",
    extraction: str = "blind",
    calibration: Method = "platt",
    seed: int = 0,
) -> Probe:
    """The probe to keep: its layer by cross-validation, fitted on all usable answers.

    It is calibrated on scores that probes of the same layer give to entities they have not seen.

    Parameters
    ----------
    answers
        Of `zeitgeist.inspection.answers.generate_answers`.
    options
        None: the defaults of `ProbeOptions`.
    position
        The token it reads.
    extraction
        The rule by which exact answers were found, for the record.
    calibration
        ``"platt"`` or ``"isotonic"``.
    seed
        Of the folds.

    Raises
    ------
    InputInvalid
        The position was not kept, or a class has too few rows.
    """
    chosen = options or ProbeOptions()
    rows, y, groups = usable_rows(answers, chosen)
    x = answers.at(position)[rows][:, :, None]
    present = answers.present[rows][:, answers.positions.index(position), None]
    everything = torch.ones_like(y)
    layer, _ = choose_cell(x, y, groups, everything, chosen, seed=seed, present=present)
    cell = x[:, layer : layer + 1]
    crossed = nested(cell, y, groups, chosen, seed=seed, present=present)
    fitted = fit_probes(cell[:, :, 0].transpose(0, 1), y, chosen, present=present.T)
    return Probe(
        fitted.weights[0],
        float(fitted.intercept[0]),
        fitted.mean[0],
        fitted.scale[0],
        calibrate(crossed.score, y, calibration),
        answers.layers[layer],
        position,
        answers.site,
        extraction,
        answers.fingerprint,
        chosen.C,
    )


def score_samples(
    answers: Answers,
    samples: Answers,
    options: ProbeOptions | None = None,
    *,
    position: str = "exact_last",
    seed: int = 0,
) -> Tensor:
    """Log-odds of sampled answers, from probes taught by the greedy answers to other entities.

    Parameters
    ----------
    answers
        Greedy answers, which teach.
    samples
        Answers to be scored, of the same model, site and layers.
    options, position, seed
        As for `fit_probe`.

    Returns
    -------
    Tensor
        One number per sample; minus infinity where it has no exact answer or no such token.

    Raises
    ------
    InputInvalid
        The two were not kept alike, or a class has too few rows.
    """
    chosen = options or ProbeOptions()
    alike = ("site", "layers", "fingerprint")
    if any(getattr(answers, name) != getattr(samples, name) for name in alike):
        raise InputInvalid(
            f"answers are of {answers.site} and layers {answers.layers}, samples of "
            f"{samples.site} and {samples.layers}",
            mend="take both from one model with the same options",
        )
    rows, y, groups = usable_rows(answers, chosen, position=position)
    there = _with_token(samples, position)
    x = answers.at(position)[rows][:, :, None]
    asked = samples.at(position)[:, :, None]
    whole = nested(x, y, groups, chosen, seed=seed)
    fold_of = dict(zip(groups, whole.fold.tolist(), strict=True))
    # An entity without a usable greedy answer taught nobody; any fold's probe will do.
    fold = torch.tensor([fold_of.get(group, 0) for group in samples.groups])
    score = torch.full((len(samples.rows),), -torch.inf, dtype=torch.float64)
    for k, cell in enumerate(whole.cells):
        test, train = (fold == k) & there, whole.fold != k
        if not bool(test.any()):
            continue
        both = torch.cat([x[train], asked[test]])
        taught = torch.arange(len(both)) < int(train.sum())
        labels = torch.cat([y[train], torch.zeros(int(test.sum()), dtype=torch.bool)])
        score[test] = score_cell(both, labels, taught, ~taught, cell, chosen)
    return score
