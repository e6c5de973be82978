"""Contexts on disk, for any trainer that reads ``input_ids`` and ``labels``.

One row per context; labels are -100 where nothing is learned. transformers' Trainer with
``DataCollatorForSeq2Seq`` takes such rows as they are.
"""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from zeitgeist.errors import ExtraMissing, InputInvalid, OutputExists
from zeitgeist.training.contexts import Context


def write_contexts(contexts: Sequence[Context], out: Path, *, overwrite: bool = False) -> None:
    """Write rows of ``input_ids`` and ``labels``, whole or not at all.

    Parameters
    ----------
    contexts
        To write.
    out
        A .jsonl or .parquet file.
    overwrite
        Replace an existing one.
    """
    check_file(out, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial_file = out.with_name(f".{out.name}.partial")
    rows = [{"input_ids": list(c.input_ids), "labels": list(c.labels)} for c in contexts]
    try:
        if out.suffix == ".parquet":
            from pyarrow import Table, parquet

            parquet.write_table(Table.from_pylist(rows), partial_file)
        else:
            text = "".join(json.dumps(row) + "\n" for row in rows)
            partial_file.write_text(text, encoding="utf-8")
        partial_file.replace(out)
    except BaseException:
        partial_file.unlink(missing_ok=True)
        raise


def read_contexts(path: Path) -> tuple[Context, ...]:
    """What `write_contexts` wrote to a .jsonl file."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return tuple(Context(tuple(row["input_ids"]), tuple(row["labels"])) for row in rows)


def check_file(out: Path, *, overwrite: bool, inputs: Sequence[Path] = ()) -> None:
    """Refuse what could not be written later, or would replace what is read.

    Raises
    ------
    InputInvalid
        The name says no format, lies in a file, or is an input's.
    OutputExists
        It is there already.
    ExtraMissing
        What writes Parquet is not installed.
    """
    if out.suffix not in (".jsonl", ".parquet"):
        raise InputInvalid(f"the output '{out}' is no .jsonl or .parquet", mend="name it so")
    if any(parent.is_file() for parent in out.parents):
        raise InputInvalid(f"the output '{out}' lies in a file", mend="choose another name")
    if out.is_dir():
        raise InputInvalid(f"the output '{out}' is a directory", mend="name a file")
    if out.exists() and not overwrite:
        raise OutputExists(
            f"the output '{out}' is already there",
            mend="choose another name or ask for it to be replaced with --overwrite",
        )
    for path in inputs:
        if out.exists() and path.exists() and out.samefile(path):
            raise InputInvalid(f"the output '{out}' is an input", mend="choose another name")
    if out.suffix == ".parquet" and not find_spec("pyarrow"):
        raise ExtraMissing.named("studies", "writing Parquet")
