"""Latents that users give, in the shape that a decoder takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from girih._arrays import as_rows, as_tensor
from girih.errors import ShapeError


def flat_latents(z: Any, event: torch.Size, device: torch.device) -> Tensor:
    """Latents `(N, *event)`, or flat ones, as checked rows in float64.

    Raises:
        ShapeError, EmptyDataError, NonFiniteError: they are no such table.

    Example:
        >>> import torch
        >>> from girih.vae.latents import flat_latents
        >>> flat_latents(torch.eye(3)[None, :2], torch.Size([2, 3]), torch.device("cpu")).shape
        torch.Size([1, 6])
    """
    tensor = as_tensor(z, "z", device)
    if len(event) > 1 and tensor.shape[-len(event) :] == event:
        tensor = tensor.reshape(-1, event.numel())
    meaning = "the latent dimension S" if len(event) == 1 else f"S * C = {' * '.join(map(str, event))}"
    return as_rows(tensor, "z", event.numel(), meaning, device=device)


def stacked_latents(z: Any, rows: int, event: torch.Size, device: torch.device) -> tuple[Tensor, torch.Size]:
    """Latents `(..., rows, *event)` or `(..., 1, *event)` as flat rows in float64, and their leading shape.

    Raises:
        ShapeError: they have another shape.
    """
    tensor = as_tensor(z, "z", device)
    lead = tensor.shape[: tensor.ndim - len(event)]
    if tensor.shape[len(lead) :] != event or not lead or lead[-1] not in (1, rows):
        wanted = ", ".join(map(str, event))
        raise ShapeError(
            f"z must have shape (..., {rows}, {wanted}) or (..., 1, {wanted}) for {rows} rows; got "
            f"{tuple(tensor.shape)}"
        )
    return tensor.reshape(lead.numel(), event.numel()), lead
