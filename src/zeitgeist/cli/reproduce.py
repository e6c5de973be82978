"""``zeitgeist reproduce``: run the experiment that tests a paper's claim."""

import sys
from os import environ
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from zeitgeist.errors import InputInvalid

if TYPE_CHECKING:
    from zeitgeist.evidence import Evidence


def reproduce(
    slug: str | None = None,
    /,
    *,
    all: bool = False,
    size: Literal["quick", "full", "paper"] = "quick",
    seeds: int | None = None,
    backend: Literal["local", "ray"] = "local",
    workers: int | None = None,
    model: str = "",
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("evidence"),
    overwrite: bool = False,
    json: bool = False,
) -> int | None:
    """Run the study of a system and say whether the paper's claims hold here.

    What has been run already is not run again, and Ctrl-C keeps what is finished. Evidence lands in
    OUTPUT/SLUG/SIZE: rows.parquet, study.json and the figures.

    Parameters
    ----------
    slug
        A system of `zeitgeist list`, or an area, such as merging, whose study compares its methods.
    all
        Every study, one after the other.
    size
        quick: two cores, under two minutes. full: under thirty. paper: real hardware and models
        of the hub.
    seeds
        How many, instead of the size's own number.
    backend
        local: processes on this machine. ray: a Ray cluster (RAY_ADDRESS, or a new one here).
    workers
        Cells at a time; one per core unless given.
    model
        Run on this model instead of the study's own: a directory, hub:org/name or pypi:package.
    output
        Directory of all evidence.
    overwrite
        Let go of cells in the output of other code, other settings or more seeds.
    json
        Print machine-readable verdicts.
    """
    # Torch's threads spin while they wait; beside other programs that trebled the CPU time of
    # scoring. Read when torch is imported, which is below.
    environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from zeitgeist.studies import reproduce as run
    from zeitgeist.studies.reproduction import slugs

    if (slug is None) != all:
        known = ", ".join(slugs())
        raise InputInvalid(
            f"{'no study' if slug is None else f'both --all and {slug!r}'} was named",
            mend=f"name one of {known}, or give --all alone",
        )
    if all and model:
        raise InputInvalid(
            "--all runs studies that take no model beside those that do",
            mend="name one study with --model",
        )
    found = []
    for name in slugs() if slug is None else [slug]:
        try:
            place, evidence = run(
                name,
                size,
                out=output,
                seeds=seeds,
                model=model,
                backend=backend,
                workers=workers,
                overwrite=overwrite,
            )
        except KeyboardInterrupt:
            print("finished cells are kept; the same command goes on from there", file=sys.stderr)
            raise
        found.append((place, evidence))
        if not json:
            _print(place, evidence)
    if json:
        from json import dumps

        print(dumps([_record(place, evidence) for place, evidence in found], indent=1))
    return 1 if any(evidence.failures for _, evidence in found) else None


def _print(place: Path, evidence: "Evidence") -> None:
    from rich.console import Console

    from zeitgeist.report.sentences import finding

    console = Console(highlight=False)
    told = Console(stderr=True, highlight=False)
    console.print(f"{evidence.title} ({evidence.size})", style="bold")
    for claim, verdict in zip(evidence.claims, evidence.verdicts, strict=True):
        console.print(f"  {claim.statement}", soft_wrap=True)
        console.print(f"    {finding(verdict, evidence.metric(claim.metric))}", soft_wrap=True)
    for failure in evidence.failures:
        where = ", ".join(f"{k} {v}" for k, v in failure.setting.items())
        told.print(
            f"failed: {failure.arm}, seed {failure.seed}{', ' * bool(where)}{where}: "
            f"{failure.error}",
            soft_wrap=True,
            style="red",
        )
    told.print(f"evidence: {place}; zeitgeist report makes pages of it", soft_wrap=True)


def _record(place: Path, evidence: "Evidence") -> dict[str, object]:
    from dataclasses import asdict
    from math import isfinite

    def plain(value: object) -> object:
        return str(value) if isinstance(value, float) and not isfinite(value) else value

    return {
        "study": evidence.study,
        "size": evidence.size,
        "model": evidence.model,
        "evidence": str(place),
        "verdicts": [
            {k: plain(v) for k, v in asdict(verdict).items()} for verdict in evidence.verdicts
        ],
        "failures": [asdict(failure) for failure in evidence.failures],
        "seconds": round(evidence.seconds, 1),
    }
