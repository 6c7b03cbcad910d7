"""The networks of appendix E: their shapes, their convolutions written out, their initial scale, tracing."""

import numpy as np
import pytest
import torch
from torch import nn

import girih
from girih.errors import ParameterError, UnsupportedLayerError
from girih.networks import conv_generator, fc_discriminator, fc_encoder, fc_generator


def widths(net):
    return [layer.out_features for layer in net if isinstance(layer, nn.Linear)]


def dropped(net):
    """After which dense layers units are dropped, counted from 1."""
    kinds = [type(layer).__name__ for layer in net]
    return [kinds[:index].count("Linear") for index, kind in enumerate(kinds) if kind == "Dropout"]


def test_widths_and_dropout_are_those_of_the_paper():
    assert widths(fc_generator(7)) == [256, 512, 1024, 784] and dropped(fc_generator(7)) == []
    assert widths(conv_generator(7)) == [256, 288]
    assert widths(fc_encoder(784, 14)) == [512, 256, 14] and dropped(fc_encoder(784, 14)) == [1]
    assert widths(fc_discriminator(784)) == [1024, 512, 256, 1] and dropped(fc_discriminator(784)) == [1, 2, 3]
    assert dropped(fc_generator(2, dropout=0.3)) == [1, 2, 3]
    noisy = conv_generator(2, dropout=0.3)
    assert [type(layer).__name__ for layer in noisy].count("Dropout") == 3


def dilated_convolution(image, kernel, bias, dilation, padding):
    """The paper's convolution by loops: zeros between the pixels, zeros around them, then a correlation."""
    channels, size, _ = image.shape
    wide = np.zeros((channels, *[dilation * (size - 1) + 1 + 2 * padding] * 2))
    wide[:, padding : wide.shape[1] - padding : dilation, padding : wide.shape[1] - padding : dilation] = image
    filters, _, side, _ = kernel.shape
    out = wide.shape[1] - side + 1
    result = np.zeros((filters, out, out))
    for row in range(out):
        for column in range(out):
            patch = wide[:, row : row + side, column : column + side]
            result[:, row, column] = (kernel * patch).sum((1, 2, 3)) + bias
    return result


def test_the_convolutions_are_those_of_dilated_images():
    net = conv_generator(3, seed=0)
    z = torch.randn(1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        image = net[:5](z)[0].numpy()
        assert image.shape == (8, 6, 6)
        for layer, dilation, padding, size in ((net[5], 2, 1, 11), (net[7], 3, 0, 28)):
            # torch stores the kernel of a transposed convolution as (in, out), reflected
            kernel = layer.weight.flip(2, 3).transpose(0, 1).numpy()
            image = dilated_convolution(image, kernel, layer.bias.numpy(), dilation, padding)
            assert image.shape[1:] == (size, size)
            if size == 11:  # "same": the size of the dilated image
                image = np.where(image > 0, image, 0.1 * image)
        np.testing.assert_allclose(net(z)[0].numpy(), image.reshape(784), atol=1e-12)


@pytest.mark.parametrize("make", [fc_generator, conv_generator])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_generators_can_be_traced(make, dtype):
    net = make(4, dtype=dtype, seed=0)
    traced = girih.trace(net)
    assert (traced.latent_dim, traced.output_dim) == (4, 784)
    assert traced.hidden_units == (1792 if make is fc_generator else 256 + 288 + 8 * 11 * 11)
    with pytest.raises(UnsupportedLayerError, match=r"Dropout in training mode; call net.eval\(\)"):
        girih.trace(make(4, dropout=0.1))
    z = torch.zeros(1, 4, dtype=dtype)
    net = make(4, dropout=0.1, dtype=dtype, seed=0).eval()
    torch.testing.assert_close(girih.trace(net)(z.double()).to(dtype), net(z), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [fc_generator, conv_generator])
def test_features_keep_their_scale_and_outputs_start_near_zero(make):
    net, scales = make(16, seed=0), []
    for layer in net:
        layer.register_forward_hook(lambda module, inputs, output: scales.append(output.square().mean().sqrt().item()))
    values = net(torch.randn(500, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    assert all(0.5 < scale < 2.5 for scale in scales[:-2])
    assert 0.03 < values.square().mean().sqrt() < 0.3


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: fc_generator(2, 5, (8,), **options),
        lambda **options: conv_generator(2, **options),
        lambda **options: fc_encoder(5, 4, (8, 8), **options),
        lambda **options: fc_discriminator(5, (8,), **options),
    ],
)
def test_weights_are_of_the_seed_alone(make):
    before = torch.get_rng_state()
    first, second, other, single = make(seed=1), make(seed=1), make(seed=2), make(seed=1, dtype=torch.float32)
    assert torch.equal(torch.get_rng_state(), before)
    for a, b, c, d in zip(*(net.parameters() for net in (first, second, other, single)), strict=True):
        assert torch.equal(a, b) and not torch.equal(a, c) and torch.equal(a.float(), d)
    for options in ({"dropout": 1.0}, {"dropout": -0.1}, {"negative_slope": float("nan")}, {"dtype": torch.float16}):
        with pytest.raises(ParameterError):
            make(**options)
    with pytest.raises(ParameterError, match="seed"):
        make(seed=0.5)


def test_bad_widths_are_refused():
    for bad in (lambda: fc_generator(0), lambda: fc_generator(2, hidden=(3.5,)), lambda: fc_encoder(4, 0)):
        with pytest.raises(ParameterError, match="a width must be a whole number"):
            bad()
