"""Rows beside an inspected decoder: the cells that they fall on, how likely it makes them, and the gap of a VAE."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from girih._arrays import ArrayLike, as_rows
from girih._options import whole
from girih._progress import Progress
from girih.covariance import Covariance
from girih.errors import LatentDimensionError, NoiseError, ParameterError
from girih.geometry import Cells, invert
from girih.geometry.invert import images
from girih.geometry.priors import GaussianPrior, UniformPrior
from girih.inference import DGN, evidence
from girih.inference.fisher import denoised
from girih.networks import Trace
from girih.partition import MAX_LATENT_DIM
from girih.vae import VAE, Gap, gap

Array = NDArray[np.float64]

_AT_ONCE = 1024
_NOISE_ROWS = {1: 500, 2: 300, 3: 60}  # by S: they are looked at a dozen times
_NOISE_DRAWS, _NOISE_DIGITS = 1000, 0.01
_GAP_ROWS = 256
_SAMPLED_ROWS = 40  # for S > 3, where a row takes a tenth of a second or more
_ROUNDING = 1e-10  # of the spread of the rows: nearer to the manifold than that, rows lie on it


class Found(NamedTuple):
    """What is found out about rows, before it is averaged: latents, their deviations, `log p(x)` and its error."""

    latents: Tensor
    deviations: Tensor | None
    log_p: Tensor | None
    log_p_error: Tensor | None
    image: Tensor
    cell: Tensor | None
    share: Tensor | None


@dataclass(frozen=True)
class InspectedRows:
    """An `InspectedRows` says where rows lie in the latent space of a decoder, and how likely it makes them.

    Attributes:
        rows: x, `(N, D)`, NaN where missing.
        how: what the latents are, in words.
        latents: one for each row, `(N, S)`.
        deviations: of the posteriors, `(N, S)`, where they are known.
        patterns: of the cell that each row is on, `(N, U)`.
        cell: that cell among all cells, `(N,)`, where they were enumerated.
        share: the posterior probability of that cell, `(N,)`, where it is known.
        residual: `|x - E[g(z) | x]| / sqrt(D)` over the observed entries, `(N,)`; of latents that are no posteriors
            `|x - g(z)| / sqrt(D)`.
        noise: of the likelihood, where there is one.
        noise_from: where that comes from, in words.
        log_p: `log p(x)`, nats, `(N,)`, where it is known.
        log_p_error: its standard error, `(N,)`; 0 where it is exact.
        bound: the negative ELBO of each row under the encoder of a VAE, `(N,)`.
        gap: what that loses, on the first of `gap_rows`, where it is known.
        gap_rows: which rows that are.
        gaussian: NLL of one Gaussian fitted to these rows, nats a row, where it is known.
        spread: mean square of the latents in units of the prior, 1 for draws from the decoder.
        missing: why something is not known, by name.
    """

    rows: Tensor
    how: str
    latents: Tensor
    deviations: Tensor | None
    patterns: Tensor
    cell: Tensor | None
    share: Tensor | None
    residual: Tensor
    noise: Covariance | None
    noise_from: str
    log_p: Tensor | None
    log_p_error: Tensor | None
    bound: Tensor | None
    gap: Gap | None
    gap_rows: Tensor
    gaussian: float | None
    spread: float
    missing: dict[str, str] = field(default_factory=dict)


def inspect_rows(
    cells: Cells,
    x: ArrayLike,
    *,
    noise: Covariance | ArrayLike | float | None = None,
    vae: VAE | None = None,
    seed: int = 0,
    progress: bool = False,
) -> InspectedRows:
    """Find out where rows lie in the latent space of a decoder, and how likely it makes them.

    For S <= 3, a Gaussian prior and all cells, latents are exact posterior means and `log p(x)` is exact. Otherwise
    the encoder of a VAE says where rows lie, and importance sampling what their `log p(x)` is; without a VAE it is the
    nearest point that the decoder reaches, and there is no `log p(x)`.

    Args:
        cells: of the decoder, as `girih.report.inspect_decoder(net).cells`.
        x: rows `(N, D)` in the units of its output, NaN where missing.
        noise: the noise variance, or covariance. By default that of the VAE; without one, for S <= 3, the scalar
            variance under which the rows are likeliest.
        vae: that the decoder belongs to: its encoder and its gap are looked at too.
        seed: of all draws.
        progress: whether to show a progress bar on a terminal.

    Raises:
        ShapeError, EmptyDataError, NonFiniteError: x is not a table with D columns.
        NoiseError: the noise is not one, or was not given and the rows lie on the manifold.
        ParameterError: x has missing entries where posteriors are not exact, or the latents of the VAE are categories.

    Example:
        >>> import girih
        >>> from girih.report import inspect_decoder, inspect_rows
        >>> dgn = girih.DGN(girih.mlp([2, 8, 3], seed=0), noise=0.01)
        >>> found = inspect_rows(inspect_decoder(dgn.net).cells, dgn().sample((50,), seed=0), noise=0.01)
        >>> found.latents.shape, found.cell.shape, bool((found.log_p_error == 0).all())
        (torch.Size([50, 2]), torch.Size([50]), True)
    """
    traced, seed = cells.trace, whole(seed, "seed", None)
    rows = as_rows(x, "x", traced.output_dim, "the data dimension D", allow_missing=True, device=traced.device).detach()
    missing: dict[str, str] = {}
    likelihood = _Likelihood.of(noise, vae, traced)
    reason = _not_exact(cells, vae)
    if not reason and likelihood.noise is None:
        likelihood = _Likelihood(likeliest_noise(cells, rows, seed), _likeliest(rows, cells.latent_dim))
    if not reason:
        assert likelihood.noise is not None and cells.partition is not None
        found, how = _posteriors(cells, rows, likelihood.noise, progress), "the exact posterior"
    elif bool(rows.isnan().any()):
        raise ParameterError(f"rows with missing entries need exact posteriors, and {reason}; leave such rows out")
    elif vae is not None:
        found, how = _encoded(vae, rows, traced, seed), "the encoder, not the exact posterior"
    else:
        found, how = _nearest(cells, rows, seed), "the nearest point that the decoder reaches"
        missing["NLL"] = reason
    bound, gaps, picked = _gap(vae, rows, seed, missing)
    patterns = torch.cat([traced.pattern(some) for some in found.latents.split(_AT_ONCE)])
    return InspectedRows(
        rows=rows,
        how=how,
        latents=found.latents,
        deviations=found.deviations,
        patterns=patterns,
        cell=found.cell,
        share=found.share,
        residual=_residual(rows, found.image),
        noise=likelihood.noise if found.log_p is not None else None,
        noise_from=likelihood.source,
        log_p=found.log_p,
        log_p_error=found.log_p_error,
        bound=bound,
        gap=gaps,
        gap_rows=picked,
        gaussian=gaussian_nll(rows),
        spread=_spread(cells, found),
        missing=missing,
    )


def likeliest_noise(cells: Cells, x: Tensor, seed: int = 0) -> Covariance:
    r"""`argmax_v mean_n log p(x_n; noise = v)`, the scalar noise variance under which rows are likeliest.

    Where the derivative is 0, `v = mean_n E[|x_n - g(z)|^2 | x_n] / D`. That is at least the mean square of the
    distances to the manifold, and at most the mean of `|x_n - g(z)|^2 / D` over the prior, since the posterior weighs z
    by a falling function of that square; the search is between these two.

    Args:
        cells: all cells of a decoder, with a Gaussian prior.
        x: `(N, D)`; of more than 500 complete rows (300 for S = 2, 60 for S = 3) so many are drawn at random.
        seed: of what is drawn.

    Raises:
        NoiseError: the rows lie on the manifold, or all have missing entries.

    Example:
        >>> import girih
        >>> from girih.report.inspection_rows import likeliest_noise
        >>> dgn = girih.DGN(girih.mlp([1, 8, 4], seed=0), noise=0.04)
        >>> cells = girih.geometry.enumerate_cells(dgn.net)
        >>> 0.03 < likeliest_noise(cells, dgn().sample((300,), seed=0)).variances.mean() < 0.05
        tensor(True)
    """
    complete = x[~x.isnan().any(1)]
    if not len(complete):
        raise NoiseError("every row has missing entries, so the noise is not chosen by them; pass noise=")
    generator = torch.Generator().manual_seed(seed)
    some = complete[
        torch.randperm(len(complete), generator=generator)[: _NOISE_ROWS[cells.latent_dim]].to(complete.device)
    ]
    assert cells.partition is not None and cells.prior is not None
    least = float(invert(cells.partition, some).distance.square().mean()) / x.shape[1]
    size = float((some - some.mean(0)).square().mean()) if len(some) > 1 else float(some.square().mean())
    if not least > _ROUNDING**2 * size:
        raise NoiseError(
            "the rows lie on the manifold of the decoder, and the smaller the noise, the likelier they are; pass the "
            "variance that you mean, noise="
        )
    z = cells.prior.sample(_NOISE_DRAWS, generator).to(some.device)
    most = max(4.0 * float(torch.cdist(some, images(cells.trace, z)).square().mean()) / x.shape[1], 2.0 * least)

    def nll(log_noise: float) -> float:
        noise = Covariance.scalar(float(np.exp(log_noise)), x.shape[1])
        return -float(evidence(_dgn(cells, noise).model(cells.partition, cells.trace), some).log_prob.mean())

    best = minimize_scalar(nll, bounds=(float(np.log(least)), float(np.log(most))), method="bounded",
                           options={"xatol": _NOISE_DIGITS})  # fmt: skip
    return Covariance.scalar(float(np.exp(best.x)), x.shape[1])


def gaussian_nll(x: Tensor) -> float | None:
    """NLL of the one Gaussian that is fitted to the rows themselves, nats a row; `None` for rows that do not allow it.

    With the covariance C of the rows it is `(D log(2 pi e) + log det C) / 2`.

    Example:
        >>> import torch
        >>> from girih.report.inspection_rows import gaussian_nll
        >>> round(gaussian_nll(torch.tensor([[-1.0], [1.0], [-1.0], [1.0]], dtype=torch.float64)), 4)
        1.4189
    """
    N, D = x.shape
    if bool(x.isnan().any()) or N <= 2 * D:
        return None
    roots = torch.linalg.svdvals(x - x.mean(0)) / N**0.5
    if not bool(roots.min() > 1e-7 * roots.max()):
        return None
    return float(0.5 * D * np.log(2.0 * np.pi * np.e) + roots.log().sum())


class _Likelihood(NamedTuple):
    """A noise, where there is one, and where it comes from."""

    noise: Covariance | None
    source: str

    @classmethod
    def of(cls, noise: object, vae: VAE | None, traced: Trace) -> _Likelihood:
        if noise is not None:
            return cls(Covariance.of(noise, traced.output_dim, "noise", traced.device).detached(), "given")
        if vae is None:
            return cls(None, "")
        if vae.log_noise is None:
            return cls(None, f"the {vae.likelihood} likelihood of the VAE")
        return cls(Covariance.scalar(float(vae.noise.detach()), traced.output_dim), "that of the VAE")


def _likeliest(rows: Tensor, latent_dim: int) -> str:
    complete = int((~rows.isnan().any(1)).sum())
    most = _NOISE_ROWS[latent_dim]
    some = f"{most} of the {complete:,} complete rows" if complete > most else "the complete rows"
    return f"the scalar one under which {some} are likeliest"


def _not_exact(cells: Cells, vae: VAE | None) -> str:
    """Why posteriors are not exact; empty where they are."""
    S = cells.latent_dim
    if vae is not None and vae.log_noise is None:
        return f"the likelihood of this VAE is {vae.likelihood}, not Gaussian"
    if vae is not None and not vae.family.normal_prior:
        return f"the prior of this VAE, of the family {vae.family.name!r}, is not the normal one"
    if S > MAX_LATENT_DIM:
        return f"exact posteriors are for S up to {MAX_LATENT_DIM}, and S is {S} here"
    if cells.partition is None:
        return "its cells were sampled, not enumerated"
    if not isinstance(cells.prior, GaussianPrior):
        kind = "not known" if cells.prior is None else "uniform"
        return f"exact posteriors are for a Gaussian latent prior, and this one is {kind}"
    return ""


def _dgn(cells: Cells, noise: Covariance) -> DGN:
    assert isinstance(cells.prior, GaussianPrior)
    # a DGN follows a module; of a trace there is nothing to follow
    return DGN(cast(nn.Module, cells.trace), noise, prior=cells.prior.covariance)


def _posteriors(cells: Cells, x: Tensor, noise: Covariance, progress: bool) -> Found:
    dgn, parts = _dgn(cells, noise), []
    model = dgn.model(cells.partition, cells.trace)
    bar = Progress("rows", len(x), show=progress)
    try:
        for start in range(0, len(x), _AT_ONCE):
            some = x[start : start + _AT_ONCE]
            posterior = model.cells.region.posterior(model, cells.trace, some)
            cell, share = heaviest(posterior.cell_probs())
            log_p = posterior.log_evidence.detach()
            image = denoised(model, some)
            deviations = posterior.variance.clamp(min=0.0).sqrt()
            parts.append((posterior.mean, deviations, log_p, torch.zeros_like(log_p), image, cell, share))
            bar.show(min(start + _AT_ONCE, len(x)), "")
    finally:
        bar.close()
    return Found(*(torch.cat(column) for column in zip(*parts, strict=True)))


def heaviest(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """The heaviest cell of each row, and its share, `(N,)` each, of a sparse table `(N, R)`.

    Example:
        >>> import torch
        >>> from girih.report.inspection_rows import heaviest
        >>> heaviest(torch.tensor([[0.25, 0.75], [1.0, 0.0]]).to_sparse())
        (tensor([1, 0]), tensor([0.7500, 1.0000]))
    """
    table = probabilities.coalesce()
    (row, cell), value = table.indices(), table.values()
    share = value.new_zeros(table.shape[0]).scatter_reduce(0, row, value, "amax")
    best = value == share[row]
    found = cell.new_full((table.shape[0],), table.shape[1]).scatter_reduce(0, row[best], cell[best], "amin")
    return found, share


def _encoded(vae: VAE, x: Tensor, traced: Trace, seed: int) -> Found:
    """What the encoder and importance sampling say."""
    mean, deviations = (part.detach().to(torch.float64) for part in vae.embed(x))
    if mean.shape != (len(x), traced.latent_dim):
        raise ParameterError(
            f"the latents of this VAE, of the family {vae.family.name!r}, are no points of the space that its decoder "
            "maps; girih.vae.gap(vae, x) and vae().log_prob(x) say what is known of such rows"
        )
    log_p, error = (part.detach() for part in _importance(vae, x, seed))
    return Found(mean, deviations, log_p, error, vae.reconstruct(x).detach().to(torch.float64), None, None)


def _importance(vae: VAE, x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    parts = [vae().log_prob_with_error(some, seed=seed) for some in x.split(_GAP_ROWS)]
    log_p, error = (torch.cat(column) for column in zip(*parts, strict=True))
    return log_p, error


def _nearest(cells: Cells, x: Tensor, seed: int) -> Found:
    net = cells.trace if cells.partition is None else cells.partition
    found = invert(net, x, seed=seed, exact=cells.partition is not None)
    return Found(found.z, None, None, None, images(cells.trace, found.z), found.cell, None)


def _gap(vae: VAE | None, x: Tensor, seed: int, missing: dict[str, str]) -> tuple[Tensor | None, Gap | None, Tensor]:
    """The negative ELBO of all rows, the gap of some, and which these are; reasons go into `missing`."""
    none = torch.empty(0, dtype=torch.int64)
    if vae is None:
        return None, None, none
    if bool(x.isnan().any()):
        missing["gap"] = "an encoder takes complete rows, and some have missing entries"
        return None, None, none
    picked = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    picked = picked[: _GAP_ROWS if vae.latent_dim <= 3 else _SAMPLED_ROWS].sort().values
    try:
        found = gap(vae, x[picked.to(x.device)], seed=seed)
    except (LatentDimensionError, ParameterError) as error:
        missing["gap"] = str(error)
        with torch.no_grad():
            return vae.free_energy(x, samples=16, seed=seed).total.detach(), None, none
    return None, found, picked


def _residual(x: Tensor, image: Tensor) -> Tensor:
    """Root mean square of the observed entries' distances, `(N,)`; NaN for rows without any."""
    return (x - image).square().nanmean(1).sqrt()


def _spread(cells: Cells, found: Found) -> float:
    """Mean square of the latents over that under the prior: `mean_n E[z^T prior^-1 z | x_n] / S`."""
    prior, square = cells.prior, found.latents.square()
    if found.deviations is not None:
        square = square + found.deviations.square()
    if isinstance(prior, UniformPrior):
        variance = ((prior.high - prior.low).square() / 12.0).to(square.device)
        middle = (0.5 * (prior.high + prior.low)).to(square.device)
        return float(((found.latents - middle).square() / variance).mean())
    variance = torch.ones((), dtype=torch.float64) if prior is None else prior.covariance.diagonal()
    return float((square / variance.to(square.device)).mean())
