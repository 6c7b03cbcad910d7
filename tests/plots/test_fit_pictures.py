"""The pictures of `girih fit` for two and three latent dimensions."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.exceptions import ConvergenceWarning

import girih
from girih.datasets import Dataset, load
from girih.report import captions, draw_fit


def fitted(X: np.ndarray, S: int) -> girih.DGNEstimator:
    est = girih.DGNEstimator(latent_dim=S, hidden=(3,), max_iter=2, n_init=1, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return est.fit(X)


@pytest.mark.parametrize(
    ("data", "S", "expected"),
    [
        ("iris", 2, {"manifold"}),
        ("circle", 2, {"manifold", "marginal"}),
        ("digits", 3, {"manifold", "manifold_images", "samples"}),
        ("column", 2, {"marginal"}),
    ],
)
def test_every_picture_that_suits_the_data_is_drawn(data: str, S: int, expected: set[str], tmp_path: Path) -> None:
    if data == "column":
        dataset = Dataset(np.random.default_rng(0).normal(size=(40, 1)), ["a"], "column", "one column")
    else:
        dataset = load(data, n=40) if data == "circle" else load(data).subset(40)
    est = fitted(dataset.X, S)
    scores = est.score_samples(dataset.X)
    pictures = draw_fit(tmp_path, est, dataset, scores, standard_units=data == "iris")
    assert {p.file.stem for p in pictures} == expected | {"nll_curve", "posterior", "partition", "embedding"}
    for picture in pictures:
        assert picture.caption
        with Image.open(picture.file) as image:
            assert min(image.size) > 150 and np.asarray(image.convert("L")).std() > 5


def test_captions_speak_of_the_latent_space_that_is_drawn() -> None:
    assert "circles" not in captions(1, 5)["manifold"] and "curve" in captions(1, 5)["manifold"]
    assert "plane" in captions(2, 5)["manifold_images"] and "each latent" in captions(3, 5)["manifold_images"]
    assert "density" in captions(2, 2)["manifold"]
