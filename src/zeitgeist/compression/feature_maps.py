"""Feature maps whose products stand in for the exponential of attention.

Zhang, Arora, Chalamala, Wu, Spector, Singhal, Ramesh, Re: "LoLCATs: On Low-Rank Linearizing of
Large Language Models", arXiv 2410.10254, after Hedgehog and T2R. Per head, on queries and keys that
carry their positions already (after RoPE):

    Hedgehog:  phi(x) = [ softmax(x W), softmax(-x W) ]       W: d x f, features 2 f
    T2R:       phi(x) = relu(x W + b)                          W: d x f, b one number per head

No factor 1/sqrt(d) belongs to the product of two features. Dimensions:

    b batch   h query heads   n tokens   d head dimension   f columns of W
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zeitgeist.errors import InputInvalid

Kind = Literal["hedgehog", "t2r"]
Init = Literal["identity", "kaiming"]
FLOOR = 1e-12
"""Features are no smaller, so that a normaliser is never zero (the authors' constant)."""


def hedgehog(
    x: Float[Tensor, "*b h n d"], weight: Float[Tensor, "h d f"]
) -> Float[Tensor, "*b h n g"]:
    """Two softmaxes over features, of a projection and of its negative (g = 2 f).

    Parameters
    ----------
    x
        Queries or keys.
    weight
        One projection per head.

    Examples
    --------
    >>> phi = hedgehog(torch.randn(1, 2, 3, 4), torch.eye(4, 2).repeat(2, 1, 1))
    >>> phi.shape, bool(torch.allclose(phi.sum(-1), torch.tensor(2.0)))
    (torch.Size([1, 2, 3, 4]), True)
    """
    projected = x @ weight
    return torch.cat([projected.softmax(-1), (-projected).softmax(-1)], -1).clamp(min=FLOOR)


def t2r(
    x: Float[Tensor, "*b h n d"],
    weight: Float[Tensor, "h d f"],
    bias: Float[Tensor, "h 1 1"],
) -> Float[Tensor, "*b h n f"]:
    """A rectified projection.

    Parameters
    ----------
    x
        Queries or keys.
    weight, bias
        One projection and one number per head.

    Examples
    --------
    >>> float(t2r(-torch.ones(1, 1, 1), torch.ones(1, 1, 1), torch.zeros(1, 1, 1))) < 1e-9
    True
    """
    return (x @ weight + bias).relu().clamp(min=FLOOR)


class FeatureMap(nn.Module):
    """A learned feature map per head, in float32.

    Parameters
    ----------
    kind
        ``"hedgehog"`` or ``"t2r"``.
    heads, head_dim
        Of queries.
    feature_dim
        Columns of W; Hedgehog makes twice as many features.
    init
        ``"identity"``: the truncated identity, as the authors' commands ask for; ``"kaiming"``:
        uniform in +-1/sqrt(d), torch's own for linear layers.
    generator
        For ``"kaiming"``.

    Raises
    ------
    InputInvalid
        An unknown kind or initialisation, or no features.

    Examples
    --------
    >>> phi = FeatureMap("hedgehog", heads=2, head_dim=4, feature_dim=2)
    >>> phi(torch.zeros(1, 2, 5, 4)).shape, phi.features
    (torch.Size([1, 2, 5, 4]), 4)
    """

    def __init__(
        self,
        kind: str,
        heads: int,
        head_dim: int,
        feature_dim: int,
        init: str = "identity",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if kind not in ("hedgehog", "t2r"):
            raise InputInvalid(f"the feature map is {kind!r}", mend="give hedgehog or t2r")
        if init not in ("identity", "kaiming"):
            raise InputInvalid(f"the initialisation is {init!r}", mend="give identity or kaiming")
        if feature_dim < 1:
            raise InputInvalid(f"feature_dim is {feature_dim}", mend="give at least 1")
        self.kind = kind
        self.features = 2 * feature_dim if kind == "hedgehog" else feature_dim
        start = torch.eye(head_dim, feature_dim).repeat(heads, 1, 1)
        if init == "kaiming":
            bound = head_dim**-0.5
            drawn = torch.rand(start.shape, generator=generator)
            start = bound * (2 * drawn - 1)
        self.weight = nn.Parameter(start)
        if kind == "t2r":
            self.bias = nn.Parameter(torch.zeros(heads, 1, 1))

    def forward(self, x: Float[Tensor, "*b h n d"]) -> Float[Tensor, "*b h n g"]:
        """Features of queries or keys, in float32 or, where x or the weights are, float64."""
        wide = torch.promote_types(torch.promote_types(x.dtype, torch.float32), self.weight.dtype)
        x, weight = x.to(wide), self.weight.to(wide)
        if self.kind == "hedgehog":
            return hedgehog(x, weight)
        return t2r(x, weight, self.bias.to(wide))
