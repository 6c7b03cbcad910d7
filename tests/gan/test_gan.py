"""The GAN: what it learns, what a step is, and its input checks."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

import girih
from girih.errors import NonFiniteError, ParameterError, ShapeError, UnsupportedLayerError
from girih.gan import GAN, losses
from girih.geometry import density
from girih.networks import conv_generator, fc_discriminator, fc_generator

FACTOR = torch.tensor([[1.0, 0.6], [0.0, 0.5]], dtype=torch.float64)
MEAN = torch.tensor([1.0, -0.5], dtype=torch.float64)


def rows(n=2000, seed=0):
    """Draws of `N(MEAN, FACTOR^T FACTOR)`."""
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) @ FACTOR + MEAN


def make(loss="non_saturating", sizes=(2, 2), width=32, seed=0, dtype=torch.float64, **options):
    critic = fc_discriminator(2, (width, width), dropout=0.0, seed=seed + 1, dtype=dtype)
    return GAN(girih.mlp(list(sizes), seed=seed).to(dtype), critic, loss=loss, **options)


def fit(gan, x, **options):
    return gan.fit(x, **{"lr": 5e-3, "batch_size": 200, "progress": False, "accelerator": "cpu", **options})


def gaps(gan):
    """How far mean and covariance of generated rows are from those of the data."""
    drawn = gan.sample(5000, seed=0)
    return (drawn.mean(0) - MEAN).abs().max().item(), (drawn.T.cov() - FACTOR.T @ FACTOR).abs().max().item()


@pytest.mark.parametrize(
    ("loss", "options"),
    [("non_saturating", {"max_epochs": 30}), ("wasserstein", {"max_epochs": 60, "discriminator_steps": 2})],
)
def test_a_linear_generator_learns_mean_and_covariance(loss, options):
    gan = make(loss, gradient_penalty=1.0)
    assert min(gaps(gan)) > 0.5
    run = fit(gan, rows(), record_every=100, **options)
    assert max(gaps(gan)) < 0.25
    assert run.history["loss"].shape == run.history["generator_loss"].shape == run.history["step"].shape
    assert math.isnan(run.history["generator_loss"][0])


def test_it_learns_a_circle():
    x = girih.datasets.load("circle", n=500, seed=0).X
    gan = make(sizes=(2, 32, 2))
    fit(gan, x, lr=2e-3, batch_size=100, max_epochs=120, record_every=300)
    radius = gan.sample(2000, seed=0).norm(dim=1)
    assert abs(radius.mean() - 1.0) < 0.1 and radius.std() < 0.25
    angle = torch.atan2(*gan.sample(2000, seed=0).T)
    assert torch.histc(angle, 8, -math.pi, math.pi).min() > 2000 / 8 / 4  # all the way round


def plain(gan, x, step, wasserstein, batches):
    """The moves of one run by hand, with torch's own classes."""
    betas = (0.0, 0.9) if wasserstein else (0.5, 0.999)
    players = [torch.optim.Adam(net.parameters(), lr=1e-3, betas=betas) for net in (gan.discriminator, gan.generator)]
    torch.manual_seed(7)
    for index in batches:
        batch = x[index]
        fake = gan.generator(torch.randn(len(batch), 2, dtype=x.dtype)).detach()
        if wasserstein:
            loss = gan.discriminator(fake).mean() - gan.discriminator(batch).mean()
            share = torch.rand(len(batch), 1, dtype=x.dtype)
            between = (batch + share * (fake - batch)).requires_grad_()
            (slope,) = torch.autograd.grad(gan.discriminator(between).sum(), between, create_graph=True)
            loss = loss + 10.0 * (slope.norm(dim=1) - 1.0).square().mean()
        else:
            loss = softplus(-gan.discriminator(batch)).mean() + softplus(gan.discriminator(fake)).mean()
        players[0].zero_grad()
        loss.backward()
        players[0].step()
        step += 1
        if step % 2 == 0:
            values = gan.discriminator(gan.generator(torch.randn(len(batch), 2, dtype=x.dtype)))
            players[1].zero_grad()
            (-values.mean() if wasserstein else softplus(-values).mean()).backward()
            players[1].step()


@pytest.mark.parametrize("loss", ["non_saturating", "wasserstein"])
def test_steps_are_those_written_out(loss):
    from girih.training import Batches

    x, ours = rows(50), make(loss, sizes=(2, 8, 2), width=8)
    theirs = copy.deepcopy(ours)
    fit(ours, x, lr=1e-3, batch_size=20, max_epochs=4, discriminator_steps=2, seed=7)
    batches = Batches(50, 20, 7)
    with torch.random.fork_rng():
        plain(theirs, x, 0, loss == "wasserstein", [batches.index(step) for step in range(12)])
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name], rtol=1e-9, atol=1e-11)


def test_each_network_moves_at_its_own_steps():
    gan = make("wasserstein")
    seen = []

    def record(model):
        seen.append([net[0].weight.detach().clone() for net in (model.generator, model.discriminator)])
        return {}

    run = fit(gan, rows(60), batch_size=20, max_epochs=4, record=record, record_every=1, discriminator_steps=3)
    moved = [[not torch.equal(a, b) for a, b in zip(before, after, strict=True)] for before, after in pairwise(seen)]
    assert run.steps == 12
    assert [generator for generator, _ in moved] == [False, False, True] * 4
    assert all(critic for _, critic in moved)
    assert (
        np.isfinite(run.history["generator_loss"][3::3]).all() and np.isnan(run.history["generator_loss"][1::3]).all()
    )


def test_defaults_are_those_of_the_paper():
    gan = GAN(fc_generator(3, seed=0), seed=0)
    widths = [layer.out_features for layer in gan.discriminator if isinstance(layer, nn.Linear)]
    assert widths == [1024, 512, 256, 1]
    assert sum(isinstance(layer, nn.Dropout) for layer in gan.discriminator) == 3
    critic = GAN(fc_generator(3, seed=0), loss="wasserstein", seed=0).discriminator
    assert not any(isinstance(layer, nn.Dropout) for layer in critic)
    assert (gan.latent_dim, gan.output_dim) == (3, 784)
    assert [layer.out_features for layer in GAN(girih.mlp([1, 2]), hidden=(5,)).discriminator[::3]] == [5, 1]


def test_samples_are_reproducible_and_on_the_manifold():
    gan = make(sizes=(1, 8, 2))
    drawn = gan.sample(20, seed=3)
    assert torch.equal(drawn, gan.sample(20, seed=3)) and not torch.equal(drawn, gan.sample(20))
    assert not drawn.requires_grad
    assert torch.isfinite(density(gan.generator, drawn[:5]).log_density).all()
    single = copy.deepcopy(gan).float()
    found = density(single.generator, single.sample(5, seed=3), tolerance=1e-5).log_density
    z = torch.randn(5, 1, generator=torch.Generator().manual_seed(3))
    at_exact_rows = density(gan.generator, gan.generate(z)).log_density
    torch.testing.assert_close(found, at_exact_rows, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gan.generate([[0.5], [1.0]]), gan.generator(torch.tensor([[0.5], [1.0]]).double()))


def test_float32_rows_are_cast():
    gan = make(dtype=torch.float32)
    fit(gan, rows(100), max_epochs=2)
    assert gan.sample(3).dtype == gan.discriminate(np.zeros((2, 2))).dtype == torch.float32
    assert gan.discriminate(np.zeros((2, 2))).shape == (2,)
    fit(gan.double(), rows(100), max_epochs=1)
    assert gan.sample(3).dtype == torch.float64


def test_dropout_acts_while_training_and_in_draws_of_training_mode():
    gan = GAN(fc_generator(2, 5, (16,), dropout=0.5, seed=0), hidden=(8,), seed=0)
    assert not torch.equal(gan.sample(4, seed=0), gan.sample(4, seed=0))
    gan.eval()
    assert torch.equal(gan.sample(4, seed=0), gan.sample(4, seed=0))
    gan.train().fit(torch.randn(40, 5), max_epochs=2, progress=False)
    assert gan.training
    girih.trace(gan.eval().generator)


def test_images_and_generators_that_are_not_piecewise_affine():
    gan = GAN(conv_generator(4, torch.float32, seed=0), hidden=(8,), seed=0)
    run = gan.fit(girih.datasets.load("mnist", n=10, seed=0).X, batch_size=5, max_epochs=1, progress=False)
    assert run.steps == 2 and gan.sample(3).shape == (3, 784)
    smooth = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 4), nn.Unflatten(1, (1, 2, 2))).double()
    with pytest.raises(UnsupportedLayerError, match=r"Tanh.*pass latent_dim="):
        GAN(smooth)
    gan = GAN(smooth, latent_dim=2, hidden=(8,), seed=0)
    gan.fit(torch.randn(20, 4), max_epochs=2, progress=False)
    assert gan.sample(3).shape == (3, 4)


def test_a_loss_that_is_not_finite_names_step_and_network():
    with pytest.raises(NonFiniteError, match=r"discriminator's loss became \w+ at step \d+; train with a smaller lr"):
        fit(make("wasserstein"), rows(40), lr=1e200, max_epochs=9)
    gan = make()
    handle = gan.generator[0].weight.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(NonFiniteError, match=r"parameter 'generator\.0\.weight' is not finite after step 1"):
        fit(gan, rows(40), max_epochs=9, record_every=1)
    handle.remove()


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"loss": "hinge"}, ParameterError, "non_saturating, wasserstein"),
        ({"gradient_penalty": -1.0}, ParameterError, "gradient_penalty"),
        ({"latent_dim": 3}, ShapeError, r"does not accept z of shape \(N, 3\)"),
        ({"latent_dim": 0}, ParameterError, "latent_dim"),
        ({"discriminator": nn.Linear(2, 1)}, ParameterError, r"float32 parameters, the generator float64"),
        ({"discriminator": nn.Linear(3, 1).double()}, ShapeError, "data dimension D = 2"),
        ({"discriminator": nn.Linear(2, 2).double()}, ShapeError, "two classes"),
        ({"discriminator": nn.Linear(2, 1).double(), "hidden": (3,)}, ParameterError, "leave it out"),
        ({"discriminator": "mlp"}, ParameterError, "torch.nn.Module"),
        ({"hidden": (0,)}, ParameterError, "width"),
    ],
)
def test_bad_construction_is_refused(arguments, error, says):
    with pytest.raises(error, match=says):
        GAN(girih.mlp([1, 4, 2]), **arguments)


def test_bad_generators_are_refused():
    with pytest.raises(ParameterError, match=r"torch\.nn\.Module; got str"):
        GAN("net")
    with pytest.raises(ParameterError, match=r"float64 \(first '0.weight'\), float32 \(first '1.weight'\)"):
        GAN(nn.Sequential(nn.Linear(1, 2).double(), nn.Linear(2, 2)))
    with pytest.raises(ParameterError, match="float16"):
        GAN(nn.Linear(1, 2).half())


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"lr": 0.0}, ParameterError, "lr"),
        ({"betas": 0.5}, ParameterError, "betas"),
        ({"betas": (0.5, 1.0)}, ParameterError, "betas"),
        ({"betas": (0.5, -1.0)}, ParameterError, "betas"),
        ({"discriminator_steps": 0}, ParameterError, "discriminator_steps"),
        ({"batch_size": 0}, ParameterError, "batch_size"),
        ({"max_epochs": 0}, ParameterError, "max_epochs"),
        ({"monitor": "quality"}, ParameterError, "'quality' is not recorded; choose one of generator_loss, loss"),
    ],
)
def test_bad_options_are_refused(options, error, says):
    with pytest.raises(error, match=says):
        fit(make(), rows(20), **options)


@pytest.mark.parametrize(
    ("x", "error"), [([[1.0, 2.0, 3.0]], ShapeError), ([[1.0, math.nan]], NonFiniteError), ("text", ShapeError)]
)
def test_bad_data_are_refused(x, error):
    for method in ("fit", "discriminate"):
        with pytest.raises(error):
            getattr(make(), method)(x)
    with pytest.raises(ShapeError, match="latent dimension S is 2"):
        make().generate([[1.0]])


def test_a_frozen_network_is_refused():
    gan = make()
    gan.generator.requires_grad_(False)
    with pytest.raises(ParameterError, match="the generator has no trainable parameters"):
        fit(gan, rows(20))


def test_only_the_losses_of_the_game_are_used(monkeypatch):
    monkeypatch.setattr(losses, "gradient_penalty", None)
    fit(make(), rows(20), max_epochs=1)
    with pytest.raises(TypeError):
        fit(make("wasserstein"), rows(20), max_epochs=1)
