"""The convolutional networks of the MAS and CG-BPEF papers."""

from __future__ import annotations

import torch
from torch import nn

from girih._options import whole
from girih.networks.fully_connected import (
    LAST,
    check_dtype,
    draw_glorot,
    draw_normal,
    leaky_dense,
    leaky_layers,
    make_generator,
)


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
    layers = list(leaky_dense([latent_dim, 256, 8 * 6 * 6], [dropout], negative_slope, dtype, generator, last=1.0))
    first = _transposed(8, 8, 3, 2, 1, 1.0, negative_slope, dtype, generator)
    second = _transposed(8, 1, 4, 3, 3, LAST, negative_slope, dtype, generator)
    layers += [*leaky_layers(negative_slope, dropout), nn.Unflatten(1, (8, 6, 6)), first]
    return nn.Sequential(*layers, *leaky_layers(negative_slope, dropout), second, nn.Flatten(1))


def svhn_encoder(outputs: int, dtype: torch.dtype = torch.float64, seed: int | None = None) -> nn.Sequential:
    """The convolutional encoder of appendix E for grey images of 32 x 32, `(N, 1024)` to `(N, outputs)`.

    Convolutions of 32, 64 and 128 filters of 5 x 5 with ReLU, and 2 x 2 pooling after the first two, which gives 128
    features; then a dense layer. The paper does not say which pooling: this takes maxima.

    Args:
        outputs: numbers for each row: 2 S for `girih.vae.GaussVAE`, S * C for `CatVAE`, S * M for `CGBPEFVAE`.
        dtype: of the parameters, `torch.float64` or `torch.float32`.
        seed: makes the weights reproducible; without it they follow `torch.manual_seed`.

    Raises:
        ParameterError: an option is out of its domain.

    Source:
        CG-BPEF, appendix E and section 4; weights as Glorot & Bengio (2010).

    Example:
        >>> import torch
        >>> from girih.networks import svhn_encoder
        >>> svhn_encoder(60, torch.float32, seed=0)(torch.zeros(3, 1024)).shape
        torch.Size([3, 60])
    """
    check_dtype(dtype)
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 32, 32))]
    for channels, filters in ((1, 32), (32, 64), (64, 128)):
        layers += [nn.utils.skip_init(nn.Conv2d, channels, filters, 5, dtype=dtype), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if filters < 128 else [nn.Flatten(1)]
    layers.append(nn.utils.skip_init(nn.Linear, 128, whole(outputs, "outputs"), dtype=dtype))
    network = nn.Sequential(*layers)
    draw_glorot(network, make_generator(seed))
    return network


def svhn_decoder(inputs: int, dtype: torch.dtype = torch.float64, seed: int | None = None) -> nn.Sequential:
    """The convolutional decoder of appendix E, `(N, inputs)` to grey images of 32 x 32 as rows `(N, 1024)`.

    A dense layer of 128 units with ReLU, then transposed convolutions of 64, 32, 16 filters with ReLU and 1 without,
    5 x 5 each, with strides 4, 2, 2, 2: images of 4 x 4, 8 x 8, 16 x 16, 32 x 32. One border of each is cut so that
    the size is the stride times that of the input, as the printed sizes ask.

    Args:
        inputs: the latent dimension S; S * C for `girih.vae.CatVAE`.
        dtype: of the parameters, `torch.float64` or `torch.float32`.
        seed: makes the weights reproducible; without it they follow `torch.manual_seed`.

    Raises:
        ParameterError: an option is out of its domain.

    Source:
        CG-BPEF, appendix E; weights as Glorot & Bengio (2010).

    Example:
        >>> import torch
        >>> from girih.networks import svhn_decoder
        >>> svhn_decoder(20, torch.float32, seed=0)(torch.zeros(3, 20)).shape
        torch.Size([3, 1024])
    """
    check_dtype(dtype)
    layers: list[nn.Module] = [nn.utils.skip_init(nn.Linear, whole(inputs, "inputs"), 128, dtype=dtype), nn.ReLU()]
    layers.append(nn.Unflatten(1, (128, 1, 1)))
    for channels, filters, stride in ((128, 64, 4), (64, 32, 2), (32, 16, 2), (16, 1, 2)):
        # (m - 1) stride - 2 padding + 5 + output_padding = m stride
        padding = 1 if stride == 4 else 2
        layers.append(
            nn.utils.skip_init(
                nn.ConvTranspose2d,
                channels,
                filters,
                5,
                stride=stride,
                padding=padding,
                output_padding=1,
                dtype=dtype,
            )
        )
        layers.append(nn.ReLU() if filters > 1 else nn.Flatten(1))
    network = nn.Sequential(*layers)
    draw_glorot(network, make_generator(seed))
    return network


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
    layer: nn.ConvTranspose2d = nn.utils.skip_init(
        nn.ConvTranspose2d, channels, filters, kernel, stride=stride, padding=padding, dtype=dtype
    )
    draw_normal(layer, channels * (kernel / stride) ** 2, scale, slope, generator)
    return layer
