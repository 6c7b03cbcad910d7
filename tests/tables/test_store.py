"""`girih.save` and `girih.load` of a `TableModel`: the same numbers to the last bit, and nothing that is damaged."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

import girih
from girih._files import read_tensors, write_tensors
from girih.errors import ModelFileError

COLUMNS = ["height", "rain", "kind", "tame", "always", 7]


def table(n=90, seed=0):
    """Numbers, atoms, text, booleans, a constant, a column named by a number, holes."""
    rng = np.random.default_rng(seed)
    t = rng.normal(size=n)
    frame = pd.DataFrame(
        {
            "height": 170.0 + 9.0 * t,
            "rain": np.where(rng.random(n) < 0.4, 0.0, np.exp(t + rng.normal(size=n))),
            "kind": np.where(t > 0.2, "oak", np.where(rng.random(n) < 0.5, "fir", "elm")),
            "tame": pd.array(rng.random(n) < 0.5, dtype="boolean"),
            "always": 3,
            7: np.sin(2.0 * t) + 0.1 * rng.normal(size=n),
        }
    )
    holes = rng.random(frame.shape) < 0.1
    holes[:, 4] = False
    return frame.mask(holes)


@pytest.fixture(scope="module")
def fitted(short_search):
    return girih.TableModel(n_folds=2, random_state=3, kinds={"kind": "category", 7: "number"}).fit(table())


@pytest.fixture(scope="module")
def saved(fitted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    girih.save(fitted, folder)
    return folder


def test_all_of_it_comes_back(fitted, saved):
    back, X = girih.load(saved), table(40, seed=1)
    assert isinstance(back, girih.TableModel)
    assert np.array_equal(back.score_samples(X), fitted.score_samples(X))
    assert np.array_equal(back.best_.score_samples(X), fitted.best_.score_samples(X))
    assert np.array_equal(back.transform(X), fitted.transform(X))
    assert np.array_equal(back.best_.transform(X), fitted.best_.transform(X))
    assert np.array_equal(back.predict(X), fitted.predict(X))
    assert np.array_equal(back.weights_, fitted.weights_) and len(back.members_) == len(fitted.members_)
    pd.testing.assert_frame_equal(back.impute(X), fitted.impute(X))
    pd.testing.assert_frame_equal(back.sample(9, random_state=1), fitted.sample(9, random_state=1))
    assert back.get_params() == fitted.get_params()
    assert back.columns_ == fitted.columns_ and back.columns_.names == tuple(COLUMNS)
    assert back.held_out_score_ == fitted.held_out_score_
    assert back.best_.held_out_score_ == fitted.best_.held_out_score_
    assert back.best_.setting_ == fitted.best_.setting_ and back.best_.best_ is back.best_
    assert (back.aic(X), back.bic(X)) == (fitted.aic(X), fitted.bic(X))
    assert not hasattr(back, "setting_") and back.n_features_in_ == 6
    assert back.cv_results_.keys() == fitted.cv_results_.keys()
    for name, values in fitted.cv_results_.items():
        np.testing.assert_array_equal(back.cv_results_[name], values)


def test_the_single_model_and_plain_arrays_come_back(fitted, tmp_path):
    X = table(40, seed=1)
    girih.save(fitted.best_, tmp_path / "best")
    best = girih.load(tmp_path / "best")
    assert best.best_ is best and best.setting_ == fitted.best_.setting_ and len(best.members_) == 1
    assert np.array_equal(best.score_samples(X), fitted.best_.score_samples(X))
    assert np.array_equal(best.transform(X), fitted.transform(X))
    rows = np.random.default_rng(0).normal(size=(30, 2))
    one = girih.TableModel(n_folds=2, random_state=np.random.RandomState(0)).fit(rows)
    girih.save(one, tmp_path / "array")
    back = girih.load(tmp_path / "array")
    assert back.random_state is None and back.columns_.source == "array"
    assert np.array_equal(back.score_samples(rows), one.score_samples(rows))


def test_a_table_without_numbers_comes_back(tmp_path):
    rows = [["a", "x"], ["b", "y"]] * 10
    model = girih.TableModel(n_folds=2, random_state=0).fit(rows)
    girih.save(model, tmp_path / "model")
    assert np.array_equal(girih.load(tmp_path / "model").score_samples(rows), model.score_samples(rows))


def test_an_unfitted_model_is_not_saved(tmp_path):
    with pytest.raises(ModelFileError, match="not fitted; call fit"):
        girih.save(girih.TableModel(), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_the_format_is_safe(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((saved / "config.json").read_text())["kind"] == "table"


def rewritten(folder, target, tensors=lambda t: None, config=lambda c: None):
    """The model with other parts, without checksums: what is left is whether they make sense."""
    held, metadata = read_tensors(folder / "model.safetensors")
    values = json.loads((folder / "config.json").read_text())
    values.pop("sha256")
    metadata.pop("sha256")
    tensors(held)
    config(values["table"])
    target.mkdir()
    write_tensors(target / "model.safetensors", held, metadata)
    (target / "config.json").write_text(json.dumps(values))


def set_to(name, function):
    return lambda held: held.update({name: function(held[name])})


TENSORS = {
    "negative weights": set_to("weights", lambda v: -v),
    "other weights": set_to("weights", lambda v: 2.0 * v),
    "fewer weights": set_to("weights", lambda v: v[1:]),
    "no maps": lambda held: held.pop("0.maps"),
    "flat maps": set_to("0.maps", lambda v: v.flatten()),
    "indefinite noise": set_to("0.noise", lambda v: -v),
    "other noise": set_to("best.noise", lambda v: v[:, 1:]),
    "single precision": set_to("0.maps", lambda v: v.float()),
    "no spread": set_to("0.scales.spread", lambda v: 0.0 * v),
    "whole flags": set_to("0.scales.bent", lambda v: v.long()),
    "no chances": set_to("0.tables.0", lambda v: 0.0 * v),
    "fewer categories": set_to("0.tables.1", lambda v: v[:, 1:]),
    "kinks backwards": set_to("curve.basis.kinks", lambda v: v.flip(0)),
    "an unknown part": lambda held: held.update({"0.teapot": torch.ones(1)}),
}
CONFIGS = {
    "more members": lambda c: c.update(members=99),
    "huge members": lambda c: c.update(members=10**15),
    "members of text": lambda c: c.update(members="many"),
    "no members": lambda c: c.update(members=0),
    "one of many": lambda c: c.update(single=True),
    "no columns": lambda c: c.update(columns={"source": "pandas", "columns": []}),
    "columns of another kind": lambda c: c.update(columns=7),
    "an unknown kind": lambda c: c["columns"]["columns"][0].update(kind="spline"),
    "another setting": lambda c: c["setting"].update(kind="teapot"),
    "more settings": lambda c: c["setting"].update(teapot=1),
    "no parameters": lambda c: c.pop("parameters"),
    "other parameters": lambda c: c["parameters"].update(teapot=1),
    "no score": lambda c: c.update(held_out_score=None),
    "no results": lambda c: c.update(cv_results=[]),
}


@pytest.mark.parametrize("case", [*TENSORS, *CONFIGS])
def test_parts_that_do_not_fit_together_are_refused(case, saved, tmp_path):
    nothing = lambda _: None  # noqa: E731
    rewritten(saved, tmp_path / "model", TENSORS.get(case, nothing), CONFIGS.get(case, nothing))
    with pytest.raises(ModelFileError, match="do not fit together") as caught:
        girih.load(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_the_parts_as_they_were_are_read(saved, fitted, tmp_path):
    rewritten(saved, tmp_path / "model")
    X = table(5, seed=2)
    assert np.array_equal(girih.load(tmp_path / "model").score_samples(X), fitted.score_samples(X))
