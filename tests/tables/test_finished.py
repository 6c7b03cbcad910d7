"""A fit that was killed goes on from the mixtures that were finished, to the same numbers."""

import os

import numpy as np
import pytest

import girih
from girih.errors import CheckpointError, ModelFileError
from girih.tables import choice, fitter
from girih.tables.fitter import Fitter

rng = np.random.default_rng(0)
X = rng.normal(size=(90, 3)) @ rng.normal(size=(3, 3))
X[rng.random(X.shape) < 0.1] = np.nan


def numbers(model):
    return np.r_[model.held_out_score_, model.weights_, model.score_samples(X), model.best_.score_samples(X)]


@pytest.fixture
def fits(monkeypatch):
    """Counts fits, and interrupts where it was told to."""

    class Fits:
        made, last = 0, 10**9

    fit = Fitter.fit

    def counted(self, setting):
        if Fits.made == Fits.last:
            raise KeyboardInterrupt
        Fits.made += 1
        return fit(self, setting)

    monkeypatch.setattr(Fitter, "fit", counted)
    return Fits


def model_with(path, seed=0, **options):
    return girih.TableModel(n_folds=3, random_state=seed, checkpoint=path, **options)


@pytest.mark.usefixtures("short_search")
@pytest.mark.parametrize("sampled", [False, True])
def test_an_interrupted_fit_goes_on_to_the_same_numbers(tmp_path, fits, sampled, monkeypatch):
    if sampled:  # as with more than 4,000 rows
        monkeypatch.setattr(choice, "_LARGE", 60)
        for module in (choice, fitter):
            monkeypatch.setattr(module, "SCREENED", 40)
    path = tmp_path / "fit.ckpt"
    straight = model_with(None).fit(X)
    all_of_them, fits.made, fits.last = fits.made, 0, 7
    with pytest.raises(KeyboardInterrupt):
        model_with(path).fit(X)
    assert path.exists()
    fits.made, fits.last = 0, 10**9
    model = model_with(path).fit(X)
    assert not path.exists()
    assert np.array_equal(numbers(model), numbers(straight))
    assert fits.made == all_of_them - 7


@pytest.mark.usefixtures("fewest_settings")
def test_a_drawn_seed_is_that_of_the_run_that_goes_on(tmp_path, fits):
    path, fits.last = tmp_path / "fit.ckpt", 2
    with pytest.raises(KeyboardInterrupt):
        model_with(path, None).fit(X)
    fits.last = 10**9
    assert not model_with(path, None).fit(X).checkpoint.exists()


@pytest.mark.usefixtures("fewest_settings")
def test_what_belongs_to_another_run_is_refused(tmp_path, fits):
    path, fits.last = tmp_path / "fit.ckpt", 2
    with pytest.raises(KeyboardInterrupt):
        model_with(path).fit(X)
    fits.last = 10**9
    with pytest.raises(CheckpointError, match="other data"):
        model_with(path).fit(X[:-1])
    with pytest.raises(CheckpointError, match="seed="):
        model_with(path, 1).fit(X)
    assert path.exists()
    os.truncate(path, 50)
    with pytest.raises(ModelFileError, match="not a readable checkpoint"):
        model_with(path).fit(X)
