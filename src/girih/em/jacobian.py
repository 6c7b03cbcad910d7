r"""The hidden update of any generator: least squares at the pseudo-points through Jacobian products.

`HiddenSystem` writes the effect of each layer of a chain as a Kronecker product. Here nothing is known of the
layers but that the hidden features at the pseudo-points, `h(theta)` `(P, S + 1, H)` with the patterns held fixed,
can be differentiated: with J their Jacobian, G the metric of the features and M the moments of the pieces,

    (J^T (M x G) J + damping diag) d = J^T pull,

solved by conjugate gradients on products with J and its transpose. Shared kernels, shared layers and branches
need nothing of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from girih.em.mstep import WeightPrior
from girih.em.normal_equations import NormalSystem, pieces
from girih.em.parameters import Trained
from girih.inference import DGN, Model, Statistics
from girih.partition import Partition

# Up to this many parameters the Jacobian is formed, column by column.
DENSE_LIMIT = 128

# Random vectors that estimate the diagonal of the normal matrix, and their seed: the same for every system.
_PROBES, _SEED = 6, 0


@contextmanager
def _standing_in(net: nn.Module, substitutes: dict[int, Tensor]) -> Iterator[None]:
    """Let tensors stand in for the parameters with these ids, wherever the network holds them.

    `torch.func.functional_call` leaves a module that is used twice without its parameters.
    """
    held = [(m, k, p) for m in net.modules() for k, p in m._parameters.items() if id(p) in substitutes]
    try:
        for module, key, parameter in held:
            module._parameters[key] = cast(nn.Parameter, substitutes[id(parameter)])
        yield
    finally:
        for module, key, parameter in held:
            module._parameters[key] = parameter


class JacobianSystem(NormalSystem):
    """This system has all trained parameters before the head of any generator, in damped normal equations.

    Its diagonal is exact while the Jacobian is small enough to be formed;
    beyond, it is estimated by a few seeded random vectors and averaged over each parameter tensor.

    Args:
        dgn: the generator; its parameters are copied, so they may be changed while the system is in use.
        trained: what is trained of it.
        model, partition, statistics: of the current parameters.
        prior: a Gaussian prior on the weights, or `None`.
    """

    _tolerance, _steps = 1e-2, 50  # truncated early: each product costs two passes through the network

    def __init__(
        self,
        dgn: DGN,
        trained: Trained,
        model: Model,
        partition: Partition,
        statistics: Statistics,
        prior: WeightPrior | None,
    ) -> None:
        self.trained, self.prior, self._model = trained, prior, model
        kept = (statistics.moments != 0).any(-1).any(-1).nonzero()[:, 0]  # pieces without rows do not matter
        patterns, origins = pieces(partition)
        self._moments, pull = statistics.moments[kept], statistics.pull[kept]
        self._leaves = [p.detach().clone().requires_grad_() for p in trained.hidden.values()]
        self._shapes = [leaf.shape for leaf in self._leaves]
        with torch.enable_grad():
            ids = [id(p) for p in trained.hidden.values()]
            with _standing_in(dgn.net, dict(zip(ids, self._leaves, strict=True))):
                value, slope = dgn.trace.hidden_jet(patterns[kept], origins[kept])
            self._features = torch.cat((slope.mT, value[:, None, :]), 1)  # (P, S + 1, H)
            # products with J are the transpose of those with its transpose, which are linear in `_dual`
            self._dual = torch.zeros_like(self._features, requires_grad=True)
            self._back = torch.autograd.grad(
                self._features, self._leaves, self._dual, create_graph=True, materialize_grads=True
            )
        self.current = _flat(self._leaves).detach()
        weights = {id(p) for p in trained.weights}
        self.penalised = _flat(
            [torch.full(p.shape, id(p) in weights, device=p.device) for p in trained.hidden.values()]
        )
        self.gradient = self._adjoint(pull.mT)
        self.dense = self._normal_matrix() if self.size <= DENSE_LIMIT else None
        self.diagonal = self._estimate_diagonal() if self.dense is None else self.dense.diagonal().clone()

    def split(self, step: Tensor) -> list[Tensor]:
        """A step as one change for each parameter."""
        parts = step.split([shape.numel() for shape in self._shapes])
        return [part.reshape(shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def changes(self, step: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
        """The parameters, and by how much the step changes each."""
        return list(zip(self.trained.hidden.values(), self.split(step), strict=True))

    def times(self, step: Tensor) -> Tensor:
        """A times a step, without the damping."""
        return self._adjoint(self._weigh(self._forward(step)))

    def _forward(self, step: Tensor) -> Tensor:
        """J times a step: the change of the hidden features, `(P, S + 1, H)`."""
        return torch.autograd.grad(self._back, self._dual, self.split(step), retain_graph=True, materialize_grads=True)[
            0
        ].detach()

    def _adjoint(self, values: Tensor) -> Tensor:
        """The transpose of J times values `(P, S + 1, H)`."""
        return _flat(
            torch.autograd.grad(self._features, self._leaves, values, retain_graph=True, materialize_grads=True)
        )

    def _weigh(self, change: Tensor) -> Tensor:
        """M x G times a change of the features, `(..., P, S + 1, H)`."""
        change = self._moments @ change
        columns = change.reshape(-1, change.shape[-1]).mT
        if self.trained.head is None:  # the features are x itself
            weighted = self._model.noise.solve(columns)
        else:
            weight = self._model.weight
            weighted = weight.mT @ self._model.noise.solve(weight @ columns)
        return weighted.mT.reshape(change.shape)

    def _normal_matrix(self) -> Tensor:
        """A, from the columns of the Jacobian."""
        eye = torch.eye(self.size, dtype=torch.float64, device=self.gradient.device)
        jacobian = torch.stack([self._forward(step) for step in eye])
        return self._weigh(jacobian).flatten(1) @ jacobian.flatten(1).mT

    def _estimate_diagonal(self) -> Tensor:
        """With E[w w^T] = M x G, `(J^T w)^2` has the diagonal as its expectation; averaged over each tensor."""
        values, vectors = torch.linalg.eigh(self._moments)
        factor = vectors * values.clamp(min=0.0).sqrt()[:, None, :]
        outputs = self._model.noise.whiten(self._model.weight) if self.trained.head is not None else None
        generator = torch.Generator().manual_seed(_SEED)
        pieces_, points, width = self._features.shape
        total = torch.zeros_like(self.current)
        for _ in range(_PROBES):
            shape = (pieces_, points, width if outputs is None else len(outputs))
            noise = torch.randn(shape, dtype=torch.float64, generator=generator).to(factor)
            if outputs is not None:
                probe = noise @ outputs
            else:
                columns = noise.reshape(-1, width).mT
                probe = self._model.noise.whiten_transposed(columns).mT.reshape(shape)
            total += self._adjoint(factor @ probe).square()
        return _flat([part.mean().expand(part.shape) for part in self.split(total / _PROBES)])


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])
