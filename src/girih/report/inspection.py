"""Everything that `girih inspect` finds out about a decoder, without files and pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    is_injective,
    layer_ranks,
    log_volume,
    mean_overlap,
    sample_cells,
    uniformity,
)
from girih.geometry.cells import box, prior_of, triangle
from girih.geometry.dimension import nonzero
from girih.geometry.injective import SAMPLES, second_preimage
from girih.geometry.priors import GaussianPrior, PriorLike, UniformPrior, as_prior
from girih.geometry.search import Search
from girih.networks import Trace, trace
from girih.partition import MAX_LATENT_DIM, Partition

_HALVINGS = 36  # facets are found to 1e-11 of the segment, well above rounding
_ROWS = 4096
_CELLS, _PROGRAMS = 10_000, 2000
_SHRINK = tuple(0.5**k for k in range(60))
MAX_CELLS = 50_000
_MOST_PAIRS = 200_000
_FOLDED_DRAWS, _FOLDED_CELLS = 500, 10_000
_STAGES = 7
_NUMBERS = 200_000_000  # in the maps of all steps of those cells


def first_neighbours(cells: Cells, most: int, seed: int) -> Cells:
    """The cells with a neighbour added for up to `most` of them, and the pairs of both as `neighbors`.

    From the point at which a cell was met a segment leads to another draw. Cells are convex, so the first facet on it
    is found by halving intervals; the cell behind it shares that facet. Cells that hold their whole segment have none.

    Args:
        cells: sampled from a prior.
        most: for how many cells, those that were met first.
        seed: of the ends of the segments.

    Example:
        >>> import girih
        >>> from girih.report.inspection import first_neighbours
        >>> cells = girih.geometry.sample_cells(girih.mlp([10, 16, 16, 5], seed=0), 50)
        >>> found = first_neighbours(cells, 20, seed=1)
        >>> len(found) - len(cells), found.neighbors[0].tolist()
        (20, [0, 50])
    """
    start = cells.points[:most].cpu()
    ends = prior_of(cells).sample(len(start), torch.Generator().manual_seed(seed)).cpu()
    own = cells.patterns[:most]
    near, far = torch.zeros(len(start), dtype=torch.float64), torch.ones(len(start), dtype=torch.float64)

    def codes(share: Tensor) -> Tensor:
        z = start + share[:, None] * (ends - start)
        return torch.cat([cells.trace.pattern(some.to(cells.trace.device)) for some in z.split(_ROWS)])

    left = (codes(far) != own).any(1).cpu()
    for _ in range(_HALVINGS):
        middle = 0.5 * (near + far)
        inside = (codes(middle) == own).all(1).cpu()
        near, far = torch.where(inside, middle, near), torch.where(inside, far, middle)
    beyond = codes(far)[left.to(own.device)]
    index = left.nonzero()[:, 0]
    points = (start + far[:, None] * (ends - start))[left]
    unknown = torch.full((len(index),), torch.nan, dtype=torch.float64)
    pairs = torch.stack((index, len(cells) + torch.arange(len(index))), 1)
    return replace(
        cells,
        patterns=torch.cat((cells.patterns, beyond)),
        points=torch.cat((cells.points, points.to(cells.points.device))),
        mass=torch.cat((cells.mass, unknown)),
        mass_error=torch.cat((cells.mass_error, unknown)),
        neighbors=pairs,
    )


@dataclass(frozen=True)
class Verdict:
    """An answer on injectivity.

    Attributes:
        injective: `True` or `False` where it is known, `None` where it was not decided.
        reason: a sentence that says why.
        witness: two latents with the same image, `(2, S)`, where there are.
    """

    injective: bool | None
    reason: str
    witness: Tensor | None = None


def judge(cells: Cells) -> Verdict:
    """Decide whether different latents have different images, or say what is known.

    A cell of rank below S is enough for a no, whether the cells were enumerated or sampled. A yes needs all cells.

    Source:
        MAS, section 4.1, Proposition 3, which is necessary and not sufficient (design, errata).

    Example:
        >>> import girih
        >>> from girih.report.inspection import judge
        >>> judge(girih.geometry.enumerate_cells(girih.mlp([1, 6, 3], seed=0))).injective
        True
    """
    degenerate = (~nonzero(cells, 1e-10).all(1)).nonzero()[:, 0]
    if len(degenerate):
        share = "one cell" if len(degenerate) == 1 else f"{len(degenerate):,} cells"
        text = f"{share} of {len(cells):,} have a rank below S = {cells.latent_dim}: lines of latents share an image"
        return Verdict(False, text, _along(cells, int(degenerate[0])))
    if cells.partition is None:
        return Verdict(
            None,
            "not decided: all cells that were met have full rank, which is needed but not enough, since the images of "
            "different cells may meet",
        )
    part, count = cells.partition, f"{len(cells):,} cells"
    if len(part) <= _CELLS:
        try:
            found = is_injective(part, max_pairs=_PROGRAMS)
        except CellLimitError:
            return Verdict(
                None,
                f"not decided: all {count} have full rank, but more than {_PROGRAMS:,} pairs of them need a linear "
                "program each; girih.geometry.is_injective(partition, max_pairs=...) goes through all",
            )
        if found:
            return Verdict(True, f"decided for all pairs of its {count}: no two images meet")
        return Verdict(False, "the images of two cells meet", found.witness)
    found_pair = second_preimage(Search(part))
    if found_pair is not None:
        return Verdict(False, "the images of two cells meet", found_pair)
    return Verdict(
        None,
        f"not decided: all {count} have full rank and {SAMPLES} points have no second preimage, but there are too "
        "many pairs of cells to look at each; girih.geometry.is_injective(partition) does",
    )


def _along(cells: Cells, k: int) -> Tensor | None:
    """Two latents of cell k on a line that it maps to a point."""
    ((_, A, _),) = cells.maps(cells.patterns[k : k + 1])
    null = torch.linalg.svd(triangle(A))[2][0, -1].cpu()
    start = cells.points[k].cpu()
    steps = torch.tensor(_SHRINK, dtype=torch.float64)[:, None]
    codes = cells.trace.pattern(torch.cat((start[None], start + steps * null)).to(cells.trace.device))
    inside = (codes[1:] == codes[:1]).all(1).nonzero()[:, 0]
    if not len(inside):
        return None
    return torch.stack((start, start + steps[int(inside[0])] * null))


@dataclass(frozen=True)
class Inspection:
    """An `Inspection` says what a decoder does, cell by cell and over its prior.

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
    prior: PriorLike = 1.0,
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
    """Say of how many cells maps are worth computing: of `most`, or of fewer for large networks and S.

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
        finite = torch.isfinite(traced(z.to(traced.device))).all(1)
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
