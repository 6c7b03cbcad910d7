"""The terms of the bounds of a VAE, by name."""

from typing import NamedTuple

from torch import Tensor


class FreeEnergy(NamedTuple):
    """The two terms of a free energy, nats per row; their sum bounds `-log p(x)` from above on average."""

    divergence: Tensor  # (N,) KL(q(z | x) || p(z)), term 1
    reconstruction: Tensor  # (N,) estimate of -E_q[log p(x | z)], term 2

    @property
    def total(self) -> Tensor:
        """Their sum, `(N,)`: the negative ELBO, to be minimised."""
        return self.divergence + self.reconstruction


class ExactBound(NamedTuple):
    """How far a VAE is from its own likelihood, nats per row, without sampling: `-nll = elbo + kl`."""

    nll: Tensor  # (N,) -log p(x)
    elbo: Tensor  # (N,)
    kl: Tensor  # (N,) KL(q(z | x) || p(z | x))
