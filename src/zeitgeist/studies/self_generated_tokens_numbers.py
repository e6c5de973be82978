"""The numbers of the study of self-generated tokens: the gap on strings and on a language model.

Per seed and task a network is warmed up on demonstrations, then every arm goes on from there for
the same rounds of the same steps on the same demonstrations:

    start                     no further training
    sft, sft_compute          gold contexts; with as many more steps as making contexts costs
    bash_9, bash_8, bash_5    mixed contexts, gold share 0.9, 0.8, 0.5, sequential
    parallel_8                the same, drawn in one pass
    uniform_9, uniform_8      any digit instead of the model's
    rac, rac_two              corrections beside demonstrations; scored on first and second answers
    dpo                       gold preferred to the model's own sample, and NLL of gold (SPIN)
    best_of_4                 sft's likeliest of four samples

What making contexts costs: reading a token forward is a third of learning from it. Reading the
question once, four samples of 12 digits cost 61 tokens, a draft and its correction 63.
"""

import copy
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from zeitgeist.alignment.decoding import drafts
from zeitgeist.alignment.mixing import Replaced
from zeitgeist.alignment.preference_loss import Pair, collate_pairs, log_likelihoods, pair_loss
from zeitgeist.alignment.prefix_gap import GapReport, compare, gold_hits, measure_gap
from zeitgeist.alignment.self_generated_options import SelfGeneratedOptions, Stage
from zeitgeist.alignment.self_generated_rounds import Mixed, Vocabulary, learn, make_contexts
from zeitgeist.evidence import Group, Measured
from zeitgeist.studies import self_generated_tokens_language as language
from zeitgeist.studies.self_generated_tokens_tasks import END, PAD, SIZE, draw, vocabulary
from zeitgeist.training import Example, collate
from zeitgeist.training.contexts import gold_context
from zeitgeist.training.objective import train_objective

ROUNDS = 3
MAX_LENGTH = 64
SHARES = {
    "bash_9": 0.9,
    "bash_8": 0.8,
    "bash_5": 0.5,
    "parallel_8": 0.8,
    "uniform_9": 0.9,
    "uniform_8": 0.8,
}
READ = 1 / 3
"""What reading a token costs, learning from it being 1."""
SAMPLES = 4


@dataclass(frozen=True)
class Bench:
    """What all arms of a group share: a network after its warm start, demonstrations, budgets."""

    start: Any
    train: Sequence[Example]
    test: Sequence[Example]
    vocabulary: Vocabulary
    steps: int
    batch_size: int
    learning_rate: float
    adapt: str
    seed: int

    def options(self, **changes: Any) -> SelfGeneratedOptions:
        """Of all arms, but for what an arm changes."""
        known = {
            "rounds": ROUNDS,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "generation_batch": 500 if self.adapt == "full" else 32,
            "learning_rate": self.learning_rate,
            "clean_share": 0.0,
            "adapt": self.adapt,
            "max_length": MAX_LENGTH if self.adapt == "full" else 1024,
            "seed": self.seed,
        }
        return SelfGeneratedOptions(**{**known, **changes})

    @property
    def autocast(self) -> bool:
        """A network this small gains nothing by it, and every process would decide for itself."""
        return self.adapt == "lora"

    def round_examples(self, number: int) -> list[Example]:
        """As many demonstrations as a round learns from; the same for every arm."""
        generator = np.random.default_rng([self.seed, number])
        order = generator.permutation(len(self.train))[: self.steps * self.batch_size]
        return [self.train[i] for i in order]

    @cached_property
    def tuned(self) -> Any:
        """After further fine-tuning."""
        model, _ = trained(self, self.options(gold_share=1.0))
        return model

    @cached_property
    def corrected(self) -> GapReport:
        """First and second answers after RAC."""
        model, _ = trained(self, self.options(method="rac"))
        return self.report(model, between=self.vocabulary.between)

    def report(self, model: Any, *, between: Sequence[int] | None = None) -> GapReport:
        """The gap of a network on what nobody learned from."""
        options = self.options()
        return measure_gap(
            model,
            self.test,
            forbidden=self.vocabulary.forbidden,
            between=between,
            max_length=options.max_length,
            pad=self.vocabulary.pad,
            batch_size=options.generation_batch,
        )


def prepare(group: Group) -> Any:
    """Warm a network up.

    Parameters
    ----------
    group
        ``setting``: ``part`` and, of strings, ``task``; ``parameters``: of strings ``train``,
        ``test``, ``length``, ``batch_size``, ``learning_rate`` and, per task, steps of the warm
        start and of a round (``budgets``); of language see `self_generated_tokens_language`.
    """
    if group.setting["part"] == "language":
        return _language(group)
    # transformers' Trainer collects garbage at every start, over all that is imported.
    gc.collect()
    gc.freeze()
    known, task = group.parameters, str(group.setting["task"])
    warm, steps = known["budgets"][task]
    train, test = draw(
        task, train=known["train"], test=known["test"], length=known["length"], seed=group.seed
    )
    bench = Bench(
        network(group.seed),
        train,
        test,
        vocabulary(),
        steps,
        known["batch_size"],
        known["learning_rate"],
        "full",
        group.seed,
    )
    _warm(bench, warm)
    return bench


def network(seed: int) -> Any:
    """Two layers of width 64."""
    config = LlamaConfig(
        vocab_size=SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
    # Over some tens of positions attention written out learns faster than the fused kernel.
    model.set_attn_implementation("eager")
    return model


def _language(group: Group) -> Bench:
    known = group.parameters
    model, words, train, test = language.opened(known, group.seed)
    bench = Bench(
        model,
        train,
        test,
        words,
        known["steps"],
        known["batch_size"],
        known["learning_rate"],
        "lora",
        group.seed,
    )
    _warm(bench, known["warm"])
    return bench


def _warm(bench: Bench, steps: int) -> None:
    options = bench.options(steps=steps)
    mixed = Mixed(tuple(map(gold_context, bench.train)), Replaced())
    # Round 1 of these options is so many steps; a warm start would count epochs.
    learn(
        bench.start,
        mixed,
        bench.vocabulary,
        options,
        gold_share=1.0,
        round_=1,
        autocast=bench.autocast,
    )


def trained(bench: Bench, options: SelfGeneratedOptions) -> tuple[Any, list[Stage]]:
    """A copy of the network after all rounds, and how they went."""
    model = _copied(bench)
    stages = []
    for number, share in enumerate(options.shares(), 1):
        mixed = make_contexts(
            model.eval(),
            bench.round_examples(number),
            bench.vocabulary,
            options,
            gold_share=share,
            round_=number,
        )
        stages.append(
            learn(
                model,
                mixed,
                bench.vocabulary,
                options,
                gold_share=share,
                round_=number,
                autocast=bench.autocast,
            )
        )
    return model.eval(), stages


def _copied(bench: Bench) -> Any:
    """The network after its warm start; what does not learn is shared."""
    frozen = {id(p): p for p in bench.start.parameters() if not p.requires_grad}
    return copy.deepcopy(bench.start, frozen)


def longer(bench: Bench) -> Any:
    """A copy of the network after fine-tuning for the steps that making contexts costs."""
    model, _ = trained(bench, bench.options(gold_share=1.0, steps=more_steps(bench)))
    return model


def more_steps(bench: Bench) -> int:
    """Steps of a round that cost what a round of mixed contexts does with making them."""
    examples = bench.round_examples(1)
    # A round may be longer than one pass over the demonstrations, which are read once.
    learned = bench.steps * bench.batch_size * sum(map(len, examples)) / len(examples)
    read = sum(len(example) - 1 for example in examples)
    return round(bench.steps * (1 + READ * read / learned))


def preferred(bench: Bench) -> Any:
    """A copy of the network after rounds of preference optimisation on (gold, own sample)."""
    model, words = _copied(bench), bench.vocabulary
    options = bench.options()
    for number in range(1, ROUNDS + 1):
        examples = bench.round_examples(number)
        own = dict(
            drafts(
                model.eval(),
                [example.prompt for example in examples],
                limit=max(len(example.answer) for example in examples),
                ending=words.ending,
                forbidden=words.forbidden,
                temperature=1.0,
                pad=words.pad,
                seeds=[(bench.seed, number, row) for row in range(len(examples))],
                batch_size=options.generation_batch,
            )
        )
        rejected = [
            Example(example.prompt, (*own[row], words.ending))
            for row, example in enumerate(examples)
        ]
        reference = [_likelihoods(model, each, words.pad) for each in (examples, rejected)]
        pairs = [Pair(*each) for each in zip(examples, rejected, *reference, strict=True)]
        train_objective(
            model,
            pairs,
            options.schedule(len(pairs)),
            collate=partial(collate_pairs, pad=words.pad),
            loss=pair_loss,
            autocast=bench.autocast,
            progress=False,
        )
    return model.eval()


@torch.no_grad()
def _likelihoods(model: Any, examples: Sequence[Example], pad: int) -> list[float]:
    found: list[float] = []
    for start in range(0, len(examples), 500):
        batch = collate(examples[start : start + 500], pad=pad)
        batch = {name: value.to(model.device) for name, value in batch.items()}
        found += log_likelihoods(model, batch).tolist()
    return found


def likeliest_of(bench: Bench, model: Any, count: int) -> GapReport:
    """The report of the likeliest of some samples per question."""
    words, examples = bench.vocabulary, list(bench.test)
    asked = [example.prompt for example in examples for _ in range(count)]
    found = dict(
        drafts(
            model,
            asked,
            limit=max(len(example.answer) for example in examples),
            ending=words.ending,
            forbidden=words.forbidden,
            temperature=1.0,
            pad=words.pad,
            seeds=[(bench.seed, row) for row in range(len(asked))],
            batch_size=500,
        )
    )
    answers = [found[row] for row in range(len(asked))]
    whole = [Example(p, (*a, words.ending)) for p, a in zip(asked, answers, strict=True)]
    scores = np.array(_likelihoods(model, whole, words.pad)).reshape(len(examples), count)
    best = [answers[row * count + int(i)] for row, i in enumerate(scores.argmax(axis=1))]
    return compare(examples, gold_hits(model, examples, pad=words.pad), best)


def measure(arm: str, bench: Bench) -> Iterator[Measured]:
    """The numbers of one arm."""
    if arm == "rac_two":
        yield from _corrected(bench.corrected)
    elif arm in SHARES:
        mode = {"parallel": "parallel", "uniform": "uniform"}.get(arm[:-2], "sequential")
        model, stages = trained(bench, bench.options(gold_share=SHARES[arm], mode=mode))
        yield from _told(bench.report(model))
        for stage in stages:
            yield Measured("agreement", stage.agreement, {"round": stage.round})
    else:
        yield from _told(_reports()[arm](bench))


def _reports() -> Mapping[str, Callable[[Bench], GapReport]]:
    return {
        "start": lambda bench: bench.report(bench.start),
        "sft": lambda bench: bench.report(bench.tuned),
        "sft_compute": lambda bench: bench.report(longer(bench)),
        "rac": lambda bench: bench.corrected,
        "dpo": lambda bench: bench.report(preferred(bench)),
        "best_of_4": lambda bench: likeliest_of(bench, bench.tuned, SAMPLES),
    }


def _told(report: GapReport) -> Iterator[Measured]:
    yield Measured("gold_accuracy", report.gold_accuracy)
    yield Measured("own_accuracy", report.own_accuracy)
    yield Measured("gap", report.gap)
    yield Measured("exact", report.exact_match)
    yield Measured("edit_distance", report.edit_distance)
    lines: Mapping[str, Sequence[float]] = {
        "gold": report.gold_by_position,
        "own": report.own_by_position,
    }
    for prefix, values in lines.items():
        for position, value in enumerate(values, 1):
            if report.counts[position - 1] * 2 >= report.demonstrations:
                yield Measured("accuracy", value, {"position": position, "prefix": prefix})


def _corrected(report: GapReport) -> Iterator[Measured]:
    """Of second answers."""
    found = report.corrected
    assert found is not None
    yield Measured("own_accuracy", found.own_accuracy)
    yield Measured("exact", found.second)
    yield Measured("edit_distance", found.edit_distance)
    yield Measured("wrong_to_right", found.wrong_to_right)
    yield Measured("right_to_wrong", found.right_to_wrong)
    yield Measured("copied", found.copied)
