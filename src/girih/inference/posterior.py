"""`Posterior`: p(z | x), a mixture of Gaussians truncated to the cells of the latent partition."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar, TypeAlias

import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, constraints, register_kl

from girih._arrays import as_tensor, check_finite
from girih._options import whole
from girih._shown import Shown, span
from girih.errors import LatentDimensionError, NonFiniteError, ParameterError, ShapeError
from girih.inference.priors import UniformPrior

_EDGE = 1e-13

GaussianQ: TypeAlias = "Normal | MultivariateNormal | Independent[Normal]"
Shape: TypeAlias = torch.Size | list[int] | tuple[int, ...]


class Posterior(Shown, Distribution):
    r"""It holds N exact posteriors `p(z | x_n)`, S = 1, 2 or 3.

    A posterior is a mixture over cells of truncated Gaussians (EM-DGN, Theorem 1 and Proposition 2),

        p(z | x) = sum_cells 1[z in cell] N(x; b, noise + A prior A^T) N(z; mu, Sigma) / p(x)

    `batch_shape` is `(N,)` and `event_shape` `(S,)`. Made by `girih.DGN.posterior`; densities in nats.

    Attributes:
        log_evidence: `log p(x_n)`, `(N,)`.
        left_out: certified bound on the share of each p(x_n) that was left out, `(N,)`.
        rounding: bound in nats on what the rounding of rows and maps changes in `log p(z | x_n)`, `(N,)`: moments are
            known to this part of the posterior's deviations, entropies and divergences up to it.

    Example:
        >>> import girih
        >>> dgn = girih.DGN(girih.mlp([2, 8, 2], seed=0), noise=0.01)
        >>> post = dgn.posterior([[0.5, 0.2], [1.0, 0.4]])
        >>> post.mean.shape, post.covariance.shape, post.sample((3,)).shape
        (torch.Size([2, 2]), torch.Size([2, 2, 2]), torch.Size([3, 2, 2]))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = False

    def __init__(self, latent_dim: int, log_evidence: Tensor, left_out: Tensor) -> None:
        self.log_evidence, self.left_out = log_evidence, left_out
        self._held: UniformPrior | None = None
        if not torch.isfinite(log_evidence).all():
            row = int((~torch.isfinite(log_evidence)).nonzero()[0])
            raise NonFiniteError(
                f"row {row} has no posterior: its log p(x) is {log_evidence[row].item()}, so the row or the "
                "parameters are out of range; rescale x, and check the network, the noise and the prior"
            )
        super().__init__(torch.Size([len(log_evidence)]), torch.Size([latent_dim]), validate_args=False)

    def hold(self, prior: UniformPrior, shift: float) -> None:
        """Say that the prior is uniform: where z may be, and what it adds to each `log p(x)`."""
        self._held, self.log_evidence = prior, self.log_evidence + shift

    def _facts(self) -> dict[str, str]:
        """Rows, S, and `log p(x)`."""
        low, high = (float(end) for end in self.log_evidence.aminmax()) if len(self.log_evidence) else (0.0, 0.0)
        return {
            "rows": f"{len(self.log_evidence):,}",
            "S": str(self.event_shape[0]),
            "log_p": f"{span(low, high)} nats",
        }

    def __repr__(self) -> str:
        (n,), (S,) = self.batch_shape, self.event_shape
        about = f", log p(x) {self.log_evidence.mean():.4g} nats a row" if n else ""
        return f"{type(self).__name__}({n} {'row' if n == 1 else 'rows'}, S={S}{about})"

    @property
    @abstractmethod
    def rounding(self) -> Tensor:
        """Bound in nats on what rounding changes in `log p(z | x)`, `(N,)`."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """E[z | x], `(N, S)`."""

    @property
    @abstractmethod
    def covariance(self) -> Tensor:
        """Cov[z | x], `(N, S, S)`: the spread of the cells' means plus the spread inside the cells."""

    @property
    def variance(self) -> Tensor:
        """Var[z | x] of each coordinate, `(N, S)`."""
        return self.covariance.diagonal(dim1=1, dim2=2)

    @property
    @abstractmethod
    def mode(self) -> Tensor:
        """The z of highest posterior density, exact over all cells, `(N, S)`."""

    @abstractmethod
    def entropy(self) -> Tensor:
        """Differential entropy `-E[log p(z | x)]` in nats, `(N,)`."""

    def log_prob(self, value: ArrayLike | Tensor) -> Tensor:
        """`log p(z_n | x_n)` in nats.

        Args:
            value: `(..., N, S)`, or `(N,)` when S = 1.

        Returns:
            `(..., N)`.
        """
        z = self._latents(value)
        density = self._log_density(z)
        if self._held is None:
            return density
        room = _EDGE * torch.maximum(self._held.low.abs(), self._held.high.abs()).amax()  # of modes at a side, rounded
        return torch.where(self._held.holds(z, room.to(z.device)), density, -math.inf)

    @abstractmethod
    def _log_density(self, z: Tensor) -> Tensor:
        """`log p(z | x)` for z `(..., N or 1, S)`."""

    @abstractmethod
    def cell_probs(self) -> Tensor:
        """P(z in cell | x): a sparse COO tensor `(N, R)` without the entries that round to 0 beside 1."""

    def spans(self, depth: float) -> tuple[Tensor, Tensor]:
        """On each cell the ends of where `log p(z | x)` is within `depth` nats of its peak there (S = 1), `(N, R)`.

        Raises:
            LatentDimensionError: S is not 1.
        """
        raise LatentDimensionError(
            f"only a posterior over a line has spans, and this one has S = {self.event_shape[0]}; use cell_probs()"
        )

    def sample(self, sample_shape: Shape = torch.Size(), seed: int | None = None) -> Tensor:
        """Exact draws from the posterior, `(*sample_shape, N, S)`: a cell, then a truncated Gaussian in it."""
        shape = torch.Size(sample_shape)
        if shape.numel() == 0:
            return self.log_evidence.new_empty((*shape, *self.batch_shape, *self.event_shape))
        z = self._draw(shape.numel(), make_generator(seed, self.log_evidence.device))
        return z.reshape(*shape, *self.batch_shape, *self.event_shape)

    @abstractmethod
    def _draw(self, count: int, generator: torch.Generator | None) -> Tensor:
        """`(count, N, S)`."""

    def kl(self, q: GaussianQ) -> Tensor:
        r"""`KL(q || p(z | x))` in nats, `(N,)`, exact: no sampling.

        `log p(z | x)` is quadratic on each cell, so the expectation needs the mass and two moments of q there. For a q
        that is the posterior the result may be below 0, by no more than `rounding`.
        `torch.distributions.kl_divergence(q, posterior)` is the same.

        Args:
            q: a `Normal` with batch shape `(N, S)` (or `(N,)` for S = 1), an `Independent` of one, or a
                `MultivariateNormal` with batch shape `(N,)` and event shape `(S,)`; a single q is used for all rows.

        Source:
            EM-DGN, eq. 3.
        """
        mean, factor = self.gaussian_parameters(q)
        if self._held is not None:  # any Gaussian has mass outside of the box
            return torch.full_like(self.log_evidence, math.inf)
        return -gaussian_entropy(factor) - self.expected_log_prob(mean, factor)

    @abstractmethod
    def expected_log_prob(self, mean: Tensor, factor: Tensor) -> Tensor:
        """`E_q[log p(z | x)]` `(N,)` for `q = N(mean, factor factor^T)`, `(N, S)` and lower triangular `(N, S, S)`."""

    def _latents(self, value: ArrayLike | Tensor) -> Tensor:
        z = as_tensor(value, "z", self.log_evidence.device)
        n, S = len(self.log_evidence), self.event_shape[0]
        if S == 1 and z.ndim == 1 and z.shape[0] == n and n != 1:
            z = z[:, None]
        elif z.ndim == 1 and n == 1 and z.shape[0] == S:
            z = z[None]
        if z.ndim < 2 or z.shape[-1] != S or z.shape[-2] not in (1, n):
            raise ShapeError(
                f"z must have shape (..., {n}, {S}): one latent for each of the {n} rows; got {tuple(z.shape)}"
            )
        check_finite(z, "z")
        return z

    def gaussian_parameters(self, q: GaussianQ) -> tuple[Tensor, Tensor]:
        """Mean `(N, S)` and lower triangular scale `(N, S, S)` of a Gaussian q over the latents."""
        S = self.event_shape[0]
        if isinstance(q, Independent):
            q = q.base_dist
        if isinstance(q, MultivariateNormal):
            mean, factor = q.loc, q.scale_tril
        elif isinstance(q, Normal):
            mean, deviation = torch.broadcast_tensors(q.loc, q.scale)
            if S == 1 and mean.shape[-1:] != (1,):
                mean, deviation = mean[..., None], deviation[..., None]
            factor = torch.diag_embed(deviation)
        else:
            raise ParameterError(f"q must be a torch Normal or MultivariateNormal, got {type(q).__name__}")
        if mean.ndim < 1 or mean.shape[-1] != S:
            raise ShapeError(
                f"q has shape {tuple(mean.shape)}, but the latent dimension S is {S}; its last axis must be S"
            )
        n = len(self.log_evidence)
        if mean.ndim > 2 or (mean.ndim == 2 and mean.shape[0] not in (1, n)):
            raise ShapeError(
                f"q must hold one Gaussian for each of the {n} rows; its batch shape is {tuple(q.batch_shape)}"
            )
        mean = mean.detach().to(self.log_evidence).expand(n, S)
        factor = factor.detach().to(self.log_evidence).expand(n, S, S)
        check_finite(mean, "the mean of q")
        check_finite(factor, "the scale of q")
        least = factor.diagonal(dim1=1, dim2=2).min()
        if not least > 0:
            raise ParameterError(f"the scale of q must be positive, got {least.item():g}")
        return mean, factor


def _kl(q: GaussianQ, posterior: Posterior) -> Tensor:
    """`torch.distributions.kl_divergence(q, posterior)`."""
    return posterior.kl(q)


for _kind in (Normal, MultivariateNormal, Independent):
    register_kl(_kind, Posterior)(_kl)


def gaussian_entropy(factor: Tensor) -> Tensor:
    """Entropy of Gaussians with these lower triangular scales `(N, S, S)`, `(N,)`."""
    S = factor.shape[-1]
    return 0.5 * S * math.log(2.0 * math.pi * math.e) + factor.diagonal(dim1=1, dim2=2).log().sum(1)


def make_generator(seed: int | None, device: torch.device) -> torch.Generator | None:
    """A seeded generator, or `None` for torch's global one."""
    return None if seed is None else torch.Generator(device).manual_seed(whole(seed, "seed", None))
