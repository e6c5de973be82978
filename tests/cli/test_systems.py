"""``zeitgeist list`` and ``zeitgeist show``: what is here, for people and for programs."""

import json

import pytest

from zeitgeist.catalogue import SYSTEMS
from zeitgeist.cli import main


def run(capsys, *arguments):
    try:
        main(arguments)
    except SystemExit as leaving:
        assert not leaving.code, capsys.readouterr().err
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_list_has_a_line_for_every_system(capsys):
    lines = run(capsys, "list").splitlines()
    assert [line.split()[0] for line in lines] == [system.slug for system in SYSTEMS]
    for line, system in zip(lines, SYSTEMS, strict=True):
        assert system.purpose in line and system.area in line


def test_list_can_be_read_by_a_program(capsys):
    records = json.loads(run(capsys, "list", "--json"))
    assert [record["slug"] for record in records] == [system.slug for system in SYSTEMS]
    assert [record["arxiv"] for record in records] == [system.arxiv for system in SYSTEMS]


def test_an_area_is_a_part_of_the_list(capsys):
    for area in {system.area for system in SYSTEMS}:
        shown = [line.split()[0] for line in run(capsys, "list", "--area", area).splitlines()]
        assert shown == [system.slug for system in SYSTEMS if system.area == area]


def failing(capsys, *arguments):
    with pytest.raises(SystemExit) as leaving:
        main(arguments)
    assert leaving.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def test_an_unknown_area_is_told_with_the_known_ones(capsys):
    err = failing(capsys, "list", "--area", "cooking")
    assert "'cooking'" in err and "merging" in err


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.slug)
def test_show_says_what_it_is_for_and_how_to_use_it(system, capsys):
    shown = run(capsys, "show", system.slug)
    for part in (
        system.title, system.authors, system.arxiv, system.purpose, system.example, system.page,
        *system.sections,
    ):  # fmt: skip
        assert part in shown
    for options in system.options().values():
        for option in options:
            assert f"  {option.name} = {option.default}\n" in shown
            assert option.meaning in shown and option.source in shown


def _as_json(value):
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.slug)
def test_show_can_be_read_by_a_program(system, capsys):
    record = json.loads(run(capsys, "show", system.slug, "--json"))
    assert record["slug"] == system.slug
    for name, options in system.options().items():
        told = {option["name"]: option["default"] for option in record["options"][name]}
        assert told == {option.name: _as_json(option.default) for option in options}


def test_an_unknown_system_is_told_with_near_ones(capsys):
    assert "did you mean 'knots'?" in failing(capsys, "show", "knotts")
