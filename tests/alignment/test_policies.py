"""Models that answer: what is none, and adapters without a base."""

import shutil

import pytest

from zeitgeist.alignment.policies import open_policy
from zeitgeist.errors import InputInvalid


def test_what_is_no_model_is_told(tiny_llama, tmp_path):
    (tmp_path / "empty").mkdir()
    odd = shutil.copytree(tiny_llama, tmp_path / "odd")
    (odd / "config.json").write_text('{"model_type": "zork"}')
    torn = shutil.copytree(tiny_llama, tmp_path / "torn")
    (torn / "model.safetensors").write_bytes(b"abc")
    for place in (tmp_path / "empty", odd, torn):
        with pytest.raises(InputInvalid, match="no causal language model"):
            open_policy(place)


@pytest.mark.parametrize("told", ["{", "[]", '{"base_model_name_or_path": 5}', "{}"])
def test_adapters_that_name_no_base_are_told(tmp_path, told):
    (tmp_path / "adapter_config.json").write_text(told)
    with pytest.raises(InputInvalid, match="what its base is"):
        open_policy(tmp_path)
