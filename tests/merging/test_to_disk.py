"""The door to disk: the same numbers as in memory, complete or not at all, and opened by others."""

import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from zeitgeist.checkpoints import CheckpointWriter, open_adapter, open_checkpoint
from zeitgeist.errors import (
    CheckpointInvalid,
    InputInvalid,
    OutputExists,
    RecipeInvalid,
    ReferenceUnresolved,
)
from zeitgeist.merging import merge, merge_tensors
from zeitgeist.merging.lines import LinesOptions, alpha_rule, scale_layers
from zeitgeist.merging.methods import METHODS
from zeitgeist.merging.rounding import round_once

WEIGHTS = (0.7, 1.3, 0.5)
UP = "model.layers.1.mlp.up_proj.weight"


def weights_of(path):
    """Every stored tensor of a model directory."""
    return {
        name: tensor
        for file in sorted(Path(path).glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def recipe_of(method, models, *, weights=None, **more):
    """A recipe for a base and experts, as many of them as the method takes."""
    told = METHODS[method]
    count = 1 if told.max_experts == 1 or method == "slerp" else told.max_experts or 3
    entries = [{"model": str(expert)} for expert in models.experts[:count]]
    for entry, weight in zip(entries, weights or (), strict=False):
        entry["parameters"] = {"weight": weight}
    recipe = {"merge_method": method, "models": entries} | more
    if told.needs_base != "no":
        recipe["base_model"] = str(models.base)
    if method == "lines":
        recipe.setdefault("lines", {"alpha": 1.0})
    return recipe


def files_of(path):
    return {file.name: file.read_bytes() for file in Path(path).iterdir()}


def run(recipe, out, **options):
    return merge(recipe, out, progress=False, **{"threads": 1} | options)


# The same numbers ----------------------------------------------------------------------------


# Where mergekit's rules differ, one method of each kind
ITS_RULES = ("slerp", "task_arithmetic", "ties", "dare_linear", "della", "breadcrumbs_ties", "sce")


@pytest.mark.parametrize(
    ("method", "compat"),
    [(method, None) for method in METHODS] + [(method, "mergekit") for method in ITS_RULES],
)
def test_merging_files_is_merging_their_tensors(method, compat, tiny_family, tmp_path):
    told = METHODS[method]
    words = {field.name for field in fields(told.options)}
    options = {"trim_scope": "tensor"} if method == "ties" and not compat else {}
    options |= {"density": 0.6} if compat and "density" in words else {}
    weights = WEIGHTS if "weight" in told.per_model and method != "lines" else None
    more = {"compat": compat, "parameters": options} if compat else {"parameters": options}
    recipe = recipe_of(method, tiny_family, weights=weights, seed=3, **more)
    run(recipe, tmp_path / "out", threads=2)
    got = weights_of(tmp_path / "out")
    base = weights_of(tiny_family.base)
    count = len(recipe["models"])
    experts = [weights_of(expert) for expert in tiny_family.experts[:count]]
    assert got.keys() == base.keys()
    for name, tensor in got.items():
        want = merge_tensors(
            method,
            [expert[name] for expert in experts],
            base=None if told.needs_base == "no" else base[name],
            weights=None if weights is None else weights[:count],
            name=name,
            seed=3,
            compat=compat,
            **options,
        )
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, want), name


def test_global_trim_is_that_of_the_flattened_models(tiny_family, tmp_path):
    run(recipe_of("ties", tiny_family, parameters={"density": 0.3}), tmp_path / "out")
    got, base = weights_of(tmp_path / "out"), weights_of(tiny_family.base)
    flat = [
        torch.cat([model[name].flatten() for name in base])
        for model in map(weights_of, tiny_family.experts)
    ]
    whole = torch.cat([tensor.flatten() for tensor in base.values()])
    want = merge_tensors("ties", flat, base=whole, density=0.3)
    assert torch.equal(torch.cat([got[name].flatten() for name in base]), want)


@pytest.mark.parametrize("method", ["ties", "dare_ties", "della", "slerp", "linear"])
def test_shards_and_threads_do_not_change_a_bit(method, tiny_family, rewrite, tmp_path):
    run(recipe_of(method, tiny_family), tmp_path / "one")
    folder = tmp_path / "sharded"
    split = type(tiny_family)(
        rewrite(tiny_family.base, folder / "base", shards=17),
        tuple(rewrite(x, folder / x.name, shards=5 + i) for i, x in enumerate(tiny_family.experts)),
    )
    report = run(recipe_of(method, split), tmp_path / "many", threads=2, shard_bytes=9_000)
    got, want = weights_of(report.out), weights_of(tmp_path / "one")
    assert len(list(report.out.glob("*.safetensors"))) > 5
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)
    index = json.loads((report.out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(want)
    assert index["metadata"]["total_size"] == report.bytes_written


def test_one_thread_and_two_write_the_same_files(tiny_family, tmp_path):
    recipe = recipe_of("dare_ties", tiny_family, seed=5)
    one, two = (run(recipe, tmp_path / f"{n}" / "out", threads=n).out for n in (1, 2))
    assert files_of(one) == files_of(two)
    other = run(recipe | {"seed": 6}, tmp_path / "other").out
    assert not torch.equal(weights_of(one)[UP], weights_of(other)[UP])


# Complete or not at all -----------------------------------------------------------------------


class Stopped(Exception):
    """What the tests throw into a running merge."""


def stop_after(monkeypatch, count, error=Stopped):
    """Interrupt the next merge when ``count`` tensors are done; returns the names written."""
    done, finished = CheckpointWriter.done, []

    def stopping(self, name):
        if len(finished) == count:
            raise error
        done(self, name)
        finished.append(name)

    monkeypatch.setattr(CheckpointWriter, "done", stopping)
    return finished


@pytest.mark.parametrize(("error", "threads"), [(Stopped, 1), (KeyboardInterrupt, 2)])
def test_an_interrupted_merge_leaves_nothing(error, threads, tiny_family, tmp_path, monkeypatch):
    stop_after(monkeypatch, 7, error)
    with pytest.raises(error):
        run(recipe_of("ties", tiny_family), tmp_path / "home" / "out", threads=threads)
    assert list((tmp_path / "home").iterdir()) == []


def test_a_resumed_merge_is_the_clean_one_to_the_byte(tiny_family, tmp_path, monkeypatch):
    recipe, out = recipe_of("dare_ties", tiny_family), tmp_path / "out"
    with monkeypatch.context() as patch:
        finished = stop_after(patch, 7)
        with pytest.raises(Stopped):
            run(recipe, out, resume=True, shard_bytes=20_000)
    assert not out.exists()
    with monkeypatch.context() as patch:
        rest = stop_after(patch, 1000)
        run(recipe, out, resume=True, shard_bytes=20_000, threads=2)
    assert len(finished) == 7
    assert set(finished).isdisjoint(rest)
    clean = run(recipe, tmp_path / "clean" / "out", shard_bytes=20_000).out
    assert files_of(out) == files_of(clean)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean", "out"]


def test_resuming_with_another_recipe_is_refused(tiny_family, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            run(recipe_of("ties", tiny_family), out, resume=True)
    with pytest.raises(InputInvalid, match="another recipe"):
        run(recipe_of("ties", tiny_family, parameters={"density": 0.5}), out, resume=True)
    # without --resume it starts afresh
    run(recipe_of("ties", tiny_family, parameters={"density": 0.5}), out)
    assert out.exists()


KILLED = """
import os, signal, sys
from zeitgeist.checkpoints import CheckpointWriter
from zeitgeist.merging import merge

done, count = CheckpointWriter.done, 0

def deadly(self, name):
    global count
    if count == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    count += 1
    done(self, name)

CheckpointWriter.done = deadly
merge(sys.argv[1], sys.argv[2], threads=2, resume=True, progress=False)
"""


def test_kill_9_leaves_no_output_and_can_be_resumed(tiny_family, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_of("ties", tiny_family)))
    out = tmp_path / "home" / "out"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(recipe), str(out)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not out.exists()
    run(recipe, out, resume=True)
    clean = run(recipe, tmp_path / "clean" / "out").out
    assert files_of(out) == files_of(clean)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_an_existing_output_is_refused_and_kept_until_the_new_one_is_whole(
    tiny_family, tmp_path, monkeypatch
):
    out = run(recipe_of("linear", tiny_family), tmp_path / "out").out
    before = files_of(out)
    with pytest.raises(OutputExists, match="--overwrite"):
        run(recipe_of("ties", tiny_family), out)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Stopped):
            run(recipe_of("ties", tiny_family), out, overwrite=True)
    assert files_of(out) == before
    run(recipe_of("ties", tiny_family), out, overwrite=True)
    assert files_of(out) != before


def test_an_output_in_an_input_is_refused(tiny_family, save_lora, tmp_path):
    adapter = save_lora(tmp_path / "lora", 1)
    below = {"merge_method": "linear", "models": [{"model": f"{tiny_family.base}+{adapter}"}]}
    for recipe, out in (
        (recipe_of("linear", tiny_family), tiny_family.experts[0]),
        (recipe_of("linear", tiny_family), tiny_family.experts[0] / "merged"),
        (recipe_of("linear", tiny_family), tiny_family.experts[0].parent),
        (below, tiny_family.base / "merged"),
        (below, adapter / "merged"),
    ):
        with pytest.raises(InputInvalid, match="input"):
            run(recipe, out, overwrite=True)
    assert not (tiny_family.base / "merged").exists()


@pytest.mark.parametrize("options", [{"threads": 0}, {"shard_bytes": 0}])
def test_nonsense_numbers_are_refused(options, tiny_family, tmp_path):
    with pytest.raises(InputInvalid, match="is 0; give at least 1"):
        run(recipe_of("linear", tiny_family), tmp_path / "out", **options)


# Opened by others -----------------------------------------------------------------------------


@pytest.fixture
def warned():
    """What transformers' logger says at the level of warnings."""
    records = []

    class Keep(logging.Handler):
        def emit(self, record):
            records.append(record.getMessage())

    handler, logger = Keep(logging.WARNING), logging.getLogger("transformers")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


def loaded(path):
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not any(info.values()), info
    return model


@pytest.mark.parametrize("shard_bytes", [20_000, 5_000_000_000])
def test_transformers_opens_the_output_without_a_word(shard_bytes, tiny_family, tmp_path, warned):
    out = run(recipe_of("ties", tiny_family), tmp_path / "out", shard_bytes=shard_bytes).out
    model = loaded(out)
    assert warned == []
    assert model.dtype == torch.bfloat16
    state = model.state_dict()
    for name, tensor in weights_of(out).items():
        assert torch.equal(state[name], tensor)
    assert torch.isfinite(model(torch.tensor([[1, 5, 9]])).logits).all()
    assert model.generation_config.max_new_tokens == 7


def test_tokenizer_and_chat_template_travel_along(tiny_family, tmp_path):
    from transformers import AutoTokenizer

    out = run(recipe_of("ties", tiny_family), tmp_path / "out").out
    theirs, ours = (AutoTokenizer.from_pretrained(path) for path in (tiny_family.base, out))
    text = "the cat sat on the mat"
    assert ours(text).input_ids == theirs(text).input_ids
    turns = [{"role": "user", "content": text}]
    assert ours.apply_chat_template(turns, tokenize=False) == f"<s>{text}</s>"
    names = {path.name for path in tiny_family.base.iterdir()}
    assert names <= {path.name for path in out.iterdir()}


def test_the_card_has_the_recipe_the_hashes_and_the_versions(tiny_family, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("# by hand\n" + yaml.safe_dump(recipe_of("ties", tiny_family)))
    card = (run(recipe, tmp_path / "out").out / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front == {"library_name": "transformers", "tags": ["merge", "zeitgeist"]}
    assert recipe.read_text().strip() in card
    for path in (tiny_family.base, *tiny_family.experts):
        assert str(path) in card
        for digest in open_checkpoint(path).fingerprint().values():
            assert digest in card
    assert f"torch {torch.__version__}" in card
    assert "mergekit takes 1.0" in card  # the notices of the recipe


def test_the_hash_of_what_lies_below_an_adapter_is_told(tiny_llama, save_lora, tmp_path):
    adapter = save_lora(tmp_path / "lora", 1, base=tiny_llama)
    (digest,) = open_checkpoint(tiny_llama).fingerprint().values()
    for i, entry in enumerate((str(adapter), f"{tiny_llama}+{adapter}")):
        recipe = {"merge_method": "linear", "models": [{"model": entry}]}
        card = (run(recipe, tmp_path / f"{i}").out / "README.md").read_text()
        assert digest in card
        assert str(adapter) in card


# Tied heads -----------------------------------------------------------------------------------


def head_is_tied(path):
    model = loaded(path)
    return model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


@pytest.fixture(scope="session")
def tied_pair(save_llama, tmp_path_factory):
    """A tied base and a tied fine-tune of it, in float32."""
    folder = tmp_path_factory.mktemp("tied")
    like = {"tied": True, "dtype": torch.float32}
    return save_llama(folder / "base", **like), save_llama(folder / "tuned", perturb=3e-3, **like)


def add(base, *experts):
    return {
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "models": [{"model": str(x), "parameters": {"weight": 1.0}} for x in experts],
    }


def test_tied_stays_tied(tied_pair, tmp_path):
    base, tuned = tied_pair
    out = run(add(base, tuned), tmp_path / "out").out
    assert "lm_head.weight" not in weights_of(out)
    assert head_is_tied(out)


def test_tied_and_untied_merge_to_untied(tied_pair, family32, tmp_path):
    base, tuned = tied_pair
    for start, other in ((base, family32.experts[0]), (family32.base, tuned)):
        report = run(add(start, other), tmp_path / start.parent.name)
        assert not head_is_tied(report.out)
        got, one, two = (weights_of(path) for path in (report.out, start, other))
        for side in ("lm_head.weight", "model.embed_tokens.weight"):
            embedding = "model.embed_tokens.weight"
            assert torch.equal(got[side], two.get(side, two[embedding]))
        assert one  # one expert of weight 1 is that expert
    assert any("untied" in note for note in run(add(base, family32.base), tmp_path / "n").notes)


def test_a_lora_of_a_tied_head_changes_the_head_alone(tied_pair, save_lora, tmp_path):
    base, _ = tied_pair
    adapter = save_lora(tmp_path / "lora", 1, modules=["lm_head"])
    out = run(add(base, adapter), tmp_path / "out").out
    got, start = weights_of(out), weights_of(base)
    embedding = start["model.embed_tokens.weight"]
    assert torch.equal(got["model.embed_tokens.weight"], embedding)
    want = embedding + open_adapter(adapter).delta("lm_head")
    torch.testing.assert_close(got["lm_head.weight"], want, rtol=0, atol=1e-7)
    assert not head_is_tied(out)


def test_a_head_saved_along_unchanged_stays_tied(tied_pair, save_lora, tmp_path):
    base, _ = tied_pair
    embedding = weights_of(base)["model.embed_tokens.weight"]
    saved = save_lora(tmp_path / "saved", 1, extra={"lm_head.weight": embedding})
    assert head_is_tied(run(add(base, saved), tmp_path / "same").out)
    changed = save_lora(tmp_path / "changed", 1, extra={"lm_head.weight": embedding + 1})
    out = run(add(base, changed), tmp_path / "other").out
    assert torch.equal(weights_of(out)["lm_head.weight"], embedding + 1)
    assert not head_is_tied(out)


# Numbers that are none ------------------------------------------------------------------------


def poisoned(rewrite, source, path, value):
    def poison(tensors):
        tensors[UP].view(-1)[1234] = value
        return tensors

    return rewrite(source, path, poison)


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("method", "value"),
    [
        ("linear", NAN),
        ("nuslerp", NAN),
        ("nearswap", NAN),
        ("dare_ties", NAN),
        ("ties", NAN),
        ("breadcrumbs", NAN),
        ("lines", NAN),
        ("ties", INFINITY),
        ("sce", -INFINITY),
        ("slerp", INFINITY),
    ],
)
def test_nan_and_infinity_are_refused_by_tensor_and_file(
    method, value, tiny_family, rewrite, tmp_path
):
    bad = poisoned(rewrite, tiny_family.experts[0], tmp_path / "bad", value)
    models = type(tiny_family)(tiny_family.base, (bad, *tiny_family.experts[1:]))
    with pytest.raises(CheckpointInvalid, match=UP) as refused:
        run(recipe_of(method, models), tmp_path / "home" / "out", threads=2)
    assert str(bad / "model.safetensors") in str(refused.value)
    assert list((tmp_path / "home").iterdir()) == []


def test_nan_in_the_base_is_refused(tiny_family, rewrite, tmp_path):
    bad = poisoned(rewrite, tiny_family.base, tmp_path / "bad", float("nan"))
    with pytest.raises(CheckpointInvalid, match=r"bad.*holds NaN"):
        run(recipe_of("ties", type(tiny_family)(bad, tiny_family.experts)), tmp_path / "out")


def test_what_is_copied_is_copied_as_it_is(tiny_family, rewrite, tmp_path):
    bad = poisoned(rewrite, tiny_family.experts[0], tmp_path / "bad", float("nan"))
    recipe = {"merge_method": "passthrough", "models": [{"model": str(bad)}]}
    got = weights_of(run(recipe, tmp_path / "out").out)[UP]
    assert torch.equal(got.view(torch.int16), weights_of(bad)[UP].view(torch.int16))


def test_values_beyond_float16_are_refused_by_name(family32, rewrite, tmp_path):
    big = poisoned(rewrite, family32.experts[0], tmp_path / "big", 1e5)
    for method in ("linear", "passthrough", "slerp", "nearswap"):
        recipe = recipe_of(method, type(family32)(family32.base, (big, *family32.experts[1:])))
        if method == "nearswap":
            recipe["parameters"] = {"t": 1e6}
        if method == "linear":
            del recipe["models"][1:]
        with pytest.raises(InputInvalid, match=rf"{UP}.*65504.*bfloat16"):
            run(recipe | {"out_dtype": "float16"}, tmp_path / "out")
        run(recipe | {"out_dtype": "bfloat16"}, tmp_path / method)


def test_integer_buffers_are_copied(tiny_family, rewrite, tmp_path):
    def with_buffer(start):
        return lambda tensors: tensors | {"model.positions": torch.arange(start, start + 9)}

    models = type(tiny_family)(
        rewrite(tiny_family.base, tmp_path / "base", with_buffer(0)),
        tuple(rewrite(x, tmp_path / x.name, with_buffer(i)) for i, x in
              enumerate(tiny_family.experts, 1)),
    )  # fmt: skip
    for method, first in (("ties", 0), ("linear", 1), ("slerp", 0)):
        got = weights_of(run(recipe_of(method, models), tmp_path / method).out)
        assert got["model.positions"].tolist() == list(range(first, first + 9))


# Dtypes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("dtype", "float32"),
        *(("out_dtype", f) for f in ("bfloat16", "float16", "float32", "float64")),
    ],
)
def test_the_result_has_the_dtype_asked_for_rounded_once(key, name, tiny_family, tmp_path):
    dtype = getattr(torch, name)
    recipe = recipe_of("linear", tiny_family, weights=(1.0, 1.0, 2.0), **{key: name})
    out = run(recipe, tmp_path / "out").out
    got = weights_of(out)[UP]
    one, two, three = (weights_of(x)[UP].double() for x in tiny_family.experts)
    exact = (one + two + 2 * three) / 4
    assert got.dtype == dtype
    if dtype == torch.float64:
        torch.testing.assert_close(got, exact, rtol=1e-15, atol=1e-17)
    else:
        assert torch.equal(got, round_once(exact, dtype))
    assert json.loads((out / "config.json").read_text())["dtype"] == name


# LiNeS ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    ["linear", "slerp", "karcher", "passthrough", "model_stock", "nearswap", "ties"],
)
def test_lines_scales_what_any_method_changed(method, family32, tmp_path):
    recipe = recipe_of(method, family32, base_model=str(family32.base), dtype="float64")
    merged = weights_of(run(recipe, tmp_path / "merged").out)
    lines = {"alpha": 0.25, "beta": 0.5}
    got = weights_of(run(recipe | {"lines": lines}, tmp_path / "scaled").out)
    base = {name: tensor.double() for name, tensor in weights_of(family32.base).items()}
    want = scale_layers(base, merged, LinesOptions(**lines)).tensors
    for name in base:
        torch.testing.assert_close(got[name], want[name], rtol=1e-12, atol=1e-15)


def test_lines_alone_on_a_fine_tune(tiny_family, tmp_path):
    recipe = recipe_of("lines", tiny_family, lines={"alpha": 0.3, "beta": 0.4})
    report = run(recipe, tmp_path / "out")
    base, tuned = weights_of(tiny_family.base), weights_of(tiny_family.experts[0])
    want = scale_layers(base, tuned, LinesOptions(alpha=0.3, beta=0.4)).tensors
    got = weights_of(report.out)
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert (report.alpha, report.beta) == (0.3, 0.4)


def test_keep_last_leaves_the_last_block_as_it_was(tiny_family, tmp_path):
    merged = weights_of(run(recipe_of("ties", tiny_family), tmp_path / "ties").out)
    scaled = recipe_of("ties", tiny_family, lines={"alpha": 0.0, "keep_last": True})
    got, base = weights_of(run(scaled, tmp_path / "out").out), weights_of(tiny_family.base)
    for name, tensor in got.items():
        same_as = merged if ".layers.1." in name else base
        assert torch.equal(tensor, same_as[name]), name


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_ties"])
def test_alpha_follows_the_rule_of_the_paper(method, family32, tmp_path):
    recipe = recipe_of(method, family32, dtype="float64")
    merged = weights_of(run(recipe, tmp_path / "merged").out)
    base = weights_of(family32.base)
    experts = [weights_of(expert) for expert in family32.experts]
    plain = sum(
        sum(x[name].double() - base[name].double() for x in experts).abs().sum().item()
        for name in base
    )
    update = sum((merged[name] - base[name].double()).abs().sum().item() for name in base)
    report = run(recipe | {"lines": {}}, tmp_path / "out")
    assert report.alpha == pytest.approx(alpha_rule(3, plain, update), rel=1e-9)
    assert report.beta == max(0.0, 1.0 - report.alpha)


def test_the_alpha_rule_is_refused_where_there_is_none(tiny_family, tmp_path):
    recipe = recipe_of("linear", tiny_family, base_model=str(tiny_family.base), lines={})
    with pytest.raises(RecipeInvalid, match=r"alpha rule.*linear.*give alpha"):
        run(recipe, tmp_path / "out")


# Several documents ----------------------------------------------------------------------------


@pytest.fixture
def staged(tiny_family, tmp_path):
    """Two merges in one file, the second of the result of the first."""
    one, two, three = tiny_family.experts
    path = tmp_path / "staged.yaml"
    path.write_text(
        f"""
name: first
merge_method: linear
models: [{{model: {one}}}, {{model: {two}}}]
---
merge_method: slerp
base_model: first
models: [{{model: {three}}}]
parameters: {{t: 0.25}}
tokenizer: {{source: first}}
"""
    )
    return path


def test_documents_run_in_order(staged, tiny_family, tmp_path):
    report = run(staged, tmp_path / "home" / "out")
    models = [{"model": str(x)} for x in tiny_family.experts[:2]]
    first = run({"merge_method": "linear", "models": models}, tmp_path / "first").out
    by_hand = {
        "merge_method": "slerp",
        "base_model": str(first),
        "models": [{"model": str(tiny_family.experts[2])}],
        "parameters": {"t": 0.25},
    }
    want = weights_of(run(by_hand, tmp_path / "second").out)
    got = weights_of(report.out)
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["out"]
    card = (report.out / "README.md").read_text()
    assert "`first`" in card and "stages" not in card
    assert "name: first" in card and "t: 0.25" in card


def test_documents_resume_to_the_same_bytes(staged, tmp_path, monkeypatch):
    out = tmp_path / "home" / "out"
    with monkeypatch.context() as patch:
        stop_after(patch, 21 + 5)
        with pytest.raises(Stopped):
            run(staged, out, resume=True)
    assert not out.exists()
    with monkeypatch.context() as patch:
        written = stop_after(patch, 1000)
        run(staged, out, resume=True)
    assert len(written) == 21 + 21 - 5
    assert files_of(out) == files_of(run(staged, tmp_path / "clean" / "out").out)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_missing_model_of_a_later_document_is_found_first(staged, tmp_path, monkeypatch):
    text = staged.read_text().split("---")
    staged.write_text(text[0] + "---" + text[1].replace("expert-3", "expert-4"))
    written = stop_after(monkeypatch, 1000)
    with pytest.raises(ReferenceUnresolved, match="expert-4"):
        run(staged, tmp_path / "out")
    assert written == []


# Adapters -------------------------------------------------------------------------------------


@pytest.fixture
def loras(family32, save_lora, tmp_path):
    return [save_lora(tmp_path / f"lora-{i}", i, base=family32.base) for i in (1, 2, 3)]


def full(base, adapter, path, rewrite):
    """The base with an adapter added, as a model of its own."""
    opened = open_adapter(adapter)

    def apply(tensors):
        for module in opened.modules:
            tensors[f"{module}.weight"] += opened.delta(module)
        return tensors

    return rewrite(base, path, apply)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("linear", {}),
        ("slerp", {}),
        ("ties", {"parameters": {"density": 0.05}}),
        ("ties", {"lines": {"alpha": 0.2}}),
        ("breadcrumbs", {}),
        ("consensus", {"lines": {}}),
    ],
)
def test_merging_adapters_on_a_base_is_merging_the_full_models(
    method, more, family32, loras, rewrite, tmp_path
):
    models = type(family32)(family32.base, tuple(loras))
    wholes = [full(family32.base, x, tmp_path / f"full-{x.name}", rewrite) for x in loras]
    got = run(recipe_of(method, models, **more), tmp_path / "adapters")
    want = run(
        recipe_of(method, type(family32)(family32.base, tuple(wholes)), **more), tmp_path / "full"
    )
    ours, theirs = weights_of(got.out), weights_of(want.out)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=2e-7, msg=name)
    assert got.alpha == (want.alpha if want.alpha is None else pytest.approx(want.alpha, rel=1e-5))


def test_path_plus_adapter_is_the_adapter_on_that_path(family32, loras, tmp_path):
    apart = recipe_of("linear", type(family32)(family32.base, tuple(loras)))
    joined = [{"model": f"{family32.base}+{x}"} for x in loras]
    one = run(apart | {"base_model": str(family32.base)}, tmp_path / "one").out
    two = run(apart | {"models": joined}, tmp_path / "two").out
    three = run(apart, tmp_path / "three").out  # on what the adapter itself names
    for other in (two, three):
        got, want = weights_of(other), weights_of(one)
        assert all(torch.equal(got[name], want[name]) for name in want)


def test_an_adapter_may_sit_on_another_base(family32, save_lora, rewrite, tmp_path):
    """Its task vector is then that of the whole model, seen from the recipe's base."""
    other = family32.experts[0]
    adapter = save_lora(tmp_path / "lora", 4)
    whole = full(other, adapter, tmp_path / "whole", rewrite)
    got = weights_of(run(add(family32.base, f"{other}+{adapter}"), tmp_path / "a").out)
    want = weights_of(run(add(family32.base, whole), tmp_path / "b").out)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-6, atol=1e-7)


def test_saved_modules_take_the_place_of_the_base_s(family32, save_lora, tmp_path):
    norm = torch.full((32,), 2.0)
    adapter = save_lora(tmp_path / "lora", 5, extra={"model.norm.weight": norm})
    got = weights_of(run(add(family32.base, adapter), tmp_path / "out").out)
    assert torch.equal(got["model.norm.weight"], norm)


def test_a_lora_on_a_saved_embedding_counts_too(family32, save_lora, tmp_path):
    """peft saves the layer below along (save_embedding_layers), under the same name."""
    head = weights_of(family32.base)["lm_head.weight"] + 0.5
    adapter = save_lora(
        tmp_path / "lora", 6, modules=["lm_head"], extra={"lm_head.base_layer.weight": head}
    )
    got = weights_of(run(add(family32.base, adapter), tmp_path / "out").out)["lm_head.weight"]
    want = head + open_adapter(adapter).delta("lm_head")
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_a_saved_module_that_the_base_lacks_is_not_lost_in_silence(family32, save_lora, tmp_path):
    adapter = save_lora(tmp_path / "lora", 7, extra={"score.weight": torch.ones(3, 32)})
    with pytest.raises(CheckpointInvalid, match=r"score\.weight"):
        run(add(family32.base, adapter), tmp_path / "out")
    kept = add(family32.base, adapter) | {"missing": "keep"}
    assert torch.equal(
        weights_of(run(kept, tmp_path / "out").out)["score.weight"], torch.ones(3, 32)
    )


def test_an_adapter_with_more_tokens_than_the_base_is_refused(family32, save_lora, tmp_path):
    longer = {"model.embed_tokens.weight": torch.ones(290, 32)}
    adapter = save_lora(tmp_path / "lora", 8, extra=longer)
    with pytest.raises(CheckpointInvalid, match=r"\[290, 32\].*tokenizer"):
        run(add(family32.base, adapter), tmp_path / "out")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_knots_from_a_recipe_makes_an_adapter_that_peft_opens(family32, loras, tmp_path):
    peft = pytest.importorskip("peft", reason="opens the result (extra: training)")
    recipe = {
        "merge_method": "knots_ties",
        "models": [
            {"model": str(x), "parameters": {"weight": w}}
            for x, w in zip(loras, WEIGHTS, strict=True)
        ],
        "parameters": {"density": 0.5, "lambda": 1.0},
        "out_dtype": "float32",
    }
    report = run(recipe, tmp_path / "out")
    assert report.adapter is not None and report.adapter.rank <= 6
    assert report.bytes_written == (report.out / "adapter_model.safetensors").stat().st_size
    model = peft.PeftModel.from_pretrained(loaded(family32.base), report.out)
    merged = model.merge_and_unload().state_dict()
    base, found = weights_of(family32.base), open_adapter(report.out)
    for module in found.modules:
        want = base[f"{module}.weight"] + found.delta(module)
        torch.testing.assert_close(merged[f"{module}.weight"], want, rtol=1e-5, atol=1e-6)


# Vocabularies ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def longer(family32, rewrite, tmp_path_factory):
    """An expert with two tokens more, and rows for them."""
    from transformers import AutoTokenizer

    def grow(tensors):
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = torch.cat([tensors[name], torch.full((2, 32), 7.0)])
        return tensors

    path = rewrite(
        family32.experts[0], tmp_path_factory.mktemp("longer") / "longer", grow, vocab_size=290
    )
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert tokenizer.add_tokens(["<tool>", "<call>"]) == 2
    tokenizer.save_pretrained(path)
    return path


def test_vocabularies_that_differ_are_refused_without_a_rule(family32, longer, tmp_path):
    with pytest.raises(CheckpointInvalid, match=r"290.*288.*tokenizer: \{source: union\}"):
        run(add(family32.base, longer), tmp_path / "out")


def test_a_union_of_vocabularies_has_a_row_for_every_token(family32, longer, tmp_path):
    from transformers import AutoTokenizer

    recipe = {
        "merge_method": "linear",
        "models": [{"model": str(family32.base)}, {"model": str(longer)}],
        "tokenizer": {"source": "union"},
    }
    out = run(recipe, tmp_path / "out").out
    model, tokenizer = loaded(out), AutoTokenizer.from_pretrained(out)
    assert (len(tokenizer), model.config.vocab_size) == (290, 290)
    assert tokenizer.convert_tokens_to_ids(["<tool>", "<call>"]) == [288, 289]
    assert torch.isfinite(model(torch.tensor([[1, 288, 289]])).logits).all()
    got, base, tuned = (weights_of(path) for path in (out, family32.base, longer))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        want = (base[name].double() + tuned[name][:288].double()) / 2
        torch.testing.assert_close(got[name][:288].double(), want, rtol=1e-7, atol=1e-9)
        assert (got[name][288:] == 7).all()  # only one model has them
    norm = "model.norm.weight"
    torch.testing.assert_close(got[norm], (base[norm] + tuned[norm]) / 2, rtol=1e-6, atol=0)


def test_the_base_s_vocabulary_drops_the_tokens_of_others(family32, longer, tmp_path):
    out = run(add(family32.base, longer) | {"tokenizer_source": "base"}, tmp_path / "out").out
    got, tuned = weights_of(out), weights_of(longer)
    assert torch.equal(got["lm_head.weight"], tuned["lm_head.weight"][:288])
    assert json.loads((out / "config.json").read_text())["vocab_size"] == 288
    assert (out / "tokenizer.json").read_bytes() == (family32.base / "tokenizer.json").read_bytes()


def test_a_chat_template_can_be_given(tiny_family, tmp_path):
    from transformers import AutoTokenizer

    recipe = recipe_of("linear", tiny_family, chat_template="{{ messages[0]['content'] }}!")
    tokenizer = AutoTokenizer.from_pretrained(run(recipe, tmp_path / "out").out)
    turns = [{"role": "user", "content": "yes"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "yes!"


# Against mergekit -----------------------------------------------------------------------------

RECIPES = {
    "linear": """
merge_method: linear
models:
  - {{model: {one}, parameters: {{weight: 0.3}}}}
  - {{model: {two}, parameters: {{weight: [0.2, 1.0]}}}}
dtype: float32
""",
    "task_arithmetic": """
merge_method: task_arithmetic
base_model: {base}
models:
  - model: {one}
    parameters: {{weight: 0.3}}
  - model: {two}
    parameters:
      weight:
        - {{filter: mlp, value: 0.5}}
        - {{value: 0.1}}
dtype: float32
""",
    "ties": """
merge_method: ties
base_model: {base}
models:
  - {{model: {base}}}
  - {{model: {one}, parameters: {{density: 0.5, weight: 0.6}}}}
  - {{model: {two}, parameters: {{density: [0.2, 0.8], weight: 0.4}}}}
parameters: {{normalize: true, int8_mask: true}}
dtype: float32
""",
    "slerp": """
slices:
  - sources:
      - {{model: {one}, layer_range: [0, 2]}}
      - {{model: {two}, layer_range: [0, 2]}}
merge_method: slerp
base_model: {one}
parameters:
  t:
    - {{filter: self_attn, value: [0, 1]}}
    - {{filter: mlp, value: [1, 0]}}
    - {{value: 0.5}}
dtype: float32
""",
    "passthrough": """
slices:
  - sources: [{{model: {one}, layer_range: [0, 2]}}]
  - sources: [{{model: {two}, layer_range: [0, 1]}}]
  - sources: [{{model: {one}, layer_range: [1, 2]}}]
merge_method: passthrough
dtype: float32
""",
}


@pytest.mark.parametrize("method", RECIPES)
@pytest.mark.filterwarnings("ignore")
def test_mergekit_makes_the_same_model_of_the_same_file(method, family32, tmp_path):
    mergekit = pytest.importorskip("mergekit.merge", reason="mergekit is a test extra")
    from mergekit.config import MergeConfiguration
    from mergekit.options import MergeOptions

    one, two, _ = family32.experts
    text = RECIPES[method].format(base=family32.base, one=one, two=two)
    theirs = MergeConfiguration.model_validate(yaml.safe_load(text))
    options = MergeOptions(copy_tokenizer=False, quiet=True, write_model_card=False)
    mergekit.run_merge(theirs, str(tmp_path / "theirs"), options=options)
    (tmp_path / "recipe.yaml").write_text("compat: mergekit\n" + text)
    out = run(tmp_path / "recipe.yaml", tmp_path / "ours").out
    got, want = weights_of(out), weights_of(tmp_path / "theirs")
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=2e-6, atol=2e-8, msg=name)
    ours, others = (json.loads((p / "config.json").read_text()) for p in (out, tmp_path / "theirs"))
    assert ours["num_hidden_layers"] == others["num_hidden_layers"]
