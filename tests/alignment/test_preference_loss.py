"""Direct preference optimisation: closed forms, limits, and transformers' own log-likelihoods."""

import math

import pytest
import torch

from zeitgeist.alignment.policies import open_policy
from zeitgeist.alignment.preference_loss import (
    Pair,
    collate_pairs,
    log_likelihoods,
    pair_loss,
    preference_loss,
)
from zeitgeist.training import Example, collate

CHOSEN = [Example((5, 6), (20, 21, 2)), Example((7,), (22, 2))]
REJECTED = [Example((5, 6), (30, 2)), Example((7,), (31, 32, 33, 2))]


@pytest.fixture(scope="module")
def model(tiny_llama):
    return open_policy(tiny_llama)[0]


def wanted(model, example):
    ids = torch.tensor([example.prompt + example.answer])
    labels = ids.clone()
    labels[0, : len(example.prompt)] = -100
    return -model(input_ids=ids, labels=labels).loss.item() * len(example.answer)


def test_log_likelihoods_are_transformers_own(model):
    found = log_likelihoods(model, collate([*CHOSEN, *REJECTED], pad=3))
    assert found.tolist() == pytest.approx(
        [wanted(model, e) for e in (*CHOSEN, *REJECTED)], rel=1e-5
    )


def test_the_loss_is_its_closed_form(model):
    reference = [(-3.0, -5.0), (-4.0, -1.0)]
    pairs = [Pair(c, r, *q) for c, r, q in zip(CHOSEN, REJECTED, reference, strict=True)]
    batch = collate_pairs(pairs, pad=3)
    terms = []
    for pair in pairs:
        margin = wanted(model, pair.chosen) - pair.reference_chosen
        margin -= wanted(model, pair.rejected) - pair.reference_rejected
        terms.append(math.log1p(math.exp(-0.3 * margin)))
    nll = -sum(wanted(model, e) for e in CHOSEN) / 5
    found = pair_loss(model, batch, beta=0.3, weight=0.0).item()
    assert found == pytest.approx(sum(terms) / 2, rel=1e-5)
    whole = pair_loss(model, batch, beta=0.3, weight=2.0).item()
    assert whole == pytest.approx(sum(terms) / 2 + 2 * nll, rel=1e-5)


def test_a_policy_that_is_the_reference_pays_log_two_whatever_beta():
    same = torch.tensor([-3.0, -70.0])
    for beta in (0.01, 1.0, 50.0):
        loss = preference_loss(same, same - 1, same, same - 1, beta=beta)
        assert loss.item() == pytest.approx(math.log(2))


def test_the_gradient_lifts_chosen_as_much_as_it_lowers_rejected():
    chosen, rejected = (torch.tensor([-2.0, -3.0], requires_grad=True) for _ in range(2))
    zero = torch.zeros(2)
    preference_loss(chosen, rejected, zero, zero).backward()
    assert torch.equal(chosen.grad, -rejected.grad) and (chosen.grad < 0).all()
