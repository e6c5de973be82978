"""What a recipe may write for one parameter, and the number it means for one tensor.

mergekit's three forms (Goddard et al., *Arcee's MergeKit*, arXiv:2403.13257), read by its rules:

* a scalar, the same everywhere;
* a gradient ``[a_0, ..., a_{k-1}]``: anchors spread evenly over the layers of a slice. At
  ``t in [0, 1]``, with ``s = t (k - 1)`` and ``i = floor(s)``, the value is
  ``(1 - (s - i)) a_i + (s - i) a_{i+1}``; words and switches are not blended, ``a_i`` holds;
* a list of ``{filter, value}``: the first entry whose filter is part of the tensor's name counts;
  an entry without filter, or with ``"*"``, always does; with none, the next wider scope decides.
"""

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zeitgeist.errors import InputInvalid

Scalar = bool | int | float | str
Gradient = tuple[Scalar, ...]


@dataclass(frozen=True)
class Filtered:
    """A value for the tensors whose name contains ``filter``.

    Parameters
    ----------
    value
        A scalar or a gradient.
    filter
        Part of a tensor name; none or ``"*"`` stands for every tensor.
    """

    value: Scalar | Gradient
    filter: str | None = None


Setting = Scalar | Gradient | tuple[Filtered, ...]


@dataclass(frozen=True)
class Parameter:
    """One parameter a method understands, and the values it can take.

    Parameters
    ----------
    name
        The word used in a recipe.
    kind
        ``float``, ``int``, ``bool`` or ``str``.
    low, high
        Bounds of a number.
    above
        Whether ``low`` itself is excluded.
    below
        Whether ``high`` itself is excluded.
    choices
        The words allowed, for ``str``; none: any.
    """

    name: str
    kind: type = float
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    below: bool = False
    choices: tuple[str, ...] = ()

    def range(self) -> str:
        """The allowed values in words.

        Examples
        --------
        >>> Parameter("density", low=0.0, high=1.0, above=True).range()
        'a number with 0 < density <= 1'
        >>> Parameter("election", str, choices=("plain", "weighted")).range()
        "'plain' or 'weighted'"
        """
        if self.choices:
            return " or ".join(map(repr, self.choices))
        if self.kind is not float and self.kind is not int:
            return "true or false" if self.kind is bool else "a text, in quotes"
        noun = "a whole number" if self.kind is int else "a number"
        lower = "" if self.low == -math.inf else f"{self.low:g} {'<' if self.above else '<='} "
        upper = "" if self.high == math.inf else f" {'<' if self.below else '<='} {self.high:g}"
        return f"{noun} with {lower}{self.name}{upper}" if lower or upper else noun

    def scalar(self, value: object) -> Scalar:
        """``value`` as this parameter's kind.

        YAML 1.1 reads ``1e-3`` as a word; where a number is asked for it is one.

        Raises
        ------
        InputInvalid
            Another kind of value, or one outside the range.

        Examples
        --------
        >>> Parameter("weight").scalar("1e-3")
        0.001
        """
        accepted: Scalar | None
        if self.kind is str:
            known = isinstance(value, str) and (not self.choices or value in self.choices)
            accepted = str(value) if known else None
        elif self.kind is bool:
            # Generated recipes write normalize: 1.0.
            accepted = bool(value) if value in (0, 1) else None
        else:
            accepted = self._number(value)
        if accepted is None:
            said = reprlib.repr(value)
            raise InputInvalid(f"{self.name} is {said}", mend=f"give {self.range()}")
        return accepted

    def _number(self, value: object) -> float | int | None:
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if not math.isfinite(value) or (self.kind is int and value != int(value)):
            return None
        if not (self.low < value if self.above else self.low <= value):
            return None
        if not (value < self.high if self.below else value <= self.high):
            return None
        return self.kind(value)  # type: ignore[no-any-return]  # kind is float or int here


def read_setting(parameter: Parameter, value: object) -> Setting | None:
    """What was written for ``parameter``, checked and in one of the three forms.

    Parameters
    ----------
    parameter
        The parameter the value is for.
    value
        Plain data from YAML.

    Returns
    -------
    Setting or None
        None for ``null``: nothing is set here.

    Raises
    ------
    InputInvalid
        A value of the wrong kind or outside the range, an empty list, a list that mixes numbers
        with filters. The attribute ``at`` holds the steps from ``value`` to the culprit.

    Examples
    --------
    >>> density = Parameter("density", low=0.0, high=1.0, above=True)
    >>> read_setting(density, [1, 0.5])
    (1.0, 0.5)
    >>> read_setting(density, [{"filter": "mlp", "value": 0.5}, {"value": 1}])
    (Filtered(value=0.5, filter='mlp'), Filtered(value=1.0, filter=None))
    """
    if value is None:
        return None
    if isinstance(value, Mapping):
        return (_filtered(parameter, value, ()),)
    if not isinstance(value, list | tuple):
        return _located(parameter, value, ())
    if not value:
        raise _Misplaced(f"{parameter.name} is an empty list", f"give {parameter.range()}", ())
    if any(isinstance(entry, Mapping) for entry in value):
        return tuple(_filtered(parameter, entry, (i,)) for i, entry in enumerate(value))
    return _gradient(parameter, value, ())


class _Misplaced(InputInvalid):
    def __init__(self, what: str, mend: str, at: tuple[str | int, ...]) -> None:
        super().__init__(what, mend=mend)
        self.at = at


def _located(parameter: Parameter, value: object, at: tuple[str | int, ...]) -> Scalar:
    try:
        return parameter.scalar(value)
    except InputInvalid as error:
        raise _Misplaced(error.what, error.mend, at) from None


def _gradient(parameter: Parameter, values: Sequence[Any], at: tuple[str | int, ...]) -> Gradient:
    if parameter.kind is int and len(values) > 1:
        # Between two anchors lie fractions.
        raise _Misplaced(
            f"{parameter.name} is a gradient", f"give one value, {parameter.range()}", at
        )
    return tuple(_located(parameter, value, (*at, i)) for i, value in enumerate(values))


def _filtered(parameter: Parameter, entry: object, at: tuple[str | int, ...]) -> Filtered:
    form = "write {filter: part of a tensor name, value: ...}, and {value: ...} last for the rest"
    if not isinstance(entry, Mapping):
        said = reprlib.repr(entry)
        raise _Misplaced(f"{parameter.name} mixes {said} with filters", form, at)
    for key in entry:
        if key not in ("filter", "value"):
            raise _Misplaced(f"unknown key {key!r} in {parameter.name}", form, (*at, key))
    value, name = entry.get("value"), entry.get("filter")
    if name is not None and not isinstance(name, str):
        raise _Misplaced(f"filter is {reprlib.repr(name)}", form, (*at, "filter"))
    if value is None or value == []:
        raise _Misplaced(f"{parameter.name} has a filter without a value", form, at)
    if isinstance(value, list | tuple):
        return Filtered(_gradient(parameter, value, (*at, "value")), name)
    return Filtered(_located(parameter, value, (*at, "value")), name)


def evaluate(setting: Setting, tensor: str, t: float) -> Scalar | None:
    """The value ``setting`` has for one tensor.

    Parameters
    ----------
    setting
        What the recipe says.
    tensor
        The tensor's name, which filters look into.
    t
        How deep the tensor's layer lies in its slice: 0 first layer, 1 last.

    Returns
    -------
    Scalar or None
        None where no filter fits.

    Examples
    --------
    >>> evaluate((0.0, 1.0, 0.5), "", 0.25)
    0.5
    >>> evaluate((Filtered(0.9, "mlp"), Filtered((0.0, 1.0))), "layers.3.self_attn.q_proj", 0.75)
    0.75
    >>> evaluate((Filtered(0.9, "mlp"),), "layers.3.self_attn.q_proj", 0.75) is None
    True
    """
    if not isinstance(setting, tuple):
        return setting
    for entry in setting:
        if isinstance(entry, Filtered):
            if entry.filter in (None, "*") or (tensor and str(entry.filter) in tensor):
                return evaluate(entry.value, tensor, t)
        else:
            return _interpolate([e for e in setting if not isinstance(e, Filtered)], t)
    return None


def _interpolate(anchors: Sequence[Scalar], t: float) -> Scalar:
    numbers = [a for a in anchors if isinstance(a, int | float) and not isinstance(a, bool)]
    position = t * (len(anchors) - 1)
    i = int(position)
    if len(numbers) < len(anchors):
        return anchors[i]
    fraction = position - i
    # Written as mergekit writes it, so that both give the same double.
    return (1 - fraction) * numbers[i] + fraction * numbers[min(len(numbers) - 1, i + 1)]


def always(setting: Setting) -> bool:
    """Whether ``setting`` has a value for every tensor.

    Examples
    --------
    >>> always(0.5), always((Filtered(0.5, "mlp"),)), always((Filtered(0.5, "mlp"), Filtered(1.0)))
    (True, False, True)
    """
    if not isinstance(setting, tuple):
        return True
    return any(not isinstance(e, Filtered) or e.filter in (None, "*") for e in setting)
