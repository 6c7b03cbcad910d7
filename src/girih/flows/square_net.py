"""A bijective generator to start from: square leaky ReLU layers that are affine together, on the scale of the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from girih._arrays import as_rows
from girih._options import real, whole
from girih.errors import ParameterError
from girih.flows.scaling import check_varying

_KINKS = 1.5  # in deviations of z: kinks start within so many of the mean
_BREAK = 1e-2  # random changes of the weights, which tell the two layers of a pair apart


def square_net(dim: int, depth: int = 8, negative_slope: float = 0.5, seed: int = 0, data: Any = None) -> nn.Sequential:
    r"""A chain of `2 depth` leaky ReLU layers of width `dim` between square Linear layers: a bijection.

    It starts near `g(z) = mean + L z` with the mean and covariance `L L^T` of the data, a Gaussian density. Each pair
    of activations undoes itself, `f^-1(h) = -f(-h) / slope`, about a rotation and a bias of its own, which spread the
    kinks; training takes the pairs apart. (A random chain is a bad start: slopes multiply, and its inverse explodes.)

    Args:
        dim: S = D.
        depth: pairs of activations; each adds `2 dim` kinks.
        negative_slope: between 0 and 1, smaller for sharper kinks.
        seed: of the weights; the global random state is left alone.
        data: `(N, D)` rows to take mean and covariance from; by default 0 and the identity.

    Raises:
        ParameterError: a size below 1, a slope outside (0, 1), or data that lie in a hyperplane.
        ShapeError, NonFiniteError, EmptyDataError: data that are not a table of finite numbers with `dim` columns.

    Source:
        MAS, appendix C.

    Example:
        >>> from girih.flows import square_net
        >>> net = square_net(2, depth=3, seed=0)
        >>> [type(layer).__name__ for layer in net[:3]], len(net)
        (['Linear', 'LeakyReLU', 'Linear'], 13)
    """
    dim, depth, slope = whole(dim, "dim"), whole(depth, "depth", 0), real(negative_slope, "negative_slope")
    if not slope < 1.0:
        raise ParameterError(f"negative_slope must be between 0 and 1, got {slope:g}")
    generator = torch.Generator().manual_seed(whole(seed, "seed", None))
    mean, factor = torch.zeros(dim, dtype=torch.float64), torch.eye(dim, dtype=torch.float64)
    if data is not None:
        mean, factor = _moments(as_rows(data, "data", dim, "dim").detach().cpu())
    W, v = torch.eye(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)  # from features to z
    layers: list[nn.Module] = []
    for _ in range(depth):
        rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
        bias = _KINKS * (2.0 * torch.rand(dim, generator=generator, dtype=torch.float64) - 1.0)
        layers += [_linear(rotation @ W, rotation @ v + bias, generator), nn.LeakyReLU(slope)]
        layers += [_linear(-torch.eye(dim, dtype=torch.float64), torch.zeros_like(bias), generator)]
        layers += [nn.LeakyReLU(slope)]
        W, v = -rotation.mT / slope, -rotation.mT @ bias
    layers.append(_linear(factor @ W, factor @ v + mean, None))
    return nn.Sequential(*layers)


def _linear(weight: Tensor, bias: Tensor, generator: torch.Generator | None) -> nn.Linear:
    out = nn.utils.skip_init(nn.Linear, len(weight), len(weight), dtype=torch.float64)
    with torch.no_grad():
        out.weight.copy_(weight)
        out.bias.copy_(bias)
        if generator is not None:
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            out.weight += _BREAK * noise * weight.abs().amax() / len(weight) ** 0.5
    return out


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and a Cholesky factor of the covariance."""
    check_varying(rows)
    mean = rows.mean(0)
    off = rows - mean
    covariance = off.mT @ off / len(rows)
    size = covariance.diagonal().sqrt()
    factor, info = torch.linalg.cholesky_ex(covariance / size[:, None] / size)
    if int(info) or float(factor.diagonal().min()) < 1e-7:
        raise ParameterError(
            f"the {len(rows)} rows of data lie in a hyperplane or nearly so, and have no density; remove columns that "
            "depend on others, or pass more rows"
        )
    return mean, size[:, None] * factor
