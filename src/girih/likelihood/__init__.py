"""Maximum likelihood for a `girih.DGN` by gradients: the exact NLL, its gradient by Fisher's identity, the training."""

from girih.likelihood.model import FreeCovariance, Likelihood
from girih.likelihood.train import train

__all__ = ["FreeCovariance", "Likelihood", "train"]
