"""What the distributions of the family have in common: checks of coefficients, and shapes of draws."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from girih._arrays import as_tensor, check_finite
from girih._options import real
from girih.errors import ParameterError, ShapeError


def as_coefficients(coefficients: Any) -> Tensor:
    """Finite coefficients `(..., M)` in float64, M of at least 1; gradients are kept.

    Raises:
        ShapeError, ParameterError, NonFiniteError.
    """
    tensor = as_tensor(coefficients, "coefficients")
    if tensor.ndim == 0:
        raise ShapeError("coefficients must have shape (..., M), one number for each degree; got a single number")
    if tensor.shape[-1] == 0:
        raise ParameterError("the order M must be 1 or more; got coefficients of shape " + str(tuple(tensor.shape)))
    check_finite(tensor.detach(), "coefficients")
    return tensor


def check_order(order: int, levels: int) -> None:
    """Refuse as many coefficients as a table of all R probabilities has, or more: they would be redundant.

    Raises:
        ParameterError: M >= R - 1.

    Source:
        Coarse Grained Exponential VAEs, section 3.3.
    """
    if order >= levels - 1:
        raise ParameterError(
            f"the order M = {order} must be below R - 1 = {levels - 1}: on R = {levels} levels, R - 1 numbers describe "
            f"every distribution; lower the order to {levels - 2} or less, or take more levels"
        )


def as_temperature(temperature: Any) -> float:
    """A positive, finite temperature.

    Raises:
        ParameterError: it is not one.
    """
    if isinstance(temperature, Tensor) and temperature.numel() == 1:
        temperature = temperature.item()
    return real(temperature, "temperature")
