"""girih gap: models of girih and of other libraries, what is written, and what goes wrong."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

import girih as library

CODE = """
import torch
import girih

def vae(): return girih.vae.VAE(girih.mlp([1, 4, 3], seed=0), noise=0.2, seed=0)

class Foreign(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        self.encoder = torch.nn.Linear(3, 8)

def pair():
    torch.manual_seed(0)
    model = Foreign()
    return girih.vae.Pair(model.decoder, lambda x: model.encoder(x).chunk(2, 1), "log_variance", noise=0.2)
made = pair()
def decoder(): return girih.mlp([1, 4, 3], seed=0)
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    monkeypatch.setattr("girih.plots.style.DPI", 50)
    name = f"models_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(CODE)
    np.savetxt("rows.csv", np.random.default_rng(0).normal(size=(12, 3)), delimiter=",")
    return name


def test_the_exact_gap_of_a_vae(girih, code):
    found = girih("gap", f"{code}:vae", "rows.csv", "--out", "out", "--json").json
    vae = library.vae.VAE(library.mlp([1, 4, 3], seed=0), noise=0.2, seed=0)
    x = torch.as_tensor(np.loadtxt("rows.csv", delimiter=","))
    exact = library.vae.gap(vae, x)
    assert found["gap"] == pytest.approx(float(exact.gap.mean()))
    assert found["method"]["nll"] == "exact"
    table = pd.read_csv("out/gap.csv")
    assert np.allclose(table["gap"].sort_values(), exact.gap.sort().values)
    with open("out/report.html") as file:
        page = file.read()
    assert "Nothing is sampled" in page and "Gap of the VAE" in page


@pytest.mark.parametrize("name", ["pair", "made"])
def test_the_estimated_gap_of_a_pair(girih, code, name):
    result = girih("gap", f"{code}.py:{name}", "rows.csv", "--out", "out", "--rows", "5", "--budget", "2")
    assert result.code == 0, result.err
    assert "estimated, NLL by importance sampling" in result.out.replace("\n", " ")
    with open("out/gap.json") as file:
        numbers = json.load(file)
    assert numbers["rows"] == 5
    certified, confident = numbers["certified_nll"], numbers["confidence_nll"]
    assert certified["lower"] <= confident["lower"] <= confident["upper"] <= certified["upper"]
    assert numbers["error"] < 1.0
    assert {"nll_lower", "nll_upper", "nll_confidence_lower", "nll_confidence_upper"} <= set(pd.read_csv("out/gap.csv"))


def test_a_saved_vae(girih, code):
    library.save(library.vae.VAE(library.mlp([1, 4, 3], seed=0), noise=0.2, seed=0), "saved")
    assert girih("gap", "saved", "rows.csv", "--json").json["rows"] == 12


def test_what_is_refused(girih, code):
    assert "the gap is that of a girih.vae.VAE" in girih("gap", f"{code}:decoder", "rows.csv").error
    assert "neither module:function" in girih("gap", "nothing", "rows.csv").error
    np.savetxt("wide.csv", np.zeros((2, 4)), delimiter=",")
    assert "4 columns" in girih("gap", f"{code}:vae", "wide.csv").error
