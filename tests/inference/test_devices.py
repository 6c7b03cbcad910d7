"""The parameters' device is where the engine computes: on a GPU, or on a second device that the CPU plays."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.special import owens_t

import girih
from girih.errors import DeviceError
from girih.gaussian.signed import _owens_t_by_nodes
from girih.inference import certificate, chunks
from girih.inference.bounded import Flat
from girih.inference.polytope_posterior import find_peaks
from girih.inference.polytopes import log_marginal
from second_device import NAME, elsewhere
from twins import f64

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
NETS = {2: (4, 3), 3: (3, 1)}


def model_of(S, noise=0.02):
    return girih.DGN(girih.mlp([S, *NETS[S], 4], seed=1), noise=f64([noise, 2.0 * noise, noise, noise]))


def rows_of(dgn):
    """Rows of the model, some of them far off, and some with missing entries."""
    x = dgn().sample((5,), seed=0)
    x[3:] *= 30.0
    x[::2, 0] = torch.nan
    x[1, 1:] = torch.nan
    return x


def numbers(dgn, x):
    """What the engine says about rows, by name."""
    p = dgn()
    evidence, post = p.evidence(x), dgn.posterior(x)
    gradient = torch.autograd.grad(evidence.log_prob.sum(), [*dgn.parameters()])
    q = torch.distributions.MultivariateNormal(post.mean, 0.1 * torch.eye(dgn.latent_dim).to(post.mean))
    return {
        "log_prob": evidence.log_prob,
        "left_out": evidence.left_out,
        "rounding": evidence.rounding,
        "score": p.score(x),
        "mean": post.mean,
        "covariance": post.covariance,
        "mode": post.mode,
        "density": post.log_prob(post.mode),
        "kl": post.kl(q),
        "impute": dgn.impute(x),
        "gradient": torch.cat([part.flatten() for part in gradient]),
    }


def assert_same(here, there):
    for name, value in here.items():
        other = there[name].detach().cpu()
        size = value.detach().abs() + (1.0 if name in ("left_out", "rounding") else 0.1)
        assert ((value.detach() - other).abs() <= 1e-9 * size.max()).all(), name


@pytest.mark.parametrize("S", [2, 3])
def test_a_second_device_says_the_same(S):
    dgn = model_of(S)
    x = rows_of(dgn)
    here = numbers(dgn, x)
    with elsewhere():
        assert_same(here, numbers(copy.deepcopy(dgn).to(NAME), x.to(NAME)))


@GPU
@pytest.mark.parametrize("S", [2, 3])
def test_a_gpu_says_the_same(S):
    dgn = model_of(S)
    x = rows_of(dgn)
    moved, there = copy.deepcopy(dgn).to("cuda"), x.to("cuda")
    assert_same(numbers(dgn, x), numbers(moved, there))
    assert torch.allclose(
        dgn.posterior(x).cell_probs().to_dense(), moved.posterior(there).cell_probs().to_dense().cpu()
    )
    assert moved.posterior(there).sample((2,), seed=0).shape == (2, len(x), S)


@pytest.mark.parametrize("S", [2, 3])
def test_densities_copy_nothing_between_devices(S):
    """A partition is made on the host and goes over once; densities and gradients after that take no rows along."""
    dgn = model_of(S, noise=0.5)
    x = rows_of(dgn).repeat(60, 1)
    with elsewhere() as copies:
        p, there = copy.deepcopy(dgn).to(NAME)(), x.to(NAME)
        copies.clear()
        p.log_prob(there).sum().backward()
        assert max(copies, default=0) < len(x)


def test_devices_are_not_mixed():
    dgn = model_of(2)
    x = rows_of(dgn)
    with elsewhere():
        moved = copy.deepcopy(dgn).to(NAME)
        for call in (moved().log_prob, moved.posterior, moved.impute, moved.partition.locate):
            with pytest.raises(DeviceError, match="is on cpu and the parameters are on lazy:0"):
                call(x[:, :2] if call == moved.partition.locate else x)
        with pytest.raises(DeviceError, match=r"pass noise.to\('lazy:0'\)"):
            girih.DGN(moved.net, noise=torch.ones(4))
        with pytest.raises(DeviceError, match="is on lazy:0 and the parameters are on cpu"):
            dgn().log_prob(x.to(NAME))
        # what has no device goes to that of the parameters
        here = dgn().log_prob(x)
        for value in (x.numpy(), x.tolist()):
            assert torch.equal(moved().log_prob(value).cpu(), moved().log_prob(x.to(NAME)).cpu())
        assert torch.allclose(here, moved().log_prob(x.numpy()).detach().cpu(), rtol=1e-12)


# All pairs at once, as on a GPU, on the CPU


@pytest.mark.parametrize(("S", "models"), [(2, 6), (3, 3)])
def test_a_flat_search_says_what_the_tree_says(S, models):
    for seed in range(models):
        rng = np.random.default_rng((S, seed))
        size = (1, 3, 30)[seed % 3]
        net = girih.mlp(
            [S, *((12, 9) if S == 2 else (5, 4)), size], activation=("relu", "leaky_relu")[seed % 2], seed=seed
        )
        noise = 10.0 ** rng.uniform(-6, 2)
        dgn = girih.DGN(net, noise=noise, prior=0.5 if seed % 2 else None, tol=(1e-10, 1e-3)[seed % 3 == 2])
        x = dgn().sample((16,), seed=seed)
        x[8:] += math.sqrt(noise) * torch.as_tensor(rng.normal(size=(8, size)) * 10.0 ** rng.integers(0, 5, (8, 1)))
        if size > 1:
            x[::4, 0] = torch.nan
        model = dgn.model()
        g = model.cells.region.geometry(model)
        for _, rows in chunks(model, x):
            rows, found, peaks = rows.relative(), [], []
            for g.on_host in (True, False):
                pairs = certificate._by_tables(g, rows)
                log_p = log_marginal(g, pairs)
                found.append((log_p, pairs.log_left_out - log_p))
                peaks.append(find_peaks(g, rows))
                assert (found[-1][1] <= math.log(dgn.tol)).all()
                assert (pairs.log_known <= log_p + found[-1][1].exp() + 1e-12 * (1.0 + log_p.abs())).all()
            (tree, left), (flat, also) = found
            assert ((tree - flat).abs() <= left.exp() + also.exp() + 1e-13 * (1.0 + tree.abs())).all()
            assert torch.allclose(*peaks, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("loud", [1.0, 1e4, 1e8])
def test_flat_bounds_have_room_for_their_rounding(loud):
    """Matrix products are rounded to their terms, which noise of 1e-16 makes 1e8: gaps are never above the tree's."""
    net = girih.mlp([2, 12, 9, 6], seed=0)
    dgn = girih.DGN(net, noise=loud**-2)
    model = dgn.model()
    x = dgn().sample((20,), seed=0)
    x[10:] += 0.1 * torch.randn(10, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    g = model.cells.region.geometry(model)
    ((_, rows),) = chunks(model, x)
    flat = Flat(g)
    gaps = flat._gaps(rows, torch.arange(20))
    # the same by differences, with nothing for rounding
    leaves = flat._leaves
    off = rows.y[:, None] - leaves.centre
    along = torch.einsum("nbk,bks->nbs", off, leaves.basis)
    across = (off - torch.einsum("bks,nbs->nbk", leaves.basis, along)).norm(dim=2)
    exact = (along.norm(dim=2) - leaves.wide).clamp(min=0).square() + (across - leaves.thick).clamp(min=0).square()
    assert (gaps <= exact).all()
    size = rows.y.square().sum(1)[:, None] + leaves.centre.square().sum(1)
    assert (gaps >= exact - 2e-13 * size).all()


def test_owens_function_by_nodes():
    generator = torch.Generator().manual_seed(0)
    p = 10.0 * torch.rand(20_000, generator=generator, dtype=torch.float64)
    p[::3] = 10.0 ** (-12.0 * torch.rand(len(p[::3]), generator=generator, dtype=torch.float64))
    t = torch.randn(20_000, generator=generator, dtype=torch.float64) * 10.0 ** torch.linspace(-5, 3, 20_000)
    t[3::7] = p[3::7] * (1.0 + 1e-3 * t[3::7].clamp(-1, 1))
    t[:3] = f64([math.inf, -math.inf, 0.0])
    exact = owens_t(p.numpy(), (t / p).clamp(-1e300, 1e300).numpy())
    assert np.abs(_owens_t_by_nodes(p, t).numpy() - exact).max() < 3e-16
