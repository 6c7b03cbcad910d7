r"""The update of the hidden layers: damped normal equations over cells, with activation patterns held fixed.

On a convex piece of a cell the statistics act like S + 1 weighted pseudo-points, the columns of P with
`P P^T = moments`. With the pattern held fixed, the hidden features at them are multilinear in the layers'
parameters; to first order

    d h = sum_l B_l (dW_l, dv_l) F_l

with `F_l` the layer's input (and 1) at the pseudo-points and `B_l` the map from its output to the last hidden
features. All hidden layers move together; the last affine map is updated apart, exactly. The Hessian used is that
of the expected complete-data log-likelihood, damped (Levenberg-Marquardt). The direction ascends the exact
likelihood, by Fisher's identity; how far to go is decided by the caller on the exact likelihood, since the
cells move with the parameters (the papers' updates ignore this, and can lower the likelihood).

`sweep` has the papers' own updates (EM-DGN, appendix G.2, eq. 23 and 24): one layer after the other, each at the
minimum of the expected error with all others fixed. In its own parameters a layer's `d h` above has no other terms, so
this is no approximation but for the patterns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, cast

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor, nn

from girih.em.mstep import WeightPrior, coordinate_descent, pseudo_inverse
from girih.errors import ParameterError
from girih.inference import Model, Statistics
from girih.networks import KinkStep, LinearStep, Trace
from girih.partition import Partition

# Up to this many parameters the normal matrix is formed; beyond, conjugate gradients never form it.
DENSE_LIMIT = 1500

# Share of the largest curvature added to all in the damping, so that parameters without any effect stay put.
_ISOTROPIC = 1e-6


class NormalSystem:
    """A system solves `(A + damping diag A) d = gradient`, with the prior's part, for all parameters before the head.

    Subclasses set the attributes and say how A multiplies a step.

    Attributes:
        current: the parameters, `(size,)`.
        penalised: which of them have a prior.
        gradient: of the exact log-likelihood, summed over rows.
        diagonal: of A, or an estimate of it.
        prior: on the weights, or `None`.
        dense: A `(size, size)` where it is small enough to be formed.
    """

    current: Tensor
    penalised: Tensor
    gradient: Tensor
    diagonal: Tensor
    prior: WeightPrior | None
    dense: Tensor | None
    _tolerance: ClassVar[float] = 1e-6
    _steps: ClassVar[int] = 200

    @property
    def size(self) -> int:
        """The number of parameters."""
        return len(self.current)

    def times(self, step: Tensor) -> Tensor:
        """A times a step, `(size,)`."""
        raise NotImplementedError

    def changes(self, step: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
        """The parameters, and by how much a step changes each."""
        raise NotImplementedError

    def direction(self, damping: float) -> Tensor:
        """The damped step of all parameters, `(size,)`; see `changes`."""
        if self.prior is not None and self.prior.family != "gaussian":
            return self._proximal(self._damped(damping))
        return self.solve(self.penalised_gradient, damping)

    def minimum(self) -> Tensor:
        """The step without damping, `(size,)`: the least one where the minimum is not unique."""
        if self.dense is None or (self.prior is not None and self.prior.family != "gaussian"):
            return self.direction(0.0)
        ridge = self._ridge
        matrix = self.dense if ridge is None else self.dense + torch.diag(ridge)
        return self.penalised_gradient @ pseudo_inverse(matrix)

    @property
    def penalised_gradient(self) -> Tensor:
        """The gradient with that of a Gaussian prior."""
        ridge = self._ridge
        return self.gradient if ridge is None else self.gradient - ridge * self.current

    def solve(self, right: Tensor, damping: float) -> Tensor:
        """`(A + damping + ridge)^-1 right`."""
        damped, ridge = self._damped(damping), self._ridge
        damped = damped if ridge is None else damped + ridge
        if self.dense is not None:
            factor, info = torch.linalg.cholesky_ex(self.dense + torch.diag(damped))
            if not int(info):
                return torch.cholesky_solve(right[:, None], factor)[:, 0]
        return self._conjugate_gradients(right, damped)

    @property
    def _ridge(self) -> Tensor | None:
        if self.prior is None or self.prior.family != "gaussian":
            return None
        return self.penalised.to(self.gradient) / self.prior.scale**2

    def _damped(self, damping: float) -> Tensor:
        return damping * (self.diagonal + _ISOTROPIC * self.diagonal.max())

    def _conjugate_gradients(self, right: Tensor, damped: Tensor) -> Tensor:
        def times(v: np.ndarray) -> np.ndarray:
            step = torch.as_tensor(v.ravel()).to(right)
            return (self.times(step) + damped * step).cpu().numpy()

        shape = (self.size, self.size)
        scale = (self.diagonal + damped).clamp(min=torch.finfo(torch.float64).tiny).cpu().numpy()
        jacobi = LinearOperator(shape, matvec=lambda v: v.ravel() / scale, dtype=np.float64)
        operator = LinearOperator(shape, matvec=times, dtype=np.float64)
        step, _ = cg(operator, right.cpu().numpy(), M=jacobi, rtol=self._tolerance, maxiter=self._steps)
        return torch.as_tensor(step).to(right)

    def _proximal(self, damped: Tensor) -> Tensor:
        if self.dense is None or self.prior is None:
            raise ParameterError(
                f"a Laplace or uniform weight prior needs the normal matrix, and {self.size} hidden parameters are too "
                "many to form it; use a Gaussian weight prior"
            )
        one = torch.ones(1, dtype=torch.float64, device=self.gradient.device)
        matrix = self.dense + torch.diag(damped)
        step = coordinate_descent(matrix, self.gradient[None], self.current[None], self.penalised, self.prior, one)
        return step[0]


@dataclass(frozen=True)
class Layer:
    """A layer is one hidden affine stage: its input at the pseudo-points, its effect on the last hidden features."""

    stage: LinearStep
    inputs: Tensor  # F: (P, S + 1, in + 1), or (P, S + 1, in) without a bias
    effect: Tensor  # B: (P, H, out)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.effect.shape[2] * self.inputs.shape[2]


def pieces(partition: Partition) -> tuple[Tensor, Tensor]:
    """The patterns `(P, U)` and origins `(P, S)` of the convex pieces that the statistics run over."""
    return partition.piece_patterns, partition.piece_origins


@torch.no_grad()
def hidden_layers(trace: Trace, partition: Partition) -> list[Layer]:
    """Every affine stage before the last hidden features."""
    patterns, origins = pieces(partition)
    jets = trace.jets(patterns, origins)
    body = (trace.chain or ())[: trace.features]
    cells, width = len(patterns), jets[len(body)].value.shape[1]
    effect = torch.eye(width, dtype=torch.float64, device=trace.device).expand(cells, -1, -1)
    layers: list[Layer] = []
    end = trace.hidden_units
    for stage, jet in reversed(list(zip(body, jets, strict=False))):
        if isinstance(stage, KinkStep):
            slopes = stage.slopes(patterns[:, end - stage.size : end])
            effect = effect * slopes[:, None, :]
            end -= stage.size
            continue
        inputs = torch.cat((jet.slope.mT, jet.value[:, None, :]), 1)
        if stage.has_bias:
            ones = torch.zeros_like(inputs[:, :, :1])
            ones[:, -1] = 1.0
            inputs = torch.cat((inputs, ones), 2)
        layers.insert(0, Layer(stage, inputs, effect))
        effect = effect @ stage.weight
    return layers


class HiddenSystem(NormalSystem):
    """This system has all hidden layers of a chain, whose blocks are Kronecker products.

    Args:
        model, statistics: of the current parameters.
        layers: from `hidden_layers`.
        prior: on the weights, or `None`.
    """

    def __init__(self, model: Model, s: Statistics, layers: list[Layer], prior: WeightPrior | None) -> None:
        self.layers, self.prior, self._moments = layers, prior, s.moments
        self._precision = model.weight.mT @ model.noise.solve(model.weight)
        self.current = torch.cat([_parameters(layer).flatten() for layer in layers])
        self.penalised = torch.cat([_is_weight(layer).flatten() for layer in layers])
        self.gradient = self._adjoint(s.pull.mT)
        self.diagonal = torch.cat([self._layer_diagonal(layer).flatten() for layer in layers])
        self.dense = self._normal_matrix() if self.size <= DENSE_LIMIT else None

    def split(self, step: Tensor) -> list[Tensor]:
        """A step as one `(out, in + 1)` change for each layer."""
        parts = step.split([layer.size for layer in self.layers])
        return [p.reshape(layer.effect.shape[2], -1) for p, layer in zip(parts, self.layers, strict=True)]

    def changes(self, step: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
        """The weights and biases, and by how much a step changes each."""
        changes: list[tuple[nn.Parameter, Tensor]] = []
        for layer, change in zip(self.layers, self.split(step), strict=True):
            module = layer.stage.module
            changes.append((cast(nn.Parameter, module.weight), change[:, : layer.stage.in_features]))
            if isinstance(module.bias, nn.Parameter):
                changes.append((module.bias, change[:, -1]))
        return changes

    def times(self, step: Tensor) -> Tensor:
        """A times a step."""
        return self._adjoint(self.response(step))

    def response(self, step: Tensor) -> Tensor:
        """By how much a step lowers the pull, transposed: `(P, S + 1, H)`; exact where one layer alone moves."""
        return self._moments @ self._forward(step) @ self._precision

    def _forward(self, step: Tensor) -> Tensor:
        """The change of the hidden features at the pseudo-points, `(P, S + 1, H)`."""
        changes = self.split(step)
        parts = [(k.inputs @ change.mT) @ k.effect.mT for k, change in zip(self.layers, changes, strict=True)]
        return torch.stack(parts).sum(0)

    def _adjoint(self, values: Tensor) -> Tensor:
        """The transpose of `_forward`, for values `(P, S + 1, H)`."""
        parts = [((values @ layer.effect).mT @ layer.inputs).sum(0) for layer in self.layers]
        return torch.cat([part.flatten() for part in parts])

    def _layer_diagonal(self, layer: Layer) -> Tensor:
        out = ((self._precision @ layer.effect) * layer.effect).sum(1)
        into = ((self._moments @ layer.inputs) * layer.inputs).sum(1)
        return out.mT @ into

    def _normal_matrix(self) -> Tensor:
        """A in blocks: each piece gives `(B_k^T G B_m) x (F_k^T M F_m)`, a Kronecker product."""
        rows = []
        for k in self.layers:
            row = []
            for m in self.layers:
                out = k.effect.mT @ self._precision @ m.effect  # (P, out_k, out_m)
                into = k.inputs.mT @ self._moments @ m.inputs  # (P, in_k, in_m)
                block = torch.einsum("rab,rij->aibj", out, into)
                row.append(block.reshape(k.size, m.size))
            rows.append(torch.cat(row, 1))
        return torch.cat(rows, 0)


def _parameters(layer: Layer) -> Tensor:
    weight = layer.stage.weight.detach()
    return torch.cat((weight, layer.stage.bias.detach()[:, None]), 1) if layer.stage.has_bias else weight


def _is_weight(layer: Layer) -> Tensor:
    mask = torch.ones_like(_parameters(layer), dtype=torch.bool)
    if layer.stage.has_bias:
        mask[:, -1] = False
    return mask


@torch.no_grad()
def sweep(trace: Trace, partition: Partition, model: Model, s: Statistics, prior: WeightPrior | None) -> None:
    """Move each hidden layer of a chain, from the first on, to its closed-form M-step, in place.

    Weight and bias of a layer are solved together, so that both of the papers' equations, each with the other
    parameter at its new value, hold at once; the layers that follow see the new values, as in their formulas. Moments
    and patterns are those of the parameters before the sweep.

    Args:
        trace: of the network, whose parameters are changed.
        partition: of its parameters before.
        model: of these.
        s: the statistics at these.
        prior: on the weights.

    Source:
        EM-DGN, appendix G.2, eq. 23 (which lost the weight `e0` inside the inverse) and 24.
    """
    pull = s.pull
    for index in range(len(hidden_layers(trace, partition))):
        layer = hidden_layers(trace, partition)[index]  # at the values that the layers before it have by now
        system = HiddenSystem(model, replace(s, pull=pull), [layer], prior)
        step = system.minimum()
        pull = pull - system.response(step).mT
        for parameter, change in system.changes(step):
            parameter.add_(change)
