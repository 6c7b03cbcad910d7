"""`gap`: how far a VAE is from its exact posterior, split into what the family costs and what the encoder costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from girih._arrays import ArrayLike, as_rows
from girih._options import real, whole
from girih._shown import table_of
from girih.bounds import bracket
from girih.errors import ParameterError
from girih.training import evaluating
from girih.vae.free_energy import FreeEnergyModel
from girih.vae.nearest.search import Nearest, Search
from girih.vae.pair import Pair

_ROWS = 128  # at a time
_ENTRIES = 2**22  # of the largest table over rows and codes


_EXACT: Mapping[str, str] = {"nll": "exact", "bound": "exact", "approximation": "best found, exact"}


class Gap(NamedTuple):
    """`Gap` says how far the bound of a VAE is from its likelihood, and why, nats per row, `(N,)` each.

    `bound - nll = gap = approximation + amortisation`. The best q is what descents from many starts found: its
    divergence, `approximation`, is that of a member of the family, and so never too small beyond `error`.
    """

    nll: Tensor  # -log p(x)
    bound: Tensor  # the negative ELBO of the encoder's q(z | x)
    gap: Tensor  # KL(q(z | x) || p(z | x)), what the bound loses
    approximation: Tensor  # the same of the best q of the family: what the family costs
    amortisation: Tensor  # the rest: what the encoder costs
    error: Tensor  # a bound, or for quadrature an estimate, of the error of any of these; the standard error if sampled
    best: Distribution  # the best q of each row, of the kind that `encode` gives
    method: Mapping[str, str] = _EXACT  # how nll, bound and approximation were had
    lower: Tensor | None = None  # what nll is at least, certified; None where `budget` did not ask for it
    upper: Tensor | None = None  # what it is at most
    confidence_lower: Tensor | None = None  # what it is at least with a confidence of 99 % for each row
    confidence_upper: Tensor | None = None  # what it is at most; see girih.Bracket

    def __repr__(self) -> str:
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in self.mean().items())
        return f"Gap({len(self.nll)} rows; means: {numbers})"

    def _repr_html_(self) -> str:
        return table_of("Gap: means over rows, nats", {name: f"{value:.4g}" for name, value in self.mean().items()})

    def mean(self) -> dict[str, float]:
        """The means over rows by name, and the largest error.

        Example:
            >>> import girih
            >>> from girih.vae import GaussVAE, gap
            >>> vae = GaussVAE(girih.mlp([1, 8, 2], seed=0), noise=0.1, seed=0)
            >>> list(gap(vae, [[0.1, 0.2]]).mean())
            ['nll', 'bound', 'gap', 'approximation', 'amortisation', 'error']
        """
        numbers = {name: float(getattr(self, name).mean()) for name in self._fields[:5]}
        return numbers | {"error": float(self.error.max())}

    @property
    def sampled(self) -> bool:
        """Whether the numbers are estimates, with `error` their standard error, and not exact."""
        return self.method["bound"] != "exact"

    @staticmethod
    def of(nll: Tensor, own: Tensor, least: Tensor, error: Tensor, best: Distribution) -> Gap:
        """Make a gap from the divergences of the encoder's q and of the best one found."""
        # a divergence is not negative: below 0 it is so by rounding, or by the error that is stated
        assert (least >= -10.0 * error - 1e-6 * (1.0 + nll.abs())).all()
        own = own.clamp(min=0.0)
        least = torch.minimum(least.clamp(min=0.0), own)
        return Gap(nll, nll + own, own, least, own - least, error, best)

    @staticmethod
    def estimated(found: Nearest, best: Distribution) -> Gap:
        """Make a gap of sampled numbers, which may be negative within their errors."""
        assert found.annealed is not None
        count, rows = int(found.annealed.sum()), len(found.annealed)
        how = "importance sampling" if not count else "annealing" if count == rows else "importance sampling, "
        how += f"annealing for {count} of {rows} rows" if 0 < count < rows else ""
        method = {"nll": how, "bound": "sampled", "approximation": "best found, sampled"}
        own, least = found.own, found.least
        return Gap(found.nll, found.nll + own, own, least, own - least, found.error, best, method)


def gap(
    vae: FreeEnergyModel | Pair,
    x: ArrayLike,
    *,
    starts: int = 6,
    seed: int = 0,
    tolerance: float = 1e-8,
    covariance: str = "diagonal",
    continuous: bool = False,
    budget: float | None = None,
) -> Gap:
    r"""The NLL of each row, the bound, and how their difference comes about; exact where that can be had.

        bound - nll = KL(q(z | x) || p(z | x)) = min_q' KL(q' || p(z | x)) + the rest
                                                 approximation gap           amortisation gap

    with the minimum over the family of q, row by row: by BFGS from the encoder's q, the prior, the moments of the
    posterior, its mode and draws of it. The networks are in evaluation mode, in float64.

    - `GaussVAE`: everything is exact up to what the `DGN` leaves out, `error`. With a Bernoulli likelihood p(x) and the
      divergences are integrals over the cells by adaptive cubature, whose estimated error is part of `error`.
    - `GaussVAE` with S > 3: estimates, `error` their standard error, as `method` says. The NLL is by importance
      sampling from the modes of the posterior, or by annealing where too few draws carry that (`girih.sampling`);
      with a Bernoulli likelihood, from the best q. The bounds are sampled but for what the cell of the mean says
      exactly. The best q is judged by draws that its search has not seen: `approximation` is not too small on average.
      `budget` adds certified bounds on the NLL. Where nothing is known of an error, it is infinite.
    - A `Pair` of a decoder and an encoder from elsewhere: as a `GaussVAE`.
    - `MixtureVAE`: the same, but for the label entropy of the mixture, a quadrature whose error is part of `error`.
      Its approximation gap is never above that of a single Gaussian.
    - `CatVAE` and `CGBPEFVAE`: a sum over all `C^S` or `R^S` codes; any likelihood, any decoder.
    - `CGBPEFVAE` with `continuous=True`: the coefficients of prior and q are those of densities on [-1, 1], and the
      truth is an integral over the cells of the decoder there, by cubature to `tolerance`; `error` says what was
      reached. The best q is searched for on a grid, with nodes 0.002, 0.008 and 0.06 apart for S = 1, 2 and 3: where
      posteriors are narrower, it may be missed, and `approximation` is then too large.

    Args:
        vae: with a piecewise-affine decoder; S up to 3, and Gaussian noise, unless its posteriors are Gaussian; for
            codes, anything.
        x: `(N, D)`, complete.
        starts: draws of the posterior among the starts of the search.
        seed: of these draws.
        tolerance: of cubature, nats, times the size of log p(x) where that is above 1.
        covariance: "diagonal", or "full" for the best Gaussian of a `GaussVAE` among those with any covariance.
        continuous: see above.
        budget: seconds for bounds on the NLL of all rows by `girih.bracket`: certified, `lower` and `upper`, and with
            a confidence of 99 % a row, `confidence_lower` and `confidence_upper`; for Gaussian noise.

    Returns:
        A `Gap`: `nll`, `bound`, `gap`, `approximation`, `amortisation`, `error`, `(N,)` each, `best`, the best q, and
        `method`, how each was had.

    Raises:
        LatentDimensionError: S above 3 for posteriors that are not Gaussian, or too many codes.
        UnsupportedLayerError: the decoder is not piecewise affine.
        ParameterError: a Bernoulli likelihood with a mixture or with `continuous=True`; a family that is not covered;
            an option out of its domain.
        ShapeError, EmptyDataError, NonFiniteError: x is not a complete table with D columns.

    Source:
        EM-DGN, eq. 3 and section 4.3; Cremer, Li & Duvenaud, Inference suboptimality in variational autoencoders
        (2018), who have only estimates of both gaps.

    Example:
        >>> import girih, torch
        >>> from girih.vae import GaussVAE, gap
        >>> vae = GaussVAE(girih.mlp([1, 8, 2], seed=0), noise=0.1, seed=0)
        >>> x = vae().sample((3,), seed=0)
        >>> found = gap(vae, x)
        >>> bool(((found.nll + vae().log_prob(x)).abs() < 1e-8).all()), bool((found.amortisation >= 0).all())
        (True, True)
    """
    full = covariance == "full" or (isinstance(vae, Pair) and vae.full)
    kinds = full, bool(continuous)
    search = Search(whole(starts, "starts", 0), whole(seed, "seed", 0), real(tolerance, "tolerance"), *kinds)
    if covariance not in ("diagonal", "full"):
        raise ParameterError(f"covariance must be 'diagonal' or 'full'; got {covariance!r}")
    family = vae.family
    if search.full and "full" not in family.searches:
        raise ParameterError(
            f"covariance='full' is for Gaussian posteriors, and those of this VAE are {family.posteriors}"
        )
    if search.continuous and "continuous" not in family.searches:
        raise ParameterError(f"continuous=True is for a CGBPEFVAE; the posteriors of this VAE are {family.posteriors}")
    rows = as_rows(x, "x", vae.output_dim, "the data dimension D")
    codes = 1 if family.codes is None or search.continuous else family.codes
    with torch.no_grad(), evaluating(vae):
        find = family.searcher(vae, search)
        parts = [find(part) for part in rows.split(max(1, min(_ROWS, _ENTRIES // codes)))]
        nll, own, least, error = (torch.cat(column) for column in zip(*(part[:4] for part in parts), strict=True))
        best = tuple(torch.cat(column) for column in zip(*(part.best for part in parts), strict=True))
        member = family.member(best, search)
        if parts[0].annealed is None:
            found = Gap.of(nll, own, least, error, member)
        else:
            annealed = torch.cat([part.annealed for part in parts if part.annealed is not None])
            found = Gap.estimated(Nearest(nll, own, least, error, best, annealed), member)
        return found if budget is None else _certified(vae, rows, found, budget)


def _certified(vae: FreeEnergyModel | Pair, rows: Tensor, found: Gap, budget: float) -> Gap:
    """With bounds on the NLL."""
    if vae.likelihood != "gaussian" or not vae.family.normal_prior:
        raise ParameterError("budget= is for bounds with Gaussian noise and the prior N(0, I); leave it out")
    bounds = bracket(vae.decoder, rows, vae.noise.double(), budget=budget)
    return found._replace(
        lower=-bounds.upper,
        upper=-bounds.lower,
        confidence_lower=-bounds.confidence_upper,
        confidence_upper=-bounds.confidence_lower,
    )
