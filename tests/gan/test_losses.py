"""The losses of the two games against hand calculations, and the penalty against finite differences."""

import math

import pytest
import torch
from torch import nn

from girih.errors import ParameterError
from girih.gan import losses


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_logistic_losses_are_cross_entropies():
    real, fake = normal(5, seed=1), normal(7, seed=2)
    entropy = nn.functional.binary_cross_entropy_with_logits
    expected = entropy(real, torch.ones_like(real)) + entropy(fake, torch.zeros_like(fake))
    torch.testing.assert_close(losses.logistic_discriminator(real, fake), expected)
    torch.testing.assert_close(losses.logistic_generator(fake), entropy(fake, torch.ones_like(fake)))


def test_logistic_losses_of_large_logits_are_finite():
    real, fake = torch.tensor([-1e4, 1e4]), torch.tensor([1e4, -1e4])
    assert losses.logistic_discriminator(real, fake).item() == 1e4
    assert losses.logistic_generator(fake).item() == 5e3


def test_the_best_discriminator_reaches_the_jensen_shannon_divergence():
    # two normal variables, the logit log p(x) / q(x): 2 log 2 - 2 JS by quadrature
    grid = torch.linspace(-12.0, 13.0, 20_001, dtype=torch.float64)
    p, q = (torch.distributions.Normal(mean, 1.0).log_prob(grid).exp() for mean in (0.0, 1.0))
    half = 0.5 * (p + q)
    js = 0.5 * torch.trapezoid(p * (p / half).log() + q * (q / half).log(), grid)
    real, fake = normal(400_000, seed=1), normal(400_000, seed=2) + 1.0
    loss = losses.logistic_discriminator(0.5 - real, 0.5 - fake)
    assert loss.item() == pytest.approx(2 * math.log(2) - 2 * js.item(), abs=5e-3)


def test_wasserstein_losses_are_means():
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([4.0, 8.0, 0.0])
    assert losses.wasserstein_critic(real, fake).item() == 2.0
    assert losses.wasserstein_generator(fake).item() == -4.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_penalty_of_a_linear_critic_is_that_of_its_slope(dtype):
    w = torch.tensor([0.3, -0.4, 1.2], dtype=dtype, requires_grad=True)  # |w| = 1.3
    real, fake = normal(6, 3).to(dtype), normal(6, 3, seed=1).to(dtype)
    penalty = losses.gradient_penalty(lambda y: y @ w, real, fake)
    assert penalty.item() == pytest.approx(0.3**2, rel=1e-5)
    penalty.backward()  # 2 (|w| - 1) w / |w|
    torch.testing.assert_close(w.grad, 2 * 0.3 * w.detach() / 1.3)


def test_the_penalty_looks_between_the_rows():
    # |grad y^2 / 2| = |y|: with real rows at 0 and generated ones at 2, y is uniform on (0, 2) and E (|y| - 1)^2 = 1/3
    real, fake = torch.zeros(200_000, 1), torch.full((200_000, 1), 2.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        penalty = losses.gradient_penalty(lambda y: 0.5 * y.square().sum(1), real, fake)
    assert penalty.item() == pytest.approx(1 / 3, abs=5e-3)


def test_the_gradient_of_the_penalty_is_that_of_differences():
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    real, fake = normal(5, 2), normal(5, 2, seed=1)

    def penalty():
        torch.manual_seed(3)
        return losses.gradient_penalty(lambda y: critic(y)[:, 0], real, fake)

    penalty().backward()
    weight = critic[0].weight
    for index in [(0, 0), (2, 1), (3, 0)]:
        ends = []
        for shift in (1e-6, -2e-6):
            with torch.no_grad():
                weight[index] += shift
            ends.append(penalty().item())
        with torch.no_grad():
            weight[index] += 1e-6
        assert weight.grad[index].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-8)


def test_the_penalty_of_a_critic_without_slope_is_one():
    real, fake = normal(3, 2), normal(3, 2, seed=1)
    assert losses.gradient_penalty(lambda y: torch.zeros(3), real, fake).item() == 1.0
    zero = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    penalty = losses.gradient_penalty(lambda y: y @ zero, real, fake)
    penalty.backward()
    assert penalty.item() == 1.0 and torch.isfinite(zero.grad).all()


def test_unknown_losses_are_refused():
    with pytest.raises(ParameterError, match="non_saturating, wasserstein; got 'hinge'"):
        losses.check_loss_name("hinge")
