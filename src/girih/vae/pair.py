"""`Pair`: a decoder and an encoder that were trained elsewhere, for `girih.vae.gap`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from girih._arrays import ArrayLike, Rows, as_rows, as_tensor, check_finite
from girih.errors import ParameterError, ShapeError
from girih.networks import Trace, trace
from girih.training import evaluating, type_of
from girih.vae.families.gaussian import Gaussian, independent_normals
from girih.vae.latent_model import likelihood_named, log_variance

Spread: TypeAlias = Literal["std", "log_std", "variance", "log_variance", "covariance"]
Encoder: TypeAlias = Callable[[Tensor], Any]


class Pair(nn.Module):
    r"""A decoder and an encoder from elsewhere, as one model: `z ~ N(0, I)`, `x ~ p(x | g(z))`, `q(z | x)` Gaussian.

    Use it to measure a VAE that was trained with another library: `girih.vae.gap(Pair(...), x)`.

    Args:
        decoder: the generator g, any module that `girih.trace` takes, or a `girih.trace` of it, which can stop before a
            smooth head (`until=`) or pick an output (`output=`). For "bernoulli" it gives logits.
        encoder: a module or a function from rows `(N, D)`, in the type of the decoder's parameters, to the mean
            `(N, S)` and the spread of q(z | x), or to a torch distribution `Normal` or `MultivariateNormal`.
        spread: what the second of the encoder's outputs is: "std", "log_std", "variance", "log_variance", `(N, S)`
            each, or "covariance" `(N, S, S)`. Nothing is guessed. A distribution needs none.
        noise: the noise variance of a Gaussian likelihood, one number.
        likelihood: "gaussian", or "bernoulli" for values in [0, 1].

    Attributes:
        latent_dim: S.
        output_dim: D.

    Raises:
        UnsupportedLayerError: the decoder is not piecewise affine.
        ParameterError: an unknown spread or likelihood; a Gaussian likelihood without noise, or another with it.
        NoiseError: the noise is not a positive number.

    Example:
        >>> import girih, torch
        >>> from girih.vae import Pair, gap
        >>> decoder, encoder = girih.mlp([1, 8, 2], seed=0), girih.mlp([2, 8, 2], seed=1)
        >>> pair = Pair(decoder, lambda x: encoder(x).chunk(2, 1), "log_variance", noise=0.1)
        >>> bool(gap(pair, torch.zeros(1, 2)).gap > 0.0)
        True
    """

    def __init__(
        self,
        decoder: nn.Module | Trace,
        encoder: Encoder,
        spread: Spread | None = None,
        *,
        noise: float | None = None,
        likelihood: str = "gaussian",
    ) -> None:
        super().__init__()
        if spread is not None and spread not in get_args(Spread):
            raise ParameterError(f"spread must be {' or '.join(map(repr, get_args(Spread)))}; got {spread!r}")
        if not callable(encoder):
            raise ParameterError(f"the encoder must be a module or a function; got {type(encoder).__name__}")
        self._likelihood = likelihood_named(likelihood)
        if (noise is None) == self._likelihood.noisy:
            wants = "needs noise=, its variance" if noise is None else "has no noise; leave it out"
            raise ParameterError(f"likelihood={likelihood!r} {wants}")
        self._log_noise = None if noise is None else torch.tensor(log_variance(noise), dtype=torch.float64)
        self.decoder = cast(nn.Module, decoder)  # a trace serves in its place
        self.encoder, self._spread = encoder, spread
        if isinstance(decoder, Trace):
            traced, self._type = decoder, next((t.dtype for t in decoder.tensors()), torch.float64)
        else:
            with evaluating(decoder):
                traced, self._type = trace(decoder), type_of(decoder)
        self.latent_dim, self.output_dim = traced.latent_dim, traced.output_dim
        self.family = Gaussian().over(self.latent_dim, torch.empty(0, dtype=torch.float64))

    @property
    def full(self) -> bool:
        """Whether its posteriors have covariances."""
        return self._spread == "covariance"

    @property
    def likelihood(self) -> str:
        """The name of p(x | z): "gaussian" or "bernoulli"."""
        return self._likelihood.name

    @property
    def noise(self) -> Tensor:
        """The noise variance of a Gaussian likelihood, `()`."""
        if self._log_noise is None:
            raise ParameterError(f"likelihood={self.likelihood!r} has no noise")
        return self._log_noise.exp()

    def rows(self, x: ArrayLike | Rows) -> Tensor:
        """Rows of x as checked float64."""
        rows = as_rows(x, "x", self.output_dim, "the data dimension D")
        self._likelihood.check(rows)
        return rows

    def prior(self) -> Distribution:
        """`N(0, I)`."""
        return self.family.prior(torch.device("cpu"))

    def log_likelihood(self, x: ArrayLike, z: ArrayLike) -> Tensor:
        """`log p(x | z)`, nats: `(N, D)` and `(..., N, S)` or `(..., 1, S)` to `(..., N)`."""
        rows, latents = self.rows(x), as_tensor(z, "z")
        net: object = self.decoder
        traced = net if isinstance(net, Trace) else trace(self.decoder)
        output = traced(latents.reshape(-1, self.latent_dim)).reshape(*latents.shape[:-1], self.output_dim)
        return -self._likelihood.nll(rows, output, self._log_noise)

    def encode(self, x: ArrayLike) -> Distribution:
        """`q(z | x_n)` of rows `(N, D)`, in float64.

        Raises:
            ParameterError: the encoder gives neither a Gaussian nor a mean and a spread.
            ShapeError: they do not have the shapes of S latents.
            NonFiniteError: they are not finite, or a spread is not positive.
        """
        rows = self.rows(x)
        with torch.no_grad():
            found = self.encoder(rows.to(self._type))
        if isinstance(found, Distribution):
            return self._from_distribution(found, len(rows))
        if not isinstance(found, tuple | list) or len(found) != 2 or self._spread is None:
            what = (
                "no spread= is given to say what the second is" if self._spread is None else "it gives something else"
            )
            raise ParameterError(
                "the encoder must give two tensors, the mean and the spread of q(z | x), or a torch Normal or "
                f"MultivariateNormal; {what}: it gives {type(found).__name__}; wrap it in a function"
            )
        mean, spread = (
            as_tensor(part, f"the encoder's {name}") for part, name in zip(found, ("mean", self._spread), strict=True)
        )
        S, full = self.latent_dim, self._spread == "covariance"
        shapes = (len(rows), S), (len(rows), S, S) if full else (len(rows), S)
        if (tuple(mean.shape), tuple(spread.shape)) != shapes:
            raise ShapeError(
                f"the encoder gives shapes {tuple(mean.shape)} and {tuple(spread.shape)} for {len(rows)} rows; "
                f"with spread={self._spread!r} and S = {S} they must be {shapes[0]} and {shapes[1]}"
            )
        check_finite(mean, "the encoder's mean")
        check_finite(spread, f"the encoder's {self._spread}")
        if full:
            factor, wrong = torch.linalg.cholesky_ex(spread)
            if bool(wrong.any()):
                raise ParameterError("the encoder's covariance is not positive definite")
            return MultivariateNormal(mean, scale_tril=factor, validate_args=False)
        return independent_normals(mean, self._deviation(spread))

    def _deviation(self, spread: Tensor) -> Tensor:
        deviation = {
            "std": lambda: spread,
            "log_std": spread.exp,
            "variance": spread.sqrt,
            "log_variance": (0.5 * spread).exp,
        }[str(self._spread)]()
        if not bool((deviation > 0.0).all()):
            raise ParameterError(
                f"the encoder's {self._spread} gives deviations that are not positive; is it a logarithm?"
            )
        return deviation

    def _from_distribution(self, found: Distribution, count: int) -> Distribution:
        normal = found.base_dist if isinstance(found, Independent) else found
        if not isinstance(normal, Normal | MultivariateNormal) or tuple(normal.mean.shape) != (count, self.latent_dim):
            raise ParameterError(
                f"the encoder gives {found}; a Normal or MultivariateNormal of {count} rows and S = {self.latent_dim} "
                "latents is needed"
            )
        if isinstance(normal, MultivariateNormal):
            if not self.full:
                raise ParameterError('the encoder gives covariances; say so: spread="covariance"')
            return MultivariateNormal(normal.mean.double(), scale_tril=normal.scale_tril.double())
        return independent_normals(normal.mean.double(), normal.stddev.double())
