"""Adapters in, adapter out: against dense arithmetic, and opened by peft on the real model."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from zeitgeist.checkpoints import open_adapter
from zeitgeist.errors import CheckpointInvalid, InputInvalid, OutputExists
from zeitgeist.merging.adapters import merge_adapters
from zeitgeist.merging.knots import KnotsOptions, merge_layers
from zeitgeist.merging.lines import LinesOptions

MODULES = tuple(f"model.layers.{i}.self_attn.{p}" for i in range(3) for p in ("q_proj", "v_proj"))


def save(path: Path, seed: int, modules=MODULES, r=2, alpha=3.0, shape=(6, 8), extra=(), **config):
    """A random LoRA adapter in peft's format, on a base that exists nowhere."""
    path.mkdir()
    g = torch.Generator().manual_seed(seed)
    tensors = {}
    for module in modules:
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(r, shape[1], generator=g)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(shape[0], r, generator=g)
    tensors |= {f"base_model.model.{name}": torch.ones(3) for name in extra}
    save_file(tensors, path / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": alpha,
        "target_modules": ["q_proj", "v_proj"],
        "base_model_name_or_path": "no/such/base",
    } | config
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


@pytest.fixture
def three(tmp_path):
    return [
        save(tmp_path / "maths", 1),
        save(tmp_path / "code", 2, r=3, use_rslora=True),
        save(tmp_path / "chat", 3, modules=MODULES[:4], r=1, alpha=1.0),
    ]


def deltas(path) -> dict[str, torch.Tensor]:
    adapter = open_adapter(path)
    return {module: adapter.delta(module).double() for module in adapter.modules}


def assert_updates(out, expected, tolerance=1e-6):
    found = deltas(out)
    assert found.keys() == expected.keys()
    for module, delta in expected.items():
        torch.testing.assert_close(found[module], delta, rtol=tolerance, atol=tolerance, msg=module)


def combined(paths, coefficients):
    total = {module: torch.zeros(6, 8, dtype=torch.float64) for module in MODULES}
    for path, c in zip(paths, coefficients, strict=True):
        for module, delta in deltas(path).items():
            total[module] += c * delta
    return total


# Sums --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, options, coefficients",
    [
        ("linear", {}, [1 / 3] * 3),
        ("linear", {"weights": [1.0, 1.0, 2.0]}, [0.25, 0.25, 0.5]),
        ("task_arithmetic", {}, [0.4] * 3),
        ("task_arithmetic", {"weights": [1.0, -0.5, 2.0]}, [1.0, -0.5, 2.0]),
        ("task_arithmetic", {"lambda_": 0.3, "weights": [1.0, 2.0, 3.0]}, [0.3, 0.6, 0.9]),
        ("knots_task_arithmetic", {}, [0.4] * 3),
        ("knots_task_arithmetic", {"lambda_": 0.3, "weights": [1.0, 2.0, 3.0]}, [0.3, 0.6, 0.9]),
    ],
)
def test_linear_methods_add_the_products_and_not_the_factors(
    three, tmp_path, method, options, coefficients
):
    report = merge_adapters(three, tmp_path / "out", method=method, **options)
    assert_updates(tmp_path / "out", combined(three, coefficients))
    assert report.layers[MODULES[0]].rank == 6
    assert report.layers[MODULES[-1]].rank == 5  # the third adapter has no such module


def test_ranks_never_exceed_what_the_matrix_can_have(tmp_path):
    paths = [save(tmp_path / f"{i}", i, r=4) for i in range(3)]
    report = merge_adapters(paths, tmp_path / "out", method="linear")
    assert report.rank == 6
    assert report.layers[MODULES[0]].energy_lost == pytest.approx(0.0, abs=1e-12)
    assert_updates(tmp_path / "out", combined(paths, [1 / 3] * 3))


@pytest.mark.parametrize("method", ["linear", "knots_ties"])
def test_out_rank_truncates_and_tells_the_loss(three, tmp_path, method):
    whole = merge_adapters(three, tmp_path / "whole", method=method)
    cut = merge_adapters(three, tmp_path / "cut", method=method, out_rank=2)
    assert whole.rank > cut.rank == 2
    full, low = deltas(tmp_path / "whole"), deltas(tmp_path / "cut")
    for module in MODULES:
        lost = (full[module] - low[module]).square().sum() / full[module].square().sum()
        assert cut.layers[module].energy_lost == pytest.approx(float(lost), rel=1e-4)


# KnOTS -------------------------------------------------------------------------------------------


def test_knots_on_files_is_knots_on_tensors(three, tmp_path):
    merge_adapters(three, tmp_path / "out", density=0.4, lambda_=0.9, weights=[1.0, 2.0, 1.0])
    adapters = [open_adapter(path) for path in three]
    layers = {
        module: [
            adapter.delta(module) if module in adapter.modules else None for adapter in adapters
        ]
        for module in MODULES
    }
    merged = merge_layers(layers, KnotsOptions(density=0.4, lambda_=0.9), weights=[1.0, 2.0, 1.0])
    assert_updates(
        tmp_path / "out", {module: b @ a for module, (a, b) in merged.factors.items()}, 1e-5
    )


def test_published_defaults_apply_where_nothing_is_said(three, tmp_path):
    merge_adapters(three, tmp_path / "said", density=0.2, lambda_=0.6)
    merge_adapters(three, tmp_path / "unsaid")
    assert_updates(tmp_path / "unsaid", deltas(tmp_path / "said"))
    options = {"method": "knots_dare_ties", "seed": 5}
    merge_adapters(three, tmp_path / "dare said", drop=0.1, lambda_=0.7, **options)
    merge_adapters(three, tmp_path / "dare unsaid", **options)
    assert_updates(tmp_path / "dare unsaid", deltas(tmp_path / "dare said"))


def test_one_adapter_comes_back_as_it_is(three, tmp_path):
    merge_adapters(three[:1], tmp_path / "out", density=1.0, lambda_=1.0)
    assert_updates(tmp_path / "out", deltas(three[0]))


@pytest.mark.parametrize("method", ["knots_ties", "knots_dare_ties"])
def test_the_same_call_writes_the_same_bytes(three, tmp_path, method):
    weights = []
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        merge_adapters(three, tmp_path / name, method=method, seed=seed)
        weights.append((tmp_path / name / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert (weights[0] == weights[2]) is (method == "knots_ties")


def test_parity_and_scope_reach_the_merge(three, tmp_path):
    names = {"plain": {}, "parity": {"parity": True}, "layer": {"trim_scope": "layer"}}
    kept = {
        name: [
            layer.kept[0]
            for layer in merge_adapters(three, tmp_path / name, **options).layers.values()
        ]
        for name, options in names.items()
    }
    assert sum(kept["parity"]) > sum(kept["plain"])
    assert kept["layer"] == pytest.approx([9 / 48] * 4 + [8 / 40] * 2)


def test_adapters_without_a_common_module_are_told(tmp_path):
    paths = [save(tmp_path / "a", 0, MODULES[:2]), save(tmp_path / "b", 1, MODULES[2:])]
    report = merge_adapters(paths, tmp_path / "out", density=1.0, lambda_=1.0)
    assert "nothing was there to merge" in report.notes[0]
    assert_updates(tmp_path / "out", combined(paths, [1.0, 1.0]))


# LiNeS -------------------------------------------------------------------------------------------


def test_lines_scales_each_block_of_the_result(three, tmp_path):
    plain = merge_adapters(three, tmp_path / "plain")
    report = merge_adapters(three, tmp_path / "lines", lines=LinesOptions(alpha=0.2, beta=0.4))
    assert (report.alpha, report.beta) == (0.2, 0.4)
    assert [report.scales[module] for module in MODULES[::2]] == pytest.approx([0.2, 0.4, 0.6])
    assert plain.scales == {}
    scaled = {m: report.scales[m] * delta for m, delta in deltas(tmp_path / "plain").items()}
    assert_updates(tmp_path / "lines", scaled)


def test_the_alpha_rule_reads_the_norms_of_the_adapters(three, tmp_path):
    lines = LinesOptions()
    summed = merge_adapters(
        three, tmp_path / "sum", method="task_arithmetic", lambda_=1.0, lines=lines
    )
    assert (summed.alpha, summed.beta) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    merge_adapters(three, tmp_path / "plain")
    ties = merge_adapters(three, tmp_path / "ties", lines=lines)
    plain = sum(float(d.abs().sum()) for d in combined(three, [1.0] * 3).values())
    merged = sum(float(d.abs().sum()) for d in deltas(tmp_path / "plain").values())
    assert ties.alpha == pytest.approx(plain / merged / 3, rel=1e-5)


def test_lines_that_cannot_work_stop_before_the_merge(three, tmp_path):
    with pytest.raises(InputInvalid, match="single fine-tune got no alpha"):
        merge_adapters(three[:1], tmp_path / "out", lines=LinesOptions())
    with pytest.raises(InputInvalid, match="matches no tensor"):
        merge_adapters(three, tmp_path / "out", lines=LinesOptions(alpha=0.5, pattern=r"h(\d)"))
    assert not (tmp_path / "out").exists()


# peft --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # peft's own
def test_peft_opens_the_result_on_the_base(tiny_llama, tmp_path):
    peft = pytest.importorskip("peft", reason="peft opens what is written")
    from transformers import AutoModelForCausalLM

    paths = []
    for seed, targets in enumerate((["q_proj", "down_proj"], ["q_proj", "embed_tokens"])):
        base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = peft.LoraConfig(
                r=2 + seed, lora_alpha=4, target_modules=targets, init_lora_weights=False
            )
            model = peft.get_peft_model(base, config)
        model.save_pretrained(tmp_path / str(seed), save_embedding_layers=False)
        paths.append(tmp_path / str(seed))
    weights = [0.75, -0.5]
    merge_adapters(paths, tmp_path / "out", method="task_arithmetic", weights=weights)
    before = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).state_dict()
    expected = {name: tensor.clone() for name, tensor in before.items()}
    for path, weight in zip(paths, weights, strict=True):
        for module, delta in deltas(path).items():
            expected[f"{module}.weight"] += weight * delta.float()
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(base, tmp_path / "out").merge_and_unload()
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_weights_stored_transposed_stay_so(tmp_path):
    paths = [save(tmp_path / f"{i}", i, fan_in_fan_out=True) for i in range(2)]
    merge_adapters(paths, tmp_path / "out", method="linear")
    got, sources = deltas(tmp_path / "out"), [deltas(path) for path in paths]
    for module in MODULES:
        assert got[module].shape == (8, 6)
        mean = (sources[0][module] + sources[1][module]) / 2
        torch.testing.assert_close(got[module], mean, rtol=1e-5, atol=1e-6)


# What is written, what is refused -------------------------------------------------------------


def test_the_card_tells_where_the_adapter_comes_from(three, tmp_path):
    merge_adapters(three, tmp_path / "out", weights=[1.0, 2.0, 3.0], lines=LinesOptions(alpha=0.5))
    card = (tmp_path / "out" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["tags"] == ["merge", "zeitgeist"]
    recipe = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
    assert recipe["merge_method"] == "knots_ties"
    assert recipe["lines"] == {"alpha": 0.5, "beta": 0.5}
    assert [model["parameters"]["weight"] for model in recipe["models"]] == [1.0, 2.0, 3.0]
    assert card.count("adapter_model.safetensors") == 3
    assert "no/such/base" in card


def test_factors_are_written_in_the_asked_precision(three, tmp_path):
    merge_adapters(three, tmp_path / "out", dtype=torch.bfloat16)
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_different_bases_are_refused_unless_said(tmp_path):
    paths = [
        save(tmp_path / "a", 0),
        save(tmp_path / "b", 1, base_model_name_or_path="other/base"),
        save(tmp_path / "c", 2, base_model_name_or_path=None),
    ]
    with pytest.raises(InputInvalid, match=r"b: .*'other/base'.*'no/such/base'"):
        merge_adapters(paths, tmp_path / "out")
    merge_adapters(paths, tmp_path / "out", any_base=True)
    merge_adapters(paths[::2], tmp_path / "unnamed")


def test_different_shapes_name_adapter_and_module(tmp_path):
    paths = [save(tmp_path / "a", 0), save(tmp_path / "b", 1, shape=(6, 9))]
    with pytest.raises(InputInvalid, match=r"b: '.*q_proj' is \[6, 9\] here and \[6, 8\] in '.*a'"):
        merge_adapters(paths, tmp_path / "out")


def test_modules_replaced_as_a_whole_stop_the_merge_or_are_left_out(tmp_path):
    paths = [save(tmp_path / "a", 0), save(tmp_path / "b", 1, extra=["score.weight"])]
    with pytest.raises(InputInvalid, match=r"b: the adapter replaces 1 tensors .*score\.weight"):
        merge_adapters(paths, tmp_path / "out")
    report = merge_adapters(paths, tmp_path / "out", saved_modules="skip")
    assert "score.weight" in report.notes[0]
    assert open_adapter(tmp_path / "out").extra == ()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"method": "ties"}, "method 'ties' does not merge adapters"),
        ({"weights": [1.0]}, "1 weights for 3 adapters"),
        ({"out_rank": 0}, "out_rank is 0"),
        ({"density": 1.5}, "density is 1.5"),
        ({"drop": 0.1}, "knots_ties has no drop"),
        ({"method": "knots_dare_ties", "density": 0.5}, "knots_dare_ties has no density"),
        ({"method": "linear", "lambda_": 0.5}, "linear has no lambda"),
        ({"method": "linear", "weights": [1.0, -2.0, 1.0]}, "sum to 0"),
        ({"method": "task_arithmetic", "parity": True}, "task_arithmetic has no parity"),
    ],
)
def test_options_out_of_place_are_refused_before_anything_is_written(
    three, tmp_path, options, words
):
    with pytest.raises(InputInvalid, match=words):
        merge_adapters(three, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_outputs_are_protected(three, tmp_path):
    merge_adapters(three, tmp_path / "out")
    with pytest.raises(OutputExists):
        merge_adapters(three, tmp_path / "out")
    merge_adapters(three, tmp_path / "out", overwrite=True)
    with pytest.raises(InputInvalid):
        merge_adapters(three, three[0] / "inside")
    with pytest.raises(InputInvalid, match="no adapters"):
        merge_adapters([], tmp_path / "none")


def test_a_broken_adapter_leaves_nothing_behind(three, tmp_path):
    weights = three[1] / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors[max(tensors)][0, 0] = torch.nan
    save_file(tensors, weights)
    with pytest.raises(CheckpointInvalid, match="NaN"):
        merge_adapters(three, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chat", "code", "maths"]
