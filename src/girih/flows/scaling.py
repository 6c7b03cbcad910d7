"""`Standardise`: a fixed scaling of the data as the first layer of a flow, so that raw tables train well."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import AffineTransform, Transform
from zuko.lazy import LazyTransform

from girih.errors import ParameterError


class Standardise(LazyTransform):
    """`z = (x - location) / scale`; both are constants, 0 and 1 until `set_from` takes them from data.

    Args:
        features: D.

    Example:
        >>> import torch
        >>> from girih.flows import Standardise
        >>> layer = Standardise(1)
        >>> layer.set_from(torch.tensor([[1.0], [5.0]]))
        >>> layer()(torch.tensor([[5.0]])).item()
        1.0
    """

    location: Tensor
    scale: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("location", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))

    def forward(self, c: Tensor | None = None) -> Transform:
        """The transform, the same for every context."""
        return AffineTransform(self.location, self.scale).inv

    def set_from(self, x: Tensor) -> None:
        """Take mean and standard deviation of rows `(N, D)`.

        Raises:
            ParameterError: a column is constant: it has no density.
        """
        check_varying(x)
        scale, location = torch.std_mean(x, 0, correction=0)
        self.location.copy_(location)
        self.scale.copy_(scale)


def check_varying(x: Tensor) -> None:
    """Refuse rows `(N, D)` with a constant column, which has no density: its likelihood is unbounded.

    Raises:
        ParameterError: a column is constant.
    """
    constant = (x == x[:1]).all(0)
    if constant.any():
        column = int(constant.nonzero()[0])
        rows = "there is only one row" if len(x) == 1 else f"all {len(x)} rows have the value {x[0, column].item():g}"
        raise ParameterError(
            f"column {column} of X does not vary ({rows}), so it has no density and the likelihood has no maximum; "
            "remove the column, or pass more rows"
        )
