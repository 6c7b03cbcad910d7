"""Training has to know these things of a generator, whether or not it is piecewise affine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from girih._options import whole
from girih.errors import ParameterError, ShapeError, UnsupportedLayerError
from girih.networks import trace


class Dimensions(NamedTuple):
    """They say what a generator takes and gives."""

    latent_dim: int  # S
    output_dim: int  # D
    dtype: torch.dtype
    device: torch.device


def dimensions(generator: nn.Module, latent_dim: int | None = None, name: str = "generator") -> Dimensions:
    """The dimensions, the type and the device of a generator: traced, or with `latent_dim` by trying it.

    Args:
        generator: `(N, S)` to `(N, D)`, or to images, which are flattened.
        latent_dim: S, for a generator that `girih.trace` does not read.
        name: what errors call it.

    Raises:
        UnsupportedLayerError: it is not piecewise affine, and `latent_dim` is not given.
        ShapeError: it does not take S numbers or does not give rows.
        ParameterError: its parameters are not all float32 or all float64.

    Example:
        >>> import girih
        >>> from girih.training.generators import dimensions
        >>> dimensions(girih.mlp([2, 8, 5]))[:2]
        (2, 5)
    """
    if not isinstance(generator, nn.Module):
        raise ParameterError(f"the {name} must be a torch.nn.Module; got {type(generator).__name__}")
    dtype, device = number_type(generator, name)
    if latent_dim is None:
        try:
            with evaluating(generator):
                latent_dim = trace(generator).latent_dim
        except UnsupportedLayerError as error:
            raise UnsupportedLayerError(
                f"{error}; to train a {name} that is not piecewise affine, pass latent_dim="
            ) from error
    latent_dim = whole(latent_dim, "latent_dim")
    values = tried(
        generator, name, f"z of shape (N, {latent_dim})", "the latent dimension S", latent_dim, dtype, device
    )
    shape = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
    if not isinstance(values, torch.Tensor) or values.ndim < 2 or len(values) != 2 or not values.numel():
        raise ShapeError(f"the {name} gives {shape} for 2 latents; it must give one row, or one image, for each")
    return Dimensions(latent_dim, values[0].numel(), dtype, device)


def tried(
    network: nn.Module, name: str, takes: str, meaning: str, columns: int, dtype: torch.dtype, device: torch.device
) -> object:
    """Try a network on two rows of 0, in evaluation mode: a trial must not move running statistics.

    Args:
        network: it takes `(N, columns)`.
        name: what errors call it.
        takes: its input, in words.
        meaning: what the columns are.
        columns: their number.
        dtype: of the input.
        device: of the input.

    Raises:
        ShapeError: the network does not accept such rows.
    """
    try:
        with evaluating(network), torch.no_grad():
            return network(torch.zeros(2, columns, dtype=dtype, device=device))
    except (RuntimeError, ValueError) as error:
        raise ShapeError(
            f"the {name} does not accept {takes} ({error}); its input must be {meaning} = {columns}"
        ) from error


def number_type(network: nn.Module, name: str) -> tuple[torch.dtype, torch.device]:
    """The type and the device of the parameters of a network; float64 on the CPU if it has none.

    Raises:
        ParameterError: they are of several types, or neither float32 nor float64.
    """
    found: dict[torch.dtype, str] = {}
    for path, parameter in network.named_parameters():
        found.setdefault(parameter.dtype, path)
    if not found:
        return torch.float64, torch.device("cpu")
    if len(found) > 1 or next(iter(found)) not in (torch.float32, torch.float64):
        listed = ", ".join(f"{str(dtype).removeprefix('torch.')} (first '{path}')" for dtype, path in found.items())
        raise ParameterError(
            f"the {name} has parameters in {listed}; they must all be float64, or all float32: call {name}.double()"
        )
    return next(iter(found)), next(network.parameters()).device


def type_of(*networks: nn.Module) -> torch.dtype:
    """The type of the first parameter of the networks; float64 if they have none."""
    return next((p.dtype for network in networks for p in network.parameters()), torch.float64)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the duration: no dropout, and no running statistics moved; then each part's own mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
