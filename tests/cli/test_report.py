"""``zeitgeist report``: what goes to stdout, what opens, and errors in one line."""

import json
import webbrowser
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from zeitgeist.cli import main
from zeitgeist.cli import report as verb
from zeitgeist.evidence import Arm, Claim, Evidence, Metric, judge
from zeitgeist.evidence.record import ClaimsUsed, claims_hash, write_record
from zeitgeist.report import site


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seeds of a study that no catalogue knows: one difference without an interval."""
    place = tmp_path_factory.mktemp("evidence")
    claims = (Claim("up", "new beats old", "", "score", {"arm": "new"}, {"arm": "old"}, "greater"),)
    rows = tuple(
        {"study": "toy", "arm": arm, "seed": seed, "metric": "score", "value": value * seed**2}
        | {"seconds": 0.5, "cell": f"{arm}{seed}"}
        for seed in range(3)
        for arm, value in (("old", 1.0), ("new", 2.0))
    )
    (place / "toy" / "quick").mkdir(parents=True)
    finished = Evidence(
        study="toy",
        title="Toy",
        question="Is new better?",
        cannot_show=(),
        arms=(Arm("old", "Old", "as it was", baseline=True), Arm("new", "New", "twice")),
        metrics=(Metric("score", "score (points)", "higher"),),
        claims=claims,
        size="quick",
        model="",
        seeds=3,
        settings=({},),
        parameters=({},),
        rows=rows,
        verdicts=tuple(judge(rows, claims)),
        failures=(),
        code="0123456789ab",
        claim_history=(ClaimsUsed(claims_hash(claims), "2024-11-03"),),
        versions={},
        machine={},
        command="zeitgeist reproduce toy --size quick",
        date="2024-11-20",
        seconds=3.0,
    )
    write_record(finished, place / "toy" / "quick")
    return place


@pytest.fixture(autouse=True)
def empty_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verb's own work, without the catalogue's studies."""
    monkeypatch.setattr(site, "write_site", partial(site.write_site, systems=(), areas=()))
    monkeypatch.setattr("zeitgeist.checkpoints.atomic.sync", lambda _: None)


def run(*arguments: object) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["report", *map(str, arguments)])
    assert not leaving.value.code


def failing(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as leaving:
        main(["report", *map(str, arguments)])
    assert leaving.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def test_the_page_is_named_on_stderr_and_stdout_stays_clean(
    evidence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("--evidence", evidence, "-o", tmp_path / "site")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == f"page: {tmp_path / 'site' / 'index.html'}"
    assert (tmp_path / "site" / "runs" / "toy" / "quick.html").exists()


def test_json_lists_pages_and_verdicts_and_opening_hands_the_page_to_the_browser(
    evidence: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    run("--evidence", evidence, "-o", tmp_path / "my site", "--json", "--open")
    record = json.loads(capsys.readouterr().out)
    assert [page["path"] for page in record["pages"]] == ["index.html", "runs/toy/quick.html"]
    (verdict,) = record["verdicts"]
    assert (verdict["study"], verdict["claim"], verdict["verdict"]) == ("toy", "up", "undecided")
    assert verdict["low"] is None and verdict["high"] is None
    assert verdict["finding"] == "undecided: difference +1.667, no interval from three seeds"
    assert opened == [(tmp_path / "my site" / "index.html").as_uri()]


def test_what_cannot_be_made_is_one_line_and_leaves_nothing(
    evidence: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "site"
    assert "no directory" in failing(capsys, "--evidence", tmp_path / "none", "-o", out)
    (tmp_path / "empty").mkdir()
    assert "zeitgeist reproduce" in failing(capsys, "--evidence", tmp_path / "empty", "-o", out)
    assert "lies in the input" in failing(capsys, "--evidence", evidence, "-o", evidence / "site")
    assert not out.exists() and not (evidence / "site").exists()
    out.mkdir()
    assert "--overwrite" in failing(capsys, "--evidence", evidence, "-o", out)


def test_missing_packages_are_named_by_their_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find_spec(name: str) -> Any:
        return None if name == "altair" else object()

    monkeypatch.setattr(verb, "find_spec", find_spec)
    assert "pip install 'zeitgeist[studies]'" in failing(capsys)


def test_help_says_what_it_makes(capsys: pytest.CaptureFixture[str]) -> None:
    run("--help")
    text = capsys.readouterr().out
    for word in ("--output", "-o", "--evidence", "--overwrite", "--open", "--json"):
        assert word in text
