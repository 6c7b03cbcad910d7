"""How objects show themselves: one line with the numbers that matter, and HTML in notebooks."""

import re
import sys
import types

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import girih
from girih._shown import span, table_of
from girih.plots import style


def things():
    dgn = girih.DGN(girih.mlp([2, 8, 3], seed=0), noise=0.1)
    x = dgn().sample((4,), seed=0)
    vae = girih.vae.GaussVAE(girih.mlp([1, 4, 2], seed=0), noise=0.1, seed=0)
    flow = girih.flows.RealNVP(2, seed=0)
    return {
        r"PolytopePosterior\(4 rows, S=2, log p\(x\) \S+ nats a row\)": dgn.posterior(x),
        r"LinePosterior\(1 row, S=1, log p\(x\) \S+ nats a row\)": girih.DGN(girih.mlp([1, 4, 3])).posterior(x[:1]),
        r"DGNDistribution\(S=2, D=3, cells=37, noise=scalar\)": dgn(),
        r"FlowDistribution\(D=2, \d+ transforms, \d+ of them folds\)": flow(),
        r"Partition\(cells=37, latent_dim=2, domain=whole space\)": dgn.partition,
        r"Gap\(2 rows; means: nll .*, error .*\)": girih.vae.gap(vae, [[0.1, 0.2], [0.0, 0.1]]),
    }


def test_a_line_has_the_numbers_that_matter():
    for pattern, thing in things().items():
        assert re.fullmatch(pattern, repr(thing)), repr(thing)
        assert len(repr(thing)) < 200 and thing._repr_html_().startswith("<table>")


def test_texts_are_escaped_and_equal_ends_are_one():
    assert "<b>x</b>" not in table_of("a", {"<b>x</b>": "<i>"}) and span(1.00001, 1.00002) == "1"
    assert span(-1.5, 2.0) == "-1.5 to 2"


def test_pictures_of_a_notebook_are_those_that_pyplot_shows(monkeypatch):
    part = girih.Partition(girih.mlp([2, 4, 2], seed=0))
    before = plt.get_fignums()
    part.plot()
    assert plt.get_fignums() == before
    for shell, answer in ((types.SimpleNamespace(kernel=1), True), (types.SimpleNamespace(), False), (None, False)):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda shell=shell: shell))
            assert style.in_notebook() is answer
    monkeypatch.setattr(style, "in_notebook", lambda: True)
    figure = part.plot().get_figure()
    assert figure.number in plt.get_fignums() and matplotlib.get_backend().lower() == "agg"
    plt.close(figure)
    assert plt.get_fignums() == before


def test_values_of_a_gap_are_its_means():
    vae = girih.vae.GaussVAE(girih.mlp([1, 4, 2], seed=0), noise=0.1, seed=0)
    gap = girih.vae.gap(vae, torch.tensor([[0.1, 0.2], [0.3, 0.1]], dtype=torch.float64))
    shown = float(re.search(r"nll ([-\d.e]+)", repr(gap))[1])
    assert shown == pytest.approx(float(np.mean(gap.nll.numpy())), rel=1e-3)
