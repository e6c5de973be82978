"""The demo's run, on a tiny random model: what it makes, keeps, repeats and refuses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from zeitgeist.errors import InputInvalid, OutputExists
from zeitgeist.studies import merging, merging_experts
from zeitgeist.studies.merging import run
from zeitgeist.studies.merging_arms import ARMS, MergingResults, StudySettings
from zeitgeist.studies.merging_scores import lookup
from zeitgeist.studies.merging_tasks import TASKS
from zeitgeist.training import LoraSettings
from zeitgeist.training.models import peft_warnings


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of each test's own, and tasks that take two steps."""
    monkeypatch.setenv("ZEITGEIST_CACHE", str(tmp_path / "cache"))
    quick = {slug: replace(task, steps=2) for slug, task in TASKS.items()}
    monkeypatch.setattr(merging, "TASKS", quick)
    return tmp_path / "cache"


@pytest.fixture
def settings(tiny_llama: Path) -> StudySettings:
    return StudySettings(
        base=str(tiny_llama),
        tasks=("sums", "identifiers"),
        arms=("average", "dare_ties", "knots_ties_lines"),
        test_items=3,
        windows=3,
        context_tokens=4,
        window_tokens=12,
        lora=LoraSettings(rank=2, batch_size=2, learning_rate=1e-2),
    )


def go(out: Path, settings: StudySettings, **options: object) -> MergingResults:
    return run(out, settings=settings, progress=False, **options)  # type: ignore[arg-type]


def test_every_model_is_scored_on_everything_and_written_down(
    tmp_path: Path, settings: StudySettings
) -> None:
    results = go(tmp_path / "demo", settings)
    slugs = ["base", "expert-sums", "expert-identifiers", *settings.arms]
    assert [model.slug for model in results.models] == slugs
    found = lookup(results.rows)
    for slug in slugs:
        assert all((slug, task, "exact_match") in found for task in settings.tasks)
        assert all((slug, text, "perplexity") in found for text in ("english", "code"))
    written = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert written == json.loads(results.to_json())
    assert {row["quantity"] for row in written["conflicts"]} >= {"sign conflict", "relative norm"}
    assert {row["expert"] for row in written["conflicts"]} == set(settings.tasks)


def test_merges_on_disk_open_like_any_other(
    tmp_path: Path, settings: StudySettings, tiny_llama: Path
) -> None:
    go(tmp_path / "demo", settings)
    models = tmp_path / "demo" / "models"
    assert AutoModelForCausalLM.from_pretrained(models / "average").config.vocab_size == 288
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with peft_warnings():
        assert PeftModel.from_pretrained(base, str(models / "knots_ties_lines")).peft_config


def test_a_second_run_trains_nothing_and_finds_the_same(
    tmp_path: Path, settings: StudySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = go(tmp_path / "demo", settings)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(merging_experts, "finetune_lora", never)
    second = go(tmp_path / "demo", settings, overwrite=True)
    assert [expert["cached"] for expert in second.experts] == [True, True]
    assert second.rows == first.rows
    with pytest.raises(AssertionError, match="trained again"):
        go(tmp_path / "again", settings, fresh=True)


def test_another_seed_trains_other_experts(tmp_path: Path, settings: StudySettings) -> None:
    one = go(tmp_path / "one", settings)
    other = go(tmp_path / "other", replace(settings, seed=1))
    assert not any(expert["cached"] for expert in other.experts)
    assert {e["path"] for e in one.experts}.isdisjoint(e["path"] for e in other.experts)


def test_an_interruption_keeps_finished_experts_and_leaves_no_output(
    tmp_path: Path, settings: StudySettings, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(merging, "_merge_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "demo", settings)
    assert len(list((cache / "experts").glob("*/adapter_model.safetensors"))) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]


def test_an_existing_output_is_refused_before_any_work(
    tmp_path: Path, settings: StudySettings, cache: Path
) -> None:
    (tmp_path / "demo").mkdir()
    with pytest.raises(OutputExists):
        go(tmp_path / "demo", settings)
    (tmp_path / "demo" / "thesis.tex").touch()
    with pytest.raises(InputInvalid, match=r"results\.json"):
        go(tmp_path / "demo", settings, overwrite=True)
    assert not cache.exists()


def test_pictures_are_added_before_the_output_appears(
    tmp_path: Path, settings: StudySettings
) -> None:
    def illustrate(results: MergingResults, made: Path) -> None:
        assert not (tmp_path / "demo").exists()
        (made / "index.html").write_text(results.precision)

    go(tmp_path / "demo", settings, illustrate=illustrate)
    assert (tmp_path / "demo" / "index.html").read_text() in ("bfloat16", "float32")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("sums", "sorting")}, "there is no 'sorting'"),
        ({"arms": ("fisher",)}, "there is no 'fisher'"),
        ({"tasks": ("sums",)}, "at least two"),
    ],
)
def test_what_is_not_there_is_refused(
    tmp_path: Path, settings: StudySettings, changes: dict[str, tuple[str, ...]], message: str
) -> None:
    with pytest.raises(InputInvalid, match=message):
        go(tmp_path / "demo", replace(settings, **changes))


def test_a_full_disk_is_seen_before_training(
    tmp_path: Path, settings: StudySettings, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        free = 1000

    monkeypatch.setattr(merging.shutil, "disk_usage", lambda _: Full)
    with pytest.raises(InputInvalid, match=r"0\.0 GB are free"):
        go(tmp_path / "demo", settings)
    assert not (cache / "experts").exists()


def test_arms_cover_the_methods_and_lines_on_top() -> None:
    plain = {arm.method for arm in ARMS.values() if not arm.lines}
    assert plain == {"linear", "task_arithmetic", "ties", "dare_ties", "knots_ties"}
    assert {arm.method for arm in ARMS.values() if arm.lines} <= plain
