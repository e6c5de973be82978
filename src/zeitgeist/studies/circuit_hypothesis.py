"""Do tests of circuits tell known circuits from trained ones, and those from random ones?

Shi, Beltran-Velez, Nazaret, Zheng, Garriga-Alonso, Jesson, Makar, Blei: "Hypothesis testing the
circuit hypothesis in LLMs", arXiv 2410.13032. There: circuits of compiled programs are consistent
with all three ideal tests, circuits found in trained models with some of them, and IOI's, though
not ideal, is sufficient and partially necessary against random circuits.

Here: the same two compiled programs; an induction model trained per seed; SmolLM2 recalling a
token; and the tests themselves on data that satisfies their nulls. GPT-2's published circuits need
models of the hub.
"""

from typing import TYPE_CHECKING

from zeitgeist.evidence import Arm, Claim, Evidence, Metric, Size, Study
from zeitgeist.evidence.study import Setting
from zeitgeist.studies.circuit_hypothesis_numbers import (
    CALIBRATION,
    INDUCTION,
    LARGE_RECALL,
    QUICK_CALIBRATION,
    QUICK_INDUCTION,
    QUICK_RECALL,
    QUICK_TRACR,
    RECALL,
    TRACR,
    measure,
    prepare,
)

if TYPE_CHECKING:
    from zeitgeist.evidence.figures import Figure

ARMS_OF = {
    "tracr": ("canonical", "random"),
    "induction": ("pruned", "top", "random"),
    "recall": ("top", "random"),
    "calibration": ("null",),
}
"""The arms of every part."""


def applies(arm: str, setting: Setting) -> bool:
    """Which arms there are in a part."""
    return arm in ARMS_OF[str(setting["part"])]


def figures(evidence: Evidence) -> "list[Figure]":
    """Every picture of the page, in order."""
    from zeitgeist.studies.circuit_hypothesis_charts import figures as drawn

    return drawn(evidence)


_SYNTHETIC = "Compiled circuits are consistent with equivalence, independence and minimality."
_TRAINED = "Every circuit found in a trained model but IOI's is much worse than the model."
_SPECIAL = "IOI's circuit is sufficient and partially necessary against random circuits."
_RANDOM = "Random circuits are the reference that a circuit must beat."
_LEVEL = "Every test is used at a level of 0.05."


def _passes(slug: str, arm: str, part: str, test: str, least: float, paper: str, how: str) -> Claim:
    where = {"part": part, "test": test}
    return Claim(slug, how, paper, "passes", {"arm": arm}, None, "greater", least, where)


def _over(slug: str, arm: str, part: str, test: str, paper: str, how: str) -> Claim:
    where = {"part": part, "test": test}
    return Claim(slug, how, paper, "over", {"arm": arm}, None, "greater", 0.0, where)


CLAIMS = (
    *(
        _passes(
            f"compiled-{test}",
            "canonical",
            "tracr",
            test,
            0.9,
            _SYNTHETIC,
            f"The circuits of both compiled programs pass {test} in more than 9 of 10 runs.",
        )
        for test in ("equivalence", "independence", "minimality", "sufficiency")
    ),
    Claim(
        "compiled-not-necessary",
        "Cutting them hurts more than fewer than 9 of 10 random circuits as large, drawn from all "
        "edges: in a graph of 32 or 94 edges those hit what is essential, too.",
        "Not in the paper; seen when we tried it.",
        "over",
        {"arm": "canonical"},
        None,
        "less",
        0.05,
        {"part": "tracr", "test": "necessity"},
    ),
    Claim(
        "compiled-not-random",
        "Random circuits as large as the compiled ones pass equivalence less often, by half of "
        "the runs at least (proportion; six examples of reverse can never reject).",
        _RANDOM,
        "passes",
        {"arm": "canonical"},
        {"arm": "random"},
        "greater",
        0.5,
        {"part": "tracr", "program": "proportion", "test": "equivalence"},
    ),
    Claim(
        "induction-not-equivalent",
        "The circuit of the trained induction model is worse than the model on more than 6 of 10 "
        "sequences: it is not equivalent.",
        "The induction circuit fails equivalence.",
        "worse",
        {"arm": "pruned"},
        None,
        "greater",
        0.6,
        {"part": "induction"},
    ),
    Claim(
        "induction-faithful",
        "Yet it goes more than 95 % of the way from everything cut to the model.",
        "The induction circuit is the closest of the discovered ones.",
        "faithfulness",
        {"arm": "pruned"},
        None,
        "greater",
        0.95,
        {"part": "induction"},
    ),
    _passes(
        "induction-within",
        "pruned",
        "induction",
        "within",
        0.9,
        "Not in the paper: equivalence rejects harmless differences.",
        "Its median difference to the model is shown to be below 5 % of what cutting does.",
    ),
    _over(
        "induction-sufficient",
        "pruned",
        "induction",
        "sufficiency",
        _SPECIAL,
        "It is closer to the model than more than 9 of 10 random circuits as large.",
    ),
    _over(
        "induction-necessary",
        "pruned",
        "induction",
        "necessity",
        _SPECIAL,
        "Cutting it hurts more than cutting more than 9 of 10 random circuits as large.",
    ),
    Claim(
        "induction-minimal",
        "Fewer of its edges matter no more than random ones than of a random circuit, by more "
        "than 30 of 100.",
        "The induction circuit is consistent with minimality.",
        "idle",
        {"arm": "pruned"},
        {"arm": "random"},
        "less",
        0.3,
        {"part": "induction"},
    ),
    Claim(
        "pruning-more-minimal-than-scores",
        "Edges left by pruning are idle less often than as many of the largest scores, by more "
        "than 5 of 100.",
        "Not in the paper; seen when we tried it.",
        "idle",
        {"arm": "pruned"},
        {"arm": "top"},
        "less",
        0.05,
        {"part": "induction"},
    ),
    Claim(
        "random-not-equivalent",
        "Random circuits as large are worse than the model on more than 6 of 10 sequences.",
        _RANDOM,
        "worse",
        {"arm": "random"},
        None,
        "greater",
        0.6,
        {"part": "induction"},
    ),
    Claim(
        "random-not-sufficient",
        "They beat fewer than 9 of 10 other random circuits, by more than 2 of 10.",
        _RANDOM,
        "over",
        {"arm": "random"},
        None,
        "less",
        0.2,
        {"part": "induction", "test": "sufficiency"},
    ),
    _passes(
        "random-independent",
        "random",
        "induction",
        "independence",
        0.5,
        "Not in the paper: a pass without a meaning.",
        "Random circuits pass independence more often than not: what is left without them says "
        "nothing because it is as broken.",
    ),
    _over(
        "recall-sufficient",
        "top",
        "recall",
        "sufficiency",
        _SPECIAL,
        "In SmolLM2 the edges of the largest scores are closer to the model than more than 9 of "
        "10 random circuits as large.",
    ),
    _over(
        "recall-necessary",
        "top",
        "recall",
        "necessity",
        _SPECIAL,
        "Cutting them hurts more than cutting more than 9 of 10 random circuits as large.",
    ),
    Claim(
        "recall-not-equivalent",
        "They are worse than the model on more than 6 of 10 sequences.",
        _TRAINED,
        "worse",
        {"arm": "top"},
        None,
        "greater",
        0.6,
        {"part": "recall"},
    ),
    Claim(
        "recall-faithful",
        "They go further from everything cut to the model than a random circuit as large, by more "
        "than a fifth of the way.",
        _SPECIAL,
        "faithfulness",
        {"arm": "top"},
        {"arm": "random"},
        "greater",
        0.2,
        {"part": "recall"},
    ),
    Claim(
        "recall-not-minimal",
        "More than 5 of 100 of them matter no more than random edges.",
        "Greater-than's and IOI's circuits fail minimality; a fifth of IOI's edges can go.",
        "idle",
        {"arm": "top"},
        None,
        "greater",
        0.05,
        {"part": "recall"},
    ),
    *(
        Claim(
            f"level-{test}",
            f"The {test} test rejects a true null in less than 6 of 100 simulations.",
            _LEVEL,
            "room",
            {"arm": "null"},
            None,
            "greater",
            0.0,
            {"part": "calibration", "test": test},
        )
        for test in ("equivalence", "within", "independence", "minimality", "flexible")
    ),
)

_TRACR = tuple({"part": "tracr", "program": name} for name in ("proportion", "reverse"))
_INDUCTION = ({"part": "induction"},)
_RECALL = ({"part": "recall"},)
_CALIBRATION = ({"part": "calibration"},)

STUDY = Study(
    slug="circuit-hypothesis",
    title="Testing circuits",
    question="Which circuits pass which tests: known ones, found ones, random ones?",
    cannot_show=(
        "The paper's table: its circuits are of GPT-2 small and of two models of the hub.",
        "Equivalence of reverse: its six inputs can never reject.",
        "Independence where the model scores every example alike, as compiled programs do: it "
        "passes and says nothing.",
        "That 400 edges are the circuit of recall in SmolLM2: minimality is tried on 60 of them, "
        "and the tests compare with random circuits, not with other good ones.",
        "Partial necessity against circuits without common edges: references are drawn from the "
        "whole model.",
    ),
    arms=(
        Arm("canonical", "Compiled circuit", "the edges that the program uses"),
        Arm("pruned", "Pruned", "edges cut in the order of EAP-IG while that costs little"),
        Arm("top", "Top EAP-IG", "the edges of the largest scores"),
        Arm("random", "Random circuit", "random paths, at least as many edges", baseline=True),
        Arm("null", "Null", "simulated data that satisfies the null", baseline=True),
    ),
    metrics=(
        Metric("passes", "share of runs that pass", "higher", ".0%"),
        Metric("worse", "share of examples worse than the model (ties half)", "lower", ".1%"),
        Metric("idle", "share of edges that matter no more than random ones", "lower", ".1%"),
        Metric("over", "share of random circuits beaten, less 0.9", "higher", ".3f"),
        Metric("beaten", "share of random circuits beaten", "higher", ".1%"),
        Metric("size", "edges / all edges", "lower", ".2%"),
        Metric("faithfulness", "way from everything cut to the model", "higher", ".3f"),
        Metric("complement_faithfulness", "the same without the circuit", "lower", ".3f"),
        Metric("type_one", "share of wrong rejections", "lower", ".1%"),
        Metric("room", "0.06 less the share of wrong rejections", "higher", ".3f"),
    ),
    claims=CLAIMS,
    sizes={
        "quick": Size(
            1,
            _TRACR,
            QUICK_TRACR,
            minutes=2,
            also=(
                Size(1, _INDUCTION, QUICK_INDUCTION),
                Size(1, _RECALL, QUICK_RECALL),
                Size(1, _CALIBRATION, QUICK_CALIBRATION),
            ),
        ),
        "full": Size(
            5,
            _TRACR,
            TRACR,
            minutes=12,
            also=(
                Size(5, _INDUCTION, INDUCTION),
                Size(5, _RECALL, RECALL),
                Size(5, _CALIBRATION, CALIBRATION),
            ),
        ),
        "paper": Size(
            5,
            _RECALL,
            LARGE_RECALL,
            minutes=120,
            accelerator=True,
            models=(LARGE_RECALL["model"],),
        ),
    },
    measure=measure,
    prepare=prepare,
    applies=applies,
    figures=figures,
    takes_model=True,
)
