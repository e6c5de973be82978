"""Cells are run once, in any order and anywhere, and a bad one does not sink the rest."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zeitgeist.errors import EvidenceInvalid, ExtraMissing, InputInvalid, OutputExists
from zeitgeist.evidence import (
    Claim,
    Evidence,
    Group,
    Measured,
    Size,
    Study,
    load_evidence,
    run_study,
    runner,
)
from zeitgeist.evidence.runner import CELLS


def go(study: Study, place: Path, **options: Any) -> Evidence:
    given: dict[str, Any] = {"workers": 1, "progress": False}
    return run_study(study, "quick", place, **(given | options))


def timeless(evidence: Evidence) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in evidence.rows]


def test_rows_are_tidy_and_verdicts_follow(study: Study, tmp_path: Path) -> None:
    evidence = go(study, tmp_path / "toy", command="zeitgeist reproduce toy")
    assert len(evidence.rows) == 2 * 5 * 2 * 3
    row = evidence.rows[0]
    assert set(row) == {
        "study", "arm", "seed", "part", "width", "item", "metric", "value", "seconds", "cell",
    }  # fmt: skip
    assert evidence.verdicts[0].verdict == "holds"
    assert evidence.verdicts[0].seeds == 5
    assert sorted(p.name for p in (tmp_path / "toy").iterdir()) == ["rows.parquet", "study.json"]
    assert load_evidence(tmp_path / "toy") == evidence


def test_two_runs_give_the_same_rows(study: Study, tmp_path: Path) -> None:
    one, other = (go(study, tmp_path / name) for name in ("one", "other"))
    assert timeless(one) == timeless(other)
    assert one.verdicts == other.verdicts


def test_processes_give_the_rows_of_one_process(study: Study, tmp_path: Path) -> None:
    alone = go(study, tmp_path / "alone")
    spread = go(study, tmp_path / "spread", workers=2)
    assert timeless(alone) == timeless(spread)


def test_a_ray_cluster_gives_the_rows_of_one_process(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
        configure_logging=False,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}},
    )
    try:
        spread = go(study, tmp_path / "ray", backend="ray", workers=2)
    finally:
        ray.shutdown()
    alone = go(study, tmp_path / "alone")
    assert timeless(alone) == timeless(spread)


def counting(make_study: Callable[..., Study], log: Path, **changes: Any) -> Study:
    """A study that writes down which cells it runs."""

    def measure(arm: str, group: Group) -> Iterator[Measured]:
        with log.open("a") as file:
            file.write(f"{arm} {group.seed} {group.setting['width']}\n")
        yield Measured("score", group.seed + (arm == "new") + group.parameters.get("more", 0))

    return make_study(measure, **changes)


def ran(log: Path) -> list[str]:
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def test_a_second_run_runs_nothing(make_study: Callable[..., Study], tmp_path: Path) -> None:
    log = tmp_path / "log"
    study = counting(make_study, log)
    first = go(study, tmp_path / "toy", command="the first")
    assert len(ran(log)) == 20
    second = go(study, tmp_path / "toy", command="the second")
    assert ran(log) == []
    assert second == first  # also where and when the numbers come from


def test_more_seeds_run_only_the_new_ones_and_fewer_are_refused(
    make_study: Callable[..., Study], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    study = counting(make_study, log)
    go(study, tmp_path / "toy", seeds=3)
    ran(log)
    assert len(go(study, tmp_path / "toy", seeds=4).rows) == 16
    assert {line.split()[1] for line in ran(log)} == {"3"}
    with pytest.raises(OutputExists, match=r"12 cells .* --overwrite"):
        go(study, tmp_path / "toy", seeds=1)
    assert len(go(study, tmp_path / "toy", seeds=1, overwrite=True).rows) == 4
    assert ran(log) == []


def test_other_parameters_are_other_cells(make_study: Callable[..., Study], tmp_path: Path) -> None:
    log = tmp_path / "log"
    go(counting(make_study, log), tmp_path / "toy")
    ran(log)
    more = {"quick": Size(5, ({"width": 1}, {"width": 2}), {"more": 1})}
    with pytest.raises(OutputExists, match="other settings"):
        go(counting(make_study, log, sizes=more), tmp_path / "toy")
    assert ran(log) == []
    go(counting(make_study, log, sizes=more), tmp_path / "toy", overwrite=True)
    assert len(ran(log)) == 20


def test_a_changed_claim_runs_nothing_and_leaves_its_mark(
    make_study: Callable[..., Study], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    study = counting(make_study, log)
    first = go(study, tmp_path / "toy")
    ran(log)
    old = study.claims[0]
    looser = Claim(old.slug, "easier", old.paper, "score", old.treatment, old.control, "greater")
    second = go(counting(make_study, log, claims=(looser,)), tmp_path / "toy")
    assert ran(log) == []
    assert first.claim_history == second.claim_history[:1]
    assert len(second.claim_history) == 2
    # Letting everything go does not wipe the mark.
    third = go(counting(make_study, log, claims=(looser,)), tmp_path / "toy", overwrite=True)
    assert third.claim_history == second.claim_history


def test_wording_alone_is_no_change(study: Study, tmp_path: Path) -> None:
    old = study.claims[0]
    same = Claim(old.slug, "other words", "", "score", old.treatment, old.control, "greater", 0.5)
    assert same.hash == old.hash


def test_a_failing_cell_is_reported_and_tried_again(
    make_study: Callable[..., Study], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.touch()

    def measure(arm: str, group: Group) -> list[Measured]:
        if arm == "new" and group.seed == 1 and broken.exists():
            raise ZeroDivisionError("no luck")
        return [Measured("score", group.seed + 2.0 * (arm == "new"))]

    study = make_study(measure)
    evidence = go(study, tmp_path / "toy", workers=2)
    assert [(f.arm, f.seed, f.setting["width"]) for f in evidence.failures] == [
        ("new", 1, 1),
        ("new", 1, 2),
    ]
    assert "ZeroDivisionError: no luck" in evidence.failures[0].error
    assert len(evidence.rows) == 18
    assert evidence.verdicts[0].unpaired == 2
    assert load_evidence(tmp_path / "toy") == evidence
    broken.unlink()
    mended = go(study, tmp_path / "toy")
    assert mended.failures == ()
    assert len(mended.rows) == 20
    assert not (tmp_path / "toy" / CELLS).exists()


def test_a_failing_preparation_fails_its_cells_only(
    make_study: Callable[..., Study], tmp_path: Path
) -> None:
    def prepare(group: Group) -> Group:
        if group.seed == 0:
            raise RuntimeError("no data")
        return group

    def measure(arm: str, group: Group) -> list[Measured]:
        return [Measured("score", 1.0 * group.seed)]

    evidence = go(make_study(measure, prepare=prepare), tmp_path / "toy")
    assert {f.seed for f in evidence.failures} == {0}
    assert len(evidence.failures) == 4


def test_when_everything_fails_there_is_no_evidence(
    make_study: Callable[..., Study], tmp_path: Path
) -> None:
    def measure(arm: str, group: Group) -> list[Measured]:
        raise RuntimeError("nothing works")

    with pytest.raises(EvidenceInvalid, match=r"every cell of toy failed.*nothing works"):
        go(make_study(measure), tmp_path / "toy")
    assert not (tmp_path / "toy").exists()


def test_what_arms_share_is_prepared_once(make_study: Callable[..., Study], tmp_path: Path) -> None:
    prepared = []

    def prepare(group: Group) -> Group:
        prepared.append((group.seed, group.setting["width"]))
        return group

    def measure(arm: str, group: Group) -> list[Measured]:
        return [Measured("score", 1.0)]

    study = make_study(measure, prepare=prepare, applies=lambda arm, s: s["width"] == 1)
    evidence = go(study, tmp_path / "toy")
    assert prepared == [(seed, 1) for seed in range(5)] or len(set(prepared)) == len(prepared)
    assert {row["width"] for row in evidence.rows} == {1}


def test_parts_have_their_own_seeds_and_a_model_picks_its_parts(
    make_study: Callable[..., Study], tmp_path: Path
) -> None:
    def measure(arm: str, group: Group) -> list[Measured]:
        return [Measured("score", 1.0, {"model": group.parameters.get("model", "none")})]

    sizes = {"quick": Size(3, also=(Size(2, ({"part": "words"},), {"model": "own"}),))}
    study = make_study(measure, sizes=sizes, takes_model=True)
    evidence = go(study, tmp_path / "toy")
    assert sorted(row["seed"] for row in evidence.rows if row["arm"] == "new") == [0, 0, 1, 1, 2]
    mine = go(study, tmp_path / "mine", model="mine")
    assert {row["model"] for row in mine.rows} == {"mine"}
    assert {row["part"] for row in mine.rows} == {"words"}


SLOW = """
import signal, sys, time
from pathlib import Path

# Whoever started this may have had it ignored, as shells do for what runs in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
from zeitgeist.evidence import Arm, Claim, Measured, Metric, Size, Study, run_study

def main():
    def measure(arm, group):
        if group.seed:
            time.sleep(60)
        return [Measured("score", 1.0)]

    study = Study(
        "slow", "Slow", "?", (), (Arm("only", "Only", "", True),),
        (Metric("score", "score", "higher"),), (), {"quick": Size(4)}, measure,
    )
    run_study(study, "quick", Path(sys.argv[1]), workers=int(sys.argv[2]), progress=False)

main()
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_keeps_what_is_finished(tmp_path: Path, workers: int) -> None:
    place = tmp_path / "slow"
    command = [sys.executable, "-c", SLOW, str(place), str(workers)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        for _ in range(600):
            if list(place.glob(f"{CELLS}/*.json")):
                break
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode != 0
    cells = list((place / CELLS).glob("*.json"))
    assert len(cells) == 1
    assert json.loads(cells[0].read_text())["rows"][0]["seed"] == 0
    assert not (place / "study.json").exists()


def test_a_run_goes_on_from_what_an_interruption_left(
    make_study: Callable[..., Study], tmp_path: Path
) -> None:
    log, stop = tmp_path / "log", tmp_path / "stop"
    stop.touch()

    def measure(arm: str, group: Group) -> list[Measured]:
        with log.open("a") as file:
            file.write("x\n")
        if stop.exists() and group.seed == 2:
            raise KeyboardInterrupt
        return [Measured("score", 1.0 * group.seed)]

    study = make_study(measure)
    with pytest.raises(KeyboardInterrupt):
        go(study, tmp_path / "toy")
    stop.unlink()
    ran(log)
    (tmp_path / "toy" / CELLS / "damaged.json").write_text("{")
    assert len(go(study, tmp_path / "toy").rows) == 20
    assert len(ran(log)) == 20 - 8


def test_something_else_in_the_place_is_left_alone(study: Study, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(OutputExists, match="holds something else"):
        go(study, tmp_path, overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(InputInvalid, match="is a file"):
        go(study, tmp_path / "file")


def test_evidence_of_another_study_is_not_replaced(
    make_study: Callable[..., Study], study: Study, tmp_path: Path
) -> None:
    go(study, tmp_path / "toy")
    other = make_study(study.measure, slug="other")
    with pytest.raises(EvidenceInvalid, match="evidence of 'toy'"):
        go(other, tmp_path / "toy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "seeds is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"backend": "dask"}, "no backend 'dask'"),
        ({"model": "mine"}, "not on 'mine'"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_made(
    study: Study, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    unchecked = getattr(run_study, "__wrapped__", run_study)
    with pytest.raises(InputInvalid, match=message):
        unchecked(study, "quick", tmp_path / "toy", progress=False, **options)
    assert not (tmp_path / "toy").exists()


def test_a_size_that_a_study_does_not_have_is_named(study: Study, tmp_path: Path) -> None:
    with pytest.raises(InputInvalid, match="toy has no size 'huge'; it has quick"):
        run_study(study, "huge", tmp_path / "toy", progress=False)


def test_without_ray_the_extra_is_named(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "find_spec", lambda _: None)
    with pytest.raises(ExtraMissing, match=r"zeitgeist\[ray\]"):
        go(study, tmp_path / "toy", backend="ray")


def test_a_label_may_not_shadow_a_column(make_study: Callable[..., Study], tmp_path: Path) -> None:
    def measure(arm: str, group: Group) -> list[Measured]:
        return [Measured("score", 1.0, {"seed": 3})]

    with pytest.raises(EvidenceInvalid, match="a label is called 'seed'"):
        go(make_study(measure), tmp_path / "toy")
