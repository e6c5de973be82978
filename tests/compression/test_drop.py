"""What goes is gone from the file, and what is written computes what was meant."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from zeitgeist.checkpoints import open_checkpoint
from zeitgeist.compression.drop import drop, kv_bytes_per_token, open_model, score
from zeitgeist.compression.drop_ranking import DropOptions, calibration, rank
from zeitgeist.compression.drop_sweep import pareto, sweep
from zeitgeist.compression.dropped import drop_layers
from zeitgeist.compression.healing import heal
from zeitgeist.compression.selection import Rankings, Selection, Wishes, choose
from zeitgeist.errors import InputInvalid, OutputExists
from zeitgeist.training import LoraSettings

TEXT = "the cat sat on a mat and the dog ran to it in a big red van " * 12
SHORT = DropOptions(samples=4, length=16)
RANKED = Rankings(
    {"attention": [2, 0, 1, 3], "mlp": [3, 2, 1, 0], "block": [1, 2, 0, 3]},
    [("attention", 2), ("mlp", 3), ("attention", 0), ("attention", 1), ("mlp", 2)],
)


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch):
    monkeypatch.setattr("zeitgeist.checkpoints.atomic.sync", lambda _: None, raising=False)


@pytest.mark.parametrize(
    ("wishes", "attention", "mlp"),
    [
        ({"attention": 2}, (0, 2), ()),
        ({"mlp": 1}, (), (3,)),
        ({"blocks": 1}, (1,), (1,)),
        ({"joint": 3}, (0, 2), (3,)),
        ({"blocks": 1, "attention": 1, "mlp": 1}, (1, 2), (1, 3)),
        ({"attention": (3, 1)}, (1, 3), ()),
        ({"layers": (("block", 0), ("mlp", 2))}, (0,), (0, 2)),
        ({"attention": 1, "layers": (("attention", 2),)}, (0, 2), ()),
    ],
)
def test_the_first_of_the_ranking_go(wishes, attention, mlp):
    assert choose(Wishes(**wishes), 4, RANKED) == Selection(attention, mlp)


def test_protected_layers_stay():
    chosen = choose(Wishes(attention=2, mlp=1), 4, RANKED, protected=(2, 3))
    assert chosen == Selection((0, 1), (1,))


@pytest.mark.parametrize(
    ("wishes", "told"),
    [
        ({}, "nothing is to be dropped"),
        ({"attention": -1}, "attention is -1"),
        ({"attention": 5}, "attention is 5, and 4 of 4"),
        ({"attention": (4,)}, "no attention 4: the model has 4 layers"),
        ({"layers": (("head", 0),)}, "no sub-layer is called 'head'"),
    ],
)
def test_wishes_that_cannot_be_met_are_told(wishes, told):
    with pytest.raises(InputInvalid, match=told):
        choose(Wishes(**wishes), 4, RANKED)


def test_a_protected_layer_cannot_be_named():
    with pytest.raises(InputInvalid, match="attention 1 is to be dropped and is protected"):
        choose(Wishes(attention=(1,)), 4, protected=(1,))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"samples": 0}, "samples of attention drop is 0"),
        ({"length": 1}, "length of attention drop is 1"),
        ({"metric": "taylor"}, "metric is 'taylor'"),
        ({"protect_last": -1}, "protect_last"),
    ],
)
def test_options_that_make_no_sense_are_told(given, told):
    with pytest.raises(InputInvalid, match=told):
        DropOptions(**given)


def test_what_is_dropped_is_gone_from_the_file_and_the_rest_is_as_it_was(tiny_llama, tmp_path):
    report = drop(tiny_llama, tmp_path / "less", layers=[("attention", 1)], progress=False)
    assert (report.attention, report.mlp) == ((1,), ())
    assert report.perplexity_before is None
    before, after = open_checkpoint(tiny_llama), open_checkpoint(tmp_path / "less")
    gone = set(before.specs) - set(after.specs)
    assert gone and all("layers.1." in name for name in gone)
    assert not set(after.specs) - set(before.specs)
    numbers = sum(math.prod(before.specs[name].shape) for name in gone)
    assert report.parameters_before - report.parameters_after == numbers
    assert report.kv_bytes_after * 2 == report.kv_bytes_before
    for name in after.specs:
        assert after.specs[name].dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "less")
    assert tokenizer("the cat")["input_ids"]
    card = (tmp_path / "less" / "README.md").read_text()
    assert "2406.15786" in card and str(tiny_llama) in card
    assert (tmp_path / "less" / "generation_config.json").is_file()


def test_what_is_written_computes_as_with_a_zeroed_output_projection(tiny_llama, tmp_path):
    drop(tiny_llama, tmp_path / "less", attention=(0,), mlp=(1,), progress=False)
    less = AutoModelForCausalLM.from_pretrained(tmp_path / "less", dtype=torch.float32)
    whole = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    with torch.no_grad():
        whole.model.layers[0].self_attn.o_proj.weight.zero_()
        whole.model.layers[1].mlp.down_proj.weight.zero_()
        ids = torch.arange(5, 25).view(2, 10)
        torch.testing.assert_close(less(ids).logits, whole(ids).logits, rtol=1e-5, atol=1e-6)


def test_counted_layers_are_the_most_similar_ones(tiny_llama, tmp_path):
    scores = score(tiny_llama, TEXT, SHORT, progress=False)
    report = drop(
        tiny_llama, tmp_path / "less", attention=1, text=TEXT, options=SHORT, progress=False
    )
    assert report.attention == (int(scores.similarity("attention").argmax()),)
    assert report.perplexity_before > 1.0
    assert report.perplexity_after > 1.0


@pytest.mark.parametrize("metric", ["cosine", "angular", "perplexity"])
def test_every_metric_ranks_every_layer(tiny_llama, metric):
    _, model, tokenizer = open_model(tiny_llama)
    options = DropOptions(2, 16, metric)
    found = rank(model, calibration(tokenizer, TEXT, options), options, Wishes(joint=1, blocks=1))
    for kind in ("attention", "mlp", "block"):
        assert sorted(found.by_kind[kind]) == [0, 1]
    assert sorted(found.joint) == [(k, i) for k in ("attention", "mlp") for i in (0, 1)]


def test_the_first_of_an_iterative_ranking_is_the_first_of_one_shot(tiny_llama):
    _, model, tokenizer = open_model(tiny_llama)
    windows = calibration(tokenizer, TEXT, SHORT)
    once = rank(model, windows, SHORT, Wishes(attention=1))
    again = rank(model, windows, DropOptions(4, 16, iterative=True), Wishes(attention=1))
    assert again.by_kind["attention"][0] == once.by_kind["attention"][0]
    with pytest.raises(InputInvalid, match="one kind"):
        rank(model, windows, DropOptions(4, 16, iterative=True), Wishes(joint=1))


def test_bad_input_is_told_before_anything_is_written(tiny_llama, tmp_path):
    out = tmp_path / "less"
    with pytest.raises(InputInvalid, match="no calibration text"):
        drop(tiny_llama, out, attention=1)
    with pytest.raises(InputInvalid, match="no attention 7"):
        drop(tiny_llama, out, attention=(7,))
    with pytest.raises(InputInvalid, match="is the input"):
        drop(tiny_llama, tiny_llama, attention=(1,))
    with pytest.raises(InputInvalid):
        drop(tiny_llama, out, attention=1, text="too short", options=SHORT)
    assert not out.exists()
    out.mkdir()
    with pytest.raises(OutputExists):
        drop(tiny_llama, out, attention=(1,))


def test_a_dropped_model_can_be_dropped_again(tiny_llama, tmp_path):
    drop(tiny_llama, tmp_path / "one", attention=(0,), progress=False)
    drop(tmp_path / "one", tmp_path / "two", mlp=(1,), progress=False)
    drop(tiny_llama, tmp_path / "both", attention=(0,), mlp=(1,), progress=False)
    two, both = (open_model(tmp_path / name)[1] for name in ("two", "both"))
    ids = torch.arange(5, 15).view(1, 10)
    with torch.no_grad():
        torch.testing.assert_close(two(ids).logits, both(ids).logits, rtol=0, atol=0)


def test_the_cache_is_counted_without_the_dropped_layers(tiny_llama):
    model = open_model(tiny_llama)[1]
    config = model.config
    each = 2 * config.num_key_value_heads * (config.hidden_size // config.num_attention_heads) * 4
    assert kv_bytes_per_token(model) == 2 * each
    assert kv_bytes_per_token(drop_layers(model, attention=(1,))) == each
    assert kv_bytes_per_token(drop_layers(model, attention=(0,))) - each <= 1


def test_healing_lowers_the_loss_of_what_it_learns(tiny_llama):
    _, model, tokenizer = open_model(tiny_llama)
    windows = calibration(tokenizer, TEXT, SHORT)
    less = drop_layers(model, attention=(1,))
    start = [p.detach().clone() for p in less.parameters()]
    settings = LoraSettings(steps=6, batch_size=4, rank=4, learning_rate=1e-2)
    mended = heal(less, windows, settings, progress=False)
    assert type(mended) is type(less)
    for before, now in zip(start, less.parameters(), strict=True):
        assert torch.equal(before, now)
    with torch.no_grad():
        losses = [float(m(windows, labels=windows).loss) for m in (less, mended)]
    assert losses[1] < losses[0]


def test_a_sweep_measures_the_whole_model_and_every_count(tiny_llama):
    rows = sweep(
        tiny_llama, TEXT, counts=(1, 2, 9), ways=("attention", "joint"), options=SHORT, context=8,
        progress=False,
    )  # fmt: skip
    assert [(row.way, row.count) for row in rows] == [
        ("whole", 0), ("attention", 1), ("attention", 2), ("joint", 1), ("joint", 2),
    ]  # fmt: skip
    whole, one, two, *_ = rows
    assert whole.top1 == 1.0
    # A model without its first attention counts tokens with a byte each.
    assert 0 <= one.kv_bytes - whole.kv_bytes // 2 <= 1
    assert two.kv_bytes <= 1
    assert whole.parameters > one.parameters > two.parameters
    assert all(row.prefill > 0 and row.decode > 0 and row.perplexity > 1 for row in rows)
    assert rows[0].perplexity >= min(row.perplexity for row in pareto(rows))
    json.dumps([vars(row) for row in rows])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"ways": ("heads",)}, "'heads'"),
        ({"counts": (0,)}, r"counts \[0\]"),
        ({"context": 0}, "context is 0"),
        ({"options": DropOptions(1, 16)}, "1 window"),
    ],
)
def test_a_sweep_that_cannot_be_run_is_told(tiny_llama, given, told):
    with pytest.raises(InputInvalid, match=told):
        sweep(tiny_llama, TEXT, **{"options": SHORT, **given})


def test_a_text_is_a_file_or_itself(tiny_llama, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    file = tmp_path / "a text.txt"
    file.write_text(TEXT)
    wanted = calibration(tokenizer, TEXT, SHORT)
    assert wanted.equal(calibration(tokenizer, file, SHORT))
    assert wanted.equal(calibration(tokenizer, str(file), SHORT))
    with pytest.raises(InputInvalid, match=r"no text file 'missing\.txt'"):
        calibration(tokenizer, "missing.txt", SHORT)
