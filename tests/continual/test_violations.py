"""Shares of parameters and steps become shares of layers and spans of steps."""

from itertools import pairwise

import numpy as np
import pytest

from zeitgeist.continual.violations import SPANS, by_layer, layer_of, spans


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("base_model.model.transformer.h.11.attn.c_attn.lora_A.default.weight", "transformer.h.11"),
        ("model.layers.0.mlp.experts.7.up_proj.weight", "model.layers.0"),
        ("0.weight", "0"),
        ("weight", "weight"),
        ("conv1.bias", "conv1"),
    ],
)
def test_a_layer_is_the_first_number_in_a_name(name, layer):
    assert layer_of(name) == layer


@pytest.mark.parametrize("steps", [0, 1, 39, 40, 41, 97, 1000])
def test_spans_are_even_and_bounded(steps):
    edges = spans(steps)
    assert edges[0] == 0 and edges[-1] == steps and len(edges) == min(SPANS, steps) + 1
    sizes = np.diff(edges)
    assert not sizes.size or (sizes.min() > 0 and sizes.max() - sizes.min() <= 1)


def test_a_span_is_the_mean_of_its_steps_and_tensors():
    shares = np.random.default_rng(0).random((97, 2))
    found = by_layer([{"h.0.a": float(a), "h.0.b": float(b)} for a, b in shares])
    edges = spans(97)
    wanted = [shares[i:j].mean() for i, j in pairwise(edges)]
    np.testing.assert_allclose(found["h.0"], wanted, atol=6e-5)


def test_steps_and_tensors_that_nothing_restricted_are_left_out():
    assert by_layer([]) == by_layer([{}, {}]) == {}
    assert by_layer([{"a.w": 1.0}, {}, {"b.w": 0.5}]) == {"a": [1.0, 0.0, 0.0], "b": [0, 0, 0.5]}
