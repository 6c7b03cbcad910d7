"""`PushForward`: the distribution of g(z) itself, without noise, for a generator from R^D to R^D."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from girih._arrays import Rows, as_tensor, check_finite
from girih._options import whole
from girih.errors import ShapeError
from girih.flows.chains import crossings, invert_chain, is_bijective_chain
from girih.geometry.invert import preimages_by
from girih.geometry.priors import Prior
from girih.geometry.search import Search
from girih.networks import Snapshot, Trace
from girih.partition import Partition


class Generator(Protocol):
    """A map that is pushed forward: a `DGNFlow`, or anything with a trace that follows its parameters, and a prior."""

    features: int
    prior: Prior

    @property
    def trace(self) -> Trace:
        """The generator as it is built now."""


class Latents(NamedTuple):
    """All latents of some rows, sorted by row."""

    row: Tensor  # (K,)
    z: Tensor  # (K, S)
    log_joint: Tensor  # (K,) log p_z(z) - log|det A(z)|, nats


class _Cells(NamedTuple):
    """The cells of some latents."""

    patterns: Tensor  # (R, U)
    origin: Tensor  # (R, S)
    slope: Tensor  # (R, S, S) A, the identity where it has no inverse
    where: Tensor  # (K,) the cell of each latent


class PushForward(Distribution):
    r"""The distribution of `x = g(z)`, `p(x) = sum_{z: g(z) = x} p_z(z) / |det A(z)|`, for S = D.

    Made by calling a `DGNFlow`. The sum is over all preimages, so folds add up; where nothing is mapped to x it is 0.

    Source:
        MAS, Theorem 3 and appendix C, for generators that need not be injective.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, flow: Generator) -> None:
        self._flow, self._dim = flow, flow.features
        self._traced, self._weights = flow.trace, Snapshot(())
        self._search: Search | None = None
        super().__init__(torch.Size([]), torch.Size([flow.features]), validate_args=False)

    def __repr__(self) -> str:
        return f"PushForward({self._traced!r})"

    def log_prob(self, value: Rows) -> Tensor:
        """`log p(x)` in nats, `(...)` for x `(..., D)`; minus infinity where x has no preimage.

        Differentiable in x and in the parameters of the network: each preimage moves by
        `dz = A^-1 (dx - d g(z))`. On the kinks of g it is that of one side; on the image of a cell that is mapped to a
        smaller dimension, which is a set of volume 0, it is plus infinity.

        Raises:
            ShapeError: x does not have D columns.
            NonFiniteError: x is not finite, or a layer has no inverse.
        """
        x = self._event(value)
        return self._log_prob(x.reshape(-1, self._dim)).reshape(x.shape[:-1])

    def smooth_log_prob(self, rows: Tensor) -> Tensor:
        """`log_prob` of checked rows `(N, D)`, whose gradient is that of the mean over the distribution of the rows.

        Of chains only, see `girih.flows.chains`; else it is `log_prob`.
        """
        traced = self._flow.trace
        if len(rows) == 1 or traced.chain is None:
            return self._log_prob(rows)
        if is_bijective_chain(traced):
            z, size = invert_chain(traced, rows, smooth=True)
            return self._flow.prior.log_prob(z) - size
        found, cells = self._by_cells(rows)
        log_p = self._sum(found, len(rows))
        share = (found.log_joint - log_p[found.row]).detach().exp().nan_to_num(nan=0.0)
        term = crossings(traced, cells.patterns, cells.origin, cells.where, found.z, share, cells.slope)
        return log_p.index_add(0, found.row, term)

    def _log_prob(self, rows: Tensor) -> Tensor:
        return self._sum(self._latents(rows), len(rows))

    def _sum(self, found: Latents, count: int) -> Tensor:
        """`log p(x)` of rows from their latents."""
        top = found.log_joint.new_full((count,), -torch.inf)
        top = top.scatter_reduce(0, found.row, found.log_joint.detach(), "amax")
        shift = torch.where(torch.isfinite(top), top, 0.0)
        total = torch.zeros_like(shift).index_add(0, found.row, (found.log_joint - shift[found.row]).exp())
        none = ~torch.isfinite(top)  # constants, so that log 0 has no gradient
        return torch.where(none, top, shift + torch.where(none, 1.0, total).log())

    def latents(self, value: Rows) -> Latents:
        """All z with `g(z) = x` for rows x `(N, D)`, with `log p(x, z)` of each; differentiable like `log_prob`.

        Raises:
            ShapeError, NonFiniteError: as `log_prob`.
        """
        return self._latents(self._event(value).reshape(-1, self._dim))

    def _latents(self, x: Tensor) -> Latents:
        traced, prior = self._flow.trace, self._flow.prior
        if is_bijective_chain(traced):
            z, size = invert_chain(traced, x)
            return Latents(torch.arange(len(x), device=x.device), z, prior.log_prob(z) - size)
        return self._by_cells(x)[0]

    def _by_cells(self, x: Tensor) -> tuple[Latents, _Cells]:
        """All latents by the partition, and the cells that they are in."""
        traced, prior, search = self._flow.trace, self._flow.prior, self._current()
        found = preimages_by(search, x.detach())
        # on a cell z = o + A^-1 (x - g(o)), and its pattern stays as it is when parameters change by little
        used, where = found.cell.unique(return_inverse=True)
        part = search.images.part
        patterns, origin = part.patterns[used], part.origins.to(x.device)[used.cpu()]
        jet = traced.output_jet(patterns, origin)
        whole_rank = torch.ones_like(used, dtype=torch.bool).scatter(0, where, ~found.degenerate)
        eye = torch.eye(self._dim, dtype=torch.float64, device=x.device)
        slope = torch.where(whole_rank[:, None, None], jet.slope, eye)
        off = x[found.row] - jet.value[where]
        z = origin[where] + torch.linalg.solve(slope[where], off[:, :, None])[:, :, 0]
        z = torch.where(found.degenerate[:, None], found.latent, z)
        log_joint = prior.log_prob(z) - torch.linalg.slogdet(slope).logabsdet[where]
        nothing = log_joint.isinf()  # outside a bounded prior
        log_joint = torch.where(found.degenerate & ~nothing, torch.inf, log_joint)
        return Latents(found.row, z, log_joint), _Cells(patterns, origin, slope, where)

    def _current(self) -> Search:
        """The cells for the current parameters."""
        traced = self._flow.trace
        tensors = traced.tensors()
        if self._search is None or traced is not self._traced or not self._weights.holds(tensors):
            self._weights, self._traced = Snapshot(tensors), traced
            self._search = Search(Partition(traced, progress=False))
        return self._search

    def rsample(self, sample_shape: Sequence[int] = (), seed: int | None = None) -> Tensor:
        """Draws of x, `(*sample_shape, D)`, differentiable in the parameters: `g(z)`."""
        shape = torch.Size(sample_shape)
        start = int(torch.randint(2**62, ())) if seed is None else whole(seed, "seed", None)
        z = self._flow.prior.sample(shape.numel(), torch.Generator().manual_seed(start))
        return self._flow.trace(z.to(self._flow.trace.device)).reshape(*shape, self._dim)

    def sample(self, sample_shape: Sequence[int] = (), seed: int | None = None) -> Tensor:
        """Draws of x, `(*sample_shape, D)`."""
        with torch.no_grad():
            return self.rsample(sample_shape, seed)

    def _event(self, value: Rows) -> Tensor:
        x = as_tensor(value, "x", self._flow.trace.device)
        if x.ndim == 0 or x.shape[-1] != self._dim:
            raise ShapeError(
                f"x has shape {tuple(x.shape)}, but the flow has {self._dim} features; pass an array of shape "
                f"(N, {self._dim})"
            )
        check_finite(x.detach().reshape(-1, self._dim), "x")
        return x
