"""From a YAML document to a recipe: every value read, checked on its own, and in one form."""

import reprlib
import typing
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, TypeVar

from zeitgeist.errors import InputInvalid, RecipeInvalid, did_you_mean
from zeitgeist.merging.chat_templates import check_chat_template
from zeitgeist.merging.lines import LinesOptions
from zeitgeist.merging.methods import MERGEKIT, METHODS
from zeitgeist.merging.recipes.documents import Document
from zeitgeist.merging.recipes.method_parameters import (
    ADAPTER_METHODS,
    INT8_MASK,
    NOT_HERE,
    all_parameters,
    parameter_of,
    parameters_of,
    per_model,
)
from zeitgeist.merging.recipes.model_names import model_name, split_adapter
from zeitgeist.merging.recipes.parts import Parameters, Recipe, Slice, Source
from zeitgeist.merging.recipes.schema import (
    DTYPES,
    UNREAD,
    ModelEntry,
    RecipeEntry,
    SliceEntry,
    TokenizerEntry,
    read_shape,
)
from zeitgeist.merging.recipes.settings import Setting, read_setting
from zeitgeist.merging.vocabulary import ModelToken, TokenizerRule, TokenRule, ZeroRow

_At = tuple[str | int, ...]
_T = TypeVar("_T")


class Reader:
    """Turns one document into a recipe; knows where everything stands, for errors.

    Parameters
    ----------
    document
        One YAML document.
    earlier, later
        Names of the recipes before and after it in the same file.
    """

    def __init__(
        self, document: Document, earlier: Collection[str] = (), later: Collection[str] = ()
    ) -> None:
        self.document, self.earlier, self.later = document, earlier, later
        self.entry = read_shape(document, all_parameters())
        self.needs: dict[str, None] = {}
        self.unread: list[str] = []
        self.method = self._method(self.entry.merge_method)

    def fail(self, what: str, at: _At, mend: str) -> RecipeInvalid:
        return RecipeInvalid(what, origin=self.document.where(at), mend=mend)

    def checked(self, at: _At, read: Callable[[], _T]) -> _T:
        """Run ``read``; an error in it is one about the value at ``at``."""
        try:
            return read()
        except InputInvalid as error:
            inner: _At = getattr(error, "at", ())
            raise self.fail(error.what, (*at, *inner), error.mend) from None

    def recipe(self) -> Recipe:
        entry = self.entry
        self.note_unread(entry, ())
        base = self.model_or_none(entry.base_model, ("base_model",))
        return Recipe(
            method=self.method,
            modules=self.modules(base),
            base_model=base,
            module_parameters={
                name: self.parameters(module.parameters, ("modules", name, "parameters"))
                for name, module in (entry.modules or {}).items()
            },
            parameters=self.parameters(entry.parameters, ("parameters",)),
            dtype=self.dtype(entry.dtype, "dtype"),
            out_dtype=self.dtype(entry.out_dtype, "out_dtype"),
            tokenizer=self.tokenizer(),
            chat_template=self.checked(
                ("chat_template",), lambda: check_chat_template(entry.chat_template)
            ),
            compat=entry.compat,
            lines=self.lines(entry.lines),
            seed=entry.seed,
            missing=entry.missing,
            name=self.name(entry.name),
            needs=tuple(self.needs),
            unread=tuple(self.unread),
            origin=self.document.origin,
            text=self.document.text,
        )

    def _method(self, method: str) -> str:
        at = ("merge_method",)
        if method in NOT_HERE:
            known = ", ".join([*METHODS, *ADAPTER_METHODS])
            raise self.fail(f"mergekit's {method} has no counterpart here", at, f"use {known}")
        if method not in METHODS and method not in ADAPTER_METHODS:
            mend = did_you_mean(method, [*METHODS, *ADAPTER_METHODS])
            raise self.fail(f"there is no merge method {method!r}", at, mend)
        if self.entry.compat and method not in MERGEKIT:
            raise self.fail(
                f"mergekit has no method {method!r}", ("compat",), "leave out compat: mergekit"
            )
        return method

    def note_unread(self, entry: RecipeEntry | SliceEntry | ModelEntry, at: _At) -> None:
        for key in UNREAD[type(entry)]:
            if getattr(entry, key) is not None:
                instead = "; write seed:" if key == "random_seed" else ""
                self.unread.append(
                    f"{self.document.where((*at, key))}: {key} has no effect, nor has "
                    f"it in mergekit{instead}"
                )

    def model(self, value: object, at: _At) -> str:
        if isinstance(value, str) and value in self.earlier:
            self.needs[value] = None
            return value
        if isinstance(value, str) and value in self.later:
            raise self.fail(
                f"{value!r} is the name of a recipe that has not run yet",
                at,
                "put the recipe that makes it before this one",
            )
        name = self.checked(at, lambda: model_name(value))
        reference, adapter = split_adapter(name)
        if adapter is not None and reference in self.earlier:
            self.needs[reference] = None
        return name

    def model_or_none(self, value: object, at: _At) -> str | None:
        return None if value is None else self.model(value, at)

    def modules(self, base: str | None) -> dict[str, tuple[Slice, ...]]:
        entry = self.entry
        given = [key for key in ("models", "slices", "modules") if getattr(entry, key) is not None]
        if not given:
            raise self.fail("there is nothing to merge", (), "add models: with a list of models")
        if len(given) > 1:
            raise self.fail(
                f"{given[0]} and {given[1]} stand side by side", (given[1],), "keep one of them"
            )
        if entry.modules is None:
            return {"": self.slices(entry.models, entry.slices, (), base)}
        found = {}
        for name, module in entry.modules.items():
            at = ("modules", name)
            if (module.models is None) == (module.slices is None):
                raise self.fail(
                    f"the module {name!r} needs either models or slices", at, "give one of them"
                )
            found[name] = self.slices(module.models, module.slices, at, base)
        return found

    def slices(
        self,
        models: list[ModelEntry] | None,
        slices: list[SliceEntry] | None,
        at: _At,
        base: str | None,
    ) -> tuple[Slice, ...]:
        if models is not None:
            sources = []
            for i, entry in enumerate(models):
                here: _At = (*at, "models", i)
                self.note_unread(entry, here)
                sources.append(self.source(entry.model, None, entry.parameters, here))
            if self.entry.compat and base is not None and all(s.model != base for s in sources):
                sources.append(Source(base))  # as mergekit does, for every method
            return (Slice(tuple(sources)),)
        return tuple(self.slice(entry, (*at, "slices", i)) for i, entry in enumerate(slices or ()))

    def slice(self, entry: SliceEntry, at: _At) -> Slice:
        self.note_unread(entry, at)
        sources = []
        for i, source in enumerate(entry.sources):
            here: _At = (*at, "sources", i)
            first, behind = source.layer_range
            if not 0 <= first < behind:
                raise self.fail(
                    f"layer_range is [{first}, {behind}]",
                    (*here, "layer_range"),
                    "give [first layer, layer behind the last], counted from 0",
                )
            sources.append(self.source(source.model, (first, behind), source.parameters, here))
            length = entry.sources[0].layer_range[1] - entry.sources[0].layer_range[0]
            if behind - first != length:
                raise self.fail(
                    f"layer_range [{first}, {behind}] holds {behind - first} layers, that of the "
                    f"first source {length}",
                    (*here, "layer_range"),
                    "give all sources of a slice the same number of layers",
                )
        return Slice(
            tuple(sources),
            self.parameters(entry.parameters, (*at, "parameters")),
            self.model_or_none(entry.base_model, (*at, "base_model")),
        )

    def source(
        self,
        model: object,
        layers: tuple[int, int] | None,
        parameters: dict[str, Any] | None,
        at: _At,
    ) -> Source:
        return Source(
            self.model(model, (*at, "model")),
            layers,
            self.parameters(parameters, (*at, "parameters"), of_input=True),
        )

    def parameters(
        self, given: Mapping[str, Any] | None, at: _At, *, of_input: bool = False
    ) -> Parameters:
        known = parameters_of(self.method, self.entry.compat)
        found: dict[str, Setting] = {}
        for word, value in (given or {}).items():
            here = (*at, word)
            parameter = INT8_MASK if word == INT8_MASK.name else known.get(word)
            if parameter is None:
                if word not in all_parameters():
                    mend = did_you_mean(word, known)
                    raise self.fail(f"{self.method} has no parameter {word!r}", here, mend)
                self.unread.append(
                    f"{self.document.where(here)}: {word} has no effect on {self.method}"
                )
                continue
            setting = self.checked(here, partial(read_setting, parameter, value))
            if isinstance(setting, tuple) and self.method in ADAPTER_METHODS:
                raise self.fail(
                    f"{word} changes from layer to layer, but {self.method} merges all of them "
                    "together",
                    here,
                    f"give one value, {parameter.range()}",
                )
            if of_input and word not in per_model(self.method):
                self.unread.append(
                    f"{self.document.where(here)}: {word} is one value for all inputs and has no "
                    "effect on one alone; put it under the parameters of the recipe"
                )
            elif setting is not None:
                found[word] = setting
        return found

    def dtype(self, value: str | None, key: str) -> str | None:
        name = None if value is None else value.removeprefix("torch.")
        if name is not None and name not in DTYPES:
            raise self.fail(f"{key} is {value!r}", (key,), did_you_mean(name, DTYPES))
        return name

    def name(self, value: str | None) -> str | None:
        if value is not None and (not value.strip() or "+" in value or "@" in value):
            raise self.fail(f"name is {value!r}", ("name",), "give a word without + and @")
        return value

    def lines(self, given: dict[str, Any] | None) -> LinesOptions | None:
        if given is None:
            return None
        hints = typing.get_type_hints(LinesOptions)
        values: dict[str, Any] = {}
        for key, value in given.items():
            at: _At = ("lines", key)
            if key not in hints:
                raise self.fail(f"LiNeS has no option {key!r}", at, did_you_mean(key, hints))
            if value is not None:
                option = parameter_of(key, hints[key])
                values[key] = self.checked(at, partial(option.scalar, value))
        return self.checked(("lines",), lambda: LinesOptions(**values))

    def tokenizer(self) -> TokenizerRule | None:
        entry = self.entry
        if entry.tokenizer_source is not None and entry.tokenizer is not None:
            raise self.fail(
                "tokenizer and tokenizer_source stand side by side",
                ("tokenizer_source",),
                "keep tokenizer, with the source in it",
            )
        if entry.tokenizer_source is not None:
            at: _At = ("tokenizer_source",)
            return TokenizerRule(self.tokenizer_from(entry.tokenizer_source, at))
        if entry.tokenizer is None:
            return None
        return self.tokenizer_rule(entry.tokenizer)

    def tokenizer_from(self, value: object, at: _At) -> str:
        if isinstance(value, str) and value in ("union", "base"):
            return value
        return self.model(value, at)

    def tokenizer_rule(self, entry: TokenizerEntry) -> TokenizerRule:
        tokens = {}
        for token, rule in (entry.tokens or {}).items():
            at: _At = ("tokenizer", "tokens", token, "source")
            tokens[token] = TokenRule(self.token_source(rule.source, at), rule.force)
        return TokenizerRule(
            self.tokenizer_from(entry.source, ("tokenizer", "source")),
            tokens,
            entry.pad_to_multiple_of,
        )

    def token_source(self, value: object, at: _At) -> str | ZeroRow | ModelToken | None:
        if not isinstance(value, Mapping) or "kind" not in value:
            return self.model_or_none(value, at)
        if value == {"kind": "zero"}:
            return ZeroRow()
        form = "write {kind: zero} or {kind: model_token, model: name, token: text (or token_id)}"
        token, number = value.get("token"), value.get("token_id")
        if (
            value["kind"] != "model_token"
            or "model" not in value
            or (token is None) == (number is None)
            or not isinstance(token, str | None)
            or not isinstance(number, int | None)
            or set(value) - {"kind", "model", "token", "token_id"}
        ):
            raise self.fail(f"source is {reprlib.repr(dict(value))}", at, form)
        return ModelToken(self.model(value["model"], (*at, "model")), token, number)
