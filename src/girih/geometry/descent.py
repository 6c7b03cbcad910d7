"""Local search for the latent whose image is nearest to a point, any S."""

from __future__ import annotations

import torch
from torch import Tensor

from girih.geometry.cells import chunks
from girih.networks import Trace

_STEPS = 60


def descend(traced: Trace, x: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Damped Gauss-Newton steps from the best of some latents: `argmin_z |x - g(z)|`, locally.

    On one cell a step without damping is the exact least-squares answer. A step is taken only if it comes nearer.

    Args:
        traced: the generator.
        x: `(N, D)`.
        starts: latents to start from, `(N, m, S)`.

    Returns:
        The best latent `(N, S)` and its distance `(N,)`.
    """
    count, tries, S = starts.shape
    z, target = starts.reshape(-1, S).clone(), x.repeat_interleave(tries, 0)
    for rows in chunks(traced, len(z)):
        z[rows] = _search(traced, target[rows], z[rows])
    distance = _misses(traced, z, target).reshape(count, tries)
    best = distance.argmin(1)
    index = torch.arange(count, device=x.device)
    return z.reshape(count, tries, S)[index, best], distance[index, best]


def good_starts(traced: Trace, x: Tensor, draws: Tensor, tries: int) -> Tensor:
    """For each row the draws `(m, S)` whose images are nearest, `(N, tries, S)`."""
    with torch.no_grad():
        images = traced(draws)
    return draws[torch.cdist(x, images).topk(tries, dim=1, largest=False).indices]


def _misses(traced: Trace, z: Tensor, x: Tensor) -> Tensor:
    with torch.no_grad():
        return (traced(z) - x).norm(dim=1)


def _search(traced: Trace, x: Tensor, z: Tensor) -> Tensor:
    z, damping = z.clone(), torch.full_like(z[:, 0], 1e-6)
    least = _misses(traced, z, x)
    active = torch.arange(len(z), device=z.device)
    for _ in range(_STEPS):
        here, to = z[active], x[active]
        with torch.no_grad():
            jet = traced.output_jet(traced.pattern(here), here)
        gram = jet.slope.mT @ jet.slope
        size = gram.diagonal(dim1=1, dim2=2).amax(1).clamp(min=torch.finfo(torch.float64).tiny)
        room = torch.eye(z.shape[1], dtype=z.dtype, device=z.device) * (damping[active] * size)[:, None, None]
        pull = (jet.slope.mT @ (to - jet.value)[:, :, None])[:, :, 0]
        new = here + torch.linalg.solve(gram + room, pull)
        value = _misses(traced, new, to)
        better = value < least[active]
        gain = least[active] - value
        z[active[better]], least[active[better]] = new[better], value[better]
        damping[active] = torch.where(better, 0.1 * damping[active], 10.0 * damping[active]).clamp(1e-14, 1e14)
        stalled = torch.where(better, gain <= 1e-13 * (1e-300 + value), damping[active] > 1e8)
        active = active[~stalled]
        if not len(active):
            break
    return z
