"""What do cheaper mixers lose, and when, on a task that compares all pairs?

Alman, Yu: "Fundamental Limitations on Subquadratic Alternatives to Transformers", arXiv 2410.04271.
A theory paper without numbers: every number here is ours. Parts (column ``part``), measured in
`zeitgeist.studies.subquadratic_limits_measures`:

    constructions  the paper's attention head, and two more, decide as brute force does
    curve          time in n of exact search, attention and what is cheaper, with its recall
    learned        accuracy of trained mixers against how much they have to remember

The theorem is conditional (SETH), worst case, about time, and asymptotic. No experiment proves or
refutes it. The learned part tests a cousin that needs no conjecture: a state of S bits that was
written before the question cannot answer for n l bits once they are more than about S.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from zeitgeist.evidence import Arm, Claim, Evidence, Metric, Size, Study
from zeitgeist.evidence.study import Setting
from zeitgeist.studies.subquadratic_limits_measures import KNEE, applies, measure

if TYPE_CHECKING:
    from zeitgeist.evidence.figures import Figure


def figures(evidence: Evidence) -> "list[Figure]":
    """Every picture of the page, in order."""
    from zeitgeist.studies.subquadratic_limits_charts import figures as drawn

    return drawn(evidence)


_HEAD = "One attention unit with MLPs before and after it solves OV, Max-IP and, through them, MSD."
_PRECISE = ("float64", "float32")
_QUADRATIC = "Most similar documents cannot be found in n^(2 - eps), if SETH holds."
_LINEAR = "Linear attention is evaluated in linear time, and therefore cannot solve the problem."
_STATE = (
    "Ours: what is read before the question is known only through the state, so that a state of S "
    "bits fails once n l is much more than S."
)
_FIXED: Mapping[str, tuple[str, Setting]] = {
    "linear": ("linear attention (64 features)", {"arm": "linear", "features": 64}),
    "mingru": ("minGRU", {"arm": "mingru"}),
    "window": ("the sliding window", {"arm": "window"}),
    "hybrid": ("the hybrid (64 features)", {"arm": "hybrid", "features": 64}),
}

CLAIMS = (
    *(
        Claim(
            f"{name}-right",
            f"The construction for {title} is right in every instance, in float64 and float32.",
            _HEAD,
            "wrong",
            {"construction": name},
            None,
            "equal",
            1e-9,
            {"part": "constructions", "precision": _PRECISE},
        )
        for name, title in (
            ("ov", "orthogonal vectors"),
            ("threshold", "the inner product's threshold"),
            ("cosine", "the most similar pair"),
        )
    ),
    Claim(
        "half-precision-errs",
        "In float16 the most similar pair is missed more often than in float64.",
        "Ours: two cosines may differ by 1 / (2 l^4) only, which half precision cannot tell.",
        "wrong",
        {"precision": "float16"},
        {"precision": "float64"},
        "greater",
        0.0,
        {"part": "constructions", "construction": "cosine"},
    ),
    Claim(
        "exact-quadratic",
        "The time of exact search grows as n^2, to 0.1 in the exponent.",
        _QUADRATIC,
        "exponent_error",
        {"arm": "exact"},
        None,
        "equal",
        0.1,
        {"part": "curve"},
    ),
    Claim(
        "linear-linear",
        "The time of linear attention grows as n, to 0.1 in the exponent.",
        _LINEAR,
        "exponent_error",
        {"arm": "linear"},
        None,
        "equal",
        0.1,
        {"part": "curve"},
    ),
    Claim(
        "softmax-near-ceiling",
        "Softmax attention answers more than 90 % rightly at every n.",
        _STATE + " The state of softmax attention grows with n.",
        "worst",
        {"arm": "softmax"},
        None,
        "greater",
        0.9,
        {"part": "learned"},
    ),
    *(
        Claim(
            f"{name}-falls",
            f"From the least n to the greatest, {title} loses more accuracy than softmax attention "
            "does, by more than five points.",
            _STATE,
            "fall",
            side,
            {"arm": "softmax"},
            "greater",
            0.05,
            {"part": "learned"},
        )
        for name, (title, side) in _FIXED.items()
    ),
    Claim(
        "knee-moves",
        f"With 64 features instead of 16 linear attention stays above {KNEE:.0%} to more than "
        "twice the n.",
        _STATE + " Sixteen times the state should bear sixteen times the n.",
        "knee",
        {"features": 64},
        {"features": 16},
        "greater",
        1.0,
        {"part": "learned", "arm": "linear"},
    ),
    Claim(
        "collapse",
        "Across states, n l / state explains the accuracy of linear attention better than n alone: "
        "the share it leaves unexplained is smaller by more than two points.",
        _STATE,
        "unexplained",
        {"variable": "load"},
        {"variable": "n"},
        "less",
        0.02,
        {"part": "learned"},
    ),
    Claim(
        "collapse-per-feature",
        "n l / features, the square root of the state, explains it better than n l / state, by "
        "more than two points.",
        "Ours, from a trial with one seed in which sixteen times the state bore about four times "
        "the n: what limits a trained kernel would be its rank, not its numbers.",
        "unexplained",
        {"variable": "load_per_feature"},
        {"variable": "load"},
        "less",
        0.02,
        {"part": "learned"},
    ),
    Claim(
        "larger-state-succeeds",
        "Linear attention of 128 features answers more than 90 % rightly at n = 16.",
        "Ours: the control. Where the state is ample the same training succeeds, so that failing "
        "with less is about the state.",
        "accuracy",
        {"features": 128},
        None,
        "greater",
        0.9,
        {"part": "learned", "arm": "linear", "n": 16},
    ),
)

_LEARNED = {"part": "learned"}
_FEATURES = {"features": (16, 32, 64, 128), "hybrid": (64,)}

STUDY = Study(
    slug="subquadratic-limits",
    title="What subquadratic mixers cannot do",
    question="Which pairwise tasks does a cheaper mixer lose, and at which length?",
    cannot_show=(
        "Anything about the theorem: it is conditional on SETH, about the worst case, about time "
        "and asymptotic, and no experiment proves or refutes it.",
        "That no clever subquadratic model exists: random instances can be easy, and hashing finds "
        "near pairs in less than quadratic time there.",
        "What a state could hold at best: a trained model can fail for want of training long "
        "before its state is full, so accuracies are lower bounds.",
        "Larger models: one block, up to 256 vectors of 24 signs.",
    ),
    arms=(
        Arm(
            "softmax",
            "Softmax attention",
            "every query looks at every vector, and at a null key; its state grows with n",
            baseline=True,
        ),
        Arm("exact", "Exact search", "all inner products, blocked", baseline=True),
        Arm("linear", "Linear attention", "products of features; a state of features squared"),
        Arm("mingru", "minGRU", "a gated recurrence with a state of 256 numbers"),
        Arm("window", "Sliding window", "softmax attention over the nearest vectors only"),
        Arm("hybrid", "Hybrid (LoLCATs)", "a window of softmax, linear attention for the rest"),
        Arm("lsh", "Hashing (LSH)", "compares only what falls into one bucket"),
        Arm("projection", "Random projection", "compares all in fewer dimensions"),
    ),
    metrics=(
        Metric("accuracy", "accuracy (share of queries right)", "higher", ".1%"),
        Metric("worst", "accuracy at the worst n", "higher", ".1%"),
        Metric("fall", "accuracy lost from the least n to the greatest", "lower", ".1%"),
        Metric("knee", f"log2 of the n where accuracy falls below {KNEE:.0%}", "higher", ".2f"),
        Metric("state", "state (numbers)", "lower", ".0f"),
        Metric("load", "n l / state", "lower"),
        Metric("unexplained", "share of variance left over", "lower", ".1%"),
        Metric("wrong", "decisions wrong (share)", "lower", ".2%"),
        Metric("margin_yes", "output where a pair exists / threshold", "higher", ".2e"),
        Metric("margin_no", "output where none exists / threshold", "lower", ".2e"),
        Metric("time", "time (s)", "lower", ".2e"),
        Metric("flops", "operations", "lower", ".2e"),
        Metric("recall", "true best pair found (share)", "higher", ".1%"),
        Metric("exponent", "exponent of time in n", "lower", ".2f"),
        Metric("exponent_error", "exponent of time less the expected", "lower", "+.2f"),
    ),
    claims=CLAIMS,
    sizes={
        "quick": Size(
            5,
            (_LEARNED,),
            {
                "sizes": (4, 16, 64),
                "features": (16, 64, 128),
                "hybrid": (64,),
                "options": {"width": 32, "steps": 400, "batch": 16},
            },
            minutes=2,
            also=(
                Size(5, ({"part": "constructions"},), {"sizes": (64, 256), "signs": (32,)}),
                Size(
                    5,
                    ({"part": "curve"},),
                    {"sizes": (512, 1024, 2048, 4096), "l": 32, "repeats": 3},
                ),
            ),
        ),
        "full": Size(
            5,
            (_LEARNED,),
            {
                "sizes": (4, 16, 64, 256),
                **_FEATURES,
                "options": {"width": 64, "steps": 1200, "batch": 16},
            },
            minutes=18,
            also=(
                Size(
                    5, ({"part": "constructions"},), {"sizes": (64, 512, 2048), "signs": (32, 64)}
                ),
                Size(
                    5,
                    ({"part": "curve"},),
                    {"sizes": (1024, 2048, 4096, 8192), "l": 32, "repeats": 3},
                ),
            ),
        ),
        "paper": Size(
            10,
            (_LEARNED,),
            {
                "sizes": (4, 16, 64, 256, 1024),
                **_FEATURES,
                "options": {"width": 128, "steps": 5000, "batch": 32},
            },
            minutes=600,
            also=(
                Size(
                    10, ({"part": "constructions"},), {"sizes": (64, 512, 4096), "signs": (32, 64)}
                ),
                Size(
                    10,
                    ({"part": "curve"},),
                    {"sizes": (1024, 2048, 4096, 8192, 16384), "l": 32, "repeats": 5},
                ),
            ),
        ),
    },
    measure=measure,
    applies=applies,
    figures=figures,
)
