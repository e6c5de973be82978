"""A scan against the same numbers taken the long way, on every family; and what it refuses."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from zeitgeist.activations import capture, layout_of
from zeitgeist.errors import InputInvalid, OutputExists
from zeitgeist.inspection.heads import HeadsOptions, head_patterns, head_projections, scan
from zeitgeist.inspection.heads_ablate import ablate
from zeitgeist.inspection.heads_report import Seen
from zeitgeist.inspection.heads_windows import domain_windows

OPTIONS = HeadsOptions(length=24, windows=3, batch_size=2, sink_queries=4)
every_family = pytest.mark.parametrize("family", ["Llama", "Gemma2", "GPT2", "GPTNeoX"])


def everywhere(**changes):
    """Options by which the first token is always a sink."""
    return HeadsOptions(
        **{
            "length": 24,
            "windows": 3,
            "batch_size": 2,
            "sink_queries": 23,
            "sink_mass": 0.0,
            "sink_share": 0.0,
            **changes,
        }
    )


@every_family
def test_heads_sum_to_the_attention_output(family, build_model):
    model = build_model(family)
    ids = torch.arange(20)[None]
    layout = layout_of(model)
    with torch.no_grad(), capture(model, ["pattern", "v", "attn_out", "z"]) as acts:
        model(ids)
    for layer in range(2):
        weight = head_projections(model, layer)
        value = acts["v", layer]
        value = value.repeat_interleave(weight.shape[0] // value.shape[2], 2)
        mixed = torch.einsum("bhnm,bmhd,hdc->bnc", acts["pattern", layer], value, weight)
        bias = model.get_submodule(f"{layout.block(layer)}.{layout.o}").bias
        mixed = mixed if bias is None else mixed + bias
        if family == "Gemma2":  # a norm follows
            block = model.get_submodule(layout.block(layer))
            mixed = block.post_attention_layernorm(mixed)
        wanted = acts["attn_out", layer]
        assert (mixed - wanted).abs().max() < 1e-4 * wanted.abs().max()


@every_family
def test_a_scan_is_what_whole_patterns_give(family, build_model, letters, texts):
    model = build_model(family)
    report = scan(model, letters, texts, everywhere(), progress=False)
    windows = domain_windows(letters, texts, length=24, count=3)
    for domain, each in windows.items():
        with torch.no_grad(), capture(model, ["pattern", "v", "z", "resid_post"]) as acts:
            model(each.ids)
        for layer in range(2):
            pattern = acts["pattern", layer]
            assert (pattern.sum(-1) - 1).abs().max() < 1e-5
            mass = pattern[:, :, 1:, 0].mean((0, 2))
            weight = head_projections(model, layer)
            value = acts["v", layer]
            value = value.repeat_interleave(4 // value.shape[2], 2)
            norms = torch.einsum("bnhd,hdc->bnhc", value, weight).norm(dim=-1)
            ratio = (norms[:, 0] / norms[:, 1:].mean(1)).mean(0)
            out = torch.einsum("bnhd,hdc->bnhc", acts["z", layer], weight).norm(dim=-1)
            output = out[:, 1:].mean((0, 1))
            stream = acts["resid_post", layer].norm(dim=-1)
            for head in range(4):
                row = report.row(layer, head, domain)
                assert row.sink_mass == pytest.approx(float(mass[head]), rel=1e-3)
                assert row.value_ratio == pytest.approx(float(ratio[head]), rel=1e-3)
                wanted = float(output[head] / output.mean())
                assert row.output_ratio == pytest.approx(wanted, rel=1e-3)
                logs = pattern[:, head].clamp_min(torch.finfo(torch.float32).tiny).log()
                d = [logs[:, t, 0] - logs[:, t, 1 : t + 1].mean(-1) for t in range(1, 24)]
                assert row.sink_logit == pytest.approx(float(torch.stack(d).mean()), rel=1e-3)
            peak = next(r for r in report.peaks if (r.domain, r.layer) == (domain, layer))
            assert peak.sink == pytest.approx(float(stream[:, 0].mean()), rel=1e-4)
            assert peak.largest == pytest.approx(float(stream[:, 1:].amax(1).mean()), rel=1e-4)
            assert peak.median == pytest.approx(float(stream[:, 1:].median()), rel=1e-4)
    assert [row.position for row in report.sinks] == [0, 0]


def test_what_runs_attention_and_how_many_at_once_changes_nothing(build_model, letters, texts):
    rows = []
    for how, batch in (("eager", 1), ("sdpa", 2), ("sdpa", 7)):
        model = build_model()
        model.set_attn_implementation(how)
        found = scan(model, letters, texts, everywhere(batch_size=batch), progress=False)
        assert model.config._attn_implementation == how
        rows.append([(row.sink_mass, row.sink_logit, row.output_ratio) for row in found.heads])
    for other in rows[1:]:
        assert torch.allclose(torch.tensor(rows[0]), torch.tensor(other), rtol=1e-4, atol=1e-5)


def test_without_a_sink_nothing_is_told_of_sinks(build_model, letters, texts):
    report = scan(build_model(scale=0.01), letters, texts, OPTIONS, progress=False)
    assert report.sinks == ()
    for row in report.heads:
        assert (row.sink_mass, row.sink_logit, row.value_ratio) == (0.0, None, None)
        assert row.kind == "active" and math.isfinite(row.output_ratio)
    assert all(row.sink is None for row in report.peaks)


def test_layers_are_scanned_alone(build_model, letters, texts):
    model = build_model()
    whole = scan(model, letters, texts, everywhere(), progress=False)
    some = scan(model, letters, texts, everywhere(), layers=[1], progress=False)
    assert some.layers == (1,)
    assert some.row(1, 2, "code") == whole.row(1, 2, "code")
    assert [row.layer for row in some.peaks if row.domain == "code"] == [0, 1]
    assert some.peaks[-1] == whole.peaks[-1]


def test_sinks_in_the_middle_and_massive_coordinates_are_found():
    b, layers, h, n, k = 2, 2, 3, 20, 4
    pattern = torch.zeros(b, layers, 4, h, n)
    pattern[:, :, 0, :, 5] = 0.9 * (n - 6)
    stream = torch.ones(b, layers + 1, n, 2 + 2 * k)
    stream[..., 2 + k :] = torch.arange(k)
    stream[:, 1:, 5, 2] = -3000.0
    stream[:, 1:, 5, 2 + k] = 7.0
    stream[:, 1:, 5, 0] = 3000.0
    values = torch.ones(b, layers, h, n)
    values[..., 5] = 0.25
    seen = Seen("d", everywhere(sink_queries=4, sink_mass=0.3, sink_share=0.5), (3, 4), pattern,
                values, values, stream)  # fmt: skip
    assert seen.sinks.nonzero()[:, 1].tolist() == [5, 5]
    rows = list(seen.head_rows())
    assert rows[0].sink_mass == pytest.approx(0.9 * 14 / 19)
    assert rows[0].value_ratio == pytest.approx(0.25)
    assert rows[0].kind == "mixed"
    (massive,) = seen.massive_rows()
    assert (massive.coordinate, massive.first, massive.last) == (7, 3, 4)
    assert massive.value == -3000.0 and massive.ratio == 3000.0 and massive.at_sinks == 1.0
    assert [peak.sink for peak in seen.peak_rows()] == [1.0, 3000.0, 3000.0]


def test_gaps_are_differences_of_sink_mass(build_model, letters, texts):
    report = scan(build_model(), letters, texts, everywhere(), progress=False)
    gaps = report.gaps("prose", "code")
    assert len(gaps) == 8
    assert [abs(gap[2]) for gap in gaps] == sorted((abs(gap[2]) for gap in gaps), reverse=True)
    layer, head, gap, error = gaps[0]
    one, other = (report.row(layer, head, domain) for domain in ("prose", "code"))
    assert gap == one.sink_mass - other.sink_mass
    assert error == pytest.approx(math.hypot(one.error, other.error))


def test_windows_are_equally_long_spread_and_begin_with_bos_if_asked(letters):
    texts = {"a": ["abcdefgh", "ijklm"]}
    found = domain_windows(letters, texts, length=3, count=2)["a"]
    assert found.ids.tolist() == [[97, 98, 99], [100, 101, 102]]
    found = domain_windows(letters, texts, length=5, count=2)["a"]
    assert found.texts == (0, 1)
    found = domain_windows(letters, texts, length=3, count=9, bos=True)["a"]
    assert found.ids[:, 0].tolist() == [1] * 6
    assert found.ids[1].tolist() == [1, 99, 100]


def test_a_report_is_saved_and_read_back(build_model, letters, texts, tmp_path):
    report = scan(build_model(), letters, texts, everywhere(), progress=False)
    report.save(tmp_path / "out")
    told = json.loads((tmp_path / "out" / "heads.json").read_text())
    assert len(told["heads"]) == 16 and told["options"]["length"] == 24
    stored = load_file(tmp_path / "out" / "heads.safetensors")
    assert stored["prose.sink_mass"].shape == (3, 2, 4)
    assert stored["code.stream"].shape == (3, 3, 24)
    with pytest.raises(OutputExists):
        report.save(tmp_path / "out")
    report.save(tmp_path / "out", overwrite=True)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"domains": {}}, "no domains"),
        ({"domains": {"a": []}}, "domain 'a': there are no texts"),
        ({"domains": {"a": ["x" * 24, "short"]}}, "text 1 has 5 tokens and a window has 24"),
        ({"layers": [2]}, "layer 2.*0 to 1"),
        ({"layers": []}, "no layer"),
        ({"options": {"windows": 0}}, "windows is 0"),
        ({"options": {"batch_size": 0}}, "batch_size is 0"),
        ({"options": {"dormant": 1.5}}, "dormant is 1.5"),
        ({"options": {"dormant": 0.2}}, "active is 0.3 and dormant is 0.2"),
        ({"options": {"length": 16}}, "followed by 16 tokens and a window has 16"),
    ],
)
def test_what_cannot_be_scanned_is_told(given, told, build_model, letters, texts):
    with pytest.raises(InputInvalid, match=told):
        scan(
            build_model(),
            letters,
            given.get("domains", texts),
            HeadsOptions(**given["options"]) if "options" in given else OPTIONS,
            layers=given.get("layers"),
            progress=False,
        )


def test_a_bos_that_is_not_there_is_told(letters, build_model, texts):
    letters.bos_token_id = None
    with pytest.raises(InputInvalid, match="no BOS"):
        scan(build_model(), letters, texts, everywhere(bos=True), progress=False)
    with pytest.raises(InputInvalid, match="windows of 1 tokens"):
        domain_windows(letters, texts, length=1, count=1)


def test_training_mode_is_as_it_was(build_model, letters, texts):
    model = build_model().train()
    scan(model, letters, texts, everywhere(), progress=False)
    assert model.training


def test_windows_longer_than_learned_positions_are_refused(build_model, letters, texts):
    model, long = build_model("GPT2"), HeadsOptions(length=65)
    with pytest.raises(InputInvalid, match="65 tokens and the model reads 64"):
        scan(model, letters, texts, long, progress=False)
    with pytest.raises(InputInvalid, match="65 tokens and the model reads 64"):
        head_patterns(model, letters, texts, 0, 0, length=65)
    with pytest.raises(InputInvalid, match="65 tokens and the model reads 64"):
        ablate(model, letters, texts, ["0.1"], options=long, progress=False)
