r"""Everything that the density of x depends on, and rows of data in the coordinates in which it is simple.

The noise is whitened, and the last affine map `L^-1 W = Q T` reduced to its K = min(D, H) directions, so nothing
grows with D after the products with Q: a row is `y = Q^T L^-1 (x - v)` and its distance from the range of W.

Rows, maps and noise are given in double precision, and products with them are rounded: the whitened row
`w = L^-1 (x - v)` and the images `g` of latents carry errors of up to

    roundoff (|w| + |w - g|),    roundoff = 2^-53 (D + H + 10) condition(noise),

2^-53 for each term of a sum. `log p(x | z)` is `-|w - g|^2 / 2`, so an error `e` of w - g changes it by `e |w - g|` at
most to first order, and the balance between two latents with images a distance d apart by `e d`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor

from girih._devices import room
from girih.covariance import Covariance, Observed
from girih.errors import LatentDimensionError, NoClosedFormError
from girih.inference.posterior import Posterior
from girih.networks import Trace

# Entries of the largest temporary array of one chunk of rows: 4 MB, which stays in cache.
_CHUNK = 2**19

# The log of the smallest double.
LEAST = -745.0

# The part of a posterior up to which a cell does not matter to what rounding does.
MATTERS = 1e-16

MAX_LATENT_DIM = 3

T = TypeVar("T")


def check_latent_dim(latent_dim: int) -> None:
    """Refuse latent spaces over which densities cannot be integrated exactly."""
    if latent_dim > MAX_LATENT_DIM:
        raise LatentDimensionError(
            f"exact inference covers latent dimensions S = 1 to {MAX_LATENT_DIM}, and this generator has "
            f"S = {latent_dim}, where the number of cells and the integrals over them explode; use a generator with "
            f"S <= {MAX_LATENT_DIM}, or, for this one, girih.bracket for bounds on the likelihood and an estimate, "
            "girih.sample_posterior for draws of posteriors, girih.em.fit_monte_carlo to fit it, girih.vae.GaussVAE, "
            "girih.Partition.slice for a plane through its latent space, or girih.trace(net).affine(z) for the map "
            "around single latents, which work for any S"
        )


class Jets(NamedTuple):
    """The convex pieces of the latent space with the hidden features on them, about an origin in each."""

    origin: Tensor  # (P, S)
    value: Tensor  # (P, H) hidden features at the origin
    slope: Tensor  # (P, H, S) their derivative in z


class AffinePieces(NamedTuple):
    """They are such pieces with what integrates over them."""

    origin: Tensor  # (P, S)
    value: Tensor  # (P, H)
    slope: Tensor  # (P, H, S)
    region: Region

    @property
    def jets(self) -> Jets:
        """The pieces alone."""
        return Jets(*self[:3])


@dataclass(frozen=True, eq=False)
class Model:
    """A model holds the parameters of a `DGN`, detached.

    Attributes:
        tol: the share of each p(x) that may be left out, for S = 2, 3; 0 leaves out nothing.
        bias_rest: what rounding took from the bias, `(D,)`, where that matters.
    """

    cells: AffinePieces
    weight: Tensor  # (D, H) last affine map
    bias: Tensor  # (D,)
    noise: Covariance
    prior: Tensor  # (S, S) covariance of z
    tol: float = 0.0
    bias_rest: Tensor | None = None

    def without_bias(self, x: Tensor) -> Tensor:
        """`x - v`, `(n, D)`: with an offset that x and v share, the difference keeps the digits that x has."""
        difference = x - self.bias
        return difference if self.bias_rest is None else difference.sub_(self.bias_rest)

    @property
    def output_dim(self) -> int:
        """D."""
        return len(self.bias)

    @property
    def latent_dim(self) -> int:
        """S."""
        return len(self.prior)

    @cached_property
    def head(self) -> tuple[Tensor, Tensor]:
        """Q `(D, K)` and T `(K, H)` with `L^-1 W = Q T`, `L L^T` the noise."""
        return reduced_head(self.noise.whiten(self.weight))

    @cached_property
    def roundoff(self) -> float:
        """The relative error of whitened rows and of images."""
        return 2.0**-53 * (self.output_dim + self.weight.shape[1] + 10) * self.noise.condition

    def recall(self, make: Callable[[Model], T]) -> T:
        """`make` finds something out about this model, at the first call only."""
        if make not in self._found:
            self._found[make] = make(self)
        return cast("T", self._found[make])

    @cached_property
    def _found(self) -> dict[object, object]:
        return {}


def reduced_head(columns: Tensor) -> tuple[Tensor, Tensor]:
    """`L^-1 W = Q T` for `(..., D, H)`. Where Q would be square it is the identity: nothing is reduced, nor rounded."""
    D, H = columns.shape[-2:]
    if D <= H:
        return torch.eye(D, dtype=columns.dtype, device=columns.device).expand(*columns.shape[:-2], D, D), columns
    basis, reduced = torch.linalg.qr(columns)
    return basis, reduced


class Rows(NamedTuple):
    """Rows are data in whitened, reduced coordinates. Leading `n` axes are absent when nothing is missing."""

    x: Tensor  # (n, D), NaN where missing
    observed: Observed | None
    reduced: Tensor  # T: (K, H) or (n, K, H)
    y: Tensor  # (n, K)
    far2: Tensor  # (n,) squared whitened distance from the range of W
    constant: Tensor  # () or (n,): -1/2 log det(2 pi noise)

    @property
    def common(self) -> Tensor:
        """log p(x, z) has this in common for all z, `(n,)`: from this on, comparisons lose no digits to it."""
        return self.constant - 0.5 * self.far2

    def relative(self) -> Rows:
        """The rows with log-densities that are counted from `common`."""
        return self._replace(far2=torch.zeros_like(self.far2), constant=torch.zeros_like(self.constant))

    def lengths(self, log_p: Tensor) -> Tensor:
        """`|w| + |w - g|` of each row `(n,)`."""
        size: Tensor = torch.linalg.vector_norm(torch.cat((self.y, self.far2.sqrt()[:, None]), 1), dim=1)
        return size + self.away(log_p)

    def away(self, log_p: Tensor) -> Tensor:
        """`|w - g|` of each row `(n,)` at most: `|w - g|^2 <= -2 log p(x) - log det(2 pi noise)` by Jensen."""
        return (2.0 * (self.constant - log_p)).clamp(min=0.0).sqrt()

    def take(self, index: Tensor) -> Rows:
        """Some of the rows."""
        if self.observed is None:
            return self._replace(x=self.x[index], y=self.y[index], far2=self.far2[index])
        parts = (self.reduced[index], self.y[index], self.far2[index], self.constant[index])
        return Rows(self.x[index], self.observed.take(index), *parts)


def reduce_complete(model: Model, x: Tensor) -> Rows:
    """Whiten and reduce rows without missing entries."""
    basis, reduced = model.head
    white = model.noise.whiten(model.without_bias(x).mT).mT
    y = white @ basis
    far2 = torch.linalg.vector_norm(torch.addmm(white, y, basis.mT, alpha=-1.0), dim=1).square_()
    return Rows(x, None, reduced, y, far2, model.noise.constant)


def reduce_incomplete(model: Model, x: Tensor) -> Rows:
    """Whiten and reduce rows that each have their own missing entries."""
    return incomplete_rows(model.noise, model.weight, x, model.without_bias(x))


def incomplete_rows(noise: Covariance, weight: Tensor, x: Tensor, off: Tensor) -> Rows:
    """The same for rows x and `off = x - v`, `(n, D)` each."""
    seen = ~torch.isnan(x)
    patterns, which = torch.unique(seen, dim=0, return_inverse=True)
    of_patterns = noise.restrict(patterns)
    basis, reduced = reduced_head(of_patterns.whiten(weight))
    basis, reduced, observed = basis[which], reduced[which], of_patterns.take(which)
    white = observed.whiten(torch.nan_to_num(off)[:, :, None])
    y = basis.mT @ white
    far2 = (white - basis @ y).square().sum((1, 2))
    return Rows(x, observed, reduced, y[:, :, 0], far2, observed.constant)


def chunks(model: Model, x: Tensor) -> Iterator[tuple[Tensor, Rows]]:
    """Index and reduced rows of chunks: complete rows first, then rows with missing entries."""
    incomplete, region = torch.isnan(x).any(1), model.cells.region
    size = room(_CHUNK, x.device)
    complete = (~incomplete).nonzero()[:, 0]
    if len(complete):
        for index in complete.split(max(1, size // region.entries(model, True))):
            yield index, reduce_complete(model, x if len(index) == len(x) else x[index])
    if len(complete) == len(x):
        return
    width = min(model.weight.shape)
    whitening = width + model.noise.width
    per_row = max(region.entries(model, False), model.output_dim * whitening)
    for index in incomplete.nonzero()[:, 0].split(max(1, 4 * size // per_row)):
        yield index, reduce_incomplete(model, x[index])


class _LogProb(NamedTuple):
    log_prob: Tensor  # (N,)
    left_out: Tensor  # (N,)


class Evidence(_LogProb):
    """It is a pair: `log p(x)` in nats, and a bound on the relative error of p(x) by what was left out.

    Attributes:
        rounding: a bound on the error by rounding, nats, `(N,)`.
    """

    rounding: Tensor

    def __new__(cls, log_prob: Tensor, left_out: Tensor, rounding: Tensor) -> Evidence:
        """Both, and the bound beside them."""
        pair = super().__new__(cls, log_prob, left_out)
        pair.rounding = rounding
        return pair

    @classmethod
    def empty(cls, x: Tensor) -> Evidence:
        """Room for the rows of x `(N, D)`."""
        return cls(*(torch.empty_like(x[:, 0]) for _ in range(3)))

    def put(self, index: Tensor, part: Evidence) -> None:
        """Fill in some rows."""
        self.log_prob[index], self.left_out[index], self.rounding[index] = *part, part.rounding


def log_prob_rounding(model: Model, rows: Rows, log_p: Tensor) -> Tensor:
    """A bound on the error of each log p(x), `(n,)`."""
    error = model.roundoff * rows.lengths(log_p)
    return error * (rows.away(log_p) + 0.5 * error) + model.roundoff * (1.0 + log_p.abs())


def posterior_rounding(model: Model, length: Tensor, spread: Tensor, pull: Tensor) -> Tensor:
    """A bound on the error of each log p(z | x), `(n,)`.

    Args:
        model: the parameters.
        length: `Rows.lengths`.
        spread: how long the images of the ways between the anchors that matter are, `(n,)`.
        pull: largest product of the length of an anchor z and of the slope of `log p(x, z)` there: what the rounding
            of z is worth.
    """
    return model.roundoff * (length * (1.0 + spread) + pull)


class Moments(Protocol):
    """They are posterior moments of n rows on the pieces, `t = z - origin`: what E-steps and gradients add up."""

    def features(self, cells: AffinePieces) -> Tensor:
        """`E[h | x]`, `(n, H)`."""
        ...

    def moments(self, weight: Tensor) -> Tensor:
        """`sum_n g_n E[1_piece (t, 1)(t, 1)^T]`, `(P, S + 1, S + 1)`."""
        ...

    def rows_on_cells(self, weight: Tensor, y: Tensor) -> Tensor:
        """`sum_n g_n y_n E[1_piece (t, 1)^T]`, `(P, K, S + 1)`, for y `(n, K)`."""
        ...

    def incomplete_pull(self, weight: Tensor, rows: Rows, cells: AffinePieces) -> Tensor:
        """`sum_n g_n E[1_piece T_n^T (y - T_n h)(t, 1)^T]`, `(P, H, S + 1)`, for rows with their own T_n."""
        ...

    def feature_covariance(self, cells: AffinePieces, mean: Tensor) -> Tensor:
        """`Cov[(h, 1) | x]` of each row, `(n, H + 1, H + 1)`, for the mean `(n, H + 1)`."""
        ...


class Expected(NamedTuple):
    """These are `E_q[log p(x, z)]` of B Gaussians q, and its derivatives."""

    value: Tensor  # (B,)
    by_mean: Tensor  # (B, S)
    by_factor: Tensor  # (B, S, S), of all entries; those of a triangular factor are the lower ones


class Region(ABC):
    """A region is what exact inference integrates over: the pieces of a line, or polygons or polyhedra.

    All that depends on the latent dimension is behind these methods.
    """

    @abstractmethod
    def entries(self, model: Model, complete: bool) -> int:
        """The entries of the largest temporary for one row, complete or with missing entries."""

    @abstractmethod
    def log_prob(self, model: Model, rows: Rows) -> tuple[Tensor, Tensor]:
        """`log p(x)` in nats, and the share of p(x) that was left out at most, `(n,)` each."""

    @abstractmethod
    def expect(self, model: Model, rows: Rows) -> tuple[Tensor, Tensor, Moments]:
        """The same, and the moments of the posteriors."""

    @abstractmethod
    def posterior(self, model: Model, trace: Trace, x: Tensor) -> Posterior:
        """The posteriors of rows `(N, D)`."""

    def average(self, model: Model, rows: Rows) -> Callable[[Tensor, Tensor, Tensor], Expected]:
        """The function from rows `(B,)`, means `(B, S)` and factors `(B, S, S)` of Gaussians to `Expected`.

        The prior must be `N(0, I)`.

        Raises:
            NoClosedFormError: the prior is not Gaussian.
        """
        raise NoClosedFormError("the nearest Gaussian is found for the prior N(0, I) and Gaussian noise only")
