"""The room's study: its numbers against an independent computation, on a tiny random model."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from zeitgeist.evidence import Evidence, Group, Size, run_study
from zeitgeist.merging.lines import scale_layers
from zeitgeist.studies import continual_language as language
from zeitgeist.studies.continual import CLAIMS, STUDY
from zeitgeist.studies.lines_digits import single_options
from zeitgeist.training import gradient_seam

PARAMETERS: Mapping[str, Any] = {
    "order": ("dates", "identifiers", "records"),
    "train": 6,
    "validation": 3,
    "test": 2,
    "memory": 4,
    "per_step": 2,
    "lora": {"steps": 3, "batch_size": 2, "warmup_steps": 0, "rank": 2, "learning_rate": 3e-2},
    "alphas": (0.0, 0.5),
    "windows": 2,
    "context_tokens": 4,
    "window_tokens": 12,
}
RULES = ("best", "gentle")


@pytest.fixture(scope="module", autouse=True)
def _in_float32() -> Iterator[None]:
    """Where bfloat16 is faster the base would be rounded, and agreement be as coarse."""
    with pytest.MonkeyPatch.context() as patched:
        for module in (language, gradient_seam):
            patched.setattr(module, "best_dtype", lambda _: torch.float32)
        yield


@pytest.fixture(scope="module")
def bench(tiny_llama: Path) -> language.Bench:
    return language.prepare(Group(0, {}, {**PARAMETERS, "model": str(tiny_llama)}))


@pytest.fixture(scope="module")
def measured(bench: language.Bench) -> dict[str, dict[tuple[str, str], float]]:
    """Values by arm, metric and knob."""
    return {
        arm.slug: {
            (row.metric, str(row.labels["knob"])): row.value
            for row in language.measure(arm.slug, bench)
        }
        for arm in STUDY.arms
    }


@pytest.fixture(scope="module")
def evidence(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    known = {**PARAMETERS, "model": str(tiny_llama), "order": ("dates", "records")}
    tiny = replace(STUDY, sizes={**STUDY.sizes, "quick": Size(1, ({},), known)})
    place = tmp_path_factory.mktemp("continual") / "study"
    return run_study(tiny, "quick", place, workers=1, progress=False)


def losses(model: Any, tasks: Any) -> Iterator[float]:
    """Nats per answer token of every task, an item at a time and without padding."""
    for task in tasks:
        each = []
        for item in task.test:
            ids = torch.tensor([[*item.prompt, *item.answer]])
            logits = model(input_ids=ids).logits[0, len(item.prompt) - 1 : -1].double()
            chosen = logits.log_softmax(-1).gather(1, torch.tensor(item.answer)[:, None])
            each.append(float(-chosen.mean()))
        yield float(np.mean(each))


def dense(bench: language.Bench, method: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Whole weights before and after training, from the factors by their definition."""
    lora, known = bench.learned[method].adapter, bench.group.parameters
    settings = language.LoraSettings(**known["lora"])
    base = AutoModelForCausalLM.from_pretrained(known["model"], dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    after = {name: tensor.clone() for name, tensor in before.items()}
    for name, low in lora.items():
        if "lora_A" in name:
            high = lora[name.replace("lora_A", "lora_B")]
            place = name.removeprefix("base_model.model.").replace("lora_A.default.", "")
            after[place] += settings.alpha / settings.rank * high @ low
    return before, after


@pytest.mark.parametrize(
    ("arm", "knob"),
    [("none", "1"), ("uniform", "0.5"), ("lines", "0"), ("lines", "0.5"), ("reversed", "0.5"),
     ("replay_uniform", "0.5"), ("fine", "1")],
)  # fmt: skip
@torch.no_grad()
def test_numbers_are_those_of_whole_weights_scored_an_item_at_a_time(
    bench: language.Bench, measured: Any, arm: str, knob: str
) -> None:
    method, scaling = language.SCALED.get(arm, (arm, "uniform"))
    before, after = dense(bench, method)
    model = AutoModelForCausalLM.from_pretrained(
        bench.group.parameters["model"], dtype=torch.float32
    )
    at_first = float(np.mean(list(losses(model, bench.texts))))
    scaled = scale_layers(before, after, single_options(scaling, float(knob)))
    model.load_state_dict(scaled.tensors)
    end = np.array(list(losses(model, bench.tasks)))
    learned = bench.learned[method].nll.diagonal()
    found = measured[arm]
    assert found["nll", knob] == pytest.approx(end.mean(), abs=1e-5)
    assert found["last", knob] == pytest.approx(end[-1], abs=1e-5)
    assert found["forgotten", knob] == pytest.approx((end - learned)[:-1].mean(), abs=1e-5)
    text = float(np.mean(list(losses(model, bench.texts)))) - at_first
    assert found["text_forgotten", knob] == pytest.approx(text, abs=1e-5)


def test_strength_one_is_no_scaling_and_none_is_the_base(
    bench: language.Bench, measured: Any
) -> None:
    for arm, (method, scaling) in language.SCALED.items():
        for metric in ("nll", "last", "forgotten", "text_forgotten", "acc"):
            assert measured[arm][metric, "1"] == measured[method][metric, "1"]
        adapter = bench.learned[method].adapter
        same = language.scaled(adapter, scaling, 1.0)
        assert all(torch.equal(same[name], adapter[name]) for name in adapter)
    for arm in ("uniform", "replay_uniform"):
        assert measured[arm]["text_forgotten", "0"] == 0.0
    language.put(bench.model, bench.fresh)
    base = language.score_tasks(bench.model, bench.tasks, pad=bench.pad)["nll"]
    assert measured["uniform"]["nll", "0"] == pytest.approx(np.mean(base), abs=1e-12)


def test_training_moves_the_model_and_every_method_moves_it_otherwise(
    bench: language.Bench, measured: Any
) -> None:
    assert len({measured[arm]["nll", "1"] for arm in language.METHODS}) == len(language.METHODS)
    assert abs(measured["none"]["text_forgotten", "1"]) > 1e-4


def test_what_an_arm_measures_does_not_depend_on_what_was_measured_before(
    bench: language.Bench, measured: Any, tiny_llama: Path
) -> None:
    alone = language.prepare(Group(0, {}, {**PARAMETERS, "model": str(tiny_llama)}))
    for row in language.measure("replay_uniform", alone):
        knob = str(row.labels["knob"])
        assert row.value == measured["replay_uniform"][row.metric, knob]
    assert set(alone.learned) == {"replay"}


def test_no_item_is_learned_and_scored_or_chosen_by(bench: language.Bench) -> None:
    for task, checked in zip(bench.tasks, bench.validation, strict=True):
        parts = [task.train, task.test, checked.test]
        assert [len(part) for part in parts] == [PARAMETERS[n] for n in ("train", "test",
                                                                       "validation")]  # fmt: skip
        assert len({item for part in parts for item in part}) == sum(map(len, parts))


def test_the_rules_choose_by_validation_alone(bench: language.Bench, measured: Any) -> None:
    for arm, (method, scaling) in language.SCALED.items():
        adapter = bench.learned[method].adapter
        checked = {}
        for alpha in (*PARAMETERS["alphas"], 1.0):
            language.put(bench.model, language.scaled(adapter, scaling, alpha))
            checked[f"{alpha:g}"] = language.mean_loss(bench.model, bench.validation, bench.pad)
        chosen = language.choose(checked, bench.base[0])
        assert set(chosen) == set(RULES)
        for rule, knob in chosen.items():
            assert measured[arm]["alpha", rule] == float(knob)
            for metric in ("nll", "forgotten", "text_forgotten"):
                assert measured[arm][metric, rule] == measured[arm][metric, knob]


@pytest.mark.parametrize(
    ("checked", "base", "chosen"),
    [
        ({"1": 1.0, "0.5": 2.0, "0": 3.0}, 3.0, {"best": "1", "gentle": "1"}),
        ({"1": 1.0, "0.5": 1.1, "0": 3.0}, 3.0, {"best": "1", "gentle": "0.5"}),
        ({"1": 1.0, "0.7": 0.8, "0": 2.0}, 2.0, {"best": "0.7", "gentle": "0.7"}),
        # Nothing was gained: what is no worse than training is allowed, and the base is the least.
        ({"1": 1.0, "0.5": 0.9, "0": 0.8}, 0.8, {"best": "0", "gentle": "0"}),
    ],
)
def test_best_is_lowest_and_gentle_is_least(
    checked: dict[str, float], base: float, chosen: dict[str, str]
) -> None:
    assert language.choose(checked, base) == chosen


def test_costs_are_what_was_drawn_kept_and_passed(measured: Any) -> None:
    # Three steps a task; two memories a step: of each past task for GEM, of all for replay.
    for arm, wanted in {"none": 0, "replay": 4 / 3, "gem": 2, "strength": 2, "fine": 2}.items():
        assert measured[arm]["evaluations", "1"] == pytest.approx(wanted)
        assert measured[arm]["kept", "1"] == (0 if arm == "none" else 2 * 4)
        assert measured[arm]["passes", "1"] == 0
    for rule in RULES:
        assert measured["lines"]["evaluations", rule] == 0
        assert measured["lines"]["kept", rule] == 2 * 3
        assert measured["replay_uniform"]["kept", rule] == 2 * (4 + 3)
        assert measured["lines"]["passes", rule] == (3 + 1) * 3 * 3


def test_every_claim_compares_what_there_is(measured: Any) -> None:
    for claim in CLAIMS:
        for side in (claim.treatment, claim.control):
            assert side is not None
            assert (claim.metric, side["knob"]) in measured[str(side["arm"])], claim.slug


def test_the_study_runs(evidence: Evidence) -> None:
    assert evidence.failures == ()
    assert {verdict.claim for verdict in evidence.verdicts} == {claim.slug for claim in CLAIMS}


def test_the_pictures_are_drawn_of_what_was_measured(evidence: Evidence) -> None:
    assert STUDY.figures is not None
    made = {figure.slug: figure for figure in STUDY.figures(evidence)}
    assert list(made) == ["forgetting", "ends", "cost"]
    for figure in made.values():
        assert figure.png().startswith(b"\x89PNG")
    assert STUDY.figures(replace(evidence, rows=())) == []
