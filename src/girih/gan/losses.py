r"""The two games: a discriminator's loss, then the generator's.

    non_saturating, d(x) the logit of "x is data":
        E[softplus(-d(x))] + E[softplus(d(g(z)))],      E[softplus(-d(g(z)))]
    wasserstein, d(x) the value of a critic:
        E[d(g(z))] - E[d(x)] + penalty,                 -E[d(g(z))]

All are means over the rows, in nats for the logits and in the critic's own units otherwise.

Source:
    Goodfellow et al., Generative adversarial nets (2014), section 3; Gulrajani et al., Improved training of
    Wasserstein GANs (2017), eq. 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from girih.errors import ParameterError

LossName = Literal["non_saturating", "wasserstein"]
LOSSES = ("non_saturating", "wasserstein")


def logistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Cross-entropy of the logits, `()`: `mean softplus(-real) + mean softplus(fake)`.

    Its minimum over all discriminators is `2 log 2 - 2 JS` with the Jensen-Shannon divergence of data and generator.

    Args:
        real: logits of data, `(N,)`.
        fake: logits of generated rows, `(M,)`.

    Source:
        Goodfellow et al. (2014), eq. 1 and Theorem 1.

    Example:
        >>> import torch
        >>> from girih.gan.losses import logistic_discriminator
        >>> round(float(logistic_discriminator(torch.zeros(3), torch.zeros(2))), 6)  # 2 log 2
        1.386294
    """
    return softplus(-real).mean() + softplus(fake).mean()


def logistic_generator(fake: Tensor) -> Tensor:
    """The non-saturating loss, `()`: `mean softplus(-fake)`, the cross-entropy of calling generated rows data.

    Args:
        fake: logits of generated rows, `(M,)`.

    Source:
        Goodfellow et al. (2014), section 3.
    """
    return softplus(-fake).mean()


def wasserstein_critic(real: Tensor, fake: Tensor) -> Tensor:
    """`mean fake - mean real`, `()`: minus an estimate of the Wasserstein-1 distance if the critic is 1-Lipschitz.

    Args:
        real: the critic at data, `(N,)`.
        fake: the critic at generated rows, `(M,)`.

    Source:
        Gulrajani et al. (2017), eq. 2.
    """
    return fake.mean() - real.mean()


def wasserstein_generator(fake: Tensor) -> Tensor:
    """`-mean fake`, `()`.

    Args:
        fake: the critic at generated rows, `(M,)`.

    Source:
        Gulrajani et al. (2017), eq. 2.
    """
    return -fake.mean()


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """`mean (|grad d(y)| - 1)^2`, `()`, at one random point y of the line between each row of data and a generated one.

    Differentiable in the parameters of the critic; the points are drawn with torch's generator.

    Args:
        critic: `(N, D)` to `(N,)`.
        real: data, `(N, D)`.
        fake: generated rows, `(N, D)`.

    Source:
        Gulrajani et al. (2017), eq. 3 and section 4.

    Example:
        >>> import torch
        >>> from girih.gan.losses import gradient_penalty
        >>> w = torch.tensor([3.0, 4.0])
        >>> gradient_penalty(lambda y: y @ w, torch.zeros(2, 2), torch.ones(2, 2))  # (5 - 1)^2
        tensor(16.)
    """
    share = torch.rand(len(real), 1, dtype=real.dtype, device=real.device)
    between = torch.lerp(real.detach(), fake.detach(), share).requires_grad_()
    values = critic(between)
    if not values.requires_grad:  # a critic that does not look at its input: a gradient of 0
        return torch.ones((), dtype=real.dtype, device=real.device)
    (gradient,) = torch.autograd.grad(values.sum(), between, create_graph=True)
    result: Tensor = (torch.linalg.vector_norm(gradient, dim=1) - 1.0).square().mean()
    return result


def check_loss_name(loss: str) -> None:
    """Refuse an unknown game.

    Raises:
        ParameterError: it is none of `LOSSES`.
    """
    if loss not in LOSSES:
        raise ParameterError(f"loss must be one of {', '.join(LOSSES)}; got {loss!r}")
