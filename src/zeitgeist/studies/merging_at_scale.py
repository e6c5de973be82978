"""Does merging work better for larger models, better bases and fewer experts?

Yadav, Vu, Lai, Chronopoulou, Faruqui, Bansal, Munkhdalai: "What Matters for Model Merging at
Scale?", arXiv 2410.03617. There: PaLM-2 of 1B to 64B parameters, plain and instruction-tuned, four
merge methods, two to eight full fine-tunes; every merge is scored on the tasks of its experts
(held-in, relative to each task's own expert) and on others (held-out, relative to the base).

Here the same design at a size that a laptop trains (`zeitgeist.studies.merging_at_scale_digits`):
networks of four widths, bases pretrained briefly (weak) or long (strong), the same four methods,
the same numbers of experts. The paper's five findings are the claims, as directions; margins are a
small part of the differences in its tables, because networks this small have less room.

One check on a language model stands beside it, with two and four LoRA experts
(`zeitgeist.studies.merging_at_scale_language`).

Read with care. A strong base is already good at the held-in tasks, so that a merge that does
nothing is close to the experts: normalised held-in performance of strong and wide bases has little
room to fall. Absolute accuracy and the zero-shot score stand beside it, and ``recovered`` says what
share of the way from the base to the experts a merge goes.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from zeitgeist.evidence import Arm, Claim, Evidence, Group, Measured, Metric, Size, Study
from zeitgeist.evidence.study import Setting
from zeitgeist.studies import language
from zeitgeist.studies import merging_at_scale_digits as digits
from zeitgeist.studies import merging_at_scale_language as speaking
from zeitgeist.studies.merging_at_scale_digits import METHODS

if TYPE_CHECKING:
    from zeitgeist.evidence.figures import Figure

NARROW, WIDE, MOST = 12, 96, 8
BASES = ("weak", "strong")

ARMS = (
    Arm("base", "Base", "the pretrained model as it is (zero-shot)", baseline=True),
    Arm("expert", "Own expert", "each task's own fine-tune", baseline=True),
    Arm("multitask", "Multitask", "one model trained on all held-in tasks at once", baseline=True),
    Arm("average", "Averaging", "the mean of the experts' weights; nothing to tune"),
    Arm("task_arithmetic", "Task arithmetic", "base + lambda times the sum of the updates"),
    Arm("ties", "TIES", "trim each update, elect a sign per weight, average those that agree"),
    Arm("dare_ties", "DARE-TIES", "drop weights of each update at random, rescale, then elect"),
)

METRICS = (
    Metric("held_in", "held-in accuracy / own expert's", "higher"),
    Metric("held_in_absolute", "held-in accuracy (share right)", "higher"),
    Metric("held_out", "held-out accuracy / the base's", "higher"),
    Metric("held_out_absolute", "held-out accuracy (share right)", "higher"),
    Metric("zero_shot", "the base's accuracy on the held-in tasks (share right)", "higher"),
    Metric("recovered", "share of the way from base to experts, held-in", "higher"),
    Metric("perplexity_ratio", "held-out perplexity / the base's", "lower"),
    Metric("apart", "distance from the mean of the four methods, held-in", "lower", ".4f"),
    Metric("over_base", "held-out accuracy / the base's, less 1", "higher"),
    Metric(
        "over_multitask", "held-out accuracy / the base's, less the multitask model's", "higher"
    ),
    Metric("lost_with_experts", "held-in lost from fewest to most experts", "lower"),
    Metric("held_out_rise", "held-out gained from fewest to most experts", "higher"),
    Metric("lambda", "lambda chosen on validation", "lower", ".2f"),
    Metric("density", "density chosen on validation", "lower", ".2f"),
    Metric("evaluations", "evaluations used for tuning", "lower", ".0f"),
)

_DIGITS: Mapping[str, Any] = {"family": "digits", "arm": METHODS}
_ALL_EIGHT: Mapping[str, Any] = {**_DIGITS, "experts": MOST}

CLAIMS = (
    Claim(
        "better-base",
        "Merges of eight experts keep more of their experts' accuracy when the base is strong, by "
        "more than 5 points.",
        "Eight experts of PaLM-2-IT keep .86 to .93 of held-in performance, of PaLM-2 .39 to .67.",
        "held_in",
        {"base": "strong"},
        {"base": "weak"},
        "greater",
        0.05,
        _ALL_EIGHT,
    ),
    Claim(
        "larger-is-easier",
        "Merges of eight experts keep more of their experts' accuracy at width 96 than at 12, by "
        "more than 5 points.",
        "With eight experts held-in performance rises from 1B to 64B: .86 to .93 (IT), .39 to .67.",
        "held_in",
        {"width": WIDE},
        {"width": NARROW},
        "greater",
        0.05,
        _ALL_EIGHT,
    ),
    Claim(
        "generalises",
        "Merges of eight experts are better on held-out tasks than their base, by more than 1 %.",
        "Held-out performance of eight merged experts is 1.00 to 1.35 of the base's, mostly above.",
        "over_base",
        {"experts": MOST},
        None,
        "greater",
        0.01,
        _DIGITS,
    ),
    Claim(
        "more-experts-generalise",
        "From two to eight experts, held-out accuracy relative to the base rises by more than 1 "
        "point.",
        "From two to eight experts held-out performance changes by -.06 to +.13 of the base's, and "
        "rises in five of seven models (24B-IT 1.05 to 1.18, 64B-IT 1.00 to 1.09).",
        "held_out_rise",
        {},
        None,
        "greater",
        0.01,
        _DIGITS,
    ),
    Claim(
        "reaches-multitask",
        "Eight merged experts of the widest strong base are better on held-out tasks than the "
        "multitask model.",
        "Eight 64B-IT experts reach 1.09 held-out, the multitask model 1.05; no other column of "
        "the paper's tables does.",
        "over_multitask",
        {"base": "strong", "width": WIDE},
        None,
        "greater",
        0.0,
        _ALL_EIGHT,
    ),
    Claim(
        "takes-more-experts",
        "From two to eight experts, width 96 loses less held-in accuracy than width 12, by more "
        "than 2 points.",
        "From two to eight experts PaLM-2 1B loses .27 and 64B .13; PaLM-2-IT 1B .05 and 64B .07.",
        "lost_with_experts",
        {"width": WIDE},
        {"width": NARROW},
        "less",
        0.02,
        _DIGITS,
    ),
    Claim(
        "methods-converge",
        "With eight experts the four methods lie closer together at width 96 than at 12.",
        "At 64B-IT all four methods keep .93 with eight experts.",
        "apart",
        {"width": WIDE},
        {"width": NARROW},
        "less",
        0.002,
        _ALL_EIGHT,
    ),
    Claim(
        "fewer-experts-language",
        "On SmolLM2 merges of two experts keep more of their exact answers than merges of four, by "
        "more than 5 points.",
        "From two to eight experts held-in performance falls, at 1B from .91 to .86 (IT) and from "
        ".66 to .39.",
        "held_in",
        {"experts": 2},
        {"experts": 4},
        "greater",
        0.05,
        {"family": "smollm2", "arm": METHODS},
    ),
)

_LANGUAGE = "smollm2"
_NUMBERS: Mapping[str, Any] = {
    "blocks": 6,
    "held_in": MOST,
    "held_out": 4,
    "experts": (2, 4, 6, MOST),
    "sets": 3,
    "pretraining": {"weak": 60, "strong": 500},
    "steps": 120,
}


def applies(arm: str, setting: Setting) -> bool:
    """Which arms there are in a family: the language check is a small one."""
    return setting["family"] == "digits" or arm not in ("multitask", "dare_ties")


def prepare(group: Group) -> tuple[bool, Any]:
    """What all arms of a group share, made by the family that the setting names."""
    if group.setting["family"] == _LANGUAGE:
        return True, language.prepare(group)
    return False, digits.prepare(group)


def measure(arm: str, prepared: tuple[bool, Any]) -> Iterable[Measured]:
    """The numbers of one arm."""
    speaks, shared = prepared
    return speaking.measure(arm, shared) if speaks else digits.measure(arm, shared)


def figures(evidence: Evidence) -> "list[Figure]":
    """The pictures of the page."""
    from zeitgeist.studies.merging_at_scale_charts import figures as drawn

    return drawn(evidence)


def _digits_settings(*widths: int) -> tuple[dict[str, Any], ...]:
    return tuple({"family": "digits", "width": w, "base": b} for w in widths for b in BASES)


def _speaking(numbers: Mapping[str, Any], seeds: int = 5) -> Size:
    return Size(seeds, ({"family": _LANGUAGE},), numbers)


STUDY = Study(
    slug="merging-at-scale",
    title="What matters for merging at scale",
    question="Which of model size, base quality, number of experts and method decides whether "
    "merging fine-tunes works?",
    cannot_show=(
        "Billions of parameters: the widest network here has 118,000.",
        "Language tasks of the paper (T0): tasks here are label maps of the same digits, which "
        "share more than those do.",
        "How far normalised held-in accuracy of a strong base could fall: it starts near the "
        "experts. Absolute accuracy and the zero-shot score are shown beside it.",
        "At which size merging overtakes multitask training: that depends on how long each trains.",
    ),
    arms=ARMS,
    metrics=METRICS,
    claims=CLAIMS,
    sizes={
        "quick": Size(
            8,
            _digits_settings(NARROW, WIDE),
            _NUMBERS,
            minutes=1.5,
            on_model=(_speaking(language.QUICK, seeds=1),),
        ),
        "full": Size(
            8,
            _digits_settings(NARROW, 24, 48, WIDE),
            _NUMBERS,
            minutes=29,
            also=(_speaking(language.NUMBERS),),
        ),
        "paper": Size(
            30,
            _digits_settings(NARROW, 24, 48, WIDE, 192, 384),
            _NUMBERS,
            minutes=300,
            accelerator=True,
            models=(language.LARGE,),
            also=(_speaking(language.LARGE_NUMBERS),),
        ),
    },
    measure=measure,
    prepare=prepare,
    applies=applies,
    figures=figures,
    takes_model=True,
)
