"""`Standardise` and `Whiten`: fixed affine maps of the data as first layers, so that raw tables train well."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import AffineTransform, Transform, constraints
from zuko.lazy import LazyTransform

from girih.errors import ParameterError

# A direction in which standardised data vary by less has no density that training could find.
_SMALLEST = 1e-5


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


class Whiten(LazyTransform):
    """`z = L^-1 (x - location)` with `L L^T` the covariance of the data; both are constants taken by `set_from`.

    In front of layers that begin as the identity the flow begins as the Gaussian that fits the data best, so training
    can only improve on one.

    Args:
        features: D.

    Example:
        >>> import torch
        >>> from girih.flows import Whiten
        >>> layer, x = Whiten(2), torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.5], [3.0, 2.0]])
        >>> layer.set_from(x)
        >>> torch.cov(layer()(x).mT, correction=0).round(decimals=4).abs().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    location: Tensor
    factor: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("location", torch.zeros(features))
        self.register_buffer("factor", torch.eye(features))

    def forward(self, c: Tensor | None = None) -> Transform:
        """The transform, the same for every context."""
        return _Whitening(self.location, self.factor)

    def set_from(self, x: Tensor) -> None:
        """Take mean and covariance of rows `(N, D)`.

        Raises:
            ParameterError: a column is constant: it has no density.
        """
        check_varying(x)
        self.location.copy_(x.mean(0))
        self.factor.copy_(covariance_factor(x))


class _Whitening(Transform):
    """`L^-1 (x - location)`, L lower triangular."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True
    sign = +1

    def __init__(self, location: Tensor, factor: Tensor) -> None:
        super().__init__()
        self._location, self._factor = location, factor

    def _call(self, x: Tensor) -> Tensor:
        result: Tensor = torch.linalg.solve_triangular(self._factor, (x - self._location)[..., None], upper=False)[
            ..., 0
        ]
        return result

    def _inverse(self, z: Tensor) -> Tensor:
        return z @ self._factor.mT + self._location

    def log_abs_det_jacobian(self, x: Tensor, z: Tensor) -> Tensor:
        """`-log det L` for each row."""
        return -self._factor.diagonal().log().sum().expand(x.shape[:-1])


def covariance_factor(x: Tensor) -> Tensor:
    """The Cholesky factor `(D, D)` of the covariance of rows `(N, D)`.

    With fewer than 2 D rows the correlations are shrunk by D / (N + D), and where they are still not positive definite,
    as with a column that stands there twice, they are left out: what is whitened must be resolved by the numbers.
    """
    count, features = x.shape
    scale = x.std(0, correction=0)
    unit = (x - x.mean(0)) / scale
    correlation = unit.mT @ unit / count
    share = features / (count + features) if count < 2 * features else 0.0
    eye = torch.eye(features, dtype=x.dtype, device=x.device)
    factor, info = torch.linalg.cholesky_ex(torch.lerp(correlation, eye, share))
    if int(info) or float(factor.diagonal().min()) < _SMALLEST:
        factor = eye
    result: Tensor = scale[:, None] * factor
    return result


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
