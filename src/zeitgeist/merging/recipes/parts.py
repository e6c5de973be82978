"""What a recipe says once it has been read: modules made of slices, slices made of inputs.

The three ways to list inputs (``models``, ``slices``, ``modules``) become one here. A parameter
is looked for in the input's own section, then the slice, the module, the whole recipe (mergekit's
precedence, arXiv:2403.13257); the first that says something about the tensor at hand counts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from zeitgeist.merging.lines import LinesOptions
from zeitgeist.merging.recipes.method_parameters import needs_base
from zeitgeist.merging.recipes.notices import differences
from zeitgeist.merging.recipes.settings import Scalar, Setting, always, evaluate
from zeitgeist.merging.vocabulary import TokenizerRule

Parameters = Mapping[str, Setting]


@dataclass(frozen=True)
class Source:
    """One input of a slice.

    Parameters
    ----------
    model
        The model's name, as :func:`zeitgeist.merging.recipes.model_names.model_name` spells it.
    layer_range
        First layer and the one behind the last; none: all layers.
    parameters
        What is set for this input alone.
    """

    model: str
    layer_range: tuple[int, int] | None = None
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True)
class Slice:
    """Some layers of the output, and what they are made of.

    Parameters
    ----------
    sources
        The inputs as listed; the base is among them where it is listed.
    parameters
        What is set for this slice.
    base_model
        The base of this slice, where it has one of its own.
    """

    sources: tuple[Source, ...]
    parameters: Parameters = field(default_factory=dict)
    base_model: str | None = None


@dataclass(frozen=True)
class Recipe:
    """One merge, ready to be planned.

    Parameters
    ----------
    method
        The value of ``merge_method``.
    modules
        The slices of each module; the module is ``""`` where the recipe has ``models`` or
        ``slices`` at the top.
    base_model
        What task vectors are taken from, and whose configuration the output has.
    module_parameters, parameters
        What is set for a module, and for all of it.
    dtype, out_dtype
        Names of torch dtypes without ``torch.``.
    tokenizer
        Which vocabulary the output has; none: the inputs must agree and nothing is touched.
    chat_template
        ``auto``, the name of a known template, or jinja.
    compat
        ``"mergekit"``: its defaults and its arithmetic.
    lines
        LiNeS after the merge.
    seed
        For methods that drop at random.
    missing
        What to do with tensors that not every input has.
    name
        What later documents of the same file call the result.
    needs
        Names of earlier documents this one uses as inputs.
    unread
        What the recipe says that nobody reads, as sentences.
    origin, text
        The file, and this document as it was written.
    """

    method: str
    modules: Mapping[str, tuple[Slice, ...]]
    base_model: str | None = None
    module_parameters: Mapping[str, Parameters] = field(default_factory=dict)
    parameters: Parameters = field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer: TokenizerRule | None = None
    chat_template: str | None = None
    compat: Literal["mergekit"] | None = None
    lines: LinesOptions | None = None
    seed: int = 0
    missing: Literal["stop", "keep", "drop"] = "stop"
    name: str | None = None
    needs: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    origin: str = "recipe"
    text: str = ""

    def slices(self) -> Iterator[Slice]:
        """Every slice of every module, in order."""
        for slices in self.modules.values():
            yield from slices

    def references(self) -> tuple[str, ...]:
        """The distinct models, in the order they are named, the base first.

        Examples
        --------
        >>> from zeitgeist.merging.recipes.recipe import load_recipes
        >>> recipe, = load_recipes(
        ...     "{merge_method: ties, base_model: ./b, models: [{model: ./x}, {model: ./b}]}"
        ... )
        >>> recipe.references()
        ('./b', './x')
        """
        found = {} if self.base_model is None else {self.base_model: None}
        for part in self.slices():
            if part.base_model is not None:
                found[part.base_model] = None
            found.update({source.model: None for source in part.sources})
        return tuple(found)

    def parameter(
        self,
        name: str,
        *,
        module: str = "",
        slice: Slice | None = None,
        source: Source | None = None,
        tensor: str = "",
        t: float = 0.0,
    ) -> Scalar | None:
        """What the recipe says about one parameter of one tensor, or none.

        Parameters
        ----------
        name
            As in the recipe: ``density``, ``lambda``.
        module, slice, source
            Where the tensor is made, and the input the parameter is asked for; no source for a
            parameter that all inputs share.
        tensor
            The tensor's name: in the input for a parameter of an input, else in the output.
        t
            Depth of its layer in the slice, from 0 to 1.

        Examples
        --------
        >>> from zeitgeist.merging.recipes.recipe import load_recipes
        >>> recipe, = load_recipes('''
        ... merge_method: linear
        ... models:
        ...   - {model: ./x, parameters: {weight: [0, 1]}}
        ...   - {model: ./y}
        ... parameters: {weight: 0.5}
        ... ''')
        >>> part, = recipe.slices()
        >>> [recipe.parameter("weight", slice=part, source=s, t=0.25) for s in part.sources]
        [0.25, 0.5]
        """
        scopes: Sequence[Parameters] = (
            source.parameters if source is not None else {},
            slice.parameters if slice is not None else {},
            self.module_parameters.get(module, {}),
            self.parameters,
        )
        for scope in scopes:
            if name in scope:
                value = evaluate(scope[name], tensor, t)
                if value is not None:
                    return value
        return None

    def base_of(self, slice: Slice) -> str | None:
        """The base the slice's task vectors are taken from, if the recipe names one."""
        return slice.base_model or self.base_model

    def experts(self, slice: Slice) -> tuple[Source, ...]:
        """The inputs that are merged: all but the base, where the method knows a base.

        Examples
        --------
        >>> from zeitgeist.merging.recipes.recipe import load_recipes
        >>> recipe, = load_recipes(
        ...     "{merge_method: ties, base_model: ./b, models: [{model: ./b}, {model: ./x}]}"
        ... )
        >>> [source.model for part in recipe.slices() for source in recipe.experts(part)]
        ['./x']
        """
        base = self._base(slice)
        return tuple(source for source in slice.sources if source.model != base)

    def base_source(self, slice: Slice) -> Source | None:
        """The base as an input of the slice, where the method knows a base."""
        base = self._base(slice)
        listed = next((source for source in slice.sources if source.model == base), None)
        return listed or (None if base is None else Source(base))

    def _base(self, slice: Slice) -> str | None:
        return None if needs_base(self.method) == "no" else self.base_of(slice)

    def says(self, name: str) -> bool:
        """Whether the recipe gives ``name`` for every tensor of every expert."""
        return all(
            any(
                name in scope and always(scope[name])
                for scope in (
                    source.parameters,
                    part.parameters,
                    self.module_parameters.get(module, {}),
                    self.parameters,
                )
            )
            for module, slices in self.modules.items()
            for part in slices
            for source in self.experts(part)
        )

    def mentions(self, name: str) -> bool:
        """Whether ``name`` is set anywhere in the recipe."""
        scopes = [self.parameters, *self.module_parameters.values()]
        for part in self.slices():
            scopes += [part.parameters, *(source.parameters for source in part.sources)]
        return any(name in scope for scope in scopes)

    def notices(self) -> list[str]:
        """Where this recipe means something else here than to mergekit, a sentence each.

        None with ``compat: mergekit``.
        """
        if self.compat == "mergekit":
            return []
        listed = {source.model for part in self.slices() for source in part.sources}
        return differences(
            self.method,
            says=self.says,
            mentions=self.mentions,
            rescale=self.parameter("rescale") is not False,
            dtype=self.dtype,
            out_dtype=self.out_dtype,
            unlisted_base=None if self.base_model in listed else self.base_model,
        ) + list(self.unread)
