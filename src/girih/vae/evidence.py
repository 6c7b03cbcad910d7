r"""`log p(x)` of a VAE where nothing is known in closed form: by importance sampling.

Two models are meant by a VAE with discrete latents. As a distribution it is that of hard codes, `p(x) = sum_y p(y)
p(x | y)`: what `prior`, `sample` and `log_prob` speak of, and the default here. Training never sees it: it draws from
the Concrete relaxation at a temperature, and `relaxed=True` asks for the likelihood of that model. The free energy of
training, with the divergence of categories and the reconstruction of relaxed draws, bounds neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent

from girih._arrays import as_rows
from girih._options import whole
from girih.errors import ParameterError
from girih.training import evaluating, own_random_state
from girih.vae.bpef.concrete import log_concrete_with
from girih.vae.codes import enumerate_bound, enumerate_exact, enumerate_posterior, values_of

if TYPE_CHECKING:
    from girih.vae.model import VAE

__all__ = ["Evidence", "enumerate_bound", "enumerate_exact", "enumerate_posterior", "estimate", "importance"]

# Numbers in the largest table of decoded values that is held at once.
_BLOCK = 2**22


class Evidence(NamedTuple):
    """An estimate of `log p(x)` for each row, in nats, and what can be said of its error."""

    log_prob: Tensor  # (N,)
    standard_error: Tensor  # (N,) of log_prob
    effective_samples: (
        Tensor  # (N,) (sum w)^2 / sum w^2: 1 where one draw has all the weight, `samples` where all alike
    )


def importance(
    vae: VAE, x: Any, samples: int = 1000, generator: torch.Generator | None = None, relaxed: bool | None = None
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
    vae: VAE, x: Any, samples: int = 1000, generator: torch.Generator | None = None, relaxed: bool | None = None
) -> Evidence:
    """What `importance` gives, and the effective number of draws of each row."""
    samples = whole(samples, "samples", 2)
    rows = as_rows(x, "x", vae.output_dim, "the data dimension D")
    blocks = rows.split(max(1, _BLOCK // rows.shape[1]))
    with torch.no_grad(), evaluating(vae):
        parts = [_estimate(vae, block, samples, generator, relaxed) for block in blocks]
    return Evidence(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _estimate(vae: VAE, rows: Tensor, samples: int, generator: torch.Generator | None, relaxed: Any) -> Evidence:
    """The two sums over weights, in log space, a block of draws at a time."""
    q, p = vae.encode(rows), vae.prior()
    draw = _relaxed_weights(vae, rows, q, p, generator) if relaxed else _weights(vae, rows, q, p, generator)
    values = values_of(p)  # a relaxed draw has numbers for each of them
    width = max(rows.shape[1], 0 if values is None else len(values) * p.event_shape[0])
    block = max(1, _BLOCK // (len(rows) * width))
    total = square = torch.full((len(rows),), -math.inf, dtype=torch.float64)
    for start in range(0, samples, block):
        log_w = draw(min(block, samples - start))
        total, square = total.to(log_w.device), square.to(log_w.device)
        total = torch.logaddexp(total, torch.logsumexp(log_w, 0))
        square = torch.logaddexp(square, torch.logsumexp(2.0 * log_w, 0))
    effective = torch.exp(2.0 * total - square)
    spread = (samples / effective - 1.0).clamp(min=0.0)  # of w / mean(w): below 0 by rounding alone
    return Evidence(total - math.log(samples), (spread / (samples - 1)).sqrt(), effective)


def _weights(
    vae: VAE, rows: Tensor, q: Distribution, p: Distribution, generator: torch.Generator | None
) -> Callable[[int], Tensor]:
    """A function that draws weights `log p(x | z) + log p(z) - log q(z | x)`, `(count, N)`."""

    def draw(count: int) -> Tensor:
        z = _draws(q, count, generator)
        return vae.log_likelihood(rows, z) + p.log_prob(z) - q.log_prob(z)

    return draw


def _relaxed_weights(
    vae: VAE, rows: Tensor, q: Distribution, p: Distribution, generator: torch.Generator | None
) -> Callable[[int], Tensor]:
    r"""A function that draws weights of the relaxed model: `log p(x | y) + log p(k) - log q(k | x)`, `(count, N)`.

        Con(y | a) = sum_k softmax(a)_k Con(y | a, k the largest)

    The k are drawn from q, which has the same decomposition, and y given k from the prior, with logits a.
    """
    values, temperature = values_of(p), getattr(vae, "temperature", None)
    if values is None or temperature is None:
        raise ParameterError("relaxed=True is for discrete latents, and those of this VAE are continuous; leave it out")
    assert isinstance(q, Independent) and isinstance(p, Independent)
    q_k, p_k = (Categorical(logits=part.base_dist.logits, validate_args=False) for part in (q, p))

    def draw(count: int) -> Tensor:
        k = _draws(q_k, count, generator)
        y = log_concrete_with(k, p_k.logits, temperature, generator).exp()
        return vae.log_likelihood(rows, y @ values) + (p_k.log_prob(k) - q_k.log_prob(k)).sum(-1)

    return draw


def _draws(q: Distribution, count: int, generator: torch.Generator | None) -> Tensor:
    """Draws `(count, N, *event)` of a distribution of any kind; with a generator, they follow from it alone."""
    if generator is None:
        return q.sample(torch.Size([count]))
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with own_random_state(seed, generator.device):
        return q.sample(torch.Size([count]))
