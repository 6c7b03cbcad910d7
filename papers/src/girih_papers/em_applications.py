"""What EM-DGN's abstract promises of exact densities: model comparison, anomaly detection and imputation, on tables.

girih chooses without a look at what is scored: `TableModel` by itself, one generator for each kind of noise by its
exact BIC. The rivals' settings are the best in hindsight, by the score itself, which no user could choose by.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.ensemble import ExtraTreesRegressor, IsolationForest
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import train_test_split
from sklearn.neighbors import LocalOutlierFactor
from sklearn.svm import OneClassSVM

from girih.datasets import load
from girih.em import DGNEstimator
from girih.errors import ParameterError
from girih.plots import BLUE, GREY, LIGHT, new_figure, styled
from girih.tables import TableModel
from girih_papers.arrays import Array
from girih_papers.figures import save
from girih_papers.files import write_text
from girih_papers.jobs import Result, run_jobs
from girih_papers.mas_toys import spread
from girih_papers.rad_tables_data import TABLES, continuous, split

NOISES = ("diagonal", "low_rank", "full")
GENERATORS = {f"one generator, {noise.replace('_', '-')} noise": noise for noise in NOISES}
TABLE, MIXTURE = "TableModel", "Gaussian mixture"
# Of each task: its rivals, and what its number is.
RIVALS = {
    "anomaly": (MIXTURE, "isolation forest", "local outlier factor", "one-class SVM"),
    "imputation": ("nearest neighbours", "chained regressions", "chained trees", "mean of the column"),
}
HEADS = {
    "comparison": "held-out NLL that the choice costs (nats per row)",
    "anomaly": "ROC AUC (higher is better)",
    "imputation": "RMSE of removed entries (deviations; lower is better)",
}
CRITERIA = ("BIC, exact", "AIC, exact", "NLL of validation rows, exact", "any of them")
# The classes that are known; the others are anomalies. Of diabetes the anomalies are rows with shuffled columns.
_KNOWN = {"iris": ("setosa", "versicolor"), "wine": ("class_0", "class_1"), "breast_cancer": ("benign",)}


@dataclass(frozen=True)
class Settings:
    """What is run.

    Attributes:
        tables: of iris, wine, diabetes and breast_cancer.
        runs: seeds, of the split, the holes and the fits.
        widths: of a generator's hidden layer to choose from; 0 for a linear one.
        ranks: of low-rank noise to choose from.
        iterations: of EM at most.
        starts: of EM.
        holes: the share of entries that is removed, for imputation.
        trees: of forests.
        folds: that `TableModel` chooses by; 0 for its default.
    """

    tables: tuple[str, ...] = tuple(TABLES)
    runs: int = 5
    widths: tuple[int, ...] = (0, 4, 8, 16)
    ranks: tuple[int, ...] = (1, 2)
    iterations: int = 200
    starts: int = 3
    holes: float = 0.2
    trees: int = 200
    folds: int = 0


SETTINGS = Settings()
QUICK = Settings(tables=("iris",), runs=1, widths=(0, 2), ranks=(1,), iterations=5, starts=1, trees=5, folds=2)


def run(out: Path, quick: bool, seed: int, progress: bool, settings: Settings = SETTINGS) -> dict[str, Any]:
    """Run it; returns the body of `result.json`.

    Raises:
        ParameterError: there are no such tables.
    """
    if not set(settings.tables) <= set(TABLES):
        raise ParameterError(f"there are no tables {', '.join(settings.tables)!r} here; known are {', '.join(TABLES)}")
    shared = {name: value for name, value in asdict(settings).items() if name not in ("tables", "runs")}
    keys = [(task, table, method, i) for task, table, method, i in _keys(settings)]
    jobs = [{"task": t, "table": name, "method": m, "seed": seed + i, **shared} for t, name, m, i in keys]
    results = dict(zip(keys, run_jobs(measured, jobs, out, "em-applications", quick, progress), strict=True))
    tasks = {
        "comparison": _comparison(results, settings),
        **{
            task: {
                table: {
                    method: [best(task, method, results[task, table, method, i]) for i in range(settings.runs)]
                    for method in methods_of(task)
                }
                for table in settings.tables
            }
            for task in RIVALS
        },
    }
    write_text(out / "tables.md", "\n".join(_markdown(task, tables) for task, tables in tasks.items()))
    return {
        "tasks": {
            task: {t: {m: spread(v) | {"runs": v} for m, v in by.items()} for t, by in tables.items()}
            for task, tables in tasks.items()
        },
        "settings": asdict(settings) | {"seeds": [seed + i for i in range(settings.runs)]},
        "figures": [save(_draw(tasks), out / "applications.png")],
    }


def methods_of(task: str) -> tuple[str, ...]:
    """The methods of a task; of the comparison, the kinds of generators that are compared."""
    return tuple(GENERATORS) if task == "comparison" else (TABLE, *GENERATORS, *RIVALS[task])


def _keys(settings: Settings) -> list[tuple[str, str, str, int]]:
    return [
        (task, table, method, i)
        for i in range(settings.runs)
        for table in settings.tables
        for task in HEADS
        for method in methods_of(task)
    ]


def best(task: str, method: str, found: Result) -> float:
    """The score of a method: girih's own choice, or a rival's best setting in hindsight."""
    scores = found["scores"]
    if method not in RIVALS[task]:
        return float(scores[int(found["bic"].argmin())])
    return float(scores.max() if task == "anomaly" else scores.min())


def measured(
    task: str,
    table: str,
    method: str,
    seed: int,
    widths: Sequence[int],
    ranks: Sequence[int],
    iterations: int,
    starts: int,
    holes: float,
    trees: int,
    folds: int,
) -> dict[str, Any]:
    """One job: the scores of a method's settings and, of generators, their exact criteria."""

    def fit(X: Array) -> list[DGNEstimator]:
        return generators(X, GENERATORS[method], widths, ranks, iterations, starts, seed)

    if task == "comparison":
        rows = split(continuous(table, seed), seed)
        ests = fit(rows.train)
        return {
            "bic": [est.bic(rows.train) for est in ests],
            "aic": [est.aic(rows.train) for est in ests],
            "validation": [-est.score(rows.validation) for est in ests],
            "scores": [-est.score(rows.held_out) for est in ests],
        }
    if task == "anomaly":
        train, test, outliers = anomalies(table, seed)
        models = [TableModel(n_folds=folds or None, random_state=seed).fit(train)] if method == TABLE else []
        models = fit(train) if method in GENERATORS else models or _detectors(method, train, seed, trees)
        new, is_outlier = np.concatenate((test, outliers)), np.repeat((0, 1), (len(test), len(outliers)))
        scores = [roc_auc_score(is_outlier, -np.asarray(model.score_samples(new))) for model in models]
        return {"scores": scores, "bic": [m.bic(train) if method in GENERATORS else 0.0 for m in models]}
    X, removed = _with_holes(table, seed, holes)
    gaps = np.where(removed, np.nan, X)
    if method in GENERATORS:
        ests = fit(gaps)
        filled: list[Any] = [est.impute(gaps) for est in ests]
        bic = [est.bic(gaps) for est in ests]
    elif method == TABLE:
        filled, bic = [TableModel(n_folds=folds or None, random_state=seed).fit(gaps).impute(gaps)], [0.0]
    else:
        imputers = _imputers(method, seed, trees)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            filled, bic = [imputer.fit_transform(gaps) for imputer in imputers], [0.0] * len(imputers)
    return {"scores": [np.sqrt(np.mean((np.asarray(Y) - X)[removed] ** 2)) for Y in filled], "bic": bic}


def generators(
    X: Array, noise: str, widths: Sequence[int], ranks: Sequence[int], iterations: int, starts: int, seed: int
) -> list[DGNEstimator]:
    """The papers' single generators with this kind of noise, S = 1, for each width and rank."""
    found = []
    for width, rank in itertools.product(widths, ranks if noise == "low_rank" else (1,)):
        est = DGNEstimator(
            hidden=(width,) if width else (),
            noise=noise,
            noise_rank=rank,
            max_iter=iterations,
            tol=1e-4,
            n_init=starts,
            random_state=seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            found.append(est.fit(X))
    return found


def anomalies(table: str, seed: int) -> tuple[Array, Array, Array]:
    """Training rows of the known kind, held-out rows of the same kind, and anomalies, in deviations of the first."""
    data = load(table)
    X = continuous(table, seed) if table not in _KNOWN else data.X
    if table not in _KNOWN:
        train, test = train_test_split(X, test_size=0.3, random_state=seed)
        outliers = np.random.default_rng(seed).permuted(test, axis=0)
    else:
        known = np.isin(np.asarray(data.labels), _KNOWN[table])
        train, test = train_test_split(X[known], test_size=0.3, random_state=seed)
        outliers = X[~known]
    mean, scale = train.mean(0), train.std(0)
    return (train - mean) / scale, (test - mean) / scale, (outliers - mean) / scale


def _with_holes(table: str, seed: int, share: float) -> tuple[Array, Array]:
    X = continuous(table, seed)
    X = (X - X.mean(0)) / X.std(0)
    removed = np.random.default_rng(seed).random(X.shape) < share
    removed[removed.all(1)] = False
    return X, removed


def _detectors(method: str, X: Array, seed: int, trees: int) -> list[Any]:
    """The settings of a rival, fitted."""
    neighbours = [k for k in (5, 10, 20, 40) if k < len(X)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        made: Mapping[str, Callable[[], list[Any]]] = {
            MIXTURE: lambda: [
                GaussianMixture(k, covariance_type=kind, reg_covar=1e-3, random_state=seed)
                for k in (1, 2, 3, 5, 8)
                for kind in ("full", "tied", "diag")
            ],
            "isolation forest": lambda: [
                IsolationForest(n_estimators=trees, max_features=share, random_state=seed) for share in (0.5, 1.0)
            ],
            "local outlier factor": lambda: [LocalOutlierFactor(k, novelty=True) for k in neighbours],
            "one-class SVM": lambda: [
                OneClassSVM(gamma=gamma, nu=nu) for gamma in ("scale", 0.01, 0.1, 1.0) for nu in (0.05, 0.2)
            ],
        }
        return [model.fit(X) for model in made[method]()]


def _imputers(method: str, seed: int, trees: int) -> list[Any]:
    """The settings of a rival."""
    if method == "nearest neighbours":
        return [KNNImputer(n_neighbors=k, weights=how) for k in (3, 5, 10, 20) for how in ("uniform", "distance")]
    if method == "chained regressions":
        return [
            IterativeImputer(max_iter=n, n_nearest_features=few, random_state=seed)
            for n in (10, 30)
            for few in (None, 5)
        ]
    if method == "chained trees":
        forest = ExtraTreesRegressor(max(5, trees // 10), min_samples_leaf=2, random_state=seed)
        return [IterativeImputer(forest, max_iter=5, random_state=seed)]
    return [SimpleImputer()]


def _comparison(
    results: Mapping[tuple[str, str, str, int], Result], settings: Settings
) -> dict[str, dict[str, list[float]]]:
    """For each criterion, how much higher the held-out NLL of its choice among all generators is than the lowest."""
    found: dict[str, dict[str, list[float]]] = {}
    for table in settings.tables:
        found[table] = {criterion: [] for criterion in CRITERIA}
        for i in range(settings.runs):
            every = [results["comparison", table, kind, i] for kind in GENERATORS]
            columns = {name: np.concatenate([one[name] for one in every]) for name in every[0]}
            regret = columns["scores"] - columns["scores"].min()
            for criterion, name in zip(CRITERIA, ("bic", "aic", "validation"), strict=False):
                found[table][criterion].append(float(regret[columns[name].argmin()]))
            found[table][CRITERIA[-1]].append(float(np.median(regret)))
    return found


def _markdown(task: str, tables: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """A row for each method, a column for each table: mean and deviation over runs."""
    lines = [[HEADS[task], *(TABLES[table] for table in tables)], ["---"] * (len(tables) + 1)]
    for method in next(iter(tables.values())):
        cells = [spread(by[method]) for by in tables.values()]
        lines.append(
            [
                method,
                *(f"{c['mean']:.3f}" + ("" if np.isnan(c["deviation"]) else f" ± {c['deviation']:.3f}") for c in cells),
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


@styled
def _draw(tasks: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> Figure:
    """Every run a dot, their median a bar: a line of panels for each task, a panel for each table; girih's in blue."""
    columns = len(next(iter(tasks.values())))
    heights = [len(next(iter(tables.values()))) for tables in tasks.values()]
    figure = new_figure(max(4.4, 2.2 + 1.4 * columns), 0.21 * sum(heights) + 0.65 * len(tasks))
    axes = figure.subplots(len(tasks), columns, squeeze=False, height_ratios=heights)
    for line, (task, tables) in zip(axes, tasks.items(), strict=True):
        for ax, (table, methods) in zip(line, tables.items(), strict=True):
            for i, (method, values) in enumerate(methods.items()):
                own = method in (TABLE, *GENERATORS, *CRITERIA[:-1])
                ax.axhline(i, color=LIGHT, lw=0.5, zorder=0)
                ax.plot(values, [i] * len(values), "o", color=BLUE if own else GREY, ms=3.0, mew=0, alpha=0.5)
                ax.plot(np.median(values), i, "|", color=BLUE if own else GREY, ms=8.0, mew=1.8)
            ax.set_yticks(range(len(methods)), methods if ax is line[0] else [""] * len(methods))
            ax.set(ylim=(len(methods) - 0.4, -0.6), title=TABLES[table] if line is axes[0] else "")
            ax.xaxis.set_major_locator(MaxNLocator(3))
        line[columns // 2].set_xlabel(HEADS[task])
    return figure
