"""Models as arrays: what tables and pictures are made from."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from girih.inference import DGN

Array = NDArray[np.float64]

# Prior quantiles between which a generated curve is drawn.
_TAIL = 1e-3


def to_array(tensor: Tensor) -> Array:
    """A detached float64 copy of a tensor.

    Example:
        >>> import torch
        >>> from girih_papers.arrays import to_array
        >>> to_array(torch.ones(2, requires_grad=True))
        array([1., 1.])
    """
    return np.asarray(tensor.detach().cpu().to(torch.float64).numpy().copy())


def generate(dgn: DGN, z: Array) -> Array:
    """The values g(z), `(n, D)`, at latents `(n, S)`, or `(n,)` for S = 1."""
    with torch.no_grad():
        return to_array(dgn.trace(torch.as_tensor(z if z.ndim == 2 else z[:, None])))


def quantiles(dgn: DGN, probabilities: Array) -> Array:
    """The prior quantiles of z, `(n,)`, for S = 1.

    Example:
        >>> import girih, numpy as np
        >>> from girih_papers.arrays import quantiles
        >>> dgn = girih.DGN(girih.mlp([1, 3, 2], seed=0), noise=0.1, prior=4.0)
        >>> quantiles(dgn, np.array([0.5, 0.975])).round(2)
        array([0.  , 3.92])
    """
    return np.asarray(float(dgn.prior.detach()[0, 0]) ** 0.5 * ndtri(probabilities))


def curve_latents(dgn: DGN, count: int) -> tuple[Array, Array]:
    """Latents between the outer prior quantiles, at equal steps and at each cell limit, and the cell limits alone."""
    low, high = quantiles(dgn, np.array([_TAIL, 1.0 - _TAIL]))
    limits = to_array(dgn.partition.breakpoints)
    limits = limits[(limits > low) & (limits < high)]
    return np.unique(np.concatenate((np.linspace(low, high, count), limits))), limits
