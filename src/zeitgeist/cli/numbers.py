"""Lists of whole numbers as a person types them."""

from zeitgeist.errors import InputInvalid


def numbers(option: str, words: str) -> tuple[int, ...] | None:
    """The numbers of ``0,1,5-9``; None where nothing is said.

    Examples
    --------
    >>> numbers("--layers", "0,5-7"), numbers("--layers", "")
    ((0, 5, 6, 7), None)
    >>> numbers("--layers", "7-5")
    Traceback (most recent call last):
    zeitgeist.errors.InputInvalid: --layers '7-5' is no number; such as 0,1,5-9
    """
    found: list[int] = []
    for word in filter(None, words.split(",")):
        first, dash, last = word.partition("-")
        whole = first.isdecimal() and (not dash or last.isdecimal())
        if not whole or int(last or first) < int(first):
            raise InputInvalid(f"{option} {word!r} is no number", mend="such as 0,1,5-9")
        found += range(int(first), int(last or first) + 1)
    if words and not found:
        raise InputInvalid(f"{option} {words!r} names none", mend="such as 0,1,5-9")
    return tuple(found) or None
