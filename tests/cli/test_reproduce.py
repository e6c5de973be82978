"""``zeitgeist reproduce``: studies through the command line, and one line for every mistake."""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from zeitgeist import catalogue
from zeitgeist.cli import main
from zeitgeist.evidence import Arm, Claim, Group, Measured, Metric, Size, Study, load_evidence
from zeitgeist.studies import reproduction as door
from zeitgeist.studies.reproduction import find_study, reproduce, slugs


def run(*words: str) -> int:
    try:
        main(["reproduce", *words])
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


def study(measure: Callable[[str, Group], Iterable[Measured]], **changes: Any) -> Study:
    fields: dict[str, Any] = {
        "slug": "knots",
        "title": "Invented",
        "question": "?",
        "cannot_show": (),
        "arms": (Arm("old", "Old", "", baseline=True), Arm("new", "New", "")),
        "metrics": (Metric("score", "score", "higher"),),
        "claims": (
            Claim("up", "new beats old", "", "score", {"arm": "new"}, {"arm": "old"}, "greater"),
        ),
        "sizes": {
            "quick": Size(5),
            "full": Size(6),
            "paper": Size(5, accelerator=True, models=("hub:org/large",)),
        },
        "measure": measure,
        "takes_model": True,
    }
    return Study(**(fields | changes))


def better(arm: str, group: Group) -> list[Measured]:
    return [Measured("score", group.seed % 2 + (arm == "new") * (1 + group.seed / 50))]


@pytest.fixture
def invented(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def use(measure: Any = better, **changes: Any) -> None:
        monkeypatch.setattr(door, "find_study", lambda slug: study(measure, **changes))

    return use


def test_verdicts_go_to_stdout_and_the_rest_to_stderr(
    invented: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    invented()
    assert run("knots", "-o", str(tmp_path), "--workers", "1") == 0
    out, err = capsys.readouterr()
    assert "new beats old" in out
    assert "holds" in out
    assert str(tmp_path / "knots" / "quick") in err.replace("\n", "")
    assert load_evidence(tmp_path / "knots" / "quick").command == (
        "zeitgeist reproduce knots --size quick"
    )


def test_json_is_all_that_stdout_gets(
    invented: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    invented()
    words = ("knots", "-o", str(tmp_path), "--workers", "1", "--size", "full", "--json")
    assert run(*words) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["size"] == "full"
    assert found["verdicts"][0]["verdict"] == "holds"
    assert found["verdicts"][0]["seeds"] == 6


def test_seeds_and_a_model_of_the_users_are_kept_apart(
    invented: Callable[..., None], tmp_path: Path
) -> None:
    seen = []

    def measure(arm: str, group: Group) -> list[Measured]:
        seen.append(group.parameters["model"])
        return better(arm, group)

    invented(measure, sizes={"quick": Size(5, parameters={"model": "ours"})})
    own = tmp_path / "My Model"
    own.mkdir()
    base = ("knots", "-o", str(tmp_path), "--workers", "1")
    assert run(*base) == 0
    assert run(*base, "--model", str(own), "--seeds", "4") == 0
    assert set(seen) == {"ours", str(own)}
    mine = load_evidence(tmp_path / "knots" / "quick-my-model")
    assert (mine.model, mine.seeds) == (str(own), 4)
    assert mine.command.startswith("zeitgeist reproduce knots --size quick --seeds 4 --model ")
    assert load_evidence(tmp_path / "knots" / "quick").model == ""


def test_a_failing_cell_is_told_and_the_exit_code_says_so(
    invented: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(arm: str, group: Group) -> list[Measured]:
        if group.seed == 3:
            raise RuntimeError("out of luck")
        return better(arm, group)

    invented(measure)
    assert run("knots", "-o", str(tmp_path), "--workers", "1") == 1
    err = capsys.readouterr().err
    assert "failed: old, seed 3: RuntimeError: out of luck" in err
    assert "failed: new, seed 3" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("knotts",), "did you mean 'knots'"),
        ((), "no study was named"),
        (("knots", "--all"), "both --all and 'knots'"),
        (("--all", "--model", "x"), "take no model"),
        (("knots", "--size", "huge"), "huge"),
        (("knots", "--backend", "dask"), "dask"),
        (("knots", "--seeds", "0"), "seeds is 0"),
        (("knots", "--workers", "0"), "workers is 0"),
        (("knots", "--size", "paper"), "needs a GPU"),
    ],
)
def test_a_mistake_is_one_line_and_code_two(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run(*words, "-o", str(tmp_path / "out")) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_here_is_told_with_how_to_get_it(
    invented: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    invented()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert run("knots", "--size", "paper", "-o", str(tmp_path)) == 2
    assert "zeitgeist models pull hub:org/large" in capsys.readouterr().err


def test_a_model_that_cannot_be_used_is_told_before_any_work(
    invented: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    invented()
    assert run("knots", "--model", "no/such/model", "-o", str(tmp_path / "out")) == 2
    assert "no/such/model" in capsys.readouterr().err
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").touch()
    assert run("knots", "--model", str(adapter), "-o", str(tmp_path / "out")) == 2
    assert "is an adapter" in capsys.readouterr().err
    invented(takes_model=False)
    assert run("knots", "--model", str(tmp_path), "-o", str(tmp_path / "out")) == 2
    assert "leave out --model" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_interruption_says_that_finished_cells_are_kept(
    invented: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(arm: str, group: Group) -> list[Measured]:
        if group.seed:
            raise KeyboardInterrupt
        return better(arm, group)

    invented(measure)
    assert run("knots", "-o", str(tmp_path), "--workers", "1") == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert len(list((tmp_path / "knots" / "quick").rglob("*.json"))) == 2


def test_missing_packages_are_named_by_their_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(door, "find_spec", lambda name: None if name == "joblib" else object())
    assert run("knots") == 2
    assert "pip install 'zeitgeist[studies]'" in capsys.readouterr().err


def test_help_says_what_it_makes_and_imports_no_torch(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    for word in ("--size", "--seeds", "--backend", "--workers", "--model", "--output", "--all"):
        assert word in text
    assert "zeitgeist.cli.reproduce" in sys.modules


def test_every_system_and_area_has_its_study() -> None:
    known = slugs()
    areas = [area.slug for area in catalogue.AREAS if area.study]
    assert list(known)[: len(areas)] == areas
    for slug in known:
        found = find_study(slug)
        assert found.slug == slug
        assert set(found.sizes) == {"quick", "full", "paper"}
        assert found.sizes["quick"].minutes <= 2
        assert found.sizes["full"].minutes <= 30
        assert found.sizes["full"].seeds >= 4  # the fewest that give an interval
        assert found.cannot_show
        assert found.figures is not None
        assert all(claim.paper for claim in found.claims)


def test_a_real_study_runs_from_end_to_end(tmp_path: Path) -> None:
    place, evidence = reproduce("knots", out=tmp_path, seeds=1, workers=1, progress=False)
    assert place == tmp_path / "knots" / "quick"
    assert evidence.failures == ()
    assert {verdict.verdict for verdict in evidence.verdicts} == {"undecided"}
    pictures = {path.stem for path in place.glob("*.png")}
    assert pictures
    assert pictures == {path.stem for path in place.glob("*.html")}
    page = next(place.glob("*.html")).read_text(encoding="utf-8")
    assert "http://" not in page.partition("<script")[0]
    again = reproduce("knots", out=tmp_path, seeds=1, workers=1, progress=False)[1]
    assert again.rows == evidence.rows
