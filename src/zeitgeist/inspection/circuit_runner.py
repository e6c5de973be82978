"""Run many circuits of one model at once: each receiver gets the sum over its edges, cut or not.

With m_e the mask of edge e = (u, r), out(u) what u writes in this run and abl(u) what it wrote in
one run of the whole model on other input (or nothing, or a mean),

    in(r) = sum_u [m_e out(u) + (1 - m_e) abl(u)] + attention output biases of earlier layers
          = sum_u m_e (out(u) - abl(u)) + sum_u abl(u) + biases

The second form is one product per layer of receivers of the masks with a stack of differences, for
a batch of circuits. Heads and MLPs from which no path of any circuit leads to the logits are not
computed: what they would write is multiplied by 0 all the way.

Letters: c circuits, n examples, t positions, d width, s sources, r receivers, v outputs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.circuit_graph import Graph, reaching
from zeitgeist.inspection.circuit_models import CircuitModel
from zeitgeist.inspection.circuit_tasks import Pairs, Score

ABLATIONS = ("replacement", "zero", "mean")


@dataclass(frozen=True)
class Trace:
    """A run of the whole model.

    ``outputs`` is what every source wrote; ``probes`` are zeros that were added to what every
    receiver received, layer by layer, so that gradients can be taken there.
    """

    logits: Float[Tensor, "n t v"]
    outputs: Float[Tensor, "s n t d"]
    probes: list[Float[Tensor, "_ n t d"]]


def trace(
    model: CircuitModel,
    tokens: Int[Tensor, "n t"],
    *,
    probe: bool = False,
    replaced: Mapping[int, Float[Tensor, "_ n t d"]] | None = None,
) -> Trace:
    """Run the whole model and keep what every source writes.

    Parameters
    ----------
    model
        Whose parts are run.
    tokens
        Input.
    probe
        Add zeros that take gradients to what every receiver receives.
    replaced
        What a stage writes instead: 0 the inputs, 2l + 1 the heads of layer l, 2l + 2 its MLP.
    """
    graph, given = model.graph, replaced or {}
    stage = given.get(0)
    stage = model.embed(tokens) if stage is None else stage
    x, outputs, probes = stage.sum(dim=0), [stage], []

    def received(count: int) -> Float[Tensor, "_ n t d"]:
        seen = x.expand(count, *x.shape)
        if not probe:
            return seen
        probes.append(torch.zeros_like(seen, requires_grad=True))
        return seen + probes[-1]

    for layer in range(graph.layers):
        kv = graph.kv_heads
        q, k, v = received(graph.heads + 2 * kv).split((graph.heads, kv, kv))
        made = given.get(2 * layer + 1)
        made = model.heads(layer, q, k, v, range(graph.heads)) if made is None else made
        x = x + made.sum(dim=0) + model.bias(layer)
        outputs.append(made)
        if graph.mlp:
            seen = received(1)[0]
            made = given.get(2 * layer + 2)
            made = model.mlp(layer, seen)[None] if made is None else made
            x = x + made[0]
            outputs.append(made)
    return Trace(model.logits(received(1)[0]), torch.cat(outputs), probes)


class _Stack:
    """Differences out(u) - abl(u) of the sources so far; in place where no gradient is needed."""

    def __init__(self, rows: int, circuits: int, size: int, like: Tensor, *, keep: bool) -> None:
        self.parts: list[Tensor] = []
        self.rows: list[int] = []
        self.whole = None if keep else like.new_empty((circuits, rows, size))

    def add(self, rows: list[int], x: Float[Tensor, "c k p"]) -> None:
        if self.whole is None:
            self.parts.append(x)
        else:
            self.whole[:, len(self.rows) : len(self.rows) + len(rows)] = x
        self.rows += rows

    def so_far(self) -> Float[Tensor, "c k p"]:
        if self.whole is None:
            return torch.cat(self.parts, dim=1)
        return self.whole[:, : len(self.rows)]


def masked_logits(
    model: CircuitModel,
    tokens: Int[Tensor, "n t"],
    masks: Float[Tensor, "c s r"],
    ablated: Float[Tensor, "s n t d"],
    needed: Bool[np.ndarray, " s"] | None = None,
) -> Float[Tensor, "c n t v"]:
    """Outputs of some circuits on the same input.

    Parameters
    ----------
    model
        Whose edges are cut.
    tokens
        Input.
    masks
        1 where an edge is there, 0 where it is cut; anything between is a mixture. Gradients may
        be taken.
    ablated
        What a cut edge carries, by source.
    needed
        Sources that must be computed; None: all.
    """
    graph, circuits = model.graph, len(masks)
    wanted = np.ones(len(graph.sources), dtype=bool) if needed is None else needed
    first = model.embed(tokens)
    shape = first.shape[1:]
    stack = _Stack(int(wanted.sum()), circuits, shape.numel(), first, keep=torch.is_grad_enabled())
    inputs = np.flatnonzero(wanted[: len(graph.inputs)]).tolist()
    stack.add(inputs, (first - ablated[: len(first)])[inputs].flatten(1).expand(circuits, -1, -1))
    base = ablated[: len(first)].sum(dim=0)

    def received(columns: list[int]) -> Float[Tensor, "_ m t d"]:
        weights = masks[:, :, columns][:, stack.rows].transpose(1, 2)
        seen = torch.bmm(weights, stack.so_far()).view(circuits, -1, *shape) + base
        return seen.transpose(0, 1).flatten(1, 2)

    def add(rows: list[int], made: Float[Tensor, "_ m t d"]) -> None:
        by_circuit = made.unflatten(1, (circuits, shape[0])) - ablated[rows][:, None]
        stack.add(rows, by_circuit.transpose(0, 1).flatten(2))

    for layer in range(graph.layers):
        start = graph.head_source(layer)
        chosen = np.flatnonzero(wanted[start : start + graph.heads]).tolist()
        if chosen:
            column, group = graph.first_receiver(layer), graph.heads // graph.kv_heads
            shared = sorted({head // group for head in chosen})
            after = column + graph.heads
            columns = [column + head for head in chosen]
            columns += [after + head for head in shared]
            columns += [after + graph.kv_heads + head for head in shared]
            q, k, v = received(columns).split((len(chosen), len(shared), len(shared)))
            add([start + head for head in chosen], model.heads(layer, q, k, v, chosen))
        base = base + ablated[start : start + graph.heads].sum(dim=0) + model.bias(layer)
        if graph.mlp:
            row = graph.mlp_source(layer)
            if wanted[row]:
                seen = received([graph.first_receiver(layer + 1) - 1])[0]
                add([row], model.mlp(layer, seen)[None])
            base = base + ablated[row]
    out = model.logits(received([len(graph.receivers) - 1])[0])
    return out.view(circuits, -1, *out.shape[1:])


class CircuitRunner:
    """Scores of circuits on some pairs: what is the same for all of them is computed once.

    Parameters
    ----------
    model
        Whose edges are cut.
    pairs
        Examples.
    score
        Per example, lower is better.
    ablation
        What a cut edge carries: the output on the replacement (``"replacement"``), nothing
        (``"zero"``), or the mean output over the replacements, or over the inputs where there are
        none (``"mean"``).
    rows
        Circuits times examples that run at once. What is held is about (sources + receivers of a
        layer) x rows x positions x width numbers, and what cut edges carry for all examples.
    """

    def __init__(
        self,
        model: CircuitModel,
        pairs: Pairs,
        score: Score,
        *,
        ablation: str = "replacement",
        rows: int = 512,
    ) -> None:
        if ablation not in ABLATIONS:
            raise InputInvalid(
                f"the ablation is {ablation!r}", mend=f"take one of {', '.join(ABLATIONS)}"
            )
        if ablation == "replacement" and pairs.corrupted is None:
            raise InputInvalid(
                "there is nothing to replace the inputs by",
                mend='give "corrupted" with every pair, or ablate by zero or mean',
            )
        if ablation == "mean" and pairs.corrupted is None and len(pairs) < 2:
            raise InputInvalid("the mean of one example is itself", mend="give more")
        if rows < 1:
            raise InputInvalid(f"the batch size is {rows}", mend="give at least 1")
        self.model, self.score, self.ablation, self.rows = model, score, ablation, rows
        self.graph: Graph = model.graph
        self.device = model.bias(0).device
        self.pairs = pairs.to(self.device)
        self.forwards = 0
        """Masked forward passes so far, each of up to ``rows`` rows."""
        self._parts = self._examples()
        scores = [score(own, part, own) for part, own, _ in self._parts]
        self.model_scores: Float[np.ndarray, " n"] = _numbers(torch.cat(scores))

    @torch.no_grad()
    def _examples(self) -> list[tuple[Pairs, Tensor, Tensor]]:
        """Batches of examples, with the model's outputs and what cut edges carry."""
        parts = [
            self.pairs.some(first, first + self.rows)
            for first in range(0, len(self.pairs), self.rows)
        ]
        mean: Tensor | None = None
        if self.ablation == "mean":
            other = self.pairs.clean if self.pairs.corrupted is None else self.pairs.corrupted
            for rows in other.split(self.rows):
                total = trace(self.model, rows).outputs.sum(dim=1, keepdim=True)
                mean = total if mean is None else mean + total
            assert mean is not None
            mean = mean / len(other)
        found = []
        for part in parts:
            own = trace(self.model, part.clean)
            if self.ablation == "replacement":
                assert part.corrupted is not None
                carried = trace(self.model, part.corrupted).outputs
            elif mean is not None:
                carried = mean.expand_as(own.outputs)
            else:
                carried = own.outputs.new_zeros(()).expand_as(own.outputs)
            found.append((part, own.logits, carried))
        return found

    def parts(self) -> list[tuple[Pairs, Tensor, Tensor]]:
        """Batches of examples: pairs, the model's outputs, what cut edges carry."""
        return self._parts

    @torch.no_grad()
    def scores(
        self,
        circuits: Iterable[Bool[np.ndarray, "s r"]],
        count: int,
        *,
        progress: tqdm | None = None,
    ) -> Float[np.ndarray, "c n"]:
        """The score of every circuit on every example.

        Parameters
        ----------
        circuits
            Edges that are there; they are taken as they are needed.
        count
            How many there are.
        progress
            A bar over circuits to move on.
        """
        found = np.empty((count, len(self.pairs)))
        largest = max(len(part) for part, _, _ in self._parts)
        coming, step = iter(circuits), max(1, self.rows // largest)
        for first in range(0, count, step):
            some = np.stack(list(islice(coming, min(step, count - first))))
            needed = np.any([reaching(self.graph, each) for each in some], axis=0)
            at = 0
            for part, own, carried in self._parts:
                masks = torch.from_numpy(some).to(self.device, carried.dtype)
                outputs = masked_logits(self.model, part.clean, masks, carried, needed)
                self.forwards += 1
                scores = [self.score(out, part, own) for out in outputs]
                found[first : first + step, at : at + len(part)] = _numbers(torch.stack(scores))
                at += len(part)
            if progress is not None:
                progress.update(len(some))
        return found

    def one(self, circuit: Bool[np.ndarray, "s r"]) -> Float[np.ndarray, " n"]:
        """The scores of one circuit."""
        alone: Float[np.ndarray, " n"] = self.scores([circuit], 1)[0]
        return alone


def _numbers(x: Float[Tensor, "*_"]) -> Float[np.ndarray, "*_"]:
    made: Float[np.ndarray, "*_"] = x.detach().double().cpu().numpy()
    return made
