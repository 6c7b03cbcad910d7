"""`FlowDistribution`: the distribution of x under a stack of bijections and folds, with its discrete latents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints

from girih._arrays import Rows, as_tensor, check_finite
from girih._options import whole
from girih._shown import Shown
from girih.errors import EmptyDataError, NonFiniteError, ParameterError, ShapeError
from girih.flows.coupling import FoldTransform
from girih.training import own_random_state

# The most preimages of a point that are listed.
_MAX_COMPONENTS = 100_000


class Encoded(NamedTuple):
    """The latents of x: real and discrete."""

    z: Tensor  # (..., D)
    k: Tensor  # (..., M) a piece, from 0, for each folded feature of each layer, in the order of the layers


class Step(NamedTuple):
    """The effect of one transform of a stack on x."""

    x: Tensor  # (..., D)
    z: Tensor  # (..., D)
    k: Tensor | None  # (..., F), or None for a bijection


class Components(NamedTuple):
    """Distinct values of k with what belongs to each; the first is the largest."""

    k: Tensor  # (C, M)
    labels: Tensor  # (N,) which of them each row has
    mass: Tensor  # (C,) share of the rows


class Preimages(NamedTuple):
    """All x with the same z."""

    x: Tensor  # (..., C, D); where `log_prob` is -inf no x belongs to this k
    k: Tensor  # (C, M)
    log_prob: Tensor  # (..., C) log p(k | z)


class FlowDistribution(Shown, Distribution):
    r"""The distribution of x under a stack of transforms `x -> z` towards a base distribution.

        log p(x) = log p_Z(z) + sum_l [log|det dz_l/dx_l| + log p(k_l | z_l)]

    The sum is over the layers; bijections have no k. The components of the mixture, one for each k, have disjoint
    supports, so `log p(x, k) = log p(x)` for the k of x, and nothing is summed over k.

    Args:
        transforms: applied to x one after the other.
        base: the distribution of z, event shape `(D,)`.
        parameter: a tensor of the type and on the device to compute with.

    Source:
        RAD, sections 2.1 and 2.2.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector

    def __init__(self, transforms: Sequence[Transform], base: Distribution, parameter: Tensor) -> None:
        self.transforms: list[Any] = list(transforms)  # zuko adds methods to torch's Transform
        self.base = base
        self._like = parameter
        self.has_rsample = not any(isinstance(transform, FoldTransform) for transform in self.transforms)
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def _facts(self) -> dict[str, str]:
        """The dimension, the layers, and the base."""
        layers = f"{len(self.transforms)} ({len(self.folds)} fold)" if self.folds else str(len(self.transforms))
        return {"D": str(self.event_shape[0]), "layers": layers, "base": type(self.base).__name__}

    def __repr__(self) -> str:
        layers, folds = len(self.transforms), len(self.folds)
        batch = f", batch_shape={tuple(self.batch_shape)}" if self.batch_shape else ""
        return f"FlowDistribution(D={self.event_shape[0]}, {layers} transforms, {folds} of them folds{batch})"

    @property
    def folds(self) -> list[FoldTransform]:
        """The layers that have a discrete latent."""
        return [transform for transform in self.transforms if isinstance(transform, FoldTransform)]

    @property
    def index_sizes(self) -> list[int]:
        """The number of entries of k that each of the folds has."""
        return [len(fold.layer.folded) for fold in self.folds]

    def log_prob(self, value: Rows) -> Tensor:
        """`log p(x)` in nats, `(...)` for x `(..., D)`, differentiable in x, the parameters and the context.

        Raises:
            ShapeError, EmptyDataError: x does not have D columns, or has no rows.
            NonFiniteError: x is not finite, or is so large that `log p(x)` is not.
        """
        log_p = self.log_prob_of(self._event(value, "x"))
        if not torch.isfinite(log_p).all():
            row = int((~torch.isfinite(log_p)).flatten().nonzero()[0])
            raise NonFiniteError(
                f"log p(x) of row {row} is {log_p.flatten()[row].item()}: the row or a parameter of the flow is out of "
                "range; rescale x, or train with a smaller lr"
            )
        return log_p

    def log_prob_of(self, x: Tensor) -> Tensor:
        """`log_prob` of a tensor that needs no checking, as in a training step."""
        terms: Tensor | float = 0.0
        for transform in self.transforms:
            x, term = transform.call_and_ladj(x)
            terms = terms + (term if transform.domain.event_dim else term.sum(-1))
        return self.base.log_prob(x) + terms

    def encode(self, value: Rows) -> Encoded:
        """The latents `(z, k)` of x, `(..., D)` and `(..., M)`; without folds M is 0.

        Raises:
            ShapeError, EmptyDataError, NonFiniteError: as `log_prob`.
        """
        x, indices = self._event(value, "x"), []
        for transform in self.transforms:
            if isinstance(transform, FoldTransform):
                x, index, *_ = transform.fold(x)
                indices.append(index)
            else:
                x = transform(x)
        return Encoded(x, self._joined(indices, x))

    def decode(self, z: Rows, k: Rows) -> Tensor:
        """x for the latents `(z, k)`: the inverse of `encode`, exact up to rounding.

        A pair that has probability 0, with a piece that does not reach z, is mapped by the line that the piece lies
        on; `log_prob_index` is `-inf` there.

        Raises:
            ShapeError: z or k has the wrong number of columns.
            ParameterError: k holds a piece that does not exist.
        """
        x, indices = self._latents(z, k)
        for transform in reversed(self.transforms):
            x = transform.unfold(x, indices.pop()) if isinstance(transform, FoldTransform) else transform.inv(x)
        return x

    def log_prob_index(self, z: Rows, k: Rows) -> Tensor:
        """`log p(k | z)` in nats, `(...)`, the sum over the layers; `-inf` where no x has these latents."""
        x, indices = self._latents(z, k)
        total = torch.zeros(x.shape[:-1], dtype=x.dtype, device=x.device)
        for transform in reversed(self.transforms):
            if isinstance(transform, FoldTransform):
                index = indices.pop()
                total = total + transform.log_gate(x).gather(-1, index[..., None]).squeeze(-1).sum(-1)
                x = transform.unfold(x, index)
            else:
                x = transform.inv(x)
        return total

    def path(self, value: Rows) -> list[Step]:
        """Each transform of the stack with what goes in, what comes out, and the pieces that were taken."""
        x, steps = self._event(value, "x"), []
        for transform in self.transforms:
            if isinstance(transform, FoldTransform):
                z, index, *_ = transform.fold(x)
                steps.append(Step(x, z, index))
            else:
                z = transform(x)
                steps.append(Step(x, z, None))
            x = z
        return steps

    def components(self, value: Rows) -> Components:
        """The rows of x, `(N, D)`, grouped by k: which component of the mixture each row belongs to."""
        k = self.encode(value).k
        if k.ndim != 2:
            raise ShapeError(f"x must be a table of shape (N, {self.event_shape[0]}); got {k.ndim} dimension(s)")
        found, labels, counts = torch.unique(k, dim=0, return_inverse=True, return_counts=True)
        order = counts.argsort(descending=True, stable=True)
        return Components(found[order], order.argsort()[labels], counts[order] / len(k))

    def log_prob_component(self, value: Rows, k: Rows) -> Tensor:
        """`log p(x, k)` in nats: `log p(x)` where x belongs to the component k, `(M,)`, and `-inf` elsewhere.

        The density of the component itself, `p(x | k)`, is this over its mass `p(k)`, which has no closed form;
        `components(distribution.sample((n,)))` estimates it.
        """
        index = torch.as_tensor(k, device=self._like.device)
        log_p = self.log_prob(value)
        belongs = (self.encode(value).k == index).all(-1)
        return torch.where(belongs, log_p, torch.full_like(log_p, -torch.inf))

    def preimages(self, z: Rows) -> Preimages:
        """All x that have the latent z, `(..., D)`, one for each k, with `log p(k | z)`.

        Raises:
            ParameterError: there are more than 100,000 values of k.
        """
        z = self._event(z, "z")
        count = 1
        for fold in self.folds:
            count *= fold.layer.pieces ** len(fold.layer.folded)
        if count > _MAX_COMPONENTS:
            raise ParameterError(
                f"z has {count:.3g} preimages, more than {_MAX_COMPONENTS}; decode the values of k that matter, "
                "such as those that components(x) finds"
            )
        ranges = [torch.arange(fold.layer.pieces) for fold in self.folds for _ in range(len(fold.layer.folded))]
        k = torch.cartesian_prod(*ranges).reshape(count, len(ranges)) if ranges else torch.zeros(1, 0).long()
        k = k.to(self._like.device)
        many = z[..., None, :].expand(*z.shape[:-1], count, -1)
        each = k.expand(*z.shape[:-1], -1, -1)
        return Preimages(self.decode(many, each), k, self.log_prob_index(many, each))

    def sample(self, sample_shape: Sequence[int] = (), seed: int | None = None) -> Tensor:
        """Draws of x, `(*sample_shape, *batch_shape, D)`."""
        with torch.no_grad():
            return self._draw(sample_shape, seed)

    def rsample(self, sample_shape: Sequence[int] = (), seed: int | None = None) -> Tensor:
        """Draws of x that are differentiable in the parameters, where there are no folds.

        Raises:
            NotImplementedError: k is drawn in a fold, and a draw of k has no derivative.
        """
        if not self.has_rsample:
            raise NotImplementedError(
                "a flow with folds draws discrete latents, which have no derivative; use sample, or log_prob"
            )
        return self._draw(sample_shape, seed)

    def _draw(self, sample_shape: Sequence[int], seed: int | None) -> Tensor:
        if seed is not None:
            with own_random_state(whole(seed, "seed", None), self._like.device):
                return self._draw(sample_shape, None)
        shape = torch.Size(sample_shape)
        x = self.base.rsample(shape) if self.base.has_rsample else self.base.sample(shape)
        for transform in reversed(self.transforms):
            x = transform.inv(x)
        return x

    def expand(self, batch_shape: Sequence[int], _instance: Distribution | None = None) -> FlowDistribution:
        """Repeats the distribution over a batch."""
        return FlowDistribution(self.transforms, self.base.expand(torch.Size(batch_shape)), self._like)

    def _event(self, value: Rows, name: str) -> Tensor:
        event = as_tensor(value, name, self._like.device).to(self._like.dtype)
        D = self.event_shape[0]
        if event.ndim == 0 or event.shape[-1] != D:
            raise ShapeError(
                f"{name} has shape {tuple(event.shape)}, but the flow has {D} features; pass an array of shape (N, {D})"
            )
        if event.numel() == 0:
            raise EmptyDataError(f"{name} has no rows; pass at least one")
        check_finite(event.detach(), name)
        # rows and contexts side by side: not every transform of zuko does that itself
        return event.expand(*torch.broadcast_shapes(event.shape[:-1], self.batch_shape), D)

    def _latents(self, z: Rows, k: Rows) -> tuple[Tensor, list[Tensor]]:
        z, sizes = self._event(z, "z"), self.index_sizes
        index = torch.as_tensor(k, device=self._like.device)
        if index.is_floating_point() or index.ndim == 0 or index.shape[-1] != sum(sizes):
            raise ShapeError(
                f"k must be whole numbers of shape (..., {sum(sizes)}), as encode gives them; "
                f"got {index.dtype} of shape {tuple(index.shape)}"
            )
        index = index.expand(*z.shape[:-1], -1).long()  # z has the shape of the context by now
        parts = list(index.split(sizes, -1)) if sizes else []
        for fold, part in zip(self.folds, parts, strict=True):
            if part.numel() and not 0 <= int(part.min()) <= int(part.max()) < fold.layer.pieces:
                raise ParameterError(f"k must hold pieces from 0 to {fold.layer.pieces - 1}")
        return z, parts

    @staticmethod
    def _joined(indices: list[Tensor], x: Tensor) -> Tensor:
        if indices:
            return torch.cat(indices, -1)
        return torch.zeros(*x.shape[:-1], 0, dtype=torch.int64, device=x.device)
