r"""`log p(x)` with gradients by Fisher's identity, and second derivatives in x.

    grad log p(x) = E[ grad log p(x, z) | x ]

so the gradient in every parameter is a function of the E-step's statistics, with the upstream gradients as row
weights, and no integral is differentiated. Cell limits move with the parameters too, but the integrand is
continuous across them, so they contribute nothing.

In x, with the noise N and its observed part where entries are missing,

    score(x)            = d log p(x) / dx      = -N^-1 (x - E[g(z) | x])
    curvature(x)        = d^2 log p(x) / dx^2  = N^-1 Cov[g(z) | x] N^-1 - N^-1

Other second derivatives, and third ones, need third moments of truncated Gaussians and terms of moving cell limits.
They raise `DerivativeError`: where something could flow into them, the graph goes through a `_Barrier`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, Protocol, TypeAlias

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd.function import FunctionCtx

from girih.covariance import Covariance
from girih.errors import DerivativeError
from girih.inference.model import Evidence, Model, chunks
from girih.inference.statistics import Statistics, evidence, expect, sufficient_statistics

IN_PARAMETERS = (
    "second derivatives of log p(x) that involve the parameters (network, noise, prior) are not available, only those "
    "in x alone; detach the parameters (dgn.requires_grad_(False)), or take differences of first derivatives"
)
_THIRD = "third derivatives of log p(x) are not available; take differences of second ones"
_FORWARD = (
    "forward-mode derivatives of log p(x) in the parameters (jvp, jacfwd, forward_ad) are not available, only those in "
    "x; use reverse mode: backward, torch.func.grad, vjp or jacrev"
)
_DENOISED = (
    "denoise is not differentiable; differentiate x + noise * score(x) instead, which equals it for complete rows"
)
_NESTED = "forward mode over forward mode is not available for log p(x): use torch.func.hessian, or jacfwd of jacrev"
_OLD_BATCHES = (
    "vectorize=True and is_grads_batched=True are not available for log p(x): use torch.func.jacrev and "
    "torch.func.hessian, or leave them out"
)
BATCHED = (
    "torch.func.vmap over the parameters of a DGN is not available, since each set of parameters has cells of its own; "
    "loop over the sets"
)


Dims: TypeAlias = tuple[int | None, ...]


class _Context(FunctionCtx):
    """Torch hands this from the forward to the backward pass, with what the functions below keep in it."""

    model: Model
    parameters: Sequence[Tensor]
    message: str
    count: int
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]


class _Batch(Protocol):
    """`torch.func.vmap` says this about a batch."""

    batch_size: int


class MarginalLogProb(torch.autograd.Function):
    """`log p(x)` `(N,)`, with gradients in x, the hidden features on the pieces, the last map, the noise and the prior.

    `model` holds the detached values of all these tensors.
    """

    @staticmethod
    def forward(model: Model, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        """Exact log-densities, and the bounds on what was left out of them and on their rounding."""
        found: Evidence = evidence(model, x.detach())
        return found.log_prob, found.left_out, found.rounding

    @staticmethod
    def setup_context(ctx: _Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep x, and the parameters for the graph of second derivatives alone: their values are those of `model`."""
        ctx.model, x, *ctx.parameters = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)  # what has no tangent is seen as None

    @staticmethod
    def backward(ctx: _Context, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        """The score, and statistics with the upstream gradient as row weights, turned into gradients."""
        if grad is None:
            return (None,) * (2 + len(ctx.parameters))
        (x,) = ctx.saved_tensors
        in_x: Tensor | None = None
        gradients: tuple[Tensor | None, ...] = (None,) * len(ctx.parameters)
        if ctx.needs_input_grad[1]:
            in_x = grad[:, None] * score_of(ctx.model, x, ctx.parameters)
        if any(ctx.needs_input_grad[2:]):
            gradients = _ParameterGradient.apply(ctx.model, grad, x, *ctx.parameters)
        return None, in_x, *gradients

    @staticmethod
    def jvp(ctx: _Context, _: None, direction: Tensor | None, *others: Tensor | None) -> tuple[Tensor, None, None]:
        """The score along a direction in x."""
        _refuse_tangents(others, _FORWARD)
        (x,) = ctx.saved_tensors
        assert direction is not None
        return (score_of(ctx.model, x, ctx.parameters) * direction).sum(1), None, None

    @staticmethod
    def vmap(
        info: _Batch, in_dims: Dims, model: Model, x: Tensor, *parameters: Tensor
    ) -> tuple[tuple[Tensor, ...], Dims]:
        """A batch of tables as one long table."""
        _refuse_batches(in_dims[2:])
        found = MarginalLogProb.apply(model, _one_table(x, in_dims[1]), *parameters)
        return tuple(part.unflatten(0, (info.batch_size, -1)) for part in found), (0, 0, 0)


def log_prob_of(model: Model, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """`log p(x)`, what was left out of it and its rounding, `(N,)` each; see `MarginalLogProb` for the parameters."""
    _refuse_nested_forward(x)
    result: tuple[Tensor, ...] = MarginalLogProb.apply(model, x, *parameters)
    return result


def score_of(model: Model, x: Tensor, parameters: Sequence[Tensor] = ()) -> Tensor:
    """`score(model, x)`, differentiable in x; derivatives in the parameters raise."""
    _refuse_nested_forward(x)
    if torch.is_grad_enabled():
        parameters = [_Barrier.apply(parameter, IN_PARAMETERS) for parameter in parameters]
    result: Tensor = _Score.apply(model, x, *parameters)
    return result


class _Barrier(torch.autograd.Function):
    """A tensor as it is, whose derivatives raise when, and only when, something asks for them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, message: str) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: _Context, inputs: tuple[Tensor, str], output: Tensor) -> None:
        ctx.message = inputs[1]

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> NoReturn:
        raise DerivativeError(ctx.message)

    @staticmethod
    def jvp(ctx: _Context, *tangents: Tensor | None) -> NoReturn:
        raise DerivativeError(ctx.message)


class _Score(torch.autograd.Function):
    """`score(model, x)` `(N, D)`, whose derivative in x is the curvature."""

    @staticmethod
    def forward(model: Model, x: Tensor, *parameters: Tensor) -> Tensor:
        return score(model, x.detach())

    @staticmethod
    def setup_context(ctx: _Context, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.model, x = inputs[:2]
        ctx.count = len(inputs) - 2
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, *[None] * ctx.count
        (x,) = ctx.saved_tensors  # the curvature is symmetric
        return None, _Curvature.apply(ctx.model, _Barrier.apply(x, _THIRD), grad), *[None] * ctx.count

    @staticmethod
    def jvp(ctx: _Context, _: None, direction: Tensor | None, *others: Tensor | None) -> Tensor:
        _refuse_tangents(others, IN_PARAMETERS)
        (x,) = ctx.saved_tensors
        assert direction is not None
        result: Tensor = _Curvature.apply(ctx.model, _Barrier.apply(x, _THIRD), direction)
        return result

    @staticmethod
    def vmap(info: _Batch, in_dims: Dims, model: Model, x: Tensor, *parameters: Tensor) -> tuple[Tensor, int]:
        return _as_one_table(_Score, info, in_dims, model, x, parameters), 0


class Denoised(torch.autograd.Function):
    """`denoised(model, x)` `(N, D)`, whose derivatives raise."""

    @staticmethod
    def forward(model: Model, x: Tensor, *parameters: Tensor) -> Tensor:
        """The expected images of the latents."""
        return denoised(model, x.detach())

    @staticmethod
    def setup_context(ctx: _Context, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> NoReturn:
        """Refused."""
        raise DerivativeError(_DENOISED)

    @staticmethod
    def jvp(ctx: _Context, *tangents: Tensor | None) -> NoReturn:
        """Refused."""
        raise DerivativeError(_DENOISED)

    @staticmethod
    def vmap(info: _Batch, in_dims: Dims, model: Model, x: Tensor, *parameters: Tensor) -> tuple[Tensor, int]:
        """A batch of tables as one long table."""
        return _as_one_table(Denoised, info, in_dims, model, x, parameters), 0


class _Curvature(torch.autograd.Function):
    """`curvature(x_n) v_n` for directions v `(N, D)` or `(N, D, M)`: linear in them, not differentiable in x."""

    @staticmethod
    def forward(model: Model, x: Tensor, direction: Tensor) -> Tensor:
        _refuse_old_batches(direction)
        columns = direction.detach()[:, :, None] if direction.ndim == 2 else direction.detach()
        return curvature(model, x.detach(), columns).reshape(direction.shape)

    @staticmethod
    def setup_context(ctx: _Context, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.model, x, _ = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None
        (x,) = ctx.saved_tensors
        return None, None, _Curvature.apply(ctx.model, x, grad)

    @staticmethod
    def jvp(ctx: _Context, _: None, in_x: Tensor | None, direction: Tensor | None) -> Tensor:
        _refuse_tangents((in_x,), _THIRD)
        (x,) = ctx.saved_tensors
        result: Tensor = _Curvature.apply(ctx.model, x, direction)
        return result

    @staticmethod
    def vmap(info: _Batch, in_dims: Dims, model: Model, x: Tensor, direction: Tensor) -> tuple[Tensor, int]:
        _, rows, columns = in_dims
        if rows is None:  # the same rows, so that their moments are found once
            assert columns is not None
            direction = direction.movedim(columns, -1)
            shape = direction.shape
            found = _Curvature.apply(model, x, direction.flatten(2) if direction.ndim > 3 else direction)
            return found.reshape(shape), found.ndim - 1 if len(shape) == 3 else len(shape) - 1
        size = info.batch_size
        many = direction.expand(size, *direction.shape) if columns is None else direction.movedim(columns, 0)
        found = _Curvature.apply(model, x.movedim(rows, 0).flatten(0, 1), many.flatten(0, 1))
        return found.unflatten(0, (size, -1)), 0


class _ParameterGradient(torch.autograd.Function):
    """Gradients of `sum_n g_n log p(x_n)` in (value, slope, weight, bias, prior, *noise); not differentiable."""

    @staticmethod
    def forward(model: Model, grad: Tensor, x: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        _refuse_old_batches(grad)
        used = grad.detach() != 0.0
        if not used.any():
            return tuple(torch.zeros_like(parameter) for parameter in parameters)
        x, grad = x.detach(), grad.detach()
        if not used.all():
            x, grad = x[used], grad[used]
        return gradient(model, sufficient_statistics(model, x, grad))

    @staticmethod
    def setup_context(ctx: _Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> NoReturn:
        raise DerivativeError(IN_PARAMETERS)

    @staticmethod
    def jvp(ctx: _Context, *tangents: Tensor | None) -> NoReturn:
        raise DerivativeError(IN_PARAMETERS)

    @staticmethod
    def vmap(
        info: _Batch, in_dims: Dims, model: Model, grad: Tensor, x: Tensor, *parameters: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        _refuse_batches(in_dims[3:])
        grads, tables = (
            part.expand(info.batch_size, *part.shape) if dim is None else part.movedim(dim, 0)
            for part, dim in ((grad, in_dims[1]), (x, in_dims[2]))
        )
        parts = [_ParameterGradient.apply(model, g, table, *parameters) for g, table in zip(grads, tables, strict=True)]
        return tuple(torch.stack(part) for part in zip(*parts, strict=True)), (0,) * len(parameters)


def _as_one_table(
    function: type[torch.autograd.Function],
    info: _Batch,
    in_dims: Dims,
    model: Model,
    x: Tensor,
    parameters: Sequence[Tensor],
) -> Tensor:
    _refuse_batches(in_dims[2:])
    found: Tensor = function.apply(model, _one_table(x, in_dims[1]), *parameters)
    result: Tensor = found.unflatten(0, (info.batch_size, -1))
    return result


def _one_table(x: Tensor, dim: int | None) -> Tensor:
    assert dim is not None, "only x can be batched"
    return x.movedim(dim, 0).flatten(0, 1)


def _refuse_tangents(tangents: Sequence[Tensor | None], message: str) -> None:
    if any(tangent is not None for tangent in tangents):
        raise DerivativeError(message)


def _refuse_nested_forward(x: Tensor) -> None:
    """Forward mode over forward mode, which torch takes for 0 in functions that define their own `jvp`."""
    if not _functorch.is_functorch_wrapped_tensor(x):
        return
    stack = _functorch.get_interpreter_stack() or []
    forward = {layer.level() for layer in stack if layer.key() == _functorch.TransformType.Jvp}
    count = 0
    while _functorch.is_functorch_wrapped_tensor(x):
        count += _functorch.maybe_get_level(x) in forward
        x = _functorch.get_unwrapped(x)
    if count > 1:
        raise DerivativeError(_NESTED)


def _refuse_old_batches(grad: Tensor) -> None:
    if _functorch.is_legacy_batchedtensor(grad):
        raise DerivativeError(_OLD_BATCHES)


def _refuse_batches(dims: Dims) -> None:
    if any(dim is not None for dim in dims):
        raise DerivativeError(BATCHED)


def gradient(model: Model, statistics: Statistics) -> tuple[Tensor, ...]:
    """Gradients of `sum_n g_n log p(x_n)` in (value, slope, weight, bias, prior, *noise)."""
    s = statistics
    head = model.noise.solve(s.outer)
    (in_prior,) = Covariance.from_tensors((model.prior,), model.latent_dim).gradient(s.latent, s.weight)
    in_noise = model.noise.gradient(s.scatter, s.weight)
    return s.pull[:, :, -1], s.pull[:, :, :-1], head[:, :-1], head[:, -1], in_prior, *in_noise


def score(model: Model, x: Tensor) -> Tensor:
    """`d log p(x) / dx` `(N, D)`, 0 at missing entries: minus the precision times the expected residual."""
    out = torch.zeros_like(x)
    for index, rows in chunks(model, x):
        _, e = expect(model, rows)
        residual = torch.nan_to_num(model.without_bias(rows.x)) - e.features(model.cells) @ model.weight.mT
        if rows.observed is not None:
            out[index] = -rows.observed.solve(residual[:, :, None])[:, :, 0]
        else:
            out[index] = -model.noise.solve(residual.mT).mT
    return out


def denoised(model: Model, x: Tensor) -> Tensor:
    """`E[g(z) | x]`, `(N, D)`."""
    out = torch.empty_like(x)
    for index, rows in chunks(model, x):
        _, e = expect(model, rows)
        out[index] = e.features(model.cells) @ model.weight.mT + model.bias
    return out


def curvature(model: Model, x: Tensor, columns: Tensor) -> Tensor:
    """`d^2 log p(x_n) / dx^2` times columns `(N, D, M)`, 0 at missing entries.

    Complete rows need the covariance of the reduced features alone, `L^-1 g = Q T h + ...` with `L L^T` the noise.
    """
    out = torch.empty_like(columns)
    basis, reduced = model.head
    back = model.noise.whiten_transposed(basis)
    cells = model.cells
    small = cells._replace(value=cells.value @ reduced.mT, slope=torch.einsum("kh,phs->pks", reduced, cells.slope))
    for index, rows in chunks(model, x):
        _, e = expect(model, rows)
        v, complete = columns[index], rows.observed is None
        features = small if complete else cells
        mean = torch.nn.functional.pad(e.features(features), (0, 1), value=1.0)
        spread = e.feature_covariance(features, mean)[:, :-1, :-1]
        if rows.observed is None:
            out[index] = back @ (spread @ (back.mT @ v)) - model.noise.solve(v)
        else:
            white = rows.observed.solve(v)
            image = model.weight @ (spread @ (model.weight.mT @ white))
            out[index] = rows.observed.solve(image) - white
    return out
