"""Recipes: a YAML file that says which checkpoints to merge, how, and into what.

mergekit's format (Goddard et al., *Arcee's MergeKit: A Toolkit for Merging Large Language
Models*, arXiv:2403.13257) is read as it is, and checked before anything is opened: every error
names the file, the line and what to write instead. Keys of our own: ``compat: mergekit`` for
mergekit's defaults and arithmetic, ``lines`` for LiNeS after the merge, ``seed``, ``missing``.

A parameter is looked for in the input's own section, then the slice, the module, the whole
recipe; the first that says something about the tensor at hand counts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from zeitgeist.errors import RecipeInvalid
from zeitgeist.merging.documents import Document, in_memory, read_documents
from zeitgeist.merging.lines import LinesOptions
from zeitgeist.merging.settings import Scalar, Setting, evaluate
from zeitgeist.merging.vocabulary import TokenizerRule

Parameters = Mapping[str, Setting]
NOTHING: Parameters = MappingProxyType({})


@dataclass(frozen=True)
class Source:
    """One input of a slice.

    Parameters
    ----------
    model
        The model's name, as :func:`zeitgeist.merging.model_names.model_name` spells it.
    layer_range
        First layer and the one behind the last; none: all layers.
    parameters
        What is set for this input alone.
    """

    model: str
    layer_range: tuple[int, int] | None = None
    parameters: Parameters = NOTHING


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
    parameters: Parameters = NOTHING
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
    parameters: Parameters = NOTHING
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
            source.parameters if source is not None else NOTHING,
            slice.parameters if slice is not None else NOTHING,
            self.module_parameters.get(module, NOTHING),
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
        """The inputs that are merged: all but the base, where the method knows a base."""
        raise NotImplementedError

    def base_source(self, slice: Slice) -> Source | None:
        """The base as an input of the slice, where the method knows a base."""
        raise NotImplementedError

    def notices(self) -> list[str]:
        """Where this recipe means something else here than to mergekit, a sentence each."""
        raise NotImplementedError


def load_recipes(source: str | Path) -> list[Recipe]:
    """All recipes of a YAML file, in the order they are to be run.

    Parameters
    ----------
    source
        A path, or YAML itself: a string with a line break or a brace in it.

    Raises
    ------
    RecipeInvalid
        The first thing that is wrong, with its line.
    """
    raise NotImplementedError


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
    """
    raise NotImplementedError


_ = (RecipeInvalid, Document, in_memory, read_documents)
