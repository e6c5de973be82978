"""One run as a page shows it: verdicts in words, pictures, tables, and whether claims changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from zeitgeist.errors import EvidenceInvalid, ZeitgeistError
from zeitgeist.evidence import Claim, Evidence, Metric, Study, Verdict
from zeitgeist.evidence.figures import Figure
from zeitgeist.evidence.record import RECORD, claims_hash
from zeitgeist.evidence.study import Setting
from zeitgeist.evidence.verdicts import Outcome
from zeitgeist.report.arms_table import ArmsTable, arms_table
from zeitgeist.report.claims_chart import claims_chart
from zeitgeist.report.runs import Run
from zeitgeist.report.sentences import claimed, duration, finding, in_points, p_value, tally


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict, and both in words."""

    claim: Claim
    metric: Metric
    verdict: Verdict
    compared: str

    @property
    def claimed(self) -> str:
        """What difference the claim says there is."""
        return claimed(self.claim, self.metric)

    @property
    def finding(self) -> str:
        """The verdict in a sentence."""
        return finding(self.verdict, self.metric)

    @property
    def difference(self) -> str:
        """The difference with its unit."""
        return in_points(self.verdict, self.metric)[0]

    @property
    def interval(self) -> str:
        """The interval, honest where it has no end; how many seeds there are is told beside it."""
        return in_points(self.verdict, self.metric)[1].partition(" from ")[0]

    @property
    def p(self) -> str:
        """Holm's p."""
        return p_value(self.verdict.p, self.verdict.seeds)


@dataclass(frozen=True)
class ClaimsChange:
    """That claims changed after evidence existed.

    Parameters
    ----------
    history
        Hash and date of every set of claims that evidence was judged by, the oldest first.
    present
        Hash of the claims that the study declares now, where it is another; else empty.
    named
        Which claims differ between this evidence and the study: ``"changed: a"``.
    """

    history: tuple[tuple[str, str], ...]
    present: str
    named: tuple[str, ...]


@dataclass(frozen=True)
class Results:
    """A run with everything a page shows of it; ``path`` is its place in the site.

    ``figures`` holds the picture of the claims first, then the study's own.
    """

    run: Run
    figures: tuple[Figure, ...]
    change: ClaimsChange | None
    note: str

    @property
    def evidence(self) -> Evidence:
        """As read."""
        return self.run.evidence

    @property
    def path(self) -> str:
        """STUDY/RUN."""
        return f"{self.run.study}/{self.run.name}"

    @property
    def picture(self) -> Figure | None:
        """The one that stands for the study: the first of its own, or that of its claims."""
        own = [figure for figure in self.figures if figure.slug != "claims"]
        return next(iter([*own, *self.figures]), None)

    @property
    def claims_picture(self) -> Figure | None:
        """The verdicts as a picture."""
        return next((figure for figure in self.figures if figure.slug == "claims"), None)

    @property
    def own_pictures(self) -> tuple[Figure, ...]:
        """The study's own figures."""
        return tuple(figure for figure in self.figures if figure.slug != "claims")

    @property
    def judged(self) -> tuple[Judged, ...]:
        """Every claim with its verdict."""
        found = self.evidence
        return tuple(
            Judged(claim, found.metric(claim.metric), verdict, _compared(claim, found))
            for claim, verdict in zip(found.claims, found.verdicts, strict=True)
        )

    @property
    def tally(self) -> list[tuple[Outcome, str]]:
        """How many claims came out which way."""
        return tally(self.evidence.verdicts)

    @cached_property
    def arms(self) -> ArmsTable:
        """The table of arms, for what the claims are about."""
        return arms_table(self.evidence, self._metrics(claimed=True))

    @cached_property
    def more_arms(self) -> ArmsTable:
        """The table of arms, for everything else that was measured."""
        return arms_table(self.evidence, self._metrics(claimed=False))

    def _metrics(self, *, claimed: bool) -> list[Metric]:
        about = {claim.metric for claim in self.evidence.claims} or {
            metric.slug for metric in self.evidence.metrics
        }
        return [metric for metric in self.evidence.metrics if (metric.slug in about) == claimed]

    @property
    def time(self) -> str:
        """What it took to compute."""
        return duration(float(self.evidence.seconds))

    @property
    def command(self) -> str:
        """What runs it again: as it was typed, or the plain command where nobody typed one."""
        found = self.evidence
        plain = f"zeitgeist reproduce {found.study} --size {found.size}"
        return found.command or (f"{plain} --model {found.model}" if found.model else plain)

    @property
    def hash(self) -> str:
        """Of all claims together."""
        return claims_hash(self.evidence.claims)

    @property
    def machine(self) -> str:
        """What it ran on, in words."""
        known = dict(self.evidence.machine)
        cores = known.pop("cores", "")
        accelerator = known.pop("accelerator", None)
        words = [f"{known.pop('processor', '')}", f"{cores} cores" if cores else ""]
        words += [f"{value}" for value in known.values()]
        words.append("no accelerator" if accelerator == "" else f"{accelerator or ''}")
        return ", ".join(filter(None, words))

    @property
    def versions(self) -> str:
        """Of the packages that matter."""
        return ", ".join(f"{name} {version}" for name, version in self.evidence.versions.items())


def results(run: Run, study: Study | None, note: str = "") -> Results:
    """What a page shows of a run.

    Parameters
    ----------
    run
        Evidence and its place.
    study
        As it is declared now; None where nobody knows it.
    note
        Why there is no ``study``, for the reader.

    Raises
    ------
    EvidenceInvalid
        The study cannot draw its figures from this evidence.
    """
    figures = [claims_chart(run.evidence)] if run.evidence.claims else []
    if study is not None and study.figures is not None:
        figures += _own_figures(run, study)
    return Results(run, tuple(figures), _change(run.evidence, study), note)


def _compared(claim: Claim, evidence: Evidence) -> str:
    """Treatment and control by their titles."""
    titles = {arm.slug: arm.title for arm in evidence.arms}

    def named(side: Setting) -> str:
        return ", ".join(
            titles.get(str(value), str(value))
            if key == "arm"
            else f"{key.replace('_', ' ')} {value}"
            for key, value in side.items()
        )

    treatment = named(claim.treatment)
    if claim.control is None:
        return f"with {treatment}" if treatment else ""
    return f"{treatment} against {named(claim.control)}"


def _own_figures(run: Run, study: Study) -> Sequence[Figure]:
    origin, mend = run.place / RECORD, "make it again with zeitgeist reproduce ... --overwrite"
    try:
        figures = study.figures(run.evidence) if study.figures is not None else []
    except ZeitgeistError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise EvidenceInvalid(
            f"the figures of {study.slug!r} cannot be drawn from this evidence ({reason})",
            origin=origin,
            mend=mend,
        ) from error
    slugs = ["claims", *(figure.slug for figure in figures)]
    if twice := next((slug for slug in slugs if slugs.count(slug) > 1), None):
        raise EvidenceInvalid(
            f"two figures of {study.slug!r} are called {twice!r}",
            origin=origin,
            mend="give each its own name in the study",
        )
    return figures


def _change(evidence: Evidence, study: Study | None) -> ClaimsChange | None:
    present: str = ""
    named: tuple[str, ...] = ()
    if study is not None and (now := claims_hash(study.claims)) != claims_hash(evidence.claims):
        present, named = now, tuple(_differences(evidence.claims, study.claims))
    history = tuple((used.hash, used.since) for used in evidence.claim_history)
    return ClaimsChange(history, present, named) if present or len(history) > 1 else None


def _differences(then: Sequence[Claim], now: Sequence[Claim]) -> list[str]:
    before = {claim.slug: claim.hash for claim in then}
    after = {claim.slug: claim.hash for claim in now}
    groups = {
        "added": [slug for slug in after if slug not in before],
        "removed": [slug for slug in before if slug not in after],
        "changed": [slug for slug in after if before.get(slug, after[slug]) != after[slug]],
    }
    said = [f"{what}: {', '.join(slugs)}" for what, slugs in groups.items() if slugs]
    return said or ["in another order"]
