"""What is asked of a search for the member of a family that is nearest to an exact posterior, and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from torch import Tensor


class Search(NamedTuple):
    """How `girih.vae.gap` looks for the member of a family that is nearest to a posterior."""

    draws: int  # of the posterior, among the starts
    seed: int
    tolerance: float  # of cubature, nats
    full: bool = False  # Gaussians with any covariance
    continuous: bool = False  # densities on [-1, 1] in place of levels


class Nearest(NamedTuple):
    """What a search found, nats per row."""

    nll: Tensor  # (N,) -log p(x)
    own: Tensor  # (N,) KL(q(z | x) || p(z | x)) of the encoder's q
    least: Tensor  # (N,) that of the best q found
    error: Tensor  # (N,) of any of these
    best: tuple[Tensor, ...]  # parameters of the best q, rows first, as `Family.member` takes them


# Checked rows `(N, D)` to what is found about them.
Searcher: TypeAlias = Callable[[Tensor], Nearest]
