"""Scores of edges: what they are exact for, what they add up to; circuits that are found."""

import numpy as np
import pytest
import torch

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.circuit import DiscoveryOptions, discover
from zeitgeist.inspection.circuit_discovery import (
    acdc_order,
    cut_edges,
    eap,
    eap_ig,
    greedy_edges,
    smallest_first,
    top_edges,
)
from zeitgeist.inspection.circuit_graph import Graph, prune
from zeitgeist.inspection.circuit_runner import CircuitRunner, masked_logits
from zeitgeist.inspection.circuit_tasks import kl, nll, repeated_tokens, squared
from zeitgeist.inspection.circuit_tracr import tracr_program


def pairs_of(count=5, seed=0):
    return repeated_tokens(count, 10, periods=(3, 5), tokens=(0, 20), seed=seed)


def first_output(outputs, pairs, _):
    """Linear in what comes out."""
    return (outputs[..., 0] * pairs.scored).sum(dim=1)


class Linear:
    """Heads and MLPs that are linear in what they receive, so that EAP has nothing to neglect."""

    causal = True

    def __init__(self):
        drawn = torch.Generator().manual_seed(0)
        self.graph = Graph(2, 2, 1, True)
        self.words = torch.randn(20, 6, generator=drawn, dtype=torch.float64)
        self.maps = 0.3 * torch.randn(2, 10, 6, 6, generator=drawn, dtype=torch.float64)
        self.out = torch.randn(6, 3, generator=drawn, dtype=torch.float64)

    def embed(self, tokens):
        return self.words[tokens][None]

    def heads(self, layer, q, k, v, chosen):
        shared = sorted({head // 2 for head in chosen})
        made = [
            q[i] @ self.maps[layer, head]
            + k[shared.index(head // 2)].cumsum(dim=1) @ self.maps[layer, 2 + head]
            + v[shared.index(head // 2)].cumsum(dim=1) @ self.maps[layer, 4 + head]
            for i, head in enumerate(chosen)
        ]
        return torch.stack(made)

    def mlp(self, layer, x):
        return x @ self.maps[layer, 6]

    def bias(self, layer):
        return self.maps[layer, 7, 0]

    def logits(self, x):
        return x @ self.out


def effects(runner):
    """What cutting every edge alone does to the mean score."""
    whole, found = runner.graph.allowed, np.zeros(runner.graph.allowed.shape)
    edges = np.argwhere(whole)
    less = []
    for row, column in edges:
        less.append(whole.copy())
        less[-1][row, column] = False
    scores = runner.scores(less, len(less)).mean(axis=1) - runner.one(whole).mean()
    found[tuple(edges.T)] = scores
    return found


@pytest.mark.parametrize("ablation", ["replacement", "zero", "mean"])
def test_eap_is_exact_for_a_linear_model(ablation):
    runner = CircuitRunner(Linear(), pairs_of(), first_output, ablation=ablation, rows=8)
    assert eap(runner) == pytest.approx(effects(runner), abs=1e-9)
    assert eap_ig(runner, steps=3) == pytest.approx(eap(runner), abs=1e-9)


@pytest.mark.parametrize("ablation", ["replacement", "zero"])
def test_eap_is_the_slope_of_the_masks(small, ablation):
    runner = CircuitRunner(small, pairs_of(), squared, ablation=ablation, rows=3)

    def score(outputs, pairs, _):
        return outputs.square().sum(dim=(1, 2))

    runner.score = score
    total = np.zeros(runner.graph.allowed.shape)
    for part, own, carried in runner.parts():
        masks = torch.ones((1, *total.shape), dtype=torch.float64, requires_grad=True)
        loss = score(masked_logits(small, part.clean, masks, carried)[0], part, own).sum()
        total += torch.autograd.grad(loss, masks)[0][0].numpy()
    assert eap(runner) == pytest.approx(-total * runner.graph.allowed / 5, abs=1e-8)


def test_integrated_gradients_along_masks_are_complete(small):
    runner = CircuitRunner(small, pairs_of(), first_output)
    graph = runner.graph
    scores = eap_ig(runner, steps=24, along="masks")
    on, cut = runner.scores([graph.allowed, graph.empty()], 2).mean(axis=1)
    assert scores.sum() == pytest.approx(cut - on, rel=5e-2, abs=1e-2)


def test_one_step_along_inputs_is_eap(attention_only):
    runner = CircuitRunner(attention_only, pairs_of(), nll, rows=3)
    assert eap_ig(runner, steps=1) == pytest.approx(eap(runner), abs=1e-10)


def test_along_activations_moves_one_stage_at_a_time(small):
    runner = CircuitRunner(small, pairs_of(), first_output)
    found, graph = eap_ig(runner, steps=1, along="activations"), runner.graph
    assert found == pytest.approx(eap(runner), abs=1e-10)  # one point: where the input is
    more = eap_ig(runner, steps=10, along="activations")
    # All edges of one stage at once lead from the model to a run with that stage replaced.
    last = slice(len(graph.sources) - (1 if graph.mlp else graph.heads), len(graph.sources))
    cut = graph.allowed.copy()
    cut[last] = False
    wanted = runner.one(cut).mean() - runner.one(graph.allowed).mean()
    assert more[last].sum() == pytest.approx(wanted, rel=0.25, abs=0.02)


def test_selection_takes_the_largest_and_leaves_no_loose_end():
    graph, rng = Graph(3, 2, 1, True), np.random.default_rng(0)
    scores = rng.normal(size=graph.allowed.shape) * graph.allowed
    for number in (5, 30, graph.edge_count + 9):
        best = set(np.argsort(-np.abs(scores)[graph.allowed])[:number])
        marked = graph.empty()
        marked[graph.allowed] = [i in best for i in range(graph.edge_count)]
        assert (top_edges(graph, scores, number) == prune(graph, marked)).all()
        found = greedy_edges(graph, scores, number)
        assert found.sum() <= number and (prune(graph, found) == found).all()
    assert (greedy_edges(graph, scores, 9**4) == graph.allowed).all()


@pytest.mark.parametrize("tau", [0.0, 0.02, float("inf")])
def test_cutting_ahead_is_cutting_one_by_one(attention_only, tau):
    pairs = pairs_of(6)
    runner = CircuitRunner(attention_only, pairs, kl)
    alone = CircuitRunner(attention_only, pairs, kl, rows=6)  # one circuit at a time
    order = acdc_order(runner.graph)
    found = cut_edges(runner, order, tau)
    circuit, value = runner.graph.allowed.copy(), 0.0
    for edge in order:
        circuit[edge] = False
        now = alone.one(circuit).mean()
        if now - value < tau:
            value = now
        else:
            circuit[edge] = True
    assert (found == circuit).all()
    assert (cut_edges(alone, order, tau) == circuit).all()
    if tau == float("inf"):
        assert not found.any()


def test_tau_zero_keeps_every_edge_that_does_anything():
    program = tracr_program("proportion")
    runner = CircuitRunner(program.model, program.pairs(30, seed=0), squared, ablation="zero")
    kept = cut_edges(runner, acdc_order(runner.graph), 0.0)
    assert (kept >= program.circuit).all()


def test_orders_hold_every_edge_once():
    graph = Graph(2, 2, 1, True)
    scores = np.random.default_rng(0).normal(size=graph.allowed.shape)
    for order in (acdc_order(graph), smallest_first(graph, scores)):
        assert len(set(order)) == len(order) == graph.edge_count
    sizes = [abs(scores[edge]) for edge in smallest_first(graph, scores)]
    assert sizes == sorted(sizes)
    columns = [column for _, column in acdc_order(graph)]
    assert columns == sorted(columns, reverse=True)


@pytest.mark.parametrize("name", ["proportion", "reverse"])
@pytest.mark.parametrize("method", ["acdc", "prune"])
def test_compiled_circuits_are_found(name, method):
    program = tracr_program(name)
    options = DiscoveryOptions(method=method, tau=1e-8, ablation="zero")
    found = discover(program.model, program.pairs(200, seed=0), "squared", options, progress=False)
    assert found.graph.names(found.circuit) == program.model.graph.names(program.circuit)
    assert found.faithfulness == pytest.approx(1.0)


@pytest.mark.parametrize("selection", ["top", "greedy"])
@pytest.mark.parametrize("method", ["eap", "eap-ig"])
def test_discovery_says_what_a_masked_run_says(attention_only, method, selection):
    options = DiscoveryOptions(method=method, edges=20, selection=selection)
    pairs = pairs_of()
    found = discover(attention_only, pairs, "nll", options, progress=False)
    runner = CircuitRunner(attention_only, pairs, nll)
    assert 0 < found.circuit.sum() <= 20 and found.scores.shape == found.circuit.shape
    assert found.circuit_score == pytest.approx(runner.one(found.circuit).mean())
    assert found.model_score == pytest.approx(runner.model_scores.mean())


def test_nothing_left_is_told(attention_only):
    for options in (
        DiscoveryOptions(method="acdc", tau=1e9),
        DiscoveryOptions(method="eap", edges=1),
    ):
        with pytest.raises(InputInvalid, match="no path from an input"):
            discover(attention_only, pairs_of(), "nll", options, progress=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "magic"}, "method is 'magic'"),
        ({"selection": "all"}, "selection is 'all'"),
        ({"along": "walls"}, "along is 'walls'"),
        ({"edges": 0}, "edges is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"tau": -0.1}, "tau is -0.1"),
        ({"tau": float("nan")}, "tau is nan"),
    ],
)
def test_options_that_cannot_be(change, words):
    with pytest.raises(InputInvalid, match=words):
        DiscoveryOptions(**change)


def test_no_gradient_is_left_on_the_model(attention_only):
    discover(attention_only, pairs_of(), "nll", DiscoveryOptions(edges=30), progress=False)
    assert all(parameter.grad is None for parameter in attention_only.parameters())
