"""Fully connected networks with random initial weights: `girih.mlp`, those of the MAS paper, and with Glorot's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from girih._options import real, whole
from girih.errors import ParameterError
from girih.networks.layers import Abs


def drawn_seed() -> int:
    """A seed from torch's global generator, so that `torch.manual_seed` decides it."""
    return int(torch.randint(2**62, (), device="cpu"))


def make_generator(seed: int | None) -> torch.Generator:
    """A random generator of its own; without a seed, one that `torch.manual_seed` decides."""
    return torch.Generator().manual_seed(drawn_seed() if seed is None else whole(seed, "seed", None))


def check_dtype(dtype: torch.dtype) -> None:
    """Refuse numbers that are neither float32 nor float64.

    Raises:
        ParameterError: they are not.
    """
    if dtype not in (torch.float32, torch.float64):
        raise ParameterError(f"dtype must be torch.float32 or torch.float64; got {dtype}")


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


# Last layers start at this share of the scale that keeps the size of features: outputs begin near 0, in the middle
# of what training can reach, and not spread over several times the range of the data.
LAST = 0.1


def fc_generator(
    latent_dim: int,
    output_dim: int = 784,
    hidden: Sequence[int] = (256, 512, 1024),
    negative_slope: float = 0.1,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float64,
    seed: int | None = None,
) -> nn.Sequential:
    """The fully connected generator of appendix E, `(N, S)` to `(N, D)`: leaky ReLU layers of 256, 512, 1024 units.

    Weights are drawn as in `girih.mlp`, those of the last layer at a tenth of that scale. The paper does not give the
    slope of the leaky ReLU; it is the one of `girih.mlp`.

    Args:
        latent_dim: S.
        output_dim: D.
        hidden: widths of the hidden layers.
        negative_slope: the slope of the leaky ReLU for negative input.
        dropout: the share of units that `torch.nn.Dropout` drops after every hidden activation, in training mode;
            0 leaves these layers out.
        dtype: of the parameters, `torch.float64` or `torch.float32`.
        seed: makes the weights reproducible; without it they follow `torch.manual_seed`.

    Raises:
        ParameterError: a width below 1, a slope that is not finite, a share of dropped units that is not in [0, 1).

    Source:
        MAS, appendix E.

    Example:
        >>> from girih.networks import fc_generator
        >>> [layer.out_features for layer in fc_generator(2, seed=0) if hasattr(layer, "out_features")]
        [256, 512, 1024, 784]
    """
    shares = [dropout] * len(hidden)
    return leaky_dense([latent_dim, *hidden, output_dim], shares, negative_slope, dtype, make_generator(seed))


def fc_encoder(
    input_dim: int,
    outputs: int,
    hidden: Sequence[int] = (512, 256),
    dropout: float = 0.3,
    negative_slope: float = 0.1,
    dtype: torch.dtype = torch.float64,
    seed: int | None = None,
) -> nn.Sequential:
    """The encoder of appendix E, `(N, D)` to the parameters of q(z | x); dropout follows its first hidden layer only.

    Args:
        input_dim: D.
        outputs: numbers for each row; 2 S for `girih.vae.GaussVAE`.
        hidden: widths of the hidden layers.
        dropout: the share of units of the first hidden layer dropped in training mode; 0 leaves the layer out.
        negative_slope: the slope of the leaky ReLU for negative input.
        dtype: of the parameters, `torch.float64` or `torch.float32`.
        seed: makes the weights reproducible; without it they follow `torch.manual_seed`.

    Raises:
        ParameterError: an option is out of its domain.

    Source:
        MAS, appendix E.

    Example:
        >>> from girih.networks import fc_encoder
        >>> [type(layer).__name__ for layer in fc_encoder(784, 20)]
        ['Linear', 'LeakyReLU', 'Dropout', 'Linear', 'LeakyReLU', 'Linear']
    """
    shares = [dropout, *[0.0] * (len(hidden) - 1)]
    return leaky_dense([input_dim, *hidden, outputs], shares, negative_slope, dtype, make_generator(seed))


def fc_discriminator(
    input_dim: int,
    hidden: Sequence[int] = (1024, 512, 256),
    dropout: float = 0.3,
    negative_slope: float = 0.1,
    dtype: torch.dtype = torch.float64,
    seed: int | None = None,
) -> nn.Sequential:
    """The discriminator of appendix E, `(N, D)` to `(N, 1)`: one logit, or the value of a critic.

    The paper ends in two units, the classes of a softmax. Their probabilities depend on the difference of the two
    alone, which is the logit that this network computes.

    Args:
        input_dim: D.
        hidden: widths of the hidden layers.
        dropout: the share of units dropped after every hidden layer in training mode; 0 leaves these layers out.
        negative_slope: the slope of the leaky ReLU for negative input.
        dtype: of the parameters, `torch.float64` or `torch.float32`.
        seed: makes the weights reproducible; without it they follow `torch.manual_seed`.

    Raises:
        ParameterError: an option is out of its domain.

    Source:
        MAS, appendix E.

    Example:
        >>> from girih.networks import fc_discriminator
        >>> fc_discriminator(784)[-1]
        Linear(in_features=256, out_features=1, bias=True)
    """
    shares = [dropout] * len(hidden)
    return leaky_dense([input_dim, *hidden, 1], shares, negative_slope, dtype, make_generator(seed))


def leaky_dense(
    sizes: Sequence[int],
    dropout: Sequence[float],
    slope: float,
    dtype: torch.dtype,
    generator: torch.Generator,
    last: float = LAST,
) -> nn.Sequential:
    """Dense layers with leaky ReLU and dropout between them; `last` scales the weights of the last one."""
    sizes = [whole(size, "a width") for size in sizes]
    _check_shares(slope, dropout, dtype)
    layers: list[nn.Module] = []
    for index, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        if index:
            layers += leaky_layers(slope, dropout[index - 1])
        linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out, dtype=dtype)
        draw_normal(linear, fan_in, last if index == len(sizes) - 2 else 1.0, slope, generator)
        layers.append(linear)
    return nn.Sequential(*layers)


def draw_normal(layer: nn.Module, fan_in: float, scale: float, slope: float, generator: torch.Generator) -> None:
    """Weights from `scale * N(0, 2 / ((1 + slope^2) fan_in))`, biases from `scale * U(-1, 1) / sqrt(fan_in)`."""
    with torch.no_grad():
        for parameter in layer.parameters():
            value = torch.empty(parameter.shape, dtype=torch.float64)
            if parameter.ndim > 1:
                value.normal_(0.0, math.sqrt(2.0 / ((1.0 + slope**2) * fan_in)), generator=generator)
            else:
                value.uniform_(-1.0 / math.sqrt(fan_in), 1.0 / math.sqrt(fan_in), generator=generator)
            parameter.copy_(scale * value)


def leaky_layers(slope: float, dropout: float) -> list[nn.Module]:
    """A leaky ReLU, and dropout after it where some is asked for."""
    return [nn.LeakyReLU(slope), *([nn.Dropout(dropout)] if dropout else [])]


def _check_shares(slope: float, dropout: Sequence[float], dtype: torch.dtype) -> None:
    """Refuse options out of their domain."""
    if not math.isfinite(slope):
        raise ParameterError(f"negative_slope must be a finite number, got {slope}")
    for share in dropout:
        if real(share, "dropout", positive=False) >= 1.0:
            raise ParameterError(f"dropout must be a share of units below 1; got {share:g}")
    check_dtype(dtype)


def draw_glorot(network: nn.Module, generator: torch.Generator) -> None:
    """Draw weights from `U(-1, 1) sqrt(6 / (fan_in + fan_out))`, in place, and put biases to 0.

    The fans of a convolution count the entries of its kernel.

    Source:
        Glorot & Bengio, Understanding the difficulty of training deep feedforward neural networks (2010), eq. 16.
    """
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim < 2:
                parameter.zero_()
                continue
            fans = sum(parameter.shape[:2]) * math.prod(parameter.shape[2:])
            bound = math.sqrt(6.0 / fans)
            drawn = torch.empty(parameter.shape, dtype=torch.float64).uniform_(-bound, bound, generator=generator)
            parameter.copy_(drawn)


def dense(sizes: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> nn.Sequential:
    """Affine layers with ReLU between them, with Glorot's weights.

    Args:
        sizes: widths from input to output.
        dtype: of the parameters.
        generator: that the weights are drawn by.

    Raises:
        ParameterError: a width below 1, or numbers that are neither float32 nor float64.

    Example:
        >>> import torch
        >>> from girih.networks import dense
        >>> net = dense([2, 8, 3], torch.float32, torch.Generator().manual_seed(0))
        >>> [type(layer).__name__ for layer in net], net[0].bias.abs().sum().item()
        (['Linear', 'ReLU', 'Linear'], 0.0)
    """
    check_dtype(dtype)
    sizes = [whole(size, "a width") for size in sizes]
    layers: list[nn.Module] = []
    for index, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        layers += [nn.ReLU()] if index else []
        layers.append(nn.utils.skip_init(nn.Linear, fan_in, fan_out, dtype=dtype))
    network = nn.Sequential(*layers)
    draw_glorot(network, generator)
    return network
