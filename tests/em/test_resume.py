"""A fit killed after any iteration (every eleventh, in the short form) and started again ends with the same bits."""

import shutil

import numpy as np
import pytest
import torch

from effort import cases
from girih.em import fit_em
from girih.training import Checkpoint

from .conftest import build

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

FITS = {
    # the memory of the quasi-Newton steps is full after 20 of them
    "isotropic": ({"max_iter": 64}, (1, 5, 2), 0.3),
    "diagonal, a prior to learn": ({"max_iter": 40, "learn_prior": True}, (1, 3, 2), np.ones(2)),
    "full, several starts": ({"max_iter": 9, "n_init": 2, "init_iter": 3}, (1, 3, 2), np.eye(2)),
    "batches": ({"max_iter": 12, "batch_size": 7}, (1, 3, 2), 0.3),
    "weight prior": ({"max_iter": 6, "n_init": 2, "init_iter": 3, "weight_prior": ("gaussian", 1.0)}, (1, 3, 2), 0.3),
    "laplace": ({"max_iter": 5, "init_iter": 3, "weight_prior": ("laplace", 1.0)}, (1, 3, 2), np.ones(2)),
    "no acceleration": ({"max_iter": 6, "acceleration": "none"}, (1, 4, 3, 2), np.eye(2)),
    "planes": ({"max_iter": 4}, (2, 3, 2), 0.3),
}


@pytest.mark.fuzz
@pytest.mark.parametrize("name", FITS)
@pytest.mark.parametrize("missing", [False, True])
def test_from_every_iteration(circle, holes, tmp_path, monkeypatch, name, missing):
    options, sizes, noise = FITS[name]
    settings = {"n_init": 1, "tol": 0.0, "checkpoint_seconds": 0.0, **options}
    X = (holes if missing else circle)[:16]
    write, kept = Checkpoint.write, []

    def keep(self, contents):
        write(self, contents)
        kept.append(shutil.copy(self.path, tmp_path / f"{len(kept)}.ckpt"))

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "write", keep)
        whole = fit_em(a := build(sizes, noise), X, checkpoint=tmp_path / "whole.ckpt", **settings)
    assert len(kept) >= options["max_iter"]
    for path in kept[:: cases(11, 1)] + kept[-1:]:
        resumed = fit_em(b := build(sizes, noise, seed=1), X, checkpoint=path, **settings)
        assert resumed.curve.tolist() == whole.curve.tolist() and resumed.starts == whole.starts, path
        assert (resumed.log_likelihood, resumed.ended) == (whole.log_likelihood, whole.ended), path
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True)), path
