"""``zeitgeist merge``: run, check, plan, sweep and soup."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from zeitgeist.cli.short_recipe import Short, recipe_of

app = App(name="merge", help="Merge fine-tuned models of one base into one, without training.")


Out = Annotated[Path, Parameter(name=["--output", "-o"])]


@contextmanager
def _no_collector() -> Iterator[None]:
    """An import makes many objects and drops none: looking for garbage costs a fifth of it."""
    gc.disable()
    try:
        yield
        gc.freeze()  # nor among them when kernels are loaded
    finally:
        gc.enable()


@app.default
def run(
    recipe: Path | None = None,
    /,
    *,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    short: Short | None = None,
    dry_run: bool = False,
    threads: int | None = None,
    shard_bytes: int = 5_000_000_000,
    overwrite: bool = False,
    resume: bool = False,
    json: bool = False,
) -> None:
    """Merge models into one and write it.

    Parameters
    ----------
    recipe
        YAML file; mergekit's format is read as it is.
    output
        Directory to make.
    dry_run
        Only say what would be read and written, how much memory, and each tensor's parameters.
    threads
        Worker threads; default: all processors.
    shard_bytes
        Largest size of a weight file in bytes.
    overwrite
        Replace an existing output.
    resume
        Go on where an interrupted merge with --resume stopped.
    json
        Print a machine-readable report.
    """
    from zeitgeist.errors import InputInvalid

    wanted = recipe_of(recipe, short)
    if dry_run:
        _dry_run(wanted, threads, json)
        return
    if output is None:
        raise InputInvalid("there is no output", mend="give -o DIRECTORY, or --dry-run")
    with _no_collector():
        from zeitgeist.merging import merge

    report = merge(
        wanted,
        output,
        threads=threads,
        shard_bytes=shard_bytes,
        overwrite=overwrite,
        resume=resume,
    )
    if json:
        _print_json({**asdict(report), "adapter": None})
        return
    for note in report.notes:
        print(f"note: {note}")
    if report.alpha is not None:
        print(f"LiNeS: alpha {report.alpha:.4g}, beta {report.beta:.4g}")
    print(
        f"{report.out}: {report.tensors} tensors, {_size(report.bytes_written)}, "
        f"by {report.method} in {report.seconds:.1f} s"
    )


def _dry_run(wanted: Any, threads: int | None, json: bool) -> None:
    from zeitgeist.merging import check

    report, plan = check(wanted) if threads is None else check(wanted, threads=threads)
    if json:
        _print_json({**asdict(report), "table": plan.table()})
        return
    _print_check(report)
    print("\ntensor, method, weights, options")
    for row in plan.table():
        told = [row.pop(key) for key in ("tensor", "method", "weights")]
        scale = row.pop("scale")
        options = " ".join(f"{key.rstrip('_')}={value}" for key, value in row.items())
        lines = f" lines={scale:.4g}" if scale != 1 else ""
        print(*told, options + lines, sep="  ")


@app.command
def check(recipe: Path | None = None, /, *, short: Short | None = None, json: bool = False) -> None:
    """Validate a recipe against its models from headers, before anything large is read.

    Parameters
    ----------
    recipe
        YAML file.
    json
        Print a machine-readable report.
    """
    from zeitgeist.merging import check as check_recipe

    report, _ = check_recipe(recipe_of(recipe, short))
    if json:
        _print_json(asdict(report))
    else:
        _print_check(report)


def _print_check(report: Any) -> None:
    for note in report.notes:
        print(f"note: {note}")
    for kin in report.kinship:
        print(f"{kin.model}: distance {kin.distance:.4g} of the base, cosine {kin.cosine:.5f}")
    print(
        f"{report.method}: {report.tensors} tensors, {report.parameters:,} parameters; reads "
        f"{_size(report.bytes_read)}, writes {_size(report.bytes_written)}, needs "
        f"{_size(report.peak_bytes)} of memory"
    )


@app.command
def plan(
    recipe: Path | None = None,
    /,
    *,
    short: Short | None = None,
    trim: float = 0.2,
    threads: int | None = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    json: bool = False,
) -> None:
    """Compare the experts' updates per block: norms, cosines, sign conflicts.

    Parameters
    ----------
    recipe
        YAML file.
    trim
        Share of each update that counts for sign conflicts.
    threads
        Worker threads; default: all processors.
    output
        Picture of it: an interactive .html, a .png or a .svg.
    json
        Print machine-readable rows.
    """
    from zeitgeist.merging import compare

    if output is not None:
        from zeitgeist.report.conflict_map import check_picture, write_conflict_map

        check_picture(output)
    report = compare(recipe_of(recipe, short), density=trim, threads=threads)
    if output is not None:
        write_conflict_map(report, output)
    if json:
        _print_json(report.rows())
        return
    width = max(len(part.block) for part in report.blocks)
    print(f"{'block':<{width}}  norm/base  cosine  sign conflict")
    for part in report.blocks:
        norm, cosine, conflict = part.summary()
        bar = "█" * round(20 * conflict) if conflict == conflict else ""  # NaN: a lone expert
        print(f"{part.block:<{width}}  {norm:9.4f}  {cosine:6.3f}  {conflict:6.3f} {bar}".rstrip())


@app.command
def sweep(
    recipe: Path | None = None,
    /,
    *,
    metric: str,
    try_: Annotated[list[str], Parameter(name="--try")],
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    short: Short | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Score a grid of parameters on a metric of yours; write only the best merge.

    Parameters
    ----------
    recipe
        YAML file.
    metric
        A text file (scored by perplexity) or module:function (model, tokenizer) -> float, larger is
        better.
    try_
        Values of one parameter, as name=value,value; give several times.
    output
        Directory for the best merge.
    threads
        Worker threads; default: all processors.
    overwrite
        Replace an existing output.
    json
        Print a machine-readable report.
    """
    from zeitgeist.errors import InputInvalid
    from zeitgeist.merging import sweep as run_sweep

    grid = {}
    for text in try_:
        name, _, values = text.partition("=")
        try:
            grid[name] = [float(value) for value in values.split(",")]
        except ValueError as error:
            raise InputInvalid(
                f"--try {text!r} is not name=number,number", mend="such as --try lambda=0.5,1"
            ) from error
    report = run_sweep(
        recipe_of(recipe, short), grid, metric, output, threads=threads, overwrite=overwrite
    )
    if json:
        _print_json({**asdict(report), "written": report.written and report.written.out})
        return
    if report.base is not None:
        print(f"{report.base:12.5g}  base")
    for expert, score in report.experts.items():
        print(f"{score:12.5g}  {expert} alone")
    for cell in report.cells:
        named = " ".join(f"{name}={value:g}" for name, value in cell.values.items())
        print(f"{cell.score:12.5g}  {named}{'  best' if cell == report.best else ''}")
    if report.written is not None:
        print(report.written.out)


@app.command
def soup(
    *,
    expert: list[str],
    metric: str,
    output: Out,
    base: str | None = None,
    strict: bool = False,
    threads: int | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Average those fine-tunes that help a held-out score (greedy soup).

    Parameters
    ----------
    expert
        A fine-tuned model or adapter; give several times.
    metric
        A text file or module:function, as for sweep.
    output
        Directory to make.
    base
        What adapters were trained on, where they do not say.
    strict
        Every addition must raise the score; without, it must not lower it.
    threads
        Worker threads; default: all processors.
    overwrite
        Replace an existing output.
    json
        Print a machine-readable report.
    """
    from zeitgeist.merging import soup as cook

    chosen, report = cook(
        expert, metric, output, base=base, strict=strict, threads=threads, overwrite=overwrite
    )
    if json:
        _print_json({**asdict(chosen), "out": report.out})
        return
    for reference, score in zip(expert, chosen.singles, strict=True):
        print(f"{score:12.5g}  {reference} alone")
    members = ", ".join(expert[i] for i in chosen.members)
    print(f"{chosen.score:12.5g}  soup of {members}\n{report.out}")


@app.command
def methods(*, json: bool = False) -> None:
    """List the merge methods with their options and published defaults.

    Parameters
    ----------
    json
        Print machine-readable records.
    """
    from zeitgeist.merging.methods import METHODS, describe

    if json:
        _print_json(
            {
                name: {
                    "summary": method.summary,
                    "source": method.source,
                    "options": [
                        dict(zip(("name", "default", "meaning", "source"), row, strict=True))
                        for row in describe(name)
                    ],
                }
                for name, method in METHODS.items()
            }
        )
        return
    for name, method in METHODS.items():
        print(f"{name}: {method.summary}\n    {method.source}")
        for option, default, meaning, _ in describe(name):
            print(f"    {option.rstrip('_')} = {default}  {meaning}")


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f} MB" if nbytes < 1e9 else f"{nbytes / 1e9:,.2f} GB"


def _print_json(record: Any) -> None:
    from json import dumps

    print(dumps(_finite(record), indent=2, default=str))


def _finite(record: Any) -> Any:
    """The record with null for NaN and infinity, which JSON has no word for."""
    if isinstance(record, dict):
        return {str(key): _finite(value) for key, value in record.items()}
    if isinstance(record, list | tuple):
        return [_finite(value) for value in record]
    return None if isinstance(record, float) and not isfinite(record) else record
