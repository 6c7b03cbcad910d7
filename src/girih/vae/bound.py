"""Training with the lower bound of term 1 that a free prior reaches, instead of term 1: Theorem 2 in use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from girih.errors import ParameterError
from girih.training import Recorder, evaluating
from girih.vae.posteriors import BPEFPosterior

if TYPE_CHECKING:
    from girih.vae.information import ExponentialFamily
    from girih.vae.model import VAE

# Rows of one forward pass.
_CHUNK = 10_000


class FreePrior:
    """The lower bound of term 1 over a batch, and the prior that reaches it.

    Args:
        vae: with a learned prior of the family of its posteriors.

    Raises:
        ParameterError: it has no such prior.

    Source:
        CG-BPEF, Theorem 2 and the remark after it.
    """

    def __init__(self, vae: VAE) -> None:
        from girih.vae.information import CoarseFamily, Product

        posterior = vae.family
        if not isinstance(posterior, BPEFPosterior) or not isinstance(posterior.prior_coefficients, nn.Parameter):
            raise ParameterError(
                f"divergence='bound' needs a prior that is learned, and that of this {type(vae).__name__} is fixed; "
                "use CGBPEFVAE with learn_prior=True, or divergence='prior'"
            )
        self._shape = posterior.prior_coefficients.shape
        single = CoarseFamily(posterior.order, posterior.levels, posterior.basis)
        self._family: ExponentialFamily = Product(single, posterior.latent_dim)

    def bound(self, encoded: Tensor) -> Tensor:
        """Eq. 5 of a batch, nats per row, `()`, of what the encoder gave."""
        from girih.vae.information import compactness

        natural = self._natural(encoded)
        return compactness(self._family, natural, natural.detach().mean(0)).to(encoded.device)

    def settle(self, vae: VAE, rows: Tensor) -> None:
        """Set the prior to the Bregman centroid of the posteriors of rows, in evaluation mode."""
        assert isinstance(vae.family, BPEFPosterior)
        with torch.no_grad(), evaluating(vae):
            parts = rows.split(_CHUNK)
            sums = [self._family.moments(self._natural(vae.encoded(part))).sum(0) for part in parts]
            coefficients = vae.family.prior_coefficients
            moments = torch.stack(sums).sum(0) / len(rows)
            coefficients.copy_(self._family.natural(moments, coefficients.double().cpu()))

    def _natural(self, encoded: Tensor) -> Tensor:
        return encoded.double().cpu().reshape(-1, *self._shape)  # the family's tables are there


class CentroidRecorder(Recorder):
    """Sets the prior before another recorder measures; the training does not see it.

    Args:
        inner: the other recorder, which also says how often.
        prior: what sets it.
        rows: the training rows, in the type of the model.
    """

    def __init__(self, inner: Recorder, prior: FreePrior, rows: Tensor) -> None:
        super().__init__(every=inner.every)
        self._inner, self._prior, self._rows = inner, prior, rows

    def measure(self, model: Any) -> Mapping[str, float]:
        """The numbers of the other recorder."""
        self._prior.settle(model, self._rows.to(model.device))
        return self._inner.measure(model)
