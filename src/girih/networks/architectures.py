"""The fully connected and convolutional networks that the MAS paper trains, for any size of data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from girih._options import real, whole
from girih.errors import ParameterError
from girih.networks.drawing import check_dtype, make_generator

# Last layers start at this share of the scale that keeps the size of features: outputs begin near 0, in the middle
# of what training can reach, and not spread over several times the range of the data.
_LAST = 0.1


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
    return _dense([latent_dim, *hidden, output_dim], shares, negative_slope, dtype, make_generator(seed))


def conv_generator(
    latent_dim: int,
    dtype: torch.dtype = torch.float64,
    seed: int | None = None,
    negative_slope: float = 0.1,
    dropout: float = 0.0,
) -> nn.Sequential:
    """The convolutional generator of appendix E for images of 28 x 28, `(N, S)` to `(N, 784)`.

    Dense layers of 256 and 8 * 6 * 6 units, then two convolutions of dilated images, which are transposed
    convolutions: 6 x 6 to 11 x 11 (8 filters, 3 x 3, stride 2), 11 x 11 to 28 x 28 (1 filter, 4 x 4, stride 3). The
    paper prints 8 filters for the last one too, which would make 8 * 784 numbers where its reshape takes 784.

    Args:
        latent_dim: S.
        dtype: of the parameters, `torch.float64` or `torch.float32`.
        seed: makes the weights reproducible; without it they follow `torch.manual_seed`.
        negative_slope: the slope of the leaky ReLU for negative input.
        dropout: the share of units dropped after every hidden activation in training mode.

    Raises:
        ParameterError: an option is out of its domain.

    Source:
        MAS, appendix E.

    Example:
        >>> import torch
        >>> from girih.networks import conv_generator
        >>> conv_generator(10, seed=0)(torch.zeros(3, 10, dtype=torch.float64)).shape
        torch.Size([3, 784])
    """
    generator = make_generator(seed)
    layers = list(_dense([latent_dim, 256, 8 * 6 * 6], [dropout], negative_slope, dtype, generator, last=1.0))
    first = _transposed(8, 8, 3, 2, 1, 1.0, negative_slope, dtype, generator)
    second = _transposed(8, 1, 4, 3, 3, _LAST, negative_slope, dtype, generator)
    layers += [*_activation(negative_slope, dropout), nn.Unflatten(1, (8, 6, 6)), first]
    return nn.Sequential(*layers, *_activation(negative_slope, dropout), second, nn.Flatten(1))


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
    return _dense([input_dim, *hidden, outputs], shares, negative_slope, dtype, make_generator(seed))


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
    return _dense([input_dim, *hidden, 1], shares, negative_slope, dtype, make_generator(seed))


def _dense(
    sizes: Sequence[int],
    dropout: Sequence[float],
    slope: float,
    dtype: torch.dtype,
    generator: torch.Generator,
    last: float = _LAST,
) -> nn.Sequential:
    """Dense layers with leaky ReLU and dropout between them; `last` scales the weights of the last one."""
    sizes = [whole(size, "a width") for size in sizes]
    _check(slope, dropout, dtype)
    layers: list[nn.Module] = []
    for index, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        if index:
            layers += _activation(slope, dropout[index - 1])
        linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out, dtype=dtype)
        _draw(linear, fan_in, last if index == len(sizes) - 2 else 1.0, slope, generator)
        layers.append(linear)
    return nn.Sequential(*layers)


def _transposed(
    channels: int,
    filters: int,
    kernel: int,
    stride: int,
    padding: int,
    scale: float,
    slope: float,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> nn.Module:
    """A transposed convolution; away from the borders a pixel of its output sums about `(kernel / stride)^2` pixels."""
    layer = nn.utils.skip_init(
        nn.ConvTranspose2d, channels, filters, kernel, stride=stride, padding=padding, dtype=dtype
    )
    _draw(layer, channels * (kernel / stride) ** 2, scale, slope, generator)
    return layer


def _draw(layer: nn.Module, fan_in: float, scale: float, slope: float, generator: torch.Generator) -> None:
    """Weights from `scale * N(0, 2 / ((1 + slope^2) fan_in))`, biases from `scale * U(-1, 1) / sqrt(fan_in)`."""
    with torch.no_grad():
        for parameter in layer.parameters():
            value = torch.empty(parameter.shape, dtype=torch.float64)
            if parameter.ndim > 1:
                value.normal_(0.0, math.sqrt(2.0 / ((1.0 + slope**2) * fan_in)), generator=generator)
            else:
                value.uniform_(-1.0 / math.sqrt(fan_in), 1.0 / math.sqrt(fan_in), generator=generator)
            parameter.copy_(scale * value)


def _activation(slope: float, dropout: float) -> list[nn.Module]:
    return [nn.LeakyReLU(slope), *([nn.Dropout(dropout)] if dropout else [])]


def _check(slope: float, dropout: Sequence[float], dtype: torch.dtype) -> None:
    """Refuse options out of their domain."""
    if not math.isfinite(slope):
        raise ParameterError(f"negative_slope must be a finite number, got {slope}")
    for share in dropout:
        if real(share, "dropout", positive=False) >= 1.0:
            raise ParameterError(f"dropout must be a share of units below 1; got {share:g}")
    check_dtype(dtype)
