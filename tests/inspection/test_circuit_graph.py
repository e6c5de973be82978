"""Edges by formula and by enumeration, circuits as names, random paths that lead somewhere."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.circuit_graph import (
    Graph,
    PathSampler,
    circuit_from_json,
    circuit_to_json,
    prune,
    reached,
    reaching,
)

shapes = st.tuples(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from([("embed",), ("token", "position")]),
)


def graph_of(shape):
    layers, kv_heads, group, mlp, inputs = shape
    return Graph(layers, kv_heads * group, kv_heads, mlp, inputs)


SMALL = Graph(2, 2, 1, True, ("token", "position"))


@pytest.mark.parametrize(
    ("graph", "edges"),
    [
        (Graph(12, 12, 12, True), 32_491),  # GPT-2 small
        (Graph(4, 8, 8, False), 1_281),  # docstring
        (Graph(2, 8, 8, False), 257),  # induction
        (Graph(2, 1, 1, True, ("token", "position")), 32),  # proportion
        (Graph(4, 1, 1, True, ("token", "position")), 94),  # reverse
        (Graph(2, 4, 4, False, ("token", "position")), 106),
        (Graph(30, 9, 3, True), 70_651),  # SmolLM2-135M
    ],
)
def test_known_models_have_their_number_of_edges(graph, edges):
    assert graph.edge_count == edges == graph.allowed.sum()


@given(shapes)
@settings(max_examples=40, deadline=None)
def test_the_formula_counts_what_names_enumerate(shape):
    graph = graph_of(shape)

    def moment(name):  # when it is written, and when it is read
        if name in graph.inputs:
            return -1
        if name == "logits":
            return 2 * graph.layers
        return 2 * int(name[1:].partition(".")[0]) + (name[0] == "m")

    wanted = {f"{u}->{r}" for u in graph.sources for r in graph.receivers if moment(u) < moment(r)}
    assert set(graph.names(graph.allowed)) == wanted
    assert len(wanted) == graph.edge_count


@given(shapes, st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_names_and_json_lead_back(shape, seed):
    graph = graph_of(shape)
    circuit = graph.allowed & (np.random.default_rng(seed).random(graph.allowed.shape) < 0.3)
    circuit[0, -1] = True
    assert (graph.circuit(graph.names(circuit)) == circuit).all()
    told = json.loads(json.dumps(circuit_to_json(graph, circuit)))
    assert (circuit_from_json(graph, told) == circuit).all()
    assert (circuit_from_json(graph, told["edges"]) == circuit).all()


def paths_of(graph, circuit):
    """Edges on a path from an input to the logits, by walking all paths."""
    found, live = set(), {name: [] for name in graph.sources}
    for name in graph.names(circuit):
        u, _, r = name.partition("->")
        live[u].append(r)

    def walk(source, taken):
        for receiver in live[source]:
            edge = (*taken, f"{source}->{receiver}")
            rows = graph.leads_to[graph.receivers.index(receiver)]
            if not rows:
                found.update(edge)
            for row in rows:
                walk(graph.sources[row], edge)

    for name in graph.inputs:
        walk(name, ())
    return found


@given(st.integers(0, 10**6), st.floats(0.05, 0.4))
@settings(max_examples=60, deadline=None)
def test_pruning_keeps_what_lies_on_a_path(seed, share):
    graph = SMALL
    circuit = graph.allowed & (np.random.default_rng(seed).random(graph.allowed.shape) < share)
    kept = prune(graph, circuit)
    assert set(graph.names(kept)) == paths_of(graph, circuit)
    assert (prune(graph, kept) == kept).all()
    live = reached(graph, circuit) & reaching(graph, circuit)
    assert (live >= kept.any(axis=1)).all()


@given(shapes, st.integers(0, 10**6), st.floats(0.0, 1.0))
@settings(max_examples=60, deadline=None)
def test_every_sampled_edge_lies_on_a_path(shape, seed, share):
    graph = graph_of(shape)
    rng = np.random.default_rng(seed)
    size = max(1, round(share * graph.edge_count))
    circuit = PathSampler(graph).circuit(size, rng)
    assert circuit.sum() >= size and (prune(graph, circuit) == circuit).all()
    assert not (circuit & ~graph.allowed).any()
    one = PathSampler(graph).path(rng)
    assert (prune(graph, one) == one).all() and one.any()


@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_the_complement_shares_no_edge(seed):
    rng = np.random.default_rng(seed)
    circuit = PathSampler(SMALL).circuit(int(rng.integers(1, 30)), rng)
    rest = SMALL.allowed & ~circuit
    if not prune(SMALL, rest).any():
        with pytest.raises(InputInvalid, match="no path of these edges"):
            PathSampler(SMALL, rest)
        return
    sampler = PathSampler(SMALL, rest)
    other = sampler.circuit(min(5, int(sampler.available.sum())), rng)
    assert not (other & circuit).any() and (prune(SMALL, other) == other).all()
    with pytest.raises(InputInvalid, match="cannot be drawn"):
        sampler.circuit(int(sampler.available.sum()) + 1, rng)


def test_walks_are_uniform_over_edges_of_each_source():
    graph = Graph(1, 1, 1, False)
    rows, columns = PathSampler(graph).paths(20_000, np.random.default_rng(0))
    first = np.bincount(columns[0], minlength=4) / 20_000
    assert first == pytest.approx([0.25] * 4, abs=0.02)
    assert (rows[0] == 0).all() and set(columns[1]) == {3, -1}
    # Only one edge is left behind v, and a search in random order finds it from anywhere.
    usable = graph.circuit(["embed->a0.h0.v", "a0.h0->logits"])
    assert (PathSampler(graph, usable).path(np.random.default_rng(1)) == usable).all()


def test_all_edges_are_drawn_at_once_and_seeds_repeat():
    sampler = PathSampler(SMALL)
    assert (sampler.circuit(SMALL.edge_count, np.random.default_rng(0)) == SMALL.allowed).all()
    one, same, other = (sampler.circuit(9, np.random.default_rng(s)) for s in (1, 1, 2))
    assert (one == same).all() and (one != other).any()


def test_nodes_are_all_edges_between_them():
    found = SMALL.names(SMALL.among(["token", "a0.h1", "m1", "logits"]))
    assert set(found) == {
        "token->a0.h1.q", "token->a0.h0.k", "token->a0.h0.v", "token->m1", "token->logits",
        "a0.h1->m1", "a0.h1->logits", "m1->logits",
    }  # fmt: skip
    told = {"nodes": ["token", "logits"], "edges": ["position->m0"]}
    assert SMALL.names(circuit_from_json(SMALL, told)) == ["token->logits", "position->m0"]


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("a0.h0->logits", "this is no circuit"),
        ({"edge": []}, "this is no circuit"),
        ([], "has no edge"),
        ([3], "'edges' is no list of names"),
        (["token logits"], "'token logits' is no edge"),
        (["token->m3"], "'m3' of the edge .* is no receiver .*m0|m1"),
        (["tokens->m1"], "'tokens' .* is no source .* did you mean 'token'"),
        (["m1->a0.h0.q"], "goes backwards"),
        ({"nodes": ["a9.h1"]}, "'a9.h1' is no node"),
        ({"edges": ["token->m0"], "format": "other/2"}, "the format is 'other/2'"),
        ({"edges": ["token->m0"], "graph": {**asdict(SMALL), "layers": 9}}, "layers 9"),
        ({"edges": ["token->m0"], "graph": {"inputs": ["embed"]}}, r"inputs \['embed'\]"),
        ({"edges": ["token->m0"], "graph": {"inputs": 3}}, "circuit.json: .* inputs 3"),
        ({"edges": ["token->m0"], "graph": [1]}, r"circuit.json: the graph is \[1\]"),
        ({"edges": ["token->m0"], "graph": "x"}, "circuit.json: the graph is 'x'"),
        ({"edges": ["token->m0"], "graph": []}, r"circuit.json: the graph is \[\]"),
    ],
)
def test_a_bad_circuit_is_told_what_is_wrong(told, words):
    with pytest.raises(InputInvalid, match=words):
        circuit_from_json(SMALL, told, "circuit.json")


@pytest.mark.parametrize("shape", [(0, 1, 1), (1, 0, 1), (1, 3, 2)])
def test_impossible_graphs_are_refused(shape):
    with pytest.raises(InputInvalid):
        Graph(*shape, mlp=False)
