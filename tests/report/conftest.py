"""An invented month: studies with every kind of verdict, and the site that is made of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pytest

from zeitgeist.catalogue_record import Area, System
from zeitgeist.evidence import Arm, Claim, Evidence, Metric, Size, Study, judge, summary
from zeitgeist.evidence.figures import Figure
from zeitgeist.evidence.record import ClaimsUsed, Failure, claims_hash, write_record
from zeitgeist.report.site import Site, write_site

ACCURACY = Metric("accuracy", "accuracy", "higher", ".1%")
PERPLEXITY = Metric("perplexity", "perplexity", "lower", ".2f")
ARMS = (
    Arm("arithmetic", "Task arithmetic", "Adds up the updates.", baseline=True),
    Arm("ties", "TIES", "Trims updates & settles their signs."),
    Arm("aligned", "KnOTS-TIES", "Aligns the adapters' subspaces first, then TIES."),
)
NEW, OLD = {"arm": "aligned"}, {"arm": "ties"}
BETTER = Claim(
    "better",
    "Aligned adapters keep more accuracy than TIES alone",
    "KnOTS-TIES improves on TIES by 4.3 points on eight vision tasks (Table 1)",
    "accuracy",
    NEW,
    OLD,
    "greater",
    0.02,
)
CHEAPER = Claim(
    "cheaper", "Alignment costs less perplexity", "", "perplexity", NEW, OLD, "less", 1.0
)
SAME = Claim(
    "same",
    "Alignment leaves the perplexity of held-out text as it is, up to half a point",
    "nothing is said of text",
    "perplexity",
    NEW,
    OLD,
    "equal",
    0.2,
)
CLAIMS = (BETTER, CHEAPER, SAME)


def means(evidence: Evidence) -> list[Figure]:
    """Two pictures of a study's own: one as wide as its page, one of a fixed width."""
    rows = summary(evidence.rows, "accuracy", ["arm"])
    data = alt.InlineData(values=[{**row, "arm": evidence.arm(row["arm"]).title} for row in rows])
    y = alt.Y("arm:N", title=None, sort=None)
    bars = alt.Chart(data).mark_rule().encode(x=alt.X("low:Q", title="accuracy"), x2="high:Q", y=y)
    dots = alt.Chart(data).mark_point(filled=True, size=80).encode(x="value:Q", y=y)
    wide = alt.layer(bars, dots).properties(width="container", height={"step": 30})
    fixed = (
        alt.Chart(alt.InlineData(values=[row for row in evidence.rows if not row.get("item")]))
        .mark_point(filled=True)
        .encode(
            x=alt.X("seed:O", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("value:Q", title="value"),
            color=alt.Color("arm:N", legend=alt.Legend(orient="bottom")),
            shape="arm:N",
            column=alt.Column("metric:N", title=None),
        )
        .resolve_scale(y="independent")
        .properties(width=240, height=180)
    )
    return [
        Figure("kept", "What each merge keeps", "Further right is better.", wide),
        Figure("seeds", "Seed by seed", "Every point is one seed.", fixed),
    ]


def study(slug: str, title: str, **changes: Any) -> Study:
    made = Study(
        slug=slug,
        title=title,
        question=f"Does {title} do what its paper says of it?",
        cannot_show=("Networks of 40,000 parameters say little about large ones.",),
        arms=ARMS,
        metrics=(ACCURACY, PERPLEXITY),
        claims=CLAIMS,
        sizes={"quick": Size(seeds=3), "full": Size(seeds=6)},
        measure=lambda arm, prepared: [],
        figures=means,
    )
    return replace(made, **changes)


def rows_of(
    slug: str, seeds: int, arms: Sequence[Arm], *, items: int, settings: Sequence[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Aligned is better in accuracy, worse in perplexity by a little."""
    random = np.random.default_rng(len(slug) + seeds)
    level = {"arithmetic": (0.6, 15.0), "ties": (0.64, 15.2), "aligned": (0.71, 15.3)}
    for seed in range(seeds):
        for setting in settings:
            for arm in arms:
                head = {"study": slug, "arm": arm.slug, "seed": seed, **setting}
                tail = {"seconds": 12.5, "cell": f"{arm.slug}-{seed}-{len(setting)}"}
                accuracy, perplexity = level[arm.slug]
                for item in range(items) if items else (None,):
                    value = accuracy + 0.01 * random.normal()
                    row = {**head, "metric": "accuracy", "value": value, **tail}
                    yield row if item is None else {**row, "item": f"item-{item}"}
                value = perplexity + 0.3 * random.normal()
                yield {**head, "metric": "perplexity", "value": value, **tail}


def evidence_of(
    declared: Study,
    size: str,
    seeds: int,
    *,
    items: int = 0,
    settings: Sequence[Mapping[str, Any]] = ({},),
    **changes: Any,
) -> Evidence:
    rows = tuple(rows_of(declared.slug, seeds, declared.arms, items=items, settings=settings))
    claims = changes.get("claims", declared.claims)
    made = Evidence(
        study=declared.slug,
        title=declared.title,
        question=declared.question,
        cannot_show=declared.cannot_show,
        arms=declared.arms,
        metrics=declared.metrics,
        claims=claims,
        size=size,
        model="",
        seeds=seeds,
        settings=tuple(settings),
        parameters=(),
        rows=rows,
        verdicts=tuple(judge(rows, claims)),
        failures=(),
        code="0123456789ab",
        claim_history=(ClaimsUsed(claims_hash(claims), "2024-11-03"),),
        versions={"zeitgeist": "0.1.0", "torch": "2.13.0"},
        machine={"system": "Linux x86_64", "processor": "EPYC", "cores": 2, "accelerator": ""},
        command=f"zeitgeist reproduce {declared.slug} --size {size}",
        date="2024-11-20",
        seconds=12.5 * len({row["cell"] for row in rows}),
    )
    return replace(made, **changes)


def write(evidence: Evidence, place: Path) -> None:
    place.mkdir(parents=True)
    write_record(evidence, place)


@dataclass(frozen=True)
class Issue:
    """What `write_site` takes."""

    evidence: Path
    systems: tuple[System, ...]
    areas: tuple[Area, ...]
    studies: Mapping[str, Study]

    def write(self, out: Path, **changes: Any) -> Site:
        words = {"systems": self.systems, "areas": self.areas, "load": self.studies.__getitem__}
        return write_site(out, self.evidence, **{**words, **changes})


def system(slug: str, title: str, sections: tuple[str, ...], **changes: Any) -> System:
    made = System(
        slug=slug,
        title=title,
        authors="Stoica, Ramesh, Müller",
        arxiv="2410.19735",
        sections=sections,
        area="merging",
        purpose="merge LoRA adapters in one shared basis and get an adapter back",
        door="zeitgeist.merging:merge_adapters",
        command="merge",
        example=f"zeitgeist merge --method {slug} --expert lora-a --expert lora-b -o merged",
        configs={},
        page="docs/merging.md",
        study=f"invented:{slug}",
        python=(
            "from zeitgeist.merging import merge_adapters\n\n"
            'merge_adapters(["lora-a", "lora-b"], "merged", method="knots_ties")'
        ),
        limits=("Adapters of one base only.",),
    )
    return replace(made, **changes)


@pytest.fixture(scope="session")
def issue(tmp_path_factory: pytest.TempPathFactory) -> Issue:
    """Four systems: tested in full, with changed claims, on the user's model, and not tested."""
    place = tmp_path_factory.mktemp("issue") / "evidence"
    knots = study("knots", "Model Merging with SVD to Tie the KnOTS", takes_model=True)
    lines = study("lines", "LiNeS: Post-training Layer Scaling Prevents Forgetting")
    probes = study("probes", "LLMs Know More Than They Show", figures=None, takes_model=True)
    quiet = study("quiet", "Breaking out </script><b>of markup")
    compared = study("compared", "Every way to merge")
    failure = Failure("ties", 4, {"width": 64}, "ValueError: no such <rank> (knots.py:12)")
    widths = ({"width": 32}, {"width": 64})
    write(evidence_of(knots, "full", 6, settings=widths, failures=(failure,)), place / "knots/full")
    write(evidence_of(knots, "quick", 3), place / "knots/quick")
    own = evidence_of(knots, "quick", 6, model="hub:me/my-model")
    write(own, place / "knots/quick-me-my-model")
    earlier = (replace(BETTER, margin=0.05), CHEAPER)
    history = (
        ClaimsUsed("aaaaaaaaaaaa", "2024-11-01"),
        ClaimsUsed(claims_hash(earlier), "2024-11-09"),
    )
    changed = evidence_of(lines, "quick", 5, claims=earlier, claim_history=history)
    write(changed, place / "lines/quick")
    write(evidence_of(probes, "quick", 2, items=5), place / "probes/quick")
    write(evidence_of(compared, "full", 5), place / "compared/full")
    write(evidence_of(study("gone", "A study of last year"), "quick", 5), place / "gone/quick")
    (place / "knots" / ".full.partial").mkdir()
    return Issue(
        place,
        (
            system("knots", knots.title, ("Featured", "Model Merging")),
            system("lines", lines.title, ("Catastrophic Forgetting", "Model Merging")),
            system("probes", probes.title, ("LLMs",), area="inspection"),
            system("quiet", quiet.title, ("Theory",), area="inspection", purpose="do <i>nothing"),
        ),
        (
            Area("merging", "Model merging", "many checkpoints into one", "invented:compared"),
            Area("inspection", "Inspection", "what a model knows and how", ""),
        ),
        {f"invented:{each.slug}": each for each in (knots, lines, probes, quiet, compared)},
    )


@pytest.fixture(scope="session")
def site(issue: Issue, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The site of the invented month."""
    return issue.write(tmp_path_factory.mktemp("site") / "site")
