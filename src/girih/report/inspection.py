"""Everything that `girih inspect` finds out about a decoder, without files and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from girih._options import whole
from girih._progress import Progress
from girih.errors import CellLimitError, NonFiniteError
from girih.geometry import (
    Angles,
    Cells,
    CellValues,
    Entropy,
    Uniformity,
    angles,
    disentanglement,
    entropy,
    enumerate_cells,
    folded_entropy,
    intrinsic_dimension,
    layer_ranks,
    log_volume,
    mean_overlap,
    sample_cells,
    uniformity,
)
from girih.geometry.cells import box
from girih.geometry.priors import GaussianPrior, UniformPrior, as_prior
from girih.networks import Trace, trace
from girih.partition import MAX_LATENT_DIM, Partition
from girih.report.injectivity import Verdict, judge
from girih.report.neighbours import first_neighbours

MAX_CELLS = 50_000
_MOST_PAIRS = 200_000
_FOLDED_DRAWS, _FOLDED_CELLS = 500, 10_000
_STAGES = 7
_NUMBERS = 200_000_000  # in the maps of all steps of those cells


@dataclass(frozen=True)
class Inspection:
    """What a decoder does, cell by cell and over its prior.

    Attributes:
        trace: the decoder.
        cells: all its cells, or those that prior draws met.
        note: why the cells were sampled where S would allow all of them; empty otherwise.
        dimension: rank of A on every cell.
        layer_ranks: what each layer lets through on every cell, `(R, L)`.
        layer_names: of these layers.
        volume: `log sqrt det(A^T A)` of every cell, nats.
        entropy: of generated points; an upper bound where the decoder folds.
        folded: entropy with all preimages and its standard error, where it was computed.
        uniformity: whether all volumes agree.
        disentanglement: `||Q - I||` of every cell, spectral norm.
        overlap: the average of `|Q - I|` over the prior, `(S, S)`.
        angles: between neighbouring cells. For sampled cells the first of each pair is one of them, and the second
            one comes behind them in `angles.cells`.
        pair_weights: prior mass of both cells of each pair; for sampled cells that of the first.
        pair_source: which pairs these are.
        verdict: on injectivity.
    """

    trace: Trace
    cells: Cells
    note: str
    dimension: CellValues
    layer_ranks: Tensor
    layer_names: list[str]
    volume: CellValues
    entropy: Entropy
    folded: tuple[float, float] | None
    uniformity: Uniformity
    disentanglement: CellValues
    overlap: Tensor
    angles: Angles
    pair_weights: Tensor
    pair_source: str
    verdict: Verdict

    @property
    def latent_dim(self) -> int:
        """The latent dimension S."""
        return self.trace.latent_dim

    @property
    def bound(self) -> CellValues:
        """The bound of the layers on the dimension of every cell."""
        return CellValues(self.cells, self.layer_ranks.amin(1))


def inspect_decoder(
    net: nn.Module | Trace,
    prior: Any = 1.0,
    *,
    draws: int = 2000,
    sample: bool = False,
    max_cells: int = MAX_CELLS,
    seed: int = 0,
    progress: bool = False,
) -> Inspection:
    """Find out what a decoder does: cells, dimension, volumes, entropy, disentanglement, angles, injectivity.

    For S <= 3 all cells are enumerated and the numbers are exact, up to those that say otherwise. For larger S, for
    more than `max_cells` cells, or if asked, they are estimated from the cells that prior draws meet.

    Args:
        net: any module that `girih.trace` supports.
        prior: a variance, a covariance `(S, S)`, or `girih.geometry.Uniform(low, high)`.
        draws: how many prior draws to sample cells by.
        sample: sample where enumeration is possible too.
        max_cells: the largest number of cells to enumerate.
        seed: of all draws.
        progress: whether to show a progress bar on a terminal.

    Raises:
        ParameterError, ShapeError, NoiseError: options that are no priors or counts.
        NonFiniteError: the decoder has weights, or values at prior draws, that are not finite.

    Source:
        MAS, sections 3 to 5 and appendix A.

    Example:
        >>> import girih
        >>> from girih.report import inspect_decoder
        >>> found = inspect_decoder(girih.mlp([2, 8, 3], seed=0))
        >>> len(found.cells), found.cells.exact, found.verdict.injective
        (37, True, False)
    """
    traced = trace(net)
    draws, max_cells, seed = whole(draws, "draws"), whole(max_cells, "max_cells"), whole(seed, "seed", None)
    latent = as_prior(prior, traced.latent_dim)
    _check_finite(traced, latent, seed)
    cells, note = _cells(traced, latent, draws, sample, max_cells, seed, progress)
    bar = Progress("inspecting", _STAGES, show=progress)
    try:
        bar.show(0, f"spectrum of {len(cells):,} cells")
        dimension, volume = intrinsic_dimension(cells), log_volume(cells)
        bar.show(1, "layers")
        ranks, names = layer_ranks(cells)
        bar.show(2, "disentanglement")
        entangled, overlap = disentanglement(cells), mean_overlap(cells)
        bar.show(3, "angles")
        found, weights, source = _angles(cells, seed)
        bar.show(4, "injectivity")
        verdict = judge(cells)
        bar.show(5, "entropy")
        value, even = entropy(cells), uniformity(cells)
        bar.show(6, "entropy with folds")
        folded = _folded(cells, verdict, value, latent, seed)
        bar.show(7, "")
    finally:
        bar.close()
    return Inspection(
        trace=traced,
        cells=cells,
        note=note,
        dimension=dimension,
        layer_ranks=ranks,
        layer_names=names,
        volume=volume,
        entropy=value,
        folded=folded,
        uniformity=even,
        disentanglement=entangled,
        overlap=overlap,
        angles=found,
        pair_weights=weights,
        pair_source=source,
        verdict=verdict,
    )


def affordable(traced: Trace, most: int) -> int:
    """How many cells to compute the maps of where fewer would do: `most`, or less for large networks and S.

    Example:
        >>> import girih
        >>> from girih.report.inspection import affordable
        >>> [affordable(girih.trace(girih.mlp([S, 256, 512, 1024, 784], seed=0)), 2000) for S in (2, 10, 100)]
        [2000, 2000, 443]
    """
    numbers = sum(step.size for step in traced.steps) * (traced.latent_dim + 1)
    return max(min(most, _NUMBERS // numbers), 200)


def _check_finite(traced: Trace, latent: GaussianPrior | UniformPrior, seed: int) -> None:
    z = latent.sample(64, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        finite = torch.isfinite(traced(z)).all(1)
    if not finite.all():
        raise NonFiniteError(
            f"the decoder gives values that are not finite at {int((~finite).sum())} of {len(z)} prior draws; its "
            "weights hold NaN or infinities, or overflow"
        )


def _cells(
    traced: Trace,
    latent: GaussianPrior | UniformPrior,
    draws: int,
    sample: bool,
    max_cells: int,
    seed: int,
    progress: bool,
) -> tuple[Cells, str]:
    """All cells where that is possible and wanted, else those that draws meet, with the reason."""
    if sample or traced.latent_dim > MAX_LATENT_DIM:
        return sample_cells(traced, draws, latent, seed), ""
    try:
        if isinstance(latent, UniformPrior):
            options: dict[str, Any] = {"domain": box(latent.low, latent.high)}
        else:
            options = {"prior": latent.covariance}
        part = Partition(traced, max_cells=max_cells, progress=progress, **options)
    except CellLimitError:
        note = f"the decoder has more than {max_cells:,} cells, so they were sampled by {draws:,} prior draws"
        return sample_cells(traced, draws, latent, seed), note
    return enumerate_cells(part, latent), ""


def _angles(cells: Cells, seed: int) -> tuple[Angles, Tensor, str]:
    """Angles of neighbouring cells, the weight of each pair, and which pairs these are."""
    if cells.exact:
        pairs = cells.neighbors
        assert pairs is not None
        weight = cells.mass.clamp(min=0.0)[pairs].sum(1)
        if len(pairs) <= _MOST_PAIRS:
            return angles(cells), weight, f"all {len(pairs):,} pairs of cells that share a facet"
        heavy = weight.argsort(descending=True)[:_MOST_PAIRS]
        source = f"the {_MOST_PAIRS:,} of {len(pairs):,} pairs of cells with a common facet that hold the most mass"
        return angles(cells, pairs[heavy]), weight[heavy], source
    around = first_neighbours(cells, affordable(cells.trace, len(cells)), seed + 1)
    assert around.neighbors is not None
    weight = cells.mass[around.neighbors[:, 0]]
    source = f"the first facets on {len(weight):,} segments from the cells to other prior draws"
    return angles(around), weight, source


def _folded(
    cells: Cells, verdict: Verdict, value: Entropy, latent: GaussianPrior | UniformPrior, seed: int
) -> tuple[float, float] | None:
    """The entropy with all preimages, where the simple formula may not be it and the cost is bearable."""
    fits = cells.partition is not None and len(cells) <= _FOLDED_CELLS
    if not fits or verdict.injective or value.degenerate_mass > 0.0:
        return None
    assert cells.partition is not None
    return folded_entropy(cells.partition, _FOLDED_DRAWS, latent, seed)
