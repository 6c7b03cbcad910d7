"""benchmarks/tables.py: its own mathematics against slow twins, and a short run of the command, which goes on."""

import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import multivariate_normal, norm
from sklearn.decomposition import FactorAnalysis
from sklearn.mixture import GaussianMixture

import girih

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    ours = [name for name in sys.modules if name.partition(".")[0] == "tables"]
    if ours and str(FOLDER) not in str(getattr(sys.modules["tables"], "__file__", "")):
        for name in ours:
            monkeypatch.delitem(sys.modules, name)


def part(name):
    return import_module(f"tables.{name}")


def clusters(seed=0, rows=120):
    random = np.random.default_rng(seed)
    X = random.normal(size=(rows, 2)) @ random.normal(size=(2, 5)) + 0.3 * random.normal(size=(rows, 5))
    X[: rows // 2] += 3.0
    return X


def test_em_of_factor_mixtures_never_falls():
    factors, X = part("factors"), clusters()
    mixture = factors.start(X, 3, 2, 0.0, seed=0)
    curve = []
    for _ in range(25):
        mixture, reached = factors.step(mixture, X, shared=False, floor=0.0)
        curve.append(reached)
    assert np.diff(curve).min() > -1e-10
    twin = sum(
        weight * multivariate_normal(mean, covariance).pdf(X)
        for weight, mean, covariance in zip(mixture.weights, mixture.means, mixture.covariances(), strict=True)
    )
    np.testing.assert_allclose(mixture(X), np.log(twin), rtol=1e-8)


def test_one_factor_analyser_is_factor_analysis():
    factors, X = part("factors"), clusters()
    mixture = factors.start(X, 1, 2, 0.0, seed=0)
    for _ in range(400):
        mixture, _ = factors.step(mixture, X, shared=True, floor=0.0)
    assert abs(mixture(X).mean() - FactorAnalysis(2, tol=1e-4, max_iter=5000).fit(X).score(X)) < 1e-3


@pytest.mark.parametrize("whiten", [False, True])
def test_kernel_density_is_a_density(whiten):
    rivals, X = part("rivals"), clusters()[:20, :2]
    log_prob = rivals.kernel_density(X, 0.5, whiten)
    axis, step = np.linspace(-15, 15, 601, retstep=True)  # the trapezoid rule is all but exact for sums of Gaussians
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    assert abs(np.exp(log_prob(grid)).sum() * step**2 - 1) < 1e-8


def test_search_takes_the_best_by_validation_rows_and_passes_over_failures():
    rivals, X = part("rivals"), clusters()
    right, wrong = (rivals._plain(lambda X, s=s: norm(X.mean(), s).logpdf, str(s)) for s in (2.5, 60.0))

    def fail(X):
        raise ValueError("too few rows")

    found = rivals.search([[wrong, rivals._plain(fail, "none"), right]], X[:60, 0], X[60:, 0])
    assert [one.candidate.label for one in found] == ["2.5", "60.0"]


def test_rounding_and_its_noise():
    data, random = part("data"), np.random.default_rng(0)
    halves = np.round(random.normal(size=400) * 10) / 2
    rain = np.where(random.uniform(size=400) < 0.5, 0.0, random.exponential(size=400))
    X = np.stack((halves, rain, random.normal(size=400)), 1)
    widths = data.rounding(X)
    assert widths[0] == 0.5 and widths[1] == rain.std() / 100 and widths[2] < 1e-3
    table = data.Table("made up", X, ("a", "b", "c"), widths)
    rows, raw = data.split(table, 0), data.split(table, 0, raw=True)
    assert [len(part) for part in (rows.train, rows.validation, rows.test)] == [240, 80, 80]
    assert (np.abs(rows.both - raw.both) <= widths / 2).all() and (rows.test != raw.test).all()
    np.testing.assert_allclose(rows.standard(rows.train).std(0), 1.0)


@pytest.mark.parametrize("case", ["MCAR 20%", "MAR 40%"])
def test_as_many_cells_are_hidden_as_asked_for(case):
    imputation, X = part("imputation"), clusters(rows=4000)
    hidden = imputation.hide(X, case, np.random.default_rng(0))
    rates = hidden.mean(0)
    rate = float(case.split()[1].rstrip("%")) / 100
    hit = rates > 0
    assert hit.sum() == (5 if case.startswith("MCAR") else 4) and not hidden.all(1).any()
    np.testing.assert_allclose(rates[hit], rate, atol=0.04)
    if case.startswith("MAR"):  # more are hidden where the column that is always seen is large
        above = X[:, ~hit][:, 0] > np.median(X[:, ~hit])
        assert hidden[above][:, hit].mean() > 2 * hidden[~above][:, hit].mean()


def test_conditional_means_of_a_mixture_by_quadrature():
    imputation, X = part("imputation"), clusters()[:, :2]
    model = GaussianMixture(2, random_state=0).fit(X)
    row = np.array([[1.3, np.nan]])
    joint = lambda y: np.exp(model.score_samples(np.array([[1.3, y]]))[0])  # noqa: E731
    mass, moment = (quad(f, -20, 20, epsabs=1e-12, limit=500)[0] for f in (joint, lambda y: y * joint(y)))
    assert abs(imputation.conditional_means(model, row)[0, 1] - moment / mass) < 1e-7


class OneGaussian:
    """`TableModel` for the harness: one Gaussian, which knows its conditionals."""

    def __init__(self, random_state=None):
        pass

    def fit(self, X):
        seen = X[~np.isnan(X).any(1)]
        self.normal = multivariate_normal(seen.mean(0), np.cov(seen.T, ddof=0))
        return self

    def score_samples(self, X):
        return self.normal.logpdf(X)

    def _conditional(self, X):
        mean, std = X.copy(), np.zeros_like(X)
        for i, row in enumerate(X):
            gone, cov = np.isnan(row), self.normal.cov
            gain = cov[np.ix_(gone, ~gone)] @ np.linalg.inv(cov[np.ix_(~gone, ~gone)])
            mean[i, gone] = self.normal.mean[gone] + gain @ (row - self.normal.mean)[~gone]
            std[i, gone] = np.sqrt(np.diag(cov[np.ix_(gone, gone)] - gain @ cov[np.ix_(~gone, gone)]))
        return mean, std

    def impute(self, X, return_std=False):
        return self._conditional(X) if return_std else self._conditional(X)[0]

    def condition(self, X):
        mean, std = self._conditional(X)
        return type("Conditional", (), {"quantile": staticmethod(lambda q: mean + std * norm.ppf(q))})


def test_girih_is_measured_in_the_units_of_its_rivals(monkeypatch):
    density, data, records = part("density"), part("data"), part("records")
    monkeypatch.setattr(girih, "TableModel", OneGaussian, raising=False)
    table = data.load("iris")
    [(_, record)] = density.run(records.Key("density", "iris", 0, "girih"), table)
    rows = data.split(table, 0)
    rival = GaussianMixture(1, reg_covar=0.0).fit(rows.standard(rows.both))
    assert abs(record["nll"] + rival.score(rows.standard(rows.test))) < 1e-6


def test_short_run_goes_on_where_it_was_stopped(tmp_path, capsys, monkeypatch):
    main = part("main").main
    monkeypatch.setattr(girih, "TableModel", OneGaussian, raising=False)
    command = ["--quick", "--out", str(tmp_path), "--only", "iris", "--only-model", "girih", "gmm", "kde", "knn", "lof"]
    main(command)
    path, text = tmp_path / "records.jsonl", capsys.readouterr().out
    lines = path.read_text().splitlines()
    found = {(record["part"], record["model"]): record for record in map(json.loads, lines)}
    assert set(found) == {
        *(("density", model) for model in ("girih", "gmm", "gmm_average", "kde")),
        *(("imputation", model) for model in ("girih", "gmm", "knn")),
        *(("anomalies", model) for model in ("girih", "gmm", "lof")),
    }
    assert not any("failed" in record for record in found.values())
    assert 0.7 < found["imputation", "girih"]["coverage"] <= 1.0
    assert (tmp_path / "summary-quick.md").read_text() == text.removesuffix("\n")
    assert "| iris |" in text and "| bar | reached |  |" in text and "Left out" not in text

    path.write_text("\n".join(lines)[:-20])  # killed while it wrote the last record
    main(command)
    again = path.read_text().splitlines()
    assert again[: len(lines) - 1] == lines[:-1] and len(again) == len(lines) + 1
    assert {**json.loads(again[-1]), "seconds": 0} == {**json.loads(lines[-1]), "seconds": 0}


def test_unknown_table_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        part("main").main(["--out", str(tmp_path), "--only", "irises"])
    assert "there is no table irises" in capsys.readouterr().err
