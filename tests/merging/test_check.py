"""Looking before merging: strangers, misfits and costs, from headers and a few values."""

import math

import pytest
import torch
from safetensors.torch import load_file

from zeitgeist.errors import CheckpointInvalid, InputInvalid, RecipeInvalid, ReferenceUnresolved
from zeitgeist.merging import check, merge


def recipe_of(family, *experts, **more):
    models = [{"model": str(x)} for x in experts or family.experts]
    return {"merge_method": "ties", "base_model": str(family.base), "models": models} | more


def test_fine_tunes_are_told_by_distance_and_cosine(family32):
    report, plan = check(recipe_of(family32))
    assert [kin.model for kin in report.kinship] == [str(x) for x in family32.experts]
    base = load_file(family32.base / "model.safetensors")
    for kin, expert in zip(report.kinship, family32.experts, strict=True):
        tuned = load_file(expert / "model.safetensors")
        # These models are small enough for the sample to be all of their matrices.
        names = [name for name, tensor in base.items() if tensor.dim() == 2]
        flat = torch.cat([base[name].flatten() for name in names]).double()
        other = torch.cat([tuned[name].flatten() for name in names]).double()
        distance = ((other - flat).norm() / flat.norm()).item()
        assert kin.distance == pytest.approx(distance, rel=1e-9)
        assert kin.cosine == pytest.approx((flat @ other / flat.norm() / other.norm()).item())
        assert kin.related
    assert not any("fine-tune" in note for note in report.notes)
    assert (report.method, report.tensors, report.parameters) == (
        "ties",
        21,
        plan.bytes_written / 4,
    )


def test_strangers_are_warned_of(family32, save_llama, tmp_path):
    stranger = save_llama(tmp_path / "stranger", seed=7, dtype=torch.float32)
    report, _ = check(recipe_of(family32, family32.experts[0], stranger))
    assert [kin.related for kin in report.kinship] == [True, False]
    assert report.kinship[1].distance == pytest.approx(2**0.5, rel=0.05)
    assert report.kinship[1].cosine == pytest.approx(0, abs=0.02)
    (note,) = [note for note in report.notes if "fine-tune" in note]
    assert str(stranger) in note and "garbage" in note


def test_a_base_of_zeros_is_nobody_s_base(family32, rewrite, tmp_path):
    zeros = rewrite(
        family32.base,
        tmp_path / "zeros",
        lambda held: {name: torch.zeros_like(tensor) for name, tensor in held.items()},
    )
    report, _ = check(recipe_of(type(family32)(zeros, family32.experts)))
    assert all(kin.distance == math.inf and not kin.related for kin in report.kinship)


def test_adapters_are_kin_to_what_they_were_trained_on(family32, save_lora, tmp_path):
    lora = save_lora(tmp_path / "lora", 1, size=0.005)
    report, _ = check(recipe_of(family32, lora))
    assert report.kinship[0].related and report.kinship[0].distance > 0


def test_without_a_base_there_is_no_kinship(family32):
    models = [{"model": str(x)} for x in family32.experts]
    report, _ = check({"merge_method": "linear", "models": models})
    assert report.kinship == ()


def test_the_estimates_are_those_of_the_merge(family32, tmp_path):
    report, _ = check(recipe_of(family32))
    done = merge(recipe_of(family32), tmp_path / "out", threads=1, progress=False)
    assert report.bytes_written == done.bytes_written
    assert report.peak_bytes == check(recipe_of(family32), threads=1)[0].peak_bytes * 2
    assert set(done.notes) <= set(report.notes)


def test_nothing_is_written_and_no_file_stays_open(family32, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, plan = check(recipe_of(family32))
    assert list(tmp_path.iterdir()) == []
    assert not any(model.checkpoint._files for model in plan.models.values())


def test_misfits_are_errors(family32, rewrite, tmp_path):
    other = rewrite(
        family32.experts[0],
        tmp_path / "other",
        lambda held: {name: t for name, t in held.items() if "layers.1" not in name},
    )
    with pytest.raises(CheckpointInvalid, match=r"model\.layers\.1"):
        check(recipe_of(family32, other))
    with pytest.raises(ReferenceUnresolved, match="nowhere"):
        check(recipe_of(family32, tmp_path / "nowhere"))
    with pytest.raises(RecipeInvalid, match="density"):
        check(recipe_of(family32, parameters={"density": 2}))
    with pytest.raises(InputInvalid, match="threads is 0"):
        check(recipe_of(family32), threads=0)


def test_adapter_merges_are_sent_on(tmp_path):
    with pytest.raises(RecipeInvalid, match=r"knots_ties.*zeitgeist merge"):
        check({"merge_method": "knots_ties", "models": [{"model": "./a"}, {"model": "./b"}]})


def two_documents(family, second):
    one, two, _ = family.experts
    return f"""
name: first
merge_method: linear
models: [{{model: {one}}}, {{model: {two}}}]
---
{second}
"""


def test_later_documents_are_checked_as_far_as_they_can_be(family32, tmp_path):
    path = tmp_path / "recipe.yaml"
    later = f"merge_method: slerp\nbase_model: first\nmodels: [{{model: {family32.experts[2]}}}]"
    path.write_text(two_documents(family32, later))
    report, _ = check(path)
    assert any("'first'" in note and "checked in full" in note for note in report.notes)
    path.write_text(two_documents(family32, later.replace("first", str(tmp_path / "nowhere"))))
    with pytest.raises(ReferenceUnresolved, match="nowhere"):
        check(path)
