"""What every system in the catalogue owes a person: the same few things, each of which works."""

import doctest
import importlib
import inspect
import re
import shlex
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from zeitgeist import catalogue, catalogue_record
from zeitgeist.catalogue import SYSTEMS
from zeitgeist.cli import main
from zeitgeist.errors import InputInvalid

ROOT = Path(__file__).parents[1]
AREAS = {path.name for path in (ROOT / "src" / "zeitgeist").iterdir() if path.is_dir()}

every_system = pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.slug)


def default_of(field):
    return field.default if field.default_factory is MISSING else field.default_factory()


def test_slugs_titles_and_papers_are_one_each():
    for value in ("slug", "title", "arxiv"):
        found = [getattr(system, value) for system in SYSTEMS]
        assert len(set(found)) == len(found)


@every_system
def test_a_record_is_whole(system):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", system.slug)
    assert re.fullmatch(r"\d{4}\.\d{5}", system.arxiv)
    assert system.title and system.authors and system.sections
    assert system.area in AREAS
    assert system.purpose[0].islower() and not system.purpose.endswith(".")
    assert len(system.purpose) <= 90  # one line of `zeitgeist list`


@every_system
def test_the_door_opens_and_has_an_example_that_runs_and_a_source(system):
    door = system.load_door()
    assert callable(door)
    module, _, name = system.door.partition(":")
    assert name in importlib.import_module(module).__all__
    text = inspect.getdoc(inspect.unwrap(door))
    assert f"arXiv {system.arxiv}" in text or f"arXiv:{system.arxiv}" in text
    # The doctest run of the suite runs it; here it must be there, and where that run looks.
    assert doctest.DocTestParser().get_examples(text)
    assert "src" in Path(inspect.getsourcefile(inspect.unwrap(door))).relative_to(ROOT).parts
    for section in ("Parameters", "Returns", "Raises", "Examples"):
        assert f"{section}\n{'-' * len(section)}" in text


@every_system
def test_every_parameter_of_the_door_is_documented(system):
    door = inspect.unwrap(system.load_door())
    text = inspect.getdoc(door)
    for name in inspect.signature(door).parameters:
        assert re.search(rf"^(\w+, )*{name}(, \w+)*$", text, re.MULTILINE), name


def help_of(capsys, *words):
    try:
        main([*words, "--help"])
    except SystemExit as leaving:
        assert not leaving.code
    out, err = capsys.readouterr()
    assert err == ""
    return out


@every_system
def test_the_command_has_help(system, capsys):
    shown = help_of(capsys, *system.command.split())
    assert f"Usage: zeitgeist {system.command}" in shown


@every_system
def test_the_study_tests_this_system_and_its_claims_could_come_out_false(system):
    study = system.load_study()
    assert study.slug == system.slug
    assert study.claims
    arms = {arm.slug for arm in study.arms}
    for claim in study.claims:
        for side in (claim.treatment, claim.control or {}):
            assert {side["arm"]} <= arms if "arm" in side else True


@every_system
def test_the_python_example_compiles_and_uses_the_door(system):
    module, _, name = system.door.partition(":")
    compile(system.python, system.slug, "exec")
    assert f"from {module} import {name}" in system.python
    assert system.limits


def test_areas_have_a_study_and_their_systems():
    for area in catalogue.AREAS:
        assert any(system.area == area.slug for system in SYSTEMS)
        if area.study:
            assert catalogue_record.load(area.study).slug == area.slug


@every_system
def test_the_example_uses_the_command_with_options_it_has(system, capsys):
    words = shlex.split(system.example)
    assert words[: 1 + len(system.command.split())] == ["zeitgeist", *system.command.split()]
    shown = help_of(capsys, *system.command.split())
    for word in words:
        if word.startswith("-"):
            assert re.search(rf"{re.escape(word)}\b", shown), word


@every_system
def test_published_defaults_are_the_defaults(system):
    for config, published in system.published.items():
        own = {field.name: default_of(field) for field in fields(system_config(system, config))}
        assert published and published.items() <= own.items()


def system_config(system, name):
    module, _, attribute = system.configs[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


@every_system
def test_every_option_has_a_meaning_and_a_source(system):
    options = system.options()
    assert options.keys() == system.configs.keys() and options
    for name, rows in options.items():
        config = system_config(system, name)
        assert config.__dataclass_params__.frozen
        assert [row.name for row in rows] == [field.name.rstrip("_") for field in fields(config)]
        for row in rows:
            assert row.meaning, row
            assert row.source, row


@every_system
def test_the_defaults_can_be_used_as_they_are(system):
    for name in system.configs:
        system_config(system, name)()


@every_system
def test_the_page_is_there_and_speaks_of_it(system):
    page = (ROOT / system.page).read_text(encoding="utf-8")
    assert re.search(rf"\b{re.escape(system.arxiv)}\b", page)
    assert f"zeitgeist {system.command}" in page


@every_system
def test_it_is_found_by_its_slug(system):
    assert catalogue.find(system.slug) is system


def test_a_mistyped_slug_is_told_with_the_nearest():
    with pytest.raises(InputInvalid, match=r"'knot'.*did you mean 'knots'"):
        catalogue.find("knot")


def test_what_is_required_has_no_default():
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Config:
        needed: int

    assert catalogue_record._options(Config)[0].default == "required"
