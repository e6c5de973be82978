"""Scoring merges in a live model: sweeps that find the best and write it alone, greedy soups."""

import itertools
import math
import sys

import pytest
import torch
from safetensors.torch import load_file

from zeitgeist.errors import CheckpointInvalid, InputInvalid, OutputExists, RecipeInvalid
from zeitgeist.merging import merge, parse_recipe, soup, sweep
from zeitgeist.merging.live import LiveModel, load_metric

UP = "model.layers.1.mlp.up_proj.weight"


def weights_of(path):
    return {
        name: tensor
        for file in sorted(path.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def recipe_of(family, method="task_arithmetic", **more):
    models = [{"model": str(x)} for x in family.experts]
    return {"merge_method": method, "base_model": str(family.base), "models": models} | more


def distance(one, other):
    return sum((one[n].double() - t.double()).square().sum().item() for n, t in other.items())


def towards(target):
    """A metric: minus the squared distance of a loaded model from some weights."""

    def metric(model, tokenizer):
        state = model.state_dict()
        return -sum(
            (state[n].double() - t.double()).square().sum().item() for n, t in target.items()
        )

    return metric


def run(recipe, grid, metric, out=None, **options):
    return sweep(recipe, grid, metric, out, progress=False, **{"threads": 1} | options)


# A model that changes -------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ties", "dare_linear", "linear", "slerp"])
def test_the_live_model_has_the_weights_that_would_be_written(method, tiny_family, tmp_path):
    recipe = recipe_of(tiny_family, method)
    if method == "slerp":
        recipe["models"] = recipe["models"][:1]
    out = merge(recipe, tmp_path / "out", threads=1, progress=False).out
    read = parse_recipe(recipe)
    with LiveModel(read, threads=2, progress=False) as live:
        live.become(read)
        state = live.model.state_dict()
    for name, tensor in weights_of(out).items():
        assert torch.equal(state[name], tensor), name


def test_one_live_model_becomes_one_merge_after_another(tiny_family):
    recipes = [
        parse_recipe(recipe_of(tiny_family, "ties", parameters={"density": d})) for d in (0.1, 0.6)
    ]
    seen = []
    with LiveModel(recipes[0], threads=1, progress=False) as live:
        for recipe in (*recipes, recipes[0]):
            live.become(recipe)
            seen.append(live.model.state_dict()[UP].clone())
    assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[1])


def test_a_merge_without_a_place_in_the_model_is_refused(tiny_family, save_llama, tmp_path):
    sources = [{"model": str(tiny_family.base), "layer_range": [0, 2]}]
    stacked = {"merge_method": "passthrough", "slices": [{"sources": sources}] * 2}
    tied = save_llama(tmp_path / "tied", tied=True)
    untied = {
        "merge_method": "ties",
        "base_model": str(tied),
        "models": [{"model": str(tiny_family.experts[0])}],
    }
    for recipe, name in ((stacked, r"model\.layers\.2"), (untied, "lm_head")):
        with pytest.raises(RecipeInvalid, match=rf"{name}.*no place"):
            LiveModel(parse_recipe(recipe), threads=1, progress=False)


# Sweeps ---------------------------------------------------------------------------------------


def test_the_best_cell_is_the_best_and_only_that_is_written(family32, tmp_path, monkeypatch):
    target = merge(
        recipe_of(family32, "ties", parameters={"density": 0.5, "lambda": 0.75}),
        tmp_path / "target",
        threads=1,
        progress=False,
    ).out
    metric = towards(weights_of(target))
    grid = {"density": [0.25, 0.5, 1.0], "lambda": [0.5, 0.75, 1.0]}
    report = run(recipe_of(family32, "ties"), grid, metric, tmp_path / "home" / "best")
    values = [tuple(cell.values.values()) for cell in report.cells]
    assert values == list(itertools.product(*grid.values()))
    assert report.best.values == {"density": 0.5, "lambda": 0.75}
    assert report.best.score == max(cell.score for cell in report.cells) == 0
    got, want = weights_of(report.written.out), weights_of(target)
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["best"]


def test_base_and_experts_are_scored_beside_it(family32):
    metric = towards(weights_of(family32.experts[1]))
    report = run(recipe_of(family32), {"lambda": [0.5]}, metric)
    assert set(report.experts) == set(map(str, family32.experts))
    assert report.experts[str(family32.experts[1])] == 0
    own = -distance(weights_of(family32.base), weights_of(family32.experts[1]))
    assert report.base == pytest.approx(own, rel=1e-9)
    assert report.written is None


def test_lines_can_be_swept(family32):
    target = weights_of(family32.experts[0])
    recipe = recipe_of(family32, lines={"alpha": 0.5}, parameters={"lambda": 1.0})
    recipe["models"] = recipe["models"][:1]
    report = run(recipe, {"alpha": [0.0, 1.0], "beta": [-0.5, 0.0]}, towards(target))
    assert report.best.values == {"alpha": 1.0, "beta": 0.0}
    assert report.best.score == 0


def test_adapters_are_swept_on_their_base(family32, save_lora, tmp_path):
    loras = [save_lora(tmp_path / f"lora-{i}", i) for i in (1, 2)]
    recipe = recipe_of(family32)
    recipe["models"] = [{"model": str(lora)} for lora in loras]
    report = run(recipe, {"lambda": [0.0, 0.5]}, towards(weights_of(family32.base)))
    assert report.best.values == {"lambda": 0.0} and report.best.score == 0
    assert all(score < 0 for score in report.experts.values())


def count_calls(score=1.0):
    calls = []

    def metric(model, tokenizer):
        calls.append(tokenizer)
        return score(len(calls)) if callable(score) else score

    return metric, calls


@pytest.mark.parametrize(
    ("change", "grid", "what"),
    [
        ({}, {"density": [0.5]}, "task_arithmetic has no parameter 'density'"),
        ({}, {"alpha": [0.5]}, "belong to LiNeS"),
        ({}, {}, "the grid is {}"),
        ({}, {"lambda": []}, "the grid is"),
        ({"merge_method": "ties"}, {"density": [0.5, 1.5]}, r"density is 1\.5"),
        ({"merge_method": "ties"}, {"density": [0.5, math.nan]}, "density is nan"),
        ({"merge_method": "consensus"}, {"k": [1.5]}, r"k is 1\.5"),
    ],
)
def test_a_grid_that_cannot_be_is_refused_before_anything_is_scored(change, grid, what, family32):
    metric, calls = count_calls()
    with pytest.raises(InputInvalid, match=what):
        run(recipe_of(family32) | change, grid, metric)
    assert calls == []


@pytest.mark.parametrize("scope", ["models", "slices", "modules"])
def test_a_parameter_that_the_recipe_sets_more_narrowly_cannot_be_swept(scope, family32):
    one, two = (str(x) for x in (family32.base, family32.experts[0]))
    told = {"parameters": {"weight": 0.5}}
    ranges = {"layer_range": [0, 2]}
    recipe = {
        "models": {"models": [{"model": one}, {"model": two} | told]},
        "slices": {
            "slices": [{"sources": [{"model": one} | ranges, {"model": two} | ranges]} | told]
        },
        "modules": {"modules": {"model": {"models": [{"model": one}, {"model": two}]} | told}},
    }[scope]
    metric, _ = count_calls()
    with pytest.raises(InputInvalid, match=r"sets 'weight' for single models, slices or modules"):
        run({"merge_method": "linear"} | recipe, {"weight": [0.5, 1.0]}, metric)


def test_whole_number_parameters_may_be_swept(family32):
    metric, _ = count_calls(lambda call: -call)
    report = run(recipe_of(family32, "consensus"), {"k": [1.0, 2.0]}, metric)
    assert report.best.values == {"k": 1.0}


def test_a_cell_that_is_nan_is_never_the_best(family32):
    # base and three experts are scored before the cells
    metric, _ = count_calls(lambda call: {5: math.nan, 7: 2.0}.get(call, 1.0))
    report = run(recipe_of(family32), {"lambda": [0.1, 0.2, 0.3]}, metric)
    assert math.isnan(report.cells[0].score)
    assert report.best.values == {"lambda": 0.3}


def test_a_metric_that_is_always_nan_is_refused(family32, tmp_path):
    metric, _ = count_calls(math.nan)
    with pytest.raises(InputInvalid, match="NaN for every value"):
        run(recipe_of(family32), {"lambda": [0.1, 0.2]}, metric, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_outputs_are_looked_at_before_anything_is_scored(family32, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "config.json").write_text("{}")
    metric, calls = count_calls()
    for out, error in (
        (tmp_path / "there", OutputExists),
        (family32.experts[0] / "best", InputInvalid),
    ):
        with pytest.raises(error):
            run(recipe_of(family32), {"lambda": [0.1]}, metric, out)
        with pytest.raises(error):
            soup(family32.experts, metric, out, progress=False)
    assert calls == []


def test_adapter_methods_and_several_documents_are_refused(family32, save_lora, tmp_path):
    metric, _ = count_calls()
    lora = save_lora(tmp_path / "lora", 1, base=family32.base)
    knots = {"merge_method": "knots_ties", "models": [{"model": str(lora)}]}
    with pytest.raises(RecipeInvalid, match="makes an adapter"):
        run(knots, {"density": [0.5]}, metric)
    several = tmp_path / "several.yaml"
    one = f"merge_method: linear\nmodels: [{{model: {family32.base}}}]\n"
    several.write_text(f"name: a\n{one}---\n{one}")
    with pytest.raises(RecipeInvalid, match="one recipe"):
        run(several, {"weight": [0.5]}, metric)


def test_a_model_that_transformers_cannot_load_is_named(family32, rewrite, tmp_path):
    odd = rewrite(family32.base, tmp_path / "odd", model_type="no-such-type")
    recipe = {"merge_method": "linear", "models": [{"model": str(odd)}]}
    metric, _ = count_calls()
    with pytest.raises(CheckpointInvalid, match=f"{odd}: transformers cannot load"):
        run(recipe, {"weight": [1.0]}, metric)


# Metrics --------------------------------------------------------------------------------------


def test_a_text_is_scored_by_its_perplexity(family32, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = tmp_path / "held-out.txt"
    text.write_text("the cat sat on the mat and the dog ran to the red cat")
    report = run(recipe_of(family32), {"lambda": [0.5]}, text)
    model = AutoModelForCausalLM.from_pretrained(family32.base)
    ids = AutoTokenizer.from_pretrained(family32.base)(text.read_text(), return_tensors="pt")
    with torch.no_grad():
        logits = model(**ids).logits[0, :-1].double()
    loss = torch.nn.functional.cross_entropy(logits, ids.input_ids[0, 1:])
    assert report.base == pytest.approx(-math.exp(loss.item()), rel=1e-5)


def test_a_long_text_is_scored_in_windows_that_count_by_length(tiny_llama, tmp_path, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from zeitgeist.merging import live

    monkeypatch.setattr(live, "_WINDOW", 6)
    text = tmp_path / "held-out.txt"
    text.write_text("the cat sat on the mat and the dog ran to")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    ids = tokenizer(text.read_text(), return_tensors="pt").input_ids[0]
    assert len(ids) > 6 and len(ids) % 6 > 1
    total = count = 0
    with torch.no_grad():
        for window in ids.split(6):
            logits = model(window[None]).logits[0, :-1].float()
            total += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
            count += len(window) - 1
        score = load_metric(text)(model, tokenizer)
    assert score == pytest.approx(-math.exp(total / count), rel=1e-2)


def test_perplexity_beyond_all_numbers_is_the_worst(tmp_path):
    from types import SimpleNamespace

    text = tmp_path / "t.txt"
    text.write_text("any")
    ids = SimpleNamespace(input_ids=torch.tensor([[1, 2, 3]]))
    broken = load_metric(text)(
        lambda **_: SimpleNamespace(loss=torch.tensor(1e4)), lambda *_, **__: ids
    )
    assert broken == -math.inf


def test_a_text_that_cannot_be_scored_is_refused(family32, rewrite, tmp_path):
    empty, short = tmp_path / "empty.txt", tmp_path / "short.txt"
    empty.write_text(" \n")
    short.write_text("t")
    with pytest.raises(InputInvalid, match=f"{empty}: the text is empty"):
        load_metric(empty)
    with pytest.raises(InputInvalid, match="single token"):
        run(recipe_of(family32), {"lambda": [0.5]}, short)
    base = rewrite(family32.base, tmp_path / "base")
    for file in base.glob("tokenizer*"):
        file.unlink()
    short.write_text("the cat")
    recipe = {"merge_method": "linear", "models": [{"model": str(base)}]}
    with pytest.raises(InputInvalid, match="no tokenizer"):
        run(recipe, {"weight": [0.5]}, short)
    # a metric of one's own may do without
    metric, calls = count_calls()
    run(recipe, {"weight": [0.5]}, metric)
    assert calls == [None, None]


def test_a_function_is_found_by_name_also_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "my_own_metric.py").write_text("def score(model, tokenizer): return 4.0\nx = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_own_metric", raising=False)
    paths = list(sys.path)
    assert load_metric("my_own_metric:score")(None, None) == 4.0
    assert sys.path == paths
    with pytest.raises(InputInvalid, match="x is no function"):
        load_metric("my_own_metric:x")


@pytest.mark.parametrize(
    "name", ["no_such_module:f", "math:no_such_function", "math", "", "nothere.txt", ".x:f", ":f"]
)
def test_a_metric_that_is_not_there_is_refused(name):
    with pytest.raises(InputInvalid, match="neither a text file nor module:function"):
        load_metric(name)


# Soups ----------------------------------------------------------------------------------------


def test_a_greedy_soup_takes_whom_it_gains_by(family32, rewrite, tmp_path):
    one, two, three = family32.experts
    between = {
        name: (tensor + weights_of(two)[name]) / 2 for name, tensor in weights_of(one).items()
    }
    chosen, report = soup(
        [three, two, one], towards(between), tmp_path / "out", threads=1, progress=False
    )
    assert set(chosen.members) == {1, 2}
    assert chosen.score == pytest.approx(0, abs=1e-9)
    got = weights_of(report.out)
    for name, tensor in between.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-6, atol=1e-8)


def test_a_tie_enters_the_soup_unless_it_must_gain(family32, tmp_path):
    for strict, members in ((False, (0, 1, 2)), (True, (0,))):
        metric, _ = count_calls()
        chosen, _ = soup(
            family32.experts, metric, tmp_path / f"{strict}", strict=strict, threads=1,
            progress=False,
        )  # fmt: skip
        assert chosen.members == members


def test_adapters_can_be_souped(family32, save_lora, tmp_path):
    loras = [save_lora(tmp_path / f"lora-{i}", i) for i in (1, 2)]
    metric, _ = count_calls()
    _, report = soup(loras, metric, tmp_path / "out", base=family32.base, threads=1, progress=False)
    by_hand = {
        "merge_method": "linear",
        "base_model": str(family32.base),
        "models": [{"model": str(lora)} for lora in loras],
    }
    want = weights_of(merge(by_hand, tmp_path / "want", threads=1, progress=False).out)
    got = weights_of(report.out)
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_an_empty_soup_is_refused(tmp_path):
    metric, _ = count_calls()
    with pytest.raises(RecipeInvalid, match="at least one"):
        soup([], metric, tmp_path / "out", progress=False)
