"""Decoders as they are written in practice: the layers of well-known projects, from memory, made small."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class Of(nn.Module):
    """A function of the module and z, with layers, parameters and buffers by name."""

    def __init__(self, function, **parts) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, nn.Parameter | nn.Module):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, z):
        return self.function(self, z)


def weight(*shape):
    return nn.Parameter(torch.randn(*shape))


class Pair(NamedTuple):
    recon: torch.Tensor
    logits: torch.Tensor


@dataclass
class Sample:
    sample: torch.Tensor
    extra: torch.Tensor | None = None


class Output(OrderedDict):
    """A dictionary whose keys are attributes too, as pythae and transformers return."""

    def __setitem__(self, key, value) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)


class Levels(nn.Module):
    """pythae: layers in a loop, an optional argument, and a dictionary."""

    def __init__(self, head) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Sequential(nn.Linear(3, 16), nn.ReLU()), nn.Sequential(nn.Linear(16, 12), head)]
        )
        self.depth, self.input_dim = 2, (3, 2, 2)

    def forward(self, z, output_layer_levels=None):
        output, depth = Output(), self.depth
        if output_layer_levels is not None:
            depth = max(output_layer_levels)
        for i in range(depth):
            z = self.layers[i](z)
            if output_layer_levels is not None and i + 1 in output_layer_levels:
                output[f"reconstruction_layer_{i + 1}"] = z
            if i + 1 == self.depth:
                output["reconstruction"] = z.reshape((z.shape[0], *self.input_dim))
        return output


class Equalised(nn.Module):
    """StyleGAN: a fully connected layer whose weights are scaled as they are used."""

    def __init__(self, inputs, outputs, linear=False) -> None:
        super().__init__()
        self.weight, self.bias, self.linear = weight(outputs, inputs), weight(outputs), linear
        self.gain = 0.3 / math.sqrt(inputs)

    def forward(self, x):
        w, b = self.weight.to(x.dtype) * self.gain, self.bias.to(x.dtype) * 0.3
        if self.linear:
            return torch.addmm(b.unsqueeze(0), x, w.t())
        x = x.matmul(w.t())
        x = x + b.reshape([-1 if i == 1 else 1 for i in range(x.ndim)])
        return F.leaky_relu(x, 0.2) * math.sqrt(2)


class Mapping(nn.Module):
    """StyleGAN: from z to styles, cut short around their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.fc0, self.fc1, self.num_ws = Equalised(4, 6), Equalised(6, 6, linear=True), 3
        self.register_buffer("w_avg", torch.randn(6))

    def forward(self, z, c=None, truncation_psi=0.7, truncation_cutoff=None, update_emas=False):
        x = z
        for i in range(2):
            x = getattr(self, f"fc{i}")(x)
        x = x.unsqueeze(1).repeat([1, self.num_ws, 1])
        return x if truncation_psi == 1 else self.w_avg.lerp(x, truncation_psi)


def dcgan(*head):
    return nn.Sequential(
        nn.ConvTranspose2d(10, 8, 4, 1, 0, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(True),
        nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False),
        *head,
    )


class EitherShape(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.main = dcgan()

    def forward(self, z):
        if z.dim() == 2:
            z = z[:, :, None, None]
        assert z.shape[1] == 10, "wrong latent"
        return self.main(z)


class Residual(nn.Module):
    def __init__(self, channels) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.kink, self.second = nn.PReLU(channels), nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return F.relu(x + self.second(self.kink(self.norm(self.first(x)))), inplace=True)


class Unpacks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 16), nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, z):
        h = self.first(z)
        n, _ = h.shape
        h = h.view(n, 4, 2, 2)
        *_, height, width = h.size()
        return self.last(F.interpolate(h, size=(height * 2, width * 2), mode="nearest"))


class Several(nn.Module):
    """A dictionary with a smooth and a nested entry, keyword arguments and others."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mean, self.spread = nn.Linear(2, 6), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, z, return_dict=True, *more, extra=None, **others):
        h = F.relu(self.body(z))
        return {"mean": self.mean(h), "std": torch.exp(0.5 * self.spread(h)), "inner": {"h": h}}


class Labelled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body = nn.Embedding(10, 3), nn.Linear(5, 6)
        self.register_buffer("label", torch.tensor([4]))

    def forward(self, z):
        return F.relu(self.body(torch.cat([z, self.embedding(self.label).expand(len(z), -1)], 1)))


def two():
    return nn.Sequential(nn.Linear(2, 4), nn.ReLU())


def compiled_in_place(net):
    net.compile()
    return net


def outputs(kind):
    return Of(lambda m, z: kind(m.a(z), torch.sigmoid(m.a(z))), a=nn.Linear(2, 3))


def skips(m, z):
    h = torch.relu(m.a(z))
    h = torch.relu(m.b(torch.cat([h, z], dim=-1)))
    return m.c(torch.cat((h, z), -1))


def unet(m, z):
    h = F.relu(m.a(z).reshape(-1, 2, 4, 4))
    below = F.relu(m.b(F.avg_pool2d(h, 2)))
    return m.c(torch.cat([F.interpolate(below, scale_factor=2, mode="nearest"), h], 1))


def with_label(m, z):
    return F.relu(m.a(torch.cat([z, m.c.expand(z.shape[0], -1)], 1)))


# name: how to make it, options of girih.trace, what to take of the module's own output, the shape of its z
TRACED = {
    "addmm": (lambda: Of(lambda m, z: torch.addmm(m.b.unsqueeze(0), z, m.w.t()), w=weight(5, 4), b=weight(5)), {}),
    "addmm options": (
        lambda: Of(lambda m, z: torch.addmm(m.b, z, m.w, beta=0.5, alpha=2.0), w=weight(4, 5), b=weight(5)),
        {},
    ),
    "addmm method": (lambda: Of(lambda m, z: m.b[None].addmm(z, m.w), w=weight(4, 5), b=weight(5)), {}),
    "addmm of a batch": (
        lambda: Of(lambda m, z: torch.addmm(m.b.expand(z.shape[0], 5), z, m.w), w=weight(4, 5), b=weight(1, 5)),
        {},
    ),
    "baddbmm": (
        lambda: Of(
            lambda m, z: torch.baddbmm(m.b.expand(z.size(0), 1, 5), z.unsqueeze(1), m.w.expand(z.size(0), 4, 5)),
            w=weight(1, 4, 5),
            b=weight(1, 1, 5),
        ),
        {"latent_dim": 4},
    ),
    "bmm": (
        lambda: Of(lambda m, z: torch.bmm(z[:, None], m.w.repeat(len(z), 1, 1)), w=weight(1, 4, 5)),
        {"latent_dim": 4},
    ),
    "mm": (lambda: Of(lambda m, z: torch.mm(z, m.w).relu(), w=weight(4, 5)), {}),
    "matmul from the left": (
        lambda: Of(lambda m, z: torch.matmul(m.w, z.unsqueeze(-1)).squeeze(-1).relu(), w=weight(5, 4)),
        {"latent_dim": 4},
    ),
    "einsum": (
        lambda: Of(lambda m, z: torch.einsum("oik,bi->bok", m.w, z).relu(), w=weight(5, 4, 2)),
        {"latent_dim": 4},
    ),
    "F.linear with a gain": (
        lambda: Of(lambda m, z: F.linear(z, m.w * 0.3, m.b * 0.1), w=weight(5, 4), b=weight(5)),
        {},
    ),
    "lerp": (lambda: Of(lambda m, z: torch.lerp(m.k, m.a(z), 0.3), a=nn.Linear(2, 3), k=torch.randn(3)), {}),
    "masks": (
        lambda: Of(
            lambda m, z: torch.where(m.k > 0, m.a(z), 0.1 * m.a(z)).masked_fill(m.k < -1, 0.5),
            a=nn.Linear(2, 3),
            k=torch.tensor([-2.0, -0.5, 1.0]),
        ),
        {},
    ),
    "StyleGAN mapping": (Mapping, {}),
    "pythae": (lambda: Levels(nn.Hardsigmoid()), {}, lambda out: out["reconstruction"]),
    "dictionary": (Several, {"output": "mean"}, lambda out: out["mean"]),
    "nested dictionary": (Several, {"output": "inner.h"}, lambda out: out["inner"]["h"]),
    "dictionary by place": (Several, {"output": 0}, lambda out: out["mean"]),
    "tuple": (lambda: outputs(lambda *parts: parts), {"output": 0}, lambda out: out[0]),
    "tuple from its end": (lambda: outputs(lambda *parts: parts), {"output": -2}, lambda out: out[0]),
    "tuple with None": (lambda: Of(lambda m, z: (m.a(z), None), a=nn.Linear(2, 3)), {}, lambda out: out[0]),
    "list": (lambda: outputs(lambda *parts: list(parts)), {"output": "0"}, lambda out: out[0]),
    "named tuple": (lambda: outputs(Pair), {"output": "recon"}, lambda out: out.recon),
    "named tuple by place": (lambda: outputs(Pair), {"output": 0}, lambda out: out.recon),
    "data class": (lambda: Of(lambda m, z: Sample(m.a(z)), a=nn.Linear(2, 3)), {}, lambda out: out.sample),
    "data class, two": (lambda: outputs(Sample), {"output": "sample"}, lambda out: out.sample),
    "chunks": (lambda: Of(lambda m, z: m.a(z).chunk(2, 1), a=nn.Linear(2, 6)), {"output": 1}, lambda out: out[1]),
    "values and places": (lambda: Of(lambda m, z: m.a(z).max(1), a=nn.Linear(2, 6)), {"output": 0}, lambda out: out[0]),
    "data parallel": (lambda: nn.DataParallel(two()), {}),
    "data parallel inside": (lambda: nn.Sequential(nn.DataParallel(two()), nn.Linear(4, 3)), {}),
    "condition": (lambda: Of(with_label, a=nn.Linear(5, 8), c=torch.randn(1, 3)), {}),
    "condition in front": (
        lambda: Of(
            lambda m, z: F.relu(m.a(torch.cat([m.c.repeat(z.size(0), 1), z], 1))),
            a=nn.Linear(5, 8),
            c=torch.randn(1, 3),
        ),
        {"latent_dim": 2},
    ),
    "condition later": (
        lambda: Of(
            lambda m, z: m.b(torch.cat([F.relu(m.a(z)), m.c.unsqueeze(0).expand(len(z), 3)], -1)),
            a=nn.Linear(2, 4),
            b=nn.Linear(7, 3),
            c=weight(3),
        ),
        {},
    ),
    "condition of zeros": (
        lambda: Of(lambda m, z: F.relu(m.a(torch.cat([z, z.new_zeros(z.shape[0], 3)], 1))), a=nn.Linear(5, 8)),
        {},
    ),
    "condition of ones": (
        lambda: Of(
            lambda m, z: m.a(torch.cat([z, torch.ones(z.shape[0], 3, device=z.device, dtype=z.dtype)], 1)).relu(),
            a=nn.Linear(5, 8),
        ),
        {},
    ),
    "condition like z": (
        lambda: Of(lambda m, z: F.relu(m.a(torch.cat([z, torch.ones_like(z)], 1))), a=nn.Linear(4, 8)),
        {"latent_dim": 2},
    ),
    "condition one-hot": (
        lambda: Of(
            lambda m, z: m.a(torch.cat([z, F.one_hot(m.y, 4).to(z.dtype).expand(z.shape[0], 4)], 1)),
            a=nn.Linear(6, 8),
            y=torch.tensor([2]),
        ),
        {},
    ),
    "condition embedded": (Labelled, {}),
    "coordinates": (
        lambda: Of(
            lambda m, z: m.b(
                torch.cat([z[:, :, None, None].expand(-1, -1, 4, 4), m.c.repeat(z.shape[0], 1, 1, 1)], 1)
            ).relu(),
            b=nn.Conv2d(4, 2, 3),
            c=torch.randn(1, 2, 4, 4),
        ),
        {"latent_dim": 2},
    ),
    "positions": (
        lambda: Of(
            lambda m, z: F.relu(m.a(z).view(z.shape[0], 2, 4) + m.c.expand(z.shape[0], 2, 4)),
            a=nn.Linear(2, 8),
            c=torch.randn(1, 2, 4),
        ),
        {},
    ),
    "DCGAN": (dcgan, {}, None, (10, 1, 1)),
    "DCGAN told S": (dcgan, {"latent_dim": 10}, None, (10, 1, 1)),
    "DCGAN told a shape": (dcgan, {"latent_dim": (10, 1, 1)}, None, (10, 1, 1)),
    "DCGAN by view": (lambda: Of(lambda m, z: m.a(z.view(z.size(0), 10, 1, 1)), a=dcgan()), {}),
    "DCGAN by reshape": (lambda: Of(lambda m, z: m.a(z.reshape(len(z), -1, 1, 1)), a=dcgan()), {}),
    "DCGAN of either shape": (EitherShape, {}),
    "DCGAN of a line": (
        lambda: nn.Sequential(nn.ConvTranspose1d(6, 4, 5), nn.LeakyReLU(0.2), nn.ConvTranspose1d(4, 2, 4, 2, 1)),
        {},
        None,
        (6, 1),
    ),
    "flattens first": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(5, 3), nn.ReLU()), {}),
    "a picture of z": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1)),
        {"latent_dim": 18},
        None,
        (2, 3, 3),
    ),
    "residual": (
        lambda: nn.Sequential(
            nn.Linear(4, 18),
            nn.Unflatten(1, (2, 3, 3)),
            Residual(2),
            nn.Upsample(scale_factor=2),
            Residual(2),
            nn.MaxPool2d(2),
            nn.Hardtanh(),
        ),
        {},
    ),
    "pixel shuffle": (
        lambda: nn.Sequential(
            nn.Linear(4, 36), nn.Unflatten(1, (4, 3, 3)), nn.PixelShuffle(2), nn.Conv2d(1, 2, 3), nn.ReLU6()
        ),
        {},
    ),
    "unpacked shapes": (Unpacks, {}),
    "skips": (lambda: Of(skips, a=nn.Linear(3, 5), b=nn.Linear(8, 5), c=nn.Linear(8, 4)), {}),
    "U-Net": (
        lambda: Of(unet, a=nn.Linear(3, 32), b=nn.Conv2d(2, 2, 3, padding=1), c=nn.Conv2d(4, 1, 1)),
        {},
    ),
    "maxout by chunks": (
        lambda: Of(lambda m, z: torch.maximum(*[part for part in m.a(z).chunk(2, dim=1)]), a=nn.Linear(3, 8)),
        {},
    ),
    "a loop over a size": (
        lambda: Of(lambda m, z: sum(m.a(z)[:, i : i + 1] * i for i in range(m.a(z).shape[1])), a=nn.Linear(2, 3)),
        {},
    ),
    "numbers from a size": (
        lambda: Of(lambda m, z: m.a(z) * math.sqrt(z.shape[1]) / float(z.size(-1)), a=nn.Linear(2, 3)),
        {},
    ),
}

# name: how to make it, `until`, and the function that the module applies to what is traced
STOPPED = {
    "sigmoid": (lambda: nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3), nn.Sigmoid()), "3", torch.sigmoid),
    "softmax": (lambda: nn.Sequential(two(), nn.Softmax(1)), "1", lambda h: h.softmax(1)),
    "log_softmax": (
        lambda: Of(lambda m, z: F.log_softmax(m.a(z), dim=-1), a=nn.Linear(2, 3)),
        "log_softmax",
        lambda h: h.log_softmax(-1),
    ),
    "softplus": (lambda: Of(lambda m, z: F.softplus(m.a(z)), a=nn.Linear(2, 3)), "softplus", F.softplus),
    "method": (lambda: Of(lambda m, z: m.a(z).sigmoid(), a=nn.Linear(2, 3)), "sigmoid", torch.sigmoid),
    "container": (
        lambda: Of(lambda m, z: m.head(m.a(z)), a=nn.Linear(2, 3), head=nn.Sequential(nn.ReLU(), nn.Tanh())),
        "head",
        lambda h: h.relu().tanh(),
    ),
    "with a constant": (
        lambda: Of(lambda m, z: torch.sigmoid(m.a(torch.cat([z, torch.ones(len(z), 1)], 1))), a=nn.Linear(3, 3)),
        "sigmoid",
        torch.sigmoid,
    ),
    "DCGAN": (lambda: dcgan(nn.Tanh()), "4", torch.tanh),
}
