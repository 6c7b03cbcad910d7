"""`vae-gap`: it runs small, and what it reports is what `gap` says of the VAEs it has kept."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from girih.errors import ParameterError
from girih.vae import gap
from girih_papers import registry, vae_gap
from girih_papers.jobs import run_jobs, with_weights

REPRODUCTION = "vae-gap"


def test_it_runs_small_and_writes_what_it_says(result):
    folder, found = result
    assert set(found["figures"]) == {"curves.png", "bars.png", "posteriors.png"}
    for figure in found["figures"]:
        with Image.open(folder / figure) as image:
            assert image.width > 300 and len(np.unique(np.asarray(image.convert("L")))) > 10
    written = json.loads((folder / "result.json").read_text())["data"]["circle"]
    for family, numbers in found["data"]["circle"].items():
        assert written[family]["bound"]["mean"] == numbers["bound"]["mean"]
    assert len(list((folder / "runs").glob("*.npz"))) == len(vae_gap.FAMILIES)


@pytest.mark.parametrize("family", vae_gap.FAMILIES)
def test_numbers_are_those_of_the_vae_that_was_kept(result, family):
    settings = vae_gap.QUICK
    keys, jobs = vae_gap.jobs_of(settings, 0)
    runs = run_jobs(vae_gap.trained, jobs, result[0], "", True, False)  # those on disk
    kept = runs[keys.index(("circle", family, 0))]
    vae = with_weights(vae_gap.make_vae("circle", family, 0, settings.temperature), kept)
    _, fresh = vae_gap._rows("circle", settings.rows, settings.measured, 0)
    found = gap(vae, fresh, starts=settings.starts)
    reported = result[1]["data"]["circle"][family]
    for name in vae_gap.NUMBERS:
        assert reported[name]["mean"] == pytest.approx(getattr(found, name).mean().item(), abs=1e-9)
        np.testing.assert_allclose(kept[f"rows.{name}"], getattr(found, name).numpy(), atol=1e-9)
    total = sum(kept[f"rows.{name}"] for name in ("nll", "approximation", "amortisation"))
    np.testing.assert_allclose(total, kept["rows.bound"], atol=1e-9)
    assert kept["step"].tolist() == [0, 30, 60] and kept["bound"][-1] < kept["bound"][0]


@pytest.mark.parametrize("family", vae_gap.FAMILIES)
def test_lines_are_densities(family):
    vae = vae_gap.make_vae("circle", family, 0, 0.5)
    lines = vae_gap.posterior_lines(vae, np.array([[0.5, 0.2]]), starts=1)
    step = lines["z"][1] - lines["z"][0]
    for name in ("exact", "best", "encoder"):
        assert lines[name].sum() * step == pytest.approx(1.0, abs=1e-3)


def test_rows_that_are_measured_are_not_trained_on():
    for data in vae_gap.DATA:
        training, fresh = vae_gap._rows(data, 100, 20, 0)
        assert len(fresh) == 20 and not (training[:, None] == fresh).all(2).any()


def test_families_share_their_decoder():
    states = [vae_gap.make_vae("wave", family, 3, 0.5).decoder.state_dict() for family in vae_gap.FAMILIES]
    for state in states[1:]:
        assert all(torch.equal(state[name], value) for name, value in states[0].items())


def test_unknown_data_are_refused(tmp_path):
    with pytest.raises(ParameterError, match="no data 'stars' here; known are circle"):
        registry.run("vae-gap", tmp_path, quick=True, progress=False, changes={"data": "stars"})
