"""What the tests of circuits and their discovery are told."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from zeitgeist.errors import InputInvalid

_PAPER = "arXiv 2410.13032"
_OURS = "ours"

Method = Literal["eap", "eap-ig", "acdc", "prune"]
Along = Literal["inputs", "activations", "masks"]
Selection = Literal["top", "greedy"]
Reference = Literal["whole", "complement"]
Ties = Literal["half", "published"]


def _told(meaning: str, source: str) -> dict[str, str]:
    return {"meaning": meaning, "source": source}


@dataclass(frozen=True)
class CircuitOptions:
    """How a circuit is tested."""

    ablation: str = field(
        default="replacement",
        metadata=_told("what a cut edge carries: replacement, zero or mean output", _PAPER),
    )
    eps: float = field(
        default=0.1,
        metadata=_told("how far from a half the share of worse examples may be", _PAPER),
    )
    q_star: float = field(
        default=0.9, metadata=_told("share of random circuits or edges to be better than", _PAPER)
    )
    alpha: float = field(default=0.05, metadata=_told("significance level of every test", _PAPER))
    draws: int = field(
        default=100, metadata=_told("random circuits, and random edges, to compare with", _PAPER)
    )
    sizes: tuple[float, ...] = field(
        default=(),
        metadata=_told(
            "further sizes of random circuits, as shares of all edges; published: 0.05 to 1", _OURS
        ),
    )
    reference: str = field(
        default="whole",
        metadata=_told(
            "necessity: draw from the whole model, or from the complement of the circuit", _PAPER
        ),
    )
    minimality_edges: int | None = field(
        default=None,
        metadata=_told(
            "edges of the circuit that minimality tries, drawn at random; None: all", _OURS
        ),
    )
    permutations: int = field(default=1000, metadata=_told("of the independence test", _PAPER))
    bandwidth: float | None = field(
        default=None,
        metadata=_told(
            "of both kernels; None: the median distance of each side (published: one for both)",
            _OURS,
        ),
    )
    ties: str = field(
        default="half",
        metadata=_told("equal scores count half, or as > and <= are published", _OURS),
    )
    tolerance: float = field(
        default=1e-5,
        metadata=_told("relative difference below which scores are equal; published: 0", _OURS),
    )
    margin: float = field(
        default=0.05,
        metadata=_told(
            "median difference that is small, as a share of what cutting everything does", _OURS
        ),
    )
    batch_size: int = field(
        default=512, metadata=_told("circuits times examples that run at once", _OURS)
    )
    seed: int = field(
        default=0, metadata=_told("of random circuits, permutations and resamples", _OURS)
    )

    def __post_init__(self) -> None:
        for name, low, high in (
            ("eps", 0.0, 0.5),
            ("q_star", 0.0, 1.0),
            ("alpha", 0.0, 1.0),
            ("margin", 0.0, 1.0),
            ("tolerance", 0.0, 1.0),
        ):
            value = getattr(self, name)
            inside = low <= value < high if name in ("eps", "tolerance") else low < value < high
            if not inside:
                raise InputInvalid(f"{name} is {value}", mend=f"give {low:g} to {high:g}")
        for name in ("draws", "permutations"):
            if getattr(self, name) < 1:
                raise InputInvalid(f"{name} is {getattr(self, name)}", mend="give at least 1")
        if self.minimality_edges is not None and self.minimality_edges < 1:
            raise InputInvalid(
                f"minimality_edges is {self.minimality_edges}", mend="give at least 1"
            )
        if any(not 0 < share <= 1 for share in self.sizes):
            raise InputInvalid(f"sizes are {self.sizes}", mend="give shares of all edges, to 1")
        if self.bandwidth is not None and not 0 < self.bandwidth < math.inf:
            raise InputInvalid(
                f"bandwidth is {self.bandwidth}", mend="give a finite number above 0"
            )
        for name, known in (("reference", get_args(Reference)), ("ties", get_args(Ties))):
            if getattr(self, name) not in known:
                raise InputInvalid(
                    f"{name} is {getattr(self, name)!r}", mend=f"take {' or '.join(known)}"
                )


@dataclass(frozen=True)
class DiscoveryOptions:
    """How a circuit is looked for."""

    method: str = field(
        default="eap-ig",
        metadata=_told(
            "eap or eap-ig score edges by gradients, acdc and prune by cutting them one by one",
            "arXiv 2403.17806",
        ),
    )
    edges: int = field(
        default=200,
        metadata=_told("eap and eap-ig: how many are taken before loose ends go", _OURS),
    )
    selection: str = field(
        default="top",
        metadata=_told("the largest scores, or greedily from the logits", "arXiv 2403.17806"),
    )
    along: str = field(
        default="inputs",
        metadata=_told(
            "eap-ig: where gradients are averaged: inputs, activations or masks", "arXiv 2403.17806"
        ),
    )
    steps: int = field(
        default=5,
        metadata=_told("eap-ig: points between replacement and input", "arXiv 2403.17806"),
    )
    tau: float = field(
        default=0.01,
        metadata=_told(
            "acdc and prune: an edge goes if the mean score rises by less", "arXiv 2304.14997"
        ),
    )
    ablation: str = field(
        default="replacement",
        metadata=_told("what a cut edge carries: replacement, zero or mean output", _PAPER),
    )
    batch_size: int = field(
        default=512, metadata=_told("circuits times examples that run at once", _OURS)
    )

    def __post_init__(self) -> None:
        for name, known in (
            ("method", get_args(Method)),
            ("selection", get_args(Selection)),
            ("along", get_args(Along)),
        ):
            if getattr(self, name) not in known:
                raise InputInvalid(
                    f"{name} is {getattr(self, name)!r}", mend=f"take one of {', '.join(known)}"
                )
        for name in ("edges", "steps"):
            if getattr(self, name) < 1:
                raise InputInvalid(f"{name} is {getattr(self, name)}", mend="give at least 1")
        if not self.tau >= 0:
            raise InputInvalid(f"tau is {self.tau}", mend="give 0 or more")
