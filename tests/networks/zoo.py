"""Networks with one latent layer of each kind that a trace supports, in float64 and eval mode."""

import torch
import torch.nn.functional as F
from torch import nn

from girih.networks import Abs, Maxout


class Of(nn.Module):
    """A Linear layer to a picture (2, 4, 4), a function, and nothing else."""

    def __init__(self, function, shape=(2, 4, 4), **layers) -> None:
        super().__init__()
        self.start = nn.Sequential(nn.Linear(3, torch.Size(shape).numel()), nn.Unflatten(1, shape))
        self.function = function
        self.shift = nn.Parameter(torch.randn(shape[-1]))
        self.register_buffer("scale", torch.randn(shape[-1]))
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, z):
        return self.function(self, self.start(z))


def picture(*layers, shape=(2, 4, 4)):
    """Layers on a picture, or a line where the shape has two numbers."""
    return nn.Sequential(nn.Linear(3, torch.Size(shape).numel()), nn.Unflatten(1, shape), *layers)


def line(*layers):
    return picture(*layers, shape=(2, 9))


def flat(*layers):
    return nn.Sequential(nn.Linear(3, 6), *layers, nn.Linear(6, 4))


def normalised(layer):
    with torch.no_grad():
        for tensor in (layer.running_mean, layer.running_var, layer.weight, layer.bias):
            tensor.copy_(torch.rand_like(tensor) + 0.2)
    return layer


def residual():
    return Of(
        lambda m, h: torch.relu(m.b(torch.relu(m.a(h))) + h),
        a=nn.Conv2d(2, 3, 3, padding=1),
        b=nn.Conv2d(3, 2, 3, padding=1),
    )


def decoder():
    return nn.Sequential(
        nn.Linear(3, 8),
        nn.ReLU(),
        nn.Unflatten(1, (2, 2, 2)),
        nn.ConvTranspose2d(2, 3, 4, stride=2, padding=1),
        normalised(nn.BatchNorm2d(3)),
        nn.LeakyReLU(0.2),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Conv2d(3, 1, 3, padding=1),
        nn.Hardsigmoid(),
    )


NETS = {
    "conv1d": lambda: line(nn.Conv1d(2, 4, 3, stride=2, padding=1, groups=2), nn.ReLU()),
    "conv1d dilation": lambda: line(nn.Conv1d(2, 3, 2, dilation=3, bias=False)),
    "conv2d": lambda: picture(nn.Conv2d(2, 3, (2, 3), stride=(1, 2), padding=(0, 1)), nn.ReLU(), nn.Flatten()),
    "conv2d same": lambda: picture(nn.Conv2d(2, 3, 3, padding="same", dilation=2)),
    "conv2d reflect": lambda: picture(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")),
    "conv2d circular": lambda: picture(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")),
    "convtranspose1d": lambda: line(nn.ConvTranspose1d(2, 2, 3, stride=2, padding=1, output_padding=1, groups=2)),
    "convtranspose2d": lambda: picture(nn.ConvTranspose2d(2, 3, 3, stride=2, dilation=2, output_padding=1), nn.ReLU()),
    "batchnorm1d": lambda: flat(normalised(nn.BatchNorm1d(6)), nn.ReLU()),
    "batchnorm1d line": lambda: line(normalised(nn.BatchNorm1d(2))),
    "batchnorm2d": lambda: picture(normalised(nn.BatchNorm2d(2)), nn.ReLU()),
    "batchnorm plain": lambda: picture(nn.BatchNorm2d(2, affine=False)),
    "avgpool1d": lambda: line(nn.AvgPool1d(3, 2, 1)),
    "avgpool2d": lambda: picture(nn.AvgPool2d(2, ceil_mode=True, padding=1, count_include_pad=False)),
    "adaptive avgpool": lambda: picture(nn.AdaptiveAvgPool2d(3)),
    "upsample nearest": lambda: line(nn.Upsample(scale_factor=2)),
    "upsample linear": lambda: line(nn.Upsample(size=13, mode="linear")),
    "upsample bilinear": lambda: picture(nn.Upsample(scale_factor=3, mode="bilinear", align_corners=True)),
    "interpolate": lambda: Of(lambda m, h: F.interpolate(h, scale_factor=1.5, mode="bilinear")),
    "pad": lambda: picture(nn.ConstantPad2d((1, 0, 2, 1), 0.7), nn.ReLU()),
    "replicate pad": lambda: line(nn.ReplicationPad1d(2)),
    "pixel shuffle": lambda: picture(nn.PixelShuffle(2), shape=(4, 2, 2)),
    "reshape": lambda: Of(lambda m, h: h.reshape(h.shape[0], 4, -1).permute(0, 2, 1).flatten(1).relu()),
    "view": lambda: Of(lambda m, h: h.transpose(1, 3).contiguous().view(h.size(0), -1)),
    "slices": lambda: Of(lambda m, h: h[:, :, 1:, ::2] - h[:, :, :3, 1::2]),
    "chunk": lambda: Of(lambda m, h: (lambda parts: parts[0] - 2 * parts[1])(torch.chunk(h, 2, 1))),
    "cat": lambda: Of(lambda m, h: torch.cat([h, torch.relu(h), -h], dim=1)),
    "stack": lambda: Of(lambda m, h: torch.stack((h, h.abs()), -1)),
    "residual": residual,
    "decoder": decoder,
    "scalars": lambda: Of(lambda m, h: 1 - (-h * 2 + 1) / 3),
    "augmented": lambda: Of(lambda m, h: torch.sub(h, m.shift, alpha=2).mul(m.scale) / 0.7 + m.scale.exp()),
    "matmul": lambda: Of(lambda m, h: h @ m.scale.outer(m.shift)),
    "mean": lambda: Of(lambda m, h: torch.cat((h.mean((2, 3)), h.sum(-1).flatten(1)), 1)),
    "relu": lambda: picture(nn.ReLU()),
    "leaky": lambda: picture(nn.LeakyReLU(0.3)),
    "prelu by channel": lambda: picture(nn.PReLU(2, init=-0.3), nn.Conv2d(2, 1, 2)),
    "abs": lambda: picture(Abs()),
    "hardtanh": lambda: flat(nn.Hardtanh(-0.3, 0.6)),
    "relu6": lambda: flat(nn.ReLU6()),
    "hardsigmoid": lambda: flat(nn.Hardsigmoid()),
    "softshrink": lambda: flat(nn.Softshrink(0.2)),
    "hardshrink": lambda: flat(nn.Hardshrink(0.0), nn.ReLU()),
    "threshold": lambda: flat(nn.Threshold(0.2, 0.2)),
    "rrelu": lambda: flat(nn.RReLU()),
    "functions": lambda: Of(lambda m, h: F.softshrink(F.hardtanh(F.relu6(h * 3)), 0.1) + F.hardsigmoid(h)),
    "clamp": lambda: Of(lambda m, h: h.clamp(-0.2, 0.4) + torch.clamp(h, min=0.1) - h.clamp(max=0.3)),
    "maxpool1d": lambda: line(nn.MaxPool1d(3, stride=2, padding=1), nn.ReLU()),
    "maxpool2d": lambda: picture(nn.MaxPool2d(2, padding=1, ceil_mode=True)),
    "maxpool2d dilation": lambda: picture(nn.MaxPool2d((2, 3), stride=1, dilation=(2, 1), padding=(1, 0))),
    "F.max_pool2d": lambda: Of(lambda m, h: F.max_pool2d(h, 2)),
    "adaptive maxpool": lambda: picture(nn.AdaptiveMaxPool2d((2, 1))),
    "maxout": lambda: nn.Sequential(nn.Linear(3, 8), Maxout(2), nn.Linear(4, 6), Maxout(3)),
    "torch.max": lambda: Of(lambda m, h: torch.max(h, dim=2).values - torch.max(h, 3)[0] + h.amax(2)),
    "maximum": lambda: Of(lambda m, h: torch.maximum(h, -2 * h) + torch.min(h, h.flip(-1))),
    "amin": lambda: Of(lambda m, h: h.amin((2, 3), keepdim=True) + h),
    "dropout": lambda: picture(nn.Dropout2d(0.3), nn.ReLU()),
    "F.dropout": lambda: Of(lambda m, h: F.dropout(h, 0.3, training=False)),
    "dead branch": lambda: Of(lambda m, h: (h.relu(), h)[1]),
}


def build(name: str) -> nn.Module:
    """The network of that name, always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NETS[name]().double().eval()
