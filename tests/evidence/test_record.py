"""Evidence that was damaged or edited is refused, with the file's name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zeitgeist.errors import EvidenceInvalid, InputInvalid
from zeitgeist.evidence import Arm, Claim, Study, load_evidence, run_study


@pytest.fixture
def place(study: Study, tmp_path: Path) -> Path:
    run_study(study, "quick", tmp_path / "toy", workers=1, progress=False)
    return tmp_path / "toy"


def edit(place: Path, change: Callable[[dict[str, Any]], None]) -> None:
    record = json.loads((place / "study.json").read_text())
    change(record)
    (place / "study.json").write_text(json.dumps(record))


def say_it_does_not_hold(record: dict[str, Any]) -> None:
    record["verdicts"][0]["verdict"] = "does not hold"


def say_more(record: dict[str, Any]) -> None:
    record["verdicts"][0]["difference"] *= 2


def loosen(record: dict[str, Any]) -> None:
    record["claims"][0]["margin"] = 0.0


def forget(record: dict[str, Any]) -> None:
    record["verdicts"] = []


@pytest.mark.parametrize("change", [say_it_does_not_hold, say_more, loosen, forget])
def test_a_verdict_cannot_be_edited(place: Path, change: Callable[[dict[str, Any]], None]) -> None:
    edit(place, change)
    with pytest.raises(EvidenceInvalid, match=r"study\.json: the verdicts do not follow"):
        load_evidence(place)


def test_rows_cannot_be_edited(place: Path) -> None:
    table = pq.read_table(place / "rows.parquet")
    values = [value + 1 for value in table["value"].to_pylist()]
    at = table.column_names.index("value")
    pq.write_table(table.set_column(at, "value", pa.array(values)), place / "rows.parquet")
    with pytest.raises(EvidenceInvalid, match=r"rows\.parquet: the rows are not those"):
        load_evidence(place)


@pytest.mark.parametrize("name", ["rows.parquet", "study.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated", "garbage", "empty"])
def test_damage_is_told_with_the_file_and_the_mend(place: Path, name: str, damage: str) -> None:
    path = place / name
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {"truncated": whole[: len(whole) // 2], "garbage": b"\xff\x00", "empty": b""}[damage]
        )
    with pytest.raises(EvidenceInvalid, match="--overwrite") as told:
        load_evidence(place)
    assert str(place) in str(told.value)
    assert "\n" not in str(told.value)


def test_a_record_of_another_format_is_told(place: Path) -> None:
    edit(place, lambda record: record.update(format=99))
    with pytest.raises(EvidenceInvalid, match="format 99"):
        load_evidence(place)


def test_a_column_that_is_gone_is_named(place: Path) -> None:
    table = pq.read_table(place / "rows.parquet").drop_columns(["arm"])
    pq.write_table(table, place / "rows.parquet")
    with pytest.raises(EvidenceInvalid, match="no column 'arm'"):
        load_evidence(place)


def test_damaged_evidence_is_made_again_only_when_asked(study: Study, place: Path) -> None:
    (place / "rows.parquet").write_bytes(b"")
    with pytest.raises(EvidenceInvalid):
        run_study(study, "quick", place, workers=1, progress=False)
    again = run_study(study, "quick", place, workers=1, progress=False, overwrite=True)
    assert load_evidence(place) == again


def test_the_record_is_json_that_any_reader_takes(place: Path) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    record = json.loads((place / "study.json").read_text(), parse_constant=refuse)
    assert record["claims"][0]["hash"]
    assert record["machine"].keys() == {"system", "processor", "cores", "accelerator"}
    assert record["versions"]["python"]


def test_a_study_without_baseline_or_about_no_metric_is_refused(
    make_study: Callable[..., Study], study: Study
) -> None:
    with pytest.raises(InputInvalid, match="no baseline"):
        make_study(study.measure, arms=(Arm("a", "A", ""),))
    other = Claim("c", "", "", "speed", {"arm": "new"}, {"arm": "old"}, "greater")
    with pytest.raises(InputInvalid, match="'speed'"):
        make_study(study.measure, claims=(other,))


@pytest.mark.parametrize(("direction", "margin"), [("greater", -1.0), ("equal", 0.0)])
def test_a_margin_that_says_nothing_is_refused(direction: str, margin: float) -> None:
    with pytest.raises(InputInvalid, match="margin"):
        Claim("c", "", "", "m", {}, None, direction, margin)  # type: ignore[arg-type]
