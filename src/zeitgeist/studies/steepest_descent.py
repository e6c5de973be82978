"""Are known optimisers steepest descent under a norm, and does the right norm keep its best rate?

Bernstein, Newhouse: "Old Optimizer, New Norm: An Anthology", arXiv 2409.20325. A paper of theory
without a table; its equalities are tested as they stand, in float64. Its advice, that layers with
different roles want different norms, is tested by what it should bring: a learning rate that need
not be tuned again at another width. `zeitgeist.studies.steepest_descent_numbers` says how it is
measured.
"""

from typing import TYPE_CHECKING

from zeitgeist.evidence import Arm, Claim, Evidence, Metric, Size, Study
from zeitgeist.studies.steepest_descent_numbers import applies, measure

if TYPE_CHECKING:
    from zeitgeist.evidence.figures import Figure


def figures(evidence: Evidence) -> "list[Figure]":
    """Every picture of the page, in order."""
    from zeitgeist.studies.steepest_descent_charts import figures as drawn

    return drawn(evidence)


_EQUAL = {
    "adam-sign": "Adam without averages is sign descent.",
    "adam-torch": "Our Adam is torch's over 20 steps.",
    "shampoo-polar": "Shampoo without accumulation moves along U V'.",
    "shampoo-low-rank": "So it does where the gradient has low rank.",
    "muon-polar": "Muon without momentum moves along the polar factor.",
    "prodigy-recursion": "Prodigy without averages is sign descent with an escaping step.",
    "optimum": "A step over several layers attains -|G|*^2 / (2 lambda).",
    "hoelder": "<G, T(G)> is the dual norm and |T(G)| is 1, under every norm.",
}
_ROLES = "Layers with different roles should be given different norms."


def _spread(other: str, title: str, margin: float) -> Claim:
    return Claim(
        f"steadier-than-{other}",
        f"The best rate moves less over widths under the modular norm than under {title}"
        + (f", by more than {margin:g} octaves." if margin else "."),
        _ROLES,
        "spread",
        {"arm": "modular"},
        {"arm": other},
        "less",
        margin,
        {"part": "transfer"},
    )


def _drifts(arm: str, title: str) -> Claim:
    return Claim(
        f"{arm}-drifts",
        f"With {title} the best rate moves by more than a factor 2 over widths.",
        _ROLES + " Ours: one norm for all roles does not know of width.",
        "beyond_factor_two",
        {"arm": arm},
        None,
        "greater",
        0.0,
        {"part": "transfer"},
    )


CLAIMS = (
    *(
        Claim(
            name,
            f"{statement} (to 1e-12)",
            "Adam, Shampoo and Prodigy are steepest descent under particular norms.",
            "error",
            {"equality": name},
            None,
            "equal",
            1e-12,
            {"part": "equalities"},
        )
        for name, statement in _EQUAL.items()
    ),
    Claim(
        "modular-transfers",
        "Under the modular norm the best rate stays within a factor 2 over all widths.",
        _ROLES,
        "beyond_factor_two",
        {"arm": "modular"},
        None,
        "less",
        0.0,
        {"part": "transfer"},
    ),
    _drifts("sign", "sign descent"),
    _drifts("frobenius", "Frobenius norms"),
    _spread("sign", "sign descent", 0.5),
    _spread("frobenius", "Frobenius norms", 0.5),
    _spread("spectral", "spectral norms", 0.0),
    Claim(
        "carried-over",
        "The narrowest network's best rate costs the widest less under the modular norm than "
        "under sign descent, by more than .02 nats per character.",
        _ROLES,
        "transfer_cost",
        {"arm": "modular"},
        {"arm": "sign"},
        "less",
        0.02,
        {"part": "transfer"},
    ),
    Claim(
        "better-than-sgd",
        "At their best rates networks of 256 and 512 units lose less under the modular norm than "
        "with SGD.",
        _ROLES,
        "best_loss",
        {"arm": "modular"},
        {"arm": "sgd"},
        "less",
        0.0,
        {"part": "transfer", "width": (256, 512)},
    ),
)

# Errors of a few units in the last place take few values: few seeds would tie.
_EQUALITIES = Size(20, ({"part": "equalities"},))

STUDY = Study(
    slug="steepest-descent",
    title="Steepest descent under a norm",
    question="Are known optimisers steepest descent, and does the right norm keep its best rate?",
    cannot_show=(
        "What Muon saves on large language models: wall clock at that size is not measured.",
        "Transfer over depth, or beyond 512 units: widths are what changes here.",
        "That these are the best settings: momentum, schedule and start are the same for all ways, "
        "and only the rate is tuned.",
    ),
    arms=(
        Arm("sgd", "SGD", "the averaged gradient itself", baseline=True),
        Arm("frobenius", "Frobenius", "every layer's gradient at length 1", baseline=True),
        Arm("sign", "Sign", "the largest entry as norm, as in Adam", baseline=True),
        Arm("spectral", "Spectral", "U V' for all matrices, as in Shampoo and Muon"),
        Arm(
            "modular",
            "Modular",
            "RMS to RMS for linear layers, l1 to RMS for the embedding, RMS for biases",
        ),
        Arm("identity", "Equalities", "known optimisers against the rule, in float64"),
    ),
    metrics=(
        Metric("error", "largest difference", "lower", ".1e"),
        Metric("loss", "held-out loss (nats per character)", "lower"),
        Metric("best_loss", "held-out loss at the best rate (nats per character)", "lower"),
        Metric("best_rate", "log2 of the best rate", "higher", ".2f"),
        Metric("spread", "best rates over widths, highest to lowest (octaves)", "lower", ".2f"),
        Metric("beyond_factor_two", "the same beyond one octave", "lower", ".2f"),
        Metric("transfer_cost", "loss for the narrowest's rate (nats per character)", "lower"),
        Metric("at_edge", "best rate at the end of the sweep (share)", "lower", ".0%"),
    ),
    claims=CLAIMS,
    sizes={
        "quick": Size(
            1,
            ({"part": "transfer"},),
            {"widths": (64, 128, 256), "rates": 8, "steps": 60, "batch": 64},
            minutes=2,
            also=(_EQUALITIES,),
        ),
        "full": Size(
            5,
            ({"part": "transfer"},),
            {"widths": (64, 128, 256, 512), "rates": 8, "steps": 100, "batch": 128},
            minutes=15,
            also=(_EQUALITIES,),
        ),
        "paper": Size(
            10,
            ({"part": "transfer"},),
            {"widths": (64, 128, 256, 512, 1024, 2048), "rates": 8, "steps": 1000, "batch": 256},
            minutes=600,
            accelerator=True,
            also=(_EQUALITIES,),
        ),
    },
    measure=measure,
    applies=applies,
    figures=figures,
)
