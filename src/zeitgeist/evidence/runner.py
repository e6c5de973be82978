"""Run the cells of a study: in parallel, again only where something is missing.

A cell is one arm at one seed in one setting. The cells of one seed and setting share what
`Study.prepare` makes and run one after the other; such groups are what joblib spreads over
processes, or over a Ray cluster. Every finished cell is written at once, to ``.cells`` in the
study's directory; when all are done they become ``rows.parquet`` and ``study.json``.

A cell is known by a hash of its code, its parameters, its setting, its arm and its seed. What has
that name already is not run again, whether it stands in ``.cells`` after an interruption or in the
rows of finished evidence.
"""

import json
import os
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from zeitgeist.errors import EvidenceInvalid, ExtraMissing, InputInvalid, OutputExists
from zeitgeist.evidence.progress import cell_bar
from zeitgeist.evidence.provenance import accelerator, code_version, machine, versions
from zeitgeist.evidence.record import (
    RECORD,
    ROWS,
    ClaimsUsed,
    Evidence,
    Failure,
    claims_hash,
    load_evidence,
    write_record,
)
from zeitgeist.evidence.study import RESERVED, Group, Measured, Setting, Study
from zeitgeist.evidence.verdicts import judge

try:
    import joblib
except ImportError as missing:
    raise ExtraMissing.named("studies", "running a study") from missing

Backend = Literal["local", "ray"]
CELLS = ".cells"


@dataclass(frozen=True)
class Cell:
    """What is run, and the name it is known by."""

    arm: str
    seed: int
    setting: Setting
    key: str


@dataclass(frozen=True)
class Outcome:
    """What came of a cell: rows, or an error."""

    key: str
    rows: list[dict[str, Any]]
    error: str = ""


def run_study(
    study: Study,
    size: str,
    place: Path,
    *,
    seeds: int | None = None,
    model: str = "",
    backend: Backend = "local",
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    command: str = "",
) -> Evidence:
    """Run what is missing of a study, judge its claims, and write the evidence.

    Parameters
    ----------
    study
        What to run.
    size
        One of its sizes.
    place
        Directory of this evidence. Finished cells in it are kept.
    seeds
        How many; None: those of the size.
    model
        Reference of a checkpoint to run on instead of the study's own.
    backend
        ``"local"``: processes on this machine; ``"ray"``: a Ray cluster, the one that
        ``RAY_ADDRESS`` names or a new one on this machine.
    workers
        Cells at a time; None: one per core, and one alone where there is an accelerator.
    overwrite
        Let go of cells in ``place`` that this run would not make: of other code, other settings
        or more seeds.
    progress
        Show a bar on stderr; None: when it is a terminal.
    command
        What a person typed, for the record.

    Returns
    -------
    Evidence
        As written. Cells that raised are in its ``failures``; running again tries them again.

    Raises
    ------
    InputInvalid
        No such size, a number that is not positive, or a study that takes no model.
    OutputExists
        ``place`` holds cells that this run would not make, or something that is no evidence.
    EvidenceInvalid
        ``place`` holds damaged evidence, or every cell failed.
    ExtraMissing
        ``backend="ray"`` and Ray is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from zeitgeist.evidence import Arm, Claim, Measured, Metric, Size
    >>> def measure(arm, group):
    ...     return [Measured("score", group.seed + 2 * (arm == "new"))]
    >>> study = Study(
    ...     slug="toy", title="Toy", question="Is new better?", cannot_show=(),
    ...     arms=(Arm("old", "Old", "as it was", baseline=True), Arm("new", "New", "plus two")),
    ...     metrics=(Metric("score", "score (points)", "higher"),),
    ...     claims=(Claim("better", "new beats old", "", "score", {"arm": "new"}, {"arm": "old"},
    ...                   "greater", 1.0),),
    ...     sizes={"quick": Size(seeds=5)}, measure=measure)
    >>> evidence = run_study(study, "quick", Path(tempfile.mkdtemp()) / "toy", workers=1,
    ...                      progress=False)
    >>> len(evidence.rows), evidence.verdicts[0].verdict
    (10, 'holds')
    """
    chosen = study.sizes.get(size)  # type: ignore[call-overload]
    if chosen is None:
        raise InputInvalid(
            f"{study.slug} has no size {size!r}", mend=f"it has {', '.join(study.sizes)}"
        )
    for name, number in (("seeds", seeds), ("workers", workers)):
        if number is not None and number < 1:
            raise InputInvalid(f"{name} is {number}", mend="give at least 1")
    if backend not in get_args(Backend):
        raise InputInvalid(f"there is no backend {backend!r}", mend="give local or ray")
    if model and not study.takes_model:
        raise InputInvalid(
            f"{study.slug} runs on models that it makes itself, not on {model!r}",
            mend="leave out --model",
        )
    if not any(True for _ in chosen.groups(seeds=1, model=model)):
        raise InputInvalid(
            f"nothing in the {size} size of {study.slug} runs on a model",
            mend="use another --size, or leave out --model",
        )
    code = code_version(study.measure, study.prepare)
    groups = [(group, _cells(study, group, code)) for group in chosen.groups(seeds, model)]
    cells = [cell for _, each in groups for cell in each]
    wanted = {cell.key for cell in cells}
    earlier, done = _earlier(study, place, wanted, overwrite)

    partial = place / CELLS
    partial.mkdir(parents=True, exist_ok=True)
    done |= {key: rows for key, rows in _partial(partial) if key in wanted}
    failed: dict[str, str] = {}
    todo = [(g, left) for g, each in groups if (left := [c for c in each if c.key not in done])]
    waiting = sum(len(left) for _, left in todo)
    with cell_bar(study.slug, len(cells), waiting, partial, progress):
        for outcome in _outcomes(study, todo, partial, backend, workers):
            if outcome.error:
                failed[outcome.key] = outcome.error
            else:
                done[outcome.key] = outcome.rows
                _write_cell(outcome, partial)
    if not done:
        _discard(partial, place)
        raise EvidenceInvalid(
            f"every cell of {study.slug} failed, the first with: {next(iter(failed.values()))}",
            mend="mend that and run it again; --workers 1 --debug shows where",
        )
    rows = tuple(row for cell in cells for row in done.get(cell.key, ()))
    history = earlier.claim_history if earlier is not None else ()
    used = claims_hash(study.claims)
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    if not history or history[-1].hash != used:
        history = (*history, ClaimsUsed(used, today))
    evidence = Evidence(
        study=study.slug,
        title=study.title,
        question=study.question,
        cannot_show=study.cannot_show,
        arms=study.arms,
        metrics=study.metrics,
        claims=study.claims,
        size=size,
        model=model,
        seeds=1 + max(group.seed for group, _ in groups),
        settings=_distinct(group.setting for group, _ in groups),
        parameters=_distinct(group.parameters for group, _ in groups),
        rows=rows,
        verdicts=tuple(judge(rows, study.claims)),
        failures=tuple(
            Failure(cell.arm, cell.seed, dict(cell.setting), failed[cell.key])
            for cell in cells
            if cell.key in failed
        ),
        code=code,
        claim_history=history,
        **_origin(earlier if not todo else None, command, today),
        seconds=sum({row["cell"]: row["seconds"] for row in rows}.values()),
    )
    _publish(evidence, place)
    if not failed:
        shutil.rmtree(partial)
    return evidence


def _origin(earlier: Evidence | None, command: str, today: str) -> dict[str, Any]:
    """Where and when the numbers come from: this run, or an earlier one that left nothing to do."""
    if earlier is None:
        return {"versions": versions(), "machine": machine(), "command": command, "date": today}
    return {k: getattr(earlier, k) for k in ("versions", "machine", "command", "date")}


def _distinct(found: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """As JSON holds them, each once, in order."""
    texts = dict.fromkeys(json.dumps(each, default=str) for each in found)
    return tuple(json.loads(text) for text in texts)


def _cells(study: Study, group: Group, code: str) -> list[Cell]:
    cells = []
    for arm in study.arms:
        if study.applies(arm.slug, group.setting):
            known = [study.slug, code, arm.slug, group.seed, group.setting, group.parameters]
            text = json.dumps(known, sort_keys=True, default=str)
            key = sha256(text.encode()).hexdigest()[:20]
            cells.append(Cell(arm.slug, group.seed, group.setting, key))
    return cells


def _earlier(
    study: Study, place: Path, wanted: set[str], overwrite: bool
) -> tuple[Evidence | None, dict[str, list[dict[str, Any]]]]:
    """Evidence that stands in ``place`` already, and its cells that are still wanted."""
    if place.exists() and not place.is_dir():
        raise InputInvalid(f"the output '{place}' is a file", mend="name a directory")
    if not place.exists() or not any(place.iterdir()):
        return None, {}
    if not (place / RECORD).exists() and not (place / ROWS).exists():
        if (place / CELLS).is_dir():
            return None, {}
        raise OutputExists(f"'{place}' holds something else", mend="choose another output")
    try:
        # What may be replaced need not be judged as it would be now, but its rows must be whole.
        earlier = load_evidence(place, judged=not overwrite)
        if earlier.study != study.slug:
            raise EvidenceInvalid(
                f"this is evidence of {earlier.study!r}, not of {study.slug!r}",
                origin=place / RECORD,
                mend="choose another output",
            )
    except EvidenceInvalid:
        if overwrite:
            return None, {}
        raise
    done: dict[str, list[dict[str, Any]]] = {}
    for row in earlier.rows:
        done.setdefault(row["cell"], []).append(row)
    if (gone := done.keys() - wanted) and not overwrite:
        raise OutputExists(
            f"'{place}' holds {len(gone)} cells of other code, other settings or more seeds, "
            "which this run would not make",
            mend="choose another output or let them go with --overwrite",
        )
    return earlier, {key: rows for key, rows in done.items() if key in wanted}


def _partial(place: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Cells of an interrupted run; what cannot be read is run again."""
    for path in place.glob("*.json"):
        with suppress(ValueError, KeyError):
            yield path.stem, json.loads(path.read_text(encoding="utf-8"))["rows"]


def _outcomes(
    study: Study,
    todo: Sequence[tuple[Group, Sequence[Cell]]],
    partial: Path,
    backend: Backend,
    workers: int | None,
) -> Iterator[Outcome]:
    if not todo:
        return
    cores = os.cpu_count() or 1
    count = min(len(todo), workers or (1 if accelerator() else cores))
    share = {} if backend == "ray" else {"inner_max_num_threads": max(1, cores // count)}
    if backend == "ray":
        _register_ray()
    elif count == 1:
        share = {}
    name = "ray" if backend == "ray" else "loky" if count > 1 else "sequential"
    # The directory is for workers that share this disk; others hand everything back.
    directory = str(partial.absolute())
    with joblib.parallel_config(backend=name, **share):
        # Ray's backend hands everything back at the end; workers on this disk write at once.
        order = "list" if backend == "ray" else "generator_unordered"
        parallel = joblib.Parallel(n_jobs=count, return_as=order, batch_size=1)
        run = joblib.delayed(_run_group)
        tasks = (
            run(study.slug, study.prepare, study.measure, group, list(cells), directory)
            for group, cells in todo
        )
        for outcomes in parallel(tasks):
            yield from outcomes


def _register_ray() -> None:
    if not find_spec("ray"):
        raise ExtraMissing.named("ray", "--backend ray")
    import ray
    from ray.util.joblib import register_ray

    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    register_ray()


def _run_group(
    study: str,
    prepare: Callable[[Group], Any],
    measure: Callable[[str, Any], Iterable[Measured]],
    group: Group,
    cells: Sequence[Cell],
    directory: str,
) -> list[Outcome]:
    """Everything of one seed and setting; runs wherever joblib puts it."""
    started = time.monotonic()
    try:
        prepared = prepare(group)
    except Exception as error:
        return [Outcome(cell.key, [], _told(error)) for cell in cells]
    shared = (time.monotonic() - started) / len(cells)
    outcomes = []
    for cell in cells:
        started = time.monotonic()
        try:
            measured = list(measure(cell.arm, prepared))
            seconds = round(time.monotonic() - started + shared, 3)
            outcome = Outcome(cell.key, list(_rows(study, cell, measured, seconds)))
        except Exception as error:
            outcomes.append(Outcome(cell.key, [], _told(error)))
            continue
        if Path(directory).is_dir():
            _write_cell(outcome, Path(directory))
        outcomes.append(outcome)
    return outcomes


def _rows(
    study: str, cell: Cell, measured: Sequence[Measured], seconds: float
) -> Iterator[dict[str, Any]]:
    for each in measured:
        if taken := RESERVED & each.labels.keys():
            raise InputInvalid(f"{study}: a label is called {sorted(taken)[0]!r}")
        row = {"study": study, "arm": cell.arm, "seed": cell.seed, **cell.setting, **each.labels}
        if each.item:
            row["item"] = each.item
        value = float(each.value)
        yield {**row, "metric": each.metric, "value": value, "seconds": seconds, "cell": cell.key}


def _told(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{text} ({Path(where.filename).name}:{where.lineno})"


def _write_cell(outcome: Outcome, directory: Path) -> None:
    path = directory / f"{outcome.key}.json"
    if path.exists():
        return
    fresh = path.with_suffix(f".{os.getpid()}.part")
    fresh.write_text(json.dumps({"rows": outcome.rows}), encoding="utf-8")
    fresh.replace(path)


def _publish(evidence: Evidence, place: Path) -> None:
    fresh = place / ".new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    write_record(evidence, fresh)
    for name in (ROWS, RECORD):
        (fresh / name).replace(place / name)
    fresh.rmdir()


def _discard(partial: Path, place: Path) -> None:
    shutil.rmtree(partial)
    if not any(place.iterdir()):
        place.rmdir()
