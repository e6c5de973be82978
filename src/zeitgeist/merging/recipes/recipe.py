"""Recipes: a YAML file that says which checkpoints to merge, how, and into what.

mergekit's format (Goddard et al., *Arcee's MergeKit: A Toolkit for Merging Large Language
Models*, arXiv:2403.13257; version 0.1.5) is read as it is, and checked before anything is opened:
every error names the file, the line and what to write instead. Keys of our own: ``compat:
mergekit`` for mergekit's defaults and arithmetic, ``lines`` for LiNeS after the merge, ``seed``
for masks, ``missing`` for tensors that not every input has. Several documents in one file run in
order; a document's ``name`` stands for its result in the documents after it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zeitgeist.errors import RecipeInvalid
from zeitgeist.merging.recipes.documents import Document, in_memory, read_documents
from zeitgeist.merging.recipes.method_parameters import ADAPTER_METHODS, experts_of, needs_base
from zeitgeist.merging.recipes.parts import Recipe, Slice, Source
from zeitgeist.merging.recipes.reader import Reader
from zeitgeist.merging.vocabulary import ModelToken

__all__ = ["Recipe", "Slice", "Source", "load_recipes", "parse_recipe"]

_At = tuple[str | int, ...]


def _check_inputs(recipe: Recipe, document: Document) -> None:
    """Refuse too few, too many or repeated inputs, and a base that is missing."""
    for module, slices in recipe.modules.items():
        prefix: _At = ("modules", module) if module else ()
        for k, part in enumerate(slices):
            sliced = part.sources[0].layer_range is not None
            at: _At = (*prefix, "slices", k, "sources") if sliced else (*prefix, "models")
            _check_repeats(recipe, part, document, at)
            _check_base(recipe, part, document, at, sliced=sliced)
            _check_count(recipe, part, document, at)


def _check_repeats(recipe: Recipe, part: Slice, document: Document, at: _At) -> None:
    seen: set[str] = set()
    for i, source in enumerate(part.sources):
        if source.model in seen:
            is_base = source.model == recipe.base_of(part)
            raise RecipeInvalid(
                f"{source.model!r}{', the base,' if is_base else ''} is listed twice",
                origin=document.where((*at, i, "model")),
                mend="list it once" + ("" if is_base else ", with the sum of the weights"),
            )
        seen.add(source.model)


def _check_base(recipe: Recipe, part: Slice, document: Document, at: _At, *, sliced: bool) -> None:
    base, need = recipe.base_of(part), needs_base(recipe.method)
    if recipe.compat and recipe.method == "slerp":
        need = "yes"
    if base is None:
        if need == "yes":
            raise RecipeInvalid(
                f"{recipe.method} needs a base, and the recipe names none",
                origin=document.where(("merge_method",)),
                mend="add base_model: with the model that the others were fine-tuned from",
            )
        return
    if need != "no" and sliced and all(source.model != base for source in part.sources):
        raise RecipeInvalid(
            f"the base {base!r} is not among the sources of this slice",
            origin=document.where(at),
            mend="list it, with the layer_range that the others are compared with",
        )


def _check_count(recipe: Recipe, part: Slice, document: Document, at: _At) -> None:
    n = len(recipe.experts(part))
    based = recipe.base_source(part) is not None
    low, high = experts_of(recipe.method, based=based)
    if low <= n and (high is None or n <= high):
        return
    bound = (
        f"at least {low}"
        if high is None
        else f"exactly {low}"
        if low == high
        else (f"{low} to {high}")
    )
    raise RecipeInvalid(
        f"{recipe.method} merges {bound} model{'s' if bound[-2:] != ' 1' else ''}"
        f"{' besides the base' if based else ''}, here are {n}",
        origin=document.where(at),
        mend="add models" if n < low else "merge them in several steps, one document each",
    )


def _check_extras(recipe: Recipe, document: Document) -> None:
    """Refuse what does not go together with the method or the models."""
    if recipe.method in ADAPTER_METHODS:
        for key in ("slices", "modules", "tokenizer", "tokenizer_source", "chat_template"):
            if document.data.get(key) is not None:
                raise RecipeInvalid(
                    f"{recipe.method} merges adapters, which have no {key}",
                    origin=document.where((key,)),
                    mend="leave it out",
                )
    known = recipe.references()
    for token, rule in (recipe.tokenizer.tokens if recipe.tokenizer else {}).items():
        model = rule.source.model if isinstance(rule.source, ModelToken) else rule.source
        if isinstance(model, str) and model not in known:
            raise RecipeInvalid(
                f"the row of {token!r} is to come from {model!r}, which is not merged here",
                origin=document.where(("tokenizer", "tokens", token, "source")),
                mend=f"use one of {', '.join(known)}",
            )
    _check_lines(recipe, document)


def _check_lines(recipe: Recipe, document: Document) -> None:
    where = document.where(("lines",) if recipe.lines else ("merge_method",))
    if recipe.lines is None:
        if recipe.method == "lines":
            raise RecipeInvalid(
                "merge_method lines has no strength", origin=where, mend="add lines: {alpha: 0.5}"
            )
        return
    if recipe.base_model is None and recipe.method not in ADAPTER_METHODS:
        raise RecipeInvalid(
            "LiNeS scales the update from a base, and the recipe names none",
            origin=where,
            mend="add base_model:",
        )
    if recipe.lines.alpha is None and all(len(recipe.experts(s)) == 1 for s in recipe.slices()):
        raise RecipeInvalid(
            "LiNeS on a single fine-tune has no alpha",
            origin=where,
            mend="give alpha between 0 (forget nothing) and 1 (change nothing)",
        )


def _read(document: Document, earlier: Sequence[str], later: Sequence[str] = ()) -> Recipe:
    recipe = Reader(document, earlier, later).recipe()
    _check_inputs(recipe, document)
    _check_extras(recipe, document)
    return recipe


def parse_recipe(
    recipe: Mapping[str, Any], *, origin: str = "recipe", earlier: Sequence[str] = ()
) -> Recipe:
    """The recipe that plain data describes.

    Parameters
    ----------
    recipe
        The same keys as in YAML.
    origin
        What errors call it.
    earlier
        Names of recipes whose results may be used as models.

    Raises
    ------
    RecipeInvalid
        The first thing that is wrong.

    Examples
    --------
    >>> models = [{"model": "./math"}, {"model": "./code", "parameters": {"weight": 0.5}}]
    >>> recipe = parse_recipe({"merge_method": "ties", "base_model": "./base", "models": models})
    >>> recipe.references()
    ('./base', './math', './code')
    """
    return _read(in_memory(recipe, origin), tuple(earlier))


def load_recipes(source: str | Path) -> list[Recipe]:
    """All recipes of a YAML file, in the order they are to be run.

    Parameters
    ----------
    source
        A path, or YAML itself: a string with a line break or a brace in it.

    Returns
    -------
    list of Recipe
        One for each document. A document's ``name`` stands for its result in later ones.

    Raises
    ------
    RecipeInvalid
        The first thing that is wrong, with its line.

    Examples
    --------
    >>> recipe, = load_recipes('''
    ... merge_method: slerp
    ... base_model: org/model
    ... models:
    ...   - model: org/other
    ... parameters:
    ...   t: [0, 1]
    ... ''')
    >>> recipe.parameter("t", t=0.25), recipe.references()
    (0.25, ('hub:org/model', 'hub:org/other'))
    >>> load_recipes("merge_method: slerp\\nmodel: []\\n")
    Traceback (most recent call last):
    ...
    zeitgeist.errors.RecipeInvalid: recipe:2: unknown key 'model'; did you mean 'models'?
    """
    is_text = isinstance(source, str) and ("\n" in source or "{" in source)
    text, origin = (str(source), "recipe") if is_text else (_file(Path(source)), str(source))
    documents = read_documents(text, origin)
    if not documents:
        raise RecipeInvalid(
            "the recipe is empty", origin=origin, mend="begin with merge_method: and models:"
        )
    names = [_name(document) for document in documents]
    for i, (name, document) in enumerate(zip(names, documents, strict=True)):
        if name is None and i < len(names) - 1:
            raise RecipeInvalid(
                "a recipe without a name is followed by others",
                origin=document.where(),
                mend="add name:, and use that name as a model below",
            )
        if name is not None and name in names[:i]:
            raise RecipeInvalid(
                f"two recipes have the name {name!r}",
                origin=document.where(("name",)),
                mend="give each its own",
            )
    return [
        _read(
            document,
            [name for name in names[:i] if name is not None],
            [name for name in names[i:] if name is not None],
        )
        for i, document in enumerate(documents)
    ]


def _name(document: Document) -> str | None:
    name = document.data.get("name") if isinstance(document.data, dict) else None
    return name if isinstance(name, str) else None


def _file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise RecipeInvalid(
            f"the recipe cannot be read: {reason}", origin=path, mend="give the path of a YAML file"
        ) from error
