"""Ready-made generators."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from girih._options import whole
from girih.errors import ParameterError
from girih.networks.drawing import make_generator
from girih.networks.layers import Abs

ACTIVATIONS = ("relu", "leaky_relu", "abs")


def activation_layer(activation: str, negative_slope: float = 0.1) -> nn.Module:
    """The module for an activation by name: "relu", "leaky_relu" or "abs"."""
    if activation == "relu":
        return nn.ReLU()
    if activation == "leaky_relu":
        if not math.isfinite(negative_slope):
            raise ParameterError(f"negative_slope must be a finite number, got {negative_slope}")
        return nn.LeakyReLU(negative_slope)
    if activation == "abs":
        return Abs()
    raise ParameterError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}")


def mlp(
    sizes: Sequence[int],
    activation: str = "leaky_relu",
    negative_slope: float = 0.1,
    seed: int | None = None,
) -> nn.Sequential:
    """A fully connected generator in float64: affine layers with an activation between them.

    Weights are drawn from `N(0, 2 / ((1 + slope^2) fan_in))`, which keeps the scale of the features
    through the layers, and biases from `U(-1, 1) / sqrt(fan_in)`, so that kinks lie near the prior mass.

    Args:
        sizes: widths from the latent dimension S to the data dimension D, e.g. `[1, 8, 2]`.
        activation: "relu", "leaky_relu" or "abs".
        negative_slope: the slope of a leaky ReLU for negative input.
        seed: makes the weights reproducible; without it they follow `torch.manual_seed`.

    Raises:
        ParameterError: fewer than two sizes, a size below 1, or an unknown activation.

    Example:
        >>> import girih
        >>> net = girih.mlp([1, 8, 2], activation="leaky_relu", negative_slope=0.1, seed=0)
        >>> [type(layer).__name__ for layer in net]
        ['Linear', 'LeakyReLU', 'Linear']
    """
    sizes = [whole(size, "a size", None) for size in sizes]
    if len(sizes) < 2 or min(sizes) < 1:
        raise ParameterError(f"sizes must be at least two widths of 1 or more, from S to D; got {sizes}")
    activation_layer(activation, negative_slope)  # refuses bad options even where no layer uses them
    generator = make_generator(seed)
    slope = {"relu": 0.0, "abs": 1.0}.get(activation, negative_slope)
    layers: list[nn.Module] = []
    for index, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        if index:
            layers.append(activation_layer(activation, negative_slope))
        linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.normal_(0.0, math.sqrt(2.0 / ((1.0 + slope**2) * fan_in)), generator=generator)
            linear.bias.uniform_(-1.0 / math.sqrt(fan_in), 1.0 / math.sqrt(fan_in), generator=generator)
        layers.append(linear)
    return nn.Sequential(*layers)
