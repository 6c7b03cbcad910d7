"""Models of several widths, and a check that no picture leaves anything behind in matplotlib."""

import copy
from collections.abc import Callable, Iterator

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import girih


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    before = copy.copy(dict(matplotlib.rcParams))
    yield
    assert dict(matplotlib.rcParams) == before
    import matplotlib.pyplot as plt

    assert not plt.get_fignums()


@pytest.fixture(params=[1, 2, 5])
def width(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def dgn(width: int) -> girih.DGN:
    return girih.DGN(girih.mlp([1, 8, width], seed=width), noise=0.02)


@pytest.fixture
def rows(dgn: girih.DGN) -> np.ndarray:
    return dgn().sample((60,), seed=0).numpy()


@pytest.fixture
def holes(rows: np.ndarray) -> np.ndarray:
    """The rows with a fifth of the entries missing, one row without any."""
    out = rows.copy()
    out[np.random.default_rng(0).random(out.shape) < 0.2] = np.nan
    out[3] = np.nan
    return out


def _rendered(picture: Axes | Figure) -> Figure:
    figure = picture if isinstance(picture, Figure) else picture.get_figure()
    assert isinstance(figure, Figure)
    figure.draw_without_rendering()
    return figure


def _finished(picture: Axes | Figure) -> None:
    """Drawn without a warning, with labels, and every text inside the figure."""
    figure = _rendered(picture)
    axes = [picture] if isinstance(picture, Axes) else figure.axes
    assert axes
    if isinstance(picture, Axes):
        assert picture.get_xlabel()
        assert picture.get_ylabel() or not len(picture.get_yticks())
    else:
        assert any(ax.get_xlabel() for ax in axes) and any(ax.get_ylabel() for ax in axes)
    box = figure.bbox
    for text in [label for ax in axes for label in (ax.xaxis.label, ax.yaxis.label, ax.title)]:
        if text.get_text():
            extent = text.get_window_extent()
            assert extent.x0 >= box.x0 - 2 and extent.x1 <= box.x1 + 2, text.get_text()
            assert extent.y0 >= box.y0 - 2 and extent.y1 <= box.y1 + 2, text.get_text()
    for legend in figure.legends:
        extent = legend.get_window_extent()
        assert extent.x0 >= box.x0 - 2 and extent.x1 <= box.x1 + 2


@pytest.fixture
def finished() -> Callable[[Axes | Figure], None]:
    return _finished
