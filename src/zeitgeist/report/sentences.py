"""Numbers and verdicts in words, for pages, pictures and the terminal."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from zeitgeist.evidence import Claim, Metric, Verdict
from zeitgeist.evidence.verdicts import MIN_SEEDS, Outcome

OUTCOMES: tuple[Outcome, ...] = ("holds", "does not hold", "undecided")
_PLURAL: dict[Outcome, str] = {
    "holds": "hold",
    "does not hold": "do not hold",
    "undecided": "undecided",
}
_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
MINUS = "\N{MINUS SIGN}"
_D3 = re.compile(r"[+\-( ]?0?\d*(?P<comma>,?)(?:\.(?P<digits>\d+))?(?P<trim>~?)(?P<kind>[a-z%]?)")


def count(number: int, noun: str) -> str:
    """A number with its noun, small numbers in words.

    Examples
    --------
    >>> count(1, "seed"), count(5, "seed"), count(30, "claim")
    ('one seed', 'five seeds', '30 claims')
    """
    word = _WORDS[number] if 0 <= number < len(_WORDS) else f"{number:,}"
    return f"{word} {noun}{'' if number == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """Words as a person would list them.

    Examples
    --------
    >>> listed(["a", "b", "c"]), listed(["a"]), listed([])
    ('a, b and c', 'a', '')
    """
    if not words:
        return ""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def number(value: float, d3: str, *, signed: bool = False) -> str:
    """A number in d3's notation, which charts use too, so that text and axis agree.

    Parameters
    ----------
    value
        Finite or not.
    d3
        Such as ``.3f``, ``.1%``, ``,d``, ``.2s``.
    signed
        Write a plus before what is above zero.

    Examples
    --------
    >>> number(0.5, ".1%"), number(-0.00001, ".3f"), number(-1.5, ".1f"), number(2e6, ".2s")
    ('50.0%', '0.000', '−1.5', '2.0M')
    >>> number(0.25, ".2f", signed=True), number(float("nan"), ".2f")
    ('+0.25', 'unknown')
    """
    if math.isnan(value):
        return "unknown"
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    text = _plain(abs(value), d3)
    if not any("1" <= sign <= "9" for sign in text):
        return text
    return f"{MINUS if value < 0 else '+' if signed else ''}{text}"


def _plain(value: float, d3: str) -> str:
    known = _D3.fullmatch(d3)
    if known is None:
        return f"{value:.3g}"
    comma, digits, trim, kind = known.group("comma", "digits", "trim", "kind")
    unit = ""
    if kind == "s" and value:
        power = min(4, max(-3, math.floor(math.log10(value) / 3)))
        value, unit = value / 1000.0**power, "nµm kMGT"[power + 3].strip()
        digits, kind = str(max(0, int(digits or 6) - 1 - math.floor(math.log10(value)))), "f"
    if kind in ("d", "b", "o", "x", "c"):
        digits, kind = "0", "f"
    kind = {"": "g", "r": "g", "p": "%", "n": "g", "s": "g"}.get(kind, kind)
    if kind not in "efg%":
        return f"{value:.3g}"
    text = f"{value:{comma}.{digits or 6}{kind}}"
    if trim and "." in text:
        text = re.sub(r"\.?0+(?=%?$)", "", text)
    return text + unit


def interval(low: float, high: float, d3: str, *, seeds: int) -> str:
    """An interval, honest where it has no end.

    Examples
    --------
    >>> interval(0.012, 0.05, ".3f", seeds=5)
    '0.012 to 0.050'
    >>> interval(-float("inf"), float("inf"), ".3f", seeds=3)
    'no interval from three seeds'
    >>> interval(0.012, float("inf"), ".3f", seeds=4)
    '0.012 or more'
    """
    if math.isfinite(low) and math.isfinite(high):
        return f"{number(low, d3)} to {number(high, d3)}"
    if math.isfinite(low):
        return f"{number(low, d3)} or more"
    if math.isfinite(high):
        return f"{number(high, d3)} or less"
    return f"no interval from {count(seeds, 'seed')}"


def ends(verdict: Verdict) -> tuple[float, float]:
    """The interval of a verdict; seeds that are too few to tell have none, whatever their items.

    Examples
    --------
    >>> ends(Verdict("a", "", "undecided", 0.3, 0.1, 0.5, 1.0, 2, 20, 0, "2 seeds cannot tell"))
    (-inf, inf)
    """
    if verdict.seeds < MIN_SEEDS:
        return -math.inf, math.inf
    return verdict.low, verdict.high


def _unit(metric: Metric) -> tuple[float, str, str]:
    """Differences of shares are said in percentage points."""
    if metric.format.endswith(("%", "p")):
        return 100.0, f"{metric.format[:-1]}f", " points"
    return 1.0, metric.format, ""


def claimed(claim: Claim, metric: Metric) -> str:
    """What difference a claim says there is.

    Examples
    --------
    >>> claim = Claim("a", "", "", "m", {"arm": "x"}, {"arm": "y"}, "greater", 0.02)
    >>> claimed(claim, Metric("m", "accuracy", "higher", ".1%"))
    'above +2.0 points'
    """
    factor, d3, unit = _unit(metric)
    margin = factor * claim.margin
    d3 = d3 if not margin or re.search("[1-9]", number(margin, d3)) else ".2g"
    if claim.direction == "equal":
        return f"within ±{number(margin, d3)}{unit}"
    if not margin:
        return "above zero" if claim.direction == "greater" else "below zero"
    if claim.direction == "greater":
        return f"above {number(margin, d3, signed=True)}{unit}"
    return f"below {number(-margin, d3)}{unit}"


def in_points(verdict: Verdict, metric: Metric) -> tuple[str, str]:
    """Difference and interval of a verdict; differences of shares are in percentage points.

    Examples
    --------
    >>> verdict = Verdict("a", "", "holds", 0.031, 0.012, 0.05, 0.01, 5, 5, 0, "")
    >>> in_points(verdict, Metric("m", "accuracy", "higher", ".1%"))
    ('+3.1 points', '1.2 to 5.0')
    """
    if math.isnan(verdict.difference):
        return "unknown", "not measured"
    factor, d3, unit = _unit(metric)
    values = [factor * value for value in (verdict.difference, *ends(verdict))]
    said = [value for value in values if math.isfinite(value) and value]
    if said and not any(re.search("[1-9]", number(value, d3)) for value in said):
        d3 = ".2g"  # the metric's own digits would call every one of them nothing
    first = number(values[0], d3, signed=True) + unit
    return first, interval(values[1], values[2], d3, seeds=verdict.seeds)


def finding(verdict: Verdict, metric: Metric) -> str:
    """A verdict in a sentence.

    Examples
    --------
    >>> verdict = Verdict("a", "", "holds", 0.031, 0.012, 0.05, 0.01, 5, 5, 0, "")
    >>> finding(verdict, Metric("m", "accuracy", "higher"))
    'holds: difference +0.031 (0.012 to 0.050), five seeds'
    """
    if not verdict.seeds or math.isnan(verdict.difference):
        return f"{verdict.verdict}: nothing was measured"
    difference, spread = in_points(verdict, metric)
    if all(map(math.isinf, ends(verdict))):
        return f"{verdict.verdict}: difference {difference}, {spread}"
    said = f"{verdict.verdict}: difference {difference} ({spread}), {count(verdict.seeds, 'seed')}"
    return f"{said}; {verdict.reason}" if verdict.reason else said


def p_value(p: float, seeds: int) -> str:
    """A p-value; too few seeds have none.

    Examples
    --------
    >>> p_value(0.0002, 5), p_value(0.0412, 5), p_value(1.0, 2)
    ('< 0.001', '0.041', 'none')
    """
    if seeds < MIN_SEEDS:
        return "none"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def tally(verdicts: Iterable[Verdict]) -> list[tuple[Outcome, str]]:
    """How many claims came out which way, in words; outcomes that no claim has are left out.

    Examples
    --------
    >>> verdict = Verdict("a", "", "holds", 0.031, 0.012, 0.05, 0.01, 5, 5, 0, "")
    >>> tally([verdict]), tally([verdict, verdict])
    ([('holds', '1 holds')], [('holds', '2 hold')])
    """
    found = Counter(verdict.verdict for verdict in verdicts)
    return [
        (outcome, f"{found[outcome]} {outcome if found[outcome] == 1 else _PLURAL[outcome]}")
        for outcome in OUTCOMES
        if found[outcome]
    ]


def duration(seconds: float) -> str:
    """A time as a person would say it.

    Examples
    --------
    >>> duration(4.2), duration(95.0), duration(1500.0), duration(9000.0)
    ('4 s', '95 s', '25 min', '2.5 h')
    """
    if seconds < 1:
        return "under 1 s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
