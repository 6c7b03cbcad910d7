"""Piecewise-linear activations that torch does not ship as modules."""

from torch import Tensor, nn

from girih._options import whole


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


class Maxout(nn.Module):
    """The maximum of each group of consecutive features, `(..., m k) -> (..., m)` for k pieces.

    Args:
        pieces: k, the number of features in a group.

    Example:
        >>> import torch
        >>> from girih.networks import Maxout
        >>> Maxout(2)(torch.tensor([[1.0, 3.0, -2.0, -5.0]]))
        tensor([[ 3., -2.]])
    """

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = whole(pieces, "pieces")

    def forward(self, h: Tensor) -> Tensor:
        """Take the maximum of each group."""
        return h.unflatten(-1, (-1, self.pieces)).amax(-1)
