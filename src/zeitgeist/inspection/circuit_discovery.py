"""Find circuits: score edges by gradients, or cut them one by one.

Edge attribution patching scores an edge (u, r) by what cutting it would do to the score L if L were
linear,

    EAP(u, r) = mean over examples of sum over positions and width of (abl(u) - out(u)) dL/d in(r)

Syed, Rager, Conmy: arXiv 2310.10348. With gradients averaged over m points between replacement and
input it is EAP-IG (Hanna, Pezzelle, Belinkov: arXiv 2403.17806), along the inputs or along what one
layer's sources write; along the masks of all edges at once it is complete: the scores add up to
what cutting everything does. ACDC (Conmy et al.: arXiv 2304.14997) walks from the logits down and
cuts an edge where that costs less than tau; pruning cuts in the order of EAP-IG, the smallest
first.

What a circuit is worth is said by a masked run, never by the sum of its scores.
"""

import heapq
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.circuit_graph import Graph, prune
from zeitgeist.inspection.circuit_options import DiscoveryOptions
from zeitgeist.inspection.circuit_runner import CircuitRunner, masked_logits, trace

Edge = tuple[int, int]


def eap(runner: CircuitRunner) -> Float[np.ndarray, "s r"]:
    """What cutting every edge would do to the mean score, to first order: one run back."""
    found = np.zeros(runner.graph.allowed.shape)
    for part, own, carried in runner.parts():
        with torch.enable_grad():
            run = trace(runner.model, part.clean, probe=True)
            loss = runner.score(run.logits, part, own).sum()
            slopes = torch.cat(torch.autograd.grad(loss, run.probes))
        found += _products(carried - run.outputs.detach(), slopes)
    return runner.graph.allowed * found / len(runner.pairs)


def eap_ig(
    runner: CircuitRunner,
    *,
    steps: int = 5,
    along: str = "inputs",
    progress: tqdm | None = None,
) -> Float[np.ndarray, "s r"]:
    """As `eap`, with gradients averaged over points between what cut edges carry and the input.

    Parameters
    ----------
    runner
        With pairs, score and ablation.
    steps
        Points.
    along
        ``"inputs"``: the inputs' outputs move; ``"activations"``: those of one stage at a time,
        steps x stages runs; ``"masks"``: all masks, at midpoints.
    progress
        A bar over runs to move on.
    """
    found = np.zeros(runner.graph.allowed.shape)
    for part, own, carried in runner.parts():
        if along == "masks":
            for i in range(steps):
                masks = torch.full((1, *found.shape), (i + 0.5) / steps, dtype=carried.dtype)
                masks = masks.to(runner.device).requires_grad_()
                with torch.enable_grad():
                    out = masked_logits(runner.model, part.clean, masks, carried)[0]
                    loss = runner.score(out, part, own).sum()
                    (slope,) = torch.autograd.grad(loss, masks)
                found -= slope[0].double().cpu().numpy() / steps
                _move(progress)
            continue
        with torch.no_grad():
            outputs = trace(runner.model, part.clean).outputs
        stages = _stages(runner.graph) if along == "activations" else {0: slice(None)}
        for stage, rows in stages.items():
            inside = rows if along == "activations" else slice(0, len(runner.graph.inputs))
            mean: Tensor | None = None
            for i in range(1, steps + 1):
                at = carried[inside] + i / steps * (outputs[inside] - carried[inside])
                with torch.enable_grad():
                    run = trace(runner.model, part.clean, probe=True, replaced={stage: at})
                    loss = runner.score(run.logits, part, own).sum()
                    slopes = torch.autograd.grad(
                        loss, run.probes, allow_unused=True, materialize_grads=True
                    )
                mean = torch.cat(slopes) / steps + (0 if mean is None else mean)
                _move(progress)
            assert mean is not None
            found[rows] += _products((carried - outputs)[rows], mean)
    return runner.graph.allowed * found / len(runner.pairs)


def runs_of(graph: Graph, options: DiscoveryOptions, parts: int) -> int:
    """How many runs back `eap_ig` makes, for a bar."""
    stages = len(_stages(graph)) if options.along == "activations" else 1
    return parts * stages * options.steps


def _stages(graph: Graph) -> dict[int, slice]:
    """By stage, as `trace` counts them, the rows of its sources."""
    found = {0: slice(0, len(graph.inputs))}
    for layer in range(graph.layers):
        start = graph.head_source(layer)
        found[2 * layer + 1] = slice(start, start + graph.heads)
        if graph.mlp:
            found[2 * layer + 2] = slice(start + graph.heads, start + graph.heads + 1)
    return found


def _products(
    apart: Float[Tensor, "s n t d"], slopes: Float[Tensor, "r n t d"]
) -> Float[np.ndarray, "s r"]:
    made: Float[np.ndarray, "s r"] = (apart.flatten(1) @ slopes.flatten(1).T).double().cpu().numpy()
    return made


def _move(progress: tqdm | None) -> None:
    if progress is not None:
        progress.update()


def top_edges(
    graph: Graph, scores: Float[np.ndarray, "s r"], number: int
) -> Bool[np.ndarray, "s r"]:
    """The edges of the largest absolute scores, without loose ends."""
    size = np.where(graph.allowed, np.abs(scores), -1.0).ravel()
    found = np.zeros(size.shape, dtype=bool)
    found[np.argsort(-size, kind="stable")[: min(number, graph.edge_count)]] = True
    return prune(graph, found.reshape(scores.shape))


def greedy_edges(
    graph: Graph, scores: Float[np.ndarray, "s r"], number: int
) -> Bool[np.ndarray, "s r"]:
    """From the logits up: the best edge into what is in already, again and again; then as above.

    Examples
    --------
    >>> graph = Graph(1, 1, 1, mlp=False)
    >>> scores = np.array([[9.0, 8.0, 7.0, 1.0], [0.0, 0.0, 0.0, 2.0]])
    >>> graph.names(greedy_edges(graph, scores, 3))
    ['embed->a0.h0.q', 'embed->a0.h0.k', 'a0.h0->logits']
    """
    behind: dict[int, list[int]] = {row: [] for row in range(len(graph.sources))}
    for column, rows in enumerate(graph.leads_to):
        for row in rows:
            behind[row].append(column)
    found, open_columns = graph.empty(), set()
    waiting: list[tuple[float, int, int]] = []

    def open_column(column: int) -> None:
        if column not in open_columns:
            open_columns.add(column)
            for row in np.flatnonzero(graph.allowed[:, column]):
                heapq.heappush(waiting, (-abs(float(scores[row, column])), int(row), column))

    open_column(len(graph.receivers) - 1)
    for _ in range(number):
        if not waiting:
            break
        _, row, column = heapq.heappop(waiting)
        found[row, column] = True
        for further in behind[row]:
            open_column(further)
    return prune(graph, found)


def cut_edges(
    runner: CircuitRunner,
    order: Sequence[Edge],
    tau: float,
    *,
    progress: tqdm | None = None,
) -> Bool[np.ndarray, "s r"]:
    """Cut edges in an order wherever the mean score then rises by less than tau.

    Exactly what one run per edge gives, in fewer: circuits without the next edge, the next two and
    so on run together, on the guess that all of them go; those up to the first that stays count.

    Parameters
    ----------
    runner
        Scores circuits.
    order
        Edges, as rows and columns.
    tau
        What an edge must be worth to stay.
    progress
        A bar over edges to move on.
    """
    circuit = runner.graph.allowed.copy()
    value = float(runner.one(circuit).mean())
    at, ahead = 0, 1
    most = max(1, runner.rows // len(runner.pairs))
    while at < len(order):
        guessed = order[at : at + ahead]
        candidates = []
        for edge in guessed:
            circuit = circuit.copy()
            circuit[edge] = False
            candidates.append(circuit)
        values = runner.scores(candidates, len(candidates)).mean(axis=1)
        gone = 0
        while gone < len(guessed) and values[gone] - value < tau:
            value = float(values[gone])
            gone += 1
        stays = gone < len(guessed)
        if stays:
            circuit = candidates[gone]
            circuit[guessed[gone]] = True
        at += gone + int(stays)
        ahead = max(1, gone) if stays else min(2 * ahead, most)
        if progress is not None:
            progress.update(gone + int(stays))
    return circuit


def acdc_order(graph: Graph) -> list[Edge]:
    """Receivers from the logits down, into each the latest sources first."""
    return [
        (row, column)
        for column in range(len(graph.receivers) - 1, -1, -1)
        for row in range(len(graph.sources) - 1, -1, -1)
        if graph.allowed[row, column]
    ]


def smallest_first(graph: Graph, scores: Float[np.ndarray, "s r"]) -> list[Edge]:
    """Edges in the order of their absolute scores."""
    edges = np.argwhere(graph.allowed)
    order = np.argsort(np.abs(scores)[graph.allowed], kind="stable")
    return [(int(row), int(column)) for row, column in edges[order]]


def find_circuit(
    runner: CircuitRunner, options: DiscoveryOptions, *, progress: bool = False
) -> tuple[Bool[np.ndarray, "s r"], Float[np.ndarray, "s r"] | None]:
    """A circuit by one of the methods, and the scores of edges where they have any.

    Raises
    ------
    InputInvalid
        Nothing that leads from an input to the logits is left.
    """
    graph, scores = runner.graph, None
    if options.method == "eap":
        scores = eap(runner)
    elif options.method != "acdc":
        total = runs_of(graph, options, len(runner.parts()))
        with tqdm(total=total, desc="gradients", disable=not progress, unit="run") as bar:
            scores = eap_ig(runner, steps=options.steps, along=options.along, progress=bar)
    if options.method in ("acdc", "prune"):
        order = acdc_order(graph) if scores is None else smallest_first(graph, scores)
        with tqdm(total=len(order), desc="edges", disable=not progress, unit="edge") as bar:
            found = prune(graph, cut_edges(runner, order, options.tau, progress=bar))
    else:
        assert scores is not None
        take = top_edges if options.selection == "top" else greedy_edges
        found = take(graph, scores, options.edges)
    if not found.any():
        raise InputInvalid(
            "no path from an input to the logits is left",
            mend="ask for more --edges, or for a smaller --tau",
        )
    return found, scores
