"""From a recipe to tensors: layers stacked, values per layer, and models that do not fit."""

import json

import pytest
import torch
from safetensors.torch import load_file

from zeitgeist.errors import CheckpointInvalid, InputInvalid, RecipeInvalid
from zeitgeist.merging import merge, merge_tensors, parse_recipe
from zeitgeist.merging.inputs import close_models
from zeitgeist.merging.methods import METHODS
from zeitgeist.merging.to_disk import plan_recipe

PROJECTIONS = ("self_attn.q_proj", "mlp.up_proj")


def weights_of(path):
    return {
        name: tensor
        for file in sorted(path.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def run(recipe, out):
    return merge(recipe, out, threads=1, progress=False).out


def planned(recipe):
    plan = plan_recipe(parse_recipe(recipe), progress=False)
    close_models(plan.models)
    return plan


def slice_of(*sources):
    return {"sources": [{"model": str(m), "layer_range": list(r)} for m, r in sources]}


def frankenmerge(*slices, **more):
    return {"merge_method": "passthrough", "slices": [slice_of(part) for part in slices]} | more


@pytest.fixture(scope="session")
def deep(rewrite, family32, tmp_path_factory):
    """Two unrelated models of six layers, in float32: layer i of the first is full of i."""
    folder = tmp_path_factory.mktemp("deep")

    def stack(shift):
        def grow(tensors):
            grown = {n: t for n, t in tensors.items() if ".layers." not in n}
            for name, tensor in tensors.items():
                if ".layers.0." in name:
                    for i in range(6):
                        own = name.replace(".layers.0.", f".layers.{i}.")
                        grown[own] = tensor + 0.01 * (i + shift)
            return grown

        return grow

    return [
        rewrite(
            family32.base,
            folder / f"deep-{shift}",
            stack(shift),
            num_hidden_layers=6,
            layer_types=["full_attention", "sliding_attention"] * 3,
            sliding_window=16,
        )
        for shift in (0, 10)
    ]


# Stacking layers --------------------------------------------------------------------------------


def test_slices_stack_layers_in_order_repeated_ones_too(deep, tmp_path):
    one, two = deep
    parts = [(one, (0, 3)), (two, (1, 3)), (one, (2, 5))]
    out = run(frankenmerge(*parts), tmp_path / "out")
    got, sources = weights_of(out), {path: weights_of(path) for path in deep}
    expected = [(path, i) for path, (low, high) in parts for i in range(low, high)]
    for k, (path, i) in enumerate(expected):
        own = {n: t for n, t in sources[path].items() if f".layers.{i}." in n}
        assert len(own) == 9
        for name, tensor in own.items():
            assert torch.equal(got[name.replace(f".layers.{i}.", f".layers.{k}.")], tensor)
    assert len([name for name in got if ".layers." in name]) == 9 * len(expected)
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert torch.equal(got[name], sources[one][name])


def test_what_stands_before_and_behind_the_layers_comes_from_the_first_and_the_last_slice(
    family32, tmp_path
):
    one, two, _ = family32.experts
    out = run(frankenmerge((one, (0, 1)), (two, (1, 2))), tmp_path / "out")
    got = weights_of(out)
    assert torch.equal(
        got["model.embed_tokens.weight"], weights_of(one)["model.embed_tokens.weight"]
    )
    for name in ("model.norm.weight", "lm_head.weight"):
        assert torch.equal(got[name], weights_of(two)[name])


def test_the_configuration_counts_and_describes_the_layers_of_the_output(deep, tmp_path):
    one, two = deep
    out = run(frankenmerge((one, (0, 3)), (two, (0, 1)), (one, (1, 2))), tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert config["num_hidden_layers"] == 5
    full, sliding = "full_attention", "sliding_attention"
    assert config["layer_types"] == [full, sliding, full, full, sliding]


def test_the_layers_of_a_deeper_model_are_described_as_that_model_does(
    deep, family32, rewrite, tmp_path
):
    shallow = rewrite(family32.experts[0], tmp_path / "shallow", layer_types=["full_attention"] * 2)
    recipe = frankenmerge((shallow, (0, 1)), (deep[0], (4, 6)))
    config = json.loads((run(recipe, tmp_path / "out") / "config.json").read_text())
    assert config["layer_types"] == ["full_attention", "full_attention", "sliding_attention"]


def test_a_frankenmerge_runs(deep, tmp_path):
    from transformers import AutoModelForCausalLM

    one, two = deep
    out = run(frankenmerge((one, (0, 4)), (two, (2, 6))), tmp_path / "out")
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    assert len(model.model.layers) == 8
    assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()


@pytest.mark.parametrize(
    "slices", [[(0, 7)], [(0, 2), (5, 7)]], ids=["one slice", "the second slice"]
)
def test_a_layer_range_beyond_the_end_is_refused(slices, deep, tmp_path):
    recipe = frankenmerge(*((deep[0], part) for part in slices))
    with pytest.raises(RecipeInvalid, match=r"which has 6; layer_range ends at 6"):
        run(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_merging_slices_of_equal_ranges_is_merging_the_models(family32, tmp_path):
    base, experts = family32.base, family32.experts
    models = [{"model": str(x)} for x in experts]
    whole = {"merge_method": "ties", "base_model": str(base), "models": models}
    sources = [(path, (0, 2)) for path in (base, *experts)]
    sliced = {"merge_method": "ties", "base_model": str(base), "slices": [slice_of(*sources)]}
    want, got = weights_of(run(whole, tmp_path / "a")), weights_of(run(sliced, tmp_path / "b"))
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_different_layers_can_be_merged_with_each_other(deep, tmp_path):
    one, two = deep
    recipe = {"merge_method": "linear", "slices": [slice_of((one, (0, 2)), (two, (3, 5)))]}
    got = weights_of(run(recipe, tmp_path / "out"))
    a, b = weights_of(one), weights_of(two)
    for k, (i, j) in enumerate([(0, 3), (1, 4)]):
        name = "model.layers.{}.mlp.up_proj.weight"
        want = merge_tensors("linear", [a[name.format(i)], b[name.format(j)]])
        assert torch.equal(got[name.format(k)], want)


def test_layers_may_come_from_models_of_another_depth(deep, family32, tmp_path):
    recipe = frankenmerge((family32.base, (0, 2)), (deep[0], (3, 6)))
    got = weights_of(run(recipe, tmp_path / "out"))
    name = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(got[name.format(4)], weights_of(deep[0])[name.format(5)])


def test_a_tensor_that_only_a_later_source_has_is_not_lost(family32, rewrite, tmp_path):
    name = "model.layers.1.mlp.up_proj.bias"
    biased = rewrite(
        family32.experts[1], tmp_path / "biased", lambda held: held | {name: torch.ones(64)}
    )
    sources = slice_of((family32.experts[0], (0, 2)), (biased, (0, 2)))
    recipe = {"merge_method": "linear", "slices": [sources]}
    with pytest.raises(CheckpointInvalid, match=name):
        run(recipe, tmp_path / "out")
    got = weights_of(run(recipe | {"missing": "keep"}, tmp_path / "out"))
    assert torch.equal(got[name], torch.ones(64))


def test_lines_cannot_follow_a_base_that_no_slice_has(deep, tmp_path):
    recipe = frankenmerge((deep[0], (0, 3)), lines={"alpha": 0.5}, base_model=str(deep[0]))
    # here the base is a source: its own layers, scaled by anything, are what they were
    assert json.loads((run(recipe, tmp_path / "same") / "config.json").read_text())
    other = frankenmerge((deep[1], (0, 3)), lines={"alpha": 0.5}, base_model=str(deep[0]))
    with pytest.raises(RecipeInvalid, match="no source of this slice"):
        run(other, tmp_path / "out")


# A value for every layer ------------------------------------------------------------------------


def test_a_gradient_runs_over_the_layers(deep, tmp_path):
    one, two = deep
    sources = slice_of((one, (0, 6)), (two, (0, 6)))
    recipe = {
        "merge_method": "slerp",
        "base_model": str(one),
        "slices": [sources],
        "parameters": {"t": [0.0, 1.0, 0.5]},
    }
    got, a, b = weights_of(run(recipe, tmp_path / "out")), weights_of(one), weights_of(two)
    for i, t in enumerate([0.0, 0.4, 0.8, 0.9, 0.7, 0.5]):
        for projection in PROJECTIONS:
            name = f"model.layers.{i}.{projection}.weight"
            want = merge_tensors("slerp", [b[name]], base=a[name], t=t)
            torch.testing.assert_close(got[name], want, rtol=1e-6, atol=1e-9)
    # outside the layers the gradient starts
    assert torch.equal(got["lm_head.weight"], a["lm_head.weight"])


def test_filters_tell_tensors_apart(family32, tmp_path):
    one, two, _ = family32.experts
    weight = [
        {"filter": "self_attn.q", "value": 1.0},
        {"filter": "mlp", "value": [0.25, 0.75]},
        {"value": 0.5},
    ]
    models = [
        {"model": str(one), "parameters": {"weight": 1.0}},
        {"model": str(two), "parameters": {"weight": weight}},
    ]
    recipe = {"merge_method": "task_arithmetic", "base_model": str(family32.base), "models": models}
    plan = planned(recipe)
    weights = {step.name: step.weights[1] for step in plan.steps}
    assert weights["model.layers.0.self_attn.q_proj.weight"] == 1.0
    assert weights["model.layers.0.self_attn.v_proj.weight"] == 0.5
    assert weights["model.layers.0.mlp.up_proj.weight"] == 0.25
    assert weights["model.layers.1.mlp.up_proj.weight"] == 0.75
    assert weights["model.embed_tokens.weight"] == 0.5
    got = weights_of(run(recipe, tmp_path / "out"))
    base, a, b = (weights_of(path) for path in (family32.base, one, two))
    for name, second in weights.items():
        want = merge_tensors(
            "task_arithmetic", [a[name], b[name]], base=base[name], weights=[1.0, second]
        )
        assert torch.equal(got[name], want)


def test_each_expert_may_have_a_density_of_its_own(family32):
    densities = [{"density": 0.1}, {}, {"density": 0.3}]
    models = [
        {"model": str(x), "parameters": own}
        for x, own in zip(family32.experts, densities, strict=True)
    ]
    base = {"base_model": str(family32.base), "models": models}
    plan = planned({"merge_method": "ties", "parameters": {"density": 0.7}} | base)
    assert {step.options.density for step in plan.steps} == {(0.1, 0.7, 0.3)}
    plan = planned({"merge_method": "ties"} | base)
    assert {step.options.density for step in plan.steps} == {(0.1, 0.2, 0.3)}


def test_the_table_says_what_was_resolved(family32):
    recipe = {
        "merge_method": "ties",
        "base_model": str(family32.base),
        "models": [{"model": str(x)} for x in family32.experts],
        "parameters": {"density": [0.2, 0.4]},
    }
    rows = {row["tensor"]: row for row in planned(recipe).table()}
    row = rows["model.layers.1.mlp.up_proj.weight"]
    assert row["method"] == "ties" and row["weights"] == [1.0, 1.0, 1.0]
    assert (row["density"], row["lambda_"], row["trim_scope"]) == (0.4, 1.0, "global")
    assert rows["model.layers.0.mlp.up_proj.weight"]["density"] == 0.2
    assert len(rows) == 21


# Modules ----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def towers(family32, rewrite, tmp_path_factory):
    """Three models of two towers each: ``text.model...`` and ``vision.blocks...``."""
    folder = tmp_path_factory.mktemp("towers")

    def rename(tensors):
        text = {f"text.{name}": tensor for name, tensor in tensors.items()}
        vision = {
            f"vision.blocks.{i}.attn.weight": tensors["lm_head.weight"][:4] * (i + 1)
            for i in range(3)
        }
        return text | vision

    config = json.loads((family32.base / "config.json").read_text())
    vision = {"num_hidden_layers": 3, "hidden_size": 32}
    return [
        rewrite(path, folder / path.name, rename, text_config=config, vision_config=vision,
                num_hidden_layers=None)
        for path in family32.experts
    ]  # fmt: skip


def test_modules_have_recipes_of_their_own(towers, tmp_path):
    one, two, three = towers
    recipe = {
        "merge_method": "linear",
        "base_model": str(three),
        "modules": {
            "text": {"models": [{"model": str(one)}, {"model": str(two)}]},
            "vision": {"slices": [slice_of((two, (1, 3)))]},
        },
    }
    got = weights_of(run(recipe, tmp_path / "out"))
    a, b = weights_of(one), weights_of(two)
    for name in a:
        if name.startswith("text."):
            assert torch.equal(got[name], merge_tensors("linear", [a[name], b[name]]))
    blocks = [name for name in got if name.startswith("vision.")]
    assert blocks == ["vision.blocks.0.attn.weight", "vision.blocks.1.attn.weight"]
    for k in (0, 1):
        own = b[f"vision.blocks.{k + 1}.attn.weight"]
        assert torch.equal(got[f"vision.blocks.{k}.attn.weight"], own)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vision_config"] == {"num_hidden_layers": 2, "hidden_size": 32}
    assert config["text_config"]["num_hidden_layers"] == 2


def test_layers_of_the_text_tower_are_counted_in_the_text_s_configuration(towers, tmp_path):
    one, two, _ = towers
    recipe = {
        "merge_method": "passthrough",
        "modules": {
            "text": {"slices": [slice_of((one, (0, 2))), slice_of((two, (1, 2)))]},
            "vision": {"models": [{"model": str(one)}]},
        },
    }
    config = json.loads((run(recipe, tmp_path / "out") / "config.json").read_text())
    assert config["text_config"]["num_hidden_layers"] == 3
    assert config["vision_config"]["num_hidden_layers"] == 3


def test_what_no_module_names_is_the_base_s(towers, tmp_path):
    one, two, three = towers
    recipe = {
        "merge_method": "linear",
        "base_model": str(three),
        "modules": {"vision": {"models": [{"model": str(one)}, {"model": str(two)}]}},
    }
    plan = planned(recipe)
    assert any("outside the modules" in note for note in plan.notes)
    got, base = weights_of(run(recipe, tmp_path / "out")), weights_of(three)
    name = "text.lm_head.weight"
    assert torch.equal(got[name], base[name])


def test_a_module_that_no_model_has_is_refused(towers):
    recipe = {
        "merge_method": "linear",
        "modules": {"audio": {"models": [{"model": str(path)} for path in towers]}},
    }
    with pytest.raises(RecipeInvalid, match=r"'audio'; the models have text\.lm_head"):
        planned(recipe)


def test_modules_that_overlap_are_refused(towers):
    models = {"models": [{"model": str(path)} for path in towers]}
    recipe = {"merge_method": "linear", "modules": {"text": models, "text.model": models}}
    with pytest.raises(RecipeInvalid, match=r"'text' and 'text\.model' both have 'text\.model"):
        planned(recipe)


# Models that do not fit -------------------------------------------------------------------------


@pytest.fixture
def unequal(family32, rewrite, tmp_path):
    """An expert without one tensor and with one of its own."""

    def change(tensors):
        del tensors["model.layers.1.mlp.up_proj.weight"]
        return tensors | {"model.extra.weight": torch.full((5,), 3.0)}

    return rewrite(family32.experts[0], tmp_path / "unequal", change)


def three_with(family32, other, **more):
    models = [{"model": str(x)} for x in (other, *family32.experts[1:])]
    return {"merge_method": "ties", "base_model": str(family32.base), "models": models} | more


def test_tensors_that_not_all_have_stop_a_merge(family32, unequal, tmp_path):
    with pytest.raises(CheckpointInvalid) as refused:
        run(three_with(family32, unequal), tmp_path / "out")
    for word in ("model.layers.1.mlp.up_proj.weight", "model.extra.weight", "missing: keep"):
        assert word in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_they_can_be_merged_from_those_who_have_them(family32, unequal, tmp_path):
    got = weights_of(run(three_with(family32, unequal, missing="keep"), tmp_path / "out"))
    assert torch.equal(got["model.extra.weight"], torch.full((5,), 3.0))
    models = [{"model": str(x)} for x in family32.experts[1:]]
    two = {"merge_method": "ties", "base_model": str(family32.base), "models": models}
    two["parameters"] = {"trim_scope": "tensor"}
    three = three_with(family32, unequal, missing="keep", parameters={"trim_scope": "tensor"})
    name = "model.layers.1.mlp.up_proj.weight"
    want = weights_of(run(two, tmp_path / "two"))[name]
    assert torch.equal(weights_of(run(three, tmp_path / "three"))[name], want)


def test_or_be_dropped(family32, unequal, tmp_path):
    got = weights_of(run(three_with(family32, unequal, missing="drop"), tmp_path / "out"))
    assert len(got) == 20
    assert not {"model.layers.1.mlp.up_proj.weight", "model.extra.weight"} & set(got)


@pytest.mark.parametrize("method", ["slerp", "nuslerp", "model_stock", "consensus"])
def test_a_method_with_too_few_left_takes_the_one_that_is_there(
    method, family32, unequal, tmp_path
):
    other = family32.experts[1]
    experts = [unequal, other][: 1 if METHODS[method].max_experts == 1 else 2]
    recipe = {"merge_method": method, "models": [{"model": str(x)} for x in experts]}
    if METHODS[method].needs_base == "yes":
        recipe["base_model"] = str(family32.base)
    got = weights_of(run(recipe | {"missing": "keep"}, tmp_path / "out"))
    name = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(got[name], weights_of(other)[name])


def test_another_architecture_is_refused_by_tensor_and_shapes(family32, rewrite, tmp_path):
    def wider(tensors):
        name = "model.layers.0.mlp.up_proj.weight"
        return tensors | {name: torch.zeros(64, 40)}

    other = rewrite(family32.experts[0], tmp_path / "wider", wider)
    with pytest.raises(CheckpointInvalid, match=r"\[64, 40\] in .*\[64, 32\].*architecture"):
        run(three_with(family32, other), tmp_path / "out")


def test_settings_that_make_equal_shapes_mean_different_things_are_noted(
    family32, rewrite, tmp_path
):
    other = rewrite(family32.experts[0], tmp_path / "other", rms_norm_eps=1e-3)
    notes = planned(three_with(family32, other)).notes
    assert any("rms_norm_eps is 0.001 in" in note and str(other) in note for note in notes)


def odd(family32, rewrite, folder, name, make):
    """The family with one more tensor, ``make(i)`` in the i-th model."""
    models = [
        rewrite(path, folder / path.name, lambda held, i=i: held | {name: make(i)})
        for i, path in enumerate((family32.base, *family32.experts))
    ]
    return type(family32)(models[0], tuple(models[1:]))


@pytest.mark.parametrize(
    "method",
    [
        "linear",
        "slerp",
        "nuslerp",
        "model_stock",
        "nearswap",
        "ties",
        "della",
        "breadcrumbs",
        "sce",
    ],
)
def test_tensors_of_no_entries_and_of_one_pass_through_every_method(
    method, family32, rewrite, tmp_path
):
    family = odd(family32, rewrite, tmp_path / "a", "empty", lambda i: torch.empty(0, 4))
    family = odd(family, rewrite, tmp_path / "b", "one", lambda i: torch.tensor(1.0 + i / 8))
    told = METHODS[method]
    count = 1 if told.max_experts == 1 or method == "slerp" else told.max_experts or 3
    recipe = {"merge_method": method, "models": [{"model": str(x)} for x in family.experts[:count]]}
    if told.needs_base != "no":
        recipe["base_model"] = str(family.base)
    got = weights_of(run(recipe, tmp_path / "out"))
    assert got["empty"].shape == (0, 4) and got["one"].shape == ()
    assert 1 <= got["one"].item() <= 1.75


def test_tensors_too_coarse_to_round_to_need_another_dtype(family32, rewrite, tmp_path):
    def make(i):
        return torch.full((4,), 1.0 + i).to(torch.float8_e4m3fn)

    family = odd(family32, rewrite, tmp_path / "family", "coarse", make)
    recipe = {"merge_method": "linear", "models": [{"model": str(x)} for x in family.experts]}
    with pytest.raises(CheckpointInvalid, match=r"'coarse' is float8_e4m3fn.*out_dtype: bfloat16"):
        planned(recipe)
    got = weights_of(run(recipe | {"out_dtype": "bfloat16"}, tmp_path / "out"))
    assert got["coarse"].tolist() == [3.0] * 4


@pytest.mark.parametrize(
    ("recipe", "weights", "what"),
    [
        ({"merge_method": "linear"}, (1.0, -1.0), "sum to 0"),
        ({"merge_method": "ties"}, (1.0, -0.5), "weights >= 0"),
        ({"merge_method": "nuslerp"}, (2.0, -2.0), "sum to 0"),
    ],
)
def test_weights_that_cannot_be_meant_are_refused(recipe, weights, what, family32, tmp_path):
    models = [
        {"model": str(x), "parameters": {"weight": w}}
        for x, w in zip(family32.experts, weights, strict=False)
    ]
    recipe = recipe | {"models": models}
    if METHODS[recipe["merge_method"]].needs_base == "yes":
        recipe["base_model"] = str(family32.base)
    with pytest.raises(InputInvalid, match=what):
        run(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("compat", [None, "mergekit"])
def test_keep_probabilities_that_are_none_are_refused_from_headers(compat, family32):
    recipe = three_with(family32, family32.experts[0], compat=compat)
    recipe |= {"merge_method": "della", "parameters": {"density": 0.1, "epsilon": 0.3}}
    with pytest.raises(InputInvalid, match="make epsilon smaller"):
        planned(recipe)


def test_adapters_of_other_bases_are_noted(family32, save_lora, tmp_path):
    other = family32.experts[0]
    loras = [
        save_lora(tmp_path / "own", 1, base=family32.base),
        save_lora(tmp_path / "foreign", 2, base=other),
        save_lora(tmp_path / "hub", 3, base="org/model"),
    ]
    recipe = three_with(family32, loras[0])
    notes = planned(recipe).notes
    assert not any("trained" in note for note in notes)
    recipe["models"] = [{"model": str(lora)} for lora in loras]
    told = " ".join(note for note in planned(recipe).notes if "trained" in note)
    assert f"{str(loras[1])!r} was trained on {str(other)!r}" in told
    assert "different models" in told and "'org/model'" in told


# What it will cost ------------------------------------------------------------------------------


def test_bytes_written_are_those_of_the_file(family32, tmp_path):
    recipe = three_with(family32, family32.experts[0])
    plan = planned(recipe)
    (file,) = run(recipe, tmp_path / "out").glob("*.safetensors")
    with file.open("rb") as opened:
        header = int.from_bytes(opened.read(8), "little")
    assert plan.bytes_written == file.stat().st_size - 8 - header


def test_every_pass_over_the_inputs_counts(family32):
    entries = planned(three_with(family32, family32.experts[0])).bytes_written // 4
    linear = {"merge_method": "linear", "models": [{"model": str(x)} for x in family32.experts]}
    assert planned(linear).bytes_read == 3 * 4 * entries
    ties = planned(three_with(family32, family32.experts[0])).bytes_read
    assert ties == 3 * 4 * 4 * entries  # trim, majority, merge; base and three experts
    copied = {"merge_method": "passthrough", "models": [{"model": str(family32.base)}]}
    assert planned(copied).bytes_read == 4 * entries


def test_memory_does_not_depend_on_the_size_of_the_model(family32, deep):
    small = planned(frankenmerge((family32.base, (0, 1))))
    large = planned(frankenmerge(*[(deep[0], (0, 6))] * 9))
    assert large.bytes_written > 4 * small.bytes_written
    assert large.peak_bytes(1) == small.peak_bytes(1)
    assert large.peak_bytes(2) == 2 * large.peak_bytes(1)
