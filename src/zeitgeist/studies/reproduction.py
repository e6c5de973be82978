"""Run a study by its name and keep its evidence: the door behind ``zeitgeist reproduce``."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from os import environ
from pathlib import Path
from typing import TYPE_CHECKING

from zeitgeist import catalogue
from zeitgeist.catalogue_record import load
from zeitgeist.errors import ExtraMissing, InputInvalid, did_you_mean

if TYPE_CHECKING:
    from zeitgeist.evidence import Evidence, Study
    from zeitgeist.evidence.runner import Backend

EVIDENCE = Path("evidence")
NEEDED = ("accelerate", "altair", "gguf", "joblib", "peft", "pyarrow", "scipy", "sklearn")


def slugs() -> Mapping[str, str]:
    """Every study: its slug, and where it is declared.

    Examples
    --------
    >>> slugs()["knots"]
    'zeitgeist.studies.knots:STUDY'
    """
    areas = {area.slug: area.study for area in catalogue.AREAS if area.study}
    return areas | {system.slug: system.study for system in catalogue.SYSTEMS}


def find_study(slug: str) -> "Study":
    """The study of this name.

    Raises
    ------
    InputInvalid
        There is none; the message names the nearest.
    ExtraMissing
        The packages that studies need are not installed.
    """
    known = slugs()
    if slug not in known:
        raise InputInvalid(f"there is no study {slug!r}", mend=did_you_mean(slug, known))
    if not all(map(find_spec, NEEDED)):
        raise ExtraMissing.named("studies", "reproducing a study")
    study: Study = load(known[slug])
    return study


def reproduce(
    slug: str,
    size: str = "quick",
    *,
    out: Path = EVIDENCE,
    seeds: int | None = None,
    model: str = "",
    backend: "Backend" = "local",
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> tuple[Path, "Evidence"]:
    """Run what is missing of a study and keep rows, verdicts and figures.

    Parameters
    ----------
    slug
        Of a system (``"knots"``) or an area (``"merging"``).
    size
        ``"quick"``: two cores, under two minutes; ``"full"``: under thirty; ``"paper"``: real
        hardware and models of the hub.
    out
        Directory of all evidence; this goes to ``out/slug/size``, or with a model of yours to
        ``out/slug/size-model``.
    seeds, backend, workers, overwrite, progress
        See `zeitgeist.evidence.run_study`.
    model
        Reference of a model to run on instead of the study's own.

    Returns
    -------
    tuple
        Where the evidence is, and the evidence. Beside it lie its figures as PNG and as HTML.

    Raises
    ------
    InputInvalid
        No such study or size, or what the size needs is not here.
    OutputExists
        There is evidence already that this run would not make.

    Examples
    --------
    >>> reproduce("knotts")
    Traceback (most recent call last):
    zeitgeist.errors.InputInvalid: there is no study 'knotts'; did you mean 'knots'?
    """
    study = find_study(slug)
    # The packages are there: find_study has looked.
    from zeitgeist.evidence import run_study
    from zeitgeist.evidence.figures import save_figures

    _check_needs(study, size, model)
    place = out / slug / (f"{size}-{_short(model)}" if model else size)
    told = {"--seeds": seeds, "--model": model or None}
    words = [f"{name} {value}" for name, value in told.items() if value is not None]
    with _one_bar():
        evidence = run_study(
            study,
            size,
            place,
            seeds=seeds,
            model=model,
            backend=backend,
            workers=workers,
            overwrite=overwrite,
            progress=progress,
            command=" ".join([f"zeitgeist reproduce {slug} --size {size}", *words]),
        )
    if study.figures is not None:
        save_figures(study.figures(evidence), place)
    return place, evidence


@contextmanager
def _one_bar() -> Iterator[None]:
    """Loading a model takes less time than reading that it is loaded, here and in workers."""
    from transformers.utils import logging

    name = "HF_HUB_DISABLE_PROGRESS_BARS"
    shown, before = logging.is_progress_bar_enabled(), environ.get(name)
    logging.disable_progress_bar()
    environ[name] = "1"
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
        environ.pop(name)
        if before is not None:
            environ[name] = before


def _check_needs(study: "Study", size: str, model: str) -> None:
    """What hardware and models are needed, before anything is run."""
    chosen = study.sizes.get(size)  # type: ignore[call-overload]
    if chosen is None:
        return
    if chosen.accelerator:
        import torch

        if not torch.cuda.is_available():
            raise InputInvalid(
                f"the {size} size of {study.slug} needs a GPU, and there is none here",
                mend="use --size full",
            )
    if model and study.takes_model:
        from zeitgeist.checkpoints import is_adapter, resolve

        if is_adapter(resolve(model)):
            raise InputInvalid(
                f"{model!r} is an adapter, and a study starts from a whole model",
                mend="name its base, or merge it in: zeitgeist merge --method task_arithmetic",
            )
    if chosen.models and not model:
        from zeitgeist.checkpoints.inventory import inventory

        here = {entry.reference for entry in inventory() if entry.path}
        if lacking := [name for name in chosen.models if name not in here]:
            raise InputInvalid(
                f"the {size} size of {study.slug} needs {lacking[0]}, which is not on this machine",
                mend=f"zeitgeist models pull {lacking[0]}, or name another with --model",
            )


def _short(model: str) -> str:
    """A reference as part of a directory's name.

    Examples
    --------
    >>> _short("hub:org/Some-Model@main"), _short("/models/mine/")
    ('some-model-main', 'mine')
    """
    last = model.rstrip("/").rpartition("/")[2].rpartition(":")[2]
    return re.sub(r"[^a-z0-9.]+", "-", last.lower()).strip("-") or "model"
