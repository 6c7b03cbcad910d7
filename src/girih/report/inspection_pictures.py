"""The pictures of an inspection, drawn into files."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

from girih._extras import needs

with needs("plots"):
    import matplotlib

    matplotlib.use("agg", force=False)

import torch
from matplotlib.axes import Axes
from torch import Tensor

from girih import plots
from girih.geometry import Cells, basis, intrinsic_dimension, log_volume
from girih.geometry.priors import UniformPrior
from girih.plots.numbers import to_array
from girih.plots.style import new_figure
from girih.report.inspection import Inspection, affordable
from girih.report.page import Picture
from girih.report.pictures import Sheet

PICTURES = (
    "partition.png",
    "slices.png",
    "image.png",
    "samples.png",
    "line_volumes.png",
    "log_volumes.png",
    "singular_values.png",
    "dimensions.png",
    "layers.png",
    "disentanglement.png",
    "angles.png",
    "basis.png",
)
_DRAWN_CELLS, _SURFACE_CELLS = 20_000, 10_000
_BASIS_CELLS, _BASIS_IMAGES, _BASIS_VECTORS = 4, 10, 4
_PANEL_CELLS = 3000
_REACH = 3.0
_STRAIGHT = 1e-8  # angles in radians up to that are rounding
_FLAT = 0.9  # prior mass of cells without a volume from which on pictures show the dimension instead


def draw_inspection(
    out: Path,
    found: Inspection,
    image_shape: tuple[int, ...] | None = None,
    feature_names: list[str] | None = None,
    seed: int = 0,
) -> list[Picture]:
    """Draw every picture that suits the decoder, in the order of the report.

    Args:
        out: the folder.
        found: what was found out.
        image_shape: of an output: `(h, w)`, `(h, w, 3)`, or channels first, `(1, h, w)` and `(3, h, w)`.
        feature_names: of the columns of an output that is no image.
        seed: of the latents whose images are shown.

    Returns:
        What was drawn.
    """
    sheet = Sheet(out)
    _latent_space(sheet, found)
    if image_shape is not None:
        sheet.draw(
            "samples",
            "What the decoder generates",
            "g(z) at random latents of the prior.",
            lambda: _samples(found, image_shape, seed),
            wide=True,
        )
    _basis(sheet, found, image_shape, feature_names)
    _distributions(sheet, found)
    return sheet.pictures


def _latent_space(sheet: Sheet, found: Inspection) -> None:
    """The cells: all of them for S = 1 and 2, planes through them for larger S."""
    S, D, part = found.latent_dim, found.trace.output_dim, found.cells.partition
    quantity, label, flat = _quantity(found)
    what = "the dimension of their image" if flat else "log √det(AᵀA), how much they are stretched"
    if S == 1 and part is not None:
        span = _span(found)
        sheet.draw(
            "partition",
            "The cells of the latent",
            "Between two cell limits every coordinate of g is a straight line in z. Above: the prior mass of each "
            "cell.",
            lambda: plots.plot_line_partition(part, span=span, mass=found.cells.mass),
        )
        sheet.draw(
            "line_volumes",
            "How fast g moves along the latent",
            "The log of the speed |g′(z)| on each cell: where it is small, many latents lie close together in x.",
            lambda: plots.plot_line_values(part, found.volume.values, span=span),
        )
        return
    if S == 1:
        return
    if S == 2 and part is not None and len(part) <= _DRAWN_CELLS:
        values = to_array(quantity(found.cells))
        if D in (2, 3) and len(part) <= _SURFACE_CELLS:
            sheet.draw(
                "image",
                "The latent plane and its image",
                f"Each cell, on which the decoder is one affine map, and the flat piece that it is mapped to. Colours: "
                f"{what}.",
                lambda: plots.plot_image(part, plots.CellStyle(values, label)),
                wide=True,
            )
        else:
            sheet.draw(
                "partition",
                "The cells of the latent plane",
                f"On each of them the decoder is one affine map. Colours: {what}.",
                lambda: plots.plot_cells(part, values=plots.CellStyle(values, label)),
            )
        return
    planes, reach, origin = _planes(found)
    most = affordable(found.trace, _PANEL_CELLS)
    pixels = min(64, round(most**0.5 * 1.2))
    sheet.draw(
        "slices",
        "Planes through the latent space" if S > 2 else "The latent plane",
        "The exact cells that planes through the middle of the prior meet"
        + (", for the latents with the longest columns of A" if S > 3 else "")
        + f". Colours: {what}, of the full map of the cell. Where a plane has too many cells to be seen, the upper "
        "picture shows points of a grid and the lower one all cells in a small window.",
        lambda: plots.plot_slices(found.trace, planes, reach, origin, {label: quantity}, most, pixels),
        wide=True,
    )


def _basis(
    sheet: Sheet, found: Inspection, image_shape: tuple[int, ...] | None, feature_names: list[str] | None
) -> None:
    cells = _typical(found.cells)
    rows = [str(k) for k in cells.tolist()]
    how = "with the most prior mass" if found.cells.exact else "that prior draws met first"
    latents = _longest(found, _BASIS_IMAGES if image_shape is not None else _BASIS_VECTORS)
    columns = [f"$z_{{{k + 1}}}$" for k in latents.tolist()]
    some = (
        "" if len(latents) == found.latent_dim else f" The {len(latents)} latents with the longest columns are shown."
    )
    vectors = basis(found.cells, index=cells)[:, latents]
    title = "What each latent changes"
    caption = f"Columns of A in cells {how}: the change of x for one unit of a latent.{some}"
    if image_shape is None:
        sheet.draw(
            "basis",
            title,
            caption,
            lambda: plots.plot_basis_vectors(vectors, [f"cell {k}" for k in rows], columns, feature_names),
        )
        return
    images = _as_images(vectors, image_shape)
    colour = " In colour, grey means no change." if images.ndim == 5 else " Red adds, blue takes away."
    sheet.draw(
        "basis", title, caption + colour, lambda: plots.plot_basis(images, rows=rows, columns=columns), wide=True
    )


def _distributions(sheet: Sheet, found: Inspection) -> None:
    cells, S = found.cells, found.latent_dim
    source = "" if cells.exact else f" From {cells.draws:,} prior draws."
    if bool((found.volume.values[cells.mass > 0].isfinite()).any()):
        sheet.draw(
            "log_volumes",
            "How much cells are stretched",
            f"log √det(AᵀA) over the prior, with its mean.{source}",
            lambda: plots.plot_log_volumes(cells),
        )
    if S > 1 and bool((cells.singular_values[cells.mass > 0] > 0.0).any()):
        sheet.draw(
            "singular_values",
            "The spectrum of the maps",
            "Singular values of A: how much x moves for one unit of z, along the direction that is stretched most, "
            f"the next one, and so on.{source}",
            lambda: plots.plot_singular_values(cells),
        )
    if bool((found.layer_ranks < S).any()) or bool((found.dimension.values < S).any()):  # else there is nothing to see
        sheet.draw(
            "dimensions",
            "Intrinsic dimension",
            "Which share of the prior has an image of which dimension, and which the layers alone allow (Proposition 1 "
            f"of Max-Affine Spline Insights).{source}",
            lambda: plots.plot_dimensions({"rank of A": found.dimension, "bound by the layers": found.bound}),
        )
        sheet.draw(
            "layers",
            "What the layers let through",
            "The rank of each layer with its activation, up to S. The lowest one is the bottleneck.",
            lambda: plots.plot_layer_ranks(found.layer_ranks, found.layer_names, S, weights=cells.mass),
        )
    if S > 2:  # with two latents it is one number
        sheet.draw(
            "disentanglement",
            "Which latents are alike",
            f"The absolute cosine between two columns of A, averaged over the prior: 0 for latents that change x in "
            f"directions of their own.{source}",
            lambda: plots.plot_disentanglement(found.overlap),
        )
    angles = found.angles.largest[found.pair_weights.to(found.angles.largest.device) > 0.0]
    if bool((angles > _STRAIGHT).any()):
        sheet.draw(
            "angles",
            "How sharply the manifold is bent",
            f"The largest principal angle between the images of neighbouring cells, over {found.pair_source}"
            f", weighted by their prior mass; 90 degrees where dimensions differ.",
            lambda: plots.plot_angles(found.angles, weights=found.pair_weights),
        )


def _quantity(found: Inspection) -> tuple[Callable[[Cells], Tensor], str, bool]:
    """Choose what colours stand for: the log-volume, or where hardly any cell has one the dimension."""
    if found.entropy.degenerate_mass > _FLAT:
        return lambda cells: intrinsic_dimension(cells).values.to(torch.float64), "dimension of the image", True
    return lambda cells: log_volume(cells).values, r"$\log\sqrt{\det A^\top\!A}$ (nats)", False


def _span(found: Inspection) -> tuple[float, float] | None:
    prior = found.cells.prior
    return (float(prior.low[0]), float(prior.high[0])) if isinstance(prior, UniformPrior) else None


def _planes(found: Inspection) -> tuple[list[tuple[int, int]], list[float], Tensor]:
    """Pairs of latents, how far to go along each latent, and the middle of the prior."""
    prior = found.cells.prior
    if isinstance(prior, UniformPrior):
        reach, origin = 0.5 * (prior.high - prior.low), 0.5 * (prior.high + prior.low)
    else:
        assert prior is not None
        reach = _REACH * prior.covariance.diagonal().sqrt()
        origin = torch.zeros(found.latent_dim, dtype=torch.float64)
    first = _longest(found, min(3, found.latent_dim)).tolist()
    return list(combinations(first, 2)), reach.tolist(), origin


def _longest(found: Inspection, most: int) -> Tensor:
    """The latents with the longest columns of A in typical cells, in their own order."""
    size = basis(found.cells, index=_typical(found.cells, 64)).norm(dim=2).mean(0)
    result: Tensor = size.argsort(descending=True, stable=True)[:most].sort().values.cpu()
    return result


def _typical(cells: Cells, count: int = _BASIS_CELLS) -> Tensor:
    """The cells with the most prior mass; of sampled cells those that were met first, draws from the prior."""
    if not cells.exact:
        return torch.arange(min(count, len(cells)))
    return cells.mass.argsort(descending=True, stable=True)[:count]


def _as_images(vectors: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Rows of pixels `(..., D)` as images `(..., h, w)` or `(..., h, w, 3)`."""
    images = vectors.reshape(*vectors.shape[:-1], *shape)
    if len(shape) == 3 and shape[2] not in (1, 3):  # channels first
        images = images.movedim(-3, -1)
    return images[..., 0] if len(shape) == 3 and images.shape[-1] == 1 else images


@plots.styled
def _samples(found: Inspection, shape: tuple[int, ...], seed: int) -> Axes:
    prior = found.cells.prior
    assert prior is not None
    z = prior.sample(32, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        images = to_array(_as_images(found.trace(z.to(found.trace.device)), shape))
    ax = new_figure(7.4, 0.3 + 0.95 * images.shape[1] / images.shape[2]).add_subplot()
    rows = images.reshape(len(images), -1)
    return plots.plot_image_samples(rows, images.shape[1:], rows=2, cols=16, ax=ax, label="g(z)")
