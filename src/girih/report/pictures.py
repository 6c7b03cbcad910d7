"""The pictures of a fit, drawn into files, and what stands below them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from girih._extras import needs

with needs("plots"):
    import matplotlib

    matplotlib.use("agg", force=False)

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

import numpy as np
from numpy.typing import NDArray

from girih import plots
from girih._files import atomic_path
from girih.em import Scaling
from girih.report.page import Picture

if TYPE_CHECKING:
    from girih.datasets import Dataset
    from girih.em import DGNEstimator
    from girih.inference import DGN

# Fits are drawn with at most this many rows; a picture of more only takes longer.
_ROWS = 20_000
# The same where S = 3, whose posteriors take a hundredth of a second each.
_DEAR = 600


def captions(latent_dim: int, columns: int) -> dict[str, str]:
    """Captions by the name of the picture.

    Args:
        latent_dim: S.
        columns: D.

    Example:
        >>> from girih.report.pictures import captions
        >>> sorted(captions(2, 5))
        ['embedding', 'manifold', 'manifold_images', 'partition', 'posterior']
    """
    plane = "Both are seen along the first two principal axes of the rows."
    if latent_dim == 1:
        plane = {1: "Rows lie at the posterior mean of their latent.", 2: "Rows as grey points."}.get(columns, plane)
        return {
            "manifold": "g(z) for z between the 0.1% and 99.9% quantiles of its prior, coloured along z; dots are the "
            f"cell limits, where the curve may bend, and the band is one standard deviation of the noise. {plane}",
            "manifold_images": "g(z) along the latent, at evenly spaced quantiles of its prior: all that the "
            "noise-free generator can draw, from one end to the other.",
            "posterior": _rows("A kink or a second peak at a cell limit is real:"),
            "partition": "Between two cell limits every coordinate of g is a straight line in z. Above: the prior "
            "mass of each cell.",
            "embedding": "The posterior mean of z of each row, with one posterior standard deviation to either side; "
            "above, all rows against the prior, which they follow when the model fits.",
        }
    plane = "Beneath: the exact density of x." if columns == 2 else plane
    solid = latent_dim > 2
    return {
        "manifold": "g(z) along lines of the latent space: along each coordinate from the 1% to the 99% quantile of "
        "its prior, the others held at a few quantiles. The lines bend where they cross a cell limit, and the grid "
        f"may fold. Rows as grey points. {plane}",
        "manifold_images": "g(z) along each latent coordinate in turn, the others at 0."
        if solid
        else "g(z) over the latent plane, at evenly spaced quantiles of its prior.",
        "posterior": _rows("Separate patches are real:")
        + (
            " Dots are exact draws, seen along two of the three coordinates."
            if solid
            else " Shades are the smallest regions that hold a share of the posterior; dots are exact draws."
        ),
        "partition": ("A plane through the cells" if solid else "The cells")
        + " on each of which the generator is one affine map, coloured by the mass that the prior gives them.",
        "embedding": "The posterior mean of z of each row, with ellipses of one posterior standard deviation for some "
        "of them; broken lines are one to three standard deviations of the prior, which the rows follow when the "
        f"model fits.{' At most 600 rows are shown.' if solid else ''}",
    }


def _rows(kink: str) -> str:
    return (
        "p(z | x) of the most probable row, two in between and the least probable one. "
        f"{kink} the posterior is a mixture of truncated Gaussians, one for each cell."
    )


class Sheet:
    """Pictures in a folder, in the order in which they are drawn.

    Args:
        out: the folder.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.pictures = out, list[Picture]()

    def draw(self, name: str, title: str, caption: str, make: Callable[[], Axes | Figure], wide: bool = False) -> None:
        """Write what `make` draws as `name`.png."""
        path = self.out / f"{name}.png"
        save(path, make())
        self.pictures.append(Picture(path, title, caption, wide))


def draw_fit(
    out: Path, est: DGNEstimator, dataset: Dataset, log_p: NDArray[np.float64], standard_units: bool = False
) -> list[Picture]:
    """Draw every picture that suits the data, in the order of the report.

    Args:
        out: the folder.
        est: the fitted estimator.
        dataset: the rows that it was fitted to.
        log_p: of each of them, `(N,)`.
        standard_units: whether to draw columns side by side in standard units, for columns in different ones.

    Returns:
        What was drawn.
    """
    dgn, X = est.dgn_, dataset.X
    data = dataset.subset(_ROWS) if len(dataset) > _ROWS else dataset
    data = replace(data, labels=_few_classes(data.labels))
    # a column in small units would be invisible beside the others
    alike_dgn, alike_data, units = dgn, data, ""
    if standard_units and X.shape[1] > 2:
        scaling = Scaling.of(X)
        alike_dgn = Scaling(-scaling.mean / scaling.scale, 1.0 / scaling.scale).fold(dgn)
        alike_data = replace(data, X=scaling.apply(data.X).numpy())
        units = " Columns are in standard units (mean 0, variance 1)."
    sheet = Sheet(out)
    draw = sheet.draw
    S = dgn.latent_dim
    line = S == 1
    words = captions(S, X.shape[1])
    shape = dataset.image_shape
    drawable = shape is not None and (len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3)))
    if drawable and shape is not None:
        draw(
            "manifold_images",
            "What the latent generates",
            words["manifold_images"],
            lambda: _in_range(plots.plot_image_manifold(dgn, shape), X),
            wide=True,
        )
        draw(
            "samples",
            "Rows and samples",
            "Upper lines: rows of the data. Lower lines: draws from the model without their noise, that is g(z) for "
            "random z.",
            lambda: _rows_and_samples(est, data, shape),
            wide=True,
        )
    if line or X.shape[1] > 1:
        title = "The generated curve over the rows" if line else "The generated manifold over the rows"
        draw("manifold", title, words["manifold"] + units, lambda: plots.plot_manifold(alike_dgn, alike_data))
    if X.shape[1] <= 2:
        draw(
            "marginal",
            "The exact density of x",
            "p(x) under the model"
            + (", with the rows as circles." if X.shape[1] == 2 else ", with the rows as ticks."),
            lambda: plots.plot_marginal(dgn, X=data),
        )
    references = {} if dataset.entropy is None else {"entropy of the truth": dataset.entropy}
    draw(
        "nll_curve",
        "Exact NLL during EM",
        "It never rises, by construction. The early iterations are those of the random start that was kept."
        + ("" if est.weight_prior is None else " The penalty of the weight prior is included."),
        lambda: plots.plot_nll_curve(est.nll_curve_, references=references),
    )
    rows = typical_rows(log_p)
    draw(
        "posterior",
        "Exact posteriors of four rows",
        words["posterior"],
        lambda: plots.plot_posteriors(dgn, X[rows], titles=[f"row {row}" for row in rows]),
    )
    draw(
        "partition",
        "The cells of the latent",
        words["partition"] + (units if line else ""),
        lambda: plots.plot_line_partition(alike_dgn.partition) if line else _cells(dgn),
    )
    draw(
        "embedding",
        "Where the rows lie in the latent",
        words["embedding"],
        lambda: plots.plot_embedding(dgn, data) if S <= 2 else _three_planes(dgn, data.subset(min(_DEAR, len(data)))),
        wide=S > 2,
    )
    return sheet.pictures


def _cells(dgn: DGN) -> Axes:
    """The latent plane, or for S = 3 a plane through the latent space, by prior mass."""
    part = dgn.partition
    return plots.plot_cells(part, values=plots.CellStyle("prior_mass", log=bool((part.prior_mass > 0).all())))


@plots.styled
def _three_planes(dgn: DGN, data: Dataset) -> Figure:
    """The rows in each pair of three latent coordinates."""
    figure = Figure(figsize=(8.4, 3.4), layout="constrained", dpi=220)
    for ax, pair in zip(figure.subplots(1, 3), ((0, 1), (0, 2), (1, 2)), strict=True):
        plots.plot_embedding(dgn, data, ax=ax, coordinates=pair)
        legend = ax.get_legend()
        if legend is not None:  # one legend for all three
            legend.remove()
        handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6)
    return figure


def draw_samples(path: Path, X: NDArray[np.float64], shape: tuple[int, ...] | None, names: list[str]) -> None:
    """Draw samples: a sheet of images, or points in the plane."""
    if shape is not None:
        save(path, plots.plot_image_samples(X, shape, label=f"{min(len(X), 32)} samples"))
        return
    figure = Figure(figsize=(3.5, 3.2), layout="constrained", dpi=220)
    ax = plots.styled(figure.add_subplot)()
    ax.scatter(X[:, 0], X[:, 1], s=8, lw=0, color="#0072B2")
    ax.set(xlabel=names[0], ylabel=names[1])
    ranges = np.ptp(X, axis=0)
    if ranges.max() <= 3.0 * ranges.min():
        ax.set_aspect("equal", adjustable="datalim")
    save(path, ax)


def save(path: Path, drawn: Axes | Figure) -> None:
    """Write the figure of some axes, or a figure, as png, atomically."""
    figure = drawn if isinstance(drawn, Figure) else drawn.get_figure(root=True)
    assert figure is not None  # axes that were drawn into have one
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.05)


def typical_rows(log_p: NDArray[np.float64]) -> list[int]:
    """Four rows from the most to the least probable one, fewer if there are fewer."""
    order = np.argsort(-log_p, kind="stable")
    at = np.unique(np.linspace(0, len(order) - 1, 4).round().astype(int))
    return [int(order[i]) for i in at]


def _rows_and_samples(est: DGNEstimator, data: Dataset, shape: tuple[int, ...]) -> Axes:
    columns, lines = 10, 2
    count = columns * lines
    X = data.X[np.linspace(0, len(data) - 1, min(count, len(data))).round().astype(int)]
    z = np.random.default_rng(0).standard_normal((count, est.dgn_.latent_dim))
    z = z @ np.linalg.cholesky(est.dgn_.prior.detach().cpu().numpy()).T
    drawn = est.inverse_transform(z)
    padding = np.full((-len(X) % columns, X.shape[1]), np.nan)
    sheet = np.concatenate((X, padding, drawn))
    ax = plots.plot_image_samples(sheet, shape, rows=2 * lines, cols=columns, label="rows above, samples below")
    return _in_range(ax, data.X)


def _in_range(ax: Axes, X: NDArray[np.float64]) -> Axes:
    """The greys of the data: one image far outside their range would leave the others without contrast."""
    for image in ax.images:
        image.set_clim(np.nanmin(X), np.nanmax(X))
    return ax


def _few_classes(labels: NDArray[Any] | None) -> NDArray[Any] | None:
    """Labels as the embedding can show them, or none."""
    if labels is None or len(np.unique(np.asarray(labels).astype(str))) > 20:
        return None
    return labels
