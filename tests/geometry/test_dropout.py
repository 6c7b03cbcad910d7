"""Dimensions under dropout and dropconnect, against binomial laws and Jacobians of masked networks."""

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import nn

import girih
from girih import geometry
from girih.errors import ParameterError, UnsupportedLayerError


def within(found: torch.Tensor, errors: torch.Tensor, expected, sigmas: float = 4.5) -> bool:
    return bool(((found - torch.as_tensor(expected)).abs() <= sigmas * errors + 1e-12).all())


@pytest.mark.parametrize("p", [0.2, 0.6])
def test_dropout_of_one_layer_leaves_a_binomial_number_of_directions(p):
    found = geometry.dropout_dimensions(girih.mlp([2, 4, 5], seed=0), p, draws=100, seed=1)
    kept = binom.pmf(np.arange(5), 4, 1 - p)
    law = torch.tensor([kept[0], kept[1], kept[2:].sum()])
    assert found.exact and found.dimensions.tolist() == [0, 1, 2]
    assert within(found.frequencies, (law * (1 - law) / 100).sqrt(), law)
    torch.testing.assert_close(found.mass.sum(1), torch.ones(100, dtype=torch.float64))
    counts = found.mass.round()  # all cells of a realisation of this network have the same dimension
    torch.testing.assert_close(found.mass, counts)
    torch.testing.assert_close(found.errors, counts.std(0) / 10)


def test_dropconnect_of_one_latent_is_degenerate_where_all_weights_are_dropped():
    found = geometry.dropout_dimensions(girih.mlp([1, 3, 4], seed=0), 0.6, draws=150, kind="dropconnect")
    assert within(found.frequencies, found.errors, [0.6**3, 1 - 0.6**3])


def test_dropout_of_relu_weighs_cells_by_their_prior_mass():
    """ReLU with one hidden layer: the dimension at z is the number of units that are active and kept, up to 2."""
    net = girih.mlp([2, 3, 4], activation="relu", seed=3)
    found = geometry.dropout_dimensions(net, 0.3, draws=150, seed=5)
    z = torch.randn(20000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        active = (net[0](z) > 0).sum(1).numpy()
    expected = np.zeros(3)
    for count in range(4):
        law = binom.pmf(np.arange(count + 1), count, 0.7)
        for kept, chance in enumerate(law):
            expected[min(kept, 2)] += (active == count).mean() * chance
    error = (found.errors.square() + 0.25 / 20000).sqrt()
    assert within(found.frequencies, error, expected)


@pytest.mark.parametrize("kind", ["dropout", "dropconnect"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "abs"])
def test_masses_are_those_of_jacobians_at_prior_draws(kind, activation):
    net = girih.mlp([2, 4, 4, 5], activation=activation, seed=2)
    z = torch.randn(400, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for seed in range(4):
        noisy = geometry.noisy_generator(net, 0.4, kind, seed)
        jacobian = torch.func.vmap(torch.func.jacrev(noisy))(z).detach()
        rank = torch.linalg.matrix_rank(jacobian, rtol=1e-9)
        share = torch.bincount(rank, minlength=3) / 400
        found = geometry.dropout_dimensions(net, 0.4, draws=1, kind=kind, seed=seed)
        assert within(found.mass[0], (share * (1 - share) / 400).sqrt() + 0.01, share)
        assert found.errors.isnan().all()


class Masked(nn.Module):
    """A chain with dropout as written in the paper: masks on the outputs, and nothing removed."""

    def __init__(self, net: nn.Sequential, masks: list[torch.Tensor]) -> None:
        super().__init__()
        self.net, self.masks = net, masks

    def forward(self, z):
        masks = iter(self.masks)
        for index, layer in enumerate(self.net):
            z = layer(z)
            if index and not isinstance(layer, nn.Linear):
                z = z * next(masks)
        return z


@pytest.mark.parametrize("p", [0.0, 0.3, 0.8, 1.0])
def test_removed_units_are_masked_ones(p):
    torch.manual_seed(0)
    layers = [nn.Linear(3, 6), nn.PReLU(6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)]
    net = nn.Sequential(*layers).double()
    with torch.no_grad():
        net[1].weight.normal_()
    z = torch.randn(50, 3, dtype=torch.float64)
    for seed in range(10):
        noise = torch.Generator().manual_seed(seed)
        masks = [torch.rand(n, generator=noise, dtype=torch.float64) >= p for n in (6, 5)]
        noisy = geometry.noisy_generator(net, p, seed=seed)
        torch.testing.assert_close(noisy(z), Masked(net, masks)(z))
        sizes = [layer.out_features for layer in noisy if isinstance(layer, nn.Linear)]
        assert sizes == [max(int(mask.sum()), 1) for mask in masks] + [4]


def test_dropconnect_drops_weights_of_hidden_layers_alone():
    net = girih.mlp([3, 20, 30, 4], seed=0)
    noisy = geometry.noisy_generator(net, 0.25, "dropconnect", seed=0)
    for before, after in ((net[0], noisy[0]), (net[2], noisy[2])):
        dropped = after.weight == 0
        assert torch.equal(after.weight[~dropped], before.weight[~dropped])
        assert torch.equal(after.bias, before.bias)
    share = float((noisy[2].weight == 0).double().mean())
    assert abs(share - 0.25) < 4.5 * (0.25 * 0.75 / 600) ** 0.5
    assert torch.equal(noisy[4].weight, net[4].weight)


@pytest.mark.parametrize("kind", ["dropout", "dropconnect"])
def test_without_noise_and_with_nothing_else(kind):
    net = girih.mlp([2, 3, 3], activation="relu", seed=0)
    own = geometry.intrinsic_dimension(net)
    found = geometry.dropout_dimensions(net, 0.0, draws=2, kind=kind)
    assert found.count.tolist() == [torch.bincount(own.values, minlength=3).tolist()] * 2
    assert found.mean == pytest.approx(own.mean)
    gone = geometry.dropout_dimensions(net, 1.0, draws=2, kind=kind)
    assert gone.mean == 0.0 and gone.count.tolist() == [[1, 0, 0]] * 2


def test_noise_can_raise_the_dimension():
    """The upper bound of Proposition 2 fails where a unit that is always active silences the others."""
    net = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 1), nn.ReLU(), nn.Linear(1, 1)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.0], [1.0], [1.0]]))
        net[0].bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
        net[2].weight.copy_(torch.tensor([[-5.0, 1.0, -1.0]]))  # relu(z) - relu(z - 1) is at most 1
        net[2].bias.zero_()
    assert geometry.intrinsic_dimension(net).max == 0.0
    for kind in ("dropout", "dropconnect"):
        found = geometry.dropout_dimensions(net, 0.5, draws=40, kind=kind)
        assert float(found.frequencies[1]) > 0.0


def test_more_latents_are_sampled_and_agree_with_all_cells_where_both_work():
    net = girih.mlp([2, 5, 4], activation="relu", seed=1)
    exact = geometry.dropout_dimensions(net, 0.3, draws=20, seed=4)
    drawn = geometry.dropout_dimensions(net, 0.3, draws=20, cells=2000, seed=4)
    assert not drawn.exact
    assert float((exact.mass - drawn.mass).abs().max()) < 0.06
    deep = geometry.dropout_dimensions(girih.mlp([6, 6, 6, 10], seed=0), 0.3, draws=20, cells=50)
    wide = geometry.dropout_dimensions(girih.mlp([6, 48, 48, 10], seed=0), 0.3, draws=5, cells=50)
    assert deep.mean < 5.0 and wide.mean == pytest.approx(6.0)  # as in Figure 2


def test_refuses_what_it_cannot_take():
    net = girih.mlp([1, 3, 2], seed=0)
    for options in ({"probability": 1.5}, {"probability": -0.1}, {"kind": "noise"}, {"draws": 0}, {"cells": 0}):
        with pytest.raises(ParameterError, match=next(iter(options))):
            geometry.dropout_dimensions(net, **({"probability": 0.5} | options))
    with pytest.raises(UnsupportedLayerError, match="chain"):
        geometry.dropout_dimensions(nn.Sequential(nn.Linear(1, 3), nn.Hardtanh(), nn.Linear(3, 2)), 0.5)


def by_hand(net, p, kind, draws, cells, seed, output_noise):
    """Masks, latents and Jacobians one at a time, drawn in the same order: masses and counts of each dimension."""
    noise = torch.Generator().manual_seed(seed)
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    S = linear[0].in_features
    mass, count = torch.zeros(draws, S + 1, dtype=torch.float64), torch.zeros(draws, S + 1, dtype=torch.int64)
    for draw in range(draws):
        masks = []
        for layer in linear[: len(linear) - (not output_noise)]:
            shape = layer.weight.shape if kind == "dropconnect" else layer.weight.shape[:1]
            masks.append(torch.rand(shape, generator=noise, dtype=torch.float64) >= p)
        start = int(torch.randint(1 << 62, (), generator=noise))
        z = torch.randn(cells, S, generator=torch.Generator().manual_seed(start), dtype=torch.float64)

        def forward(h, masks=masks):
            codes, kept = [], iter(masks)
            for layer in net:
                if isinstance(layer, nn.Linear):
                    mask = next(kept, None)
                    if kind == "dropconnect" and mask is not None:
                        h = layer.weight * mask @ h + layer.bias
                    else:
                        h = layer(h) if mask is None else mask * layer(h)
                else:
                    codes.append(h > 0)
                    h = layer(h[None])[0]
            return h, torch.cat(codes)

        cell_rank = {}
        for one in z:
            code = forward(one)[1].numpy().tobytes()
            if code not in cell_rank:
                jacobian = torch.func.jacrev(lambda h, f=forward: f(h)[0])(one).detach().numpy()
                cell_rank[code] = np.linalg.matrix_rank(jacobian, rtol=1e-10)
                count[draw, cell_rank[code]] += 1
            mass[draw, cell_rank[code]] += 1 / cells
    return mass, count


@pytest.mark.parametrize("kind", ["dropout", "dropconnect"])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
@pytest.mark.parametrize("output_noise", [False, True])
def test_realisations_at_once_are_those_one_by_one(kind, activation, output_noise):
    net = girih.mlp([3, 5, 4, 6], activation=activation, seed=3)
    found = geometry.dropout_dimensions(
        net, 0.4, draws=6, cells=40, kind=kind, seed=2, output_noise=output_noise, progress=False
    )
    mass, count = by_hand(net, 0.4, kind, 6, 40, 2, output_noise)
    assert torch.equal(found.count, count)
    torch.testing.assert_close(found.mass, mass)


@pytest.mark.parametrize("kind", ["dropout", "dropconnect"])
def test_the_first_realisation_is_that_of_the_noisy_generator(kind):
    net = girih.mlp([5, 50, 40, 8], activation="relu", seed=0)  # more units than fit into one word
    for output_noise in (False, True):
        noisy = geometry.noisy_generator(net, 0.6, kind, seed=4, output_noise=output_noise)
        noise = torch.Generator().manual_seed(4)
        for layer in [layer for layer in net if isinstance(layer, nn.Linear)][: 3 if output_noise else 2]:
            shape = layer.weight.shape if kind == "dropconnect" else layer.weight.shape[:1]
            torch.rand(shape, generator=noise, dtype=torch.float64)
        cells = geometry.sample_cells(noisy, 300, seed=int(torch.randint(1 << 62, (), generator=noise)))
        found = geometry.dropout_dimensions(net, 0.6, 1, 300, kind, seed=4, output_noise=output_noise)
        expected = torch.bincount(geometry.intrinsic_dimension(cells).values, minlength=6)
        assert found.count[0].tolist() == expected.tolist()


def test_batches_change_nothing(monkeypatch):
    net = girih.mlp([4, 6, 5, 7], activation="relu", seed=0)
    whole = geometry.dropout_dimensions(net, 0.3, draws=9, cells=50, seed=1)
    monkeypatch.setattr("girih.geometry.dropout._BUDGET", 4 * 7 * 50 * 2)
    parts = geometry.dropout_dimensions(net, 0.3, draws=9, cells=50, seed=1)
    assert torch.equal(whole.count, parts.count) and torch.equal(whole.mass, parts.mass)


@pytest.mark.parametrize("smallest", [0.0, 1e-13, 1e-9, 3e-7, 3e-6, 1e-4, 1.0])
def test_ranks_are_those_of_singular_values_however_small(smallest):
    rng = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(50, n, 4, dtype=torch.float64, generator=rng)).Q for n in (7, 4))
    A = left * torch.tensor([1.0, 0.3, 0.1, smallest], dtype=torch.float64) @ right.mT
    assert (geometry.ranks(torch.cat((A, 1e6 * A, 1e-9 * A)), 1e-10) == 3 + (smallest > 1e-10)).all()


@pytest.mark.parametrize("kind", ["dropout", "dropconnect"])
def test_noise_on_the_last_layer_leaves_a_binomial_number_of_outputs(kind):
    """With many hidden units the rank is that of the masked last layer: kept outputs, or what structure allows."""
    net = girih.mlp([3, 60, 4], seed=0)
    found = geometry.dropout_dimensions(net, 0.3, draws=400, cells=5, kind=kind, seed=3, output_noise=True)
    if kind == "dropconnect":  # an output loses all of 60 weights with probability 1e-31
        assert found.frequencies[3] == 1.0
        return
    kept = binom.pmf(np.arange(5), 4, 0.7)
    law = torch.tensor([*kept[:3], kept[3] + kept[4]])
    assert within(found.frequencies, (law * (1 - law) / 400).sqrt(), law)
    exact = geometry.dropout_dimensions(girih.mlp([1, 3, 2], seed=0), 1.0, draws=2, output_noise=True)
    assert exact.exact and exact.mean == 0.0


def test_a_chain_without_kinks_has_one_cell():
    found = geometry.dropout_dimensions(girih.mlp([5, 7], seed=0), 0.5, draws=3)
    assert found.count.tolist() == [[0, 0, 0, 0, 0, 1]] * 3 and found.mean == 5.0
    drawn = geometry.dropout_dimensions(girih.mlp([5, 7], seed=0), 0.9, draws=200, cells=4, output_noise=True)
    law = binom.pmf(np.arange(5), 7, 0.1)
    law = torch.tensor([*law, 1.0 - law.sum()])
    assert within(drawn.frequencies, (law * (1 - law) / 200).sqrt() + 0.005, law)


def test_units_with_slopes_of_their_own():
    net = girih.mlp([4, 6, 5], seed=0)
    net[1] = nn.PReLU(6, dtype=torch.float64)
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([0.0, 0.0, 0.0, 0.5, 1.0, -1.0]))
    found = geometry.dropout_dimensions(net, 0.3, draws=5, cells=30, seed=7)
    mass, count = by_hand(net, 0.3, "dropout", 5, 30, 7, False)
    assert torch.equal(found.count, count)
    torch.testing.assert_close(found.mass, mass)
