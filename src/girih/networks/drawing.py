"""What all builders of networks share: a random generator of their own, and the numbers that weights are drawn in."""

from __future__ import annotations

import torch

from girih._options import whole
from girih.errors import ParameterError


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
