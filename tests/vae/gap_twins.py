"""Slow, obviously right divergences: dense grids over z, on which every density is evaluated as it is written."""

import math

import torch

LOG_2PI = math.log(2 * math.pi)


def grid_over(low, high, count, S):
    """Midpoints of a box `(K, S)`, and the volume of each."""
    step = (high - low) / count
    axis = low + step * (torch.arange(count, dtype=torch.float64) + 0.5)
    return torch.cartesian_prod(*[axis] * S).reshape(-1, S), step**S


def log_joint(vae, x, z, log_prior):
    """`log p(x, z)` of rows `(N, D)` and latents `(K, S)`: `(N, K)`."""
    with torch.no_grad():
        image, noise = vae.decoder(z), vae.noise.item()
        away = torch.stack([(row - image).square().sum(1) for row in x])
        return log_prior(z) - 0.5 * (away / noise + x.shape[1] * (LOG_2PI + math.log(noise)))


def normal(z):
    """The log-density of `N(0, I)`."""
    return -0.5 * (z.square() + LOG_2PI).sum(-1)


def truth(vae, x, z, volume, log_prior=normal):
    """-log p(x) `(N,)`, and a function that gives `KL(q || p(z | x))` of log-densities of q, `(N, K)`."""
    joint = log_joint(vae, x, z, log_prior)
    log_p = torch.logsumexp(joint, 1) + math.log(volume)

    def divergence(log_q):
        q = log_q.exp()
        return volume * torch.where(q > 0, q * (log_q - joint + log_p[:, None]), 0.0).sum(1)

    return -log_p, divergence


def log_density(q, z):
    """The log-density of each of N distributions at all latents, `(N, K)`."""
    with torch.no_grad():
        return q.log_prob(z[:, None]).mT
