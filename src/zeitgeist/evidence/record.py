"""Evidence on disk: ``rows.parquet`` and ``study.json``.

Rows are tidy: study, arm, seed, one column per setting and label, item, metric, value, the seconds
of its cell, and the cell's key. ``study.json`` holds what was declared, what it ran on, and the
verdicts. Verdicts follow from rows and claims alone: reading computes them again and refuses a
record that says anything else, so that there is no way to edit one.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from zeitgeist.errors import EvidenceInvalid, ExtraMissing
from zeitgeist.evidence.study import RESERVED, Arm, Claim, Metric
from zeitgeist.evidence.verdicts import Verdict, judge

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as missing:
    raise ExtraMissing.named("studies", "reading and writing evidence") from missing

ROWS, RECORD = "rows.parquet", "study.json"
FORMAT = 1
_LEADING = ("study", "arm", "seed")
_TRAILING = ("item", "metric", "value", "seconds", "cell")


@dataclass(frozen=True)
class Failure:
    """A cell that raised: which, and what."""

    arm: str
    seed: int
    setting: Mapping[str, Any]
    error: str


@dataclass(frozen=True)
class ClaimsUsed:
    """The hash of all claims together, and since when evidence was gathered under it."""

    hash: str
    since: str


@dataclass(frozen=True)
class Evidence:
    """A finished study.

    Parameters
    ----------
    study, title, question, cannot_show, arms, metrics, claims
        As declared when it ran.
    size
        quick, full or paper.
    model
        Reference of the user's checkpoint it ran on; empty: the study's own.
    seeds, settings, parameters
        What was run: the most seeds of any part, every setting, and the parameters of each part.
    rows
        The results, one dict a row.
    verdicts
        One per claim.
    failures
        Cells that raised.
    code
        Hash of the code that the numbers come from.
    claim_history
        Every set of claims that evidence in this place was judged by, the newest last.
    versions, machine, command, date, seconds
        Of the run; seconds of computing, summed over cells.
    """

    study: str
    title: str
    question: str
    cannot_show: tuple[str, ...]
    arms: tuple[Arm, ...]
    metrics: tuple[Metric, ...]
    claims: tuple[Claim, ...]
    size: str
    model: str
    seeds: int
    settings: tuple[Mapping[str, Any], ...]
    parameters: tuple[Mapping[str, Any], ...]
    rows: tuple[dict[str, Any], ...]
    verdicts: tuple[Verdict, ...]
    failures: tuple[Failure, ...]
    code: str
    claim_history: tuple[ClaimsUsed, ...]
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    command: str
    date: str
    seconds: float

    def arm(self, slug: str) -> Arm:
        """The arm of this slug."""
        return next(arm for arm in self.arms if arm.slug == slug)

    def metric(self, slug: str) -> Metric:
        """The metric of this slug."""
        return next(metric for metric in self.metrics if metric.slug == slug)

    def verdict(self, claim: str) -> Verdict:
        """The verdict on a claim."""
        return next(verdict for verdict in self.verdicts if verdict.claim == claim)


def claims_hash(claims: Sequence[Claim]) -> str:
    """Changes when any claim is added, removed or decided differently.

    Examples
    --------
    >>> len(claims_hash([]))
    12
    """
    return sha256("".join(claim.hash for claim in claims).encode()).hexdigest()[:12]


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> str:
    """Write rows as Parquet and return the digest of the file."""
    names = {name for row in rows for name in row} - RESERVED
    columns = [*_LEADING, *sorted(names), *_TRAILING]
    table = pa.table({name: [row.get(name) for row in rows] for name in columns})
    pq.write_table(table, path, compression="zstd")
    return sha256(path.read_bytes()).hexdigest()


def read_rows(path: Path) -> tuple[dict[str, Any], ...]:
    """Rows as they were written; columns that a row does not have are left out.

    Raises
    ------
    EvidenceInvalid
        No such file, no Parquet, or no evidence in it.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).strip().splitlines()[0]
        raise EvidenceInvalid(
            f"these rows cannot be read ({reason})", origin=path, mend=_AGAIN
        ) from error
    if lacking := [name for name in (*_LEADING, *_TRAILING) if name not in table.column_names]:
        raise EvidenceInvalid(f"the rows have no column {lacking[0]!r}", origin=path, mend=_AGAIN)
    return tuple({k: v for k, v in row.items() if v is not None} for row in table.to_pylist())


_AGAIN = "make the evidence again with zeitgeist reproduce ... --overwrite"


def write_record(evidence: Evidence, place: Path) -> None:
    """Write ``rows.parquet`` and ``study.json`` into an existing directory."""
    digest = write_rows(evidence.rows, place / ROWS)
    record = {k: v for k, v in asdict(evidence).items() if k != "rows"}
    record = {"format": FORMAT, **record, "rows_digest": digest}
    record["claims"] = [{**asdict(claim), "hash": claim.hash} for claim in evidence.claims]
    text = json.dumps(_plain(record), indent=1, ensure_ascii=False, allow_nan=False)
    (place / RECORD).write_text(text + "\n", encoding="utf-8")


def load_evidence(place: Path, *, judged: bool = True) -> Evidence:
    """Read evidence and hold it to itself.

    Parameters
    ----------
    place
        Directory with ``study.json`` and ``rows.parquet``.
    judged
        Refuse a record whose verdicts are not those that the rows give. Rows and claims can be
        judged again without.

    Raises
    ------
    EvidenceInvalid
        A file is missing or damaged, rows were changed after the record was written, or a verdict
        does not follow from the rows.
    """
    path = place / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise EvidenceInvalid(
                f"this record is of format {record['format']!r}, and {FORMAT} is read here",
                origin=path,
                mend=_AGAIN,
            )
        claims = tuple(_claim(claim) for claim in record["claims"])
        rows = read_rows(place / ROWS)
        found = sha256((place / ROWS).read_bytes()).hexdigest()
        if found != record["rows_digest"]:
            raise EvidenceInvalid(
                "the rows are not those that the record was written with",
                origin=place / ROWS,
                mend=_AGAIN,
            )
        verdicts = tuple(judge(rows, claims))
        written = [Verdict(**_numbers(verdict)) for verdict in record["verdicts"]]
        agrees = len(written) == len(verdicts) and all(map(_agree, written, verdicts))
        if judged and not agrees:
            raise EvidenceInvalid(
                "the verdicts do not follow from the rows and the claims", origin=path, mend=_AGAIN
            )
        return Evidence(
            **{
                **{k: v for k, v in record.items() if k not in ("format", "rows_digest")},
                "cannot_show": tuple(record["cannot_show"]),
                "arms": tuple(Arm(**arm) for arm in record["arms"]),
                "metrics": tuple(Metric(**metric) for metric in record["metrics"]),
                "claims": claims,
                "settings": tuple(record["settings"]),
                "parameters": tuple(record["parameters"]),
                "rows": rows,
                "verdicts": verdicts,
                "failures": tuple(Failure(**failure) for failure in record["failures"]),
                "claim_history": tuple(ClaimsUsed(**used) for used in record["claim_history"]),
            }
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, EvidenceInvalid):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise EvidenceInvalid(
            f"this record cannot be read ({reason})", origin=path, mend=_AGAIN
        ) from error


def _agree(written: Verdict, found: Verdict) -> bool:
    """The same but for what another version of scipy draws."""
    same = ("claim", "hash", "verdict", "seeds", "pairs", "unpaired")
    return all(getattr(written, k) == getattr(found, k) for k in same) and (
        np.isclose(written.difference, found.difference, equal_nan=True).item()
    )


def _claim(record: Mapping[str, Any]) -> Claim:
    fields = {k: v for k, v in record.items() if k != "hash"}
    where = {k: tuple(v) if isinstance(v, list) else v for k, v in record["where"].items()}
    return Claim(**{**fields, "where": where})


def _plain(value: Any) -> Any:
    """Something JSON can hold: numbers that are not finite become words."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return _plain(asdict(value)) if isinstance(value, Verdict) else value


def _numbers(verdict: Mapping[str, Any]) -> dict[str, Any]:
    numeric = ("difference", "low", "high", "p")
    return {k: float(v) if k in numeric else v for k, v in verdict.items()}
