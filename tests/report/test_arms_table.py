"""Means of arms: over what, and which may be compared."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from zeitgeist.evidence import Evidence
from zeitgeist.report.arms_table import ArmsTable, arms_table
from zeitgeist.report.site import Site


def evidence(site: Site, page: str) -> Evidence:
    found = next(each for each in site.pages if each.path == page).results
    assert found is not None
    return found.evidence


def table(of: Evidence, **changes: Any) -> ArmsTable:
    changed = replace(of, **changes)
    return arms_table(changed, changed.metrics)


def values(made: ArmsTable) -> Iterator[str]:
    for _, lines in made.groups:
        for line in lines:
            yield from (cell.value for cell in line.cells)


def test_every_arm_has_a_line_and_every_metric_a_column(site: Site) -> None:
    made = table(evidence(site, "areas/merging.html"))
    ((name, lines),) = made.groups
    assert name == "" and made.notes == ()
    assert [line.arm.slug for line in lines] == ["arithmetic", "ties", "aligned"]
    assert [column.over for column in made.columns] == ["interval over five seeds"] * 2
    assert all(cell.value and " to " in cell.spread for line in lines for cell in line.cells)


def test_few_seeds_with_items_have_intervals_over_items_and_without_none(site: Site) -> None:
    made = table(evidence(site, "systems/probes.html"))
    assert [column.over for column in made.columns] == [
        "interval over items of two seeds",
        "two seeds, no interval",
    ]
    ((_, lines),) = made.groups
    assert [cell.spread == "" for cell in lines[0].cells] == [False, True]


def test_numbers_that_varied_are_averaged_and_named(site: Site) -> None:
    made = table(evidence(site, "systems/knots.html"))
    assert made.notes == ("Means are over width 32, 64.",)


def test_settings_that_are_words_have_lines_of_their_own(site: Site) -> None:
    given = evidence(site, "systems/knots.html")
    names = {32: "digits", 64: "language"}
    rows = [
        {**{k: v for k, v in row.items() if k != "width"}, "family": names[row["width"]]}
        for row in given.rows
    ]
    settings = tuple({"family": name} for name in names.values())
    made = table(given, rows=tuple(rows), settings=settings)
    assert [name for name, _ in made.groups] == ["family digits", "family language"]
    assert made.notes == ()


def test_a_mean_over_fewer_settings_than_others_is_marked(site: Site) -> None:
    given = evidence(site, "systems/knots.html")
    fewer = [row for row in given.rows if row["arm"] != "ties" or row["width"] == 32]
    made = table(given, rows=tuple(fewer))
    assert sum(value.endswith("*") for value in values(made)) == 2
    assert made.notes[-1].startswith("* Measured under fewer")


def test_cells_say_themselves_what_they_rest_on_where_a_column_cannot(site: Site) -> None:
    given = evidence(site, "areas/merging.html")
    fewer = [row for row in given.rows if row["arm"] != "ties" or row["seed"] < 2]
    made = table(given, rows=tuple(fewer))
    assert [column.over for column in made.columns] == ["", ""]
    ((_, lines),) = made.groups
    assert [line.cells[0].note for line in lines] == [
        "interval over five seeds",
        "two seeds, no interval",
        "interval over five seeds",
    ]


def test_what_was_not_measured_has_no_line_and_no_column(site: Site) -> None:
    given = evidence(site, "areas/merging.html")
    rows = [r for r in given.rows if r["arm"] != "ties" and r["metric"] == "accuracy"]
    made = table(given, rows=tuple(rows))
    ((_, lines),) = made.groups
    assert [line.arm.slug for line in lines] == ["arithmetic", "aligned"]
    assert [column.metric.slug for column in made.columns] == ["accuracy"]
