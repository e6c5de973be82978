"""Is restricting gradients finely a better way to remember than restricting them strongly?

Liu, Ye, Stone, Liu: "Fine-Grained Gradient Restriction", arXiv 2410.00868: memory strength helps
GEM because it restricts more, and restricting at a finer grain (parts of the network, parts of the
memory) gives a better trade-off, on permuted and rotated MNIST, Split CIFAR-100, Digit-Five and
DomainNet.

Here on scikit-learn's digits, 10 tasks of 1,000 samples in one pass, 48 memories per task, and on
SmolLM2 with LoRA. Every arm with a knob has the same number of values of it (6; `both` has 3) and
is judged by its front, and at the value that validation chooses. Memory is equal for all;
gradients of memories per step are not, and are a metric: `replay_all` has as many as GEM.

BWT divides by T - 1; one head; task identity is not given at test; one pass over a task (split: 5).
"""

from typing import TYPE_CHECKING

from zeitgeist.evidence import Arm, Claim, Evidence, Metric, Size, Study
from zeitgeist.studies.gradient_restriction_numbers import (
    DIGITS,
    LANGUAGE,
    LARGE,
    MNIST,
    QUICK_DIGITS,
    QUICK_LANGUAGE,
    STREAMS,
    TASKS,
    applies,
    measure,
    prepare,
)

if TYPE_CHECKING:
    from zeitgeist.evidence.figures import Figure


def figures(evidence: Evidence) -> "list[Figure]":
    """Every picture of the page, in order."""
    from zeitgeist.studies.gradient_restriction_charts import figures as drawn

    return drawn(evidence)


_BETTER = (
    "Fine-grained constraints give uniformly better Pareto fronts of remembering old and learning "
    "new knowledge than memory strength."
)
_STRENGTH = "Memory strength improves what GEM remembers."
_LANGUAGE = "Restricting gradients by memories mitigates forgetting."
NEURON = {"arm": "fine", "knob": "neuron"}
PLAIN = {"arm": "strength", "knob": "0"}


def _digits(
    slug: str,
    statement: str,
    paper: str,
    metric: str,
    treatment: dict[str, str],
    control: dict[str, str],
    margin: float = 0.0,
    streams: tuple[str, ...] = ("permuted", "rotated"),
) -> tuple[Claim, ...]:
    return tuple(
        Claim(
            f"{slug}-{name}",
            f"{statement} ({name} digits).",
            paper,
            metric,
            dict(treatment),
            dict(control),
            "greater",
            margin,
            {"part": "digits", "stream": name},
        )
        for name in streams
    )


_ALL = ("permuted", "rotated", "split")
CLAIMS = (
    *_digits(
        "front",
        "The front of grains dominates more than the front of strengths",
        _BETTER,
        "hypervolume",
        {"arm": "fine"},
        {"arm": "strength"},
        0.0,
        _ALL,
    ),
    *_digits(
        "neuron",
        "GEM per neuron ends 5 points above plain GEM",
        _BETTER,
        "acc",
        NEURON,
        PLAIN,
        0.05,
    ),
    *_digits(
        "fine-beats-strength",
        "Restricting finely, tuned, ends above memory strength, tuned",
        _BETTER,
        "tuned_acc",
        {"arm": "fine"},
        {"arm": "strength"},
    ),
    *_digits(
        "neuron-learns",
        "GEM per neuron learns new tasks better than GEM of strength .5",
        _BETTER,
        "la",
        NEURON,
        {"arm": "strength", "knob": "0.5"},
    ),
    *_digits(
        "data-wise",
        "Four groups of memories per task end 5 points above one",
        _BETTER,
        "acc",
        {"arm": "fine", "knob": "J=4"},
        PLAIN,
        0.05,
    ),
    *_digits(
        "strength",
        "GEM of strength .5 ends 5 points above plain GEM",
        _STRENGTH,
        "acc",
        {"arm": "strength", "knob": "0.5"},
        PLAIN,
        0.05,
    ),
    *_digits(
        "beats-agem",
        "GEM per neuron ends 10 points above A-GEM",
        _BETTER,
        "acc",
        NEURON,
        {"arm": "agem", "knob": "agem"},
        0.10,
    ),
    *_digits(
        "beats-replay",
        "Restricting finely, tuned, ends 2 points above replay, tuned",
        _BETTER,
        "tuned_acc",
        {"arm": "fine"},
        {"arm": "replay"},
        0.02,
    ),
    *_digits(
        "beats-replay-all",
        "So it does against replaying every memory at every step, tuned",
        _BETTER,
        "tuned_acc",
        {"arm": "fine"},
        {"arm": "replay_all"},
        0.0,
    ),
    *_digits(
        "beats-ewc",
        "Restricting finely, tuned, ends 5 points above EWC, tuned",
        _BETTER,
        "tuned_acc",
        {"arm": "fine"},
        {"arm": "ewc"},
        0.05,
    ),
    Claim(
        "language-remembers",
        "SmolLM2: GEM per neuron on LoRA forgets at least .05 nats less than nothing does.",
        _LANGUAGE,
        "nll_forgotten",
        {"arm": "fine", "knob": "neuron"},
        {"arm": "none", "knob": "none"},
        "less",
        0.05,
        {"part": "language"},
    ),
    Claim(
        "language-beats-strength",
        "SmolLM2: GEM per neuron ends with a lower loss over all tasks than GEM of strength .5.",
        _BETTER,
        "nll",
        {"arm": "fine", "knob": "neuron"},
        {"arm": "strength", "knob": "0.5"},
        "less",
        0.0,
        {"part": "language"},
    ),
    Claim(
        "language-beats-replay",
        "SmolLM2: GEM per neuron ends with a lower loss over all tasks than replay.",
        _BETTER,
        "nll",
        {"arm": "fine", "knob": "neuron"},
        {"arm": "replay", "knob": "1"},
        "less",
        0.0,
        {"part": "language"},
    ),
)

STUDY = Study(
    slug="gradient-restriction",
    title="Fine-grained gradient restriction",
    question="Is a finer restriction of gradients a better way to remember than a stronger one?",
    cannot_show=(
        "The paper's scale: MNIST with 20 tasks (the size paper has it), Split CIFAR-100 and "
        "DomainNet with convolutional networks; here pictures have 8 x 8 pixels.",
        "What happens with one head for classes that arrive over time: GEM is not meant for that.",
        "A guarantee under AdamW, which the language part uses: the direction is restricted, not "
        "the step that AdamW makes of it.",
        "Tuned rates: all arms step with the paper's .1; replay of a large weight steps further.",
        "Equal compute: GEM takes a gradient of every stored sample at every step, replay and "
        "A-GEM of one batch; evaluations per step are given, and replay_all takes as many as GEM.",
    ),
    arms=(
        Arm("fine", "Fine grain", "GEM by layer, tensor or neuron, or by 2, 4 or 8 memory groups"),
        Arm("both", "Both", "GEM per neuron at two strengths, and by 4 memory groups"),
        Arm("strength", "Strength", "GEM at six memory strengths", baseline=True),
        Arm("none", "No memory", "plain SGD", baseline=True),
        Arm("replay", "Replay", "a batch of memories, at six weights", baseline=True),
        Arm(
            "replay_all",
            "Replay of all",
            "every memory at every step, at six weights: strength without projection",
            baseline=True,
        ),
        Arm("agem", "A-GEM", "one constraint from a batch of memories", baseline=True),
        Arm("mega1", "MEGA-I", "mixed by losses", baseline=True),
        Arm("mega2", "MEGA-II", "rotated by losses", baseline=True),
        Arm("ewc", "EWC", "a quadratic penalty, at six strengths", baseline=True),
    ),
    metrics=(
        Metric("acc", "accuracy on all tasks at the end", "higher", ".1%"),
        Metric("bwt", "backward transfer", "higher", ".1%"),
        Metric("la", "accuracy on every task when learned", "higher", ".1%"),
        Metric("fwt", "forward transfer", "higher", ".1%"),
        Metric("forgetting", "forgetting", "lower", ".1%"),
        Metric("lca", "accuracy over the first ten mini-batches", "higher", ".1%"),
        Metric("evaluations", "memory gradients per step", "lower", ".0f"),
        Metric("active", "share of constraints that bind", "lower", ".1%"),
        Metric("degrees", "angle between gradient and direction (degrees)", "lower", ".1f"),
        Metric("residual", "worst violation left (cosine)", "lower", ".1e"),
        Metric("tuned_acc", "accuracy at the end, knob by validation", "higher", ".1%"),
        Metric("tuned_bwt", "backward transfer, knob by validation", "higher", ".1%"),
        Metric("tuned_la", "learning accuracy, knob by validation", "higher", ".1%"),
        Metric("hypervolume", "area that the front dominates", "higher", ".4f"),
        Metric("nll", "loss on all tasks at the end (nats per token)", "lower"),
        Metric("nll_forgotten", "loss forgotten (nats per token)", "lower"),
        Metric("nll_learned", "loss on every task when learned (nats per token)", "lower"),
    ),
    claims=CLAIMS,
    sizes={
        "quick": Size(
            1,
            STREAMS[:1],
            QUICK_DIGITS,
            minutes=2,
            also=(Size(1, TASKS, QUICK_LANGUAGE),),
        ),
        "full": Size(10, STREAMS, DIGITS, minutes=25, also=(Size(4, TASKS, LANGUAGE),)),
        "paper": Size(
            10,
            STREAMS,
            MNIST,
            minutes=120,
            accelerator=True,
            models=(LARGE["model"],),
            also=(Size(5, TASKS, LARGE),),
        ),
    },
    measure=measure,
    prepare=prepare,
    applies=applies,
    figures=figures,
    takes_model=True,
)
