"""Rows of the fit are judged by the models that have not seen them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import girih
from girih.tables import choice, fitter

pytestmark = pytest.mark.usefixtures("few_sizes")


@pytest.fixture(scope="module")
def few_sizes():
    """Fewer settings, but each as it is: a short curve would learn nothing by heart."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"_SIZES": (1, 2, 3), "_TRIED": 3, "_KEPT": 2}.items():
            patch.setattr(choice, name, value)
        yield


def table(n=60, strange=2):
    """Two columns on a line, a category, holes; and rows far from the line at the end."""
    rng = np.random.default_rng(3)
    a = rng.normal(size=n)
    df = pd.DataFrame({"a": a, "b": 2.0 * a + 0.1 * rng.normal(size=n), "c": rng.choice(["x", "y"], n)})
    df.loc[rng.random(n) < 0.1, "b"] = np.nan
    df.loc[n - strange :, "a"] = [3.0, 2.5][:strange]
    df.loc[n - strange :, "b"] = [-6.0, -4.0][:strange]
    return df


@pytest.fixture(scope="module")
def model(few_sizes):
    return girih.TableModel(random_state=0).fit(table(strange=1))


def test_scores_of_the_fit_are_those_by_which_it_was_chosen(model):
    assert model.score_held_out(table(strange=1)).mean() == pytest.approx(model.held_out_score_, abs=1e-9)


def test_fresh_rows_are_judged_by_all(model):
    fresh = table(strange=1).assign(a=lambda df: df.a + 0.01)
    np.testing.assert_array_equal(model.score_held_out(fresh), model.score_samples(fresh))
    np.testing.assert_array_equal(model.explain(fresh, held_out=True), model.explain(fresh))


def test_rows_are_recognised_in_any_order_and_in_part_of_the_table(model):
    df = table(strange=1)
    some = df.iloc[[40, 3, 59]]
    np.testing.assert_allclose(model.score_held_out(some), model.score_held_out(df)[[40, 3, 59]], rtol=1e-12)


def test_a_strange_row_of_the_fit_is_not_learned(model):
    df = table(strange=1)
    held, seen = model.score_held_out(df), model.score_samples(df)
    assert held.argmin() == len(df) - 1
    assert held[-1] < seen[-1] - 100.0
    reasons = model.explain(df.iloc[[-1]], held_out=True)[0]
    assert (reasons[:2] < model.explain(df.iloc[[-1]])[0, :2]).all()


def test_equal_rows_count_as_one():
    df = pd.concat([table(40, 0)] * 2, ignore_index=True)
    model = girih.TableModel(n_folds=2, random_state=0).fit(df)
    held = model.score_held_out(df)
    np.testing.assert_allclose(held[:40], held[40:], rtol=1e-12)


def test_a_saved_model_knows_its_rows(model, tmp_path):
    girih.save(model, tmp_path / "model")
    again = girih.load(tmp_path / "model")
    df = table(strange=1)
    np.testing.assert_array_equal(again.score_held_out(df), model.score_held_out(df))


def test_the_single_model_has_seen_all(model):
    df = table(strange=1)
    np.testing.assert_array_equal(model.best_.score_held_out(df), model.best_.score_samples(df))


def test_the_detector_flags_what_the_fit_held_out():
    df = table(strange=2)
    detector = girih.DGNOutlierDetector(contamination=0.03, score="joint", random_state=0).fit(df)
    assert (detector.predict(df)[-2:] == -1).all()
    pairs = girih.DGNOutlierDetector(contamination=0.03, random_state=0).fit(df)
    assert pairs.predict(df)[-2] == -1


def test_many_rows_are_searched_on_samples(monkeypatch):
    """Beyond 4,000 rows (here 100) curves are compared on samples and fitted to all rows."""
    monkeypatch.setattr(choice, "_LARGE", 100)
    for module in (choice, fitter):
        monkeypatch.setattr(module, "SCREENED", 40)
    rng = np.random.default_rng(0)
    t = rng.uniform(0.0, 2.0 * np.pi, 240)
    X = np.column_stack((np.cos(t), np.sin(t))) + 0.05 * rng.normal(size=(240, 2))
    model = girih.TableModel(random_state=0).fit(X)
    assert model.transform(X).shape == (240, 1)
    np.testing.assert_array_equal(model.score_held_out(X), model.score_samples(X))
