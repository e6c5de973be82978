"""What the merging demo teaches its experts, and the text it must not forget.

Four tasks that SmolLM2-135M-Instruct cannot do as asked (it answers in sentences, pads JSON with
line breaks, adds wrongly) and that some forty steps of LoRA teach. Three are generated; the fourth
rewrites identifiers that occur in CPython's own sources. The held-out texts are English and Python
that every CPython ships with: the language reference in `pydoc_data` and the standard library.
Both differ a little between versions of Python, so numbers compare within one version.

Training and test items of a task never share an input. They do share names, months and numbers: a
task is small, and a high score says that its *format and rule* were learned, nothing more.
"""

import datetime
import re
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from zeitgeist.errors import InputInvalid
from zeitgeist.training import Example

Item = tuple[str, str]
"""What is asked and the one right answer."""


@dataclass(frozen=True)
class Task:
    """A task: what the system prompt says and how to draw an item.

    ``steps`` is how long its expert is trained: as long as it takes to learn, and no longer.
    """

    slug: str
    title: str
    instruction: str
    origin: str
    steps: int
    draw: Callable[[Random], Item]


@dataclass(frozen=True)
class Split:
    """Items to learn from and items to be scored on; no input is in both."""

    train: tuple[Item, ...]
    test: tuple[Item, ...]


def split(task: Task, *, train: int, test: int, seed: int) -> Split:
    """Draw the items of a task.

    Parameters
    ----------
    task
        One of `TASKS`.
    train, test
        How many.
    seed
        Of the training items. The test items are the same for every seed.

    Examples
    --------
    >>> drawn = split(TASKS["sums"], train=3, test=2, seed=0)
    >>> len(drawn.train), len(drawn.test), set(drawn.train) & set(drawn.test)
    (3, 2, set())
    """
    tested = _distinct(task, Random(f"{task.slug} test"), test, {})
    learned = _distinct(task, Random(f"{task.slug} train {seed}"), train, tested)
    return Split(tuple(learned.items()), tuple(tested.items()))


def _distinct(task: Task, random: Random, count: int, taken: Mapping[str, str]) -> dict[str, str]:
    items: dict[str, str] = {}
    for _ in range(100 * count):
        asked, answer = task.draw(random)
        if asked not in taken:
            items[asked] = answer
        if len(items) == count:
            break
    if len(items) == count:
        return items
    raise InputInvalid(
        f"the task {task.slug!r} has no {count + len(taken)} different items",
        mend="ask for fewer",
    )


def encode(tokenizer: Any, task: Task, item: Item) -> Example:
    """An item as a conversation in the model's own chat format.

    The answer ends with the end-of-text token, which a model must give too to be right.
    """
    asked, answer = item
    prompt = tokenizer.apply_chat_template(
        [{"role": "system", "content": task.instruction}, {"role": "user", "content": asked}],
        add_generation_prompt=True,
        return_dict=True,
    )["input_ids"]
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    return Example(tuple(prompt), (*ids, tokenizer.eos_token_id))


MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NAMES = (
    "Maria", "Peter", "Amina", "Jonas", "Lucia", "Omar", "Ingrid", "Tomas", "Priya", "Kenji",
    "Sofia", "Daniel", "Fatima", "Erik", "Chloe", "Mateo", "Nadia", "Victor", "Elena", "Samuel",
    "Grace", "Ivan", "Leila", "Hugo", "Clara", "Ahmed", "Julia", "Marco", "Zara", "Oscar",
)  # fmt: skip
CITIES = (
    "Lima", "Oslo", "Cairo", "Berlin", "Madrid", "Nairobi", "Tokyo", "Dublin", "Vienna", "Boston",
    "Delhi", "Havana", "Lisbon", "Seoul", "Athens", "Toronto", "Prague", "Dakar", "Rome", "Sydney",
    "Bogota", "Warsaw", "Geneva", "Chicago", "Istanbul", "Helsinki",
)  # fmt: skip
JOBS = (
    "nurse", "baker", "teacher", "pilot", "lawyer", "farmer", "painter", "engineer", "dentist",
    "chef", "tailor", "librarian", "plumber", "carpenter", "journalist", "architect", "gardener",
    "translator", "electrician", "pharmacist", "musician", "fisherman",
)  # fmt: skip


def _date(random: Random) -> Item:
    day = datetime.date(1900, 1, 1) + datetime.timedelta(days=random.randrange(45_000))
    month, short = MONTHS[day.month - 1], MONTHS[day.month - 1][:3]
    last = {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10, "th")
    ordinal = f"{day.day}{'th' if 10 < day.day < 20 else last}"
    written = random.choice(
        (
            f"the {ordinal} of {month}, {day.year}",
            f"{month} {day.day}, {day.year}",
            f"{day.day} {short} {day.year}",
            f"{DAYS[day.weekday()]}, {month} {ordinal} {day.year}",
            f"{short} {day.day} {day.year}",
        )
    )
    return written, day.isoformat()


def _record(random: Random) -> Item:
    name, city, job = random.choice(NAMES), random.choice(CITIES), random.choice(JOBS)
    age = random.choice([*range(19, 80), *range(90, 99)])
    one = f"{'an' if job[0] in 'aeiou' else 'a'} {job}"
    sentence = random.choice(
        (
            f"{name} is a {age}-year-old {job} who lives in {city}.",
            f"In {city} lives {name}, {one} aged {age}.",
            f"{name} ({age}) moved to {city} to work as {one}.",
            f"At {age}, {name} still works as {one} in {city}.",
            f"The {job} {name} from {city} has just turned {age}.",
        )
    )
    return sentence, f"{name},{age},{city},{job}"


def _sum(random: Random) -> Item:
    one, other = random.randrange(10, 100), random.randrange(10, 100)
    return f"{one} + {other}", str(one + other)


def _identifier(random: Random) -> Item:
    name = random.choice(_identifiers())
    first, *rest = name.split("_")
    return name, first + "".join(word.capitalize() for word in rest)


# Modules that Python 3.11 to 3.14 have; those read for held-out code are not among them.
IDENTIFIERS_FROM = (
    "argparse", "ast", "calendar", "codecs", "configparser", "datetime", "difflib", "dis",
    "doctest", "enum", "fileinput", "ftplib", "functools", "gettext", "imaplib", "inspect",
    "ipaddress", "locale", "mailbox", "mimetypes", "optparse", "pdb", "pickle", "platform",
    "plistlib", "poplib", "profile", "pydoc", "random", "selectors", "shelve", "shutil", "smtplib",
    "socket", "socketserver", "ssl", "subprocess", "tarfile", "tempfile", "threading", "timeit",
    "trace", "traceback", "turtle", "typing", "uuid", "warnings", "weakref", "zipapp",
)  # fmt: skip
CODE_FROM = (
    "base64", "bisect", "cmd", "code", "colorsys", "contextlib", "copy", "csv", "dataclasses",
    "filecmp", "fnmatch", "fractions", "getopt", "graphlib", "heapq", "linecache", "netrc",
    "numbers", "operator", "queue", "quopri", "reprlib", "sched", "shlex", "statistics", "string",
    "tabnanny", "textwrap",
)  # fmt: skip


def _source(module: str) -> str:
    path = Path(sysconfig.get_path("stdlib")) / f"{module}.py"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


@cache
def _identifiers() -> tuple[str, ...]:
    pattern = re.compile(r"\b[a-z]{2,}(?:_[a-z]{2,}){1,3}\b")
    found = {name for module in IDENTIFIERS_FROM for name in pattern.findall(_source(module))}
    if not found:
        raise InputInvalid(
            "the sources of Python's standard library are not there",
            origin=sysconfig.get_path("stdlib"),
            mend="use a Python that was installed with its .py files",
        )
    return tuple(sorted(name for name in found if len(name) < 28))


TASKS: Mapping[str, Task] = {
    task.slug: task
    for task in (
        Task("dates", "ISO dates", "Write the date as YYYY-MM-DD.", "generated", 40, _date),
        Task(
            "records",
            "CSV records",
            "Answer with one line of CSV: name, age, city, job.",
            "generated",
            30,
            _record,
        ),
        Task(
            "identifiers",
            "camelCase",
            "Rewrite the identifier in camelCase.",
            "identifiers in CPython's standard library",
            50,
            _identifier,
        ),
        Task("sums", "Sums", "Add the numbers.", "generated", 60, _sum),
    )
}


def held_out(
    tokenizer: Any, *, windows: int, context: int, length: int
) -> dict[str, list[Example]]:
    """Text that no expert learns from, in windows of equal length.

    Parameters
    ----------
    tokenizer
        Of the model.
    windows
        How many of each text, evenly spaced over it.
    context
        Tokens that open each window and are not scored. Experts of a chat task expect a system
        prompt at the very start; what they do to running text shows after some of it.
    length
        Tokens that are scored in each.

    Returns
    -------
    dict
        ``"english"`` and ``"code"``.
    """
    texts = {"english": list(_english()), "code": list(_code())}
    found: dict[str, list[Example]] = {}
    for name, pieces in texts.items():
        ids = [tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in pieces]
        long = [piece for piece in ids if len(piece) >= context + length]
        if len(long) < windows:
            raise InputInvalid(
                f"only {len(long)} pieces of {name} have {context + length} tokens, not {windows}",
                mend="ask for fewer or shorter windows",
            )
        chosen = [long[i * len(long) // windows] for i in range(windows)]
        found[name] = [
            Example(tuple(w[:context]), tuple(w[context : context + length])) for w in chosen
        ]
    return found


def _english() -> Iterator[str]:
    """Neighbouring paragraphs of prose of the language reference, topic by topic."""
    from pydoc_data.topics import topics

    seen: set[str] = set()
    for name in sorted(topics):
        prose = []
        for paragraph in topics[name].split("\n\n"):
            text = " ".join(paragraph.split())
            sentence = text[:1].isupper() and text.endswith(".") and "::=" not in text
            if sentence and len(text) > 80 and text not in seen:
                seen.add(text)
                prose.append(text)
        yield "\n\n".join(prose)


def _code() -> Iterator[str]:
    """Top-level definitions of the standard library."""
    for module in CODE_FROM:
        yield from re.split(r"\n(?=def |class )", _source(module))[1:]
