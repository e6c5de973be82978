"""``zeitgeist demo``: options, what goes to stdout, and errors in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from zeitgeist.cli import demo, main
from zeitgeist.studies import merging


class Results:
    """What the verb needs of the study's results."""

    def to_json(self) -> str:
        return '{"rows": []}\n'


def test_json_is_all_that_stdout_gets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    def run(out: Path, **options: Any) -> Results:
        asked.update(options, out=out)
        options["say"]("merging in 8 ways")
        return Results()

    monkeypatch.setattr(merging, "run", run)
    with pytest.raises(SystemExit) as leaving:
        main(["demo", "-o", str(tmp_path / "d"), "--seed", "3", "--json", "--fresh"])
    assert not leaving.value.code
    out, err = capsys.readouterr()
    assert json.loads(out) == {"rows": []}
    assert "merging in 8 ways" in err
    assert (asked["out"], asked["settings"].seed) == (tmp_path / "d", 3)
    assert (asked["overwrite"], asked["fresh"]) == (False, True)


def test_an_existing_output_is_one_line_and_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["demo", "--output", str(tmp_path)])
    assert leaving.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "--overwrite" in err


def test_missing_packages_are_named_by_their_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "peft" else object())
    with pytest.raises(SystemExit) as leaving:
        main(["demo"])
    assert leaving.value.code == 2
    assert "pip install 'zeitgeist[demo]'" in capsys.readouterr().err


def test_help_says_what_it_makes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    text = capsys.readouterr().out
    for word in ("--output", "-o", "--seed", "--overwrite", "--fresh", "--json"):
        assert word in text
