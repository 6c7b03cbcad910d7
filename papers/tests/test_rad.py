"""The reproductions of RAD: they run small, and what they measure is what it is called."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from girih.datasets import load
from girih.errors import ParameterError
from girih_papers import rad_continuity, registry
from girih_papers.rad_folding import folds
from girih_papers.rad_gaussianization import empty
from girih_papers.rad_inference import met_from_afar, states
from girih_papers.rad_samples import astray
from girih_papers.rad_toys import HIDDEN, PROBLEMS, make_flow, restored, rows_of, trained_flow

FIGURES = {
    "rad-continuity": {"modes.png", "conditions.png"},
    "rad-samples": {"samples.png"},
    "rad-table": {"gaps.png"},
    "rad-gaussianization": {"latents.png"},
    "rad-inference": {"moons.png"},
    "rad-folding": {"ring-mixture.png", "moons.png"},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    known = {}

    def get(name):
        if name not in known:
            folder = tmp_path_factory.mktemp(name)
            # the flows are trained once, for the table
            changes = {} if name in ("rad-continuity", "rad-table") else {"models": str(get("rad-table")[0])}
            known[name] = folder, registry.run(name, folder, quick=True, progress=False, changes=changes)
        return known[name]

    return get


def test_these_are_all():
    # rad-tables is beyond the paper
    assert {name for name in registry.names() if name.startswith("rad-")} == {*FIGURES, "rad-tables"}


@pytest.mark.parametrize("name", FIGURES)
def test_it_runs_small_and_writes_what_it_says(results, name):
    folder, result = results(name)
    assert set(result["figures"]) == FIGURES[name]
    for figure in FIGURES[name]:
        with Image.open(folder / figure) as image:
            assert image.width > 300 and len(np.unique(np.asarray(image.convert("L")))) > 10
    assert json.loads((folder / "result.json").read_text())["settings"] == json.loads(json.dumps(result["settings"]))


def test_only_the_conditions_make_log_p_continuous(results):
    jump = results("rad-continuity")[1]["jump_of_log_p"]
    assert jump["with the conditions"]["largest"] < 1e-9
    for variant in ("no conditions", "as printed"):
        assert jump[variant]["mean_inner_knots"] > 0.1 and jump[variant]["mean_outer_knots"] > 0.1
    z = results("rad-continuity")[1]["largest_jump_of_z"]
    assert z["with the conditions"] < 1e-9 and z["no conditions"] < 1e-9 < z["as printed"]


def test_the_three_variants_share_the_inner_pieces():
    numbers = rad_continuity._example()
    x = torch.linspace(-0.99, 0.99, 50, dtype=torch.float64)
    for variant in rad_continuity._VARIANTS:
        z, k, _ = rad_continuity.weight(numbers, variant, x)
        torch.testing.assert_close(z, -numbers.alpha[1] * x)
        assert (k == 1).all()


@pytest.mark.parametrize("variant", ["no conditions", "with the conditions"])
def test_gate_and_slopes_keep_the_mass(variant):
    """A distribution of z is pulled back to x: the pieces share the mass of each z, so the density integrates to 1."""
    numbers = rad_continuity.Numbers(torch.Generator().manual_seed(1))
    x = torch.linspace(-60, 60, 400_001, dtype=torch.float64)
    z, _, total = rad_continuity.weight(numbers, variant, x)
    density = (total - 0.5 * z.square()).exp() / math.sqrt(2 * math.pi)
    assert torch.trapezoid(density, x).item() == pytest.approx(1.0, abs=1e-3)


def test_a_trained_flow_comes_back_whole():
    result = trained_flow("moons", "RAD", seed=1, rows=100, steps=4, lr=1e-2)
    flow = restored("RAD", {name: np.asarray(value) for name, value in result.items()})
    log_p = flow().log_prob(rows_of("moons", 100, 1, "test"))
    assert log_p.mean().item() == pytest.approx(result["log_likelihood"], abs=1e-12)
    assert result["parameters"] == sum(parameter.numel() for parameter in flow.parameters())
    assert len(result["curve"]) == len(result["curve_step"]) >= 2


def test_rows_of_different_uses_are_different():
    kinds = [rows_of("spiral", 50, 0, use) for use in ("training", "validation", "test")]
    assert not np.isclose(kinds[0][:, None], kinds[1]).all(-1).any()
    assert not np.isclose(kinds[0][:, None], kinds[2]).all(-1).any()


def test_numbers_of_samples(results):
    _, result = results("rad-samples")
    assert set(result["problems"]) == {"ring-mixture", "moons"} < set(PROBLEMS)
    for models in result["problems"].values():
        assert set(models) == set(HIDDEN)
        assert all(0.0 <= one["astray"] <= 1.0 for one in models.values())
        assert models["RAD"]["parameters"] < models["Real NVP"]["parameters"]


def test_the_table_holds_what_its_runs_say(results):
    folder, result = results("rad-table")
    assert len(list((folder / "runs").glob("*.npz"))) == 2 * 2 * 2
    for problem, entry in result["problems"].items():
        rad, nvp = entry["ours"]["RAD"], entry["ours"]["Real NVP"]
        assert rad["log_likelihood"]["mean"] == pytest.approx(np.mean(rad["runs"]))
        assert rad["log_likelihood"]["deviation"] == pytest.approx(np.std(rad["runs"], ddof=1))
        assert rad["gap"]["mean"] == pytest.approx(-load(problem).entropy - np.mean(rad["runs"]))
        assert entry["rad_is_better_in"] == sum(a > b for a, b in zip(rad["runs"], nvp["runs"], strict=True))
        assert rad["gap"]["mean"] > 0 and nvp["gap"]["mean"] > 0
        again = trained_flow(problem, "RAD", seed=1, rows=300, steps=20, lr=1e-2)
        assert again["log_likelihood"] == rad["runs"][1]


def test_a_figure_uses_the_flows_of_the_table(results):
    folder, result = results("rad-samples")
    assert not (folder / "runs").exists() or not list((folder / "runs").iterdir())
    table = results("rad-table")[1]["problems"]["moons"]["ours"]["RAD"]["runs"]
    assert result["problems"]["moons"]["RAD"]["log_likelihood"] == table[0]


def test_empty_finds_the_part_of_a_gaussian_that_has_no_points():
    z = np.random.default_rng(0).standard_normal((20_000, 2))
    assert empty(z) == 0.0
    # the ring between the 30th and 60th hundredth of the mass
    level = 1 - np.exp(-0.5 * (z**2).sum(1))
    assert empty(z[(level < 0.3) | (level > 0.6)]) == pytest.approx(0.3)


def test_points_that_meet_from_afar_are_those_a_fold_brings_together():
    x = np.random.default_rng(0).uniform(-1, 1, (4000, 2))
    assert met_from_afar(x, 3 * x + 1) == 0.0
    folded = x.copy()
    folded[:, 0] = np.abs(folded[:, 0])
    # half of the neighbours come from the other side, but near the crease that is not far
    assert met_from_afar(x, folded) == pytest.approx(0.5 * (1 - 0.25 * x[:, 0].std()), abs=0.05)


def test_layers_of_a_flow_are_shown_in_order():
    flow, x = make_flow("RAD", 0), rows_of("moons", 40, 0)
    path, layers = states(flow, x), folds(flow, x)
    assert len(path) == 7 and len(layers) == 6
    for before, after, layer in zip(path[:-1], path[1:], layers, strict=True):
        np.testing.assert_array_equal(layer["x"], before)
        np.testing.assert_array_equal(layer["z"], after)
    k = flow().encode(x).k.numpy()
    np.testing.assert_array_equal(np.stack([layer["k"] for layer in layers], 1), k)
    # inside of a fold the gate leaves a choice, in a tail it does not
    inside = np.stack([layer["inside"] for layer in layers], 1)
    log_p = flow().log_prob_index(*flow().encode(x)).detach().numpy()
    assert ((log_p < 0) == inside.any(1)).all()


def test_astray_counts_points_away_from_the_rows():
    rng = np.random.default_rng(0)
    rows, others, points = rng.uniform(size=(3, 2000, 2))
    points[:300] += 5.0
    assert astray(points, rows, others) == pytest.approx(0.15, abs=0.005)


def test_an_unknown_problem_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="no problem 'stars'; known are grid-mixture"):
        registry.run("rad-samples", tmp_path, quick=True, progress=False, changes={"problems": "moons,stars"})
