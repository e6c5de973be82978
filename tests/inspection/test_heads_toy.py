"""The task is what it says, the toy is what it says, and a stopped run is the run."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import chisquare

from zeitgeist.errors import InputInvalid, OutputExists
from zeitgeist.inspection import heads_toy
from zeitgeist.inspection.heads_bigram import (
    backcopy,
    bigram_table,
    choose_triggers,
    is_trigger,
    oracle_loss,
    start_distribution,
)
from zeitgeist.inspection.heads_toy import ToyOptions, load_toy, measure, train_toy
from zeitgeist.inspection.heads_toy_model import ToyTransformer, Trace, causal_weights

TEXT = "the cat sat on the mat and he ran at that hat; a tin tan net ate ten of ten nuts. " * 3
TABLE = bigram_table(TEXT, size=12)
TINY = ToyOptions(layers=2, width=8, length=12, batch_size=4, steps=7, record_every=3, seed=1)


def sequences(count=4000, length=40, bos=True, triggers=(0, 1, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return backcopy(TABLE, triggers, count=count, length=length, generator=generator, bos=bos)


def test_a_table_is_counted_and_its_rows_are_distributions():
    assert torch.allclose(TABLE.following.sum(1), torch.ones(12))
    assert float(TABLE.marginal.sum()) == pytest.approx(1.0)
    kept = [c for c in TEXT if c in TABLE.characters]
    a, b = TABLE.characters[0], TABLE.characters[3]
    pairs = [pair for pair in pairwise(kept) if pair[0] == a]
    wanted = sum(pair[1] == b for pair in pairs) / len(pairs)
    assert float(TABLE.following[0, 3]) == pytest.approx(wanted)
    default = bigram_table()
    assert len(default.characters) == 64 and default.characters[0] == " "
    assert torch.equal(default.following, bigram_table().following)


@pytest.mark.parametrize("bos", [True, False])
def test_triggers_copy_always_and_never_meet(bos):
    x = sequences(bos=bos)
    asked = is_trigger(x, (0, 1, 2))
    assert not asked[:, : 1 + bos].any()
    at = asked[:, :-1].nonzero()
    assert len(at) > 1000
    assert torch.equal(x[at[:, 0], at[:, 1] + 1], x[at[:, 0], at[:, 1] - 1])
    assert not (asked[:, 1:] & asked[:, :-1]).any()
    assert (x[:, 0] == TABLE.bos).all() == bos


@pytest.mark.parametrize("triggers", [(0, 1, 2), ()])
def test_what_is_no_copy_follows_the_bigrams(triggers):
    x = sequences(triggers=triggers)
    ps = []
    for v in range(12):
        if v in triggers:
            continue
        following = x[:, 2:][x[:, 1:-1] == v]
        p = TABLE.following[v].double()
        seen = following.bincount(minlength=12)
        assert not seen[p == 0].any()
        if (p > 0).sum() < 2:
            continue
        wanted = p[p > 0] * len(following)
        ps.append(chisquare(seen[p > 0], wanted * (len(following) / wanted.sum())).pvalue)
    assert min(ps) > 0.001 / len(ps)
    first = x[:, 1].bincount(minlength=12)
    start = start_distribution(TABLE, triggers).double()
    assert chisquare(first[start > 0], start[start > 0] * (len(x) / start.sum())).pvalue > 1e-4


def test_draws_belong_to_their_seed():
    assert torch.equal(sequences(9), sequences(9))
    assert not torch.equal(sequences(9), sequences(9, seed=1))
    assert sequences(2, length=1).tolist() == [[12], [12]]


def test_any_characters_may_be_triggers():
    drawn = {choose_triggers(TABLE, 3, seed=seed) for seed in range(5)}
    assert len(drawn) > 1 and all(len(set(each)) == 3 for each in drawn)
    for count in (-1, 7):
        with pytest.raises(InputInvalid, match="are to be triggers"):
            choose_triggers(TABLE, count)
    with pytest.raises(InputInvalid, match="2 different characters"):
        bigram_table("ababab")


def test_nobody_beats_the_oracle():
    x = sequences()
    best = oracle_loss(TABLE, (0, 1, 2), x[:, :-1])
    assert best[is_trigger(x[:, :-1], (0, 1, 2))].abs().max() == 0
    p = TABLE.following.clone()
    idle = ~is_trigger(x[:, :-1], (0, 1, 2))
    idle[:, 0] = False
    own = -p[x[:, :-1].clamp_max(11), x[:, 1:]].log()[idle]
    assert float(own.mean()) == pytest.approx(float(best[idle].mean()), rel=0.01)
    wrong = (p + 0.05) / (p + 0.05).sum(1, keepdim=True)
    worse = -wrong[x[:, :-1].clamp_max(11), x[:, 1:]].log()[idle]
    assert worse.mean() > best[idle].mean()


def test_weights_are_causal_and_relu_with_equal_scores_is_a_mean():
    logits = torch.randn(3, 9, 9, generator=torch.Generator().manual_seed(0))
    soft, relu = causal_weights(logits, "softmax"), causal_weights(logits, "relu")
    assert torch.allclose(soft.sum(-1), torch.ones(3, 9))
    for weights in (soft, relu):
        assert weights.triu(1).abs().max() == 0
    assert (relu >= 0).all() and float(relu.max()) > 0
    mean = torch.ones(9, 9).tril() / torch.arange(1, 10)[:, None]
    assert torch.allclose(causal_weights(torch.ones(9, 9), "relu"), mean)


def test_traces_are_what_the_model_does():
    model = ToyTransformer(TINY, 13)
    x = sequences(3, length=12)
    traces: list[Trace] = []
    logits = model(x, traces)
    assert torch.equal(logits, model(x))
    assert torch.equal(model.head(model.norm(traces[-1].stream)), logits)
    block, before = model.blocks[1], traces[0].stream
    middle = before + traces[1].weights @ traces[1].values
    assert torch.allclose(middle + block.mlp(middle), traces[1].stream, atol=1e-5)
    later = x.clone()
    later[:, 8:] = 0
    assert torch.allclose(model(later)[:, :8], logits[:, :8], atol=1e-6)


@pytest.mark.parametrize(
    "changes", [{"mlp": "none"}, {"mlp": "linear"}, {"without_attention": (0,)}]
)
def test_parts_can_be_left_out(changes):
    options = ToyOptions(layers=2, width=8, length=12, batch_size=4, steps=2, **changes)
    run = train_toy(options, TABLE, progress=False)
    last = run.records[-1]
    if "without_attention" in changes:
        assert last.layers[0].sink_idle is None and last.copying_layer == 1
    names = {name for name, _ in run.model.named_modules()}
    assert ("blocks.0.mlp" in names) == (changes.get("mlp") != "none")
    if changes.get("mlp") == "linear":
        mlp = run.model.blocks[0].mlp
        a, b = torch.randn(1, 8), torch.randn(1, 8)
        inner = mlp[1:]
        assert torch.allclose(inner(a + b), inner(a) + inner(b), atol=1e-5)


def test_seeds_make_the_same_run():
    one, other = (train_toy(TINY, TABLE, progress=False) for _ in range(2))
    assert one.records == other.records
    assert [record.step for record in one.records] == [0, 3, 6, 7]


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
def test_a_stopped_run_goes_on_to_the_same_end(optimiser, tmp_path, monkeypatch):
    options = ToyOptions(
        layers=2, width=8, length=12, batch_size=4, steps=7, record_every=3, optimiser=optimiser
    )
    whole = train_toy(options, TABLE, progress=False)
    step = heads_toy._Training.one_step

    def stopping(self):
        if self.step == 5:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(heads_toy._Training, "one_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_toy(options, TABLE, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    seen = []

    def watching(self):
        seen.append(self.step)
        step(self)

    monkeypatch.setattr(heads_toy._Training, "one_step", watching)
    again = train_toy(options, TABLE, out=tmp_path / "run", progress=False)
    assert seen == [3, 4, 5, 6]
    assert again.records == whole.records
    for name, x in whole.model.state_dict().items():
        assert torch.equal(x, again.model.state_dict()[name])
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["model.safetensors", "toy.json"]


def test_another_runs_state_is_not_used(tmp_path, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(heads_toy._Training, "one_step", stop)
        train_toy(ToyOptions(layers=1, width=8, length=9), TABLE, out=tmp_path / "r",
                  progress=False)  # fmt: skip
    (tmp_path / ".r.partial" / "other.txt").write_text("x")
    found = train_toy(TINY, TABLE, out=tmp_path / "r", progress=False)
    assert found.records == train_toy(TINY, TABLE, progress=False).records
    assert not (tmp_path / "r" / "other.txt").exists()


def test_a_run_is_written_and_opened(tmp_path):
    run = train_toy(TINY, TABLE, out=tmp_path / "run", progress=False)
    again = load_toy(tmp_path / "run")
    assert again.records == run.records and again.options == run.options
    assert again.triggers == run.triggers
    x = sequences(2, length=12)
    assert torch.equal(again.model(x), run.model(x))
    assert load_file(tmp_path / "run" / "model.safetensors")["following"].shape == (12, 12)
    with pytest.raises(OutputExists):
        train_toy(TINY, TABLE, out=tmp_path / "run", progress=False)
    train_toy(TINY, TABLE, out=tmp_path / "run", overwrite=True, progress=False)
    (tmp_path / "run" / "toy.json").write_text("{}")
    for place in (tmp_path / "run", tmp_path):
        with pytest.raises(InputInvalid, match="holds no toy"):
            load_toy(place)


def test_without_triggers_there_is_no_copy_to_lose():
    options = ToyOptions(layers=1, width=8, length=12, batch_size=4, steps=1, triggers=0)
    last = train_toy(options, TABLE, progress=False).records[-1]
    assert last.copy_loss is None and last.layers[0].copying is None
    assert math.isfinite(last.bigram_excess) and last.copying_layer == 0


@torch.no_grad()
def test_attention_is_measured_where_it_is_said_to_be():
    model = ToyTransformer(ToyOptions(layers=1, width=8, length=40, seed=0), 13)
    x = sequences(64, length=41)
    record = measure(model, TABLE, (0, 1, 2), x)
    traces: list[Trace] = []
    model(x[:, :-1], traces)
    asked = is_trigger(x[:, :-1], (0, 1, 2))
    at = asked.nonzero()
    before = traces[0].weights[at[:, 0], at[:, 1], at[:, 1] - 1].mean()
    assert record.layers[0].copying == pytest.approx(float(before), rel=1e-4)
    idle = ~asked
    idle[:, 0] = False
    assert record.layers[0].sink_idle == pytest.approx(
        float(traces[0].weights[..., 0][idle].mean()), rel=1e-4
    )


def test_a_short_training_learns_bigrams():
    options = ToyOptions(
        layers=1, width=16, length=16, batch_size=32, steps=120, learning_rate=1e-2, seed=0
    )
    records = train_toy(options, TABLE, progress=False).records
    assert records[-1].bigram_excess < 0.25 * records[0].bigram_excess
    assert records[-1].bigram_excess > -0.02


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"length": 3}, "length is 3"),
        ({"steps": -1}, "steps is -1"),
        ({"learning_rate": -1.0}, "learning_rate is -1"),
        ({"learning_rate": math.inf}, "learning_rate is inf"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"without_attention": (3,)}, r"layers \[3\].*0 to 2"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_options_that_make_no_toy_are_told(changes, told):
    with pytest.raises(InputInvalid, match=told):
        ToyOptions(**changes)


def test_a_toy_that_diverges_is_stopped(tmp_path):
    options = replace(TINY, learning_rate=1e6, optimiser="sgd", steps=30)
    with pytest.raises(InputInvalid, match=r"the loss is (nan|inf) at step \d+.*learning rate"):
        train_toy(options, TABLE, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
