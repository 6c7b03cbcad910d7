"""Rows in blocks: the numbers of rows in memory, whatever the blocks, and what one pass comes to."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import sklearn.exceptions
import torch

import girih
from girih.em import fit_em, stepwise, streamed
from girih.em.streamed import fingerprint
from girih.errors import EmptyDataError, NonFiniteError, NotNumericError, ParameterError, ShapeError, StreamError
from girih.training import Checkpoint

from .conftest import build

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
NET = (1, 4, 2)


@pytest.fixture
def rows():
    """600 rows of a noisy circle, a tenth of their entries missing."""
    X = girih.datasets.load("circle", n=600, seed=0).X.copy()
    X[np.random.default_rng(1).random(X.shape) < 0.1] = np.nan
    return X


@pytest.mark.parametrize(
    ("noise", "options"),
    [
        (0.3, {}),
        (np.array([0.2, 0.5]), {"noise_prior": 2.0, "kink_ridge": 0.5}),
        (np.eye(2), {"weight_prior": ("gaussian", 1.0)}),
    ],
)
def test_from_the_same_start_blocks_give_the_numbers_of_rows_in_memory(rows, noise, options):
    whole, blocks = build(NET, noise), build(NET, noise)
    first = fit_em(whole, rows, n_init=0, max_iter=8, **options)
    second = fit_em(blocks, girih.Blocks(rows, rows=200), n_init=0, max_iter=8, **options)
    assert np.allclose(first.curve[:4], second.curve[:4], rtol=0, atol=1e-12)
    assert np.allclose(first.curve, second.curve, rtol=0, atol=1e-8)  # quasi-Newton steps make rounding larger
    assert second.log_likelihood == pytest.approx(first.log_likelihood, abs=1e-8)
    with torch.no_grad():
        assert torch.allclose(whole().log_prob(rows), blocks().log_prob(rows), atol=1e-6)


def test_a_sample_chooses_the_start_and_all_rows_end_it(rows, monkeypatch):
    monkeypatch.setattr(streamed, "SAMPLE", 150)
    frames = [pd.DataFrame(rows[i : i + 100], columns=["a", "b"]) for i in range(0, 600, 100)]
    seen = []
    dgn = build(NET)
    result = fit_em(dgn, frames, n_init=2, init_iter=5, max_iter=12, callback=lambda i, nll: seen.append(nll))
    assert (np.diff(result.curve) <= 1e-12).all() and seen == result.curve[1:].tolist()
    with torch.no_grad():
        assert result.curve[-1] == pytest.approx(-float(dgn().log_prob(rows).mean()), abs=1e-10)
    assert result.curve[0] < 1.6  # the sample had done most of it: from a random start it is above 2


def test_the_order_of_blocks_and_where_they_are_cut_change_the_last_digits_alone(rows):
    ends = []
    for blocks in ([rows], [rows[:7], rows[7:]], [rows[300:], rows[:300]]):
        ends.append(fit_em(build(NET), blocks, n_init=0, max_iter=5).curve)
    assert np.allclose(ends[0], ends[1], atol=1e-11) and np.allclose(ends[0], ends[2], atol=1e-11)


def test_fingerprints_tell_rows_apart_but_not_their_order(rows):
    x = torch.from_numpy(rows)
    mark = fingerprint(x)
    assert (fingerprint(x[:250]) + fingerprint(x[250:])) % 2**64 == fingerprint(x.flip(0)) == mark
    other = x.clone()
    other[3, 0] = np.nextafter(0.5, 1.0)
    assert fingerprint(other) != mark and fingerprint(x.flip(1)) != mark
    assert fingerprint(torch.cat((x[:1], x[:1]))) != 0


def test_an_estimator_takes_a_stream_with_rows_held_out(rows):
    est = girih.DGNEstimator(hidden=(3,), n_init=1, max_iter=15, random_state=0, early_stopping=True)
    frames = [pd.DataFrame(part, columns=["a", "b"]) for part in np.array_split(rows, 4)]
    est.fit(frames)
    assert list(est.feature_names_in_) == ["a", "b"] and est.n_features_in_ == 2
    assert len(est.validation_scores_) == len(est.nll_curve_)
    assert est.score(pd.DataFrame(rows, columns=["a", "b"])) > -1.5
    # the curve is over the rows that are not held out: with 600 rows, all of them in the sample, a tenth
    drawn = streamed.Survey.of(est.dgn_, girih.Blocks(frames), 10_000, 0, girih.streams.Processes()).drawn
    assert len(drawn) == 600 and drawn.least(60).sum() == 60


def test_one_pass_over_many_blocks_approaches_all_rows(monkeypatch):
    X = girih.datasets.load("circle", n=4000, seed=0).X
    fresh = girih.datasets.load("circle", n=1000, seed=1).X
    monkeypatch.setattr(stepwise, "SAMPLE", 200)
    monkeypatch.setattr(stepwise, "_BATCH", 100)

    def held_out(dgn):
        with torch.no_grad():
            return -float(dgn().log_prob(fresh).mean())

    def passed(rows):
        dgn = build(NET, seed=3)
        blocks = (X[i : i + 100] for i in range(0, rows, 100))
        return fit_em(dgn, blocks, n_init=2, init_iter=6, max_iter=25), held_out(dgn), dgn

    few, once, (result, best, dgn) = passed(200)[1], passed(1500)[1], passed(4000)
    assert result.ended == "stream" and len(result.curve) == 39 and not result.converged
    fit_em(dgn, X, n_init=0, max_iter=15)
    whole = held_out(dgn)
    assert whole < best < once < few and best - whole < 0.6 * (few - whole)
    assert np.mean(result.curve[-20:]) == pytest.approx(best, abs=0.1)  # what is said is of fresh rows


def test_a_batch_that_no_step_can_be_made_from_is_said(monkeypatch, rows):
    monkeypatch.setattr(stepwise, "SAMPLE", 100)
    monkeypatch.setattr(stepwise, "_BATCH", 100)
    take, failed = stepwise.batch_step, []

    def fail_once(*arguments):
        if not failed:
            failed.append(True)
            raise NonFiniteError("too large")
        return take(*arguments)

    monkeypatch.setattr(stepwise, "batch_step", fail_once)
    blocks = (rows[i : i + 100] for i in range(0, 600, 100))
    with pytest.warns(sklearn.exceptions.ConvergenceWarning, match="1 of 5 batches were left out"):
        result = fit_em(build(NET), blocks, n_init=1, max_iter=3)
    assert len(result.curve) == 6


def test_a_killed_fit_goes_on_and_one_of_other_rows_does_not(rows, tmp_path, monkeypatch):
    write, kept = Checkpoint.write, []
    options = {"n_init": 1, "max_iter": 5, "tol": 0.0, "checkpoint_seconds": 0.0}

    def keep(self, contents):
        write(self, contents)
        kept.append(self.path.read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "write", keep)
        whole = fit_em(build(NET), girih.Blocks(rows, rows=80), checkpoint=tmp_path / "a", **options)
    for state in kept[::3]:
        (tmp_path / "b").write_bytes(state)
        again = fit_em(build(NET, seed=9), girih.Blocks(rows, rows=80), checkpoint=tmp_path / "b", **options)
        assert again.curve.tolist() == whole.curve.tolist()
    (tmp_path / "b").write_bytes(kept[2])
    with pytest.raises(ParameterError, match="other data"):
        fit_em(build(NET), girih.Blocks(rows[:-1], rows=80), checkpoint=tmp_path / "b", **options)


def test_what_is_refused(rows):
    def fit(X, **options):
        return fit_em(build(NET), X, n_init=0, max_iter=2, **options)

    wrong = rows.copy()
    wrong[90, 1] = np.inf
    with pytest.raises(NonFiniteError, match=r"block 1 of X: x holds infinite values \(first in row 10\), column 1"):
        fit(girih.Blocks(wrong, rows=80))
    with pytest.raises(ShapeError, match="block 0 of X: x has 1 columns"):
        fit([rows[:, :1]])
    with pytest.raises(NotNumericError, match="block 1 of X"):
        fit([pd.DataFrame({"a": [1.0], "b": [2.0]}), pd.DataFrame({"a": ["text"], "b": [2.0]})])
    with pytest.raises(EmptyDataError, match="no rows"):
        fit([rows[:0]])
    with pytest.raises(EmptyDataError, match=r"columns \[1\] of X have no observed entries"):
        fit([np.stack((rows[:, 0], np.full(600, np.nan)), 1)])
    with pytest.raises(ParameterError, match="no sample_weight"):
        fit([rows], sample_weight=np.ones(600))
    with pytest.raises(ParameterError, match="leave checkpoint out"):
        fit(iter([rows]), checkpoint="somewhere")
    with pytest.raises(ParameterError, match="leaves rows on both sides"):
        fit([rows], validation=1.0)
    with pytest.raises(StreamError, match="no rows"), warnings.catch_warnings():
        girih.DGNEstimator().fit(iter([]))
