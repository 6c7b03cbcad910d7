"""`em-fair`: every arm has the same start, time and rows, and what it reports is what was fitted."""

import json
import time

import numpy as np
import pytest
import torch
from PIL import Image

import girih
from girih.errors import ParameterError
from girih.vae import GaussVAE
from girih_papers import em_fair, registry
from girih_papers.em_fair_arms import ARMS, EXACT, Clock, fit_arm, iwae_loss, starting_point

ROWS = girih.datasets.load("circle", n=48, seed=0).X


REPRODUCTION = "em-fair"


def test_it_runs_small_and_writes_what_it_says(result):
    folder, found = result
    with Image.open(folder / "fair.png") as image:
        assert image.width > 300 and len(np.unique(np.asarray(image.convert("L")))) > 10
    table = json.loads((folder / "result.json").read_text())["data"]["circle"]
    assert list(table["arms"]) == list(ARMS)
    assert found["settings"]["generators"] == {"circle": [1, 8, 2]}
    for arm in table["arms"].values():
        assert arm["seconds"]["max"] < 2.0
    assert len(list((folder / "runs").glob("*.npz"))) == len(ARMS) * len(em_fair.starts_of(em_fair.QUICK))


@pytest.mark.parametrize("kind", ["plain", "random", "curve"])
def test_no_arm_is_worse_than_its_start_by_its_own_objective(kind):
    start = starting_point(kind, ROWS, 4, 0.1, seed=3)
    before = -start().log_prob(ROWS).mean().item()
    for arm in EXACT:
        log_prob, clock = fit_arm(arm, start, ROWS, 0.1, seed=0)
        assert clock.value == pytest.approx(-log_prob(ROWS).mean(), abs=1e-9)
        assert clock.value < before and clock.curve[-1][0] < 1.0
    assert -start().log_prob(ROWS).mean().item() == before  # it is left as it was


@pytest.mark.parametrize("arm", ["IWAE", "VAE, tuned"])
def test_an_objective_of_a_bound_is_above_the_exact_nll(arm):
    start = starting_point("plain", ROWS, 4, 0.1, seed=3)
    log_prob, clock = fit_arm(arm, start, ROWS, 0.2, seed=0)
    assert clock.value > -log_prob(ROWS).mean() - 0.02  # the draws of an estimate


def test_the_clock_does_not_count_its_looks():
    model = girih.DGN(girih.mlp([1, 2, 2], seed=0), noise=0.1)
    clock = Clock(0.2, lambda _: sum(range(3_000_000)) * 0.0, lambda _: 0.0)
    began = time.process_time()
    while clock(model)["clock"] < 0.0:
        pass
    assert clock.curve[-1][0] == pytest.approx(0.2, abs=0.1)
    assert time.process_time() - began > 0.3  # most of it went into the looks


def test_the_iwae_bound_lies_between_the_elbo_and_the_exact_likelihood():
    vae = GaussVAE(girih.mlp([1, 4, 2], seed=0), hidden=(8,), noise=0.5, seed=0)
    x = torch.as_tensor(ROWS)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        bounds = [float(iwae_loss(vae, x)) for _ in range(40)]
        elbo = float(vae.free_energy(x, samples=400, seed=0).total.mean())
        exact = -float(vae.dgn()().log_prob(x).mean())
    assert exact < np.mean(bounds) < elbo


@pytest.mark.parametrize("data", em_fair.DATA)
def test_rows_that_are_held_out_are_not_fitted_to(data):
    train, held_out = em_fair.rows_of(data, 0, 0)
    assert not set(map(bytes, train)) & set(map(bytes, held_out))
    assert len(em_fair.rows_of(data, 0, 30)[0]) == 30
    if data not in ("circle", "wave"):
        assert 0.5 < train.std() < 1.5


def test_restarts_are_chosen_without_the_held_out_rows_or_the_exact_nll():
    starts = [
        {"nll": 0.0, "held_out": 0.0, "objective": 0.0},
        {"nll": 2.0, "held_out": 5.0, "objective": 1.0},
        {"nll": 1.0, "held_out": 1.0, "objective": 3.0},
    ]
    assert em_fair.chosen(starts, restarts=True) is starts[1]
    assert em_fair.chosen(starts, restarts=False) is starts[0]


@pytest.mark.parametrize(("name", "value", "message"), [("data", "moon", "no data"), ("arms", "99", "from 0 to 11")])
def test_what_is_not_there_is_refused(tmp_path, name, value, message):
    with pytest.raises(ParameterError, match=message):
        registry.run("em-fair", tmp_path, quick=True, progress=False, changes={name: value})
