"""RAD on real tables: it runs small, all models have the same rows and the same budget, and densities are densities."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from girih.datasets import load
from girih.errors import NonFiniteError, ParameterError
from girih_papers import rad_tables, registry
from girih_papers.rad_tables_data import TABLES, continuous, split, unit
from girih_papers.rad_tables_fits import FLOWS, budget, fit_flow, fit_generator, fit_mixture, shape_of, size_of
from girih_papers.rivals import Rows

COLUMNS = {"iris": 4, "wine": 13, "diabetes": 9, "breast_cancer": 30}


REPRODUCTION = "rad-tables"


def test_it_runs_small_and_writes_what_it_says(result):
    folder, body = result
    written = json.loads((folder / "result.json").read_text())
    assert written["settings"] == json.loads(json.dumps(body["settings"])) and written["settings"]["seeds"] == [0, 1]
    assert len(list((folder / "runs").glob("*.npz"))) == 2 * len(rad_tables.METHODS)
    with Image.open(folder / "tables.png") as image:
        assert image.width > 300 and len(np.unique(np.asarray(image.convert("L")))) > 10
    lines = (folder / "table.md").read_text().splitlines()
    assert len(lines) == 2 + len(rad_tables.METHODS) and "iris (150 x 4)" in lines[0]
    methods = body["tables"]["iris"]["methods"]
    for line, method in zip(lines[2:], rad_tables.METHODS, strict=True):
        assert line.startswith(f"| {method} | {methods[method]['nll']['mean']:.2f} ± ")


def test_the_table_holds_what_its_runs_say(result):
    iris = result[1]["tables"]["iris"]
    methods, most = iris["methods"], iris["budget"]
    assert set(methods) == set(rad_tables.METHODS) and sum(iris["lowest"].values()) == 2
    for name, one in methods.items():
        assert one["nll"]["mean"] == pytest.approx(np.mean(one["runs"]))
        assert one["above_rad"]["mean"] == pytest.approx(np.mean(one["runs"]) - np.mean(methods["RAD"]["runs"]))
        least = 0.9 * most if name in FLOWS else 1
        assert all(least <= count <= 1.1 * most for count in one["parameters"])
    for i in (0, 1):
        lowest = min(methods, key=lambda name: methods[name]["runs"][i])
        assert iris["lowest"][lowest] >= 1
    settings = rad_tables.QUICK
    rows = split(continuous("iris", 1), 1)
    again = fit_flow("RAD", rows, settings.transforms, most, settings.rates, settings.steps, 1)
    assert again.nll(rows.held_out) == pytest.approx(methods["RAD"]["runs"][1], abs=1e-12)


@pytest.mark.parametrize("name", TABLES)
def test_noise_is_as_wide_as_the_last_digit(name):
    X, measured = continuous(name, 0), load(name)
    names = measured.feature_names
    kept = measured.X[measured.X[:, names.index("mean concavity")] > 0] if name == "breast_cancer" else measured.X
    columns = [i for i, column in enumerate(names) if column != "sex"]
    assert X.shape == (len(kept), COLUMNS[name]) == (len(kept), len(columns))
    for x, original, column in zip(X.T, kept[:, columns].T, np.array(names)[columns], strict=True):
        assert len(np.unique(x)) == len(x)
        if column == "s5":  # a logarithm, of a whole number
            np.testing.assert_allclose(np.round(np.exp(x)), np.exp(original), rtol=2e-4)
            continue
        step, off = unit(original), x - original
        assert np.abs(off).max() <= 0.5 * step and off.std() == pytest.approx(step / 12**0.5, rel=0.2)
        decimals = round(-np.log10(step))
        exact = np.isclose(np.round(original, decimals), original, rtol=0, atol=1e-9)
        assert exact.mean() > 0.5
        np.testing.assert_allclose(np.round(x, decimals)[exact], original[exact], atol=1e-9)
    assert np.array_equal(X, continuous(name, 0)) and not np.isclose(X, continuous(name, 1)).all()


def test_a_unit_is_that_of_most_entries():
    assert unit(np.array([100.0, 200.0, 300.0])) == 100.0
    assert unit(np.array([100.0, 210.0, 35.0, 47.0, 1.5])) == 1.0
    assert unit(np.array([0.001, 0.25, 0.3, 0.123])) == 0.001
    with pytest.raises(ParameterError, match="more than 8 decimals"):
        unit(np.random.default_rng(0).random(50))


def test_an_unknown_table_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="no table 'digits'; known are iris"):
        registry.run("rad-tables", tmp_path, quick=True, progress=False, changes={"tables": "iris,digits"})


def test_a_split_uses_each_row_once():
    X = continuous("wine", 0)
    rows = split(X, 3)
    assert [len(part) for part in (rows.train, rows.validation, rows.held_out)] == [107, 35, 36]
    np.testing.assert_allclose(rows.train.mean(0), 0.0, atol=1e-12)
    np.testing.assert_allclose(rows.train.std(0), 1.0)
    together = np.concatenate((rows.train, rows.validation, rows.held_out))
    scaled = together * X.std(0) / together.std(0)
    key = scaled[:, 0] - scaled[:, 0].mean()
    np.testing.assert_allclose(np.sort(key), np.sort(X[:, 0] - X[:, 0].mean()), atol=1e-9)


@pytest.mark.parametrize("kind", FLOWS)
@pytest.mark.parametrize("features", COLUMNS.values())
def test_flows_have_equal_sizes(kind, features):
    settings = rad_tables.SETTINGS
    most = budget(features, settings.transforms[0], settings.hidden)
    for transforms in settings.transforms:
        shape = shape_of(kind, features, transforms, most)
        assert shape[0] <= transforms
        assert size_of(FLOWS[kind](features, *shape, 0)) == pytest.approx(most, rel=0.1)


@pytest.fixture(scope="module")
def rows():
    return Rows(*(load("circle", n=n, seed=seed).X for seed, n in enumerate((80, 40, 30))))


def total(fitted, reach=12.0, steps=481):
    axis = np.linspace(-reach, reach, steps)
    grid = np.stack([part.ravel() for part in np.meshgrid(axis, axis)], 1)
    return np.exp(fitted.log_prob(grid)).sum() * (axis[1] - axis[0]) ** 2


@pytest.mark.parametrize("kind", FLOWS)
def test_a_flow_is_chosen_by_validation_and_integrates_to_one(kind, rows):
    most = budget(2, 2, 4)
    fitted = fit_flow(kind, rows, (2, 1), most, (1e-3, 1e-2), 40, 0)
    loss, tried = fitted.nll(rows.validation), []
    assert loss == pytest.approx(fitted.choice["validation_nll"], abs=1e-12) and fitted.choice["tried"] == 4
    for transforms in (2, 1):
        for rate in (1e-3, 1e-2):
            tried.append(fit_flow(kind, rows, (transforms,), most, (rate,), 40, 0))
    assert loss == pytest.approx(min(one.nll(rows.validation) for one in tried), abs=1e-12)
    assert total(fitted) == pytest.approx(1.0, abs=5e-3)


@pytest.mark.parametrize("noise", ["diagonal", "full"])
def test_a_generator_integrates_to_one_and_is_counted(noise, rows):
    fitted = fit_generator(rows, (1,), (0, 3), (noise,), (1e-3, 1e-1), 5, 1, 1000, 0)
    assert total(fitted, 4.0, 161) == pytest.approx(1.0, abs=1e-4)
    assert fitted.nll(rows.validation) == pytest.approx(fitted.choice["validation_nll"], abs=1e-12)
    numbers = sum(parameter.numel() for parameter in fitted.dgn.net.parameters()) + {"diagonal": 2, "full": 3}[noise]
    assert fitted.parameters == numbers and fitted.choice["tried"] == 4
    small = fit_generator(rows, (1,), (0, 3), (noise,), (1e-3, 1e-1), 5, 1, 8, 0)
    assert small.choice["width"] == 0 and small.parameters <= 8


def test_a_mixture_keeps_to_the_budget(rows):
    fitted = fit_mixture(rows, (1, 2, 4, 8, 16, 32), (1e-3,), 1000, 0)
    assert fitted.nll(rows.validation) == pytest.approx(fitted.choice["validation_nll"], abs=1e-12)
    assert fitted.parameters > 20
    assert fit_mixture(rows, (1, 2, 4, 8, 16, 32), (1e-3,), 20, 0).parameters <= 20


def test_a_rate_that_diverges_is_left_out(rows):
    fitted = fit_flow("Real NVP", rows, (1,), 100, (1e200, 1e-3), 20, 0)
    assert fitted.choice["rate"] == 1e-3 and (fitted.choice["tried"], fitted.choice["diverged"]) == (2, 1)
    with pytest.raises(NonFiniteError, match="Real NVP diverged at all rates"):
        fit_flow("Real NVP", rows, (1,), 100, (1e200,), 20, 0)


def test_a_row_far_out_is_named_and_not_drawn_to_scale():
    fine = {"runs": [1.0, 1.2, 1.1]}
    methods = dict.fromkeys(rad_tables.METHODS, fine) | {"Real NVP": {"runs": [1.3, 1.4, 2500.0]}}
    table = {"iris": {"rows": 150, "columns": 4, "methods": methods}}
    axes = rad_tables._draw(table).axes[0]
    assert axes.get_xlim()[1] < 2.0
    assert [text.get_text() for text in axes.texts] == ["to 2,500"]


def test_torch_draws_nothing_meanwhile(rows):
    state = torch.get_rng_state()
    fit_flow("neural spline flow", rows, (1,), 100, (1e-3,), 5, 0)
    assert torch.equal(torch.get_rng_state(), state)
