"""The reproductions of MAS that take random networks or planes of rows, in the small and against slow twins."""

import json
import math
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import beta, kstest
from torch import nn

import girih
from girih.errors import ParameterError
from girih_papers import mas_angles, mas_determinants, mas_dropout_dimension, mas_elbow, registry
from girih_papers.mas_autoencoders import autoencoder, training_errors

FIGURES = {
    "mas-dropout-dimension": {"dimensions.png"},
    "mas-determinants": {"determinants.png"},
    "mas-angles": {"angles-1.png", "angles-2.png", "angles-widths.png"},
    "mas-elbow": {"elbow.png"},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Each reproduction's folder and result, run once when first asked for."""
    known = {}

    def get(name):
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            known[name] = folder, registry.run(name, folder, quick=True, progress=False)
        return known[name]

    return get


@pytest.mark.parametrize("name", FIGURES)
def test_results_are_valid_json_with_settings_and_pictures(results, name):
    folder, result = results(name)
    written = json.loads((folder / "result.json").read_text())
    assert written.keys() == result.keys()
    assert written["settings"]["seeds"] == [0] and "MAS, Fig" in registry.names()[name]
    assert set(result["figures"]) == FIGURES[name] == {path.name for path in folder.glob("*.png")}
    for figure in result["figures"]:
        with Image.open(folder / figure) as image:
            assert min(image.size) > 300
            assert np.asarray(image.convert("L")).std() > 5


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mas-dropout-dimension", {"activations": "tanh"}),
        ("mas-dropout-dimension", {"output_noise": "2"}),
        ("mas-dropout-dimension", {"networks": "0"}),
        ("mas-determinants", {"networks": "0"}),
        ("mas-determinants", {"regions": "0"}),
        ("mas-angles", {"latent_dims": "2,3", "data_dims": "4"}),
        ("mas-angles", {"latent_dims": "5,2", "data_dims": "4,4"}),
        ("mas-angles", {"pairs": "0"}),
        ("mas-elbow", {"trials": "0"}),
        ("mas-elbow", {"sizes": "1,50"}),
        ("mas-elbow", {"true_dim": "4"}),
        ("mas-elbow", {"decoder": "2"}),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, name, changes):
    with pytest.raises(ParameterError, match=next(iter(changes))):
        registry.run(name, tmp_path, quick=True, progress=False, changes=changes)


def test_dropout_lowers_the_dimension_of_narrow_generators_and_dropconnect_hardly(results):
    boxes = results("mas-dropout-dimension")[1]["boxes"]

    def mean(activation, kind, p, width):
        key = {"activation": activation, "kind": kind, "probability": p, "width": width}
        return next(box["mean"] for box in boxes if key.items() <= box.items())

    assert mean("leaky_relu", "dropout", 0.3, 6) < 4.0 < 5.9 < mean("leaky_relu", "dropconnect", 0.3, 6)
    assert mean("leaky_relu", "dropout", 0.3, 12) > 5.7
    for kind, p in product(("dropout", "dropconnect"), (0.1, 0.3)):
        assert mean("relu", kind, p, 6) < 3.5  # half of the units of a narrow ReLU layer are off anyway
    for box in boxes:
        assert sum(box["frequencies"]) == pytest.approx(1.0)
        drawn = np.repeat(np.arange(7), np.rint(np.multiply(box["frequencies"], 4000)).astype(int))
        assert len(drawn) == 4000
        quartiles = np.percentile(drawn, [25, 50, 75], method="inverted_cdf").tolist()
        assert box["quartiles"] == quartiles and box["mean"] == pytest.approx(drawn.mean())


@pytest.mark.parametrize(("S", "D", "width", "p"), [(2, 4, 3, 0.3), (3, 2, 3, 0.2), (2, 3, 2, 0.6)])
def test_the_law_of_dropout_is_that_of_all_masks(S, D, width, p):
    rng = np.random.default_rng(0)
    first, second, third = (rng.normal(size=shape) for shape in ((width, S), (width, width), (D, width)))
    expected = np.zeros(S + 1)
    for bits in product((0, 1), repeat=2 * width):
        one, two = np.array(bits[:width]), np.array(bits[width:])
        chance = (1 - p) ** sum(bits) * p ** (2 * width - sum(bits))
        expected[np.linalg.matrix_rank(third * two @ second * one @ first)] += chance
    np.testing.assert_allclose(mas_dropout_dimension.law(S, D, width, p), expected, atol=1e-12)


def test_the_law_of_dropout_is_met(results):
    boxes = results("mas-dropout-dimension")[1]["boxes"]
    met = [box for box in boxes if "law" in box]
    assert {(box["activation"], box["kind"]) for box in met} == {("leaky_relu", "dropout")} and len(met) == 4
    for box in met:
        law = np.array(box["law"])
        # 40 realisations, each with one dimension on all cells; those of the two networks share no masks
        assert (np.abs(box["frequencies"] - law) <= 5 * np.sqrt(law * (1 - law) / 40) + 1e-6).all()


def test_log_volumes_are_those_of_jacobians():
    sizes = [3, 7, 7, 5]
    net = mas_determinants.rescaled(sizes, "leaky_relu", 0.5, 2.0, seed=4)
    found = mas_determinants.volumes(sizes, "leaky_relu", 0.5, 2.0, 30, seed=4)["log_volume"]
    cells = girih.geometry.sample_cells(net, 60, seed=4)
    assert len(found) == min(30, len(cells))
    for z, value in zip(cells.points, found, strict=False):
        values = np.linalg.svd(torch.func.jacrev(net)(z).detach().numpy(), compute_uv=False)
        assert value == pytest.approx(np.log(values).sum(), abs=1e-9)


def test_half_of_the_weights_is_scaled_by_each_number():
    plain = mas_determinants.rescaled([3, 8, 6], "relu", 1.0, 1.0, seed=1)
    scaled = mas_determinants.rescaled([3, 8, 6], "relu", 0.0, 3.0, seed=1)
    for one, two in zip(plain, scaled, strict=True):
        if isinstance(one, nn.Linear):
            ratio = two.weight / one.weight
            assert torch.isclose(ratio, ratio.new_tensor(3.0)).sum() == ratio.numel() / 2 == (ratio == 0).sum()
            assert (one.bias == 0).all() and (two.bias == 0).all()
            assert one.weight.abs().max() <= math.sqrt(6.0 / sum(one.weight.shape))


def test_the_mean_rises_with_the_weights_by_what_scaling_says(results):
    result = results("mas-determinants")[1]
    mean = {(row["first"], row["second"]): row["mean"] for row in result["pairs"]}
    # where the other half is 0, all weights of 3 layers grow threefold, in 6 dimensions
    assert mean[0.0, 3.0] - mean[0.0, 1.0] == pytest.approx(18 * math.log(3.0))
    assert mean[1.0, 3.0] > mean[1.0, 1.0] + 5.0
    half = next(row for row in result["rises_with_second"] if row["first"] == 0.0)
    assert half["deviation"] == pytest.approx(0.0, abs=1e-10)
    assert all(row["degenerate_cells"] == 0 and max(row["cells"]) <= 100 for row in result["pairs"])


def projection(A: np.ndarray) -> np.ndarray:
    return A @ np.linalg.pinv(A)


def test_angles_are_those_of_projections_on_both_sides_of_a_kink():
    sizes = [3, 9, 9, 6]
    found = mas_angles.adjacent(sizes, "leaky_relu", 1, 10**3, 0, seed=0)["largest"]
    net = girih.mlp(sizes, seed=0)
    # the same segments, looked at in steps: wherever one unit changes sign there is a pair
    near = []
    ends = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).reshape(4, 2, 3)
    traced = girih.trace(net)
    for start, stop in ends:
        z = start + torch.linspace(0, 1, 20001, dtype=torch.float64)[:, None] * (stop - start)
        code = traced.pattern(z)
        for k in ((code[1:] != code[:-1]).sum(1) == 1).nonzero()[:, 0].tolist():
            first, second = (torch.func.jacrev(net)(z[i]).detach().numpy() for i in (k, k + 1))
            near.append(math.asin(min(1.0, np.linalg.norm(projection(first) - projection(second), 2))))
    assert len(near) > 15
    block = np.sort(girih.geometry.angles(girih.geometry.segment_cells(net, 4, seed=0)).largest.numpy())
    np.testing.assert_allclose(np.sort(near), block, atol=1e-7)
    assert set(block) <= set(found)


def test_with_two_latents_all_pairs_are_taken_beside_those_on_segments(results):
    cases = results("mas-angles")[1]["cases"]
    every = [row for row in cases if "enumerated" in row]
    assert {(row["latent_dim"], row["width"]) for row in every} == {(2, 8)} and len(every) == 2
    nets = [girih.mlp([2, 8, 3], seed=i) for i in range(2)]
    largest = torch.cat([girih.geometry.angles(net).largest for net in nets]).numpy()
    row = next(row for row in every if row["depth"] == 1)
    assert row["enumerated"]["pairs"] == len(largest)
    assert row["enumerated"]["median"] == pytest.approx(np.median(largest))


def test_adjacent_cells_are_less_inclined_than_independent_subspaces(results):
    result = results("mas-angles")[1]
    assert result["median_below_independent"] == [8, 8]
    assert all(row["pairs"] == 100 for row in result["cases"])


@pytest.mark.parametrize("D", [2, 3, 7])
def test_independent_lines_and_hyperplanes_have_the_angles_that_theory_says(D):
    law = beta(0.5, 0.5 * (D - 1))  # of the squared cosine
    for S in {1, D - 1}:
        angle = mas_angles.independent_angles(S, D, 4000, torch.Generator().manual_seed(1)).numpy()
        assert kstest(np.cos(angle) ** 2, law.cdf).pvalue > 1e-3


def test_images_of_independent_networks_are_as_independent_subspaces():
    free = mas_angles.independent_angles(3, 5, 400, torch.Generator().manual_seed(0)).numpy()
    z = torch.zeros(1, 3, dtype=torch.float64)
    found = []
    for seed in range(200):
        traces = [girih.trace(girih.mlp([3, 12, 5], seed=2 * seed + i)) for i in (0, 1)]
        one, two = (trace.affine(z)[0][0].detach().numpy() for trace in traces)
        found.append(math.asin(min(1.0, np.linalg.norm(projection(one) - projection(two), 2))))
    assert kstest(found, free).pvalue > 1e-3


def test_autoencoders_at_once_are_those_one_by_one():
    x = mas_elbow.plane(3, 5, 37, seed=1)
    networks = [autoencoder(5, 2, (7, 6), (8,), seed) for seed in range(3)]
    found = training_errors(x, networks, epochs=6, rate=1e-2, batch=10, seed=4)
    noise = torch.Generator().manual_seed(4)
    orders = [torch.rand(3, 37, generator=noise).argsort(1) for _ in range(6)]
    for i, pair in enumerate(networks):
        net = nn.Sequential(*pair)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for epoch, order in enumerate(orders):
            for rows in x[order[i]].split(10):
                optimizer.zero_grad()
                (net(rows) - rows).square().mean().backward()
                optimizer.step()
            expected = float((net(x) - x).detach().norm(dim=1).sum())
            assert float(found[epoch, i]) == pytest.approx(expected, rel=1e-8)


def test_too_few_latents_leave_an_error_that_rises_with_the_rows(results):
    result = results("mas-elbow")[1]
    for name in ("encoder", "free_latents"):
        found = result[name]
        assert found["rises_with_rows"] == {"1": True}
        assert found["least_share_left_below"] > 1.5 * found["largest_share_left_from_true_dim_on"]
    assert result["free_latents"]["largest_share_left_from_true_dim_on"] < 1e-9
    assert np.shape(result["encoder"]["trials"]) == (3, 2, 2)
    assert np.min(result["encoder"]["trials"], axis=2).tolist() == result["encoder"]["error"]


def test_an_elbow_that_was_stopped_goes_on_with_what_is_missing(results, tmp_path):
    small = {"dims": "1,2", "sizes": "20", "epochs": "3"}
    registry.run("mas-elbow", tmp_path, quick=True, progress=False, changes=small)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("encoded-*")}
    registry.run("mas-elbow", tmp_path, quick=True, progress=False, changes=small | {"dims": "1,2,3"})
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("encoded-*")}
    assert len(after) == len(before) + 1 and before.items() <= after.items()
