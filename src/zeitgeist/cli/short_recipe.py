"""A recipe given as options: what every verb of ``zeitgeist merge`` takes instead of a file."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter


@Parameter(name="*")
@dataclass(kw_only=True)
class Short:
    """The short way: what a small recipe would say."""

    method: Annotated[
        str | None, Parameter(help="Merge method, such as ties. `zeitgeist merge methods` lists.")
    ] = None
    base: Annotated[str | None, Parameter(help="Model the experts were fine-tuned from.")] = None
    expert: Annotated[
        list[str] | None, Parameter(help="A fine-tuned model or LoRA adapter; give several times.")
    ] = None
    weight: Annotated[
        list[float] | None, Parameter(help="Weight of each expert, in their order.")
    ] = None
    density: Annotated[float | None, Parameter(help="Share of each update that is kept.")] = None
    lambda_: Annotated[
        float | None, Parameter(name="--lambda", help="Scale of the merged update.")
    ] = None
    option: Annotated[
        list[str] | None, Parameter(help="Any other option of the method, as name=value.")
    ] = None
    lines_alpha: Annotated[
        float | None, Parameter(help="LiNeS afterwards: scale of the first block.")
    ] = None
    lines_beta: Annotated[
        float | None, Parameter(help="LiNeS afterwards: what is added over the depth.")
    ] = None
    lines: Annotated[bool, Parameter(help="LiNeS afterwards, alpha by the paper's rule.")] = False
    tokenizer: Annotated[
        str | None, Parameter(help="Vocabulary of the result: union, base, or a model.")
    ] = None
    dtype: Annotated[str | None, Parameter(help="Dtype of the result, such as bfloat16.")] = None
    compat: Annotated[
        str | None, Parameter(help="mergekit: its defaults and its exact numbers.")
    ] = None
    seed: Annotated[int | None, Parameter(help="Seed of random masks.")] = None

    def document(self) -> dict[str, Any]:
        """The recipe these options stand for."""
        from zeitgeist.errors import InputInvalid

        experts = self.expert or []
        if self.method is None or not experts:
            raise InputInvalid(
                "there is neither a recipe nor a method with experts",
                mend="give a recipe file, or --method, --base and --expert",
            )
        weights = self.weight or []
        if weights and len(weights) != len(experts):
            raise InputInvalid(
                f"there are {len(weights)} weights for {len(experts)} experts",
                mend="give one --weight for each --expert, in their order",
            )
        models: list[dict[str, Any]] = [{"model": expert} for expert in experts]
        for model, weight in zip(models, weights, strict=False):
            model["parameters"] = {"weight": weight}
        parameters: dict[str, Any] = {"density": self.density, "lambda": self.lambda_}
        parameters |= dict(_named_value(text) for text in self.option or [])
        strengths = {"alpha": self.lines_alpha, "beta": self.lines_beta}
        document = {
            "merge_method": self.method,
            "base_model": self.base,
            "models": models,
            "parameters": _given(parameters),
            "tokenizer": {"source": self.tokenizer} if self.tokenizer else None,
            "out_dtype": self.dtype,
            "compat": self.compat,
            "seed": self.seed,
            "lines": _given(strengths) if self.lines or _given(strengths) else None,
        }
        return {key: value for key, value in document.items() if value not in (None, {})} | (
            {"lines": {}} if self.lines and not _given(strengths) else {}
        )


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _named_value(text: str) -> tuple[str, Any]:
    import yaml

    from zeitgeist.errors import InputInvalid

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputInvalid(f"--option is {text!r}", mend="write name=value")
    try:
        return name.replace("-", "_"), yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputInvalid(
            f"--option {text!r} has a value that cannot be read", mend="write name=value"
        ) from None


def recipe_of(recipe: Path | None, short: Short | None) -> Any:
    """The recipe a person meant: a file, or the options that stand for a small one."""
    from zeitgeist.errors import InputInvalid

    short = short or Short()
    if recipe is None:
        return short.document()
    if short != Short():
        given = {name: value for name, value in asdict(short).items() if value}
        extra = ", ".join("--" + name.rstrip("_").replace("_", "-") for name in given)
        raise InputInvalid(
            f"{recipe} is a whole recipe, and {extra} came beside it",
            mend="write them into the recipe, or leave the recipe out",
        )
    if not recipe.is_file():
        raise InputInvalid(f"there is no recipe {str(recipe)!r}", mend="give a YAML file")
    return recipe
