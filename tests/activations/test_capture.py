"""What is captured is what flows; what is patched takes its place; and nothing is left behind."""

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from zeitgeist.activations import SITES, capture, layout_of, patch, resolve_site
from zeitgeist.activations.patterns import HOOKS
from zeitgeist.activations.texts import capture_texts
from zeitgeist.errors import InputInvalid

LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "head_dim": 8,
    "pad_token_id": 0,
}
GPT2 = {"n_embd": 16, "n_layer": 3, "n_head": 4, "vocab_size": 40, "n_positions": 64}
NEOX = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 40,
}
FAMILIES = {
    "Llama": ("llama", LLAMA),
    "Qwen2": ("llama", {k: v for k, v in LLAMA.items() if k != "head_dim"}),
    "Qwen3": ("llama", LLAMA),
    "Gemma2": ("sandwich", {**LLAMA, "attn_logit_softcapping": 5.0}),
    "Olmo2": ("post", {k: v for k, v in LLAMA.items() if k != "head_dim"}),
    "GPT2": ("gpt2", GPT2),
    "GPTNeoX": ("neox", NEOX),
}
every_family = pytest.mark.parametrize("family", FAMILIES)
IDS = torch.randint(1, 40, (2, 9), generator=torch.Generator().manual_seed(0))


def build(family, **changes):
    config = getattr(transformers, f"{family}Config")(**{**FAMILIES[family][1], **changes})
    heads = {"GPT2": "GPT2LMHeadModel"}
    model = getattr(transformers, heads.get(family, f"{family}ForCausalLM"))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return model(config).to(torch.float32 if family == "Gemma2" else torch.float64).eval()


def close(family):
    """Gemma 2's own attention takes its softmax in float32, whatever it computes in."""
    return 1e-5 if family == "Gemma2" else 1e-10


def sites_of(family):
    return [site for site in SITES if family != "GPTNeoX" or site != "resid_mid"]


def run(model, ids=IDS, **named):
    with torch.no_grad():
        return model(ids, **named).logits


def hooks_of(model):
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(getattr(m, HOOKS, ()))
        for m in model.modules()
    )


@every_family
def test_the_stream_adds_up_and_heads_sum_to_attention(family):
    model = build(family)
    plain = run(model)
    with capture(model, sites_of(family)) as acts:
        shown = run(model)
    assert (plain - shown).abs().max() < close(family)
    layout = layout_of(model)
    assert layout.name == FAMILIES[family][0]
    for layer in range(3):
        pre, post = acts["resid_pre", layer], acts["resid_post", layer]
        attention, mlp = acts["attn_out", layer], acts["mlp_out", layer]
        assert (pre + attention + mlp - post).abs().max() < close(family)
        if family != "GPTNeoX":
            assert (pre + attention - acts["resid_mid", layer]).abs().max() < close(family)
        if layer:
            assert torch.equal(pre, acts["resid_post", layer - 1])
        z, pattern = acts["z", layer], acts["pattern", layer]
        v = acts["v", layer]
        groups = z.shape[2] // v.shape[2]
        mixed = torch.einsum("bhnm,bmhd->bnhd", pattern, v.repeat_interleave(groups, 2))
        assert (mixed - z).abs().max() < close(family)
        assert (pattern.sum(-1) - 1).abs().max() < close(family)
        assert pattern.triu(1).abs().max() == 0
        out = model.get_submodule(f"{layout.block(layer)}.{layout.o}")
        weight = out.weight if family == "GPT2" else out.weight.T
        by_head = torch.einsum("bnhd,hdc->bnhc", z, weight.unflatten(0, z.shape[2:]))
        bias = 0 if out.bias is None else out.bias
        if FAMILIES[family][0] in ("llama", "gpt2", "neox"):
            assert (by_head.sum(2) + bias - attention).abs().max() < close(family)


@every_family
def test_what_a_run_itself_had_changes_nothing(family):
    model = build(family)
    plain = run(model)
    for site in sites_of(family):
        with capture(model, [site], layers=[1]) as acts:
            own = run(model)
        with patch(model, {(site, 1): acts[site, 1]}):
            again = run(model)
        assert torch.equal(own, again), site
        assert (plain - again).abs().max() < close(family)


@every_family
def test_another_runs_stream_makes_another_runs_answer(family):
    model, other = build(family), IDS.flip(1)
    with capture(model, "resid_post", layers=[0, -1]) as acts:
        corrupted = run(model, other)
    for layer in (0, 2):
        with patch(model, {("resid_post", layer): acts["resid_post", layer]}):
            assert (run(model) - corrupted).abs().max() < close(family)


@every_family
def test_a_head_without_weights_is_a_head_without_output(family):
    model = build(family)

    def silent(pattern):
        return torch.cat([torch.zeros_like(pattern[:, :1]), pattern[:, 1:]], 1)

    def empty(z):
        return torch.cat([torch.zeros_like(z[:, :, :1]), z[:, :, 1:]], 2)

    answers = []
    for changes in ({("pattern", 1): silent}, {("z", 1): empty}):
        with patch(model, changes):
            answers.append(run(model))
    assert (answers[0] - answers[1]).abs().max() < close(family)
    assert (answers[0] - run(model)).abs().max() > 1e-6


@every_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_moves_nothing(family, side):
    model = build(family)
    with capture(model, ["resid_post", "z"], positions="last") as alone:
        run(model)
    pad = (3, 0) if side == "left" else (0, 3)
    ids = nn.functional.pad(IDS, pad)
    mask = (ids != 0).long()
    places = (mask.cumsum(1) - 1).clamp(min=0)
    with capture(model, ["resid_post", "z"], positions="last") as padded:
        run(model, ids, attention_mask=mask, position_ids=places)
    for key in alone.keys():  # noqa: SIM118 - no mapping
        assert alone[key].shape[1] == 1
        assert (alone[key] - padded[key]).abs().max() < close(family)


@every_family
def test_generation_shows_what_one_pass_over_its_text_shows(family):
    model = build(family)
    how = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with capture(model, ["resid_post", "k"], layers=[0, 2]) as acts:
        ids = model.generate(IDS, attention_mask=torch.ones_like(IDS), **how)
    with capture(model, ["resid_post", "k"], layers=[0, 2]) as whole:
        run(model, ids[:, :-1])
    for key in whole.keys():  # noqa: SIM118
        assert (acts[key] - whole[key]).abs().max() < close(family)
    with capture(model, "resid_post", layers=[2], positions=[4, 10, 99]) as some:
        model.generate(IDS, attention_mask=torch.ones_like(IDS), **how)
    assert (some["resid_post", 2] - whole["resid_post", 2][:, [4, 10]]).abs().max() < close(family)


def test_chosen_tokens_are_kept_and_changed_and_no_others():
    model = build("Llama")
    with capture(model, "resid_post", layers=[1]) as whole:
        run(model)
    with capture(model, "resid_post", layers=[1], positions=[-1, 2]) as some:
        run(model)
    assert torch.equal(some["resid_post", 1], whole["resid_post", 1][:, [8, 2]])
    for positions, at in ((3, [3]), ("last", [8]), ([0, -2], [0, 7])):
        with (
            patch(model, {("resid_pre", 1): 7.0}, positions=positions),
            capture(model, "resid_pre", layers=[1]) as found,
        ):
            run(model)
        with capture(model, "resid_pre", layers=[1]) as plain:
            run(model)
        changed = (found["resid_pre", 1] != plain["resid_pre", 1]).any(-1).any(0)
        assert changed.nonzero().flatten().tolist() == at


def test_bytes_kept_are_bytes_asked_and_copies():
    model = build("Llama")
    with capture(model, ["resid_post", "mlp_out"], positions=-1) as acts:
        run(model)
    assert acts.nbytes == 2 * 3 * 2 * 16 * 8  # sites, layers, rows, width, bytes
    for key in acts.keys():  # noqa: SIM118
        assert acts[key].untyped_storage().nbytes() == acts[key].nbytes
        assert not acts[key].requires_grad


@every_family
def test_what_is_reduced_inside_the_hook_is_what_is_reduced_afterwards(family):
    model = build(family)
    with capture(model, ["pattern", "z"]) as whole:
        run(model)
    own = {"pattern": lambda p: p.sum(2), ("pattern", 1): lambda p: p.amax((1, 2))}
    with capture(model, ["pattern", "z"], reduce=own) as less:
        run(model)
    for layer in (0, 2):
        assert torch.equal(less["pattern", layer], whole["pattern", layer].sum(2))
    assert torch.equal(less["pattern", 1], whole["pattern", 1].amax((1, 2)))
    assert torch.equal(less["z", 1], whole["z", 1])
    kept = sum(less["pattern", layer].nbytes for layer in range(3))
    assert kept == (2 * 2 * 4 * 9 + 2 * 9) * whole["pattern", 0].element_size()


def test_a_reduction_sees_the_chosen_tokens_and_keeps_no_view():
    model = build("Llama")
    with capture(model, "resid_post", positions=[2, 5]) as whole:
        run(model)
    first = {"resid_post": lambda x: x[..., 0]}
    with capture(model, "resid_post", positions=[2, 5, 99], reduce=first) as some:
        run(model)
    for layer in range(3):
        found = some["resid_post", layer]
        assert torch.equal(found, whole["resid_post", layer][..., 0])
        assert found.untyped_storage().nbytes() == found.nbytes
    with capture(model, "resid_post", layers=[0], positions=-1, reduce=first, grad=True) as some:
        model(IDS)
    assert some["resid_post", 0].requires_grad
    with capture(model, "resid_post", layers=[0], reduce=first) as some:
        run(model)
        run(model, IDS[:1])
    assert [len(part) for part in some.calls(("resid_post", 0))] == [2, 1]
    with pytest.raises(InputInvalid, match="was reduced in 2 calls"):
        some["resid_post", 0]


def test_gradients_flow_when_asked():
    model = build("Llama")
    with capture(model, "attn_out", layers=[1], grad=True) as acts:
        loss = model(IDS).logits.sum()
    grad = torch.autograd.grad(loss, acts["attn_out", 1], allow_unused=True)
    assert acts["attn_out", 1].requires_grad and grad is not None
    shift = torch.zeros(16, dtype=torch.float64, requires_grad=True)
    with patch(model, {("attn_out", 1): lambda x: x + shift}):
        model(IDS).logits.square().sum().backward()
    assert shift.grad.abs().max() > 0


def test_any_module_is_reached_by_its_path():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(3, 4)
    with capture(model, ["0", "2:in"]) as acts:
        model(x)
    assert torch.equal(acts["2:in"], acts["0"].relu())
    with patch(model, {"1": 0.0}):
        assert torch.equal(model(x), model[2].bias.expand(3, 2))
    llama = build("Llama")
    with capture(llama, ["model.layers.1.mlp.up_proj", "lm_head"]) as acts:
        logits = run(llama)
    assert torch.equal(acts["lm_head"], logits)
    assert acts["model.layers.1.mlp.up_proj"].shape == (2, 9, 24)


def test_hooks_are_gone_and_attention_is_as_it_was_whatever_happens():
    model = build("Gemma2")
    before = model.config._attn_implementation
    for act in (capture(model, SITES), patch(model, {("pattern", 0): 0.0, ("q", 1): 0.0})):
        with pytest.raises(RuntimeError, match="stop"), act:
            assert hooks_of(model) > 0
            raise RuntimeError("stop")
        assert hooks_of(model) == 0
        assert model.config._attn_implementation == before
    with pytest.raises(InputInvalid), capture(model, ["resid_post", "nowhere"]):
        pass
    assert hooks_of(model) == 0


def test_saved_as_safetensors_and_never_over_a_file(tmp_path):
    model = build("Llama")
    with capture(model, ["z", "lm_head"], layers=[1]) as acts:
        run(model)
    acts.save(tmp_path / "acts.safetensors")
    stored = load_file(tmp_path / "acts.safetensors")
    assert torch.equal(stored["z.1"], acts["z", 1]) and set(stored) == {"z.1", "lm_head"}
    with pytest.raises(InputInvalid, match="is there already"):
        acts.save(tmp_path / "acts.safetensors")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("act", "told"),
    [
        (lambda m: capture(m, "resid_pots"), "'resid_pots'.*resid_post"),
        (lambda m: capture(m, "model.layers.9"), r"'model\.layers\.9'"),
        (lambda m: capture(m, "z", layers=[3]), "z of layer 3; the layers are 0 to 2"),
        (lambda m: capture(m, "z", positions="first"), "positions are 'first'"),
        (lambda m: patch(m, {"z": 0.0}), "'z' of which layer"),
        (lambda m: patch(m, {("z", 1): torch.zeros(3)}), r"\(2, 9, 4, 8\).*\(3,\)"),
        (lambda m: patch(m, {("z", 1): lambda z: z[:, :1, :1]}), None),
        (lambda m: capture(m, "z", reduce={"v": torch.sum}), "'v' is to be reduced"),
        (lambda m: capture(m, "z", layers=[1], reduce={("z", 0): torch.sum}), r"\('z', 1\)"),
        (lambda m: capture(torch.compile(m), "z"), "compiled"),
    ],
)
def test_what_cannot_be_hooked_is_told(act, told):
    model = build("Llama")
    if told is None:
        with act(model):
            run(model)
        return
    with pytest.raises(InputInvalid, match=told), act(model):
        run(model)


def test_models_without_a_place_are_told():
    with pytest.raises(InputInvalid, match="built like no family"):
        resolve_site(nn.Sequential(nn.Linear(2, 2)), "z", 0)
    with pytest.raises(InputInvalid, match="no resid_mid"):
        resolve_site(build("GPTNeoX"), "resid_mid", 0)
    with pytest.raises(InputInvalid, match="without parallel residual"):
        layout_of(build("GPTNeoX", use_parallel_residual=False))
    model = build("Llama").train()
    model.model.gradient_checkpointing = True
    with pytest.raises(InputInvalid, match="gradient checkpointing"), capture(model, "z"):
        pass


def test_what_was_not_asked_for_or_did_not_run_is_told():
    model = build("Llama")
    with capture(model, "z", layers=[0]) as acts:
        pass
    with pytest.raises(InputInvalid, match="nothing went through"):
        acts["z", 0]
    with pytest.raises(InputInvalid, match="was not asked for"):
        acts["z", 1]
    with capture(model, "pattern", layers=[0]) as acts:
        run(model)
        run(model, IDS[:1])
    with pytest.raises(InputInvalid, match="do not follow each other"):
        acts["pattern", 0]
    assert len(acts.calls(("pattern", 0))) == 2


@pytest.mark.parametrize("size", [0, -1])
def test_batches_of_no_text_are_refused(size):
    with pytest.raises(InputInvalid, match=f"batch_size is {size}"):
        capture_texts(None, None, ["text"], "resid_post", batch_size=size, progress=False)
