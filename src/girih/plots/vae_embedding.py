"""Where a VAE puts the rows, and how surely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from girih._options import whole
from girih.errors import ParameterError
from girih.plots.data import Array, thin, to_array
from girih.plots.embedding import classes_of
from girih.plots.latents import draw_classes, draw_ellipses, draw_prior, frame_plane, view_of
from girih.plots.style import BLACK, BLUE, legend_below, new_axes, styled

if TYPE_CHECKING:
    from girih.vae import VAE

_MAX_ROWS = 4_000


@styled
def plot_vae_embedding(
    vae: VAE, X: Any, labels: Any = None, coordinates: Sequence[int] = (0, 1), ax: Axes | None = None
) -> Axes:
    """Draw the mean of q(z | x) of each row in two coordinates of z, with ellipses of one deviation of q.

    This is what the encoder believes. For what is true, where the decoder is piecewise affine and S at most 3, there is
    `plot_embedding(vae.dgn(), X)`. Dashed are 1 to 3 deviations of a normal prior, or the bounds of latents in [-1, 1].
    More than 4,000 rows are thinned evenly.

    Args:
        vae: `GaussVAE`, `MixtureVAE` or `CGBPEFVAE`, with S of 2 or more.
        X: rows `(N, D)`.
        labels: a class for each row, `(N,)`, at most 20 different; those of X, where it is a `Dataset`, by default.
        coordinates: the two coordinates of z to draw.
        ax: axes to draw into; those of a new figure by default.

    Returns:
        The axes.

    Raises:
        ShapeError, NonFiniteError, EmptyDataError: X or labels do not fit.
        ParameterError: categorical latents, S = 1, coordinates that are not two of z, or more than 20 classes.

    Example:
        >>> from girih.datasets import load
        >>> from girih.plots import plot_vae_embedding
        >>> from girih.vae import CGBPEFVAE
        >>> plot_vae_embedding(CGBPEFVAE([2, 8, 4], seed=0), load("iris")).get_xlabel()
        'latent $z_{1}$'
    """
    chosen = [whole(k, "coordinates", 0) for k in coordinates]
    if len(chosen) != 2 or chosen[0] == chosen[1] or max(chosen) >= vae.latent_dim:
        raise ParameterError(
            f"coordinates must be two different latents from 0 to {vae.latent_dim - 1}; got {list(coordinates)}"
        )
    mean, deviation = (to_array(part) for part in vae.embed(X))
    if mean.ndim != 2:
        raise ParameterError("categorical latents have no place in a plane; draw vae.embed(X)[0] as a table instead")
    classes = classes_of(getattr(X, "labels", None) if labels is None else labels, len(mean))
    index = thin(np.arange(len(mean)), _MAX_ROWS)
    mean, deviation = mean[index][:, chosen], deviation[index][:, chosen]
    own, ax = ax is None, new_axes(ax, height=3.6 if classes is not None else 3.4)
    bounded = hasattr(vae, "prior_coefficients")
    prior = np.eye(2) / 6.25 if bounded else np.eye(2)  # what makes the window hold [-1, 1]
    view = view_of(prior, mean)
    if bounded:
        style: dict[str, Any] = {"color": BLACK, "ls": (0, (4, 2)), "lw": 0.8, "zorder": 1.5}
        ax.plot([-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1], label="bounds of z", **style)
    else:
        draw_prior(ax, prior)
    draw_ellipses(ax, mean, _diagonal(deviation), view)
    if classes is None:
        size = float(np.clip(3000.0 / len(mean), 3.0, 12.0))
        drawn = ax.scatter(mean[:, 0], mean[:, 1], s=size, color=BLUE, lw=0, zorder=2, label="mean of q(z | x)")
        drawn.set_rasterized(len(mean) > 500)
    else:
        draw_classes(ax, mean, classes[index])
    frame_plane(ax, view, chosen)
    legend_below(ax, own)
    return ax


def _diagonal(deviation: Array) -> Array:
    """Covariances `(N, 2, 2)` without correlation."""
    return np.asarray(np.square(deviation)[:, :, None] * np.eye(2))
