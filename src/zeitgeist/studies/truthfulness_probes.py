"""Does a model know that its answer is wrong, where does that stand, and is it one thing?

Orgad, Toker, Gekhman, Reichart, Szpektor, Kotek, Belinkov: "LLMs Know More Than They Show", arXiv
2410.02707. There, on Mistral-7B-instruct: the area under the curve of a probe at the last token of
the exact answer is 0.85 (TriviaQA), 0.92 (WinoBias) and 0.92 (mathematics), at the last token of
all 0.71, 0.82, 0.74, at the end of the question 0.76, 0.82, 0.72; the best score that needs no
training reaches 0.75, 0.56 and 0.71. Probes of one set lose most of that on another. A probe picks
among samples about as well as the majority does.

There the exact answer of a right answer is the gold alias, and that of a wrong one is extracted by
another model: the label decides where the probe looks. Here every set is measured twice, with the
label-blind rule and with the label-dependent one, on the same answers.

A seed draws folds, and the entities that the areas are computed over are drawn again with
replacement, as the paper's seeds are. Answers are generated once.
"""

from typing import TYPE_CHECKING

from zeitgeist.evidence import Arm, Claim, Evidence, Metric, Size, Study
from zeitgeist.evidence.study import Setting
from zeitgeist.studies.truthfulness_probes_numbers import (
    DETECT,
    FULL,
    LARGE,
    QUICK,
    SCORES,
    measure,
    prepare,
)

if TYPE_CHECKING:
    from zeitgeist.evidence.figures import Figure

ARMS_OF = {
    "detect": DETECT,
    "transfer": ("exact_last",),
    "select": ("pick", "majority", "greedy", "random", "oracle"),
}
"""The arms of every part."""


def applies(arm: str, setting: Setting) -> bool:
    """Which arms there are in a part."""
    return arm in ARMS_OF[str(setting["part"])]


def figures(evidence: Evidence) -> "list[Figure]":
    """Every picture of the page, in order."""
    from zeitgeist.studies.truthfulness_probes_charts import figures as drawn

    return drawn(evidence)


_WHERE = (
    "Mistral-7B-instruct: 0.85, 0.92 and 0.92 at the exact answer's last token on TriviaQA, "
    "WinoBias and mathematics; 0.71, 0.82, 0.74 at the last token; 0.76, 0.82, 0.72 at the end of "
    "the question."
)
_FREE = "The best score without training reaches 0.75, 0.56 and 0.71 on the same sets."
_CONTROL = "Not in the paper: what an answer's length alone tells."
_OTHERS = "Probes taught by one set lose most of their edge on sets that need another skill."
_PICKS = "A little better than the majority over all questions, 30 to 40 points on some kinds."
MARGIN = 0.02
_NOT = {
    "last": ("at the answer's last token", _WHERE),
    "question_last": ("at the question's last token", _WHERE),
    "best_score": ("of the best score that needs no training", _FREE),
    "length": ("of the answer's length", _CONTROL),
    "span_length": ("of the exact answer's length", _CONTROL),
}


def _above(other: str, extraction: str) -> Claim:
    what, paper = _NOT[other]
    how = "by one rule for all" if extraction == "blind" else "with a look at the label"
    return Claim(
        f"{extraction}-above-{other.replace('_', '-')}",
        f"Exact answers located {how}: the area at their last token is above that {what} by more "
        f"than {MARGIN:g}, over all sets.",
        paper,
        "auc",
        {"arm": "exact_last"},
        {"arm": other},
        "greater",
        MARGIN,
        {"part": "detect", "extraction": extraction},
    )


CLAIMS = (
    *(_above(other, "blind") for other in _NOT),
    *(_above(other, "published") for other in _NOT),
    Claim(
        "label-leaks",
        "Where the label decides which token is looked at, the area is higher by more than "
        f"{MARGIN:g} than where one rule decides.",
        "Not in the paper, which locates exact answers with a look at the label.",
        "auc",
        {"extraction": "published"},
        {"extraction": "blind"},
        "greater",
        MARGIN,
        {"part": "detect", "arm": "exact_last"},
    ),
    Claim(
        "others-fall",
        "A probe taught by another set has an area lower by more than 0.05 than the set's own.",
        _OTHERS,
        "fall",
        {"arm": "exact_last"},
        None,
        "greater",
        0.05,
        {"part": "transfer"},
    ),
    Claim(
        "others-add-nothing",
        "A probe taught by another set is below the best score that needs no training.",
        _OTHERS,
        "gain_elsewhere",
        {"arm": "exact_last"},
        None,
        "less",
        0.0,
        {"part": "transfer"},
    ),
    *(
        Claim(
            f"pick-above-{other}",
            f"Of several samples the probe's pick is right more often than {what}.",
            _PICKS,
            "picked",
            {"arm": "pick"},
            {"arm": other},
            "greater",
            0.0,
            {"part": "select"},
        )
        for other, what in (
            ("majority", "the majority"),
            ("greedy", "the greedy answer"),
            ("random", "a sample drawn at random"),
        )
    ),
)

_SETS = ("capitals", "currencies", "elements", "sums-1", "sums-2")
# Neighbours in this list run at the same time: those of one set would wait for each other.
_DETECT = tuple(
    {"part": "detect", "set": name, "extraction": extraction}
    for extraction in ("blind", "published")
    for name in _SETS
)
_TRANSFER = ({"part": "transfer", "extraction": "blind"},)
_SELECT = ({"part": "select", "set": "capitals"},)
_FEW = tuple(setting for setting in _DETECT if setting["set"] in ("capitals", "sums-1"))

STUDY = Study(
    slug="truthfulness-probes",
    title="Truthfulness probes",
    question="Does a model know that its answer is wrong, at which token, and is it one thing "
    "for all questions?",
    cannot_show=(
        "The paper's models of 7 and 8 billion parameters and its ten sets of 20,000 questions.",
        "The published extraction by another model: where an answer is wrong the label-dependent "
        "arm uses the same rule as the blind one, so that the size of the leak is that of this "
        "pair of rules.",
        "Variation over models and prompts: all seeds share one model's greedy answers. A seed "
        "draws folds and entities; five seeds give intervals about two thirds as wide as an "
        "interval over all questions would be, which is drawn beside them.",
        "Areas at the paper's resolution: with 200 questions a set the standard error is 0.03.",
    ),
    arms=(
        Arm("exact_last", "Probe, exact answer's last token", "the layer is chosen in training"),
        Arm("exact_first", "Probe, exact answer's first token", "where the exact answer begins"),
        Arm("last", "Probe, last token", "the last token of the answer", baseline=True),
        Arm(
            "question_last",
            "Probe, question's last token",
            "before a word of the answer: does it know this entity",
            baseline=True,
        ),
        Arm(
            "best_score",
            "Best score without training",
            f"the best of {len(SCORES)}, chosen on the rows it is compared on",
            baseline=True,
        ),
        Arm("length", "Answer's length", "in tokens, in whichever direction", baseline=True),
        Arm(
            "span_length",
            "Exact answer's length",
            "in tokens, in whichever direction",
            baseline=True,
        ),
        Arm("pick", "Probe's pick", "the sample of the highest P(right)"),
        Arm("majority", "Majority", "right where right samples are the largest cluster", True),
        Arm("greedy", "Greedy answer", "no sample at all", True),
        Arm("random", "A sample at random", "the mean over samples", True),
        Arm("oracle", "Best of the samples", "right where any is: the most there is", True),
    ),
    metrics=(
        Metric("auc", "area under the ROC curve", "higher"),
        Metric("score_auc", "area of a score without training", "higher"),
        Metric("lead", "lead of the probe at the exact answer (area)", "higher"),
        Metric("lead_low", "its 95 % interval over entities, from", "higher"),
        Metric("lead_high", "its 95 % interval over entities, to", "higher"),
        Metric("map", "area by layer and token", "higher"),
        Metric("accuracy", "share of answers that are right", "higher", ".1%"),
        Metric("strict", "share that is right with case, accents and whole words", "higher", ".1%"),
        Metric("located", "share of answers with an exact answer", "higher", ".1%"),
        Metric("transfer", "area of a set's probe on another set", "higher"),
        Metric("gain", "the same minus the best score without training there", "higher"),
        Metric("fall", "own area - mean area of other sets' probes", "higher"),
        Metric("gain_elsewhere", "other sets' probes - best score without training", "higher"),
        Metric("picked", "share of questions answered rightly", "higher", ".1%"),
    ),
    claims=CLAIMS,
    sizes={
        "quick": Size(
            1,
            _FEW,
            QUICK,
            minutes=2,
            also=(Size(1, _TRANSFER, QUICK), Size(1, _SELECT, QUICK)),
        ),
        "full": Size(
            5,
            _DETECT,
            FULL,
            minutes=15,
            also=(Size(5, _TRANSFER, FULL), Size(5, _SELECT, FULL)),
        ),
        "paper": Size(
            5,
            _DETECT,
            LARGE,
            minutes=120,
            accelerator=True,
            models=(LARGE["model"],),
            also=(Size(5, _TRANSFER, LARGE), Size(5, _SELECT, LARGE)),
        ),
    },
    measure=measure,
    prepare=prepare,
    applies=applies,
    figures=figures,
    takes_model=True,
)
