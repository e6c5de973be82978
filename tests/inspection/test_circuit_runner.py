"""Masked runs against the model itself, a slow twin, and what a circuit must be at both ends."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.circuit_graph import PathSampler
from zeitgeist.inspection.circuit_llama import circuit_model
from zeitgeist.inspection.circuit_models import CircuitModel, SmallConfig, SmallTransformer
from zeitgeist.inspection.circuit_runner import CircuitRunner, masked_logits, trace
from zeitgeist.inspection.circuit_tasks import (
    Pairs,
    kl,
    nll,
    repeated_tokens,
    score_named,
    squared,
)

SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "vocab_size": 30,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "llama with biases": LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True),
    "qwen2": Qwen2Config(**SHAPE, use_sliding_window=False),
    "qwen3, wide heads": Qwen3Config(**SHAPE, head_dim=6),
    "mistral": MistralConfig(**SHAPE, sliding_window=None),
    "gpt2": GPT2Config(
        n_embd=12, n_head=3, n_layer=2, vocab_size=30, n_positions=32, bos_token_id=0,
        eos_token_id=1,
    ),
}  # fmt: skip


def pairs_of(count=5, length=10, vocabulary=20, seed=0):
    return repeated_tokens(count, length, periods=(3, 5), tokens=(0, vocabulary), seed=seed)


def slow_twin(model, tokens, circuit, ablated):
    """Every receiver's sum written out, edge by edge, one circuit at a time."""
    graph = model.graph
    written = list(model.embed(tokens))

    def received(column, biases):
        total = sum(model.bias(layer) for layer in range(biases)) + torch.zeros_like(written[0])
        for row in np.flatnonzero(graph.allowed[:, column]):
            total = total + (written[row] if circuit[row, column] else ablated[row])
        return total

    for layer in range(graph.layers):
        first, kv = graph.first_receiver(layer), graph.kv_heads
        columns = range(first, first + graph.heads + 2 * kv)
        q, k, v = torch.stack([received(c, layer) for c in columns]).split((graph.heads, kv, kv))
        written += list(model.heads(layer, q, k, v, range(graph.heads)))
        if graph.mlp:
            written.append(
                model.mlp(layer, received(graph.first_receiver(layer + 1) - 1, layer + 1))
            )
    return model.logits(received(len(graph.receivers) - 1, graph.layers))


def test_small_transformers_run_in_parts_as_in_one(small):
    pairs = pairs_of()
    whole = small(pairs.clean)
    assert isinstance(small, CircuitModel)
    assert torch.allclose(trace(small, pairs.clean).logits, whole, atol=1e-10)
    assert whole.shape[-1] == (small.config.outputs or small.config.vocabulary)


def test_everything_on_is_the_model_and_everything_cut_the_replacement(small):
    pairs = pairs_of()
    runner = CircuitRunner(small, pairs, squared, rows=7)
    on, cut = runner.scores([runner.graph.allowed, runner.graph.empty()], 2)
    assert on == pytest.approx(np.zeros(5), abs=1e-20)
    with torch.no_grad():
        wanted = squared(small(pairs.corrupted), pairs, small(pairs.clean))
    assert cut == pytest.approx(wanted.numpy(), abs=1e-10)
    # Also where edges into the logits alone are cut: the rest is not seen.
    only = runner.graph.allowed.copy()
    only[:, -1] = False
    assert runner.one(only) == pytest.approx(cut, abs=1e-10)


@pytest.mark.parametrize("ablation", ["replacement", "zero", "mean"])
def test_masked_runs_are_those_of_the_slow_twin(small, ablation):
    pairs = pairs_of()
    runner = CircuitRunner(small, pairs, squared, ablation=ablation, rows=13)
    graph, rng = runner.graph, np.random.default_rng(0)
    circuits = [PathSampler(graph).circuit(size, rng) for size in (2, 9, graph.edge_count // 2)]
    circuits += [graph.allowed & ~each for each in circuits]
    circuits.append(graph.allowed & (rng.random(graph.allowed.shape) < 0.2))
    found = runner.scores(circuits, len(circuits))
    with torch.no_grad():
        own = small(pairs.clean)
        ablated = {
            "replacement": trace(small, pairs.corrupted).outputs,
            "zero": torch.zeros_like(trace(small, pairs.clean).outputs),
            "mean": trace(small, pairs.corrupted)
            .outputs.mean(dim=1, keepdim=True)
            .expand(-1, 5, -1, -1),
        }[ablation]
        wanted = [
            squared(slow_twin(small, pairs.clean, each, ablated), pairs, own).numpy()
            for each in circuits
        ]
    assert found == pytest.approx(np.array(wanted), abs=1e-9)


def test_batches_of_circuits_and_examples_change_nothing(small):
    pairs, rng = pairs_of(7), np.random.default_rng(0)
    circuits = [PathSampler(small.graph).circuit(6, rng) for _ in range(5)]
    every = [
        CircuitRunner(small, pairs, squared, rows=rows).scores(circuits, 5)
        for rows in (3, 7, 14, 512)
    ]
    for each in every[1:]:
        assert each == pytest.approx(every[0], abs=1e-10)


def test_the_mean_is_over_the_inputs_where_nothing_replaces_them(attention_only):
    pairs = pairs_of()
    alone = Pairs(pairs.clean, None, pairs.scored)
    twice = Pairs(pairs.clean, pairs.clean, pairs.scored)
    one, other = (
        CircuitRunner(attention_only, each, nll, ablation="mean").one(attention_only.graph.empty())
        for each in (alone, twice)
    )
    assert one == pytest.approx(other)


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_models_run_edge_by_edge(name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    made, pairs = circuit_model(model), pairs_of(vocabulary=30)
    assert circuit_model(made) is made
    runner = CircuitRunner(made, pairs, nll, rows=11)
    graph = runner.graph
    on, cut = runner.scores([graph.allowed, graph.empty()], 2)
    with torch.no_grad():
        own, other = (model(input_ids=x).logits for x in (pairs.clean, pairs.corrupted))
        assert on == pytest.approx(nll(own, pairs, own).numpy(), abs=1e-4)
        assert cut == pytest.approx(nll(other, pairs, own).numpy(), abs=1e-4)
        circuit = PathSampler(graph).circuit(12, np.random.default_rng(0))
        wanted = slow_twin(made, pairs.clean, circuit, trace(made, pairs.corrupted).outputs)
        assert runner.one(circuit) == pytest.approx(nll(wanted, pairs, own).numpy(), abs=1e-4)


def test_shared_keys_are_received_once():
    graph = circuit_model(AutoModelForCausalLM.from_config(CONFIGS["llama"]).eval()).graph
    assert (graph.heads, graph.kv_heads, graph.edge_count) == (4, 2, 82)


def test_a_model_in_training_is_refused_and_left_so():
    model = AutoModelForCausalLM.from_config(CONFIGS["gpt2"]).train()
    with pytest.raises(InputInvalid, match=r"training mode.*model.eval\(\)"):
        circuit_model(model)
    assert model.training


def test_other_layouts_are_refused():
    gemma = AutoModelForCausalLM.from_config(Gemma2Config(**SHAPE, head_dim=4))
    with pytest.raises(InputInvalid, match="layout 'sandwich', whose edges are not known"):
        circuit_model(gemma)
    windowed = AutoModelForCausalLM.from_config(MistralConfig(**SHAPE, sliding_window=8)).eval()
    with pytest.raises(InputInvalid, match=r"texts of 10 tokens .* window of 8"):
        trace(circuit_model(windowed), pairs_of().clean)
    with pytest.raises(InputInvalid, match="a Linear is no model"):
        circuit_model(torch.nn.Linear(2, 2))
    scaled = AutoModelForCausalLM.from_config(CONFIGS["llama"]).eval()
    scaled.lm_head.register_forward_pre_hook(lambda _, given: (2 * given[0],))
    scaled.model.norm.register_forward_hook(
        lambda _, given, out: out + given[0].mean(dim=0, keepdim=True) * (given[0].shape[0] < 3)
    )
    scaled.model.layers[0].register_forward_hook(
        lambda _, given, out: 3 * out if isinstance(out, torch.Tensor) else out
    )
    with pytest.raises(InputInvalid, match="computes something else"):
        circuit_model(scaled)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ablation": "magic"}, "the ablation is 'magic'"),
        ({"rows": 0}, "batch size is 0"),
    ],
)
def test_a_runner_refuses_what_it_cannot_do(attention_only, change, words):
    with pytest.raises(InputInvalid, match=words):
        CircuitRunner(attention_only, pairs_of(), nll, **change)


def test_replacements_must_be_there_and_as_long(attention_only):
    pairs = pairs_of()
    with pytest.raises(InputInvalid, match="nothing to replace"):
        CircuitRunner(attention_only, Pairs(pairs.clean, None, pairs.scored), nll)
    with pytest.raises(InputInvalid, match=r"replacements are \(5, 9\)"):
        Pairs(pairs.clean, pairs.corrupted[:, :9], pairs.scored)
    with pytest.raises(InputInvalid, match="no position that is scored"):
        Pairs(pairs.clean, None, torch.zeros_like(pairs.scored))
    one = Pairs(pairs.clean[:1], None, pairs.scored[:1])
    with pytest.raises(InputInvalid, match="the mean of one"):
        CircuitRunner(attention_only, one, nll, ablation="mean")
    with pytest.raises(InputInvalid, match="stay below 20"):
        trace(attention_only, pairs.clean + 10)


def test_scores_are_what_they_say():
    torch.manual_seed(0)
    outputs, model = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    clean = torch.tensor([[1, 2, 3, 4], [5, 4, 3, 2]])
    scored = torch.tensor([[False, True, True, False], [True, False, False, False]])
    answers, wrong = torch.tensor([[3, -1], [1, 2]]), torch.tensor([[0, 5], [4, -1]])
    pairs = Pairs(clean, None, scored, answers, wrong)
    bare = Pairs(clean, None, scored)
    logs = outputs.log_softmax(-1)
    assert nll(outputs, bare, model).tolist() == pytest.approx(
        [-(logs[0, 1, 3] + logs[0, 2, 4]).item() / 2, -logs[1, 0, 4].item()]
    )
    assert nll(outputs, pairs, model).tolist() == pytest.approx(
        [-logs[0, 2, 3].item(), -(logs[1, 0, 1] + logs[1, 0, 2]).item() / 2]
    )
    difference = score_named("logit_difference")(outputs, pairs, model)
    wanted = [
        max(outputs[0, 2, 0], outputs[0, 2, 5]) - outputs[0, 2, 3],
        outputs[1, 0, 4] - (outputs[1, 0, 1] + outputs[1, 0, 2]) / 2,
    ]
    assert difference.tolist() == pytest.approx([x.item() for x in wanted])
    chance = outputs.softmax(-1)
    assert score_named("probability_difference")(outputs, pairs, model)[1].item() == pytest.approx(
        (chance[1, 0, 4] - chance[1, 0, 1] - chance[1, 0, 2]).item()
    )
    own = model.log_softmax(-1)
    apart = (own.exp() * (own - logs)).sum(-1)
    assert kl(outputs, bare, model).tolist() == pytest.approx(
        [apart[0, 1:3].mean().item(), apart[1, 0].item()]
    )
    assert kl(model, bare, model).abs().max() < 1e-6
    assert squared(outputs, bare, model)[1].item() == pytest.approx(
        (outputs - model)[1, 0].square().mean().item()
    )
    for name, given, words in (
        ("logit_difference", bare, "needs 'answers'"),
        ("nll", Pairs(clean, None, ~scored), "no token follows"),
    ):
        with pytest.raises(InputInvalid, match=words):
            score_named(name)(outputs, given, model)
    with pytest.raises(InputInvalid, match="did you mean 'nll'"):
        score_named("nl")


def test_gradients_flow_through_masks_and_in_place_runs_agree(small):
    pairs = pairs_of()
    carried = trace(small, pairs.corrupted).outputs.detach()
    masks = torch.rand((2, *small.graph.allowed.shape), dtype=torch.float64)
    one = masked_logits(small, pairs.clean, masks.requires_grad_(), carried)
    with torch.no_grad():
        other = masked_logits(small, pairs.clean, masks, carried)
    assert torch.allclose(one, other, atol=1e-10)
    (slope,) = torch.autograd.grad(one.square().sum(), masks)
    assert slope.abs().sum() > 0


def test_small_transformers_are_saved_and_opened(tmp_path, small):
    small.save(tmp_path / "model.safetensors")
    opened = SmallTransformer.load(tmp_path / "model.safetensors")
    tokens = pairs_of().clean
    assert torch.equal(opened(tokens), small(tokens)) and opened.config == small.config
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    for name in ("broken.safetensors", "missing.safetensors"):
        with pytest.raises(InputInvalid, match="no small transformer"):
            SmallTransformer.load(tmp_path / name)


def test_seeds_make_weights():
    config = SmallConfig(5, 4, 8, 1, 2, 4)
    one, same, other = (SmallTransformer(config, seed=seed).q for seed in (0, 0, 1))
    assert torch.equal(one, same) and not torch.equal(one, other)
