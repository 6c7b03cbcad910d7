"""Work side by side: the same results for any number of jobs, and a killed worker costs what was under way alone."""

from __future__ import annotations

import os
import signal
import time
import warnings

import joblib
import numpy as np
import pytest
import torch
from joblib.externals.loky.process_executor import BrokenProcessPool

import girih
from effort import FEWEST, try_few_settings
from girih import _jobs
from girih._jobs import jobs, side_by_side
from girih.errors import ParameterError, ProcessError

CIRCLE = girih.datasets.load("circle", n=60, seed=0).X


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the workers have."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def double(task):
    value, folder, dies = task
    with open(folder / f"{value}", "a") as file:
        file.write("x")
    if dies and os.path.getsize(folder / f"{value}") <= dies:
        time.sleep(0.5)  # the others are finished
        os.kill(os.getpid(), signal.SIGKILL)
    if value < 0:
        raise ParameterError("negative")
    return 2 * value


def worked(folder, n_jobs, dies=0):
    tasks = [(value, folder, dies if value == 3 else 0) for value in range(6)]
    return dict(side_by_side(double, tasks, n_jobs))


def test_a_killed_worker_costs_what_was_under_way(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # joblib's own, of a worker that stopped
        assert worked(tmp_path, 2, dies=1) == {place: 2 * place for place in range(6)}
    runs = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert runs["3"] == 2 and sum(runs.values()) <= 8  # what was finished was not made again
    with pytest.raises(ParameterError, match="negative"):
        list(side_by_side(double, [(-1, tmp_path, 0), (-2, tmp_path, 0)], 2))


def test_one_job_works_here_and_workers_that_always_die_end_it(tmp_path, monkeypatch):
    assert worked(tmp_path, 1) == {place: 2 * place for place in range(6)}
    rounds = []

    def breaks(n_jobs):
        def work(tasks):
            rounds.append(len(tasks))
            yield 0, "done" if len(rounds) == 1 else None
            raise BrokenProcessPool("killed")

        def fruitless(tasks):
            rounds.append(len(tasks))
            raise BrokenProcessPool("killed")

        return fruitless if rounds else work

    monkeypatch.setattr(_jobs, "_parallel", breaks)
    found = []
    with pytest.raises(ProcessError, match="workers were killed 3 times"):
        found.extend(place for place, _ in side_by_side(double, [(3, tmp_path, 0), (4, tmp_path, 0)], 2))
    assert rounds == [2, 1, 1, 1]


def test_the_context_says_how_many_jobs_where_nothing_else_does():
    assert jobs(None) == 1 and jobs(3) == 3
    with joblib.parallel_config(backend="loky", n_jobs=2):
        assert jobs(None) == 2 and jobs(1) == 1


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("options", [{}, {"weight_prior": ("gaussian", 1.0), "early_stopping": True}])
def test_restarts_side_by_side_give_the_same_bits(options, tmp_path):
    fits = [
        girih.DGNEstimator(hidden=(2,), n_init=2, max_iter=6, random_state=0, n_jobs=n_jobs, **options).fit(CIRCLE)
        for n_jobs in (1, 2)
    ]
    assert fits[0].nll_curve_.tolist() == fits[1].nll_curve_.tolist()
    for p, q in zip(fits[0].dgn_.parameters(), fits[1].dgn_.parameters(), strict=True):
        assert torch.equal(p, q)


def table_fits(n_jobs, **options):
    return girih.TableModel(random_state=0, n_jobs=n_jobs, **options).fit(CIRCLE)


def test_settings_of_a_table_side_by_side_give_the_same_bits(monkeypatch, tmp_path):
    try_few_settings(monkeypatch, **FEWEST)
    one, two = table_fits(1), table_fits(2)
    assert np.array_equal(one.score_samples(CIRCLE), two.score_samples(CIRCLE))
    assert np.array_equal(one.weights_, two.weights_) and one.held_out_score_ == two.held_out_score_
    assert one.cv_results_["mean_test_score"] == two.cv_results_["mean_test_score"]


def select(n_jobs, **options):
    return girih.select_model(CIRCLE, hidden=((), (2,)), n_init=1, max_iter=5, n_jobs=n_jobs, **options)


def test_a_comparison_side_by_side_gives_the_same_numbers():
    first, second = (select(n_jobs, refit=False, progress=False) for n_jobs in (1, 2))
    assert [row.nll for row in first.rows] == [row.nll for row in second.rows]
    assert [row.held_out for row in first.rows] == [row.held_out for row in second.rows]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_on_a_cluster_of_two_workers_the_numbers_are_the_same_and_one_may_be_killed(tmp_path):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        assert jobs(None) == 2
        assert worked(tmp_path, None, dies=1) == {place: 2 * place for place in range(6)}
        spread = select(None, refit=False, progress=False)
    alone = select(1, refit=False, progress=False)
    assert [row.nll for row in spread.rows] == pytest.approx([row.nll for row in alone.rows], abs=1e-12)
