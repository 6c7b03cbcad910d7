"""The part of the latent space that a partition covers, as half-spaces."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch

from girih._arrays import as_tensor, check_finite
from girih.errors import ParameterError, ShapeError
from girih.partition.memory import Array


def interval(domain: object) -> tuple[float, float]:
    """The ends of a domain for S = 1."""
    if domain is None:
        return (-math.inf, math.inf)
    ends = as_tensor(domain, "domain")
    if ends.numel() != 2:
        raise ShapeError(f"domain must be (low, high) for S = 1, got shape {tuple(ends.shape)}")
    check_finite(torch.where(torch.isinf(ends), 0.0, ends), "domain")
    low, high = ends.reshape(-1).tolist()
    if not low < high:
        raise ParameterError(f"domain must have low < high, got ({low}, {high})")
    return low, high


def halfspaces(domain: object, dim: int) -> tuple[Array, Array] | None:
    """The half-spaces `H z <= h` of a domain for S >= 2.

    Args:
        domain: `None`; `(low, high)`, numbers or `(S,)` each, some of them infinite; or `(H, h)` with
            shapes `(K, S)` and `(K,)`.
        dim: S.
    """
    if domain is None:
        return None
    try:
        given, other = cast("Iterable[object]", domain)
    except (TypeError, ValueError):
        raise ShapeError(
            f"domain must be None, (low, high) or (H, h) with H z <= h, for S = {dim}; got {type(domain).__name__}"
        ) from None
    first, second = as_tensor(given, "domain"), as_tensor(other, "domain")
    if first.ndim == 2:
        if first.shape[1] != dim or second.shape != (len(first),):
            raise ShapeError(
                f"domain=(H, h) must have shapes (K, {dim}) and (K,); got {tuple(first.shape)} and "
                f"{tuple(second.shape)}"
            )
        check_finite(first, "H of the domain")
        check_finite(second, "h of the domain")
        if not (first.abs().amax(1) > 0).all():
            raise ParameterError("a row of H in domain=(H, h) is 0; every half-space needs a normal")
        return first.cpu().numpy(), second.cpu().numpy()
    if first.ndim > 1 or second.ndim > 1 or first.numel() not in (1, dim) or second.numel() not in (1, dim):
        raise ShapeError(
            f"domain=(low, high) must hold numbers or {dim} values each; got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    low, high = first.reshape(-1).expand(dim), second.reshape(-1).expand(dim)
    check_finite(torch.where(torch.isinf(low), 0.0, low), "domain")
    check_finite(torch.where(torch.isinf(high), 0.0, high), "domain")
    if not (low < high).all():
        raise ParameterError(f"domain must have low < high in each coordinate, got {low.tolist()} and {high.tolist()}")
    eye = torch.eye(dim, dtype=torch.float64)
    H, h = torch.cat((eye, -eye)), torch.cat((high, -low)).cpu()
    bounded = torch.isfinite(h)
    return (H[bounded].numpy(), h[bounded].numpy()) if bounded.any() else None
