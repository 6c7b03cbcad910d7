"""Training curves, and the manners of the whole package."""

import subprocess
import sys
from collections.abc import Callable

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from girih.errors import EmptyDataError, ParameterError, ShapeError
from girih.plots import CYCLE, STYLE, plot_nll_curve, plot_training_curves, styled

Check = Callable[[Axes | Figure], None]


@pytest.mark.parametrize("curve", [[2.0], [3.0, 1.0, 0.5], np.arange(100.0), torch.linspace(1, 0, 40)])
def test_nll_curves(curve: object, finished: Check) -> None:
    ax = plot_nll_curve(curve, references={"entropy": 0.3})
    assert ax.get_ylabel() == "negative log-likelihood (nats per row)" and ax.get_xlabel() == "EM iteration"
    assert np.allclose(ax.lines[0].get_ydata(), np.asarray(curve))
    finished(ax)


def test_curves_that_are_none() -> None:
    with pytest.raises(EmptyDataError, match="no values"):
        plot_nll_curve([])
    with pytest.raises(ShapeError, match="shape"):
        plot_nll_curve(np.zeros((2, 2)))
    with pytest.raises(ShapeError, match="list of numbers"):
        plot_nll_curve(["a"])


def test_the_median_and_the_range_of_seeds(finished: Check) -> None:
    x = np.arange(4.0)
    y = np.array([[1.0, 2, 3, 4], [2, 3, 4, 9], [0, 1, 2, 3]])
    for run in ((x, y), [(x, row) for row in y], list(y)):
        ax = plot_training_curves({"EM": run}, "epoch", "KL (nats per row)")
        assert np.allclose(ax.lines[0].get_data()[1], [1, 2, 3, 4])
        band = ax.collections[0].get_paths()[0].vertices
        assert band[:, 1].min() == 0 and band[:, 1].max() == 9
        finished(ax)


def test_seeds_of_different_length_or_time() -> None:
    short = plot_training_curves({"EM": [np.ones(3), np.full(5, 3.0)]}, "epoch")
    assert short.lines[0].get_ydata().tolist() == [2, 2, 2, 3, 3]
    first, second = (np.array([0.0, 2.0]), np.array([0.0, 2.0])), (np.array([0.0, 1.0, 3.0]), np.array([0.0, 1.0, 3.0]))
    timed = plot_training_curves({"EM": [first, second]}, "time (s)")
    assert timed.lines[0].get_xdata().tolist() == [0, 1, 2] and timed.lines[0].get_ydata().tolist() == [0, 1, 2]


def test_logarithmic_axes(finished: Check) -> None:
    for top in (2.0, 30.0, 1e6):
        ax = plot_training_curves(
            {"EM": (np.arange(5.0), np.linspace(1, top, 5))}, "time (s)", "NLL (nats per row)", logx=True, logy=True
        )
        assert ax.get_xscale() == ax.get_yscale() == "log" and ax.lines[0].get_xdata()[0] == 1
        finished(ax)
    with pytest.raises(ParameterError, match="'EM' has values at or below 0"):
        plot_training_curves({"EM": (np.arange(3), np.array([1.0, 0.0, 2.0]))}, "epoch", logy=True)


def test_runs_that_do_not_fit() -> None:
    for run in (
        (np.arange(3), np.arange(4)),
        [],
        3.0,
        [(np.arange(3), np.arange(2))],
        (np.arange(3), np.zeros((2, 2, 3))),
    ):
        with pytest.raises(ShapeError, match="'EM'"):
            plot_training_curves({"EM": run}, "epoch")
    with pytest.raises(EmptyDataError):
        plot_training_curves({}, "epoch")
    with pytest.raises(ParameterError, match="too many to tell apart"):
        plot_training_curves({str(i): (np.arange(2), np.arange(2)) for i in range(8)}, "epoch")
    apart = [(np.array([0.0, 1.0]), np.ones(2)), (np.array([2.0, 3.0]), np.ones(2))]
    with pytest.raises(ShapeError, match="no x in common"):
        plot_training_curves({"EM": apart}, "time (s)")


def test_lines_differ_without_colour() -> None:
    looks = {(str(style["linestyle"]), style["marker"]) for style in CYCLE}
    assert len(looks) == len(CYCLE)
    # dark enough on white paper: relative luminance
    assert max(np.dot(to_rgb(style["color"]), [0.2126, 0.7152, 0.0722]) for style in CYCLE) < 0.7


def test_the_style_is_left_when_a_picture_fails() -> None:
    before = matplotlib.rcParams["font.size"]

    @styled
    def fail() -> None:
        assert matplotlib.rcParams["font.size"] == STYLE["font.size"]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert matplotlib.rcParams["font.size"] == before


def test_matplotlib_is_loaded_for_pictures_only() -> None:
    code = (
        "import sys, girih, girih.datasets; assert 'matplotlib' not in sys.modules; "
        "import girih.plots; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
