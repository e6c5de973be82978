"""A probe comes back as it was saved, refuses other models, and never replaces what is there."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from zeitgeist.errors import CheckpointInvalid, InputInvalid, OutputExists
from zeitgeist.inspection.truth_calibration import Calibration
from zeitgeist.inspection.truth_files import Probe, fingerprint, load_probe


def made(method="platt"):
    draw = torch.Generator().manual_seed(0)
    parameters = {
        "platt": torch.tensor([[0.7], [-0.2]], dtype=torch.float64),
        "isotonic": torch.tensor([[-1.0, 0.0, 2.0], [0.1, 0.4, 0.9]], dtype=torch.float64),
    }
    one = torch.randn(3, 8, generator=draw).double()
    return Probe(
        weights=one[0],
        intercept=0.25,
        mean=one[1],
        scale=one[2].abs() + 0.1,
        calibration=Calibration(method, parameters[method]),
        layer=3,
        position="exact_last",
        site="resid_post",
        extraction="rule",
        model="ab" * 16,
        C=0.01,
    )


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_a_probe_comes_back_as_it_was(tmp_path, method):
    probe = made(method)
    probe.save(tmp_path / "probe")
    again = load_probe(tmp_path / "probe")
    states = torch.randn(5, 2, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert torch.equal(probe.score(states), again.score(states))
    assert probe.score(states).shape == (5, 2)
    same = ("layer", "position", "site", "extraction", "model", "C", "intercept")
    assert all(getattr(probe, name) == getattr(again, name) for name in same)
    assert sorted(path.name for path in (tmp_path / "probe").iterdir()) == [
        "probe.json",
        "probe.safetensors",
    ]
    z = (states.double() - probe.mean) / probe.scale
    assert torch.allclose(again.log_odds(states), z @ probe.weights + 0.25)


def test_what_is_there_is_not_replaced_unasked(tmp_path):
    made().save(tmp_path / "probe")
    with pytest.raises(OutputExists):
        made("isotonic").save(tmp_path / "probe")
    made("isotonic").save(tmp_path / "probe", overwrite=True)
    assert load_probe(tmp_path / "probe").calibration.method == "isotonic"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(InputInvalid, match="no earlier output"):
        made().save(tmp_path / "mine", overwrite=True)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_damage_is_refused(tmp_path):
    for name in ("cut", "text", "lacks", "short"):
        made().save(tmp_path / name)
    (tmp_path / "cut" / "probe.safetensors").write_bytes(b"half")
    (tmp_path / "text" / "probe.json").write_text("{")
    told = json.loads((tmp_path / "lacks" / "probe.json").read_text())
    del told["layer"]
    (tmp_path / "lacks" / "probe.json").write_text(json.dumps(told))
    held = load_file(tmp_path / "short" / "probe.safetensors")
    held["mean"] = held["mean"][:5]
    save_file(held, tmp_path / "short" / "probe.safetensors")
    for name in ("cut", "text", "lacks", "short"):
        with pytest.raises(CheckpointInvalid, match="fit it again"):
            load_probe(tmp_path / name)


def test_another_model_and_another_width_are_refused():
    with pytest.raises(InputInvalid, match="model abababab and this is cdcdcdcd"):
        made().check_model("cd" * 16)
    made().check_model("ab" * 16)
    with pytest.raises(InputInvalid, match="7 coordinates and the probe 8"):
        made().score(torch.zeros(2, 7))


def test_a_fingerprint_is_of_the_model_not_of_how_it_is_opened(tiny_family):
    def opened(place, dtype):
        return AutoModelForCausalLM.from_pretrained(place, dtype=dtype, local_files_only=True)

    base = opened(tiny_family.base, torch.float32)
    assert fingerprint(base) == fingerprint(opened(tiny_family.base, torch.bfloat16))
    assert fingerprint(base) != fingerprint(opened(tiny_family.experts[0], torch.float32))
    deeper = copy.deepcopy(base)
    deeper.config.rms_norm_eps = 0.5
    assert fingerprint(base) != fingerprint(deeper)
