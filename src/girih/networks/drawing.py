"""What all builders of networks share: a random generator of their own, and the numbers that weights are drawn in."""

from __future__ import annotations

import torch

from girih._options import whole
from girih.errors import ParameterError


def make_generator(seed: int | None) -> torch.Generator:
    """A random generator of its own; without a seed, one that nothing predicts."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(whole(seed, "seed", None))
    return generator


def check_dtype(dtype: torch.dtype) -> None:
    """Refuse numbers that are neither float32 nor float64.

    Raises:
        ParameterError: they are not.
    """
    if dtype not in (torch.float32, torch.float64):
        raise ParameterError(f"dtype must be torch.float32 or torch.float64; got {dtype}")
