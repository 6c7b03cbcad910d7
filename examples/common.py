"""What the three examples share: tables of scikit-learn, the generators they fit, the command line and the report."""

from __future__ import annotations

import argparse
import itertools
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sklearn.datasets
from joblib import Parallel, delayed
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

import girih
from girih.inference import MAX_LATENT_DIM

WIDTHS = ((), (4,), (8,), (16,))
NOISE = ("full", "diagonal")


def load(name, seed=0):
    """A table of scikit-learn, made continuous: rows and classes.

    Pixels are whole numbers, so digits get a uniform noise of one step. The column "sex" of diabetes has two values,
    on which any model with enough components can put as much density as it likes, so it is left out.
    """
    table = getattr(sklearn.datasets, f"load_{name}")()
    X = np.asarray(table.data, dtype=float)
    if name == "diabetes":
        X = np.delete(X, table.feature_names.index("sex"), axis=1)
    if name == "digits":
        X = X + np.random.default_rng(seed).random(X.shape)
    return X, table.target


def standardise(train, *others):
    """Every column at mean 0 and variance 1 on the training rows."""
    mean, scale = train.mean(0), train.std(0)
    scale[scale == 0] = 1.0
    return [(X - mean) / scale for X in (train, *others)]


def fit_table(X, seed, quick=False):
    """The exact joint density of all columns, by defaults."""
    return girih.TableModel(n_folds=2 if quick else None, random_state=seed).fit(X)


def fit_dgn(X, latent_dim, seed, quick=False):
    """One generator of this latent dimension: that of the best BIC over a few widths and both kinds of noise."""
    best = None
    for noise, hidden in itertools.product(NOISE[:1] if quick else NOISE, WIDTHS[1:2] if quick else WIDTHS):
        est = girih.DGNEstimator(
            latent_dim=latent_dim,
            hidden=hidden,
            noise=noise,
            tol=1e-4,
            max_iter=5 if quick else 200,
            n_init=1 if quick else 5,
            random_state=seed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            est.fit(X)
        bic = est.bic(X)
        if best is None or bic < best[0]:
            best = bic, est
    return best[1]


def fit_girih(X, seed, options):
    """The joint density, one generator for each latent dimension, and the one with the best BIC of those."""
    dgns = {f"one generator, S = {S}": fit_dgn(X, S, seed, options.quick) for S in options.latent_dims}
    if len(dgns) > 1:
        dgns["one generator, S by BIC"] = min(dgns.values(), key=lambda est: est.bic(X))
    return {"TableModel": fit_table(X, seed, options.quick)} | dgns


def mixture_by_bic(X, seed, quick=False):
    """The mixture with the best BIC over 1 to 10 components and all four shapes of covariance."""
    shapes = ("full",) if quick else ("full", "tied", "diag", "spherical")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        models = [
            GaussianMixture(k, covariance_type=shape, random_state=seed).fit(X)
            for shape in shapes
            for k in range(1, 3 if quick else 11)
        ]
    return min(models, key=lambda model: model.bic(X))


def run(topic: str, heading: str, measure: Callable, names: tuple[str, ...], decimals: int, arguments=None) -> dict:
    """Measure every table with every seed, print one table, write result.json.

    Args:
        topic: of the example; also the mark of its table in the documentation.
        heading: what the numbers are.
        measure: from (name of a table, seed, options) to a number for each method.
        names: the tables.
        decimals: digits to show.
        arguments: command line; that of the process by default.
    """
    parser = argparse.ArgumentParser(description=heading)
    parser.add_argument("--out", type=Path, default=Path("girih-out") / topic, help="folder for result.json")
    parser.add_argument("--quick", action="store_true", help="one table, one seed, a few iterations: a test")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--tables", nargs="+", choices=names, default=list(names), help="tables to use")
    parser.add_argument(
        "--latent-dims",
        type=int,
        nargs="+",
        choices=range(1, MAX_LATENT_DIM + 1),
        default=[1],
        help="latent dimensions S of single generators, default 1",
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--docs", type=Path, help="a page to put the table into, at the mark of this topic")
    options = parser.parse_args(arguments)
    tables, seeds = (options.tables[:1], 1) if options.quick else (options.tables, options.seeds)
    start = time.perf_counter()
    work = [(name, seed) for name in tables for seed in range(seeds)]
    values = Parallel(n_jobs=options.jobs)(delayed(measure)(name, seed, options) for name, seed in work)
    methods = list(values[0])
    numbers = {
        m: {t: [v[m] for (n, _), v in zip(work, values, strict=True) if n == t] for t in tables} for m in methods
    }
    table = _table(numbers, tables, decimals)
    print(f"{heading}, {f'mean ± standard deviation over {seeds} seeds' if seeds > 1 else 'one seed'}\n\n{table}")
    result = {
        "topic": topic,
        "heading": heading,
        "seeds": seeds,
        "latent_dims": options.latent_dims,
        "girih": girih.__version__,
        "seconds": round(time.perf_counter() - start, 1),
        "results": numbers,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    if options.docs is not None:
        _into_page(options.docs, topic, table)
    return result


def _table(numbers, tables, decimals):
    """A table in Markdown: a row for each method."""
    lines = [["", *(name.replace("_", " ") for name in tables)], ["---"] * (len(tables) + 1)]
    for method, found in numbers.items():
        lines.append([method, *(_cell(found[name], decimals) for name in tables)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _cell(values, decimals):
    spread = f" ± {np.std(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{decimals}f}{spread}"


def _into_page(page, topic, table):
    text = page.read_text(encoding="utf-8")
    begin, end = f"<!-- table: {topic} -->\n", f"<!-- end: {topic} -->"
    before, rest = text.split(begin)
    page.write_text(before + begin + table + "\n" + end + rest.split(end)[1], encoding="utf-8")
