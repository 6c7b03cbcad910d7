r"""All parameters of a model as one vector without constraints: the coordinates that acceleration works in.

A variance is its logarithm, a covariance `L L^T` with `L = diag(exp a) (1 + strictly lower theta)`; weights and biases
are themselves. So every vector is admissible, and the noise only has to be held above its floor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from girih.em.mstep import at_least, head_parameters
from girih.em.normal import NormalSystem
from girih.em.penalty import pseudo_inverse
from girih.em.step import Evaluation, Problem
from girih.inference.noise import solve


def coordinates(covariance: Tensor) -> Tensor:
    """A scalar variance `()`, variances `(D,)` or a covariance `(D, D)` as a vector without constraints.

    Example:
        >>> import torch
        >>> from girih.em.coordinates import coordinates, covariance_of
        >>> covariance = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
        >>> torch.allclose(covariance_of(coordinates(covariance), covariance), covariance)
        True
    """
    if covariance.ndim < 2:
        return covariance.log().reshape(-1)
    factor = torch.linalg.cholesky(covariance)
    scale = factor.diagonal()
    row, column = _below(len(covariance), covariance.device)
    return torch.cat((scale.log(), (factor / scale[:, None])[row, column]))


def covariance_of(vector: Tensor, like: Tensor) -> Tensor:
    """The inverse of `coordinates`, in the shape of `like`; differentiable."""
    if like.ndim < 2:
        return vector.exp().reshape(like.shape)
    size = len(like)
    factor = torch.eye(size, dtype=vector.dtype, device=vector.device)
    factor = factor.index_put(_below(size, vector.device), vector[size:])
    factor = vector[:size].exp()[:, None] * factor
    return factor @ factor.mT


def _below(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    row, column = torch.tril_indices(size, size, -1, device=device)
    return row, column


def _information(covariance: Tensor, weight: Tensor, columns: int) -> Tensor:
    """The complete-data information of each coordinate, for a covariance near the expected scatter."""
    if covariance.ndim < 2:
        share = columns / max(covariance.numel(), 1)
        return (0.5 * share * weight).expand(covariance.numel())
    size = len(covariance)
    return torch.cat((2.0 * weight.expand(size), weight.expand(size * (size - 1) // 2)))


@dataclass(frozen=True)
class _Block:
    """A covariance that is moved: its coordinates, and gradient and information in them."""

    target: Tensor
    vector: Tensor
    gradient: Tensor
    information: Tensor


class LocalModel:
    """Gradient and complete-data curvature of the penalised log-likelihood in the coordinates, at one evaluation.

    Args:
        problem: with the parameters of the evaluation.
        now: the evaluation.
        learn_prior: whether the latent prior is a coordinate.
    """

    def __init__(self, problem: Problem, now: Evaluation, learn_prior: bool) -> None:
        s, model, dgn = now.statistics, now.model, problem.dgn
        self.problem, self._noise = problem, model.noise
        self.system: NormalSystem | None = problem.system(now)
        head = problem.trained.head
        self._columns = 0 if head is None else head.in_features + int(head.has_bias)
        parts = [] if self.system is None else [self.system.penalised_gradient]
        self._inverse = s.features[:0, :0]
        if head is not None:
            n = self._columns
            ridge = torch.zeros(n, dtype=torch.float64, device=s.features.device)
            pull = solve(model.noise, s.outer[:, :n])
            if problem.prior is not None:
                ridge[: head.in_features] = 1.0 / problem.prior.scale**2
                pull = pull - ridge * head_parameters(model, n)
            variance = model.noise.diagonal().mean() if model.noise.ndim == 2 else model.noise.mean()
            self._inverse = pseudo_inverse(s.features[:n, :n] + variance * torch.diag(ridge))
            parts.append(pull.flatten())
        self.blocks = [_block(dgn.noise, s.scatter, s.weight, model.output_dim)]
        if learn_prior:
            self.blocks.append(_block(dgn.prior, s.latent, s.weight, dgn.latent_dim))
        self.gradient = torch.cat([*parts, *(block.gradient for block in self.blocks)])

    def precondition(self, vector: Tensor, damping: float) -> Tensor:
        """The inverse of the damped complete-data curvature, block by block, times a vector."""
        hidden, head, *blocks = self._split(vector)
        parts = [] if self.system is None else [self.system.solve(hidden, damping)]
        if self._columns:
            scaled = head.reshape(-1, self._columns) @ self._inverse
            noise = self._noise
            parts.append((noise @ scaled if noise.ndim == 2 else noise.reshape(-1, 1) * scaled).flatten())
        parts += [part / block.information for part, block in zip(blocks, self.blocks, strict=True)]
        return torch.cat(parts)

    @torch.no_grad()
    def move(self, step: Tensor) -> Tensor:
        """Change the parameters by a step; returns the step that was made once the noise is above its floor."""
        hidden, head, *blocks = self._split(step)
        if self.system is not None:
            self.problem.change(self.system.changes(hidden))
        if self._columns:
            self.problem.change_head(head.reshape(-1, self._columns))
        made = [hidden, head]
        for index, (block, part) in enumerate(zip(self.blocks, blocks, strict=True)):
            value = covariance_of(block.vector + part, block.target)
            if index == 0:
                value = at_least(value, self.problem.noise_floor)
                part = coordinates(value) - block.vector
            block.target.copy_(value)
            made.append(part)
        return torch.cat(made)

    def _split(self, vector: Tensor) -> tuple[Tensor, ...]:
        hidden = 0 if self.system is None else self.system.size
        blocks = [len(block.vector) for block in self.blocks]
        return vector.split([hidden, len(vector) - hidden - sum(blocks), *blocks])


def _block(target: Tensor, scatter: Tensor, weight: Tensor, columns: int) -> _Block:
    covariance = target.detach()
    if covariance.ndim == 2:
        inverse = torch.linalg.inv(covariance)
        slope = 0.5 * (inverse @ scatter @ inverse - weight * inverse)
    else:
        share = columns / max(covariance.numel(), 1)
        slope = 0.5 * (scatter / covariance - weight * share) / covariance
    vector = coordinates(covariance)
    with torch.enable_grad():
        leaf = vector.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(covariance_of(leaf, covariance), leaf, slope)
    return _Block(target, vector, gradient, _information(covariance, weight, columns))
