"""Taking parts out by hooks is taking them out of the weights; and what it cannot do is told."""

import numpy as np
import pytest
import torch

from zeitgeist.activations import layout_of
from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.heads import HeadsOptions
from zeitgeist.inspection.heads_ablate import (
    Part,
    _check,
    ablate,
    next_token_losses,
    paired_interval,
)
from zeitgeist.inspection.heads_windows import domain_windows

SINKY = HeadsOptions(
    length=24, windows=3, batch_size=2, sink_queries=23, sink_mass=0.0, sink_share=0.0
)
every_family = pytest.mark.parametrize("family", ["Llama", "Gemma2", "GPT2", "GPTNeoX"])


def rows_of(model, letters, texts, parts, how="zero", **named):
    return ablate(model, letters, texts, parts, how, SINKY, progress=False, **named)


def loss_of(model, letters, texts, domain="prose"):
    ids = domain_windows(letters, texts, length=24, count=3)[domain].ids
    with torch.no_grad():
        return float(next_token_losses(model(ids).logits, ids).mean())


def projection(model, layer):
    """W_O as in x heads..., shared with the model."""
    layout = layout_of(model)
    weight = model.get_submodule(f"{layout.block(layer)}.{layout.o}").weight
    return weight if layout.name == "gpt2" else weight.T


@every_family
def test_zeroing_a_head_is_editing_its_projection(family, build_model, letters, texts):
    (row, _) = rows_of(build_model(family), letters, texts, ["1.2"])
    edited = build_model(family)
    with torch.no_grad():
        projection(edited, 1).unflatten(0, (4, -1))[2] = 0
    assert row.loss == pytest.approx(loss_of(edited, letters, texts), abs=1e-4)
    whole = loss_of(build_model(family), letters, texts)
    assert row.change == pytest.approx(row.loss - whole, abs=1e-4)


def test_zeroing_a_sub_layer_is_editing_its_weights(build_model, letters, texts):
    found = rows_of(build_model(), letters, texts, ["attention:0", "mlp:1"])
    edited = build_model()
    edited.model.layers[0].self_attn.o_proj.weight.data.zero_()
    assert found[0].loss == pytest.approx(loss_of(edited, letters, texts), abs=1e-4)
    edited = build_model()
    edited.model.layers[1].mlp.down_proj.weight.data.zero_()
    assert found[2].loss == pytest.approx(loss_of(edited, letters, texts), abs=1e-4)


@every_family
def test_all_heads_are_the_attention_layer(family, build_model, letters, texts):
    model = build_model(family)
    for layer in (0, 1):
        heads = [f"{layer}.{head}" for head in range(4)]
        for how in ("zero", "to-sink"):
            if family in ("GPT2", "GPTNeoX") and how == "zero":
                continue  # the projection's bias stays with the heads and goes with the layer
            one = rows_of(model, letters, texts, heads, how, together=True)
            other = rows_of(model, letters, texts, [f"attention:{layer}"], how)
            assert [row.loss for row in one] == pytest.approx([row.loss for row in other], abs=1e-4)


def test_all_mass_on_a_sink_without_value_is_a_head_without_output(build_model, letters, texts):
    model = build_model()
    # One letter at every start, whose value is 0 in layer 0: rows differ in what follows.
    texts = {"prose": ["~" + text[:23] for text in texts["prose"]]}
    with torch.no_grad():
        model.model.embed_tokens.weight[ord("~")] = 0
    zero = rows_of(model, letters, texts, ["0.1"], "zero")
    moved = rows_of(model, letters, texts, ["0.1"], "to-sink")
    assert moved[0].loss == pytest.approx(zero[0].loss, abs=1e-4)
    assert abs(zero[0].change) > 1e-4


def test_moving_all_mass_shows_in_the_sink_mass(build_model, letters, texts):
    model = build_model()
    row = rows_of(model, letters, texts, ["attention:0", "attention:1"], "to-sink",
                  together=True)[0]  # fmt: skip
    assert row.sink_mass[1] == pytest.approx(1.0, abs=1e-5)
    assert 0 < row.sink_mass[0] < 1


def test_a_mean_is_over_all_tokens_of_all_domains(build_model, letters, texts):
    model = build_model()
    windows = domain_windows(letters, texts, length=24, count=3)
    from zeitgeist.activations import capture, patch

    kept = []
    for each in windows.values():
        with torch.no_grad(), capture(model, ["z", "mlp_out"], layers=[1]) as acts:
            model(each.ids)
        kept.append((acts["z", 1], acts["mlp_out", 1]))
    z, mlp = (torch.cat([pair[i] for pair in kept]).mean((0, 1)) for i in (0, 1))
    ids = windows["code"].ids

    def swap(x):
        x = x.clone()
        x[:, :, 3] = z[3]
        return x

    wanted = []
    for change in ({("z", 1): swap}, {("mlp_out", 1): mlp}):
        with torch.no_grad(), patch(model, change):
            wanted.append(float(next_token_losses(model(ids).logits, ids).mean()))
    found = rows_of(model, letters, texts, ["1.3", "mlp:1"], "mean")
    losses = [row.loss for row in found if row.domain == "code"]
    assert losses == pytest.approx(wanted, abs=1e-4)


def test_the_peak_goes_with_what_makes_it(build_model, letters, texts):
    model = build_model(scale=0.5)
    texts = {"prose": ["~" + "abcdefgh" * 4, "~" + "hgfedcba" * 4]}
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 0
        model.model.embed_tokens.weight[ord("~"), 0] = 20
        gate, up = model.model.layers[0].mlp.gate_proj, model.model.layers[0].mlp.up_proj
        gate.weight[0].zero_()
        up.weight[0].zero_()
        gate.weight[0, 0] = up.weight[0, 0] = 5
        model.model.layers[0].mlp.down_proj.weight[5, 0] = 100
    found = {row.part: row.peak for row in
             rows_of(model, letters, texts, ["mlp:0", "mlp:1", "attention:1"])}  # fmt: skip
    before = found["mlp:0"][0]
    assert before > 100
    assert found["mlp:0"][1] < 0.2 * before
    assert found["mlp:1"][1] > 0.5 * before
    assert found["attention:1"][1] > 0.5 * before


def test_intervals_are_over_texts_where_there_are_several():
    change = np.array([1.0, 1.0, 3.0, 3.0])
    low, high = paired_interval(change, [0, 0, 1, 1], seed=0)
    assert (low, high) == (1.0, 3.0)
    alone = paired_interval(change, [0, 0, 0, 0], seed=0)
    assert 1.0 <= alone[0] < alone[1] <= 3.0
    assert alone == paired_interval(change, [0, 0, 0, 0], seed=0)
    assert paired_interval(change[:1], [0], seed=0) == (None, None)


def test_parts_are_named_as_they_are_printed():
    for name in ("16.25", "attention:3", "mlp:0"):
        assert str(Part.named(name)) == name


@pytest.mark.parametrize(
    ("parts", "how", "told"),
    [
        ([], "zero", "no part"),
        (["3"], "zero", "'3' is no part"),
        (["mlp:1.2"], "zero", "'mlp:1.2' is no part"),
        (["head"], "zero", "'head' is no part"),
        (["2.0"], "zero", "has no 2.0; its layers are 0 to 1, its heads 0 to 3"),
        (["0.4"], "zero", "has no 0.4"),
        ([Part("head", 0)], "zero", "has no 0.-1"),
        (["mlp:0"], "to-sink", "mlp:0 has no attention"),
    ],
)
def test_what_cannot_be_taken_out_is_told(parts, how, told, build_model, letters, texts):
    with pytest.raises(InputInvalid, match=told):
        rows_of(build_model(), letters, texts, parts, how)


def test_an_unknown_way_is_told(build_model):
    with pytest.raises(InputInvalid, match="no way 'noise'"):
        _check(build_model(), [Part("head", 0, 0)], "noise")


def test_without_a_sink_nothing_can_be_moved_there(build_model, letters, texts):
    options = HeadsOptions(length=24, windows=2, sink_queries=4, sink_mass=0.9, sink_share=1.0)
    with pytest.raises(InputInvalid, match="no window has a sink"):
        ablate(build_model(), letters, texts, ["0.1"], "to-sink", options, progress=False)
    (row,) = ablate(
        build_model(), letters, {"a": texts["code"]}, ["0.1"], "zero", options, progress=False
    )
    assert row.peak is None and row.sink_mass == (0.0, 0.0)


def test_windows_without_a_sink_do_not_count_as_ones_that_lose_nothing(
    build_model, letters, monkeypatch
):
    from zeitgeist.inspection import heads_ablate

    texts = {"a": ["the cat sat on the mat and slept " * 3]}
    options = HeadsOptions(length=24, windows=4, sink_queries=4, sink_mass=0.05, sink_share=0.1)
    (whole,) = ablate(build_model(), letters, texts, ["0.1"], "to-sink", options, progress=False)
    found = heads_ablate.find_sinks

    def blind_to_the_first(*given, **named):
        sinks = found(*given, **named)
        sinks[0] = False
        return sinks

    monkeypatch.setattr(heads_ablate, "find_sinks", blind_to_the_first)
    (some,) = ablate(build_model(), letters, texts, ["0.1"], "to-sink", options, progress=False)
    assert (whole.windows, some.windows) == (4, 3)
    monkeypatch.undo()
    (zero,) = ablate(build_model(), letters, texts, ["0.1"], "zero", options, progress=False)
    assert zero.windows == 4 and zero.low is not None


def test_one_window_gives_no_interval(build_model, letters):
    options = HeadsOptions(length=24, windows=1, sink_queries=4)
    (row,) = ablate(
        build_model(), letters, {"a": "the cat sat on the mat " * 3}, ["0.1"], "zero", options,
        progress=False,
    )  # fmt: skip
    assert (row.windows, row.low, row.high) == (1, None, None)
