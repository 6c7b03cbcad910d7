"""Many autoencoders of one shape trained at once: one batched product a layer instead of one a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from girih.networks import mlp

SLOPE = 0.1


def autoencoder(
    data_dim: int, latent_dim: int, encoder: Sequence[int], decoder: Sequence[int], seed: int
) -> tuple[nn.Sequential, nn.Sequential]:
    """An encoder and a generator, leaky ReLU, with the weights that `girih.mlp` draws.

    Args:
        data_dim: D.
        latent_dim: S.
        encoder: widths of its hidden layers.
        decoder: widths of the generator's hidden layers.
        seed: of the weights of both.

    Example:
        >>> from girih_papers.mas_autoencoders import autoencoder
        >>> [sum(p.numel() for p in net.parameters()) for net in autoencoder(10, 2, (8,), (4, 4), seed=0)]
        [106, 82]
    """
    return (
        mlp([data_dim, *encoder, latent_dim], negative_slope=SLOPE, seed=2 * seed),
        mlp([latent_dim, *decoder, data_dim], negative_slope=SLOPE, seed=2 * seed + 1),
    )


def training_errors(
    x: Tensor,
    networks: Sequence[tuple[nn.Sequential, nn.Sequential]],
    epochs: int,
    rate: float,
    batch: int,
    seed: int,
) -> Tensor:
    r"""The error `sum_n ||g(e(x_n)) - x_n||` of each autoencoder after each epoch of Adam, `(epochs, T)`.

    Each is trained on its own mean squared error. Adam works entry by entry, so the sum of these losses trains each
    as if it were alone; the networks that are given keep their weights.

    Args:
        x: the rows, `(N, D)`; their type is that of the computation.
        networks: pairs of an encoder and a generator, all of the same widths, as `autoencoder` makes them.
        epochs: passes over all rows.
        rate: of Adam.
        batch: rows for one step; each autoencoder has its own order of the rows.
        seed: of these orders.

    Example:
        >>> import torch
        >>> from girih_papers.mas_autoencoders import autoencoder, training_errors
        >>> x = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> networks = [autoencoder(3, 1, (8,), (8,), seed) for seed in range(2)]
        >>> training_errors(x, networks, epochs=4, rate=1e-2, batch=10, seed=0).shape
        torch.Size([4, 2])
    """
    layers, sizes = _stacked(networks, x)
    parameters = [p for layer in layers for p in layer]
    optimizer = torch.optim.Adam(parameters, lr=rate, fused=True)
    noise = torch.Generator().manual_seed(seed)
    count = len(x)
    errors = torch.empty(epochs, len(networks), dtype=x.dtype)
    for epoch in range(epochs):
        order = torch.rand(len(networks), count, generator=noise).argsort(1)
        for start in range(0, count, batch):
            rows = x[order[:, start : start + batch]]
            residual = _forward(layers, rows, sizes) - rows
            optimizer.zero_grad()
            residual.square().mean((1, 2)).sum().backward()
            optimizer.step()
        with torch.no_grad():
            rows = x.expand(len(networks), -1, -1)
            errors[epoch] = torch.linalg.vector_norm(_forward(layers, rows, sizes) - rows, dim=2).sum(1)
    return errors


def _stacked(
    networks: Sequence[tuple[nn.Sequential, nn.Sequential]], x: Tensor
) -> tuple[list[tuple[Tensor, Tensor]], tuple[int, int]]:
    """Weights `(T, in, out)` and biases `(T, 1, out)` of every layer, and the numbers of layers of the two parts."""
    parts = [[[m for m in net if isinstance(m, nn.Linear)] for net in pair] for pair in networks]
    layers = []
    for column in zip(*(encoder + decoder for encoder, decoder in parts), strict=True):
        weight = torch.stack([layer.weight.detach().T for layer in column]).to(x)
        bias = torch.stack([layer.bias.detach()[None] for layer in column]).to(x)
        layers.append((weight.contiguous().requires_grad_(), bias.requires_grad_()))
    return layers, (len(parts[0][0]), len(parts[0][1]))


def _forward(layers: list[tuple[Tensor, Tensor]], rows: Tensor, sizes: tuple[int, int]) -> Tensor:
    linear = (sizes[0] - 1, sum(sizes) - 1)  # the latents, and the output
    for index, (weight, bias) in enumerate(layers):
        rows = torch.baddbmm(bias, rows, weight)
        if index not in linear:
            rows = leaky_relu(rows, SLOPE)
    return rows
