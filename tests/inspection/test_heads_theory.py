"""The model that can be solved: closed forms against autograd, flow against Newton."""

import math

import pytest
import torch

from zeitgeist.inspection.heads_theory import (
    alpha_flow,
    alpha_gradient,
    best_beta,
    predicted,
    simplified_loss,
)


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    log_p = rand(5, 5).log().log_softmax(-1)
    pi = rand(5)
    return pi / pi.sum(), log_p, rand(5), rand(5), 4 * rand(5), 6.0


def test_the_gradient_is_that_of_the_loss(problem):
    pi, log_p, alpha, beta, others, total = problem
    alpha.requires_grad_()
    (wanted,) = torch.autograd.grad(simplified_loss(pi, log_p, alpha, beta, others, total), alpha)
    found = alpha_gradient(pi, log_p, alpha.detach(), beta, others, total)
    assert torch.allclose(found, wanted, atol=1e-12)


def test_the_logit_grows_as_half_the_logarithm(problem):
    pi, log_p, _, _, others, total = problem
    for constant in (0.0, 3.0):
        log_t, alpha = alpha_flow(
            pi, log_p, constant + 0 * pi, others, total, until=24.0, step=0.02
        )
        late = log_t > 16
        slopes = (alpha[late][-1] - alpha[late][0]) / (log_t[late][-1] - log_t[late][0])
        assert (slopes - 0.5).abs().max() < 5e-3
        assert (alpha[1:] >= alpha[:-1]).all() or constant


def test_the_loss_falls_as_the_square_of_the_weight_on_others(problem):
    pi, log_p, _, _, others, total = problem
    far = [simplified_loss(pi, log_p, a + 0 * pi, 0 * pi, others, total) for a in (10.0, 11.0)]
    assert float(far[0] / far[1]) == pytest.approx(math.e**2, rel=1e-2)


def test_the_best_value_is_where_the_flow_of_beta_ends(problem):
    pi, log_p, alpha, _, others, total = problem
    best = best_beta(pi, log_p, alpha, others, total)
    beta = torch.zeros_like(pi, requires_grad=True)
    for _ in range(3_000):
        (slope,) = torch.autograd.grad(simplified_loss(pi, log_p, alpha, beta, others, total), beta)
        beta = (beta - 100.0 * slope).detach().requires_grad_()
    assert torch.allclose(beta.detach() - beta.detach().mean(), best, atol=1e-6)


def test_the_loss_is_convex_in_beta_and_blind_to_constants(problem):
    pi, log_p, alpha, beta, others, total = problem

    def loss(x):
        return simplified_loss(pi, log_p, alpha, x, others, total)

    assert torch.allclose(loss(beta), loss(beta + 7.0), atol=1e-12)
    hessian = torch.autograd.functional.hessian(loss, beta)
    assert torch.linalg.eigvalsh(hessian).min() > -1e-12
    other = beta.flip(0)
    assert loss((beta + other) / 2) <= (loss(beta) + loss(other)) / 2


def test_with_one_sink_logit_the_value_cancels_what_others_add(problem):
    pi, log_p, _, _, others, total = problem
    alpha = 2.0 + 0 * pi
    beta = best_beta(pi, log_p, alpha, others, total)
    wanted = -math.exp(-2.0) * (others - others.mean())
    assert torch.allclose(beta, wanted, atol=1e-8)
    assert float(simplified_loss(pi, log_p, alpha, beta, others, total)) < 1e-14
    assert torch.allclose(predicted(log_p, alpha, beta, others, total), log_p, atol=1e-7)
