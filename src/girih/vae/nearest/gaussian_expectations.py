r"""Expectations of `log p(x, z)` under Gaussians over z, with their gradients: what a best Gaussian is found by.

On a cell `log p(x, z) = h(z)` is a quadratic, and h is continuous across cells, so with `z = m + F u`, u standard
normal,

    d E[h] / d m = E[grad h(z)],        d E[h] / d F = E[grad h(z) u^T],

need no more than the mass and two moments of u on each cell, as the expectation itself does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from girih.inference import DGN
from girih.inference.model import Expected, reduce_complete

_ENTRIES = 2**22


class Joint:
    """`log p(x_n, z)` of N rows under a `DGN` whose prior is `N(0, I)`, ready to be averaged over Gaussians.

    Args:
        dgn: the decoder as an exact density model.
        x: complete rows `(N, D)`.

    Example:
        >>> import girih, torch
        >>> from girih.vae.nearest.gaussian_expectations import Joint
        >>> dgn = girih.DGN(girih.mlp([1, 8, 2], seed=0), noise=0.1)
        >>> x, one = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
        >>> q = torch.distributions.Normal(one, one)
        >>> value = Joint(dgn, x).expect(torch.tensor([0]), one, one[:, :, None]).value
        >>> bool((value + 1.4189385332046727 - dgn.elbo(x, q)).abs() < 1e-10)
        True
    """

    def __init__(self, dgn: DGN, x: Tensor) -> None:
        model = dgn.model()
        self._cells = len(model.cells.origin)
        self._average = model.cells.region.average(model, reduce_complete(model, x))

    def expect(self, row: Tensor, mean: Tensor, factor: Tensor) -> Expected:
        """Those under `N(mean, factor factor^T)`, `(B, S)` and `(B, S, S)`, each for the row `(B,)` named."""
        size = max(1, _ENTRIES // self._cells)
        parts = [self._average(row[i], mean[i], factor[i]) for i in torch.arange(len(row)).split(size)]
        return parts[0] if len(parts) == 1 else Expected(*(torch.cat(column) for column in zip(*parts, strict=True)))
