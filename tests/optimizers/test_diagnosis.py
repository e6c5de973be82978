"""Norms of gradients and of fine-tunes, against the functions they stand for, and the pictures."""

import pytest
import torch
from torch import nn

from zeitgeist.checkpoints import open_checkpoint
from zeitgeist.errors import InputInvalid
from zeitgeist.optimizers.diagnosis import (
    BINS,
    difference_norms,
    gradient_norms,
    singular_values,
    tensor_norms,
    whole_histogram,
)
from zeitgeist.optimizers.norms import NORMS, OF_VECTORS, dual_norm, norm


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_every_norm_is_the_function_of_that_name():
    x = gaussian(7, 4)
    found = tensor_norms("x", x, NORMS)
    assert found.norms == pytest.approx({k: float(norm(x, k)) for k in NORMS})
    assert found.dual == pytest.approx({k: float(dual_norm(x, k)) for k in NORMS})
    assert found.stable_rank == pytest.approx(float(x.norm() ** 2 / norm(x, "spectral") ** 2))
    vector = tensor_norms("v", gaussian(5), NORMS)
    assert vector.norms.keys() == set(OF_VECTORS) and vector.stable_rank is None
    assert tensor_norms("c", gaussian(3, 2, 2, 2)).norms["frobenius"] > 0


@pytest.mark.parametrize("shape", [(50, 3), (3, 50), (5, 6)])
def test_singular_values_of_long_matrices(shape):
    x = gaussian(*shape)
    torch.testing.assert_close(singular_values(x), torch.linalg.svdvals(x), atol=1e-7, rtol=0)


def test_a_histogram_counts_all_and_zero_has_none():
    x = torch.diag(torch.tensor([1.0, 0.5, 1e-9]))
    steps = tensor_norms("x", x).histogram()
    assert len(steps) == BINS and sum(count for _, _, count in steps) == 3
    assert steps[0][2] == 1 and steps[-1][2] == 1
    zero = tensor_norms("z", torch.zeros(3, 3))
    assert zero.histogram() == [] and zero.stable_rank is None and zero.norms["spectral"] == 0
    whole = list(whole_histogram([tensor_norms("x", x), zero]))
    assert sum(share for _, _, share in whole) == pytest.approx(1)
    assert list(whole_histogram([zero])) == []


def test_gradients_of_a_module():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(InputInvalid, match="call backward"):
        gradient_norms(model)
    model(torch.ones(2, 3)).sum().backward()
    found = gradient_norms(model, ["spectral", "frobenius"])
    assert [each.name for each in found] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert found[0].norms["frobenius"] == pytest.approx(float(model[0].weight.grad.norm()))
    model[0].weight.grad[0, 0] = float("nan")
    with pytest.raises(InputInvalid, match=r"'0\.weight' has values that are NaN"):
        gradient_norms(model)
    for kinds, match in (([], "no norm was named"), (["nuclear"], "there is no norm 'nuclear'")):
        with pytest.raises(InputInvalid, match=match):
            gradient_norms(model, kinds)


def test_what_a_fine_tune_changed(tiny_family):
    base, tuned = tiny_family.base, tiny_family.experts[2]
    found = difference_norms(base, tuned, NORMS, progress=False)
    with open_checkpoint(base) as one, open_checkpoint(tuned) as other:
        assert [each.name for each in found] == list(one.specs)
        for each in found:
            d = other.tensor(each.name).double() - one.tensor(each.name).double()
            assert each.norms["frobenius"] == pytest.approx(float(d.norm()))
            if d.ndim == 2:
                assert each.norms["spectral"] == pytest.approx(float(norm(d, "spectral")), rel=1e-6)


def test_models_that_do_not_fit_are_refused(tiny_family, tiny_llama_tied, tmp_path):
    with pytest.raises(InputInvalid, match=r"'lm_head.weight' is in only one of"):
        difference_norms(tiny_family.base, tiny_llama_tied)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(InputInvalid, match="is an adapter; merge it"):
        difference_norms(tiny_family.base, tmp_path)
