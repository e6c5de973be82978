"""What `zeitgeist.optimizers.steepest.Steepest` is told for a group of parameters."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from zeitgeist.errors import InputInvalid, did_you_mean
from zeitgeist.optimizers.orthogonalise import METHODS

SCALES = ("norm", "reference", "match_adamw")
PRECISIONS = ("bfloat16", "float32", "float64")
_MUON = "Muon's reference implementation"


def _from(source: str, meaning: str) -> dict[str, str]:
    return {"meaning": meaning, "source": source}


@dataclass(frozen=True)
class SteepestOptions:
    """How steps are taken; each may differ by parameter group."""

    lr: Any = field(
        default=0.02,
        metadata=_from(_MUON, "size of the update in its norm (1 / lambda if not normalised)"),
    )
    momentum: float = field(
        default=0.95, metadata=_from(_MUON, "mu of B = mu B + (1 - mu) G; 0: no average")
    )
    nesterov: bool = field(default=True, metadata=_from(_MUON, "take (1 - mu) G + mu B, not B"))
    weight_decay: float = field(
        default=0.0, metadata=_from(_MUON, "W is multiplied by 1 - lr times this first")
    )
    orthogonalise: str = field(
        default="fast",
        metadata=_from(_MUON, "how U V' is found: exact, quintic, fast or polar_express"),
    )
    precision: str = field(
        default="bfloat16", metadata=_from(_MUON, "of the products of fast and polar_express")
    )
    scale: str = field(
        default="norm",
        metadata=_from(
            "arXiv 2409.20325; Muon; arXiv 2502.16982",
            "of orthogonalised updates: norm (as the norm says), reference (max(1, m/n)^.5 U V') "
            "or match_adamw (.2 max(m, n)^.5 U V')",
        ),
    )
    normalised: bool = field(
        default=True,
        metadata=_from(
            "arXiv 2409.20325 states both",
            "steps of size lr; false: lr times the sum of the dual norms, the rule itself",
        ),
    )
    weight: float = field(
        default=1.0,
        metadata=_from("arXiv 2409.20325", "s of the norm max s |D|: the step is divided by it"),
    )
    betas: tuple[float, float] = field(
        default=(0.9, 0.999),
        metadata=_from("arXiv 1412.6980", "of the averages of adam, shampoo and prodigy"),
    )
    eps: float = field(
        default=1e-8, metadata=_from("arXiv 1412.6980", "of adam, shampoo and prodigy")
    )

    def __post_init__(self) -> None:
        rate = float(self.lr.detach()) if isinstance(self.lr, Tensor) else self.lr
        for name, value, most in (
            ("lr", rate, float("inf")),
            ("weight_decay", self.weight_decay, float("inf")),
            ("eps", self.eps, float("inf")),
            ("momentum", self.momentum, 1.0),
            ("betas[0]", self.betas[0], 1.0),
        ):
            if not 0 <= value < most:
                limit = "" if most > 1 else " and less than 1"
                raise InputInvalid(f"{name} is {value}", mend=f"give at least 0{limit}")
        if not 0 <= self.betas[1] <= 1:
            raise InputInvalid(f"betas[1] is {self.betas[1]}", mend="give at least 0, at most 1")
        if not 0 < self.weight < float("inf"):
            raise InputInvalid(f"weight is {self.weight}", mend="give more than 0")
        for name, word, known in (
            ("orthogonalise", self.orthogonalise, METHODS),
            ("scale", self.scale, SCALES),
            ("precision", self.precision, PRECISIONS),
        ):
            if word not in known:
                raise InputInvalid(f"{name} is {word!r}", mend=did_you_mean(word, known))
