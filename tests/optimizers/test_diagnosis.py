"""Norms of gradients and of fine-tunes, against the functions they stand for, and the pictures."""

import pytest
import torch
from torch import nn

from zeitgeist.errors import InputInvalid
from zeitgeist.optimizers.diagnosis import (
    BINS,
    gradient_norms,
    measured,
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


@pytest.mark.parametrize("shape", [(50, 3), (3, 50), (5, 6), (12, 3), (1, 7), (7, 1)])
@pytest.mark.parametrize("step", [1, 13, 50])
@pytest.mark.parametrize("transposed", [False, True])
def test_blocks_of_rows_make_the_norms_of_the_whole(shape, step, transposed):
    x = gaussian(*shape)
    blocks = x.split(step if shape[0] > 4 * shape[1] else shape[0])
    found = measured("x", shape, blocks, NORMS, transposed=transposed)
    whole = x.mT if transposed else x
    assert found.norms == pytest.approx({k: float(norm(whole, k)) for k in NORMS}, rel=1e-12)
    assert found.dual == pytest.approx({k: float(dual_norm(whole, k)) for k in NORMS}, rel=1e-12)
    s = torch.linalg.svdvals(x)
    torch.testing.assert_close(torch.tensor(found.singular, dtype=s.dtype), s, atol=1e-13, rtol=0)


def test_small_singular_values_of_tall_matrices_keep_their_digits():
    x = torch.linalg.qr(gaussian(400, 4)).Q * torch.tensor([1.0, 1e-3, 1e-9, 1e-12]).double()
    found = tensor_norms("x", x).singular
    assert found == pytest.approx((1.0, 1e-3, 1e-9, 1e-12), rel=1e-3)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.bool, torch.int64]
)
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (3, 2, 5), (3, 2, 2, 2)])
def test_tensors_of_every_shape_and_dtype(shape, dtype):
    x = (4 * gaussian(*shape)).to(dtype)
    found = tensor_norms("x", x, NORMS)
    assert found.shape == shape
    assert found.norms["frobenius"] == pytest.approx(float(x.double().norm()))
    assert bool(found.singular) == (len(shape) >= 2)


@pytest.mark.parametrize(
    "bad, told",
    [
        (torch.zeros(0, 3), r"'w' has no values \(shape \(0, 3\)\); leave it out"),
        (torch.zeros(2, 2, dtype=torch.complex64), "'w' is complex"),
        (torch.eye(2).to_sparse(), "'w' is sparse; make it dense"),
        (torch.tensor([[1.0, float("inf")]]), "1 of the 2 values of 'w' are NaN or infinite"),
    ],
)
def test_tensors_without_norms_are_refused(bad, told):
    with pytest.raises(InputInvalid, match=told):
        tensor_norms("w", bad)


def test_gradients_of_gpt2s_layers_are_turned():
    from transformers.pytorch_utils import Conv1D

    model = nn.ModuleDict({"c_fc": Conv1D(12, 3)})
    model["c_fc"](torch.ones(1, 3)).square().sum().backward()
    found = gradient_norms(model, ["rms_spectral"])[0]
    expected = float(norm(model["c_fc"].weight.grad.double().mT, "rms_spectral"))
    assert found.norms["rms_spectral"] == pytest.approx(expected)


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
    with pytest.raises(
        InputInvalid, match=r"1 of the 12 values of '0\.weight' are NaN or infinite"
    ):
        gradient_norms(model)
    for kinds, match in (([], "no norm was named"), (["nuclear"], "there is no norm 'nuclear'")):
        with pytest.raises(InputInvalid, match=match):
            gradient_norms(model, kinds)
