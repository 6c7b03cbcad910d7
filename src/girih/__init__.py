"""girih: exact probability for piecewise-affine generative networks."""

from girih.inference import DGN, Posterior
from girih.networks import mlp, trace
from girih.partition import Partition

__all__ = ["DGN", "Partition", "Posterior", "mlp", "trace"]
__version__ = "0.1.0"
