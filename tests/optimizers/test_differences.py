"""Norms of fine-tunes and adapters, on files: against plain subtraction, and odd checkpoints."""

import json

import pytest
import torch
from safetensors.torch import save_file

from zeitgeist.checkpoints import open_adapter, open_checkpoint
from zeitgeist.errors import CheckpointInvalid, InputInvalid
from zeitgeist.optimizers.differences import difference_norms
from zeitgeist.optimizers.norms import NORMS, dual_norm, norm


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def saved(path, tensors, **config):
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    save_file(tensors, path / "model.safetensors")
    return path


def lora(path, factors, extra=None, **config):
    """A plain LoRA adapter of rank 2, alpha 4."""
    path.mkdir()
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [], **config}
    (path / "adapter_config.json").write_text(json.dumps(told))
    tensors = {
        f"base_model.model.{module}.lora_{side}.weight": value
        for module, pair in factors.items()
        for side, value in zip("AB", pair, strict=True)
    }
    tensors |= {f"base_model.model.{name}": value for name, value in (extra or {}).items()}
    save_file(tensors, path / "adapter_model.safetensors")
    return path


def test_a_fine_tune_is_its_difference(tiny_family):
    base, tuned = tiny_family.base, tiny_family.experts[2]
    found = difference_norms(base, tuned, NORMS, progress=False).layers
    with open_checkpoint(base) as one, open_checkpoint(tuned) as other:
        assert [each.name for each in found] == list(one.specs)
        for each in found:
            d = other.tensor(each.name).double() - one.tensor(each.name).double()
            assert each.norms["frobenius"] == pytest.approx(float(d.norm()))
            if d.ndim == 2:
                assert each.norms == pytest.approx({k: float(norm(d, k)) for k in NORMS})
                assert each.dual == pytest.approx({k: float(dual_norm(d, k)) for k in NORMS})


def test_odd_tensors_are_measured_or_left_out_with_a_note(tmp_path):
    kinds = {
        "scalar": torch.tensor(1.0),
        "gain": torch.ones(4).half(),
        "conv1.weight": gaussian(3, 2, 5),
        "conv2.weight": gaussian(3, 2, 2, 2).bfloat16(),
        "tall.weight": gaussian(40, 3),
        "attn.qkv_proj.weight": gaussian(8, 4),
        "none": torch.zeros(0, 3),
        "mask": torch.ones(2, 2, dtype=torch.bool),
        "ids": torch.arange(3),
    }
    changed = {k: v + 1 if v.is_floating_point() else v for k, v in kinds.items()}
    changed["gain"] = changed["gain"].bfloat16()  # stored otherwise
    changed["tall.weight"] = kinds["tall.weight"]  # unchanged
    found = difference_norms(
        saved(tmp_path / "a", kinds), saved(tmp_path / "b", changed), NORMS, progress=False
    )
    layers = {each.name: each for each in found.layers}
    assert layers.keys() == kinds.keys() - {"none", "mask", "ids"}
    assert layers["scalar"].norms["rms"] == layers["gain"].norms["rms"] == 1
    assert layers["conv1.weight"].norms["rms"] == pytest.approx(1)
    assert (
        layers["tall.weight"].norms["spectral"] == 0 and layers["tall.weight"].stable_rank is None
    )
    told = "\n".join(found.notes)
    assert "2 tensors that are no floating-point numbers, such as" in told
    assert "1 tensors without values, such as 'none', are left out" in told
    assert "2 tensors have more than two dimensions" in told
    assert "'attn.qkv_proj.weight', hold several matrices" in told


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["a", "b"])
def test_a_value_that_is_not_finite_is_named_with_its_file(tmp_path, bad, where):
    for name in "ab":
        w = torch.ones(2, 2)
        w[0, 0] = bad if name == where else 1.0
        saved(tmp_path / name, {"w": w})
    with pytest.raises(
        CheckpointInvalid, match=rf"{where}/model.safetensors: the tensor 'w' holds"
    ):
        difference_norms(tmp_path / "a", tmp_path / "b", progress=False)


@pytest.mark.parametrize(
    "tensors, told",
    [
        ({"v": torch.ones(2, 2)}, "1 of the 2 tensors of .*a, such as 'w', are not in"),
        ({"w": torch.ones(2, 2), "v": torch.ones(3, 2)}, r"'v': \(2, 2\) in .*, \(3, 2\) in"),
    ],
)
def test_models_that_do_not_fit_are_refused(tmp_path, tensors, told):
    a = saved(tmp_path / "a", {"w": torch.ones(2, 2), "v": torch.ones(2, 2)})
    with pytest.raises(InputInvalid, match=told):
        difference_norms(a, saved(tmp_path / "b", tensors))


def test_nothing_to_compare_is_refused(tmp_path):
    a, b = (saved(tmp_path / name, {"ids": torch.arange(3)}) for name in "ab")
    with pytest.raises(InputInvalid, match="no tensor of floating-point numbers to compare"):
        difference_norms(a, b)


def test_a_head_untied_by_training_is_compared_with_the_embedding(tmp_path):
    embedding, told = gaussian(9, 3), {"vocab_size": 9, "architectures": ["LlamaForCausalLM"]}
    name = "model.embed_tokens.weight"
    a = saved(tmp_path / "a", {name: embedding}, tie_word_embeddings=True, **told)
    own = {name: embedding, "lm_head.weight": embedding + 1}
    b = saved(tmp_path / "b", own, tie_word_embeddings=False, **told)
    for pair in ((a, b), (b, a)):
        found = difference_norms(*pair, progress=False)
        sizes = {each.name: each.norms["max_entry"] for each in found.layers}
        assert sizes == pytest.approx({name: 0, "lm_head.weight": 1}, abs=1e-6)
        assert "'lm_head.weight' is tied in" in found.notes[0]


def test_gpt2s_layers_are_turned(tmp_path):
    w = gaussian(3, 12)
    a = saved(tmp_path / "a", {"h.0.mlp.c_fc.weight": torch.zeros(3, 12)}, model_type="gpt2")
    b = saved(tmp_path / "b", {"h.0.mlp.c_fc.weight": w}, model_type="gpt2")
    found = difference_norms(a, b, NORMS, progress=False).layers[0]
    assert found.norms == pytest.approx({k: float(norm(w.double().mT, k)) for k in NORMS})


@pytest.mark.parametrize("shape", [(40, 3), (7, 6), (4, 30)])
def test_an_adapter_is_its_product(tmp_path, shape):
    m, n = shape
    base = saved(tmp_path / "base", {"q.weight": gaussian(m, n), "head.weight": gaussian(m, n)})
    pair = gaussian(2, n, seed=1), gaussian(m, 2, seed=2)
    new = gaussian(m, n, seed=3)
    path = lora(tmp_path / "adapter", {"q": pair}, {"head.weight": new}, modules_to_save=["head"])
    found = difference_norms(base, path, NORMS, progress=False)
    assert [each.name for each in found.layers] == ["q.weight", "head.weight"]
    assert "changes 2 of the 2 tensors" in found.notes[0]
    expected = open_adapter(path).delta("q").double(), (new - gaussian(m, n)).double()
    for each, d in zip(found.layers, expected, strict=True):
        assert each.norms == pytest.approx({k: float(norm(d, k)) for k in NORMS}, rel=1e-5)
        assert each.dual == pytest.approx({k: float(dual_norm(d, k)) for k in NORMS}, rel=1e-4)
    assert len(found.layers[0].singular) == min(m, n) and found.layers[0].singular[2:3] in (
        (),
        (0,),
    )


def test_adapters_that_do_not_fit_are_refused(tmp_path):
    base = saved(tmp_path / "base", {"q.weight": torch.ones(4, 3)})
    pair = gaussian(2, 3), gaussian(4, 2)
    fits = lora(tmp_path / "fits", {"q": pair})
    with pytest.raises(InputInvalid, match="is an adapter; name the model it stands on first"):
        difference_norms(fits, base)
    with pytest.raises(InputInvalid, match=r"changes 'k\.weight', which is not in"):
        difference_norms(base, lora(tmp_path / "other", {"k": pair}))
    wide = lora(
        tmp_path / "wide", {"q": (gaussian(2, 5), gaussian(4, 2))}, base_model_name_or_path="x"
    )
    with pytest.raises(InputInvalid, match=r"shape \(4, 5\), which has shape \(4, 3\).*says 'x'"):
        difference_norms(base, wide)
    bad = lora(tmp_path / "bad", {"q": (pair[0], pair[1] * float("nan"))})
    with pytest.raises(CheckpointInvalid, match="NaN or infinite"):
        difference_norms(base, bad)
