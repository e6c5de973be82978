"""What `zeitgeist.optimizers.steepest.Steepest` is told for a group of parameters."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from zeitgeist.errors import InputInvalid, did_you_mean
from zeitgeist.optimizers.orthogonalise import METHODS

SCALES = ("norm", "reference", "match_adamw")
PRECISIONS = ("bfloat16", "float32", "float64")
_MUON = "Muon's reference implementation"


def _is(default: Any, meaning: str, source: str) -> Any:
    return field(default=default, metadata={"meaning": meaning, "source": source})


@dataclass(frozen=True)
class SteepestOptions:
    """How steps are taken; each may differ by parameter group."""

    lr: Any = _is(0.02, "size of the update in its norm (1 / lambda if not normalised)", _MUON)
    momentum: float = _is(0.95, "mu of B = mu B + (1 - mu) G; 0: no average", _MUON)
    nesterov: bool = _is(True, "take (1 - mu) G + mu B instead of B", _MUON)
    weight_decay: float = _is(0.0, "W is multiplied by 1 - lr times this first", _MUON)
    orthogonalise: str = _is(
        "fast", "how U V' is found: exact, quintic, fast or polar_express", _MUON
    )
    precision: str = _is("bfloat16", "of the products of fast and polar_express", _MUON)
    scale: str = _is(
        "norm",
        "of orthogonalised updates: norm (as the norm says), reference (max(1, m/n)^.5 U V') "
        "or match_adamw (.2 max(m, n)^.5 U V')",
        "arXiv 2409.20325; Muon; arXiv 2502.16982",
    )
    normalised: bool = _is(
        True,
        "steps of size lr; false: lr times the sum of the dual norms, the rule itself",
        "arXiv 2409.20325 states both",
    )
    weight: float = _is(
        1.0, "s of the modular norm max s |D|: the step is divided by it", "arXiv 2409.20325"
    )
    betas: tuple[float, float] = _is(
        (0.9, 0.999), "of the averages of adam, shampoo and prodigy", "arXiv 1412.6980"
    )
    eps: float = _is(1e-8, "of adam, shampoo and prodigy", "arXiv 1412.6980")

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
