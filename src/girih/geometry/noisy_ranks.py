"""Ranks of the cells that draws meet in many generators of one shape at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from girih.geometry.dimension import ranks
from girih.networks import LinearStep, Trace

_WORD = 62  # bits of a pattern in one whole number


def ranks_met(
    traced: Trace, weights: Sequence[Tensor], biases: Sequence[Tensor], z: Tensor, tolerance: float
) -> tuple[Tensor, Tensor]:
    r"""How many draws fall into cells of each rank, and into how many different cells, `(B, S + 1)` each.

    The generators are a chain with other parameters in its affine layers. All layers are batched products, and each
    cell is looked at once.

    Args:
        traced: the chain, for the order of layers and the slopes.
        weights: of each affine layer, `(B, out, in)`.
        biases: of each affine layer, `(B, out)`.
        z: the draws, `(B, n, S)`.
        tolerance: as in `intrinsic_dimension`.
    """
    batch, n, S = z.shape
    signs = _signs(traced, weights, biases, z.mT.contiguous())
    owner, first, count = _distinct(signs, batch, n)
    place, most = _places(owner, batch)
    chosen = torch.zeros(batch, most, dtype=torch.int64)
    chosen[owner, place] = first
    rank = ranks(_maps(traced, weights, signs, chosen)[owner, place], tolerance)
    index = owner * (S + 1) + rank
    met = torch.bincount(index, count, batch * (S + 1)).reshape(batch, S + 1)
    return met, torch.bincount(index, minlength=batch * (S + 1)).reshape(batch, S + 1)


def _signs(traced: Trace, weights: Sequence[Tensor], biases: Sequence[Tensor], h: Tensor) -> list[Tensor]:
    """Which units are above their kinks at each draw, `(B, units, n)` for each activation."""
    signs = []
    layers = iter(zip(weights, biases, strict=True))
    for stage in traced.chain or ():
        if isinstance(stage, LinearStep):
            weight, bias = next(layers)
            h = torch.baddbmm(bias[:, :, None], weight, h)
        else:
            above = h > 0
            signs.append(above)
            h = torch.where(above, h, h * stage.slope.detach().cpu().reshape(-1, 1))
    return signs


def _distinct(signs: list[Tensor], batch: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The generator of each cell, the index of a draw in it, and the number of its draws, all `(R,)`."""
    code = torch.arange(batch)[:, None].expand(batch, n).reshape(-1)
    bits = torch.cat([torch.empty(batch, 0, n, dtype=torch.bool), *signs], 1)
    for start in range(0, bits.shape[1], _WORD):
        part = bits[:, start : start + _WORD]
        word = torch.zeros(batch, n, dtype=torch.int64)
        for place in range(part.shape[1]):
            word += part[:, place].to(torch.int64) << place
        known, word = word.reshape(-1).unique(return_inverse=True)
        code = (code * len(known) + word).unique(return_inverse=True)[1]
    count = torch.bincount(code)
    first = torch.empty_like(count)
    first[code] = torch.arange(batch * n)
    return first // n, first % n, count.to(torch.float64)


def _places(owner: Tensor, batch: int) -> tuple[Tensor, int]:
    """The place of each cell among those of its generator, and the largest number of cells."""
    order = owner.argsort(stable=True)
    number = torch.bincount(owner, minlength=batch)
    begin = number.cumsum(0) - number
    place = torch.empty_like(owner)
    place[order] = torch.arange(len(owner)) - begin[owner[order]]
    return place, int(number.max())


def _maps(traced: Trace, weights: Sequence[Tensor], signs: list[Tensor], chosen: Tensor) -> Tensor:
    """A at the chosen draws `(B, m)` of each generator, `(B, m, D, S)`."""
    batch, m = chosen.shape
    S = traced.latent_dim
    jet = torch.eye(S, dtype=torch.float64)[None, :, None].expand(batch, S, m, S)
    layers, kinks = iter(weights), iter(signs)
    for stage in traced.chain or ():
        if isinstance(stage, LinearStep):
            weight = next(layers)
            jet = torch.bmm(weight, jet.reshape(batch, jet.shape[1], m * S)).reshape(batch, -1, m, S)
        else:
            above = next(kinks)
            above = above.gather(2, chosen[:, None].expand(batch, above.shape[1], m))
            slope = torch.where(above, 1.0, stage.slope.detach().cpu().reshape(-1, 1))
            jet = jet * slope[..., None]
    return jet.permute(0, 2, 1, 3)
