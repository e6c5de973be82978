"""Whether an answer is right, and which of its tokens decide that.

Orgad, Toker, Gekhman, Reichart, Szpektor, Kotek, Belinkov: "LLMs Know More Than They Show",
arXiv 2410.02707, section 3. The *exact answer* is the piece of a long answer whose change would
change whether it is right.

The published extraction takes the gold alias where the answer is right and asks another model where
it is wrong. It looks at the label to choose the position, and a probe at that position can read the
label from it. `blind` is one rule for all answers that sees neither aliases nor labels; it is the
default. `published` looks, with `blind` in the place of the other model, and is kept to compare.

The rule of `blind`:

1. an apology or a refusal in the first sentence: there is no exact answer;
2. a question with two options: whichever of them stands first;
3. a question with a calculation in it (``17 + 25``): in the first sentence that has one, the last
   number behind ``=``, *is, equals, gives, makes, get*; failing that, the answer if it is a number;
   else there is none;
4. otherwise, in the first sentence, what is behind *is, are, was, were, refers to* or ``:``, up to
   a comma, a bracket, *which, that, because, and, but, with*, or the sentence's end, without
   articles, quotes, *called, known as, named* at its beginning;
5. if nothing like that is there, the whole clause;
6. if that has more than `LONGEST` words, its first run of capitalised words or numbers that the
   question does not have; else there is none.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.questions import Question

__all__ = ["Extractor", "blind", "by_pattern", "is_right", "published", "token_window"]

Found = str | tuple[int, int] | None
Extractor = Callable[[Question, str], Found]
"""From a question and an answer to the exact answer: text, offsets of characters, or None."""

LONGEST = 6
"""Words of an exact answer; longer ones are sentences."""

SHORT = 4
"""Letters up to which a word must end where the alias ends: *yen* is not in *yenta*."""

_REFUSAL = re.compile(
    r"\b(i am sorry|i['\u2019]m sorry|sorry|i apologi[sz]e|i do not know|i don['\u2019]t know|"
    r"i cannot|i can['\u2019]t|unable to|not sure|no answer)\b",
    re.IGNORECASE,
)
# A period behind a single capital or a short title does not end a sentence: D.C., St. John's.
_END = re.compile(r"\n|[!?](?=\s|$)|(?<!\b[A-Z])(?<!\b(?:St|Mt|Ft|Dr|Mr))\.(?=\s|$)")
_COPULA = re.compile(r"\b(?:is|are|was|were|refers to)\b(?:\s*:)?|:(?=\s)", re.IGNORECASE)
# 2010 - 2011 is a season.
_CALCULATION = re.compile(
    r"\d\s*[+*\u00d7\u00f7]\s*\d|(?<!\d)(?!\d{4}\s+[-/]\s+\d{4}\b)\d+\s+[-/]\s+\d"
)
_NUMBER = r"-?\d+(?:[.,]\d+)*"
_RESULT = re.compile(
    rf"(?:=|\b(?:is(?: equal to)?|equals?|gives|makes|get)\b)[:\s*$]*({_NUMBER})"
    r"(?!\d|\s*(?:\*(?!\*)|[/+])|\s*-\s*\d)"
)
_CUT = re.compile(r"[,;()\[\]]|\s(?:which|that|because|and|but|with)\b", re.IGNORECASE)
_LEAD = re.compile(
    r"(?:\s|[\"'*\u201c\u2018]|(?:the|a|an|called|known as|named|also)\b)+", re.IGNORECASE
)
# The number or letter of an item, as in a list or a choice: "1. Paris", "(A) Paris".
_ITEM = re.compile(r"\s*(?:\([A-Da-d1-9]\)|[A-Da-d1-9][.)])\s+(?=\S)")
# Writing without spaces between words: Thai and Lao, Burmese, Khmer, kana, Chinese characters.
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_TAIL = " \t\"'*.\u201d\u2019"
_RUN = re.compile(r"(?:[^\W\d_]|\d)[\w'\u2019.-]*")


def folded(text: str) -> tuple[str, list[int]]:
    """Text without case and accents, and from which character each of its characters came.

    Examples
    --------
    >>> folded("Bogot\u00e1 \u00df")
    ('bogota ss', [0, 1, 2, 3, 4, 5, 6, 7, 7])
    """
    made, came = [], []
    for index, letter in enumerate(text):
        plain = "".join(
            part
            for part in unicodedata.normalize("NFKD", letter).casefold()
            if not unicodedata.combining(part)
        )
        made.append(plain)
        came += [index] * len(plain)
    return "".join(made), came


def find_alias(answer: str, alias: str, *, strict: bool = False) -> tuple[int, int] | None:
    """Where an alias stands in an answer first, as offsets of characters.

    Parameters
    ----------
    answer, alias
        Texts.
    strict
        Case and accents count, and the alias ends where a word ends. Else neither counts, and only
        numbers and words of up to `SHORT` letters must end there. Either way it begins with a word:
        5 is not in 15, and *no* is not in *not*. Writing without spaces has no such bounds.

    Examples
    --------
    >>> find_alias("It is Bogota.", "Bogot\u00e1"), find_alias("It is 15.", "5")
    ((6, 12), None)
    """
    if strict:
        text, wanted, came = answer, alias.strip(), list(range(len(answer)))
    else:
        (text, came), (wanted, _) = folded(answer), folded(alias.strip())
    if not wanted:
        return None
    whole = strict or len(wanted) <= SHORT or wanted[-1].isdigit()
    spaced = [bool(re.match(rf"[^\W{_UNSPACED}]", wanted[at])) for at in (0, -1)]
    begin = rf"(?<![^\W{_UNSPACED}])" if spaced[0] else ""
    end = rf"(?![^\W{_UNSPACED}])" if whole and spaced[1] else ""
    if whole and wanted[-1].isdigit():
        end += r"(?![.,]\d)"
    if wanted[0].isdigit():
        begin += r"(?<!\d[.,])(?<!-)"
    hit = re.search(begin + re.escape(wanted) + end, text)
    return None if hit is None else (came[hit.start()], came[hit.end() - 1] + 1)


def first_alias(
    answer: str, aliases: Sequence[str], *, strict: bool = False
) -> tuple[int, int] | None:
    """The earliest place at which any alias stands, and of those the longest."""
    hits = [find_alias(answer, alias, strict=strict) for alias in aliases]
    return min((hit for hit in hits if hit), key=lambda hit: (hit[0], -hit[1]), default=None)


def is_right(question: Question, answer: str, *, strict: bool = False) -> bool:
    """Whether an answer counts as right.

    Parameters
    ----------
    question
        With aliases. If it has a ``wrong`` option, an alias must stand before that.
    answer
        The model's.
    strict
        An alias stands there as `find_alias` finds it strictly, too.

    Examples
    --------
    >>> is_right(Question("2 + 3?", ("5",)), "2 + 3 = 5.")
    True
    """
    if strict and first_alias(answer, question.aliases, strict=True) is None:
        return False
    right = first_alias(answer, question.aliases)
    if right is None or not question.wrong:
        return right is not None
    other = find_alias(answer, question.wrong)
    return other is None or right[0] < other[0]


def blind(question: Question, answer: str) -> tuple[int, int] | None:
    """The exact answer by one rule for all answers, which sees no alias and no label.

    Parameters
    ----------
    question
        Its text, and of its two options, if it has them, which they are but not which is right.
    answer
        The model's.

    Returns
    -------
    tuple or None
        Offsets of characters.

    Examples
    --------
    >>> answer = "The capital of France is the city Paris, on the Seine."
    >>> answer[slice(*blind(Question("Capital?", ("?",)), answer))]
    'city Paris'
    """
    start, stop = _sentence(answer, 0)
    if _REFUSAL.search(answer, start, stop):
        return None
    if question.wrong:
        return first_alias(answer, [*question.aliases, question.wrong])
    if _CALCULATION.search(question.question):
        return _number(answer)
    copula = _COPULA.search(answer, start, stop)
    begin = copula.end() if copula else start
    if copula and not re.search(r"\w", answer[begin:stop]):
        # What is announced may stand on the next line; nothing was said where it does not.
        begin, stop = _sentence(answer, stop) if answer[stop:].strip() else (start, stop)
    span = _clause(answer, begin, stop)
    if span is None or len(answer[slice(*span)].split()) <= LONGEST:
        return span
    return _named(question.question, answer, *span)


def _sentence(answer: str, begin: int) -> tuple[int, int]:
    """The first sentence from here on, without the number of an item before it."""
    begin += len(answer[begin:]) - len(answer[begin:].lstrip(" \t\n.!?"))
    item = _ITEM.match(answer, begin)
    begin = item.end() if item else begin
    ends = (m.start() for m in _END.finditer(answer, begin) if m.start() > begin)
    return begin, next(ends, len(answer))


def _number(answer: str) -> tuple[int, int] | None:
    """The last result of the first sentence that has one, or all of the answer."""
    begin = 0
    for stop in [*(m.start() for m in _END.finditer(answer)), len(answer)]:
        if hits := list(_RESULT.finditer(answer, begin, stop)):
            return hits[-1].span(1)
        begin = stop
    alone = re.fullmatch(rf"\s*({_NUMBER})\.?\s*", answer)
    return alone.span(1) if alone else None


def _clause(answer: str, begin: int, stop: int) -> tuple[int, int] | None:
    lead = _LEAD.match(answer, begin, stop)
    begin = lead.end() if lead else begin
    item = _ITEM.match(answer, begin, stop)
    begin = item.end() if item else begin
    # What a bracket or comma cuts off at once is no clause.
    cut = _CUT.search(answer, begin + 1, stop)
    end = cut.start() if cut else stop
    end = begin + len(answer[begin:end].rstrip(_TAIL))
    return (begin, end) if end > begin else None


def _named(question: str, answer: str, begin: int, stop: int) -> tuple[int, int] | None:
    """The first run of capitalised words or numbers that the question does not have."""
    known = set(_RUN.findall(folded(question)[0]))
    run: tuple[int, int] | None = None
    for word in _RUN.finditer(answer, begin, stop):
        told = word[0].rstrip(".'")
        new = (told[0].isupper() or told[0].isdigit()) and folded(told)[0] not in known
        if new:
            run = (run[0] if run else word.start(), word.start() + len(told))
        elif run:
            break
    return run


def published(question: Question, answer: str) -> Found:
    """The gold alias where the answer is right, `blind` where it is wrong: it sees the label."""
    if is_right(question, answer):
        return first_alias(answer, question.aliases)
    return blind(question, answer)


def by_pattern(pattern: str) -> Extractor:
    """An extractor that takes the first match of a regular expression.

    Parameters
    ----------
    pattern
        Its first group is the exact answer, or all of it where there is no group.

    Raises
    ------
    InputInvalid
        It is no regular expression.

    Examples
    --------
    >>> by_pattern(r"= (\\d+)")(Question("2 + 3?", ("5",)), "2 + 3 = 5.")
    (8, 9)
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputInvalid(
            f"the pattern {pattern!r} is no regular expression ({error})", mend="mend it"
        ) from error
    group = 1 if compiled.groups else 0

    def extract(_question: Question, answer: str) -> tuple[int, int] | None:
        hit = compiled.search(answer)
        return hit.span(group) if hit and hit[group] else None

    return extract


def token_window(
    tokenizer: Any, ids: Sequence[int], found: str | tuple[int, int]
) -> tuple[int, int] | None:
    """The smallest window of tokens that covers a piece of their text.

    Nothing is tokenised again: pieces of a byte-level vocabulary may straddle either end. The
    window ends as early, and then begins as late, as its text still has the piece.

    Parameters
    ----------
    tokenizer
        With ``decode``.
    ids
        Of the answer.
    found
        The piece, of which the first place counts whatever its case; or offsets of characters.

    Returns
    -------
    tuple or None
        First and last token, both inside; None where the text does not have the piece.

    Examples
    --------
    >>> class Letters:
    ...     def decode(self, ids, **_): return "".join(map(chr, ids))
    >>> token_window(Letters(), list(map(ord, "It is Rome.")), "rome")
    (6, 9)
    """
    text = decoded(tokenizer, ids)
    if isinstance(found, str):
        hit = re.search(re.escape(found), text, re.IGNORECASE) if found else None
        if hit is None:
            return None
        found = hit.span()
    begin, end = found
    piece = text[begin:end]
    if not piece:
        return None
    high = next(
        (
            count
            for count in range(1, len(ids) + 1)
            if decoded(tokenizer, ids[:count])[begin:end] == piece
        ),
        None,
    )
    if high is None:
        return None
    low = next(at for at in range(high - 1, -1, -1) if piece in decoded(tokenizer, ids[at:high]))
    return low, high - 1


def decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    """Text of tokens, with nothing tidied away."""
    return str(
        tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    )
