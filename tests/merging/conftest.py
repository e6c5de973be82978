"""Models and adapters that the doors of merging open, small enough to merge in a blink."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

LORA = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
SHAPES = {"q_proj": (32, 32), "v_proj": (16, 32), "up_proj": (64, 32), "lm_head": (288, 32)}


@dataclass(frozen=True)
class Models:
    """A base and its fine-tunes, each a transformers directory."""

    base: Path
    experts: tuple[Path, ...]


@pytest.fixture(autouse=True)
def without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power is cut during these tests; forcing every tensor to the disk takes most of them."""
    monkeypatch.setattr("zeitgeist.checkpoints.writer._flush", lambda _: None, raising=False)
    monkeypatch.setattr("zeitgeist.checkpoints.atomic.sync", lambda _: None, raising=False)


@pytest.fixture(scope="session")
def family32(save_llama: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A base and three fine-tunes in float32: for laws that bfloat16 would round away."""
    folder = tmp_path_factory.mktemp("family32")
    base = save_llama(folder / "base", dtype=torch.float32)
    experts = [
        save_llama(folder / f"expert-{i}", perturb=3e-3, perturb_seed=i, dtype=torch.float32)
        for i in (1, 2, 3)
    ]
    return Models(base, tuple(experts))


@pytest.fixture(scope="session")
def save_lora() -> Callable[..., Path]:
    """Save a random LoRA for a tiny Llama, as peft writes one; ``extra`` are saved modules."""

    def save(
        path: Path,
        seed: int,
        *,
        base: Path | str | None = None,
        layers: Iterable[int] = (0, 1),
        modules: Iterable[str] | None = None,
        rank: int = 2,
        alpha: float = 4.0,
        size: float = 0.02,
        extra: Mapping[str, Tensor] | None = None,
    ) -> Path:
        generator = torch.Generator().manual_seed(seed)
        if modules is None:
            modules = [f"model.layers.{i}.{name}" for i in layers for name in LORA]
        tensors = {}
        for module in modules:
            out, inputs = SHAPES[module.rpartition(".")[2]]
            a = torch.randn(rank, inputs, generator=generator)
            b = size * torch.randn(out, rank, generator=generator)
            tensors[f"base_model.model.{module}.lora_A.weight"] = a
            tensors[f"base_model.model.{module}.lora_B.weight"] = b
        for name, value in (extra or {}).items():
            tensors[f"base_model.model.{name}"] = value.clone().contiguous()
        path.mkdir(parents=True)
        save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": rank,
            "lora_alpha": alpha,
            "target_modules": sorted({module.rpartition(".")[2] for module in modules}),
            "base_model_name_or_path": None if base is None else str(base),
        }
        (path / "adapter_config.json").write_text(json.dumps(config))
        return path

    return save


@pytest.fixture(scope="session")
def rewrite() -> Callable[..., Path]:
    """Copy a model with other tensors, one file or several; ``config`` is updated."""

    def copy(
        source: Path,
        path: Path,
        change: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda tensors: tensors,
        *,
        shards: int = 1,
        **config: object,
    ) -> Path:
        path.mkdir(parents=True)
        tensors: dict[str, Tensor] = {}
        for file in sorted(source.iterdir()):
            if file.suffix == ".safetensors":
                tensors |= load_file(file)
            elif file.name != "model.safetensors.index.json":
                (path / file.name).write_bytes(file.read_bytes())
        told = json.loads((path / "config.json").read_text()) | config
        (path / "config.json").write_text(json.dumps(told))
        tensors = change(tensors)
        names = sorted(tensors)
        files = {}
        for i in range(shards):
            file = "model.safetensors"
            if shards > 1:
                file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
            held = {name: tensors[name].contiguous() for name in names[i::shards]}
            save_file(held, path / file, metadata={"format": "pt"})
            files |= dict.fromkeys(held, file)
        if shards > 1:
            index = {"metadata": {}, "weight_map": files}
            (path / "model.safetensors.index.json").write_text(json.dumps(index))
        return path

    return copy
