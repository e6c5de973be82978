"""The study of active-dormant heads: laws of its numbers, and its pictures, on tiny models."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zeitgeist.evidence import Group, Size, run_study
from zeitgeist.inspection.heads_ablate import Ablated
from zeitgeist.inspection.heads_toy import LayerRecord, ToyRecord
from zeitgeist.studies import active_dormant_heads_language as language
from zeitgeist.studies.active_dormant_heads import ARMS_OF, STUDY, applies
from zeitgeist.studies.active_dormant_heads_measures import measure, prepare
from zeitgeist.studies.active_dormant_heads_toy import curves, ends, explained, slope, slopes

TOY = {
    "toy": {"width": 8, "length": 12, "batch_size": 2, "steps": 4, "record_every": 1},
    "rates": {"adam": {1: 1e-3, 3: 1e-3}, "sgd": {1: 0.1, 3: 0.1}},
}


def language_of(model):
    return {
        "model": str(model),
        "length": 32,
        "windows": 2,
        "taken": 1,
        "probe_length": 32,
        "probe_windows": 1,
        "stride": 1,
        "heads": 2,
    }


def growing(count=12, rate=0.01):
    """Records whose residual norm grows linearly and whose logit grows as a logarithm."""
    made = []
    for i in range(1, count + 1):
        step = 100 * i
        layer = LayerRecord(0.9, 0.1, 0.8, 3 * math.log(step), 1.0, 4.0, rate * step, 2.0)
        made.append(ToyRecord(step, 0.5 if i < 3 else 0.01, 0.1, (layer,)))
    return made


def values(rows):
    return {(row.metric, *row.labels.values()): row.value for row in rows}


def test_slopes_are_those_of_the_records():
    found = values(slopes(growing()))
    assert found["growth",] == pytest.approx(10.0)
    assert found["steadiness",] == pytest.approx(1.0)
    assert found["logit_slope",] == pytest.approx(3.0)
    assert found["logit_fit",] > 0.03  # all there is to gain from step 300 to 1,200
    assert list(slopes(growing(6))) == []  # copying is learned too late to say


def test_logarithmic_growth_is_not_steady():
    records = [
        replace(each, layers=(replace(each.layers[0], stream_first=math.log(each.step)),))
        for each in growing(20)
    ]
    assert values(slopes(records))["steadiness",] < 0.6


def test_ends_are_means_of_the_last_records():
    found = values(ends(growing()))
    assert found["sink", "idle"] == pytest.approx(0.9)
    assert found["sink", "trigger"] == pytest.approx(0.1)
    assert found["drain",] == pytest.approx(0.75)
    assert found["copy_loss",] == pytest.approx(0.01)
    assert len(list(curves(growing(3)))) == 3 * 7


def test_lines_are_fitted():
    x = np.array([1.0, 2.0, 4.0])
    assert slope(x, 2 * x + 1) == pytest.approx(2.0)
    assert explained(x, 0 * x + 1) == 0.0


def test_what_is_left_of_a_peak_is_counted_from_none():
    row = Ablated("mlp:0", "zero", "prose", 4, 1.0, 0.0, 0.0, 0.0, (0.0, 0.0), (11.0, 0.5))
    assert language.left(row) == 0.0
    assert language.left(replace(row, peak=(11.0, 21.0))) == 2.0
    assert math.isnan(language.left(replace(row, peak=None)))


def test_nothing_is_scored_on_the_text_it_was_chosen_on(tiny_llama):
    bench = prepare(Group(0, {"part": "language"}, language_of(tiny_llama)))
    choose, score = bench.texts["choose"], bench.texts["score"]
    assert not set(choose["code"]) & set(score["code"])
    assert choose["code"] and score["code"]
    assert not set(choose["prose"][0].split("\n\n")) & set(score["prose"][0].split("\n\n"))


def test_the_simplified_model_has_its_half():
    rows = list(measure("flow", Group(0, {"part": "theory"}, {})))
    assert [row.metric for row in rows] == ["half"]
    assert abs(rows[0].value) < 0.01


def test_every_arm_has_its_part():
    for arm in STUDY.arms:
        assert any(applies(arm.slug, {"part": part}) for part in ARMS_OF)


def test_the_study_runs_and_draws(tiny_llama, tmp_path: Path, monkeypatch):
    # A random model has no sinks by the default thresholds; by these the first token is one.
    options = language.HeadsOptions

    def sinky(**given):
        return options(**given, sink_mass=0.0, sink_share=0.0, sink_queries=given["length"] - 1)

    monkeypatch.setattr(language, "HeadsOptions", sinky)
    monkeypatch.setattr(language, "MODULES", ("argparse", "ast", "csv", "difflib"))
    parts = [
        Size(1, ({"part": "toy", "layers": 3}, {"part": "toy", "layers": 1}), TOY),
        Size(1, ({"part": "theory"},)),
        Size(1, ({"part": "language"},), language_of(tiny_llama)),
    ]
    tiny = replace(STUDY, sizes={**STUDY.sizes, "quick": replace(parts[0], also=tuple(parts[1:]))})
    evidence = run_study(tiny, "quick", tmp_path / "study", workers=1, progress=False)
    assert evidence.failures == ()
    known = {metric.slug for metric in STUDY.metrics}
    seen = {row["metric"] for row in evidence.rows}
    assert seen <= known
    assert known - seen == {"growth", "steadiness", "logit_fit", "logit_slope"}
    for verdict in evidence.verdicts:
        claim = next(claim for claim in STUDY.claims if claim.slug == verdict.claim)
        assert verdict.pairs > 0 or claim.metric in known - seen, claim.slug
    made = {figure.slug: figure for figure in STUDY.figures(evidence)}
    assert set(made) == {"forming-3", "forming-1", "heads", "peak", "peak-makers"}
    for figure in made.values():
        assert figure.png().startswith(b"\x89PNG")
    assert STUDY.figures(replace(evidence, rows=(), parameters=())) == []
