"""The dual graph and the meshes."""

import networkx as nx
import numpy as np
import pytest
import torch
from torch import nn

import girih
from girih.errors import LatentDimensionError, NonFiniteError, ParameterError, ShapeError


def read_ply(path):
    head, body = path.read_bytes().split(b"end_header\n", 1)
    lines = head.decode().splitlines()
    count = {line.split()[1]: int(line.split()[2]) for line in lines if line.startswith("element")}
    vertices = np.frombuffer(body, "<f8", 3 * count["vertex"]).reshape(-1, 3)
    faces = np.frombuffer(body, [("n", "u1"), ("v", "<i4", (3,)), ("cell", "<i4")], count["face"], 24 * count["vertex"])
    assert len(body) == 24 * count["vertex"] + 17 * count["face"] and (faces["n"] == 3).all()
    return vertices, faces["v"], faces["cell"]


def read_obj(path):
    rows = [line.split() for line in path.read_text().splitlines()]
    vertices = np.array([[float(x) for x in row[1:]] for row in rows if row[0] == "v"])
    return vertices, np.array([[int(x) for x in row[1:]] for row in rows if row[0] == "f"]) - 1


def area(vertices, triangles):
    a, b, c = (vertices[triangles[:, k]] for k in range(3))
    return 0.5 * np.linalg.norm(np.cross(b - a, c - a), axis=1)


def plane(first=2):
    """A generator whose surface is the latent plane itself, with a ReLU that folds nothing."""
    net = nn.Sequential(nn.Linear(first, 8), nn.LeakyReLU(0.3), nn.Linear(8, 3)).double()
    torch.manual_seed(1)
    for part in (net[0], net[2]):
        nn.init.normal_(part.weight)
        nn.init.normal_(part.bias)
    return net


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_graph(dim):
    part = girih.Partition(girih.mlp([dim, 6, 2], seed=0))
    graph = part.graph()
    assert isinstance(graph, nx.Graph) and list(graph.nodes) == list(range(len(part)))
    assert nx.is_connected(graph) and graph.number_of_edges() == len(part.neighbors)
    assert sum(mass for _, mass in graph.nodes(data="prior_mass")) == pytest.approx(1.0)
    assert [graph.nodes[i]["volume"] for i in range(len(part))] == part.volume.tolist()
    for i, j, unit in graph.edges(data="unit"):
        assert part.patterns[i, unit] != part.patterns[j, unit]


@pytest.mark.parametrize("ending", ["ply", "obj"])
def test_mesh_is_the_image_of_the_cells(ending, tmp_path):
    part = girih.Partition(plane(), domain=(-2.0, 2.0))
    path = tmp_path / f"surface.{ending}"
    part.save_mesh(path)
    vertices, triangles = read_ply(path)[:2] if ending == "ply" else read_obj(path)
    A, _ = part.affine
    stretch = torch.linalg.svdvals(A.detach()).prod(1)
    assert area(vertices, triangles).sum() == pytest.approx((part.volume * stretch).sum().item(), rel=1e-10)
    # the image of a disc: every inner edge belongs to two triangles that run through it in opposite directions
    edges = np.concatenate((triangles[:, [0, 1]], triangles[:, [1, 2]], triangles[:, [2, 0]]))
    assert len(np.unique(edges, axis=0)) == len(edges)
    inner = np.sort(edges, 1)
    unique = len(np.unique(inner, axis=0))
    assert len(np.unique(triangles)) == len(vertices)
    assert len(vertices) - unique + len(triangles) == 1  # Euler


def test_cells_of_a_clipped_mesh_are_those_of_the_partition(tmp_path):
    part = girih.Partition(plane())
    part.save_mesh(tmp_path / "a.ply", span=(-1.0, (2.0, 1.5)))
    vertices, triangles, cells = read_ply(tmp_path / "a.ply")
    A, b = (value.detach().numpy() for value in part.affine)
    for corner in triangles.T:  # every corner lies in the plane of its cell's map
        x = vertices[corner] - b[cells]
        z = np.stack([np.linalg.lstsq(A[c], row, rcond=None)[0] for c, row in zip(cells, x, strict=True)])
        assert np.allclose((A[cells] @ z[:, :, None])[:, :, 0], x, atol=1e-9)
        assert (z > -1.0 - 1e-9).all() and (z < np.array([2.0, 1.5]) + 1e-9).all()
    box = girih.Partition(plane(), domain=(-1.0, (2.0, 1.5)))
    assert set(cells.tolist()) == set(part.locate(box.interior).tolist())


def test_default_span_is_four_prior_deviations(tmp_path):
    net = nn.Sequential(nn.Linear(2, 3, bias=False)).double()
    net[0].weight.data = torch.eye(3, 2, dtype=torch.float64)
    girih.Partition(net, prior=[[4.0, 0.0], [0.0, 1.0]]).save_mesh(tmp_path / "a.obj")
    vertices, _ = read_obj(tmp_path / "a.obj")
    assert np.allclose(np.abs(vertices), [8.0, 4.0, 0.0])
    half = girih.Partition(net, domain=([[1.0, 0.0]], [1.0]))  # unbounded to three sides
    half.save_mesh(tmp_path / "b.obj")
    vertices, _ = read_obj(tmp_path / "b.obj")
    assert vertices[:, 0].max() == pytest.approx(1.0) and vertices[:, 0].min() == pytest.approx(-4.0)


def test_slices_have_meshes(tmp_path):
    part = girih.Partition.slice(plane(5), torch.zeros(5), torch.eye(5)[0], torch.eye(5)[1])
    part.save_mesh(tmp_path / "a.ply")
    assert len(read_ply(tmp_path / "a.ply")[1]) >= len(part) / 2


def test_meshes_that_cannot_be(tmp_path):
    part = girih.Partition(plane())
    with pytest.raises(ParameterError, match=r"written as \.ply or \.obj"):
        part.save_mesh(tmp_path / "a.stl")
    with pytest.raises(LatentDimensionError, match="has S = 3"):
        girih.Partition(plane(3)).save_mesh(tmp_path / "a.ply")
    with pytest.raises(ShapeError, match="D = 2 outputs"):
        girih.Partition(girih.mlp([2, 4, 2], seed=0)).save_mesh(tmp_path / "a.ply")
    with pytest.raises(ParameterError, match="low < high"):
        part.save_mesh(tmp_path / "a.ply", span=-1.0)
    with pytest.raises(NonFiniteError, match="span holds"):
        part.save_mesh(tmp_path / "a.ply", span=float("inf"))
    with pytest.raises(ShapeError, match="span must be"):
        part.save_mesh(tmp_path / "a.ply", span=(0.0, 1.0, 2.0))
    assert list(tmp_path.iterdir()) == []
