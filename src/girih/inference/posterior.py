"""`Posterior`: p(z | x), a mixture of Gaussians truncated to the cells of the latent partition."""

from __future__ import annotations

import math
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, constraints

from girih._arrays import as_tensor, check_finite
from girih.errors import NonFiniteError, ParameterError, ShapeError
from girih.gaussian import sample_truncated
from girih.gaussian.interval import interval_moments
from girih.inference.line import Cells, Model, Pairs, chunks, pair_up

GaussianQ: TypeAlias = "Normal | MultivariateNormal | Independent[Normal]"
Shape: TypeAlias = torch.Size | list[int] | tuple[int, ...]


class Posterior(Distribution):
    r"""A batch of N exact posteriors `p(z | x_n)`, S = 1.

    A posterior is a mixture over cells of truncated Gaussians (EM-DGN, Theorem 1 and Proposition 2),

        p(z | x) = sum_cells 1[z in cell] N(x; b, noise + A prior A^T) N(z; mu, Sigma) / p(x)

    `batch_shape` is `(N,)` and `event_shape` `(S,)`. Made by `girih.DGN.posterior`; densities in nats.

    Example:
        >>> import girih
        >>> dgn = girih.DGN(girih.mlp([1, 8, 2], seed=0), noise=0.01)
        >>> post = dgn.posterior([[0.5, 0.2], [1.0, 0.4]])
        >>> post.mean.shape, post.covariance.shape, post.sample((3,)).shape
        (torch.Size([2, 1]), torch.Size([2, 1, 1]), torch.Size([3, 2, 1]))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = False

    def __init__(self, model: Model, x: Tensor) -> None:
        self._cells: Cells = model.cells
        parts = [(index, pair_up(model, rows)) for index, rows in chunks(model, x)]
        order = torch.cat([index for index, _ in parts]).argsort()
        columns = zip(*(pairs for _, pairs in parts), strict=True)
        self._pairs = Pairs(*(c[0] if len(c) == 1 else torch.cat(c)[order] for c in columns))
        self.log_evidence = torch.logsumexp(self._pairs.log_joint, 1)
        if not torch.isfinite(self.log_evidence).all():
            row = int((~torch.isfinite(self.log_evidence)).nonzero()[0])
            raise NonFiniteError(
                f"row {row} has no posterior: its log p(x) is {self.log_evidence[row].item()}, so the row or the "
                "parameters are out of range; rescale x, and check the network, the noise and the prior"
            )
        # not log_joint - log_evidence, which adds up to 1 only within the rounding of |log p(x)|
        self.log_weights = torch.log_softmax(self._pairs.log_joint, 1)
        super().__init__(torch.Size([len(x)]), torch.Size([1]), validate_args=False)

    @property
    def _weights(self) -> Tensor:
        return self.log_weights.exp()

    @property
    def mean(self) -> Tensor:
        """E[z | x], `(N, S)`."""
        return (self._weights * (self._cells.origin + self._pairs.mean)).sum(1, keepdim=True)

    @property
    def covariance(self) -> Tensor:
        """Cov[z | x], `(N, S, S)`: the spread of the cells' means plus the spread inside the cells."""
        deviation = self._cells.origin + self._pairs.mean - self.mean
        return (self._weights * (deviation.square() + self._pairs.variance)).sum(1)[:, None, None]

    @property
    def variance(self) -> Tensor:
        """Var[z | x] of each coordinate, `(N, S)`."""
        return self.covariance.diagonal(dim1=1, dim2=2)

    @property
    def mode(self) -> Tensor:
        """The z of highest posterior density, exact over all cells, `(N, S)`."""
        best = self._pairs.log_peak.argmax(1, keepdim=True)
        return self._cells.origin[best] + self._pairs.anchor.gather(1, best)

    def entropy(self) -> Tensor:
        """Differential entropy `-E[log p(z | x)]` in nats, `(N,)`."""
        kept = torch.isfinite(self.log_weights)
        return -(self._weights * self._expected_log_density(self._pairs.mean, self._pairs.variance, kept)).sum(1)

    def _expected_log_density(self, mean: Tensor, variance: Tensor, keep: Tensor) -> Tensor:
        """E[log p(z | x)] on each cell for a z with this mean (of `t`) and variance there; 0 where not kept."""
        u = (mean - self._pairs.anchor) / self._pairs.deviation
        spread = variance / self._pairs.deviation.square()
        peak = self._pairs.log_peak - self.log_evidence[:, None]
        return torch.where(keep, peak - u * self._pairs.tilt - 0.5 * (u.square() + spread), 0.0)

    def log_prob(self, value: Any) -> Tensor:
        """`log p(z_n | x_n)` in nats.

        Args:
            value: `(..., N, S)`, or `(N,)` when S = 1.

        Returns:
            `(..., N)`.
        """
        z = self._latents(value)
        cell = torch.searchsorted((self._cells.origin + self._cells.upper)[:-1], z.contiguous())
        shape = torch.broadcast_shapes(cell.shape, self.batch_shape)
        cell, z = cell.expand(shape), z.expand(shape)
        n = torch.arange(len(self.log_evidence), device=z.device).expand(shape)
        u = (z - self._cells.origin[cell] - self._pairs.anchor[n, cell]) / self._pairs.deviation[n, cell]
        peak = self._pairs.log_peak[n, cell] - self.log_evidence
        return peak - u * self._pairs.tilt[n, cell] - 0.5 * u.square()

    def _latents(self, value: Any) -> Tensor:
        z = as_tensor(value, "z", self.log_evidence.device)
        n = len(self.log_evidence)
        if z.ndim >= 1 and z.shape[-1] == 1 and (z.ndim == 1 or z.shape[-2] in (1, n)):
            z = z[..., 0]
        elif not (z.ndim == 1 and z.shape[0] == n):
            raise ShapeError(
                f"z must have shape (..., {n}, 1): one latent for each of the {n} rows; got {tuple(z.shape)}"
            )
        check_finite(z, "z")
        return z

    def cell_probs(self) -> Tensor:
        """P(z in cell | x): a sparse COO tensor `(N, R)` without the entries that round to 0 beside 1."""
        return self._weights.to_sparse_coo()

    def sample(self, sample_shape: Shape = torch.Size(), seed: int | None = None) -> Tensor:
        """Exact draws from the posterior, `(*sample_shape, N, S)`: a cell, then a truncated Gaussian in it."""
        shape = torch.Size(sample_shape)
        generator = make_generator(seed, self.log_evidence.device)
        count = shape.numel()
        if count == 0:
            return self.log_evidence.new_empty((*shape, *self.batch_shape, 1))
        cell = torch.multinomial(self._weights, count, replacement=True, generator=generator).mT  # (count, N)
        n = torch.arange(cell.shape[1], device=cell.device).expand_as(cell)
        lower, upper = self._pairs.lower[n, cell], self._pairs.upper[n, cell]
        u = sample_truncated(lower, upper, generator)
        tilt = self._pairs.tilt[n, cell]
        z = self._cells.origin[cell] + self._pairs.anchor[n, cell] + (u - tilt) * self._pairs.deviation[n, cell]
        return z.reshape(*shape, *self.batch_shape, 1)

    def kl(self, q: GaussianQ) -> Tensor:
        r"""`KL(q || p(z | x))` in nats, `(N,)`, exact: no sampling.

        `log p(z | x)` is quadratic on each cell, so the expectation needs the mass and two moments of q there.

        Args:
            q: a `Normal` with batch shape `(N,)` or `(N, S)`, an `Independent` of one, or a
                `MultivariateNormal` with batch shape `(N,)` and event shape `(S,)`; a single q is used for all rows.

        Source:
            EM-DGN, eq. 3.
        """
        mean, deviation = self.gaussian_parameters(q)
        return -0.5 * torch.log(2.0 * math.pi * math.e * deviation.square()) - self.expected_log_prob(mean, deviation)

    def expected_log_prob(self, mean: Tensor, deviation: Tensor) -> Tensor:
        """`E_q[log p(z | x)]` `(N,)` for `q = N(mean, deviation^2)`, mean and deviation `(N,)`."""
        shift = (self._cells.origin - mean[:, None]) / deviation[:, None]
        lower = self._cells.lower / deviation[:, None] + shift
        upper = self._cells.upper / deviation[:, None] + shift
        m = interval_moments(lower, upper)
        # the mean of t under q, about the origin of the cell; exact at the cell's end when q lies beyond it
        at = torch.maximum(torch.minimum(mean[:, None] - self._cells.origin, self._cells.upper), self._cells.lower)
        local = at + deviation[:, None] * m.mean
        keep = m.log_mass > -745.0
        density = self._expected_log_density(local, deviation[:, None].square() * m.variance, keep)
        return (m.log_mass.exp() * density).sum(1)

    def gaussian_parameters(self, q: GaussianQ) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, `(N,)` each, of a Gaussian q over one latent."""
        if isinstance(q, Independent):
            q = q.base_dist
        if isinstance(q, MultivariateNormal):
            if q.event_shape[-1] != 1:
                raise ShapeError(f"q has {q.event_shape[-1]} dimensions, but the latent dimension S is 1")
            mean, deviation = q.loc[..., 0], q.scale_tril[..., 0, 0]
        elif isinstance(q, Normal):
            mean, deviation = torch.broadcast_tensors(q.loc, q.scale)
            if mean.ndim == 2 and mean.shape[1] == 1:
                mean, deviation = mean[:, 0], deviation[:, 0]
        else:
            raise ParameterError(f"q must be a torch Normal or MultivariateNormal, got {type(q).__name__}")
        n = len(self.log_evidence)
        if mean.ndim > 1 or (mean.ndim == 1 and mean.shape[0] not in (1, n)):
            raise ShapeError(
                f"q must hold one Gaussian for each of the {n} rows; its batch shape is {tuple(q.batch_shape)}"
            )
        mean, deviation = (p.detach().to(self.log_evidence).expand(n) for p in (mean, deviation))
        check_finite(mean, "the mean of q")
        check_finite(deviation, "the scale of q")
        if not (deviation > 0).all():
            raise ParameterError(f"the scale of q must be positive, got {deviation.min().item():g}")
        return mean, deviation


def make_generator(seed: int | None, device: torch.device) -> torch.Generator | None:
    """A seeded generator, or `None` for torch's global one."""
    return None if seed is None else torch.Generator(device).manual_seed(seed)
