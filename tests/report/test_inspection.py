"""The numbers of an inspection against slow computations: Jacobians by autograd, draws, single pairs of cells."""

import math

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

import girih
from girih.geometry import Uniform
from girih.report import cell_table, draw_inspection, explain_inspection, facts, inspect_decoder


def jacobians(net, z):
    """The Jacobian at each latent, by autograd."""
    return torch.func.vmap(torch.func.jacrev(net))(z).detach()


def spectral_entanglement(J):
    unit = J / J.norm(dim=1, keepdim=True)
    Q = (unit.mT @ unit).abs() - torch.eye(J.shape[2])
    return torch.linalg.matrix_norm(Q, ord=2)


def agrees(exact, values, error=0.0):
    """Whether a number agrees with the mean of independent draws, to five standard errors."""
    values = torch.as_tensor(values, dtype=torch.float64)
    return (
        abs(exact - float(values.mean())) <= 5.0 * math.hypot(error, float(values.std()) / len(values) ** 0.5) + 1e-12
    )


def is_quantile(value, q, draws):
    """Whether a share q of a distribution with atoms, known by draws, lies up to a value, to five standard errors."""
    below, upto = ((draws < value * (1 - 1e-9)).double().mean(), (draws <= value * (1 + 1e-9)).double().mean())
    room = 5.0 * 0.5 * (2.0 / len(draws)) ** 0.5
    return below - room <= q <= upto + room


@pytest.mark.parametrize(
    ("sizes", "prior"), [([1, 8, 8, 4], 0.5), ([2, 8, 8, 5], 1.0), ([3, 6, 6, 4], 2.0), ([10, 16, 16, 20], 1.5)]
)
def test_averages_against_autograd_at_random_latents(sizes, prior):
    net = girih.mlp(sizes, activation="leaky_relu", seed=1)
    numbers = facts(inspect_decoder(net, prior, draws=3000))
    S = sizes[0]
    z = prior**0.5 * torch.randn(4000, S, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    J = jacobians(net, z)
    spectrum = torch.linalg.svdvals(J)
    volume = spectrum.log().sum(1)
    part = numbers["log_volume"]
    assert agrees(part["mean"], volume, part["standard_error"])
    assert part["deviation"] == pytest.approx(float(volume.std()), rel=0.15)
    value = -torch.distributions.Normal(0.0, prior**0.5).log_prob(z).sum(1) + volume
    assert agrees(numbers["entropy"]["value"], value, numbers["entropy"]["standard_error"])
    square = spectrum.square()
    effective = square.sum(1).square() / square.square().sum(1)
    part = numbers["singular_values"]
    assert agrees(part["effective_dimension"], effective, part["effective_dimension_error"])
    for q, line in part["quantiles"].items():
        assert all(is_quantile(line[k], float(q), spectrum[:, k]) for k in range(S))
    assert is_quantile(part["condition_median"], 0.5, spectrum[:, 0] / spectrum[:, -1])
    if S > 1:
        part = numbers["disentanglement"]
        assert agrees(part["mean"], spectral_entanglement(J), part["standard_error"])
        unit = J / J.norm(dim=1, keepdim=True)
        overlap = (unit.mT @ unit).abs().mean(0) - torch.eye(S)
        np.testing.assert_allclose(part["overlap"], overlap, atol=0.03)
    assert numbers["cells"]["exact"] == (S <= 3) and (numbers["entropy"]["standard_error"] == 0.0) == (S <= 3)


def test_the_table_of_cells_against_autograd_and_counts():
    net = girih.mlp([2, 8, 8, 5], activation="leaky_relu", seed=3)
    found = inspect_decoder(net, 1.5)
    table = cell_table(found)
    z = torch.as_tensor(np.stack((table["z1"], table["z2"]), 1))
    J = jacobians(net, z)
    spectrum = torch.linalg.svdvals(J)
    np.testing.assert_allclose(np.stack((table["singular_value_1"], table["singular_value_2"]), 1), spectrum, rtol=1e-9)
    np.testing.assert_allclose(table["log_volume"], 0.5 * torch.linalg.slogdet(J.mT @ J)[1], atol=1e-7)
    np.testing.assert_allclose(table["disentanglement"], spectral_entanglement(J), atol=1e-9)
    part = girih.Partition(net)
    draws = 1.5**0.5 * torch.randn(20_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    share = np.bincount(part.locate(draws), minlength=len(part)) / len(draws)
    assert (np.abs(table["prior_mass"] - share) <= 5.0 * np.sqrt(share / len(draws)) + 3e-4).all()
    for i in range(0, len(part), 7):
        largest = max(np.degrees(subspace_angles(J[i].numpy(), J[j].numpy()).max()) for j in part.neighbors_of(i))
        assert table["largest_angle_degrees"][i] == pytest.approx(largest, abs=1e-5)


def test_mean_angle_weighs_pairs_by_their_mass():
    net = girih.mlp([2, 6, 4], activation="leaky_relu", seed=2)
    numbers = facts(inspect_decoder(net))
    part = girih.Partition(net)
    A, mass = part.affine[0].detach().numpy(), part.prior_mass.numpy()
    pairs = part.neighbors.numpy()
    angle = np.degrees([subspace_angles(A[i], A[j]).max() for i, j in pairs])
    weight = mass[pairs].sum(1)
    assert numbers["angles"]["mean"] == pytest.approx((weight * angle).sum() / weight.sum(), rel=1e-6)
    assert numbers["angles"]["largest"] == pytest.approx(angle.max(), rel=1e-6)


def test_angles_of_sampled_cells_are_of_cells_that_share_a_facet():
    net = girih.mlp([10, 8, 8, 12], activation="leaky_relu", seed=0)
    found = inspect_decoder(net, draws=100)
    cells, pairs = found.angles.cells, found.angles.pairs
    first, second = pairs.T
    assert len(pairs) > 90 and int(second.min()) == len(found.cells) and "segments" in found.pair_source
    np.testing.assert_array_equal(net_pattern(net, cells.points[second]), cells.patterns[second])
    assert ((cells.patterns[first] != cells.patterns[second]).sum(1) == 1).all()  # one unit, whose zero is the facet
    J = jacobians(net, cells.points)
    for k in range(0, len(pairs), 11):
        i, j = pairs[k].tolist()
        assert float(found.angles.largest[k]) == pytest.approx(subspace_angles(J[i], J[j]).max(), abs=1e-7)
        assert cell_table(found)["largest_angle_degrees"][i] == pytest.approx(float(found.angles.largest[k].rad2deg()))


def net_pattern(net, z):
    """Signs of the hidden units, layer by layer."""
    first, second = net[0](z), net[2](net[1](net[0](z)))
    return torch.where(torch.cat((first, second), 1) > 0, 1, -1).detach()


def test_sampled_angles_of_many_seeds_scatter_by_their_standard_error():
    net = girih.mlp([4, 6, 8], activation="leaky_relu", seed=0)
    parts = [facts(inspect_decoder(net, draws=400, seed=seed))["angles"] for seed in range(12)]
    means = np.array([part["mean"] for part in parts])
    assert 0.4 < means.std(ddof=1) / np.mean([part["standard_error"] for part in parts]) < 2.0


def test_a_bottleneck_is_found_and_singular_mass_is_said():
    net = girih.mlp([4, 12, 2, 12, 9], activation="leaky_relu", seed=0)
    numbers = facts(inspect_decoder(net, draws=300))
    assert numbers["dimension"]["mean"] == 2.0 and numbers["dimension"]["shares"]["2"] == pytest.approx(1.0)
    ranks = {layer["layer"]: layer["mean"] for layer in numbers["dimension"]["layers"]}
    assert numbers["dimension"]["bottleneck"] == min(ranks, key=ranks.get)
    assert numbers["entropy"]["value"] == -math.inf and numbers["entropy"]["degenerate_mass"] == pytest.approx(1.0)
    texts = {row.name: row for row in explain_inspection(numbers)}
    assert "singular" in texts["Entropy on the manifold"].meaning and texts["Injective"].value == "no (proven)"


def test_relu_ranks_against_autograd():
    net = girih.mlp([3, 6, 6, 6], activation="relu", seed=5)
    numbers = facts(inspect_decoder(net))
    z = torch.randn(6000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rank = torch.linalg.matrix_rank(jacobians(net, z))
    for k, share in numbers["dimension"]["shares"].items():
        assert agrees(share, (rank == int(k)).double())
    assert agrees(numbers["entropy"]["degenerate_mass"], (rank < 3).double())
    assert 0.1 < numbers["entropy"]["degenerate_mass"] < 0.9


@pytest.mark.parametrize("S", [2, 6])
def test_a_witness_is_a_pair_with_one_image(S):
    net = girih.mlp([S, 3, 3, 8], activation="relu", seed=0)
    verdict = inspect_decoder(net, draws=200).verdict
    assert verdict.injective is False
    x = net(verdict.witness).detach()
    assert float((x[0] - x[1]).norm()) < 1e-10 < float((verdict.witness[0] - verdict.witness[1]).norm())


def test_a_fold_is_found_and_its_entropy_is_lower():
    fold = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), girih.networks.Abs()).double()
    torch.nn.init.constant_(fold[0].weight, 2.0)
    found = inspect_decoder(fold)
    x = fold(found.verdict.witness).detach()
    assert found.verdict.injective is False and float((x[0] - x[1]).norm()) < 1e-10
    numbers = facts(found)["entropy"]
    normal = 0.5 * math.log(2 * math.pi * math.e * 4.0)
    assert numbers["value"] == pytest.approx(normal, abs=1e-12) and numbers["upper_bound"]
    folded = numbers["folded"]
    assert abs(folded["value"] - (normal - math.log(2.0))) < 5.0 * folded["standard_error"]


def test_many_cells_are_searched_for_a_second_preimage(monkeypatch):
    monkeypatch.setattr("girih.report.inspection._CELLS", 10)
    net = girih.mlp([2, 20, 20, 2], activation="leaky_relu", seed=0)
    flat = torch.nn.Sequential(torch.nn.Linear(2, 40), girih.networks.Abs(), torch.nn.Linear(40, 2)).double()
    with torch.no_grad():
        flat[0].weight.copy_(torch.randn(40, 2, generator=torch.Generator().manual_seed(0)))
    for decoder in (net, flat):
        verdict = inspect_decoder(decoder).verdict
        assert verdict.injective is False
        x = decoder(verdict.witness).detach()
        assert float((x[0] - x[1]).norm()) < 1e-7
    thin = inspect_decoder(girih.mlp([2, 8, 8, 9], activation="leaky_relu", seed=0)).verdict
    assert thin.injective is None and "200 points have no second preimage" in thin.reason


def test_too_many_programs_are_not_started(monkeypatch):
    monkeypatch.setattr("girih.report.inspection._PROGRAMS", 1)
    verdict = inspect_decoder(girih.mlp([2, 12, 12, 3], activation="leaky_relu", seed=0)).verdict
    assert verdict.injective is None and "need a linear program" in verdict.reason


def test_a_uniform_prior_and_a_linear_decoder():
    net = girih.mlp([2, 3], seed=0)
    numbers = facts(inspect_decoder(net, Uniform(-1.0, 3.0)))
    A = net[0].weight.detach()
    volume = 0.5 * float(torch.linalg.slogdet(A.mT @ A)[1])
    assert numbers["cells"]["count"] == 1 and numbers["injectivity"]["injective"] is True
    assert numbers["log_volume"]["uniform"] and numbers["angles"]["mean"] is None
    assert numbers["entropy"]["value"] == pytest.approx(math.log(16.0) + volume, abs=1e-12)
    curved = facts(inspect_decoder(girih.mlp([2, 8, 3], seed=0), Uniform(-1.0, 3.0)))
    assert not curved["log_volume"]["uniform"] and curved["cells"]["exact"]


def test_sampling_agrees_with_enumeration_and_says_what_it_did_not_see():
    net = girih.mlp([2, 12, 12, 4], activation="leaky_relu", seed=0)
    exact, sampled = facts(inspect_decoder(net)), facts(inspect_decoder(net, sample=True, draws=4000))
    for part in ("log_volume", "dimension", "disentanglement"):
        error = sampled[part]["standard_error"]
        assert abs(exact[part]["mean"] - sampled[part]["mean"]) <= 5.0 * error + 1e-12
    assert 0.0 < sampled["cells"]["unseen_mass"] < 0.1 and sampled["cells"]["count"] < exact["cells"]["count"]
    few = inspect_decoder(net, max_cells=5, draws=300)
    assert "more than 5 cells" in few.note and not few.cells.exact


def test_weights_that_are_not_finite_are_refused():
    net = girih.mlp([10, 4, 3], seed=0)
    with torch.no_grad():
        net[0].weight[0, 0] = torch.nan
    with pytest.raises(girih.errors.NonFiniteError, match="64 of 64 prior draws"):
        inspect_decoder(net)


@pytest.mark.parametrize("shape", [(3, 2, 4), (2, 4, 3), (1, 4, 6)])
def test_pictures_of_images_with_channels(tmp_path, monkeypatch, shape):
    monkeypatch.setattr("girih.plots.style.DPI", 40)
    found = inspect_decoder(girih.mlp([3, 4, 24], seed=0), draws=30)
    drawn = draw_inspection(tmp_path, found, shape)
    assert {picture.file.name for picture in drawn} >= {"samples.png", "basis.png", "slices.png"}
    assert all(picture.file.stat().st_size > 1000 and picture.caption for picture in drawn)


def test_the_mean_volume_of_the_cells_that_have_one_comes_with_its_error():
    net = girih.mlp([3, 6, 6, 6], activation="relu", seed=5)
    exact, sampled = facts(inspect_decoder(net)), facts(inspect_decoder(net, sample=True, draws=3000))
    error = sampled["log_volume"]["standard_error"]
    assert abs(exact["log_volume"]["mean"] - sampled["log_volume"]["mean"]) < 5.0 * error
    z = torch.randn(6000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    volume = torch.linalg.svdvals(jacobians(net, z))
    volume = volume[volume[:, 2] > 1e-10 * volume[:, 0]].log().sum(1)
    assert agrees(exact["log_volume"]["mean"], volume)
    assert error == pytest.approx(float(volume.std()) * (len(volume) / 6000 * 3000) ** -0.5, rel=0.1)
