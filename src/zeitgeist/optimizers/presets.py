"""Optimisers by the names people know, as steepest descent with or without averages.

    name      averages=True                              averages=False
    sign      sign of the average of G (momentum .9)     sign(G)
    adam      Adam                                       sign(G)
    shampoo   Shampoo, sums as published                 U V'
    muon      Muon: B with mu = .95, Nesterov, fast      U V' (fast), max(1, m/n)^.5
    prodigy   Prodigy                                    eta sign(G), eta by escape velocity

Shampoo and Muon take the matrices of hidden layers; embeddings, output heads, gains and biases
follow Adam (without averages: their signs), as in Muon's reference implementation.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn

from zeitgeist.errors import InputInvalid, did_you_mean
from zeitgeist.optimizers.assignment import assign
from zeitgeist.optimizers.steepest import Steepest, grouped

__all__ = ["PRESETS", "preset"]

PRESETS = ("sign", "adam", "shampoo", "muon", "prodigy")
ADAM: dict[str, Any] = {"norm": "adam", "lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
BESIDE: dict[str, Any] = {"norm": "adam", "lr": 3e-4, "betas": (0.9, 0.95), "eps": 1e-10}
"""Adam beside Muon, as in its reference implementation."""
_OF_ALL: dict[str, dict[str, Any]] = {
    "sign": {"norm": "max_entry", "lr": 1e-3, "momentum": 0.9, "nesterov": False},
    "adam": ADAM,
    "prodigy": {"norm": "prodigy", "lr": 1.0, "betas": (0.9, 0.999), "eps": 1e-8},
}
_OF_MATRICES: dict[str, dict[str, Any]] = {
    "shampoo": {"norm": "shampoo", "lr": 1e-1, "betas": (0.0, 1.0), "eps": 1e-4},
    "muon": {"norm": "spectral", "lr": 0.02, "scale": "reference"},
}
_PLAIN: dict[str, Any] = {"momentum": 0.0, "nesterov": False, "betas": (0.0, 0.0), "eps": 0.0}


def preset(
    name: str,
    parameters: nn.Module | Iterable[Any],
    *,
    averages: bool = True,
    beside: dict[str, Any] | None = None,
    **options: Any,
) -> Steepest:
    """An optimiser by its name.

    Parameters
    ----------
    name
        One of `PRESETS`.
    parameters
        A module, or parameters; of these, those with two or more dimensions count as matrices.
    averages
        False: without momentum and second moments.
    beside
        Options of what Shampoo and Muon leave to Adam; None: those of Muon's reference.
    options
        Of `SteepestOptions`, such as ``lr``, instead of the preset's.

    Returns
    -------
    Steepest
        With the published settings.

    Raises
    ------
    InputInvalid
        No such preset, or an option that cannot be.

    Examples
    --------
    >>> optimizer = preset("muon", nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4)))
    >>> [(group["norm"], group["lr"]) for group in optimizer.param_groups]
    [('adam', 0.0003), ('spectral', 0.02), ('adam', 0.0003)]
    """
    if name not in PRESETS:
        raise InputInvalid(f"there is no preset {name!r}", mend=did_you_mean(name, PRESETS))
    of_matrices = name in _OF_MATRICES
    own = {**(_OF_MATRICES if of_matrices else _OF_ALL)[name]}
    rest = {**BESIDE, **(beside or {})} if of_matrices else {}
    if not averages:
        own, rest = {**own, **_PLAIN}, {**rest, **_PLAIN} if rest else {}
    own |= options
    if isinstance(parameters, nn.Module):
        chosen = assign(parameters, "auto", {})
        groups = grouped(parameters, chosen)
        for group in groups:
            hidden = group["norm"] == "rms_spectral"
            group |= own if hidden or not of_matrices else rest
    else:
        given = list(parameters)
        parts = [(given, own)]
        if of_matrices:
            parts = [
                ([p for p in given if p.ndim >= 2], own),
                ([p for p in given if p.ndim < 2], rest),
            ]
        groups = [{"params": members, **told} for members, told in parts if members]
    return Steepest(groups)
