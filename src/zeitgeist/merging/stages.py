"""Recipes that run in order: where the results of all but the last lie, and who reads them."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from zeitgeist.merging.recipes.model_names import split_adapter
from zeitgeist.merging.recipes.recipe import Recipe
from zeitgeist.merging.vocabulary import ModelToken, TokenizerRule, TokenRule


@contextmanager
def intermediate(recipes: Sequence[Recipe], out: Path) -> Iterator[dict[str, Path]]:
    """A place for the results of all documents but the last, gone afterwards."""
    if len(recipes) == 1:
        yield {}
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.stages.") as folder:
        yield {r.name or "": Path(folder) / f"stage{i}" for i, r in enumerate(recipes[:-1])}


def with_places(recipe: Recipe, places: Mapping[str, Path]) -> Recipe:
    """The recipe with the names of earlier documents replaced by where their results lie."""

    def at(reference: str | None) -> str | None:
        if reference is None:
            return None
        name, adapter = split_adapter(reference)
        placed = str(places[name]) if name in places else name
        return f"{placed}+{adapter}" if adapter else placed

    if not places:
        return recipe
    return replace(
        recipe,
        tokenizer=recipe.tokenizer and _placed_tokens(recipe.tokenizer, at),
        base_model=at(recipe.base_model),
        modules={
            module: tuple(
                replace(
                    part,
                    base_model=at(part.base_model),
                    sources=tuple(replace(s, model=at(s.model) or "") for s in part.sources),
                )
                for part in slices
            )
            for module, slices in recipe.modules.items()
        },
    )


def _placed_tokens(rule: TokenizerRule, at: Callable[[str | None], str | None]) -> TokenizerRule:
    def token(one: TokenRule) -> TokenRule:
        if isinstance(one.source, ModelToken):
            return replace(one, source=replace(one.source, model=at(one.source.model) or ""))
        return replace(one, source=at(one.source)) if isinstance(one.source, str) else one

    tokens = {text: token(one) for text, one in rule.tokens.items()}
    return replace(rule, source=at(rule.source) or "", tokens=tokens)
