"""Densities of approximate posteriors on [-1, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Distribution, Independent

from girih._options import whole
from girih.errors import ParameterError
from girih.plots.data import Array, plain_text, to_array
from girih.plots.style import COLUMN, CYCLE, LIGHT, new_figure, styled
from girih.vae.bpef import BPEF, CoarseBPEF

_MAX_PANELS = 24
_POINTS = 2001


@styled
def plot_posterior_densities(
    posteriors: Distribution,
    prior: Distribution | None = None,
    dimensions: Sequence[int] | None = None,
    labels: Sequence[str] | None = None,
    columns: int = 2,
    figure: Figure | None = None,
) -> Figure:
    """Draw q(z | x) of a few rows on [-1, 1], in a panel for each latent, over the prior.

    A `CoarseBPEF` is drawn as its probabilities over the distance of two levels, which is comparable with a density.
    Where one peak is so high that the others could not be seen, it is cut off, with its height beside it.

    Args:
        posteriors: as `CGBPEFVAE.encode(x)` gives them, batch shape `(n,)` and event shape `(S,)`; or a `CoarseBPEF` or
            `BPEF` of batch shape `(n,)`, or `(n, S)`. Up to 7 rows.
        prior: of the same latents, as `CGBPEFVAE.prior()`; drawn as an area.
        dimensions: the latents to draw, from 0; by default all of them, or the first 10.
        labels: one for each row; "row 0", "row 1", ... by default.
        columns: how many panels in a line.
        figure: a figure, or subfigure, to draw into; a new one by default.

    Returns:
        The figure.

    Raises:
        ParameterError: another kind of distribution, too many rows or latents, or not one label for each row.

    Source:
        CG-BPEF, eq. 2 and section 3.2.

    Example:
        >>> import torch
        >>> from girih.plots import plot_posterior_densities
        >>> from girih.vae import BPEF, CGBPEFVAE
        >>> vae = CGBPEFVAE([3, 8, 12], seed=0)
        >>> len(plot_posterior_densities(vae.encode(torch.randn(4, 12)), vae.prior()).axes)
        3
        >>> plot_posterior_densities(BPEF(torch.tensor([[0.0, 8.0, 0.0, -9.0]]))).axes[0].get_xlabel()
        'latent z'
    """
    tables = _densities(posteriors, "posteriors")
    if len(tables) > len(CYCLE):
        raise ParameterError(f"{len(tables)} rows are too many to tell apart; pass at most {len(CYCLE)}, e.g. x[:5]")
    labels = [f"row {i}" for i in range(len(tables))] if labels is None else [plain_text(label) for label in labels]
    if len(labels) != len(tables):
        raise ParameterError(f"labels holds {len(labels)} texts for {len(tables)} rows; pass one for each")
    below = None if prior is None else _densities(prior, "prior")[0]
    latents = len(tables[0])
    if below is not None and len(below) != latents:
        raise ParameterError(f"the prior has {len(below)} latents, and the posteriors have {latents}")
    chosen = list(range(min(latents, 10))) if dimensions is None else [whole(k, "dimensions", 0) for k in dimensions]
    if not chosen or max(chosen) >= latents or len(chosen) > _MAX_PANELS:
        raise ParameterError(
            f"dimensions must be latents from 0 to {latents - 1}, from 1 to {_MAX_PANELS} of them; got {chosen}"
        )
    columns = min(whole(columns, "columns"), len(chosen))
    lines = math.ceil(len(chosen) / columns)
    if figure is None:
        figure = new_figure(COLUMN * max(1.0, columns / 2), 0.5 + 1.45 * lines)
    for panel, k in enumerate(chosen):
        ax = figure.add_subplot(lines, columns, panel + 1)
        if below is not None:
            z, density = below[k]
            ax.fill_between(z, density, color=LIGHT, lw=0, label="prior")
        top = _highest([row[k][1].max() for row in tables])
        for style, label, row in zip(CYCLE, labels, tables, strict=False):
            z, density = row[k]
            ax.plot(z, density, color=style["color"], ls=style["linestyle"], lw=1.2, label=label)
            if density.max() > top:
                peak = float(z[density.argmax()])
                side = "right" if peak > 0.0 else "left"
                place = (peak - 0.03 if side == "right" else peak + 0.03, top)
                ax.text(*place, f"{density.max():.3g}", color=style["color"], ha=side, va="top", fontsize=7)
        ax.set(xlim=(-1.0, 1.0), ylim=(0.0, top))
        ax.set_xlabel("latent z" if latents == 1 else f"latent $z_{{{k + 1}}}$")
        ax.set_ylabel("density" if panel % columns == 0 else "")
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3 if len(names) in (5, 6) else 4, columnspacing=1.0)
    return figure


def _highest(peaks: list[float]) -> float:
    """The end of the axis: above all peaks, or at 3 times their median if some are higher than that by far."""
    highest, cut = 1.06 * max(peaks), 3.0 * float(np.median(peaks))
    return cut if highest > 1.5 * cut else highest


def _densities(distribution: Distribution, name: str) -> list[list[tuple[Array, Array]]]:
    """Rows, latents and `(z, density)` of a distribution of the family.

    Raises:
        ParameterError: it is of another kind.
    """
    base = distribution.base_dist if isinstance(distribution, Independent) else distribution
    if not isinstance(base, CoarseBPEF | BPEF):
        raise ParameterError(
            f"{name} must be a CoarseBPEF or a BPEF, or independent ones, as CGBPEFVAE.encode gives; got {type(base)}"
        )
    z, density = _curve(base)
    event = len(distribution.event_shape)
    batch = density.shape[:-1]
    latents = batch[-1] if event or len(batch) > 1 else 1
    table = to_array(density).reshape(-1, latents, len(z))
    return [[(to_array(z), curve) for curve in row] for row in table]


def _curve(base: CoarseBPEF | BPEF) -> tuple[Tensor, Tensor]:
    if isinstance(base, CoarseBPEF):
        return base.levels, base.probs * (0.5 * (len(base.levels) - 1))
    # even steps in arccos z, which resolve a polynomial's peaks at the ends as well as inside
    z = torch.as_tensor(-np.cos(np.linspace(0.0, np.pi, _POINTS)))
    log_p = base.log_prob(z.reshape(-1, *(1,) * len(base.batch_shape)))
    return z, log_p.exp().movedim(0, -1)
