"""The shape of a recipe: which keys stand where, and what they may hold.

The keys are mergekit's (Goddard et al., *Arcee's MergeKit*, arXiv:2403.13257; read from version
0.1.5) and our own: ``compat``, ``lines``, ``seed``, ``missing``, ``name``. Parameters and names of
models are left as plain data here; what they may be depends on the method.
"""

import reprlib
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zeitgeist.errors import RecipeInvalid, did_you_mean
from zeitgeist.merging.recipes.documents import Document

DTYPES = ("bfloat16", "float16", "float32", "float64")


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelEntry(_Shape):
    """One item of ``models``."""

    model: Any
    parameters: dict[str, Any] | None = None
    layer_range: Any = None  # stands in shared recipes; mergekit does not read it


class SourceEntry(_Shape):
    """One item of ``sources``."""

    model: Any
    layer_range: Annotated[list[int], Field(min_length=2, max_length=2)]
    parameters: dict[str, Any] | None = None


class SliceEntry(_Shape):
    """One item of ``slices``."""

    sources: Annotated[list[SourceEntry], Field(min_length=1)]
    base_model: Any = None
    parameters: dict[str, Any] | None = None
    residual_weight: Any = None  # declared by mergekit, read by nothing


class ModuleEntry(_Shape):
    """One value of ``modules``."""

    models: Annotated[list[ModelEntry], Field(min_length=1)] | None = None
    slices: Annotated[list[SliceEntry], Field(min_length=1)] | None = None
    parameters: dict[str, Any] | None = None


class TokenEntry(_Shape):
    """One value of ``tokenizer.tokens``."""

    source: Any = None
    force: bool = False


class TokenizerEntry(_Shape):
    """The value of ``tokenizer``."""

    source: Any = "union"
    tokens: dict[str, TokenEntry] | None = None
    pad_to_multiple_of: Annotated[int, Field(gt=0)] | None = None


class RecipeEntry(_Shape):
    """A whole recipe."""

    merge_method: str
    base_model: Any = None
    models: Annotated[list[ModelEntry], Field(min_length=1)] | None = None
    slices: Annotated[list[SliceEntry], Field(min_length=1)] | None = None
    modules: Annotated[dict[str, ModuleEntry], Field(min_length=1)] | None = None
    parameters: dict[str, Any] | None = None
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: Any = None
    tokenizer: TokenizerEntry | None = None
    chat_template: str | None = None
    compat: Literal["mergekit"] | None = None
    lines: dict[str, Any] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    missing: Literal["stop", "keep", "drop"] = "stop"
    name: str | None = None
    out_path: Any = None  # these two stand in shared recipes; mergekit does not read them
    random_seed: Any = None


UNREAD = {
    RecipeEntry: ("out_path", "random_seed"),
    SliceEntry: ("residual_weight",),
    ModelEntry: ("layer_range",),
}

_ELSEWHERE = {
    "revision": "write it behind the model's name: model: name@revision",
    "lora": "write it behind the model's name: model: name+adapter",
    "adapter": "write it behind the model's name: model: name+adapter",
    "method": "the key is merge_method",
    "experts": "a mergekit-moe recipe assembles a mixture of experts, which is not a merge",
    "genome": "a mergekit-evolve recipe describes a search; give its merge as a recipe of its own",
    "pattern": "the key is filter",
}


def read_shape(document: Document, parameter_names: Iterable[str] = ()) -> RecipeEntry:
    """The recipe in ``document``, if its keys and their kinds are right.

    Parameters
    ----------
    document
        A YAML document.
    parameter_names
        Names that belong under ``parameters``, so that one in the wrong place is sent there.

    Raises
    ------
    RecipeInvalid
        The first thing that is wrong, at its line.
    """
    if not isinstance(document.data, dict):
        kind = "a list" if isinstance(document.data, list) else reprlib.repr(document.data)
        raise RecipeInvalid(
            f"a recipe is a mapping, this is {kind}",
            origin=document.where(),
            mend="begin with merge_method: and models: at the left margin",
        )
    try:
        return RecipeEntry.model_validate(document.data)
    except ValidationError as error:
        raise _first_error(error, document, frozenset(parameter_names)) from None


def _first_error(
    error: ValidationError, document: Document, parameter_names: frozenset[str]
) -> RecipeInvalid:
    # An unknown key is the likely cause of a missing one, so it is reported before it.
    problem = min(
        error.errors(include_url=False),
        key=lambda e: (e["type"] != "extra_forbidden", document.line(e["loc"]) or 0),
    )
    path, said = problem["loc"], reprlib.repr(problem["input"])
    key = str(path[-1])
    words = [step for step in path if isinstance(step, str)]
    match problem["type"]:
        case "extra_forbidden":
            what, mend = f"unknown key {key!r}", _unknown_key(key, path, parameter_names)
        case "missing":
            what, mend = f"{key} is missing", f"add {key}:"
        case _ if key == "[key]":
            what, mend = f"the key {said} is not a word", "put it into quotes"
        case _ if "layer_range" in words:
            what = f"layer_range is {_layer_range(document.data, path)}"
            mend = "give [first layer, layer behind the last], counted from 0"
        case "too_short":
            what, mend = f"{words[-1]} is empty", "list at least one"
        case kind:
            wanted = problem["msg"].removeprefix("Input should be ")
            what, mend = f"{words[-1]} is {said}", _KINDS.get(kind, f"give {wanted}")
    return RecipeInvalid(what, origin=document.where(path), mend=mend)


def _layer_range(data: Any, path: tuple[int | str, ...]) -> str:
    """The whole range an error about one of its items is in."""
    for step in path[: path.index("layer_range") + 1]:
        data = data[step]
    return reprlib.repr(data)


_KINDS = {
    "list_type": "give a list, each item on a line of its own after a dash",
    "dict_type": "give a mapping, key: value",
    "model_type": "give a mapping, key: value",
    "string_type": "give a word, in quotes if it looks like a number",
    "int_type": "give a whole number",
    "bool_type": "give true or false",
    "greater_than": "give a whole number above 0",
    "greater_than_equal": "give a whole number from 0",
}

_SHAPES: dict[str, type[_Shape]] = {
    "models": ModelEntry,
    "sources": SourceEntry,
    "slices": SliceEntry,
    "modules": ModuleEntry,
    "tokens": TokenEntry,
    "tokenizer": TokenizerEntry,
}


def _unknown_key(key: str, path: tuple[int | str, ...], parameter_names: frozenset[str]) -> str:
    holders = [step for step in path[:-1] if step in _SHAPES]
    shape = _SHAPES[str(holders[-1])] if holders else RecipeEntry
    if key in _ELSEWHERE:
        return _ELSEWHERE[key]
    if key in parameter_names and "parameters" in shape.model_fields:
        return "put it under parameters:"
    known = [name for name in shape.model_fields if name not in UNREAD.get(shape, ())]
    return did_you_mean(key, known)
