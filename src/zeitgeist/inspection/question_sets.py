"""Ready question sets: capitals, currencies, elements, sums, and who *he* or *she* is.

Facts come from two pinned packages on request (`zeitgeist.inspection.question_facts`), sums and
coreference are made here. A question whose own text has the answer (*What is the capital of
Monaco?*) is left out.

The pairs of professions and roles that the coreference questions are about are ours. As in
WinoBias, which of the two is meant follows from the reason that is given.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product

import numpy as np

from zeitgeist.errors import InputInvalid, did_you_mean
from zeitgeist.inspection.exact_answer import folded
from zeitgeist.inspection.question_facts import (
    Country,
    Element,
    facts_file,
    read_countries,
    read_elements,
)
from zeitgeist.inspection.questions import Question

__all__ = ["SETS", "question_set"]

ALSO_CAPITAL: Mapping[str, tuple[str, ...]] = {
    "BI": ("Gitega",),
    "BO": ("La Paz",),
    "CH": ("Bern",),
    "EH": ("Laayoune",),
    "GQ": ("Ciudad de la Paz",),
    "IM": ("Douglas",),
    "KZ": ("Nur-Sultan",),
    "LK": ("Sri Jayawardenepura Kotte",),
    "LY": ("Tripoli",),
    "MM": ("Naypyidaw", "Naypyitaw"),
    "MN": ("Ulaanbaatar",),
    "MY": ("Putrajaya",),
    "PS": ("Jerusalem", "Ramallah"),
    "SZ": ("Lobamba",),
    "TD": ("Ndjamena",),
    "TO": ("Nukualofa",),
    "UA": ("Kyiv",),
    "YE": ("Sana'a",),
    "ZA": ("Cape Town", "Bloemfontein"),
}
"""Other spellings, later names and second capitals, by country."""

ALSO_CURRENCY: Mapping[str, tuple[str, ...]] = {
    "BG": ("Euro",),
    "CN": ("Yuan", "Renminbi"),
    "DK": ("Kroner",),
    "HR": ("Euro",),
    "KH": ("Riel",),
    "LT": ("Euro",),
    "LV": ("Euro",),
    "NO": ("Kroner",),
    "TO": ("Paanga",),
}
"""Other spellings and later currencies, by country."""

ALSO_ELEMENT: Mapping[str, tuple[str, ...]] = {
    "Al": ("Aluminium",),
    "Cs": ("Caesium",),
    "S": ("Sulphur",),
}

PEOPLE: Sequence[tuple[str, str]] = (
    ("developer", "designer"),
    ("doctor", "patient"),
    ("teacher", "student"),
    ("lawyer", "client"),
    ("chef", "waiter"),
    ("manager", "assistant"),
    ("farmer", "driver"),
    ("nurse", "surgeon"),
    ("editor", "writer"),
    ("guard", "visitor"),
)
REASONS: Sequence[tuple[str, int]] = (
    ("The {a} thanked the {b} because {p} had received help.", 0),
    ("The {a} thanked the {b} because {p} had given good advice.", 1),
    ("The {a} paid the {b} because {p} had finished the work.", 1),
    ("The {a} asked the {b} a question because {p} wanted to know more.", 0),
    ("The {a} apologised to the {b} because {p} had made a mistake.", 0),
    ("The {a} forgave the {b} because {p} was truly sorry.", 1),
)
"""Sentences about two people, and whom the pronoun means: the first (0) or the second (1)."""


def capitals(countries: Sequence[Country]) -> tuple[Question, ...]:
    """*What is the capital of France?*"""
    return _told_apart(
        Question(
            f"What is the capital of {country.name}?",
            (country.capital, *ALSO_CAPITAL.get(country.code, ())),
            entity=country.name,
        )
        for country in countries
    )


def currencies(countries: Sequence[Country]) -> tuple[Question, ...]:
    """*What is the official currency of France?*"""
    return _told_apart(
        Question(
            f"What is the official currency of {country.name}?",
            (country.currency, *ALSO_CURRENCY.get(country.code, ())),
            entity=country.name,
        )
        for country in countries
        if country.currency
    )


def elements(known: Sequence[Element]) -> tuple[Question, ...]:
    """*Which chemical element has the symbol Na?*"""
    return tuple(
        Question(
            f"Which chemical element has the symbol {element.symbol}?",
            (element.name, *ALSO_ELEMENT.get(element.symbol, ())),
            entity=element.name,
        )
        for element in known
    )


def sums(low: int, high: int) -> tuple[Question, ...]:
    """*What is 17 + 25? Answer with a number.* for all pairs from ``low`` to ``high``, both inside.

    The entity is the pair whatever its order.
    """
    return tuple(
        Question(
            f"What is {a} + {b}? Answer with a number.",
            (str(a + b),),
            entity=f"{min(a, b)} + {max(a, b)}",
        )
        for a, b in product(range(low, high + 1), repeat=2)
    )


def coreference() -> tuple[Question, ...]:
    """*The chef paid the waiter because she had finished the work. Who had: the chef or ...?*"""
    made = []
    for pair, (sentence, meant), pronoun in product(PEOPLE, REASONS, ("he", "she")):
        for a, b in (pair, pair[::-1]):
            told = sentence.format(a=a, b=b, p=pronoun)
            right, wrong = (a, b) if meant == 0 else (b, a)
            made.append(
                Question(
                    f'{told} Who does "{pronoun}" refer to, the {a} or the {b}?',
                    (right,),
                    wrong=wrong,
                    entity=" and ".join(pair),
                )
            )
    return tuple(made)


SETS: Mapping[str, Callable[[bool], tuple[Question, ...]]] = {
    "capitals": lambda progress: capitals(
        read_countries(facts_file("countries", progress=progress))
    ),
    "currencies": lambda progress: currencies(
        read_countries(facts_file("countries", progress=progress))
    ),
    "elements": lambda progress: elements(read_elements(facts_file("elements", progress=progress))),
    "sums-1": lambda _: sums(1, 9),
    "sums-2": lambda _: sums(10, 99),
    "coreference": lambda _: coreference(),
}
"""By name, what makes each set; the argument says whether to show a download."""


def question_set(
    name: str, *, count: int | None = None, seed: int = 0, progress: bool = True
) -> tuple[Question, ...]:
    """A ready question set.

    Parameters
    ----------
    name
        Key of `SETS`.
    count
        How many questions to draw; None: all. Never more than there are.
    seed
        Of the draw.
    progress
        Show a download on a terminal's stderr.

    Raises
    ------
    InputInvalid
        No such set, or a count below 1.
    ReferenceUnresolved
        The facts could not be downloaded.

    Examples
    --------
    >>> question_set("sums-1", count=1)[0].question
    'What is 8 + 6? Answer with a number.'
    """
    if name not in SETS:
        raise InputInvalid(f"there is no question set {name!r}", mend=did_you_mean(name, SETS))
    if count is not None and count < 1:
        raise InputInvalid(f"{count} questions were asked for", mend="ask for at least 1")
    found = SETS[name](progress)
    if count is None or count >= len(found):
        return found
    chosen = np.random.default_rng(seed).choice(len(found), count, replace=False)
    return tuple(found[int(index)] for index in sorted(chosen))


def _told_apart(questions: Iterable[Question]) -> tuple[Question, ...]:
    """Without those whose entity has the answer in its name or the other way round."""
    kept = []
    for question in questions:
        entity = folded(question.entity)[0]
        names = [folded(alias)[0] for alias in question.aliases]
        if not any(entity in name or name in entity for name in names):
            kept.append(question)
    return tuple(kept)
