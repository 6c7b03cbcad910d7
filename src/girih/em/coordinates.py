r"""All parameters of a model as one vector without constraints: the coordinates that acceleration works in.

Those of a noise or prior are `Covariance.coordinates`; weights and biases are themselves. So every vector is
admissible, and the noise only has to be held above its floor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from girih.covariance import Covariance
from girih.em.mstep import head_parameters
from girih.em.normal import NormalSystem
from girih.em.penalty import pseudo_inverse
from girih.em.step import Evaluation, Problem


@dataclass(frozen=True)
class _Block:
    """A covariance that is moved: its coordinates, and gradient and information in them."""

    covariance: Covariance
    assign: Callable[[Covariance], object]
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
            pull = model.noise.solve(s.outer[:, :n])
            if problem.prior is not None:
                ridge[: head.in_features] = 1.0 / problem.prior.scale**2
                pull = pull - ridge * head_parameters(model, n)
            self._inverse = pseudo_inverse(s.features[:n, :n] + model.noise.mean_variance * torch.diag(ridge))
            parts.append(pull.flatten())
        self.blocks = [_block(model.noise, partial(setattr, dgn, "noise_covariance"), s.scatter, s.weight)]
        if learn_prior:
            prior = Covariance.from_tensors((model.prior,), dgn.latent_dim)
            self.blocks.append(_block(prior, lambda value: dgn.prior.copy_(value.tensors[0]), s.latent, s.weight))
        self.gradient = torch.cat([*parts, *(block.gradient for block in self.blocks)])

    def precondition(self, vector: Tensor, damping: float) -> Tensor:
        """The inverse of the damped complete-data curvature, block by block, times a vector."""
        hidden, head, *blocks = self._split(vector)
        parts = [] if self.system is None else [self.system.solve(hidden, damping)]
        if self._columns:
            scaled = head.reshape(-1, self._columns) @ self._inverse
            parts.append(self._noise.times(scaled).flatten())
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
            value = block.covariance.from_coordinates(block.vector + part)
            if index == 0:
                value = value.at_least(self.problem.noise_floor)
                part = value.coordinates - block.vector
            block.assign(value)
            made.append(part)
        return torch.cat(made)

    def _split(self, vector: Tensor) -> tuple[Tensor, ...]:
        hidden = 0 if self.system is None else self.system.size
        blocks = [len(block.vector) for block in self.blocks]
        result: tuple[Tensor, ...] = vector.split([hidden, len(vector) - hidden - sum(blocks), *blocks])
        return result


def _block(covariance: Covariance, assign: Callable[[Covariance], object], scatter: Tensor, weight: Tensor) -> _Block:
    vector, slope = covariance.coordinates, covariance.gradient(scatter, weight)
    with torch.enable_grad():
        leaf = vector.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(covariance.from_coordinates(leaf).tensors, leaf, slope)
    return _Block(covariance, assign, vector, gradient, covariance.information(weight))
