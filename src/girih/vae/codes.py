"""Discrete latents with few codes: every code is gone through, and nothing is sampled."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent

from girih._arrays import as_rows
from girih.errors import LatentDimensionError, ParameterError
from girih.training import evaluating

if TYPE_CHECKING:
    from girih.vae.model import VAE

MOST_CODES = 100_000

# Numbers in the largest table of decoded values that is held at once.
_BLOCK = 2**22


class CodeBound(NamedTuple):
    """The likelihood and the bound of a VAE with discrete latents, nats per row, without sampling."""

    log_prob: Tensor  # (N,) log p(x), of hard codes
    bound: Tensor  # (N,) KL(q(y | x) || p(y)) - E_q[log p(x | y)] over hard codes; at least -log_prob


class CodePosterior(NamedTuple):
    """The exact posterior over hard codes."""

    codes: Tensor  # (K, *event), as `vae.decode` takes them
    log_prob: Tensor  # (N, K) log p(y | x)


def enumerate_exact(vae: VAE, x: Any) -> Tensor:
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


def enumerate_bound(vae: VAE, x: Any) -> CodeBound:
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


def enumerate_posterior(vae: VAE, x: Any) -> CodePosterior:
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


def _prepared(vae: VAE, x: Any) -> tuple[Tensor, Tensor]:
    """Checked rows and all codes, `(K, *event)`."""
    rows = as_rows(x, "x", vae.output_dim, "the data dimension D")
    with torch.no_grad():
        p = vae.prior()
    values = values_of(p)
    if values is None:
        raise ParameterError("the latents of this VAE are continuous: there are no codes to go through")
    S, count = p.event_shape[0], len(values) ** p.event_shape[0]
    if count > MOST_CODES:
        raise LatentDimensionError(
            f"{S} latents of {len(values)} values each have {count:.3g} codes, and at most {MOST_CODES:,} are gone "
            "through; estimate log p(x) with girih.vae.evidence.importance"
        )
    digits = torch.arange(count, device=values.device)[:, None] // len(values) ** torch.arange(S, device=values.device)
    return rows.to(values.device), values[digits % len(values)]


def _log_evidence(vae: VAE, rows: Tensor, codes: Tensor) -> Tensor:
    total = rows.new_full((len(rows),), -math.inf)
    for _, log_p in log_joint(vae, rows, codes, vae.prior()):
        total = torch.logaddexp(total, torch.logsumexp(log_p, 0))
    return total


def log_joint(vae: VAE, rows: Tensor, codes: Tensor, p: Distribution) -> Iterator[tuple[Tensor, Tensor]]:
    """Blocks of codes `(k, *event)`, and `log p(x, y)`, `(k, N)`, under a prior p; each code is decoded once."""
    for part in codes.split(max(1, _BLOCK // rows.numel())):
        yield part, vae.log_likelihood(rows, part[:, None]) + p.log_prob(part)[:, None]
