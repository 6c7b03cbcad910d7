"""Pictures of what the maps of cells say."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import girih
from girih.errors import EmptyDataError, LatentDimensionError, ParameterError, ShapeError
from girih.geometry import (
    angles,
    basis,
    dimension_bound,
    enumerate_cells,
    intrinsic_dimension,
    layer_ranks,
    log_volume,
    sample_cells,
    segment_cells,
)
from girih.plots import (
    percent,
    plot_angles,
    plot_basis,
    plot_basis_vectors,
    plot_dimensions,
    plot_disentanglement,
    plot_histograms,
    plot_layer_ranks,
    plot_line_partition,
    plot_line_values,
    plot_log_volumes,
    plot_singular_values,
    plot_slices,
    weighted_quantiles,
)


@pytest.fixture(scope="module")
def plane():
    return enumerate_cells(girih.mlp([2, 8, 8, 3], activation="relu", seed=2))


@pytest.fixture(scope="module")
def sampled():
    return sample_cells(girih.mlp([6, 10, 10, 12], activation="leaky_relu", seed=0), 400)


def heights(ax, k=-1):
    """The steps of the k-th histogram and their edges."""
    data = [patch.get_data() for patch in ax.patches if hasattr(patch, "get_data")][k]
    return data.values, data.edges


def test_histograms_have_a_total_of_one_with_what_is_not_finite(finished):
    values = np.array([0.0, 1.0, 1.0, -np.inf])
    ax = plot_histograms({"a": values, "b": [2.0, 3.0]}, "x (m)", weights={"a": [1, 2, 3, 2], "b": None}, bins=5)
    first, edges = heights(ax, 0)
    assert first.sum() == pytest.approx(0.75) and heights(ax, 1)[0].sum() == pytest.approx(1.0)
    assert first[np.searchsorted(edges, 1.0, side="right") - 1] == pytest.approx(5 / 8)
    (legend,) = ax.get_figure().legends
    assert [text.get_text() for text in legend.get_texts()] == ["a (25% at −∞)", "b"]
    finished(ax)


@pytest.mark.parametrize(
    ("samples", "weights", "error"),
    [
        ([np.inf], None, EmptyDataError),
        ([1.0, 2.0], [1.0], ShapeError),
        ([1.0, 2.0], [1.0, -1.0], ParameterError),
        ({"a": [1.0]}, {"b": [1.0]}, ParameterError),
        ({str(k): [1.0] for k in range(9)}, None, ParameterError),
    ],
)
def test_histograms_refuse(samples, weights, error):
    with pytest.raises(error):
        plot_histograms(samples, "x", weights=weights)


def test_weighted_quantiles_are_those_of_repeated_rows():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=(40, 3)), rng.integers(0, 5, 40)
    repeated = np.repeat(values, weights, axis=0)
    for q in (0.05, 0.3, 0.5, 0.95):
        expected = np.quantile(repeated, q, axis=0, method="inverted_cdf")
        np.testing.assert_array_equal(weighted_quantiles(values, weights.astype(float), (q,))[0], expected)


def test_percentages_are_0_and_100_only_where_they_are():
    assert [percent(s) for s in (0.0, 1.0, 1e-6, 0.9999, 0.1234)] == ["0%", "100%", "0.0001%", "over 99.9%", "12.3%"]


def test_log_volumes_are_weighted_by_the_prior(plane, sampled, finished):
    ax = plot_log_volumes(plane)
    values, mass = log_volume(plane).values.numpy(), plane.mass.numpy()
    known = np.isfinite(values)
    assert 0.0 < mass[~known].sum() < 1.0
    steps, edges = heights(ax)
    np.testing.assert_allclose(steps, np.histogram(values[known], edges, weights=mass[known])[0], atol=1e-12)
    (legend,) = ax.get_figure().legends
    assert legend.get_texts()[0].get_text() == f"{percent(mass[~known].sum())} at −∞"
    finished(ax)
    finished(plot_log_volumes({"all": plane, "met by draws": sampled}))
    assert plot_log_volumes(segment_cells(sampled.trace, 2)).get_ylabel() == "share of cells"
    with pytest.raises(EmptyDataError):
        plot_log_volumes(sample_cells(girih.mlp([4, 2, 8], seed=0), 50))


def test_singular_values_are_quantiles_over_the_prior(sampled, plane, finished):
    ax = plot_singular_values(sampled)
    expected = np.quantile(
        np.repeat(sampled.singular_values.numpy(), (sampled.mass * 400).round().int().numpy(), axis=0),
        0.5,
        axis=0,
        method="inverted_cdf",
    )
    np.testing.assert_allclose(ax.lines[0].get_ydata(), expected, rtol=1e-12)
    assert ax.get_yscale() == "log"
    finished(ax)
    finished(plot_singular_values({"a": plane, "b": sampled}))
    finished(plot_singular_values(enumerate_cells(girih.mlp([1, 6, 2], seed=0))))
    dead = girih.mlp([2, 3, 2], seed=0)
    with torch.no_grad():
        dead[2].weight.zero_()
    with pytest.raises(EmptyDataError, match="constant"):
        plot_singular_values(enumerate_cells(dead))
    with pytest.raises(ParameterError, match="increasing"):
        plot_singular_values(sampled, quantiles=(0.5, 0.2, 0.9))


def test_a_line_of_singular_values_ends_where_they_are_zero():
    cells = sample_cells(girih.mlp([5, 3, 9], activation="leaky_relu", seed=0), 100)
    line = plot_singular_values(cells).lines[0].get_ydata()
    assert np.isfinite(line[:3]).all() and np.isnan(line[3:]).all()


def test_dimensions_are_shares_of_the_prior(plane, sampled, finished):
    dims = intrinsic_dimension(plane)
    ax = plot_dimensions({"rank": dims, "bound": dimension_bound(plane)})
    for k in range(3):
        assert ax.patches[k].get_height() == pytest.approx(float(plane.mass[dims.values == k].sum()), abs=1e-12)
    finished(ax)
    narrow = sample_cells(girih.mlp([4, 4, 4, 6], activation="relu", seed=0), 200)
    ax = plot_dimensions(intrinsic_dimension(narrow))
    bars = [patch.get_height() for patch in ax.patches]
    assert sum(bars) == pytest.approx(1.0) and len(ax.containers) == 2  # bars and their errors
    finished(ax)


def test_layer_ranks(plane, finished):
    ranks, names = layer_ranks(plane)
    ax = plot_layer_ranks(ranks, names, 2, weights=plane.mass)
    line = next(line for line in ax.lines if len(line.get_xdata()) == len(names))
    np.testing.assert_allclose(line.get_ydata(), plane.mass.numpy() @ ranks.double().numpy(), atol=1e-9)
    finished(ax)
    finished(plot_layer_ranks(ranks, ["decoder.block.linear", "b", "c"], 2))


def test_angles_are_in_degrees(plane, finished):
    found = angles(plane)
    weight = plane.mass[plane.neighbors].sum(1)
    ax = plot_angles(found, weights=weight, full=True)
    steps, edges = heights(ax)
    degrees = np.degrees(found.largest.numpy())
    expected = np.histogram(degrees, edges, weights=(weight / weight.sum()).numpy())[0]
    np.testing.assert_allclose(steps, expected, atol=1e-12)
    assert ax.get_xlim() == (0.0, 90.0)
    finished(ax)
    finished(plot_angles({"one": found, "two": angles(segment_cells(plane.trace, 3))}))
    with pytest.raises(EmptyDataError):
        plot_angles(angles(girih.mlp([2, 3], seed=0)))


@pytest.mark.parametrize("cells", ["plane", "sampled"])
def test_disentanglement_is_the_average_cosine(cells, request, finished):
    cells = request.getfixturevalue(cells)
    ax = plot_disentanglement(cells)
    total = np.zeros((cells.latent_dim, cells.latent_dim))
    for _, A, _ in cells.maps():
        for one, mass in zip(A.numpy(), cells.mass.numpy(), strict=True):
            for i in range(len(total)):
                for j in range(len(total)):
                    size = np.linalg.norm(one[:, i]) * np.linalg.norm(one[:, j])
                    total[i, j] += 0.0 if size == 0 or i == j else mass * abs(one[:, i] @ one[:, j]) / size
    shown = ax.images[0].get_array()
    np.testing.assert_allclose(shown.compressed(), total[~np.eye(len(total), dtype=bool)], atol=1e-12)
    finished(ax)


def test_disentanglement_refuses():
    with pytest.raises(ParameterError, match="single latent"):
        plot_disentanglement(torch.zeros(1, 1))
    with pytest.raises(ShapeError):
        plot_disentanglement(torch.zeros(2, 3))


def test_basis_images_share_symmetric_limits(sampled, finished):
    images = basis(sampled, (3, 4), [0, 3])
    ax = plot_basis(images)
    tiles = ax.images
    assert len(tiles) == 2 * 6 and {tile.get_clim() for tile in tiles} == {tiles[0].get_clim()}
    low, high = tiles[0].get_clim()
    assert low == -high and high == pytest.approx(float(torch.quantile(images.abs(), 0.995)))
    np.testing.assert_array_equal(tiles[7].get_array(), images[1, 1])
    assert [text.get_text() for text in ax.get_yticklabels()] == ["1", "2"] and ax.get_ylabel() == "cell"
    finished(ax)
    own = plot_basis(images, share_limit=False).images[7]
    assert own.get_clim()[1] == pytest.approx(float(images[1, 1].abs().max()))
    colour = basis(sampled, (2, 2, 3), [0])
    ax = plot_basis(colour, limit=2.0, rows=["first"], columns=list("abcdef"))
    np.testing.assert_allclose(ax.images[0].get_array(), np.clip(0.5 + 0.25 * colour[0, 0].numpy(), 0, 1))
    finished(ax)


def test_basis_vectors_are_bars_or_lines(sampled):
    vectors = basis(sampled, index=[0, 1, 2])
    figure = plot_basis_vectors(vectors, feature_names=[f"column {k}" for k in range(12)])
    assert isinstance(figure, Figure) and len(figure.axes) == 3
    drawn = [patch.get_height() for patch in figure.axes[1].patches]
    np.testing.assert_allclose(drawn, vectors[1].ravel())
    figure.draw_without_rendering()
    assert figure.get_supylabel() and figure.axes[-1].get_xlabel() and len(figure.legends[0].get_texts()) == 6
    wide = basis(enumerate_cells(girih.mlp([2, 4, 30], seed=0)), index=[0])
    figure = plot_basis_vectors(wide)
    np.testing.assert_allclose(figure.axes[0].lines[1].get_ydata(), wide[0, 1])
    figure.draw_without_rendering()


@pytest.mark.parametrize(
    ("draw", "error"),
    [
        (lambda: plot_basis(torch.zeros(2, 3, 4)), ShapeError),
        (lambda: plot_basis(torch.ones(1, 2, 3, 3), rows=["a", "b"]), ShapeError),
        (lambda: plot_basis(torch.ones(1, 2, 3, 3), limit=0.0), ParameterError),
        (lambda: plot_basis_vectors(torch.zeros(2, 3)), ShapeError),
        (lambda: plot_basis_vectors(torch.zeros(2, 8, 3)), ParameterError),
    ],
)
def test_basis_refuses(draw, error):
    with pytest.raises(error):
        draw()


def test_line_values_are_steps_over_the_cells(finished):
    net = girih.mlp([1, 8, 3], activation="relu", seed=3)
    part = girih.Partition(net)
    ax = plot_line_values(part, span=(-2.0, 2.0))
    (steps,) = (patch for patch in ax.patches if hasattr(patch, "get_data"))
    middle = 0.5 * (steps.get_data().edges[1:] + steps.get_data().edges[:-1])
    J = torch.func.vmap(torch.func.jacrev(net))(torch.as_tensor(middle[:, None])).detach().reshape(-1, 3)
    np.testing.assert_allclose(steps.get_data().values, J.norm(dim=1).log().numpy(), atol=1e-9)
    finished(ax)
    half = girih.Partition(girih.mlp([1, 2, 3], activation="relu", seed=0))
    values = torch.full((len(half),), -torch.inf)
    values[0] = 1.0
    finished(plot_line_values(half, values))
    with pytest.raises(LatentDimensionError):
        plot_line_values(girih.Partition(girih.mlp([2, 3, 2], seed=0)))
    with pytest.raises(ShapeError):
        plot_line_values(part, [1.0])
    with pytest.raises(ParameterError, match="span"):
        plot_line_values(part, span=(1.0, 1.0))


def test_the_line_partition_takes_masses_of_another_prior():
    part = girih.Partition(girih.mlp([1, 8, 3], seed=3), domain=(-1.0, 1.0))
    share = part.volume / 2.0
    strip = plot_line_partition(part, span=(-1.0, 1.0), mass=share).child_axes[0]
    np.testing.assert_allclose([bar.get_height() for bar in strip.patches], share)


def test_slices_show_the_values_of_the_full_cells(finished):
    net = girih.mlp([4, 6, 5, 7], activation="leaky_relu", seed=1)
    figure = plot_slices(net, planes=[(0, 2), (1, 3)], reach=2.0, origin=[0.1, 0.2, -0.3, 0.4])
    first = figure.axes[0]
    assert (first.get_xlabel(), first.get_ylabel()) == ("$z_{1}$", "$z_{3}$")
    assert first.get_xlim() == pytest.approx((-1.9, 2.1)) and first.get_ylim() == pytest.approx((-2.3, 1.7))
    polygons = first.collections[0]
    norm_of = figure.axes[-1]  # the colour bar
    low, high = norm_of.get_ylim()
    from girih.plots import latent_colours

    for path, colour in list(zip(polygons.get_paths(), polygons.get_facecolor(), strict=True))[::5]:
        a, b = path.vertices[:-1].mean(0)
        z = torch.tensor([[a, 0.2, b, 0.4]])
        J = torch.func.jacrev(lambda v: net(v))(z[0].double())
        value = 0.5 * float(torch.linalg.slogdet(J.detach().mT @ J.detach())[1])
        np.testing.assert_allclose(colour, latent_colours()((value - low) / (high - low)), atol=0.02)
    finished(figure)


def test_slices_with_too_many_cells_show_a_grid_and_a_window(finished):
    net = girih.mlp([5, 40, 40, 6], activation="leaky_relu", seed=0)
    figure = plot_slices(net, max_cells=60, pixels=8)
    shown = [ax for ax in figure.axes if ax.get_ylabel().startswith("$z")]
    assert [ax.get_title() for ax in shown[:3]] == ["8 × 8 points"] * 3
    grid = shown[0].images[0].get_array()
    z = torch.zeros(1, 5, dtype=torch.float64)
    z[0, :2] = torch.tensor([3.0 * (2 * 5.5 / 8 - 1), 3.0 * (2 * 1.5 / 8 - 1)])
    J = torch.func.jacrev(lambda v: net(v))(z[0]).detach()
    assert grid[1, 5] == pytest.approx(0.5 * float(torch.linalg.slogdet(J.mT @ J)[1]), abs=1e-6)
    counts = [int(ax.get_title().split()[0]) for ax in shown[3:]]
    assert len(counts) == 3 and all(10 <= count <= 120 for count in counts)
    finished(figure)


def test_slices_refuse_and_survive_flat_generators(finished):
    net = girih.mlp([3, 4, 2], seed=0)
    with pytest.raises(LatentDimensionError):
        plot_slices(girih.mlp([1, 4, 2], seed=0))
    for planes in ([(0, 0)], [(0, 3)], [], [(0, 1)] * 4):
        with pytest.raises(ParameterError, match="planes"):
            plot_slices(net, planes=planes)
    with pytest.raises(ParameterError, match="reach"):
        plot_slices(net, reach=-1.0)
    chosen = {"index": lambda cells: torch.arange(len(cells))}
    assert plot_slices(net, planes=[(0, 1)], values=chosen).axes[-1].get_ylabel() == "index"
    with pytest.warns(DeprecationWarning, match="label"):
        tall = plot_slices(girih.mlp([3, 4, 5], seed=0), planes=[(0, 1)], label="v")
    assert tall.axes[-1].get_ylabel().startswith("v")
    finished(plot_slices(net, planes=[(0, 1)]))  # D < S: no cell has a volume
