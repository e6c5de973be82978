"""The study of attention drop: laws of its numbers, and its pictures, on a tiny model."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from zeitgeist.compression.measures import token_nll
from zeitgeist.evidence import Group, Size, run_study
from zeitgeist.studies.attention_drop import ARMS_OF, STUDY, applies
from zeitgeist.studies.attention_drop_numbers import (
    WORSE,
    measure,
    predicted,
    prepare,
    reach,
    searched,
    selections,
)

TINY = {
    "counts": (1, 2),
    "search_counts": (1,),
    "draws": 2,
    "length": 16,
    "calibration": 2,
    "searched": 1,
    "evaluation": 2,
    "train": 4,
    "train_length": 16,
    "lora": {"steps": 1, "batch_size": 2, "rank": 2},
    "context": 8,
    "repeats": 1,
}


@pytest.fixture
def bench(tiny_llama):
    def made(part, seed=0):
        return prepare(Group(seed, {"part": part}, {**TINY, "model": str(tiny_llama)}))

    return made


def rows(arm, bench):
    return {(row.metric, row.labels.get("k"), row.item): row.value for row in measure(arm, bench)}


def test_all_ways_of_dropping_all_attention_are_one(bench):
    shared = bench("drop")
    found = [
        rows(arm, shared)["perplexity_ratio", 2, ""] for arm in ("attention", "random", "last")
    ]
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)


def test_the_perplexity_ratio_is_that_of_the_windows(bench):
    found = rows("block", bench("drop"))
    windows = [v for (metric, k, _), v in found.items() if (metric, k) == ("log_ratio", 1)]
    assert len(windows) == 2
    assert found["perplexity_ratio", 1, ""] == pytest.approx(math.exp(sum(windows) / 2))
    assert 0 <= found["top1", 1, ""] <= 1
    assert 0 <= found["reach", None, ""] <= 1


def test_predictions_are_those_of_the_measures(bench):
    shared = bench("drop")
    nll, likeliest = predicted(shared.model, shared.evaluation)
    wanted = token_nll(shared.model, shared.evaluation).double().mean(dim=1)
    assert nll.tolist() == pytest.approx(wanted.tolist(), rel=1e-5)
    assert likeliest.shape == (2, 15)


def test_every_arm_drops_as_many_as_it_says(bench):
    shared = bench("drop")
    for arm, each in (("attention", 1), ("mlp", 1), ("block", 2), ("joint", 1), ("random", 1)):
        for k in (1, 2):
            assert {len(one) for one in selections(arm, shared, k)} == {each * k}
    assert len(selections("random", shared, 1)) == 2
    assert selections("last", shared, 1)[0].attention == (1,)
    assert sorted(searched(shared)) == [0, 1]


def test_the_seed_draws_layers_and_text(bench):
    one, other = bench("drop", 0), bench("drop", 1)
    assert not one.evaluation.equal(other.evaluation)
    assert one.evaluation.equal(bench("drop", 0).evaluation)


def test_reach_lies_where_the_curve_meets_the_limit():
    assert reach([(0, 0.0), (1, WORSE / 2), (2, WORSE * 1.5)]) == pytest.approx(1.5)
    assert reach([(0, 0.0), (4, 0.01)]) == 4.0
    assert reach([(0, 0.0), (2, 2 * WORSE)]) == pytest.approx(1.0)


def test_dropping_attention_shrinks_the_cache_by_its_share(bench):
    found = rows("attention", bench("speed"))
    assert found["kv_share", 1, ""] == pytest.approx(0.5, abs=0.01)
    assert found["prefill_speedup", 1, ""] > 0
    assert found["decode_speedup", 1, ""] > 0


def test_healing_is_told_against_both_whole_models(bench):
    found = rows("attention", bench("heal"))
    assert {metric for metric, *_ in found} == {"recovered", "recovered_net", "gain_whole"}


def test_every_arm_has_its_part():
    for arm in STUDY.arms:
        assert any(applies(arm.slug, {"part": part}) for part in ARMS_OF)


def test_the_study_runs_and_draws(tiny_llama, tmp_path: Path):
    known = {**TINY, "model": str(tiny_llama)}
    parts = [Size(1, ({"part": part},), known) for part in ("heal", "speed")]
    tiny = replace(
        STUDY,
        sizes={**STUDY.sizes, "quick": Size(1, ({"part": "drop"},), known, also=tuple(parts))},
    )
    evidence = run_study(tiny, "quick", tmp_path / "study", workers=1, progress=False)
    assert evidence.failures == ()
    made = {figure.slug: figure for figure in STUDY.figures(evidence)}
    assert set(made) == {"price", "agreement", "similarity", "healing", "speed"}
    for figure in made.values():
        assert figure.png().startswith(b"\x89PNG")
    assert STUDY.figures(replace(evidence, rows=(), parameters=())) == []
