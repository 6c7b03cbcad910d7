"""What a decoder gives as one latent moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from girih._arrays import as_tensor, check_finite
from girih._options import whole
from girih.errors import EmptyDataError, ParameterError, ShapeError
from girih.training import evaluating

if TYPE_CHECKING:
    from girih.vae.model import VAE


def traversed(vae: VAE, start: Any, dimension: int, values: Any, count: int) -> Tensor:
    """`VAE.traverse`: `(N, K, D)`."""
    dimension, family = whole(dimension, "dimension", 0), vae.family
    if dimension >= vae.latent_dim:
        raise ParameterError(f"dimension must be a latent from 0 to {vae.latent_dim - 1}; got {dimension}")
    with torch.no_grad(), evaluating(vae):
        z = _start(vae, start)
        if values is None:
            values = family.axis(dimension, whole(count, "count"), z.device)
        values = family.values(as_tensor(values, "values", z.device))
        if not len(values):
            raise EmptyDataError("values is empty; pass at least one value for the latent")
        check_finite(values, "values")
        moved = z[:, None].repeat(1, len(values), *(1 for _ in family.event_shape))
        moved[:, :, dimension] = values
        return vae.decode(moved.flatten(0, 1)).reshape(len(z), len(values), vae.output_dim)


def _start(vae: VAE, start: Any) -> Tensor:
    """Latents `(N, *event)`, given or those of rows."""
    event = vae.family.event_shape
    tensor = as_tensor(start, "start", vae.device)
    if tensor.shape[-len(event) :] == event and tensor.ndim in (len(event), len(event) + 1):
        check_finite(tensor, "start")
        return tensor.reshape(-1, *event)
    if tensor.ndim in (1, 2) and tensor.shape[-1] == vae.output_dim:
        return vae.family.point(vae.encode(tensor))
    raise ShapeError(
        f"start must be latents of shape (N, {', '.join(map(str, event))}) or rows of shape (N, {vae.output_dim}); got "
        f"{tuple(tensor.shape)}"
    )
