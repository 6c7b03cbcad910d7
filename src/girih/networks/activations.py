"""Piecewise-linear activations that torch does not ship as modules."""

from torch import Tensor, nn


class Abs(nn.Module):
    """The absolute value as a layer, `h -> |h|`.

    Example:
        >>> import torch
        >>> from girih.networks import Abs
        >>> Abs()(torch.tensor([-2.0, 3.0]))
        tensor([2., 3.])
    """

    def forward(self, h: Tensor) -> Tensor:
        """Apply the absolute value to each entry."""
        return h.abs()
