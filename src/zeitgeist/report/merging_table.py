"""The merging demo's table for a terminal."""

from rich.box import SIMPLE_HEAD
from rich.table import Table

from zeitgeist.report.merging_page import change
from zeitgeist.studies.merging_arms import MergingResults
from zeitgeist.studies.merging_scores import ALL, lookup


def terminal_table(results: MergingResults) -> Table:
    """Exact answers per task, what was kept of the experts, perplexity per text.

    Parameters
    ----------
    results
        Of `zeitgeist.studies.merging.run`.

    Returns
    -------
    Table
        One line per model: base, experts, merges.
    """
    found = lookup(results.rows)
    table = Table(
        title="Exact answers to held-in tasks; perplexity of held-out text against the base",
        caption="kept: mean over tasks of score / own expert's score. The page has the intervals.",
        box=SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
    )
    table.add_column("model", no_wrap=True)
    for title in [*results.tasks, "kept", *results.texts]:
        table.add_column(title, justify="right", no_wrap=True)
    last = ""
    for model in results.models:
        if model.kind != last and last:
            table.add_section()
        last = model.kind
        shares = [
            *((model.slug, task, "exact_match") for task in results.tasks),
            (model.slug, ALL, "kept"),
        ]
        table.add_row(
            model.slug,
            *(f"{row.value:.0%}" if (row := found.get(place)) else "" for place in shares),
            *(change(found[model.slug, t, "perplexity_ratio"].value) for t in results.texts),
        )
    return table
