"""The Concrete relaxation in the form that a training step needs: a few tensor operations, unchecked."""

from __future__ import annotations

import torch
from torch import Tensor


def relaxed(logits: Tensor, temperature: float, samples: int, generator: torch.Generator | None = None) -> Tensor:
    r"""Draws from the Concrete distribution, differentiable in the logits.

        y_r = exp((logits_r + g_r) / T) / sum_r exp((logits_r + g_r) / T),   g_r ~ Gumbel(0, 1)

    The law of `torch.distributions.RelaxedOneHotCategorical`, without its checks. The Gumbel numbers are
    `-log(-log u)` of uniform u in [0, 1): torch's exponential numbers take ten times as long. Where u is 0, g is minus
    infinity and y_r is 0, which is what a number below all others gives; u is never 1.

    Args:
        logits: `(..., R)`, normalised or not.
        temperature: T > 0.
        samples: how many for each row of logits.
        generator: torch's global one by default.

    Returns:
        `(samples, ..., R)`, in the simplex.

    Source:
        CG-BPEF, section 3.2; Maddison, Mnih & Teh, The Concrete distribution (2017).

    Example:
        >>> import torch
        >>> from girih.vae.posteriors.relaxation import relaxed
        >>> y = relaxed(torch.zeros(2, 5), 0.5, samples=3)
        >>> y.shape, bool((y.sum(-1) - 1).abs().max() < 1e-6)
        (torch.Size([3, 2, 5]), True)
    """
    shape = (samples, *logits.shape)
    waiting = torch.rand(shape, dtype=logits.dtype, device=logits.device, generator=generator).log_().neg_()
    return torch.softmax((logits - waiting.log_()) / temperature, -1)
