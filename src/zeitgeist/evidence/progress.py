"""How far a study is: a bar with the time left."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm


@contextmanager
def cell_bar(
    label: str, total: int, waiting: int, partial: Path, progress: bool | None
) -> Iterator[None]:
    """Count the cells that workers write, for joblib tells of whole groups only.

    Parameters
    ----------
    label
        What is run.
    total, waiting
        All cells, and those that are still to be run.
    partial
        Where finished cells appear.
    progress
        Show the bar on stderr; None: when it is a terminal.
    """
    hidden = None if progress is None else not progress
    with tqdm(total=total, initial=total - waiting, desc=label, unit="cell", disable=hidden) as bar:
        present = len(list(partial.glob("*.json")))
        over = threading.Event()

        def count() -> None:
            bar.n = total - waiting + len(list(partial.glob("*.json"))) - present
            bar.refresh()

        def watch() -> None:
            while not over.wait(1.0):
                count()

        watcher = threading.Thread(target=watch, daemon=True)
        if not bar.disable:
            watcher.start()
        try:
            yield
        finally:
            over.set()
            if watcher.is_alive():
                watcher.join()
                count()
