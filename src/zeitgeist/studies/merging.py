"""What each way to merge keeps and what it loses, on a real language model, untuned.

One base, LoRA experts, one per task (`zeitgeist.studies.language_tasks`), and every family of merge
methods beside the base and the experts: exact answers on the tasks that the experts learned (held
in), perplexity on text that nobody learned (held out). This is the comparison of the whole area.

The methods run at their published defaults, which were tuned on other models; none is tuned here,
so that none is favoured: it is what a person without validation data gets. Sources: Yadav et al.
arXiv 2410.03617 (averaging, task arithmetic, TIES, DARE-TIES), Stoica et al. arXiv 2410.19735
(KnOTS), Wang et al. arXiv 2410.17146 (LiNeS).

What this cannot show: one base of 135 M parameters, unpacked from 4 bits; four tasks of one rule
each. It shows how the methods behave here. The claims were written after two seeds of an earlier
form of this experiment had been seen; the studies of the single systems were not.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from zeitgeist.evidence import Arm, Claim, Evidence, Measured, Metric, Size, Study
from zeitgeist.merging import compare
from zeitgeist.studies.language import (
    LARGE,
    LARGE_NUMBERS,
    NUMBERS,
    QUICK,
    Bench,
    Merges,
    measured,
    prepare,
)

if TYPE_CHECKING:
    from zeitgeist.evidence.figures import Figure

MERGES: Mapping[str, tuple[str, bool]] = {
    "average": ("linear", False),
    "task_arithmetic": ("task_arithmetic", False),
    "ties": ("ties", False),
    "dare_ties": ("dare_ties", False),
    "knots_ties": ("knots_ties", False),
    "task_arithmetic_lines": ("task_arithmetic", True),
    "ties_lines": ("ties", True),
    "knots_ties_lines": ("knots_ties", True),
}
"""Arm to the merge method and whether LiNeS follows."""


def measure(arm: str, bench: Bench) -> Iterator[Measured]:
    """The numbers of one arm: the base, the experts (each for itself), or a merge."""
    tasks = [task.slug for task in bench.tasks]
    if arm == "base":
        yield from measured(bench, bench.alone["base"], tasks)
    elif arm == "experts":
        for expert in tasks:
            yield from measured(bench, bench.alone[expert], tasks, expert=expert)
        yield from _how_they_differ(bench)
    else:
        method, lines = MERGES[arm]
        with Merges(bench, method, lines={} if lines else None) as merges:
            yield from measured(bench, merges.score({}, {**bench.test, **bench.texts}), tasks)


def _how_they_differ(bench: Bench) -> Iterator[Measured]:
    names = {str(expert.path): expert.task for expert in bench.experts}
    recipe: dict[str, Any] = {
        "merge_method": "ties",
        "base_model": bench.base.reference,
        "models": [{"model": path} for path in names],
    }
    for row in compare(recipe, progress=False).rows():
        who = [names[row[key]] for key in ("other", "expert") if key in row]
        labels = {"block": row["block"], "expert": " / ".join(who)}
        yield Measured(row["quantity"].replace(" ", "_"), row["value"], labels)


def figures(evidence: Evidence) -> "list[Figure]":
    """Every picture of the page, in order."""
    from zeitgeist.studies.merging_charts import figures as drawn

    return drawn(evidence)


_ALL_TASKS = {"task": NUMBERS["tasks"]}
_TEXTS = {"task": ("english", "code")}

CLAIMS = (
    Claim(
        "ties-keeps-more",
        "TIES keeps more of the experts' exact answers than averaging.",
        "TIES without validation data beats averaging by 2 to 12 points (arXiv 2306.01708); at "
        "64B all methods are equal (arXiv 2410.03617).",
        "kept",
        {"arm": "ties"},
        {"arm": "average"},
        "greater",
        0.02,
        _ALL_TASKS,
    ),
    Claim(
        "knots-keeps-more",
        "KnOTS-TIES keeps more of LoRA experts' exact answers than TIES.",
        "KnOTS-TIES gains 3 to 4 points of normalised accuracy over TIES on LoRA experts, both "
        "tuned (arXiv 2410.19735).",
        "kept",
        {"arm": "knots_ties"},
        {"arm": "ties"},
        "greater",
        0.02,
        _ALL_TASKS,
    ),
    Claim(
        "lines-keeps-more",
        "LiNeS after task arithmetic keeps more of the experts' exact answers.",
        "LiNeS adds 3 to 4.5 points to task arithmetic, with beta tuned (arXiv 2410.17146).",
        "kept",
        {"arm": "task_arithmetic_lines"},
        {"arm": "task_arithmetic"},
        "greater",
        0.02,
        _ALL_TASKS,
    ),
    Claim(
        "lines-forgets-less",
        "LiNeS after task arithmetic lowers the perplexity of held-out text, by more than 2 % of "
        "the base's.",
        "LiNeS restores what fine-tuning made a model forget (arXiv 2410.17146).",
        "perplexity_ratio",
        {"arm": "task_arithmetic_lines"},
        {"arm": "task_arithmetic"},
        "less",
        0.02,
        _TEXTS,
    ),
)

STUDY = Study(
    slug="merging",
    title="What merging keeps and what it loses",
    question="Of experts merged at published defaults, what does each method keep, and what does "
    "it cost on text that nobody learned?",
    cannot_show=(
        "Which method is best when tuned: none is tuned here, and with a strength of its own "
        "chosen on validation data each would do better, some more than others.",
        "Anything about large models: the base has 135 million parameters and comes from a 4-bit "
        "file. Merging is known to get easier with size.",
        "Skill in a wider sense: tasks are of one rule each, and test items share names, months "
        "and digits with the training items. A right answer in another format counts as wrong.",
    ),
    arms=(
        Arm("base", "Base", "before any fine-tuning", baseline=True),
        Arm("experts", "Experts", "each LoRA expert by itself", baseline=True),
        Arm("average", "Averaging", "the mean of the experts' weights", baseline=True),
        Arm("task_arithmetic", "Task arithmetic", "the base plus 0.4 times the sum of the updates"),
        Arm(
            "ties",
            "TIES",
            "keeps the largest 20 % of each update, lets the experts vote on every sign and "
            "averages those that agree",
        ),
        Arm(
            "dare_ties",
            "DARE-TIES",
            "drops a random half of each update, doubles the rest, votes and averages as TIES",
        ),
        Arm(
            "knots_ties",
            "KnOTS-TIES",
            "TIES in a basis that all adapters share, times 0.6; the result is an adapter",
        ),
        Arm(
            "task_arithmetic_lines",
            "Task arithmetic + LiNeS",
            "task arithmetic, with early layers moved less than late ones",
        ),
        Arm("ties_lines", "TIES + LiNeS", "TIES, scaled by depth likewise"),
        Arm("knots_ties_lines", "KnOTS-TIES + LiNeS", "KnOTS-TIES, scaled by depth likewise"),
    ),
    metrics=(
        Metric("kept", "exact answers / own expert's", "higher", ".0%"),
        Metric("exact", "exact answers (share of items)", "higher", ".0%"),
        Metric("recovered", "share of the expert's gain in NLL", "higher", ".0%"),
        Metric("perplexity_ratio", "held-out perplexity / the base's", "lower"),
        Metric("nll", "NLL of held-out text (nats per token)", "lower"),
        Metric("sign_conflict", "share of kept entries that disagree in sign", "lower"),
        Metric("cosine", "cosine of two updates", "higher"),
        Metric("relative_norm", "norm of the update / norm of the base", "lower", ".4f"),
    ),
    claims=CLAIMS,
    sizes={
        "quick": Size(
            1,
            parameters={
                **QUICK,
                "test_items": 16,
                "validation_items": 2,
                "windows": 4,
                "lora": {"batch_size": 3},
            },
            minutes=2,
        ),
        "full": Size(5, parameters=NUMBERS, minutes=28),
        "paper": Size(5, parameters=LARGE_NUMBERS, minutes=120, accelerator=True, models=(LARGE,)),
    },
    measure=measure,
    prepare=prepare,
    figures=figures,
    takes_model=True,
)
