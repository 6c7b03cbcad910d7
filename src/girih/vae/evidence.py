r"""The distribution of x under a VAE: `log p(x)` is exact, goes through all codes, or is by importance sampling.

Two models are meant by a VAE with discrete latents. As a distribution it is that of hard codes, `p(x) = sum_y p(y)
p(x | y)`: what `prior`, `sample` and `log_prob` speak of, and the default here. Training never sees it: it draws from
the Concrete relaxation at a temperature, and `relaxed=True` asks for the likelihood of that model. The free energy of
training, with the divergence of categories and the reconstruction of relaxed draws, bounds neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, constraints

from girih._arrays import ArrayLike, as_rows, as_tensor
from girih._options import whole
from girih.errors import LatentDimensionError, ParameterError, UnsupportedLayerError
from girih.inference import DGN, DGNDistribution
from girih.sampling.modes import of_sums
from girih.training import evaluating, own_random_state
from girih.vae.bpef.concrete import log_concrete_with
from girih.vae.free_energy import FreeEnergyModel
from girih.vae.latent_model import BLOCK, MOST_CODES, every_code, log_joint

__all__ = [
    "CodeBound",
    "CodePosterior",
    "Evidence",
    "enumerate_bound",
    "enumerate_exact",
    "enumerate_posterior",
    "estimate",
    "importance",
]


class Evidence(NamedTuple):
    """An estimate of `log p(x)` for each row, in nats, and what can be said of its error."""

    log_prob: Tensor  # (N,)
    standard_error: Tensor  # (N,) of log_prob
    effective_samples: (
        Tensor  # (N,) (sum w)^2 / sum w^2: 1 where one draw has all the weight, `samples` where all alike
    )


def importance(
    vae: FreeEnergyModel,
    x: ArrayLike,
    samples: int = 1000,
    generator: torch.Generator | None = None,
    relaxed: bool | None = None,
) -> tuple[Tensor, Tensor]:
    r"""`log p(x)` by importance sampling from q(z | x), and its standard error, `(N,)` each, in nats.

        log p(x) ~ log (1/L) sum_l w_l,   w_l = p(x | z_l) p(z_l) / q(z_l | x),   z_l ~ q(z | x)
        standard error = deviation(w) / (mean(w) sqrt(L))

    The mean of the weights is unbiased for p(x), so its logarithm is too low on average, by half the square of the
    standard error to first order: a lower bound in expectation that rises with L. The standard error is estimated from
    the same weights. Where q misses mass of the posterior, few draws carry it, or none does: both numbers are then too
    low, without a sign of it. `estimate` gives the effective number of draws too; below some tens, trust neither.

    Args:
        vae: any VAE; in evaluation mode, without gradients.
        x: `(N, D)`, complete.
        samples: L, 2 or more.
        generator: torch's global one by default.
        relaxed: for discrete latents, the model that training draws from: y Concrete at the temperature of the VAE,
            under the prior. Only which entry of each y is the largest is then drawn from q, and the rest of y from the
            prior given that. So the weights are those of hard codes, `p(x | y) p(k) / q(k | x)`. Ratios of Concrete
            densities, unbiased too, have no use: they compare all R entries of y where the decoder sees one number.
            With 20 latents on 101 levels they put -log p(x) of digits at 19,000 nats, with one effective draw of
            1,000; these weights put it at 130.

    Returns:
        `(log_p, standard_error)`.

    Raises:
        ShapeError, EmptyDataError, NonFiniteError: x is not a complete table with D columns.
        ParameterError: fewer than 2 samples; `relaxed` for continuous latents.

    Source:
        Burda, Grosse & Salakhutdinov, Importance weighted autoencoders (2016), eq. 8; Maddison, Mnih & Teh, The
        Concrete distribution (2017), section 3.

    Example:
        >>> import girih, torch
        >>> from girih.vae import GaussVAE
        >>> from girih.vae.evidence import importance
        >>> vae = GaussVAE(girih.mlp([1, 8, 2], seed=0), noise=1.0, seed=0)
        >>> x = vae().sample((3,), seed=0)
        >>> log_p, error = importance(vae, x, 4000, torch.Generator().manual_seed(0))
        >>> bool(((log_p - vae().log_prob(x)).abs() < 5 * error).all())
        True
    """
    found = estimate(vae, x, samples, generator, relaxed)
    return found.log_prob, found.standard_error


def estimate(
    vae: FreeEnergyModel,
    x: ArrayLike,
    samples: int = 1000,
    generator: torch.Generator | None = None,
    relaxed: bool | None = None,
) -> Evidence:
    """Estimate `log p(x)` as `importance` does, and count the effective draws of each row."""
    samples = whole(samples, "samples", 2)
    rows = as_rows(x, "x", vae.output_dim, "the data dimension D")
    blocks = rows.split(max(1, BLOCK // rows.shape[1]))
    with torch.no_grad(), evaluating(vae):
        parts = [_estimate(vae, block, samples, generator, relaxed) for block in blocks]
    return Evidence(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _estimate(
    vae: FreeEnergyModel, rows: Tensor, samples: int, generator: torch.Generator | None, relaxed: bool | None
) -> Evidence:
    """The two sums over weights, in log space, a block of draws at a time."""
    q, p = vae.encode(rows), vae.prior()
    draw = _relaxed_weights(vae, rows, q, p, generator) if relaxed else _weights(vae, rows, q, p, generator)
    values = values_of(p)  # a relaxed draw has numbers for each of them
    width = max(rows.shape[1], 0 if values is None else len(values) * p.event_shape[0])
    block = max(1, BLOCK // (len(rows) * width))
    total = square = torch.full((len(rows),), -math.inf, dtype=torch.float64)
    for start in range(0, samples, block):
        log_w = draw(min(block, samples - start))
        total, square = total.to(log_w.device), square.to(log_w.device)
        total = torch.logaddexp(total, torch.logsumexp(log_w, 0))
        square = torch.logaddexp(square, torch.logsumexp(2.0 * log_w, 0))
    return Evidence(*of_sums(total, square, samples))


def _weights(
    vae: FreeEnergyModel, rows: Tensor, q: Distribution, p: Distribution, generator: torch.Generator | None
) -> Callable[[int], Tensor]:
    """A function that draws weights `log p(x | z) + log p(z) - log q(z | x)`, `(count, N)`."""

    def draw(count: int) -> Tensor:
        z = _draws(q, count, generator)
        return vae.log_likelihood(rows, z) + p.log_prob(z) - q.log_prob(z)

    return draw


def _relaxed_weights(
    vae: FreeEnergyModel, rows: Tensor, q: Distribution, p: Distribution, generator: torch.Generator | None
) -> Callable[[int], Tensor]:
    r"""A function that draws weights of the relaxed model: `log p(x | y) + log p(k) - log q(k | x)`, `(count, N)`.

        Con(y | a) = sum_k softmax(a)_k Con(y | a, k the largest)

    The k are drawn from q, which has the same decomposition, and y given k from the prior, with logits a.
    """
    values = values_of(p)
    temperature = None if values is None else vae.temperature
    if values is None or temperature is None:
        raise ParameterError("relaxed=True is for discrete latents, and those of this VAE are continuous; leave it out")
    assert isinstance(q, Independent) and isinstance(p, Independent)
    q_k, p_k = (Categorical(logits=part.base_dist.logits, validate_args=False) for part in (q, p))

    def draw(count: int) -> Tensor:
        k = _draws(q_k, count, generator)
        y = log_concrete_with(k, p_k.logits, temperature, generator).exp()
        result: Tensor = vae.log_likelihood(rows, y @ values) + (p_k.log_prob(k) - q_k.log_prob(k)).sum(-1)
        return result

    return draw


def _draws(q: Distribution, count: int, generator: torch.Generator | None) -> Tensor:
    """Draws `(count, N, *event)` of a distribution of any kind; with a generator, they follow from it alone."""
    if generator is None:
        return q.sample(torch.Size([count]))
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with own_random_state(seed, generator.device):
        return q.sample(torch.Size([count]))


class CodeBound(NamedTuple):
    """The likelihood and the bound of a VAE with discrete latents, nats per row, without sampling."""

    log_prob: Tensor  # (N,) log p(x), of hard codes
    bound: Tensor  # (N,) KL(q(y | x) || p(y)) - E_q[log p(x | y)] over hard codes; at least -log_prob


class CodePosterior(NamedTuple):
    """The exact posterior over hard codes."""

    codes: Tensor  # (K, *event), as `vae.decode` takes them
    log_prob: Tensor  # (N, K) log p(y | x)


def enumerate_exact(vae: FreeEnergyModel, x: ArrayLike) -> Tensor:
    r"""The exact `log p(x)` of a VAE with few discrete codes: `log sum_y p(y) p(x | y)`.

    The latents are hard codes, what `prior()` gives, and not the relaxed ones that training draws.

    Args:
        vae: with discrete latents, such as `CatVAE` or `CGBPEFVAE`, C^S or R^S codes; in evaluation mode, without
            gradients.
        x: `(N, D)`, complete.

    Returns:
        `(N,)`, in nats.

    Raises:
        LatentDimensionError: there are more than 100,000 codes.
        ParameterError: the latents are continuous.
        ShapeError, EmptyDataError, NonFiniteError: x is not a complete table with D columns.

    Example:
        >>> import torch
        >>> from girih.vae import CatVAE
        >>> from girih.vae.evidence import enumerate_exact
        >>> vae = CatVAE([2, 8, 3], categories=4, likelihood="bernoulli", seed=0)
        >>> bits = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
        >>> round(enumerate_exact(vae, bits).exp().sum().item(), 6)  # over all x
        1.0
    """
    rows, codes = _prepared(vae, x)
    with torch.no_grad(), evaluating(vae):
        return _log_evidence(vae, rows, codes)


def enumerate_bound(vae: FreeEnergyModel, x: ArrayLike) -> CodeBound:
    """The exact `log p(x)` and the exact free energy of hard codes, of which training relaxes the second term.

    Arguments and errors are those of `enumerate_exact`. `bound + log_prob` is `KL(q(y | x) || p(y | x))`.
    """
    rows, codes = _prepared(vae, x)
    with torch.no_grad(), evaluating(vae):
        q, total, bound = vae.encode(rows), rows.new_full((len(rows),), -math.inf), rows.new_zeros(len(rows))
        for part, log_p in log_joint(vae, rows, codes, vae.prior()):
            log_q = q.log_prob(part[:, None])
            total = torch.logaddexp(total, torch.logsumexp(log_p, 0))
            bound = bound + (log_q.exp() * (log_q - log_p)).sum(0)
    return CodeBound(total, bound)


def enumerate_posterior(vae: FreeEnergyModel, x: ArrayLike) -> CodePosterior:
    """The exact posterior `p(y | x)` over all hard codes, `(N, K)`: it is held in memory.

    Arguments and errors are those of `enumerate_exact`.

    Example:
        >>> from girih.vae import CGBPEFVAE
        >>> from girih.vae.evidence import enumerate_posterior
        >>> found = enumerate_posterior(CGBPEFVAE([1, 8, 3], levels=11, seed=0), [[0.1, 0.2, 0.3]])
        >>> found.codes.shape, found.log_prob.shape, round(found.log_prob.exp().sum().item(), 6)
        (torch.Size([11, 1]), torch.Size([1, 11]), 1.0)
    """
    rows, codes = _prepared(vae, x)
    with torch.no_grad(), evaluating(vae):
        log_p = torch.cat([part for _, part in log_joint(vae, rows, codes, vae.prior())])
    return CodePosterior(codes, torch.log_softmax(log_p, 0).mT)


def values_of(p: Distribution) -> Tensor | None:
    """The values that each discrete latent of a prior can take, `(R,)` or `(C, C)`; `None` for other latents."""
    base = p.base_dist if isinstance(p, Independent) else p
    if not base.has_enumerate_support or len(base.batch_shape) != 1:
        return None
    return base.enumerate_support(expand=False)[:, 0]


def _prepared(vae: FreeEnergyModel, x: ArrayLike) -> tuple[Tensor, Tensor]:
    """Checked rows and all codes, `(K, *event)`."""
    rows = as_rows(x, "x", vae.output_dim, "the data dimension D")
    with torch.no_grad():
        p = vae.prior()
    values, S = values_of(p), p.event_shape[0]
    if values is None:
        raise ParameterError("the latents of this VAE are continuous: there are no codes to go through")
    if len(values) ** S > MOST_CODES:
        raise LatentDimensionError(
            f"{S} latents of {len(values)} values each have {float(len(values)) ** S:.3g} codes, and at most "
            f"{MOST_CODES:,} are gone through; estimate log p(x) with girih.vae.evidence.importance"
        )
    # the first latent fastest
    return rows.to(values.device), every_code(values, S).flip(1)


def _log_evidence(vae: FreeEnergyModel, rows: Tensor, codes: Tensor) -> Tensor:
    total = rows.new_full((len(rows),), -math.inf)
    for _, log_p in log_joint(vae, rows, codes, vae.prior()):
        total = torch.logaddexp(total, torch.logsumexp(log_p, 0))
    return total


# Draws of z for each row where nothing else is asked for.
SAMPLES = 1000


class ExactDistribution(DGNDistribution):
    """The distribution of x under a VAE with a piecewise-affine decoder, Gaussian noise and a standard normal prior.

    Attributes:
        exact: true.
    """

    exact = True

    def __init__(self, dgn: DGN) -> None:
        super().__init__(dgn)

    def log_prob_with_error(self, x: ArrayLike, samples: int = SAMPLES, seed: int | None = 0) -> tuple[Tensor, Tensor]:
        """`log p(x)` and its standard error, which is 0; `samples` and `seed` are there for other VAEs."""
        log_p = self.log_prob(x)
        return log_p, torch.zeros_like(log_p)


class VAEDistribution(Distribution):
    """The distribution of x under a VAE, `log p(x)` by importance sampling with q(z | x) as the proposal.

    The networks are in evaluation mode. Where the latents are discrete and their codes few enough to count, at most
    100,000, all of them are, and `log_prob` is exact.

    Args:
        vae: whose parameters are read when they are needed.

    Attributes:
        exact: whether `log_prob` is exact.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector

    def __init__(self, vae: FreeEnergyModel) -> None:
        self._vae = vae
        self.exact = vae.family.codes is not None and vae.family.codes <= MOST_CODES
        super().__init__(torch.Size([]), torch.Size([vae.output_dim]), validate_args=False)

    def __repr__(self) -> str:
        how = "exact" if self.exact else f"log_prob by {SAMPLES:,} draws"
        return f"VAEDistribution(D={self.event_shape[0]}, {how})"

    def log_prob(self, value: ArrayLike) -> Tensor:
        """`log p(x)` in nats, `(N,)`: exact, or an estimate from 1,000 draws of a fixed seed."""
        return self.log_prob_with_error(value)[0]

    def log_prob_with_error(self, x: ArrayLike, samples: int = SAMPLES, seed: int | None = 0) -> tuple[Tensor, Tensor]:
        """`log p(x)` and the standard error of the estimate, `(N,)` each, in nats; 0 where it is exact.

        Args:
            x: `(N, D)`.
            samples: draws of z for each row, 2 or more.
            seed: of the draws; `None` for torch's global generator.

        Raises:
            ShapeError, EmptyDataError, NonFiniteError, ParameterError: x is not a table that the model is for.

        Source:
            Burda, Grosse & Salakhutdinov, Importance weighted autoencoders (2016); see `girih.vae.evidence`.
        """
        vae, rows = self._vae, as_tensor(x, "x", self._vae.device)
        if rows.ndim > 2 and rows.shape[-1] == vae.output_dim:
            parts = self.log_prob_with_error(rows.flatten(0, -2), samples, seed)
            return parts[0].reshape(rows.shape[:-1]), parts[1].reshape(rows.shape[:-1])
        if self.exact:
            log_p = enumerate_exact(vae, rows)
            return log_p, torch.zeros_like(log_p)
        generator = None if seed is None else torch.Generator(vae.device).manual_seed(whole(seed, "seed", None))
        return importance(vae, rows, samples, generator)

    def sample(self, sample_shape: Sequence[int] = torch.Size(), seed: int | None = None) -> Tensor:
        """Draws of x, `(*sample_shape, D)`."""
        shape = torch.Size(sample_shape)
        return sample_rows(self._vae, shape.numel(), seed).reshape(*shape, self._vae.output_dim)


def sample_rows(
    vae: FreeEnergyModel, n: int, seed: int | None = None, mean: bool = False, relaxed: bool = False
) -> Tensor:
    """`n` draws of x, or of `E[x | z]`, with z from the prior, relaxed or not: `(n, D)`."""
    if seed is not None:
        with own_random_state(whole(seed, "seed", None), vae.device):
            return sample_rows(vae, n, None, mean, relaxed)
    with torch.no_grad(), evaluating(vae):
        family = vae.family
        z = family.relaxed_prior(n, vae.device) if relaxed else family.prior(vae.device).sample(torch.Size([n]))
        return vae.observe(z, mean)


def exact_dgn(vae: FreeEnergyModel) -> DGN:
    """The decoder of a VAE with prior `N(0, I)` as an exact density model: see `VAE.dgn`, which raises the same."""
    if not vae.family.normal_prior:
        raise ParameterError(
            f"exact inference needs the prior N(0, I), which the family {vae.family.name!r} does not have; "
            "`vae().log_prob_with_error(x)` and `girih.vae.gap` say what is known of log p(x)"
        )
    with evaluating(vae.decoder):
        if vae.log_noise is None:
            return DGN(vae.decoder, likelihood=vae.likelihood).keep_trace()
        return DGN(vae.decoder, noise=vae.noise).keep_trace()  # that of evaluation, in training too


def distribution_of(vae: FreeEnergyModel) -> ExactDistribution | VAEDistribution:
    """The distribution of x: exact where there is an `exact_dgn` with Gaussian noise, else by importance sampling."""
    if vae.family.normal_prior and vae.log_noise is not None:
        with suppress(ParameterError, LatentDimensionError, UnsupportedLayerError):
            return ExactDistribution(exact_dgn(vae))
    return VAEDistribution(vae)
