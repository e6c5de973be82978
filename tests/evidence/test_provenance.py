"""The hash of the code changes with what can change a number, and with nothing else."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zeitgeist.evidence.provenance import code_version

SOURCE = '''"""A study."""
from math import sqrt

STUDY = "declared"


def measure(x):
    """Say something."""
    return sqrt(x)  # quickly
'''


@pytest.fixture
def version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    def of(source: str) -> str:
        path = tmp_path / "invented_study.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location("invented_study", path)
        assert spec is not None and spec.loader is not None
        module: Any = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "invented_study", module)
        spec.loader.exec_module(module)
        return code_version(module.measure)

    return of


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# quickly", "# slowly"),
        ('"""Say something."""', '"""Say something else."""'),
        ('"""A study."""', '"""Another."""'),
        ('STUDY = "declared"', 'STUDY = "worded otherwise"'),
        ("\n\n\ndef", "\n\n\n\n\ndef"),
    ],
)
def test_words_do_not_make_evidence_stale(
    version: Callable[[str], str], old: str, new: str
) -> None:
    assert old in SOURCE
    assert version(SOURCE) == version(SOURCE.replace(old, new))


def test_a_change_of_the_arithmetic_does(version: Callable[[str], str]) -> None:
    assert version(SOURCE) != version(SOURCE.replace("sqrt(x)", "sqrt(x) + 1"))


def test_what_a_study_imports_counts_also_inside_functions(version: Callable[[str], str]) -> None:
    inside = SOURCE.replace("    return", "    import zeitgeist.merging.lines\n    return")
    other = SOURCE.replace("    return", "    import zeitgeist.merging.knots\n    return")
    assert len({version(SOURCE), version(inside), version(other)}) == 3


def test_libraries_count(version: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    before = version(SOURCE)
    monkeypatch.setattr("zeitgeist.evidence.provenance.versions", lambda: {"torch": "99"})
    assert version(SOURCE) != before
