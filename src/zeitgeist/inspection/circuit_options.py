"""What the tests of circuits and their discovery are told."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.circuit_runner import ABLATIONS, Ablation

_PAPER = "arXiv 2410.13032"
_OURS = "ours"

Method = Literal["eap", "eap-ig", "acdc", "prune"]
Along = Literal["inputs", "activations", "masks"]
Selection = Literal["top", "greedy"]
Reference = Literal["whole", "complement"]
Ties = Literal["half", "published"]


def _field(default: Any, meaning: str, source: str = _PAPER) -> Any:
    return field(default=default, metadata={"meaning": meaning, "source": source})


@dataclass(frozen=True)
class CircuitOptions:
    """How a circuit is tested."""

    ablation: Ablation = _field(
        "replacement", "what a cut edge carries: replacement, zero or mean output"
    )
    eps: float = _field(0.1, "how far from a half the share of worse examples may be")
    q_star: float = _field(0.9, "share of random circuits or edges to be better than")
    alpha: float = _field(0.05, "significance level of every test")
    draws: int = _field(100, "random circuits, and random edges, to compare with")
    sizes: tuple[float, ...] = _field(
        (), "further sizes of random circuits, as shares of all edges; published: 0.05 to 1", _OURS
    )
    reference: Reference = _field(
        "whole", "necessity: draw from the whole model, or from the complement of the circuit"
    )
    permutations: int = _field(1000, "of the independence test")
    bandwidth: float | None = _field(
        None,
        "of both kernels; None: the median distance of each side (published: one for both)",
        _OURS,
    )
    ties: Ties = _field(
        "half", "equal scores count half, or as published: as no loss for the circuit", _OURS
    )
    tolerance: float = _field(
        1e-6, "relative difference below which scores are equal; published: 0", _OURS
    )
    margin: float = _field(
        0.05, "median difference that is small, as a share of what cutting everything does", _OURS
    )
    batch_size: int = _field(512, "circuits times examples that run at once", _OURS)
    seed: int = _field(0, "of random circuits, permutations and resamples", _OURS)

    def __post_init__(self) -> None:
        if self.ablation not in ABLATIONS:
            raise InputInvalid(
                f"ablation is {self.ablation!r}", mend=f"take one of {', '.join(ABLATIONS)}"
            )
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
        for name in ("draws", "permutations", "batch_size"):
            if getattr(self, name) < 1:
                raise InputInvalid(f"{name} is {getattr(self, name)}", mend="give at least 1")
        if any(not 0 < share <= 1 for share in self.sizes):
            raise InputInvalid(f"sizes are {self.sizes}", mend="give shares of all edges, to 1")
        if self.bandwidth is not None and self.bandwidth <= 0:
            raise InputInvalid(f"bandwidth is {self.bandwidth}", mend="give more than 0")
        for name, known in (("reference", get_args(Reference)), ("ties", get_args(Ties))):
            if getattr(self, name) not in known:
                raise InputInvalid(
                    f"{name} is {getattr(self, name)!r}", mend=f"take {' or '.join(known)}"
                )


@dataclass(frozen=True)
class DiscoveryOptions:
    """How a circuit is looked for."""

    method: Method = _field(
        "eap-ig",
        "eap or eap-ig score edges by gradients, acdc and prune by cutting them one by one",
        "arXiv 2403.17806",
    )
    edges: int = _field(200, "eap and eap-ig: how many are taken before loose ends go", _OURS)
    selection: Selection = _field(
        "top", "the largest scores, or greedily from the logits", "arXiv 2403.17806"
    )
    along: Along = _field(
        "inputs",
        "eap-ig: where gradients are averaged: inputs, activations or masks",
        "arXiv 2403.17806",
    )
    steps: int = _field(5, "eap-ig: points between replacement and input", "arXiv 2403.17806")
    tau: float = _field(
        0.01, "acdc and prune: an edge goes if the mean score rises by less", "arXiv 2304.14997"
    )
    ablation: Ablation = _field(
        "replacement", "what a cut edge carries: replacement, zero or mean output"
    )
    batch_size: int = _field(512, "circuits times examples that run at once", _OURS)

    def __post_init__(self) -> None:
        for name, known in (
            ("method", get_args(Method)),
            ("selection", get_args(Selection)),
            ("along", get_args(Along)),
            ("ablation", ABLATIONS),
        ):
            if getattr(self, name) not in known:
                raise InputInvalid(
                    f"{name} is {getattr(self, name)!r}", mend=f"take one of {', '.join(known)}"
                )
        for name in ("edges", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise InputInvalid(f"{name} is {getattr(self, name)}", mend="give at least 1")
        if not self.tau >= 0:
            raise InputInvalid(f"tau is {self.tau}", mend="give 0 or more")
