import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from girih.cli import app

QUICK = ("--hidden", "3", "--max-iter", "6", "--n-init", "1")


class Outcome:
    """Exit code, standard output and standard error of a command."""

    def __init__(self, result):
        self.code, self.out, self.err = result.exit_code, result.stdout, result.stderr

    @property
    def json(self):
        """Standard output as the one JSON object that it must be."""
        assert self.out.count("\n") == 1
        return json.loads(self.out)

    @property
    def error(self):
        """The one line of an error."""
        (line,) = (line for line in self.err.splitlines() if not line.startswith("note: "))
        assert line.startswith("girih: error: ")
        return line.removeprefix("girih: error: ")


def call(*arguments):
    return Outcome(CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False))


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def girih():
    return call


def make_table(n=40, seed=0):
    """Columns on very different scales with a tenth of the entries missing, and a column of text."""
    rng = np.random.default_rng(seed)
    t = rng.normal(size=n)
    X = np.stack((170.0 + 9.0 * t, 3e4 + 9e3 * np.sin(t), 0.01 * t**2), 1)
    X += rng.normal(size=X.shape) * (1.0, 900.0, 1e-3)
    X = np.where(rng.random(X.shape) < 0.1, np.nan, X)
    table = pd.DataFrame(X, columns=["height", "income", "ratio"])
    table.insert(0, "name", [f"p{i}" for i in range(n)])
    return table


@pytest.fixture(scope="session")
def fitted(tmp_path_factory):
    """A folder with `people.csv`, and `fit`, the results of a standardised fit to it."""
    folder = tmp_path_factory.mktemp("fitted")
    make_table().to_csv(folder / "people.csv", index=False)
    done = call("fit", folder / "people.csv", "--drop", "name", "--standardize", "--out", folder / "fit", *QUICK)
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A fit to images with pixels up to 255."""
    from girih.datasets import load

    folder = tmp_path_factory.mktemp("images")
    pixels = load("digits-3", n=30).X.reshape(-1, 8, 8) * 255.0
    np.save(folder / "threes.npy", pixels.round().astype(np.uint8))
    done = call("fit", folder / "threes.npy", "--out", folder / "fit", "--json", *QUICK)
    assert done.code == 0, done.err
    return folder, done.json
