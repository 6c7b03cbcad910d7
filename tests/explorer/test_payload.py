"""What a page holds, without a browser: kinds of models, limits, and what is refused."""

import base64
import json

import numpy as np
import pytest
import torch
from torch import nn

import girih
from girih.errors import ParameterError, ShapeError
from girih.explorer import Explorer, Wanted, explorer_of
from girih.explorer.generator import network_spec
from girih.explorer.packed import label_column, number_column
from girih.explorer.planes import liveliest, log_volumes
from girih.explorer.rows import pictures


def unpacked(spec):
    return np.frombuffer(base64.b64decode(spec["base64"]), np.dtype(spec["type"]).newbyteorder("<"))


def test_numbers_come_back_as_they_are_shown():
    values = np.array([1.5, np.nan, -2e9, 2.0**24 + 1.0])
    column = number_column("x", values)
    assert unpacked(column["values"]).dtype == np.float32 and not column["whole"]
    whole = number_column("n", np.array([20231105.0, np.nan, -1.0]))
    assert whole["whole"] and np.array_equal(unpacked(whole["values"]), [20231105.0, np.nan, -1.0], equal_nan=True)
    labels = label_column("c", ["b", None, "a", "b"], order=["b", "c", "a"])
    assert labels["levels"] == ["b", "a"] and unpacked(labels["codes"]).tolist() == [1, 0, 2, 1]
    mixed = label_column("m", [1, "a", True, None, 2.5])
    assert mixed["levels"] == ["1", "2.5", "True", "a"] and unpacked(mixed["codes"]).tolist() == [1, 4, 3, 0, 2]
    many = label_column("k", [str(i) for i in range(300)])
    assert many["codes"]["type"] == "u2" and unpacked(many["codes"]).max() == 300
    drawn = unpacked(pictures(np.array([[0.0, 1.0, np.nan, 9.0]]), 0.0, 1.0))
    assert drawn.tolist() == [1, 255, 0, 255]


def test_a_partition_gives_masses_areas_and_volumes_of_its_cells():
    net = girih.mlp([2, 8, 3], seed=0)
    part = girih.Partition(net, prior=[[1.0, 0.3], [0.3, 0.8]])
    plane = girih.explore(part, path=None).payload["planes"][0]
    assert np.allclose(unpacked(plane["mass"]), part.prior_mass) and np.allclose(unpacked(plane["volume"]), part.volume)
    A, _ = part.affine
    slow = 0.5 * torch.linalg.slogdet(A.mT @ A)[1].detach()
    assert np.allclose(unpacked(plane["logVolume"]), slow, atol=1e-10)
    assert log_volumes(girih.trace(girih.mlp([2, 4, 1], seed=0)), part.patterns[:1, :4]) is None


def test_planes_of_three_latents_know_the_cells_of_the_whole_space():
    part = girih.Partition(girih.mlp([3, 6, 4], seed=1))
    payload = girih.explore(part, path=None).payload
    assert len(payload["planes"]) == 3
    plane = payload["planes"][1]
    sliced = girih.Partition.slice(part.trace, plane["origin"], *plane["basis"], domain=(-28.0, 28.0))
    z = torch.tensor([[0.3, -0.4], [1.1, 0.9]], dtype=torch.float64)
    cells = sliced.locate(z)
    whole = part.locate(torch.as_tensor(plane["origin"]) + z @ torch.tensor(plane["basis"], dtype=torch.float64))
    assert np.allclose(unpacked(plane["mass"])[cells], part.prior_mass[whole])
    assert np.allclose(unpacked(plane["volume"])[cells], part.volume[whole])


def test_planes_with_too_many_cells_are_made_smaller(monkeypatch):
    import girih.explorer.planes as planes

    net = girih.mlp([5, 12, 12, 6], seed=1)
    whole = girih.explore(net, path=None).payload
    monkeypatch.setattr(planes, "_OF_PLANE", 60)
    payload = girih.explore(net, path=None).payload
    first, small = whole["planes"][0], payload["planes"][0]
    assert first["cells"] > 60 >= small["cells"] and small["cut"] and not first["cut"]
    assert small["home"][1] < first["home"][1] == pytest.approx(4.0) and len(payload["planes"]) == 3
    assert "too many for a page" in " ".join(payload["notes"]) and whole["notes"] == []
    # what is left is as it was
    z = torch.tensor([[0.01, -0.02]], dtype=torch.float64)
    at = girih.Partition.slice(net, small["origin"], *small["basis"], domain=(-28.0, 28.0)).locate(z)
    assert np.isclose(unpacked(small["logVolume"]), unpacked(first["logVolume"])[at]).any()


def test_the_liveliest_latents_are_those_that_the_outputs_follow():
    net = girih.mlp([5, 8, 6], seed=0)
    with torch.no_grad():
        net[0].weight *= torch.tensor([1.0, 9.0, 1.0, 0.0, 4.0])
    order = liveliest(girih.trace(net), torch.eye(5, dtype=torch.float64)).tolist()
    assert order[:2] == [1, 4] and order[-1] == 3


def test_models_of_every_kind_are_explored():
    X = girih.DGN(girih.mlp([1, 6, 3], seed=0), noise=0.1)().sample((40,), seed=0)
    est = girih.DGNEstimator(hidden=(4,), max_iter=300, n_init=1, random_state=0, tol=1e-3).fit(X)
    vae = girih.vae.VAE(girih.mlp([5, 6, 3], seed=0), noise=0.1, seed=0)
    small = girih.vae.VAE(girih.mlp([2, 6, 3], seed=0), noise=0.1, seed=0)
    for model, what in ((est, "the exact posterior"), (vae, "encoder"), (small, "the exact posterior")):
        payload = girih.explore(model, X, path=None).payload
        assert what in payload["notes"][0] and payload["rows"]["count"] == 40
    with torch.no_grad():
        mean, deviation = vae.embed(X)
    rows = girih.explore(vae, X, path=None).payload["rows"]
    assert np.allclose(unpacked(rows["mean"]).reshape(-1, 5), mean, rtol=1e-6)
    spread = unpacked(rows["spread"]).reshape(-1, 5, 5)
    assert np.allclose(np.diagonal(spread, axis1=1, axis2=2), deviation**2, rtol=1e-5)


def test_missing_entries_and_many_rows():
    dgn = girih.DGN(girih.mlp([1, 6, 3], seed=0), noise=0.1)
    X = dgn().sample((50,), seed=0)
    X[3, 1] = torch.nan
    payload = explorer_of(dgn, X, Wanted(most=20, beside={"number": np.arange(50)})).payload
    rows = payload["rows"]
    numbers = unpacked(rows["numbers"])
    assert rows["count"] == 20 == len(set(numbers)) and "20 of the 50 rows" in " ".join(payload["notes"])
    assert np.array_equal(unpacked(rows["columns"][0]["values"]), numbers)  # a column beside stays with its rows
    whole = girih.explore(dgn, X, path=None).payload["rows"]
    second = next(column for column in whole["columns"] if column["name"] == "x2")
    assert np.isnan(unpacked(second["values"])[3]) and np.isfinite(unpacked(whole["mean"])).all()


def test_what_is_refused_says_what_to_do():
    net = girih.mlp([2, 4, 3], seed=0)
    X = np.zeros((4, 3))
    with pytest.raises(ParameterError, match=r"latents=, or explore girih\.DGN"):
        girih.explore(net, X, path=None)
    with pytest.raises(ParameterError, match="takes a TableModel"):
        girih.explore("model", X, path=None)
    with pytest.raises(ParameterError, match="not fitted yet"):
        girih.explore(girih.DGNEstimator(), X, path=None)
    with pytest.raises(ShapeError, match="one latent for each of the 4 rows, got 2"):
        girih.explore(net, X, path=None, latents=np.zeros((2, 2)))
    with pytest.raises(ShapeError, match="one value for each of the 4 rows"):
        girih.explore(girih.DGN(net), X, path=None, beside={"label": [1]})
    with pytest.raises(ShapeError, match="image_shape must be"):
        girih.explore(net, path=None, image_shape=(2, 2))
    with pytest.raises(ShapeError, match="must name the 3 outputs"):
        girih.explore(net, path=None, columns=["a"])


def test_networks_too_heavy_are_noticed_before_they_are_written():
    net = nn.Sequential(nn.Linear(2, 400), nn.ReLU(), nn.Linear(400, 10)).double()
    assert network_spec(girih.trace(net), 8 * 400) is None
    assert network_spec(girih.trace(net)) is not None


def test_the_page_is_one_file_and_the_result_shows_itself(tmp_path, capsys):
    dgn = girih.DGN(girih.mlp([2, 6, 3], seed=0), noise=0.1)
    explorer = girih.explore(dgn, dgn().sample((5,), seed=0), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert text == explorer.html and "http" not in text.replace("http-equiv", "")
    assert repr(explorer) == f"Explorer(DGN, 5 rows, {tmp_path / 'page.html'})"
    assert "srcdoc" in explorer._repr_html_() and 'sandbox="allow-scripts"' in explorer._repr_html_()
    assert isinstance(explorer, Explorer) and json.dumps(explorer.payload["notes"])
    pytest.importorskip("anywidget")
    widget = explorer.widget()
    assert json.loads(widget.payload)["S"] == 2 and widget.selected == [] and "function mount" in widget._esm


def test_a_table_without_rows_and_with_chosen_columns(small_table):
    model, frame, _ = small_table
    payload = girih.explore(model, path=None, columns=["b", "a"]).payload
    assert [axis["name"] for axis in payload["axes"]] == ["b", "a"] and len(payload["pairs"]) == 1
    assert payload["rows"]["count"] == 500 and "draws" in payload["notes"][0]
    with pytest.raises(ShapeError, match="group hold no numbers"):
        girih.explore(model, frame, path=None, columns=["a", "group"])


def test_polars_frames_are_tables_too(small_table):
    model, frame, explorer = small_table
    polars = pytest.importorskip("polars")
    rows = polars.DataFrame({name: [None if value != value else value for value in frame[name]] for name in frame})
    found = girih.explore(model, rows, path=None).payload
    assert found["strange"] == explorer.payload["strange"] and found["filled"] == explorer.payload["filled"]
