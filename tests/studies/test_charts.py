"""Pictures of the merging studies, of invented rows that are shaped as the real ones."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeitgeist.evidence import Evidence, Group, Measured, Study, judge
from zeitgeist.evidence.figures import Figure, place_labels
from zeitgeist.evidence.record import claims_hash
from zeitgeist.evidence.study import SizeName
from zeitgeist.studies import knots, lines, merging
from zeitgeist.studies.looks_charts import across, encodings, frame, language_model
from zeitgeist.studies.merging_charts import WIDTH, clear_labels, clutter

Invent = Callable[[str, Group, np.random.Generator], Iterator[Measured]]
STUDIES = {"knots": knots.STUDY, "lines": lines.STUDY, "merging": merging.STUDY}
EXPECTED = {
    ("knots", "quick"): ["kept", "gain", "sign-conflict"],
    ("knots", "full"): ["kept", "gain", "sign-conflict"],
    ("lines", "quick"): ["trade-off-digits", "undone", "merges"],
    ("lines", "full"): ["trade-off-language", "trade-off-digits", "undone", "merges"],
    ("merging", "quick"): ["tasks", "kept-and-lost", "held-out", "conflicts", "updates"],
    ("merging", "full"): ["tasks", "kept-and-lost", "held-out", "conflicts", "updates"],
}


def scored(
    numbers: Mapping[str, Any],
    kept: float,
    ratio: float,
    random: np.random.Generator,
    **labels: str,
) -> Iterator[Measured]:
    """As `zeitgeist.studies.language.measured`."""
    for i, task in enumerate(numbers["tasks"]):
        known = {**labels, "task": task}
        own = kept if labels.get("expert", task) == task else 0.02
        right = random.random(numbers["test_items"]) < min(own - 0.05 * i, 0.98)
        for number, one in enumerate(right):
            yield Measured("exact", float(one), known, f"{task}:{number}")
        yield Measured("recovered", own + 0.1 + random.normal(0, 0.02), known)
        yield Measured("kept", float(right.mean()) / 0.9, known)
    for text, more in (("english", 1.0), ("code", 0.6)):
        known = {**labels, "task": text}
        nll = 2.5 + random.normal(0, 0.1, numbers["windows"])
        for number, one in enumerate(nll):
            yield Measured("nll", float(one), known, f"{text}:{number}")
        cost = (ratio - 1) * more * random.uniform(0.8, 1.2)
        yield Measured("perplexity_ratio", 1 + cost, known)


def knots_rows(arm: str, group: Group, random: np.random.Generator) -> Iterator[Measured]:
    """As `zeitgeist.studies.knots`."""
    gain = 0.02 * (arm in ("knots_ties", "knots_dare_ties")) + 0.01 * arm.endswith("ties")
    if group.setting["family"] == "smollm2":
        level = 0.7 + 0.02 * (group.seed % 3) + 3 * gain
        yield from scored(group.parameters, level, 1.1, random)
        yield Measured("evaluations", 8)
        yield Measured("lambda", 1.0)
        if arm == "knots_ties":
            for basis, share in (("own", 0.48), ("shared", 0.41)):
                yield Measured("cosine", 0.1, {"basis": basis})
                yield Measured("sign_conflict", share + random.normal(0, 0.005), {"basis": basis})
        return
    drawn = group.setting["family"] == "random"
    kinds = ("orthogonal", "generic") if drawn else ("",)
    if not drawn:
        width = float(group.setting["width"])
        level = 0.6 + 0.05 * np.log2(width / 16) + random.normal(0, 0.01)
        yield Measured("kept", level + gain)
        yield Measured("accuracy", 0.9 * level)
        yield Measured("lambda", 0.4)
        if not arm.endswith("task_arithmetic"):
            yield Measured("density", 0.2)
        yield Measured("evaluations", 32)
    for kind in kinds:
        labels = {"spaces": kind} if kind else {}
        if kind:
            yield Measured("distance_from_sum", 0.1, labels)
        if arm == "knots_task_arithmetic":
            yield Measured("weight_difference", 1e-15, labels)
        if arm == "knots_ties":
            for basis in ("own", "shared"):
                known = {**labels, "basis": basis}
                share = 0.5 if basis == "own" else 0.0 if kind == "orthogonal" else 0.44
                noise = random.normal(0, 0.01) if share else 0.0
                yield Measured("cosine", 0.05, known)
                yield Measured("sign_conflict", share + noise - 0.04 * (not drawn), known)
                yield Measured("shared_entries", 0.5, known)


def lines_rows(arm: str, group: Group, random: np.random.Generator) -> Iterator[Measured]:
    """As `zeitgeist.studies.lines`."""
    numbers, part = group.parameters, group.setting["part"]
    way = arm.removeprefix("task_arithmetic_").removeprefix("ties_")
    bonus = {"lines": 0.12, "uniform": 0.08, "reversed": 0.02}.get(way, 0.0)
    if part == "merge":
        level = (0.66 if group.setting["base"] == "weak" else 0.95) + random.normal(0, 0.006)
        yield Measured("kept", level + 0.3 * bonus * (1 - level) - 0.2 * (arm == "base"))
        yield Measured("accuracy", 0.9 * level)
        yield Measured("held_out_accuracy", 0.8 * level)
        if arm != "base":
            yield Measured("alpha_chosen", 0.2)
            yield Measured("beta_chosen", 0.2)
            yield Measured("evaluations", 1 if way == "unscaled" else 20)
        return
    spoken = part == "language"
    own = tuple(numbers["alphas"]) if spoken else tuple(i / 10 for i in range(10))
    alphas = {"base": (0.0,), "none": (1.0,)}.get(arm, (*own, 1.0))
    for item in ("",) if spoken else tuple(f"task {i}" for i in range(numbers["experts"])):
        for alpha in alphas:
            learned = 1 - (1 - alpha) ** (1 + 10 * bonus)
            forgotten = alpha**2
            if arm == "reversed":
                forgotten = 0.3 + 0.7 * forgotten
            labels = {"alpha": alpha}
            noise = random.normal(0, 0.01)
            if spoken:
                yield Measured("target_loss", 2.4 - 2.1 * learned + noise, labels)
                yield Measured("control_loss", 2.9 + 0.4 * forgotten + noise, labels)
            else:
                yield Measured("target_accuracy", 0.8 + 0.18 * learned + noise, labels, item)
                yield Measured("control_accuracy", 0.85 - 0.1 * forgotten + noise, labels, item)
        if not spoken and arm != "base":
            yield Measured("control_accuracy_at_target", 0.8, {}, item)
    if arm != "base":
        yield Measured("undone", 3 * bonus + (random.normal(0, 0.05) if bonus else 0.0))


def merging_rows(arm: str, group: Group, random: np.random.Generator) -> Iterator[Measured]:
    """As `zeitgeist.studies.merging`."""
    numbers = group.parameters
    if arm != "experts":
        at = [each.slug for each in merging.STUDY.arms].index(arm)
        kept = 0.02 if arm == "base" else 0.15 + 0.08 * at + random.normal(0, 0.03)
        yield from scored(numbers, kept, 1 + 0.03 * at * (at != 0), random)
        return
    tasks = numbers["tasks"]
    for i, expert in enumerate(tasks):
        yield from scored(numbers, 0.95, 1.1 + 0.05 * i, random, expert=expert)
    for block in (*(f"model.layers.{i}" for i in range(8)), "other", "all"):
        depth = int(block.rpartition(".")[2]) if block[-1].isdigit() else 10
        for i, one in enumerate(tasks):
            moved = 0.004 + depth / 5000 + random.normal(0, 0.0003)
            yield Measured("relative_norm", moved, {"block": block, "expert": one})
            for other in tasks[:i]:
                labels = {"block": block, "expert": f"{other} / {one}"}
                yield Measured("cosine", random.normal(0, 0.05), labels)
                conflict = 0.3 + depth / 200 + random.normal(0, 0.03)
                yield Measured("sign_conflict", conflict, labels)


INVENT: Mapping[str, Invent] = {"knots": knots_rows, "lines": lines_rows, "merging": merging_rows}


@cache
def invented(slug: str, size: SizeName) -> Evidence:
    """Evidence of a study, every row invented."""
    study = STUDIES[slug]
    rows: list[dict[str, Any]] = []
    groups = list(study.sizes[size].groups())
    for group in groups:
        for arm in study.arms:
            if study.applies(arm.slug, group.setting):
                random = np.random.default_rng([group.seed, len(arm.slug), len(rows)])
                for each in INVENT[slug](arm.slug, group, random):
                    head = {"study": slug, "arm": arm.slug, "seed": group.seed}
                    row = {**head, **group.setting, **each.labels, "metric": each.metric}
                    row |= {"item": each.item} if each.item else {}
                    rows.append({**row, "value": float(each.value), "seconds": 1.0, "cell": "x"})
    return evidence_of(study, size, rows, [dict(group.parameters) for group in groups])


def evidence_of(
    study: Study, size: SizeName, rows: list[dict[str, Any]], parameters: list[dict[str, Any]]
) -> Evidence:
    return Evidence(
        study=study.slug,
        title=study.title,
        question=study.question,
        cannot_show=study.cannot_show,
        arms=study.arms,
        metrics=study.metrics,
        claims=study.claims,
        size=size,
        model="",
        seeds=1,
        settings=(),
        parameters=tuple(parameters),
        rows=tuple(rows),
        verdicts=tuple(judge(rows, study.claims)),
        failures=(),
        code="0123456789ab",
        claim_history=(),
        versions={},
        machine={},
        command=claims_hash(study.claims),
        date="2024-11-20",
        seconds=1.0,
    )


def drawn(evidence: Evidence) -> list[Figure]:
    study = STUDIES[evidence.study]
    assert study.figures is not None
    return study.figures(evidence)


@cache
def figures(slug: str, size: SizeName) -> list[Figure]:
    return drawn(invented(slug, size))


def of(slug: str, size: SizeName, name: str) -> Figure:
    return next(figure for figure in figures(slug, size) if figure.slug == name)


def parts(spec: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a specification, however deep."""
    if isinstance(spec, dict):
        yield spec
    inside = spec.values() if isinstance(spec, dict) else spec if isinstance(spec, list) else ()
    for part in inside:
        yield from parts(part)


def values(figure: Figure, field: str) -> set[Any]:
    return {part[field] for part in parts(figure.spec) if field in part and "field" not in part}


@pytest.mark.parametrize(("slug", "size"), EXPECTED)
def test_every_figure_that_was_measured_becomes_a_picture(slug: str, size: SizeName) -> None:
    made = figures(slug, size)
    assert [figure.slug for figure in made] == EXPECTED[slug, size]
    for figure in made:
        assert figure.png().startswith(b"\x89PNG\r\n")
        assert len(figure.caption) > 60


@pytest.mark.parametrize(("slug", "size"), EXPECTED)
def test_axes_of_numbers_have_titles(slug: str, size: SizeName) -> None:
    for figure in figures(slug, size):
        for part in parts(figure.spec):
            for side in ("x", "y"):
                axis = part.get("encoding", {}).get(side, {})
                if axis.get("type") == "quantitative":
                    assert axis.get("title"), (figure.slug, axis)


@pytest.mark.parametrize("slug", STUDIES)
def test_without_rows_there_is_nothing_to_draw(slug: str) -> None:
    assert drawn(replace(invented(slug, "quick"), rows=(), parameters=())) == []


@pytest.mark.parametrize(("slug", "size"), EXPECTED)
def test_no_number_is_missing_or_without_end(slug: str, size: SizeName) -> None:
    for figure in figures(slug, size):
        numbers = [v for part in parts(figure.spec) for v in part.values()]
        assert all(np.isfinite(each) for each in numbers if isinstance(each, float))


def test_baselines_stand_beside_what_is_tested() -> None:
    titles = {arm.title for arm in knots.STUDY.arms}
    assert titles <= values(of("knots", "full", "kept"), "arm")
    assert values(of("knots", "quick", "gain"), "at") == {0.0}
    assert 0.5 in values(of("knots", "quick", "sign-conflict"), "at")
    ways = {"LiNeS", "Uniform", "Reversed", "No scaling"}
    for name in ("trade-off-language", "trade-off-digits"):
        assert values(of("lines", "full", name), "model") == {*ways, "Base"}
    assert values(of("lines", "full", "undone"), "series") == ways
    assert values(of("lines", "full", "merges"), "series") == {*ways, "Base"}
    models = values(of("merging", "full", "kept-and-lost"), "model")
    assert {"Base", "Expert: ISO dates", "Averaging", "TIES + LiNeS"} <= models
    assert 1.0 in values(of("merging", "full", "held-out"), "at")


def test_the_gain_is_the_paired_difference_of_every_seed() -> None:
    evidence = invented("knots", "quick")
    kept = {
        arm: {
            r["seed"]: r["value"] for r in evidence.rows if (r["arm"], r["metric"]) == (arm, "kept")
        }
        for arm in ("knots_ties", "ties")
    }
    wanted = {kept["knots_ties"][seed] - kept["ties"][seed] for seed in range(8)}
    shown = values(of("knots", "quick", "gain"), "value")
    assert wanted <= shown
    assert len(shown - wanted) == 1
    assert (shown - wanted).pop() == pytest.approx(float(np.mean(list(wanted))))


def test_curves_run_from_the_base_to_the_fine_tune_in_order_of_strength() -> None:
    spec = of("lines", "full", "trade-off-digits").spec
    points = [p for p in parts(spec) if p.get("model") == "Uniform" and "alpha" in p]
    assert [p["alpha"] for p in points] == pytest.approx([i / 10 for i in range(11)])
    targets = [p["target"] for p in points]
    assert np.corrcoef(targets, [p["alpha"] for p in points])[0, 1] > 0.9


def test_captions_say_how_intervals_were_made() -> None:
    assert "bootstrap-t over 5 seeds" in of("merging", "full", "held-out").caption
    assert "1 seed gives no interval" in of("merging", "quick", "held-out").caption
    assert "bootstrap-t over 6 seeds" in of("lines", "quick", "undone").caption


def test_experts_that_learned_nothing_leave_out_what_is_relative_to_them() -> None:
    whole = invented("merging", "quick")
    nothing = replace(whole, rows=tuple(r for r in whole.rows if r["metric"] != "kept"))
    assert "kept-and-lost" not in {figure.slug for figure in drawn(nothing)}
    assert "tasks" in {figure.slug for figure in drawn(nothing)}


@pytest.mark.parametrize(
    ("reference", "name"),
    [("", "SmolLM2"), ("hub:meta-llama/Llama-3.1-8B", "Llama-3.1-8B"), ("/a/mine/", "mine")],
)
def test_the_language_model_is_called_by_its_reference(reference: str, name: str) -> None:
    assert language_model(replace(invented("merging", "quick"), model=reference)) == name


def test_a_model_of_the_users_own_is_drawn_without_the_small_networks() -> None:
    for slug, key, kept in (("knots", "family", "smollm2"), ("lines", "part", "language")):
        whole = invented(slug, "full")
        own = replace(whole, rows=tuple(r for r in whole.rows if r[key] == kept), model="a/mine")
        made = drawn(own)
        assert made
        for figure in made:
            assert "width 64" not in str(figure.spec)
            assert figure.svg().startswith("<svg")


@given(st.lists(st.tuples(*[st.floats(-9, 9)] * 3), min_size=1, max_size=9))
def test_a_frame_holds_all_values_and_no_more_than_the_intervals(
    drawn: list[tuple[float, float, float]],
) -> None:
    points = [dict(zip(("low", "value", "high"), sorted(each), strict=True)) for each in drawn]
    left, right = frame(points)
    assert left < min(p["value"] for p in points) <= max(p["value"] for p in points) < right
    low, high = min(p["low"] for p in points), max(p["high"] for p in points)
    room = 0.05 * (high - low) + 0.01 + 1e-5
    assert low - room <= left < right <= high + room


def test_what_lies_far_aside_is_drawn_at_the_edge_with_its_number() -> None:
    whole = invented("lines", "quick")
    rows = tuple(
        {**r, "value": 0.123} if r["arm"] == "base" and r["metric"] == "kept" else r
        for r in whole.rows
    )
    figure = next(f for f in drawn(replace(whole, rows=rows)) if f.slug == "merges")
    assert values(figure, "told") == {"\N{LEFTWARDS ARROW} 12.3 %"}
    base = [p for p in parts(figure.spec) if p.get("series") == "Base" and "at" in p]
    assert all(p["value"] < p["at"] for p in base)


def test_labels_are_as_clear_as_in_any_order_and_stay_apart_in_a_crowd() -> None:
    spots = [
        (100.0, 60.0, "KnOTS-TIES"),
        (108.0, 60.0, "KnOTS-TIES + LiNeS"),
        (102.0, 80.0, "Task arithmetic"),
        (170.0, 60.0, "Averaging"),
        (250.0, 60.0, "TIES + LiNeS"),
    ]
    sides = clear_labels(spots)
    assert clutter(spots, sides) <= clutter(spots, place_labels(spots, width=WIDTH))
    assert clutter(spots, sides) < 1.0
    assert clutter(spots, [(0.0, 0.0, "right") for _ in spots]) > 100.0


def test_looks_are_colour_shape_and_dash_at_once() -> None:
    channels = encodings("model", {"a": ("#000000", "circle", [1, 0])})
    ranges = [
        part["range"] for each in channels for part in parts(each.to_dict()) if "range" in part
    ]
    assert ranges == [["#000000"], ["circle"], [[1, 0]]]
    assert "share" in {part.get("title") for part in parts(across(0.5, "share").to_dict())}
