"""Pictures of partitions in the plane: complete, in the right colours, and drawn without warnings."""

import time

import numpy as np
import pytest
import torch
from matplotlib.collections import PolyCollection
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

import girih
from girih.errors import LatentDimensionError, ParameterError
from girih.plots import (
    TINTS,
    CellStyle,
    cell_polygons,
    plot_cells,
    plot_discovery,
    plot_image,
    quantity,
    tints,
    walk_steps,
)


def fills(ax):
    return next(c for c in ax.collections if isinstance(c, PolyCollection))


@pytest.fixture(scope="module")
def part():
    return girih.Partition(girih.mlp([2, 8, 6, 3], activation="relu", seed=1))


def degenerate(kind):
    net = girih.mlp([2, 4, 2], seed=0)
    with torch.no_grad():
        if kind == "constant":
            net[0].weight.zero_()
        elif kind == "parallel":
            net[0].weight[:, 1] = 0.0
        else:
            net[0].weight[1:] = net[0].weight[0]
            net[0].bias[1:] = net[0].bias[0]
    return girih.Partition(net)


@pytest.mark.parametrize("span", [(-1.0, 1.0), ((-20.0, 5.0), (0.3, 0.31)), (-1e4, 1e4), (100.0, 101.0)])
def test_the_cells_cover_the_window_once(part, span):
    polygons = cell_polygons(part, span)
    (x0, x1), (y0, y1) = np.broadcast_to(span, (2, 2))
    assert polygons.areas().sum() == pytest.approx((x1 - x0) * (y1 - y0), rel=1e-9)
    assert (polygons.areas() >= 0).all()
    centres = np.array([corners.mean(0) for corners in polygons.corners()])
    large = polygons.areas() > 1e-9
    assert part.locate(centres[large]).tolist() == polygons.cell[large].tolist()


@pytest.mark.parametrize(("kind", "cells"), [("constant", 1), ("parallel", 5), ("single", 2)])
def test_cells_made_of_pieces_are_one_polygon_each(kind, cells, finished):
    part = degenerate(kind)
    assert len(part) == cells
    polygons = cell_polygons(part, (-9.0, 9.0))
    assert polygons.areas().sum() == pytest.approx(18.0**2)
    assert len(polygons.cell) == cells == len(set(polygons.cell.tolist()))
    finished(part.plot())


def test_bounded_cells_have_their_own_area():
    part = girih.Partition(girih.mlp([2, 8, 2], seed=0), domain=(-2.0, 1.0))
    polygons = cell_polygons(part)
    np.testing.assert_allclose(polygons.areas(), part.volume.numpy()[polygons.cell], rtol=1e-9)
    assert part.plot().get_xlim() == pytest.approx((-2.0, 1.0))


@pytest.mark.parametrize("values", [None, "log_volume", "prior_mass", "rank", "index", "array"])
def test_each_quantity_is_drawn_with_a_label(part, values, finished):
    given = torch.arange(len(part)) * 0.5 if values == "array" else values
    ax = part.plot(values=given, span=(-30.0, 30.0))
    assert len(fills(ax).get_paths()) == len(cell_polygons(part, (-30.0, 30.0)).cell)
    assert bool(ax.child_axes) == (values is not None)
    if values is not None:
        assert ax.child_axes[0].get_ylabel()
    finished(ax)


def test_colours_follow_the_values(part):
    values = np.zeros(len(part))
    values[3:] = 1.0
    polygons = cell_polygons(part, (-30.0, 30.0))
    colours = fills(part.plot(values=CellStyle(values, cmap="gray", edges=False), span=(-30.0, 30.0))).get_facecolor()
    np.testing.assert_allclose(colours[:, 0], values[polygons.cell])
    np.testing.assert_allclose(quantity(part, "prior_mass"), part.prior_mass.numpy())


def test_cells_without_a_value_are_grey(part, finished):
    values = np.where(np.arange(len(part)) % 2, np.nan, 1.0 + np.arange(len(part)))
    ax = part.plot(values=CellStyle(values, log=True))
    cell = cell_polygons(part).cell
    grey = fills(ax).get_facecolor()[cell % 2 == 1]
    assert (grey == grey[0]).all() and grey[0, 0] == grey[0, 1] == grey[0, 2]
    assert len(ax.child_axes) == 2
    finished(ax)


def test_neighbours_have_different_tints():
    for net in (girih.mlp([2, 30, 30, 2], seed=0), girih.mlp([2, 16, 16, 2], activation="abs", seed=3)):
        part = girih.Partition(net)
        found = tints(part)
        a, b = part.neighbors.numpy().T
        assert (found[a] != found[b]).all()
        assert set(found) == set(range(len(TINTS)))


def test_twenty_thousand_cells_take_seconds():
    part = girih.Partition(girih.mlp([2, 100, 100, 2], seed=1))
    assert len(part) > 15_000
    start = time.perf_counter()
    figure = part.plot(values="index").get_figure()
    part.plot()
    figure.canvas.draw()
    assert time.perf_counter() - start < 10.0


def test_three_dimensions_show_a_plane(finished):
    part = girih.Partition(girih.mlp([3, 6, 2], seed=1), domain=(-2.0, 2.0))
    ax = part.plot(at=0.5, values="log_volume")
    assert "0.5" in ax.get_title() and ax.get_xlim() == pytest.approx((-2.0, 2.0))
    assert "volume" in ax.child_axes[0].get_ylabel()
    areas = [p.get_extents().width for p in fills(ax).get_paths()]
    assert min(areas) > 0
    finished(ax)
    with pytest.raises(ParameterError, match="outside the domain"):
        part.plot(at=3.0)


def test_a_slice_names_its_coordinates(finished):
    eye = torch.eye(5)
    part = girih.Partition.slice(girih.mlp([5, 8, 3], seed=0), torch.zeros(5), eye[0], eye[1])
    assert (part.plot().get_xlabel(), part.plot().get_ylabel()) == ("a", "b")
    finished(plot_image(part))


@pytest.mark.parametrize("width", [2, 3])
def test_the_image_has_the_colours_of_its_cells(width, finished):
    part = girih.Partition(girih.mlp([2, 6, width], seed=0))
    figure = plot_image(part, values="index")
    left, right = figure.axes[:2]
    kind = PolyCollection if width == 2 else Poly3DCollection
    image = next(c for c in right.collections if isinstance(c, kind))
    finished(figure)
    if width == 2:
        assert len(image.get_paths()) == len(fills(left).get_paths())
        np.testing.assert_allclose(image.get_facecolor()[:, :3], fills(left).get_facecolor()[:, :3])
    else:  # sorted by depth once drawn
        colours = [np.unique(c.get_facecolor()[:, :3], axis=0) for c in (image, fills(left))]
        np.testing.assert_allclose(*colours)


@pytest.mark.parametrize("by", ["walk", "layer", "unit"])
@pytest.mark.parametrize("panels", [1, 2, 4, 7])
def test_the_discovery_ends_with_the_whole_partition(part, by, panels, finished):
    figure = plot_discovery(part, by=by, panels=panels)
    assert 1 <= len(figure.axes) <= panels
    assert figure.axes[-1].get_title().endswith(f": {len(part)} cells")
    finished(figure)


def test_the_walk_finds_neighbours_step_by_step(part):
    found = walk_steps(part, torch.zeros(1, 2))
    assert (found >= 0).all() and (found == 0).sum() == 1
    a, b = part.neighbors.numpy().T
    assert (np.abs(found[a] - found[b]) <= 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"values": "size"}, "no quantity 'size'.*log_volume"),
        ({"values": [1.0, 2.0]}, "one number for each"),
        ({"span": (1.0, 1.0)}, "span must be"),
        ({"span": (0.0, np.inf)}, "span must be"),
        ({"span": "wide"}, "span must be"),
        ({"values": CellStyle("index", cmap="nope")}, "no colour map"),
        ({"coordinates": [0]}, "coordinates does not apply to a partition with S = 2"),
    ],
)
def test_wrong_options_are_refused(part, options, message):
    with pytest.raises(ParameterError, match=message):
        part.plot(**options)


def test_parts_of_a_style_are_still_taken_as_keywords(part):
    new = fills(part.plot(values=CellStyle("rank", cmap="gray", log=True, edges=False)))
    with pytest.warns(DeprecationWarning, match=r"plot\(cmap=...\) .* use values=girih.plots.CellStyle"):
        old = fills(part.plot(values="rank", cmap="gray", log=True, edges=False))
    np.testing.assert_array_equal(old.get_facecolor(), new.get_facecolor())
    with pytest.warns(DeprecationWarning, match=r"plot_image\(label=...\)"):
        assert plot_image(part, "rank", label="r").axes[0].child_axes[0].get_ylabel() == "r"


def test_a_line_has_no_colours_of_cells():
    line = girih.Partition(girih.mlp([1, 4, 3], seed=0))
    with pytest.raises(ParameterError, match="plot_line_values draws values"):
        line.plot(values="rank")
    assert line.plot(coordinates=[0], mass=line.prior_mass, values=None).get_ylabel() == "1 of 3 coordinates"


def test_other_dimensions_are_refused(part):
    line = girih.Partition(girih.mlp([1, 4, 3], seed=0))
    for picture in (plot_cells, plot_image, plot_discovery):
        with pytest.raises(LatentDimensionError, match="S = 1"):
            picture(line)
    with pytest.raises(ParameterError, match="D = 4"):
        plot_image(girih.Partition(girih.mlp([2, 4, 4], seed=0)))
    with pytest.raises(ParameterError, match="by must be"):
        plot_discovery(part, by="magic")
    with pytest.raises(ParameterError, match="panels"):
        plot_discovery(part, panels=13)
    with pytest.raises(ParameterError, match="no cell has"):
        part.plot(values=np.full(len(part), np.nan))
