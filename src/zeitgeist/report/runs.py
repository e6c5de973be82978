"""The evidence of a directory: one run per ``STUDY/RUN``, read and held to itself."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from zeitgeist.errors import EvidenceInvalid, InputInvalid
from zeitgeist.evidence import Evidence, load_evidence
from zeitgeist.evidence.record import RECORD, ROWS
from zeitgeist.evidence.study import SIZES


@dataclass(frozen=True)
class Run:
    """Evidence and where it lies: ``place`` is ``.../STUDY/RUN``."""

    place: Path
    evidence: Evidence

    @property
    def study(self) -> str:
        """Slug of the study."""
        return self.place.parent.name

    @property
    def name(self) -> str:
        """Name of the run's directory."""
        return self.place.name

    @property
    def on_own_model(self) -> bool:
        """Whether it ran on a model that a person named."""
        return bool(self.evidence.model)


def read_runs(evidence: Path) -> list[Run]:
    """Read every run of a directory of evidence.

    Parameters
    ----------
    evidence
        Directory with a directory per study, which has one per run: ``quick``, ``full``, ``paper``
        or one on a model of the user's. Hidden directories are passed over.

    Returns
    -------
    list of Run
        By study, the largest run first, those on the user's models last.

    Raises
    ------
    InputInvalid
        No such directory, or no evidence in it.
    EvidenceInvalid
        A run is damaged, was edited, or lies under another study's name.
    """
    if not evidence.is_dir():
        raise InputInvalid(
            f"there is no directory '{evidence}'",
            mend="make evidence with zeitgeist reproduce SYSTEM, or name its place with --evidence",
        )
    places = [
        place
        for place in sorted(evidence.glob("*/*/"))
        if not {part[0] for part in place.parts[-2:]} & {"."}
        and ((place / RECORD).exists() or (place / ROWS).exists())
    ]
    if not places:
        inside = any((place / RECORD).exists() for place in (evidence, *evidence.glob("*/")))
        raise InputInvalid(
            f"there is no evidence in '{evidence}'",
            mend=f"it is read from STUDY/RUN/{RECORD}; name the directory that holds the studies"
            if inside
            else "make some with zeitgeist reproduce SYSTEM",
        )
    runs = [Run(place, load_evidence(place)) for place in places]
    for run in runs:
        if run.evidence.study != run.study:
            raise EvidenceInvalid(
                f"this is evidence of {run.evidence.study!r}, and lies under {run.study!r}",
                origin=run.place / RECORD,
                mend=f"move it to {run.evidence.study}/{run.name}",
            )
    return sorted(runs, key=_order)


def main_run(runs: Iterable[Run]) -> Run | None:
    """The largest run on the study's own models, which is what a study's verdicts are taken from.

    Examples
    --------
    >>> main_run([]) is None
    True
    """
    return min((run for run in runs if not run.on_own_model), key=_order, default=None)


def _order(run: Run) -> tuple[str, bool, int, str]:
    sizes = [*reversed(SIZES), run.evidence.size]
    return run.study, run.on_own_model, sizes.index(run.evidence.size), run.name
