"""The models a merge reads: checkpoints, adapters on them, and what of those is a task vector."""

import json

import pytest
import torch
from safetensors.torch import load_file
from xxhash import xxh3_128

from zeitgeist.checkpoints import open_adapter
from zeitgeist.errors import CheckpointInvalid, InputInvalid, ReferenceUnresolved
from zeitgeist.merging.inputs import close_models, open_models
from zeitgeist.merging.streaming.sources import Applied, LowRank, OnDisk, Stored, Unchanged

Q = "model.layers.0.self_attn.q_proj.weight"
K = "model.layers.0.self_attn.k_proj.weight"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture
def opened():
    """`open_models` for the length of a test."""
    kept = []

    def open_(*references, base=None):
        models = open_models(tuple(map(str, references)), None if base is None else str(base))
        kept.append(models)
        return models

    yield open_
    for models in kept:
        close_models(models)


def read(source, count, start=0, dtype=torch.float64):
    out = torch.empty(count, dtype=dtype)
    source.read(start, start + count, out)
    return out


def test_a_checkpoint_gives_its_tensors(tiny_llama, opened):
    (model,) = opened(tiny_llama).values()
    held = load_file(tiny_llama / "model.safetensors")
    assert set(model.specs) == set(model.names) == set(held)
    source = model.source(Q)
    assert isinstance(source, OnDisk) and not source.is_delta
    assert torch.equal(read(source, 100, start=7), held[Q].flatten()[7:107].double())
    assert model.path == tiny_llama and not model.changes(Q) and not model.apart


def test_a_tied_head_has_two_names_and_is_stored_once(tiny_llama_tied, opened):
    (model,) = opened(tiny_llama_tied).values()
    assert HEAD in model.specs and HEAD not in model.names
    assert torch.equal(read(model.source(HEAD), 64), read(model.source(EMBEDDING), 64))


def test_models_that_share_a_directory_share_what_is_open(tiny_llama, save_lora, tmp_path, opened):
    one, two = (save_lora(tmp_path / f"{i}", i, base=tiny_llama) for i in (1, 2))
    models = opened(tiny_llama, one, f"{tiny_llama}+{two}", base=tiny_llama).values()
    assert len({id(model.checkpoint) for model in models}) == 1


def test_of_an_adapter_on_the_base_only_the_update_is_read(tiny_llama, save_lora, tmp_path, opened):
    lora = save_lora(tmp_path / "lora", 1)
    models = opened(tiny_llama, lora, base=tiny_llama)
    base, model = models[str(tiny_llama)], models[str(lora)]
    update = model.expert(Q, base)
    assert isinstance(update, LowRank) and update.is_delta
    want = open_adapter(lora).delta("model.layers.0.self_attn.q_proj").flatten().double()
    torch.testing.assert_close(read(update, 1024), want, rtol=1e-6, atol=1e-8)
    untouched = model.expert(K, base)
    assert isinstance(untouched, Unchanged) and untouched.is_delta
    assert not read(untouched, 512).any()
    assert model.changes(Q) and not model.changes(K)


def test_of_an_adapter_on_another_model_the_whole_tensor_is_read(
    tiny_family, save_lora, tmp_path, opened
):
    other = tiny_family.experts[0]
    lora = save_lora(tmp_path / "lora", 1)
    models = opened(tiny_family.base, f"{other}+{lora}", base=tiny_family.base)
    base, model = models.values()
    whole = model.expert(Q, base)
    assert isinstance(whole, Applied) and not whole.is_delta
    delta = open_adapter(lora).delta("model.layers.0.self_attn.q_proj").flatten().double()
    held = load_file(other / "model.safetensors")[Q].flatten().double()
    torch.testing.assert_close(read(whole, 1024), held + delta, rtol=1e-6, atol=1e-8)


def test_an_adapter_alone_sits_on_what_it_names(tiny_llama, save_lora, tmp_path, opened):
    lora = save_lora(tmp_path / "lora", 1, base=tiny_llama)
    (model,) = opened(lora).values()
    assert model.checkpoint.path == tiny_llama.resolve()
    assert model.path == lora


def test_or_on_the_base_of_the_recipe(tiny_llama, save_lora, tmp_path, opened):
    lora = save_lora(tmp_path / "lora", 1, base="org/somewhere-else")
    models = opened(tiny_llama, lora, base=tiny_llama)
    assert models[str(lora)].checkpoint.path == tiny_llama.resolve()


def test_an_adapter_that_names_no_base_is_refused(save_lora, tmp_path, opened):
    lora = save_lora(tmp_path / "lora", 1)
    with pytest.raises(InputInvalid, match=r"does not say which model.*--base"):
        opened(lora)


def test_an_adapter_names_its_base_as_the_hub_does(save_lora, tmp_path, opened, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    lora = save_lora(tmp_path / "lora", 1, base="org/no-such-model")
    with pytest.raises(ReferenceUnresolved, match="hub:org/no-such-model"):
        opened(lora)


def test_an_adapter_is_no_base(tiny_llama, save_lora, tmp_path, opened):
    lora = save_lora(tmp_path / "lora", 1, base=tiny_llama)
    with pytest.raises(InputInvalid, match="is an adapter"):
        opened(lora, tiny_llama, base=lora)


def test_an_adapter_of_another_architecture_is_refused(
    tiny_llama, save_lora, rewrite, tmp_path, opened
):
    deeper = save_lora(tmp_path / "deeper", 1, layers=(0, 2))
    with pytest.raises(CheckpointInvalid, match=r"'model\.layers\.2.*does not have"):
        opened(tiny_llama, deeper, base=tiny_llama)

    def narrow(tensors):
        return tensors | {Q: tensors[Q][:16]}

    narrower = rewrite(tiny_llama, tmp_path / "narrow", narrow)
    lora = save_lora(tmp_path / "lora", 1)
    with pytest.raises(CheckpointInvalid, match=r"is \(32, 32\), the weight.*\(16, 32\)"):
        opened(narrower, lora, base=narrower)


def test_saved_modules_are_whole_tensors(tiny_llama, save_lora, tmp_path, opened):
    norm = torch.full((32,), 2.0)
    lora = save_lora(tmp_path / "lora", 1, extra={"model.norm.weight": norm})
    models = opened(tiny_llama, lora, base=tiny_llama)
    model = models[str(lora)]
    source = model.expert("model.norm.weight", models[str(tiny_llama)])
    assert isinstance(source, Stored) and not source.is_delta
    assert torch.equal(read(source, 32), norm.double())
    # its dtype is that of the base, so that a float32 save does not widen the merge
    assert model.specs["model.norm.weight"].dtype == torch.bfloat16


def test_an_adapter_of_a_tied_head_sets_the_head_apart(
    tiny_llama_tied, save_lora, tmp_path, opened
):
    lora = save_lora(tmp_path / "lora", 1, modules=["lm_head"])
    models = opened(tiny_llama_tied, lora, base=tiny_llama_tied)
    base, model = models[str(tiny_llama_tied)], models[str(lora)]
    assert model.apart == {HEAD} and HEAD in model.names
    assert isinstance(model.expert(HEAD, base), LowRank)
    assert isinstance(model.expert(EMBEDDING, base), Unchanged)


def test_a_saved_embedding_is_the_head_s_too_where_they_are_tied(
    tiny_llama_tied, save_lora, tmp_path, opened
):
    rows = torch.full((288, 32), 0.5)
    lora = save_lora(tmp_path / "lora", 1, extra={EMBEDDING: rows})
    model = opened(tiny_llama_tied, lora, base=tiny_llama_tied)[str(lora)]
    assert not model.apart
    for name in (EMBEDDING, HEAD):
        assert torch.equal(read(model.source(name), 64), rows.flatten()[:64].double())


def test_a_fingerprint_is_of_what_the_model_adds(tiny_llama, save_lora, tmp_path, opened):
    lora = save_lora(tmp_path / "lora", 1)
    models = opened(tiny_llama, lora, base=tiny_llama)
    for path, file in ((tiny_llama, "model.safetensors"), (lora, "adapter_model.safetensors")):
        digest = xxh3_128((path / file).read_bytes()).hexdigest()
        assert models[str(path)].fingerprint() == {file: digest}


def test_two_threads_open_a_file_once(tiny_llama, opened, monkeypatch):
    """A file opened twice at once must not be closed under the one who reads from it."""
    from pathlib import Path
    from threading import Barrier, Thread

    (model,) = opened(tiny_llama).values()
    meeting, files, whole_open = Barrier(2), [], Path.open

    def together(self, *args, **kwargs):
        file = whole_open(self, *args, **kwargs)
        if self.suffix == ".safetensors":
            meeting.wait()
            files.append(file)
        return file

    monkeypatch.setattr(Path, "open", together)
    got = {}
    threads = [
        Thread(target=lambda i=i: got.update({i: read(model.source(Q), 1024)})) for i in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(got[0], got[1])
    assert sorted(file.closed for file in files) == [False, True]


def test_a_checkpoint_that_is_no_model_is_named(tmp_path, opened):
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(CheckpointInvalid, match=str(tmp_path)):
        opened(tmp_path)
