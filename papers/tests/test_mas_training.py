"""The reproductions of MAS that train generators: they run small, and what they measure is what it is called."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import wasserstein_distance
from torch import nn

import girih
from girih.datasets import load
from girih.errors import ParameterError
from girih.geometry import smooth
from girih_papers import (
    mas_angles_circle,
    mas_basis,
    mas_bimodal,
    mas_disentanglement,
    mas_dropout_circle,
    registry,
)
from girih_papers.jobs import weights_of, with_weights
from girih_papers.mas_images import as_pictures, conv_for, draws, entanglement, image_generator, image_rows
from girih_papers.mas_smoothing import softened
from girih_papers.mas_toys import covered, curve, sliced_distance
from girih_papers.printed import paper_number

FIGURES = {
    "mas-dropout-circle": {"realisations.png"},
    "mas-bimodal": {"log-volumes.png", "entropies.png"},
    "mas-angles-circle": {"curves.png"},
    "mas-dropout-elbo": {"negative-elbo.png"},
    "mas-basis": {"basis.png", "columns.png", "digits-fc.png", "digits-conv.png"},
    "mas-disentanglement": {"disentanglement.png"},
    "mas-smoothing": {"surfaces.png", "negative-elbo.png"},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Each reproduction's folder and result, run once when first asked for; the image models are trained once."""
    known = {}

    def get(name):
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            changes = {"models": str(get("mas-basis")[0])} if name == "mas-disentanglement" else {}
            known[name] = folder, registry.run(name, folder, quick=True, progress=False, changes=changes)
        return known[name]

    return get


def latents(n, S, seed=0):
    return torch.randn(n, S, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", FIGURES)
def test_it_runs_small_and_writes_what_it_says(results, name):
    folder, result = results(name)
    written = json.loads((folder / "result.json").read_text())
    assert written.keys() == result.keys() and written["quick"] is True
    assert written["settings"]["seeds"] == [0] and "(MAS, " in written["description"]
    assert set(result["figures"]) == FIGURES[name] == {path.name for path in folder.glob("*.png")}
    for figure in result["figures"]:
        with Image.open(folder / figure) as image:
            assert min(image.size) > 150 and np.asarray(image.convert("L")).std() > 5


def test_the_table_takes_its_models_from_where_the_basis_vectors_were_drawn(results):
    folder, result = results("mas-disentanglement")
    assert not (folder / "runs").exists()
    assert len(list((results("mas-basis")[0] / "runs").glob("*.npz"))) == 4
    trained = results("mas-basis")[1]["settings"]["seconds_of_training"]
    assert result["settings"]["seconds_of_training"] == trained


def test_a_folder_of_models_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="no folder of models"):
        registry.run("mas-disentanglement", tmp_path, quick=True, progress=False, changes={"models": "/nowhere"})


def test_before_training_the_spectral_norm_is_what_the_lower_lines_of_the_table_say(results):
    _, result = results("mas-disentanglement")
    for model in mas_disentanglement.MODELS:
        printed = paper_number("mas-disentanglement", f"{model}, before mean")
        found = {
            norm: result["models"][model][norm]["before mean"]["mean"] for norm in ("spectral", "frobenius", "sum")
        }
        assert found["spectral"] == pytest.approx(printed, abs=0.13)
        assert found["frobenius"] > printed + 0.12 and found["sum"] > 3.0 * printed


def test_the_heat_map_has_an_entry_for_each_width_and_rate(results):
    _, result = results("mas-dropout-elbo")
    assert {(one["width"], one["dropout"]) for one in result["models"]} == {(4, 0.0), (4, 0.5), (16, 0.0), (16, 0.5)}
    assert set(result["best_dropout_by_width"]) == {"4", "16"}


def test_dropout_makes_realisations_differ_and_its_absence_makes_them_equal(results):
    rates = results("mas-dropout-circle")[1]["rates"]
    assert rates["0"]["spread_of_realisations"] < 1e-12 < 0.01 < rates["0.2"]["spread_of_realisations"]
    assert sum(rates["0.2"]["prior_mass_by_dimension"]) == pytest.approx(1.0)


def test_a_realisation_is_the_network_in_training_mode_with_one_mask():
    net = mas_dropout_circle._net(12, 0.3, 4)
    random = torch.Generator().manual_seed(7)
    h = z = latents(20, 1)
    for layer in net:
        if isinstance(layer, nn.Dropout):
            kept = torch.rand(h.shape[1], generator=random, dtype=torch.float64) >= layer.p
            h = h * kept / (1.0 - layer.p)
        else:
            h = layer(h)
    assert not torch.allclose(h, net.eval()(z))
    assert torch.allclose(mas_dropout_circle.realisation(net, 0.3, 7)(z), h, atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.4, 0.99, 1.0])
def test_a_softened_chain_is_the_smoothed_generator(beta):
    net, z = girih.mlp([3, 7, 5], negative_slope=0.1, seed=2), latents(50, 3)
    assert torch.allclose(softened(net, beta)(z), smooth(net, beta)(z), atol=1e-12)
    single = softened(net, beta).float()(z.float())
    assert single.dtype == torch.float32
    net.double()


def test_a_smoothed_convolutional_decoder_is_the_smoothed_generator():
    net = conv_for((28, 28), 4, 0).double()
    z = latents(3, 4)
    assert torch.allclose(softened(net, 0.7)(z), smooth(net, 0.7)(z), atol=1e-10)


@pytest.mark.parametrize("deviation", [0.3, 1.0, 2.0])
def test_the_entropy_of_two_gaussians_is_that_of_a_sum_over_the_plane(deviation):
    axis = np.linspace(-1.0 - 9.0 * deviation, 1.0 + 9.0 * deviation, 1201)
    x, y = np.meshgrid(axis, axis)
    p = sum(np.exp(-0.5 * ((x - c) ** 2 + y**2) / deviation**2) for c in (-1.0, 1.0)) / (4.0 * np.pi * deviation**2)
    twin = -(p * np.log(p)).sum() * (axis[1] - axis[0]) ** 2
    assert mas_bimodal.mixture_entropy(deviation) == pytest.approx(twin, abs=1e-9)


@pytest.mark.parametrize("deviation", [0.002, 0.02, 0.05, 0.1])
def test_the_entropy_of_modes_far_apart_has_log_2_more_than_one_of_them(deviation):
    twin = np.log(2.0) + np.log(2.0 * np.pi * np.e * deviation**2)
    assert mas_bimodal.mixture_entropy(deviation) == pytest.approx(twin, abs=1e-10)


def test_the_two_modes_are_where_they_should_be():
    X = mas_bimodal.two_modes(0.05, 20_000, 0)
    right = X[X[:, 0] > 0]
    assert len(right) == pytest.approx(10_000, abs=300)
    assert np.abs(right.mean(0) - [1.0, 0.0]).max() < 0.003 and np.abs(right.std(0) - 0.05).max() < 0.002


def test_cells_between_the_modes_are_told_from_those_at_a_mode():
    assert mas_bimodal.between(np.array([[1.0, 0.4], [1.0, 0.6], [-1.3, 0.0], [0.0, 0.0]]), 0.1).tolist() == [
        0,
        1,
        0,
        1,
    ]
    # x_0 = relu(4 z_0) - relu(4 z_0 - 2) - 1: slope 4 across the bridge, 0 at (-1, 0) and (1, 0); x_1 = z_1 / 100
    net = nn.Sequential(nn.Linear(2, 3), nn.LeakyReLU(1e-9), nn.Linear(3, 2)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[4.0, 0.0], [4.0, 0.0], [0.0, 0.01]]))
        net[0].bias.copy_(torch.tensor([0.0, -2.0, 1.0]))
        net[2].weight.copy_(torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]]))
        net[2].bias.copy_(torch.tensor([-1.0, -1.0]))
    found = mas_bimodal.stretches(net, 0.05, 0)
    assert found["stretch_far_from_the_modes"] == pytest.approx(4.0, abs=1e-6)
    assert 0.01 < found["stretch_at_the_modes"] < 1.0
    assert mas_bimodal.layer_norms(weights_of(net)) >= 4.0


def test_a_curve_is_the_image_of_the_line_and_its_angles_are_those_of_its_tangents():
    net = girih.mlp([1, 9, 9, 2], seed=3)
    part = girih.Partition(net, progress=False)
    points, knots = curve(part)
    found = mas_angles_circle.generated(net)
    assert np.array_equal(found["points"], points) and len(found["degrees"]) == len(knots) > 5
    z = torch.tensor(knots)[:, None]
    step = 0.2 * float(np.diff(knots).min())
    with torch.no_grad():
        assert torch.allclose(torch.tensor(points[1:-1]), net(z), atol=1e-12)
        before, after = (net(z) - net(z - step)) / step, (net(z + step) - net(z)) / step
    cosine = torch.nn.functional.cosine_similarity(before, after).abs().clamp(max=1.0)
    np.testing.assert_allclose(found["degrees"], np.degrees(cosine.acos().numpy()), atol=1e-4)


def test_the_sliced_distance_is_the_mean_of_distances_on_lines():
    a, b = np.random.default_rng(0).standard_normal((2, 40, 2))
    angles = np.pi * (np.arange(50) + 0.5) / 50
    twin = np.mean([wasserstein_distance(a @ [np.cos(t), np.sin(t)], b @ [np.cos(t), np.sin(t)]) for t in angles])
    assert sliced_distance(a, b) == pytest.approx(twin, abs=1e-12)
    assert covered(np.array([[1.0, 0.1], [-1.0, 0.1], [1.0, 0.11]])) == 2 / 36


def test_weights_come_back(tmp_path):
    net, other = girih.mlp([2, 5, 3], seed=0), girih.mlp([2, 5, 3], seed=1)
    np.savez(tmp_path / "w.npz", **weights_of(net), seconds=1.0)
    with np.load(tmp_path / "w.npz") as held:
        assert torch.equal(with_weights(other, dict(held))(latents(4, 2)), net(latents(4, 2)))


def test_the_entanglement_is_that_of_difference_quotients_at_the_draws():
    dataset = image_rows("mnist", 10)
    net = image_generator("FC GAN", 4, dataset, 0)
    found = entanglement(net, 6, 3)
    z, values, net = latents(6, 4, seed=3), [], net.double().eval()
    for row in z:
        with torch.no_grad():  # within a cell differences are exact but for rounding
            A = (net(row + 1e-6 * torch.eye(4, dtype=torch.float64)) - net(row[None])).T
        Q = torch.nn.functional.normalize(A, dim=0)
        Q = (Q.T @ Q).abs() - torch.eye(4)
        values.append([torch.linalg.matrix_norm(Q, 2), torch.linalg.matrix_norm(Q), Q.sum() / 2])
    twin = np.array(values).T
    np.testing.assert_allclose(found, np.stack([twin.max(1), twin.mean(1)], 1), rtol=1e-6)


def test_a_region_of_a_digit_is_found_among_rows_that_show_it():
    digits = load("mnist")
    rows = torch.as_tensor(digits.X[::50], dtype=torch.float32)
    shown = np.asarray(digits.labels)[::50]
    for digit in (0, 7):
        index, votes = mas_basis.digit_region(rows, digits, digit)
        assert shown[index] == digit and votes == 10


def test_a_region_needs_labels(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((5, 28, 28)))
    with pytest.raises(ParameterError, match="found by labels"):
        mas_basis.digit_region(torch.zeros(2, 784), image_rows(str(tmp_path / "images.npy"), 0), 7)


def test_colour_images_become_planes_and_pictures_again(tmp_path):
    images = np.random.default_rng(0).random((5, 32, 32, 3))
    np.save(tmp_path / "images.npy", images)
    dataset = image_rows(str(tmp_path / "images.npy"), 0)
    assert np.array_equal(dataset.X.reshape(5, 3, 32, 32)[:, 1], images[..., 1])
    assert np.array_equal(as_pictures(dataset.X, (32, 32, 3)), images)
    np.save(tmp_path / "grey.npy", images[..., :1])
    assert image_rows(str(tmp_path / "grey.npy"), 3).image_shape == (32, 32)
    with pytest.raises(ParameterError, match="images, and 'circle'"):
        image_rows("circle", 0)


def test_local_files_give_their_training_images(tmp_path):
    for name, count in (("data_batch_1", 4), ("test_batch", 3)):
        (tmp_path / f"{name}.bin").write_bytes(bytes([1]) + bytes(range(256)) * 12 + bytes(3073) * (count - 1))
    dataset = image_rows(str(tmp_path), 0)
    assert dataset.shape == (4, 3072) and dataset.image_shape == (32, 32, 3)
    assert np.array_equal(dataset.X[0] * 255.0, np.tile(np.arange(256), 12))  # plane by plane, as in the file


@pytest.mark.parametrize(("shape", "D"), [((28, 28), 784), ((32, 32), 1024), ((32, 32, 3), 3072)])
def test_the_convolutional_generator_fits_the_images(shape, D):
    net = conv_for(shape, 5, 0)
    z, rows = draws(net, 3, 0)
    assert z.shape == (3, 5) and rows.shape == (3, D) and rows.dtype == torch.float32
    assert torch.equal(draws(conv_for(shape, 5, 0), 3, 0)[1], rows)
    assert not torch.equal(draws(conv_for(shape, 5, 1), 3, 0)[1], rows)


def test_images_of_another_size_are_refused_with_the_sizes_that_work():
    with pytest.raises(ParameterError, match="28 x 28 or 32 x 32"):
        conv_for((8, 8), 5, 0)


@pytest.mark.slow
def test_at_full_size_the_curves_cover_the_circle():
    result = mas_angles_circle.trained_curve(16, 0, 1000, 0.05, 600, 1e-3)
    assert result["covered"] == 1.0 and result["distance"] < 0.12
