"""The five tests on circuits whose answers are known: exact, planted, random, empty of meaning."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.circuit import CircuitOptions, score_circuit, verify
from zeitgeist.inspection.circuit_graph import PathSampler
from zeitgeist.inspection.circuit_models import SmallTransformer
from zeitgeist.inspection.circuit_runner import CircuitRunner
from zeitgeist.inspection.circuit_tasks import (
    Pairs,
    nll,
    recalled_tokens,
    repeated_tokens,
    squared,
)
from zeitgeist.inspection.circuit_tests import TESTS
from zeitgeist.inspection.circuit_tracr import PLACE, tracr_program

ZERO = CircuitOptions(ablation="zero", draws=60)


def pairs_of(count=12, seed=0):
    return repeated_tokens(count, 10, periods=(3, 5), tokens=(0, 20), seed=seed)


def check(model, pairs, circuit, score, options, **more):
    return verify(model, pairs, circuit, score, options, progress=False, **more)


@pytest.mark.parametrize("name", ["proportion", "reverse"])
def test_compiled_programs_answer_as_they_did(name):
    program = tracr_program(name)
    told = json.loads((PLACE / f"{name}.json").read_text(encoding="utf-8"))
    assert tuple(told["vocabulary"]) == program.vocabulary
    for example in told["examples"]:
        with torch.no_grad():
            found = program.model(torch.tensor([example["tokens"]]))[0]
        assert found.numpy() == pytest.approx(np.array(example["outputs"]), abs=1e-6)
    wanted = {"proportion": (5, 32), "reverse": (11, 94)}[name]
    assert (program.circuit.sum(), program.model.graph.edge_count) == wanted


def test_proportion_is_the_share_of_x_so_far():
    program = tracr_program("proportion")
    pairs = program.pairs(40, seed=1)
    x = program.vocabulary.index("x")
    share = (pairs.clean[:, 1:] == x).double().cumsum(dim=1) / torch.arange(1, 5)
    with torch.no_grad():
        assert torch.allclose(program.model(pairs.clean)[:, 1:, 0], share, atol=1e-6)


@pytest.mark.parametrize("name", ["proportion", "reverse"])
def test_compiled_circuits_pass_and_random_ones_do_not(name):
    program = tracr_program(name)
    pairs = program.pairs(64, seed=0)
    report = check(program.model, pairs, program.circuit, "squared", ZERO)
    outcome = {each.name: each.outcome for each in report.tests}
    assert outcome == {
        "equivalence": "passes",
        "independence": "passes",
        "minimality": "passes",
        "sufficiency": "passes",
        "within": "passes",
        "necessity": "fails",  # random cuts of a small graph hit what is essential, too
    }
    assert report.test("equivalence").p == pytest.approx(1.0)
    assert report.test("independence").p == 1.0
    assert report.test("sufficiency").statistic == 60
    assert any("identical" in words for words in report.test("equivalence").warnings)
    assert any("uninformative" in words for words in report.test("independence").warnings)
    assert any("never reject" in words for words in report.test("equivalence").warnings) == (
        name == "reverse"
    )
    drawn = PathSampler(program.model.graph).circuit(
        int(program.circuit.sum()), np.random.default_rng(5)
    )
    other = check(program.model, pairs, drawn, "squared", ZERO)
    assert other.test("minimality").outcome == other.test("sufficiency").outcome == "fails"


@pytest.mark.parametrize("planted", ["token->a0.h0.q", "position->m0", "m1->logits"])
def test_a_dead_edge_is_caught(planted):
    program = tracr_program("proportion")
    names = [*program.model.graph.names(program.circuit), planted]
    record = check(
        program.model, program.pairs(64, seed=0), names, "squared", ZERO, tests=["minimality"]
    ).test("minimality")
    assert [row["edge"] for row in record.table if row["rejected"]] == [planted]
    assert record.outcome == "fails" and record.effects["edges that could go"] == 1


def test_a_duplicate_head_is_caught():
    """A second head that does what the first does: alone each of them is idle."""
    program = tracr_program("proportion")
    one = program.model
    two = SmallTransformer(replace(one.config, heads=2)).double()
    weights = dict(one.state_dict())
    for name in ("q", "k", "v", "o", "q_bias", "k_bias", "v_bias"):
        weights[name] = weights[name].repeat_interleave(2, dim=1)
    weights["o"] = weights["o"] / 2
    two.load_state_dict(weights)
    pairs = program.pairs(64, seed=0)
    with torch.no_grad():
        assert torch.allclose(two(pairs.clean), one(pairs.clean), atol=1e-12)
    names = [
        name.replace("a1.h0", f"a1.h{head}")
        for name in one.graph.names(program.circuit)
        for head in (0, 1)
    ]
    # Halves matter where they are needed; with the weights of one head whole, the other is idle.
    weights["o"][:, 0], weights["o"][:, 1] = 2 * weights["o"][:, 0], 0.0
    two.load_state_dict(weights)
    record = check(two, pairs, sorted(set(names)), "squared", ZERO, tests=["minimality"]).test(
        "minimality"
    )
    gone = {row["edge"] for row in record.table if row["rejected"]}
    assert gone == {name for name in names if "a1.h1" in name}


def test_a_redundant_path_is_caught(attention_only):
    """Every edge beside the whole model's essential ones that a random edge equals."""
    graph = attention_only.graph
    runner = CircuitRunner(attention_only, pairs_of(), squared)
    idle = graph.circuit(["position->a1.h2.q"])
    with torch.no_grad():
        attention_only.q[1, 2].zero_()
    record = check(
        attention_only, pairs_of(), graph.allowed & ~graph.circuit(["token->logits"]), "squared",
        CircuitOptions(draws=60), tests=["minimality"],
    ).test("minimality")  # fmt: skip
    assert runner.graph.names(idle)[0] in [row["edge"] for row in record.table if row["rejected"]]


def test_the_whole_model_is_exactly_itself(attention_only):
    graph = attention_only.graph
    report = check(attention_only, pairs_of(), graph.allowed, "nll", CircuitOptions(draws=20))
    assert (
        report.test("equivalence").p == pytest.approx(1.0)
        and report.test("equivalence").statistic == 0.5
    )
    sufficient = report.test("sufficiency")
    assert sufficient.effects["distance of the circuit"] == 0.0
    assert report.test("minimality").outcome == "not testable"
    assert "the whole model" in report.test("minimality").warnings[0]
    assert report.faithfulness["circuit"] == pytest.approx(1.0)
    assert report.faithfulness["complement"] == pytest.approx(0.0, abs=1e-9)


def test_the_published_rule_lets_an_exact_circuit_fail():
    program = tracr_program("proportion")
    pairs = program.pairs(64, seed=0)
    found = {
        ties: check(
            program.model, pairs, program.circuit, "squared", replace(ZERO, ties=ties),
            tests=["equivalence"],
        ).tests[0].rejected
        for ties in ("half", "published")
    }  # fmt: skip
    assert found == {"half": False, "published": True}


def test_circuits_that_do_nothing_are_not_sufficient():
    """Cut circuits are all as far away: as published, an idle one beats every other."""
    program = tracr_program("proportion")
    pairs, idle = program.pairs(64, seed=0), ["position->m0", "m0->a1.h0.q", "a1.h0->logits"]
    half, published = (
        check(
            program.model, pairs, idle, "squared", replace(ZERO, ties=ties), tests=["sufficiency"]
        ).tests[0]
        for ties in ("half", "published")
    )
    assert half.outcome == "fails"
    assert published.statistic > half.statistic


def test_reports_repeat_with_their_seed_and_are_json(attention_only):
    sampler = PathSampler(attention_only.graph)
    circuit = sampler.circuit(20, np.random.default_rng(0))
    options = CircuitOptions(draws=10, permutations=50, sizes=(0.2, 0.5), seed=3)
    one, same = (check(attention_only, pairs_of(), circuit, "nll", options) for _ in range(2))
    other = check(attention_only, pairs_of(), circuit, "nll", replace(options, seed=4))
    assert one.to_json() == same.to_json() != other.to_json()
    told = json.loads(json.dumps(one.to_json()))
    assert len(told["edges"]) == circuit.sum() and told["options"]["seed"] == 3
    assert [row["size"] for row in told["tests"][-1]["table"]][1:] == [14, 36]
    text = one.text()
    for each in TESTS:
        assert each in text


def test_batches_change_no_verdict(attention_only):
    circuit = PathSampler(attention_only.graph).circuit(15, np.random.default_rng(1))
    found = [
        check(
            attention_only, pairs_of(), circuit, "nll",
            CircuitOptions(draws=15, permutations=50, batch_size=size),
        )
        for size in (7, 512)
    ]  # fmt: skip
    for one, other in zip(*(report.tests for report in found), strict=True):
        assert (one.outcome, one.p) == (other.outcome, pytest.approx(other.p))
        assert one.reference == pytest.approx(other.reference)
    assert found[0].forwards > 5 * found[1].forwards


def test_necessity_can_draw_from_the_complement(attention_only):
    graph = attention_only.graph
    circuit = PathSampler(graph).circuit(12, np.random.default_rng(2))
    options = CircuitOptions(draws=10, reference="complement", sizes=(0.1, 0.9))
    record = check(attention_only, pairs_of(), circuit, "nll", options, tests=["necessity"]).tests[
        0
    ]
    assert record.n == 10 and [row["size"] for row in record.table][1:] == [7]  # 0.9 cannot be
    most = graph.allowed & ~graph.circuit(["token->logits"])
    record = check(attention_only, pairs_of(), most, "nll", options, tests=["necessity"]).tests[0]
    assert record.outcome == "not testable" and "no paths of" in record.warnings[0]


def test_minimality_can_try_some_edges(attention_only):
    circuit = PathSampler(attention_only.graph).circuit(20, np.random.default_rng(0))
    options = CircuitOptions(draws=10, minimality_edges=4)
    some = check(attention_only, pairs_of(), circuit, "nll", options, tests=["minimality"]).tests[0]
    every = check(
        attention_only, pairs_of(), circuit, "nll", replace(options, minimality_edges=None),
        tests=["minimality"],
    ).tests[0]  # fmt: skip
    effects = {row["edge"]: row["effect"] for row in every.table}
    assert some.n == 4 and every.n == circuit.sum()
    assert f"4 of {every.n} edges were tried" in some.warnings
    assert not any("were tried" in words for words in every.warnings)
    assert {row["edge"]: row["effect"] for row in some.table}.items() <= effects.items()


def test_independence_says_how_much_is_left(attention_only):
    circuit = PathSampler(attention_only.graph).circuit(20, np.random.default_rng(0))
    record = check(
        attention_only, pairs_of(40), circuit, "nll", CircuitOptions(), tests=["independence"]
    ).tests[0]
    assert set(record.effects) == {"complement's mean score", "complement's faithfulness"}
    # The complement of nothing is the model, and what goes with itself is not independent.
    lone = attention_only.graph.circuit(["position->a1.h2.q"])
    assert (
        check(attention_only, pairs_of(40), lone, "nll", CircuitOptions(), tests=["independence"])
        .tests[0]
        .rejected
    )


def test_scores_of_all_four(attention_only):
    graph = attention_only.graph
    found = score_circuit(attention_only, pairs_of(), ["token->logits"], "nll")
    runner = CircuitRunner(attention_only, pairs_of(), nll)
    assert found["model"] == pytest.approx(runner.model_scores)
    assert found["circuit"] == pytest.approx(runner.one(graph.circuit(["token->logits"])))
    assert found["cut"] == pytest.approx(runner.one(graph.empty()))


def test_recall_differs_in_what_must_be_recalled():
    pairs = recalled_tokens(6, 5, tokens=(10, 30), seed=0)
    apart = pairs.clean != pairs.corrupted
    assert pairs.clean.shape == (6, 7) and (apart.sum(dim=1) == 1).all()
    assert (pairs.clean[:, :2] == pairs.clean[:, 5:]).all()
    assert (pairs.answers[:, 0] == pairs.clean[apart]).all()
    assert (pairs.wrong[:, 0] == pairs.corrupted[apart]).all()
    for row in pairs.clean[:, :5].tolist():
        assert len(set(row)) == 5 and min(row) >= 10 and max(row) < 30
    for period in (1, 20):
        with pytest.raises(InputInvalid, match="do not fill a period"):
            recalled_tokens(1, period, tokens=(10, 30), seed=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"periods": (1, 3)}, "do not fit"),
        ({"periods": (3, 9)}, "do not fit"),
        ({"tokens": (0, 4)}, "cannot fill a period of 5"),
    ],
)
def test_repetitions_that_cannot_be(change, words):
    with pytest.raises(InputInvalid, match=words):
        repeated_tokens(2, 10, **{"periods": (3, 5), "tokens": (0, 20), "seed": 0, **change})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"eps": 0.5}, "eps is 0.5"),
        ({"q_star": 1.0}, "q_star is 1.0"),
        ({"alpha": 0.0}, "alpha is 0.0"),
        ({"margin": 0.0}, "margin is 0.0"),
        ({"tolerance": -1.0}, "tolerance is -1.0"),
        ({"draws": 0}, "draws is 0"),
        ({"permutations": 0}, "permutations is 0"),
        ({"minimality_edges": 0}, "minimality_edges is 0"),
        ({"sizes": (0.5, 1.5)}, "sizes are"),
        ({"bandwidth": 0.0}, "bandwidth is 0.0"),
        ({"bandwidth": float("nan")}, "bandwidth is nan"),
        ({"bandwidth": float("inf")}, "bandwidth is inf"),
        ({"reference": "other"}, "reference is 'other'"),
        ({"ties": "double"}, "ties is 'double'"),
    ],
)
def test_options_that_cannot_be(change, words):
    with pytest.raises(InputInvalid, match=words):
        CircuitOptions(**change)


def test_circuits_and_tests_that_cannot_be(attention_only):
    graph, pairs = attention_only.graph, pairs_of()
    back = graph.empty()
    back[-1, 0] = True
    for circuit, words in (
        (back, "go backwards"),
        (np.zeros((2, 2), dtype=bool), r"the circuit is \(2, 2\)"),
        (graph.empty(), "no edge"),
        (["token->nowhere"], "'nowhere'"),
    ):
        with pytest.raises(InputInvalid, match=words):
            check(attention_only, pairs, circuit, "nll", None)
    for tests, words in ((["minimal"], "did you mean 'minimality'"), ([], "no test is asked")):
        with pytest.raises(InputInvalid, match=words):
            check(attention_only, pairs, graph.allowed, "nll", None, tests=tests)
    with pytest.raises(InputInvalid, match="nothing to replace"):
        check(attention_only, Pairs(pairs.clean, None, pairs.scored), graph.allowed, "nll", None)
    with pytest.raises(InputInvalid, match="did you mean 'proportion'"):
        tracr_program("proportions")


def test_small_draws_are_said_to_be_uninformative(attention_only):
    circuit = PathSampler(attention_only.graph).circuit(20, np.random.default_rng(0))
    report = check(
        attention_only, pairs_of(4), circuit, "nll", CircuitOptions(draws=1, permutations=5)
    )
    for name in TESTS:
        told = [words for words in report.test(name).warnings if "uninformative" in words]
        assert told, name


def test_shapes_of_other_kinds(small):
    circuit = PathSampler(small.graph).circuit(8, np.random.default_rng(0))
    options = CircuitOptions(draws=6, permutations=20, ablation="mean")
    report = check(small, pairs_of(), circuit, "squared", options)
    assert len(report.tests) == 6 and report.total == small.graph.edge_count


def test_pictures_show_heads_that_share_keys():
    from zeitgeist.inspection.circuit_charts import circuit_chart

    graph = {"layers": 2, "heads": 4, "kv_heads": 2, "mlp": True, "inputs": ["embed"]}
    edges = ["embed->a0.h1.k", "a0.h2->logits", "a0.h3->m1", "m1->logits", "embed->a1.h0.v"]
    spec = circuit_chart(graph, edges, {edges[0]: 2.0}).spec
    lines, nodes = (spec["datasets"][layer["data"]["name"]] for layer in spec["layer"][:2])
    assert {node["node"] for node in nodes} == {
        "embed", "a0.h2", "a0.h3", "m1", "logits", "a1.h0",
    }  # fmt: skip
    assert len(lines) == 6  # the shared key leads to two heads
    assert max(lines, key=lambda line: line["width"])["edge"] == edges[0]
