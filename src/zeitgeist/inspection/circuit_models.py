"""What a model must offer so that single edges of it can be cut, and a small one that does.

A `CircuitModel` computes every head from its own copies of what it receives: q, k and v inputs may
all differ. `SmallTransformer` is one to train or to compile programs into: attention-only or with
MLPs, LayerNorm, RMSNorm or none, causal or bidirectional.

Letters: n examples, m rows (circuits x examples), t positions, d width, h heads, j key heads, e
head width, s input sources, v outputs.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.circuit_graph import Graph

CONFIG = "zeitgeist.small_transformer"


@runtime_checkable
class CircuitModel(Protocol):
    """A transformer whose parts are run one at a time; attributes may be properties."""

    @property
    def graph(self) -> Graph:
        """Its sources and receivers."""
        ...

    @property
    def causal(self) -> bool:
        """Whether no position sees a later one."""
        ...

    def embed(self, tokens: Int[Tensor, "n t"]) -> Float[Tensor, "s n t d"]:
        """What every input source writes."""
        ...

    def heads(
        self,
        layer: int,
        q: Float[Tensor, "h m t d"],
        k: Float[Tensor, "j m t d"],
        v: Float[Tensor, "j m t d"],
        chosen: Sequence[int],
    ) -> Float[Tensor, "h m t d"]:
        """What the chosen heads of a layer write, from the residual stream each receives.

        ``k`` and ``v`` have the key heads that the chosen heads use, in rising order.
        """
        ...

    def mlp(self, layer: int, x: Float[Tensor, "m t d"]) -> Float[Tensor, "m t d"]:
        """What an MLP writes."""
        ...

    def bias(self, layer: int) -> Float[Tensor, " d"]:
        """The attention's output bias: of no head, and never ablated."""
        ...

    def logits(self, x: Float[Tensor, "m t d"]) -> Float[Tensor, "m t v"]:
        """What comes out, from the last residual stream."""
        ...


@dataclass(frozen=True)
class SmallConfig:
    """Shape of a `SmallTransformer`. ``mlp_width`` 0: attention only; ``outputs`` 0: tokens."""

    vocabulary: int
    positions: int
    width: int
    layers: int
    heads: int
    head_width: int
    mlp_width: int = 0
    outputs: int = 0
    norm: Literal["layer", "rms", "none"] = "layer"
    causal: bool = True
    activation: Literal["relu", "gelu"] = "gelu"
    split_inputs: bool = True


class SmallTransformer(nn.Module):
    """A pre-norm transformer with learned positions, made to be looked into.

    Parameters
    ----------
    config
        Its shape. With ``split_inputs`` tokens and positions are sources of their own.
    seed
        Of the first weights.
    """

    def __init__(self, config: SmallConfig, *, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        c, drawn = config, torch.Generator().manual_seed(seed)

        def weight(*shape: int, fan: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=drawn) * fan**-0.5)

        def zeros(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.zeros(shape))

        each = (c.layers, c.heads)
        self.token = weight(c.vocabulary, c.width, fan=c.width)
        self.position = weight(c.positions, c.width, fan=c.width)
        self.q = weight(*each, c.width, c.head_width, fan=c.width)
        self.k = weight(*each, c.width, c.head_width, fan=c.width)
        self.v = weight(*each, c.width, c.head_width, fan=c.width)
        self.o = weight(*each, c.head_width, c.width, fan=c.heads * c.head_width)
        self.q_bias = zeros(*each, c.head_width)
        self.k_bias = zeros(*each, c.head_width)
        self.v_bias = zeros(*each, c.head_width)
        self.o_bias = zeros(c.layers, c.width)
        if c.mlp_width:
            self.mlp_in = weight(c.layers, c.width, c.mlp_width, fan=c.width)
            self.mlp_in_bias = zeros(c.layers, c.mlp_width)
            self.mlp_out = weight(c.layers, c.mlp_width, c.width, fan=c.mlp_width)
            self.mlp_out_bias = zeros(c.layers, c.width)
        self.scale = nn.Parameter(torch.ones(2 * c.layers + 1, c.width))
        self.shift = zeros(2 * c.layers + 1, c.width)
        self.unembed = weight(c.width, c.outputs or c.vocabulary, fan=c.width)

    @property
    def graph(self) -> Graph:
        """Its sources and receivers."""
        c = self.config
        inputs = ("token", "position") if c.split_inputs else ("embed",)
        return Graph(c.layers, c.heads, c.heads, bool(c.mlp_width), inputs)

    @property
    def causal(self) -> bool:
        """Whether no position sees a later one."""
        return self.config.causal

    def embed(self, tokens: Int[Tensor, "n t"]) -> Float[Tensor, "s n t d"]:
        """Tokens and positions, apart or in one."""
        if tokens.shape[1] > self.config.positions or int(tokens.max()) >= self.config.vocabulary:
            raise InputInvalid(
                f"the tokens reach {int(tokens.max())} at length {tokens.shape[1]}",
                mend=f"stay below {self.config.vocabulary} and at most {self.config.positions}",
            )
        words = self.token[tokens]
        places = self.position[: tokens.shape[1]].expand_as(words)
        if self.config.split_inputs:
            return torch.stack((words, places))
        return (words + places)[None]

    def normed(self, index: int, x: Float[Tensor, "*m d"]) -> Float[Tensor, "*m d"]:
        """After a norm: 2l before attention l, 2l + 1 before MLP l, the last before the logits."""
        if self.config.norm == "none":
            return x
        if self.config.norm == "rms":
            return F.rms_norm(x, x.shape[-1:], self.scale[index], 1e-6)
        return F.layer_norm(x, x.shape[-1:], self.scale[index], self.shift[index], 1e-5)

    def heads(
        self,
        layer: int,
        q: Float[Tensor, "h m t d"],
        k: Float[Tensor, "j m t d"],
        v: Float[Tensor, "j m t d"],
        chosen: Sequence[int],
    ) -> Float[Tensor, "h m t d"]:
        """What the chosen heads write."""
        some = list(chosen)
        q, k, v = (
            project(self.normed(2 * layer, x), weight[layer][some], bias[layer][some])
            for x, weight, bias in (
                (q, self.q, self.q_bias),
                (k, self.k, self.k_bias),
                (v, self.v, self.v_bias),
            )
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.config.causal)
        return project(mixed, self.o[layer][some], None)

    def mlp(self, layer: int, x: Float[Tensor, "m t d"]) -> Float[Tensor, "m t d"]:
        """What an MLP writes."""
        inner = self.normed(2 * layer + 1, x) @ self.mlp_in[layer] + self.mlp_in_bias[layer]
        inner = F.relu(inner) if self.config.activation == "relu" else F.gelu(inner)
        return inner @ self.mlp_out[layer] + self.mlp_out_bias[layer]

    def bias(self, layer: int) -> Float[Tensor, " d"]:
        """The attention's output bias."""
        return self.o_bias[layer]

    def logits(self, x: Float[Tensor, "m t d"]) -> Float[Tensor, "m t v"]:
        """What comes out."""
        return self.normed(2 * self.config.layers, x) @ self.unembed

    def forward(self, tokens: Int[Tensor, "n t"]) -> Float[Tensor, "n t v"]:
        """The whole model at once, as it is trained."""
        x = self.embed(tokens).sum(dim=0)
        for layer in range(self.config.layers):
            seen = self.normed(2 * layer, x)[None]
            q, k, v = (
                project(seen, weight[layer], bias[layer])
                for weight, bias in (
                    (self.q, self.q_bias),
                    (self.k, self.k_bias),
                    (self.v, self.v_bias),
                )
            )
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.config.causal)
            x = x + torch.einsum("hnte,hed->ntd", mixed, self.o[layer]) + self.o_bias[layer]
            if self.config.mlp_width:
                x = x + self.mlp(layer, x)
        return self.logits(x)

    def save(self, path: Path) -> None:
        """Write weights and shape to a .safetensors file, whole or not at all."""
        partial = path.with_name(f".{path.name}.partial")
        weights = {name: x.detach().contiguous() for name, x in self.state_dict().items()}
        save_file(weights, partial, metadata={CONFIG: json.dumps(asdict(self.config))})
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "SmallTransformer":
        """Read what `save` wrote.

        Raises
        ------
        InputInvalid
            It is no such file.
        """
        try:
            with safe_open(path, "pt") as file:
                config = SmallConfig(**json.loads((file.metadata() or {})[CONFIG]))
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            made = cls(config).to(weights["token"].dtype)
            made.load_state_dict(weights)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputInvalid(
                f"this is no small transformer: {error}",
                origin=path,
                mend="give a file that SmallTransformer.save wrote, or a directory",
            ) from error
        return made.eval()


def project(
    x: Float[Tensor, "g m t a"],
    weight: Float[Tensor, "h a b"],
    bias: Float[Tensor, "h b"] | None,
) -> Float[Tensor, "h m t b"]:
    """Every head's rows times its own matrix; ``x`` may be one for all heads."""
    flat = x.flatten(1, 2)
    made = flat.expand(weight.shape[0], -1, -1) @ weight
    if bias is not None:
        made = made + bias[:, None]
    return made.reshape(len(made), *x.shape[1:3], made.shape[-1])
