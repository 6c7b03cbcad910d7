"""Models whose outputs are not Gaussian, and the distribution of x under them, by cubature over the cells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, NamedTuple, NoReturn

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from girih._options import real, whole
from girih.errors import DerivativeError, NoClosedFormError
from girih.inference.cubature import Integrals, integrate
from girih.inference.cubature_bounds import bracket
from girih.inference.cubature_mesh import Mesh
from girih.inference.cubature_posterior import CubaturePosterior, Some
from girih.inference.cubature_rows import NaturalRows, OutputRows, Simplices
from girih.inference.distribution import DGNDistribution, State
from girih.inference.fisher import IN_PARAMETERS
from girih.inference.model import Evidence, Jets
from girih.inference.outputs import Output
from girih.inference.posterior import Shape, make_generator
from girih.inference.priors import Parts, gaussian_parts
from girih.networks import Trace
from girih.partition import Partition

_PAIRS = 2**17  # of rows and simplices at a time
_LOST = 1e-3  # of a posterior, for its points
# How fine the gradients for EM are, see `Integrals.nodes`: right to 1e-7 or so, at a third of the cost.
_EM_NODES = {1: (1, 1e-9), 2: (0, 1e-9), 3: (0, 1e-9)}


@dataclass(frozen=True, eq=False)
class OutputModel:
    """A model holds the parameters of a `DGN` whose outputs are not Gaussian, detached.

    Attributes:
        prior: the covariance of z, `(S, S)`.
        parts: of the prior.
        tol: as of a `Model`.
    """

    partition: Partition
    cells: Jets
    weight: Tensor  # (K, H)
    bias: Tensor  # (K,)
    output: Output
    scale: Tensor | None
    prior: Tensor
    parts: Parts
    tol: float

    @cached_property
    def mesh(self) -> Mesh:
        """The latent space."""
        return Mesh(self.partition, self.cells, self.parts)

    @property
    def piece_cells(self) -> Tensor:
        """The cell of each piece."""
        return self.partition.cells.piece_cells.to(self.bias.device)

    @property
    def count(self) -> int:
        """The number of cells."""
        return len(self.partition)

    def split(self, x: Tensor) -> Iterator[Some]:
        """Rows as many as there is room for; one by one where the cells end at the kinks of each row."""
        each = self.output.bent
        pairs = len(self.mesh.simplices()[1]) * len(self.parts.constant)
        every = torch.arange(len(x), device=x.device)
        for index in every.split(1 if each else max(1, _PAIRS // pairs)):
            mesh = self.mesh
            if each and not torch.isnan(kinks := self.output.kinks(x[index[0]])).all():
                mesh = Mesh(self.partition, self.cells, self.parts, cut=self.partition.trace.cut_at(kinks))
            rows = self.output.observe(x[index], self.scale)
            likelihood: OutputRows
            if self.output.natural and rows.seen is None:
                likelihood = NaturalRows(self.output, rows, self.weight, self.bias, self.cells)
            else:
                likelihood = OutputRows(self.output, rows, self.weight, self.bias, self.scale)
            yield Some(index, mesh, likelihood, rows.constant)

    def log_prob(self, x: Tensor) -> Tensor:
        """`log p(x)` of rows, `(N,)`."""
        out = torch.empty_like(x[:, 0])
        for some in self.split(x):
            out[some.which] = some.common + integrate(some.mesh, some.likelihood, self.tol).log_p
        return out

    def posterior(self, trace: Trace, x: Tensor) -> CubaturePosterior:
        """The posteriors of rows `(N, D)`."""
        return CubaturePosterior(self, trace.frozen(), x)

    def completed(self, trace: Trace, x: Tensor) -> Tensor:
        """`E[x_missing | x_observed]` in place of NaN, `(N, D)`."""

        def mean(features: Tensor, _: Tensor) -> Tensor:
            return self.output.mean(features @ self.weight.mT + self.bias, self.scale)

        return torch.where(torch.isnan(x), self.posterior(trace, x).expectation(mean), x)

    def drawn(self, trace: Trace, x: Tensor, z: Tensor, generator: torch.Generator | None) -> Tensor:
        """Completions of the rows `(N, D)` for draws of their latents `(draws, N, S)`."""
        with torch.no_grad():
            new = self.output.sample(trace(z.flatten(0, 1)), self.scale, generator)
        return torch.where(torch.isnan(x), new.reshape(*z.shape[:2], -1), x)


class Points(NamedTuple):
    """Latents with weights that stand for the posteriors of rows: S + 1 on each part of a cell that matters."""

    row: Tensor  # (m,)
    z: Tensor  # (m, S)
    weight: Tensor  # (m,) those of a row add up to its own weight, or to a little less


class Expectation(NamedTuple):
    """It is an E-step: what `OutputDistribution.expect` gives of N rows with weights g."""

    log_p: Tensor  # (N,)
    points: Points
    latent: Tensor  # (S, S) sum_n g_n E[z z^T | x_n]
    gradient: list[Tensor]  # of sum_n g_n log p(x_n), in the parameters that were asked for


def _points(some: Some, found: Integrals, weight: Tensor) -> Points:
    """On each simplex `mean + C u_v`, C a root of the covariance: with its first two moments.

    The u_v are the vertices of a regular simplex. Those simplices are left out that hold less than `_LOST` of a row.
    """
    row, share, S = found.simplices.row, found.share, found.mean.shape[1]
    kept = share * torch.bincount(row)[row] > _LOST
    row, share = some.which[row[kept]], share[kept]
    values, vectors = torch.linalg.eigh(found.covariance[kept])
    root = vectors * values.clamp(min=0.0).sqrt()[:, None]
    z = found.mean[kept][:, None] + _regular(S).to(root.device) @ root.mT
    of_each = (weight[row] * share / (S + 1)).repeat_interleave(S + 1)
    return Points(row.repeat_interleave(S + 1), z.flatten(0, 1), of_each)


@cache
def _regular(dim: int) -> Tensor:
    """The vertices of a regular simplex with mean 0 and covariance I, `(S + 1, S)`."""
    columns = torch.eye(dim + 1, dtype=torch.float64)
    columns[:, 0] = 1.0
    result: Tensor = torch.linalg.qr(columns)[0][:, 1:] * (dim + 1) ** 0.5
    return result


def _second_moment(found: Integrals, weight: Tensor) -> Tensor:
    """`sum_n g_n E[z z^T | x_n]` `(S, S)` for the weights g of the rows."""
    share = weight[found.simplices.row] * found.share
    return (share * found.mean.mT) @ found.mean + (share[:, None, None] * found.covariance).sum(0)


class _Call:
    """A call of `log_prob` keeps here what its backward pass needs."""

    def __init__(self, model: OutputModel) -> None:
        self.model = model
        self.found: list[tuple[Some, Integrals]] = []


class OutputLogProb(torch.autograd.Function):
    """`log p(x)` `(N,)`, what was left out of it and its error, with gradients by Fisher's identity.

    In x, the hidden features on the pieces, the last map, the prior and the scale: `E[grad log p(x, z) | x]`, at the
    nodes that p(x) was integrated with.
    """

    @staticmethod
    def forward(call: _Call, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Integrate."""
        x = x.detach()
        out = tuple(x.new_empty(len(x)) for _ in range(3))
        for some in call.model.split(x):
            found = integrate(some.mesh, some.likelihood, call.model.tol)
            call.found.append((some, found))
            parts = some.common + found.log_p, found.log_left_out - found.log_p, found.log_error - found.log_p
            out[0][some.which], out[1][some.which] = parts[0], parts[1].exp()
            out[2][some.which] = parts[2].exp() + some.rounding(parts[0])
        return out[0], out[1], out[2]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the gradient needs."""
        ctx.call, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients in all that asks for them."""
        return None, *_Gradient.apply(ctx.call, ctx.needs_input_grad[1:], grad, *ctx.saved_tensors)


class _Gradient(torch.autograd.Function):
    """Gradients of `sum_n g_n log p(x_n)`; not differentiable."""

    @staticmethod
    def forward(ctx: Any, call: _Call, needed: tuple[bool, ...], grad: Tensor, *tensors: Tensor) -> Any:
        """`sum_n g_n E[grad log p(x_n, z) | x_n]`."""
        if needed[0] and not call.model.output.continuous:
            raise DerivativeError(
                f'x is discrete for likelihood="{call.model.output.name}", and log p(x) has no derivative in it; '
                "detach x"
            )
        leaves = [tensor.detach().clone().requires_grad_(need) for tensor, need in zip(tensors, needed, strict=True)]
        sums = _fisher(call.model, call.found, grad.detach(), leaves)
        given = iter(sums)
        return tuple(next(given) if need else None for need in needed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> NoReturn:
        """Refused."""
        raise DerivativeError(IN_PARAMETERS)


def _fisher(
    model: OutputModel, groups: list[tuple[Some, Integrals]], weight: Tensor, leaves: list[Tensor], *nodes: float
) -> list[Tensor]:
    """`sum_n g_n E[grad log p(x_n, z) | x_n]` in those of the leaves that ask for it, for weights g `(N,)`.

    Args:
        model: the parameters, detached.
        groups: rows with their integrals.
        weight: g.
        leaves: x, the hidden features on the pieces and their slopes, the last map, the prior and the scale.
        nodes: how fine, see `Integrals.nodes`.
    """
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    sums = [torch.zeros_like(leaf) for leaf in wanted]
    with torch.enable_grad():
        for some, found in groups:
            for part, points, share in found.nodes(some.mesh, some.likelihood, *nodes):
                row = some.which[part.row]
                total = _pull(model, leaves, row, part, points, weight[row, None] * share)
                for place, new in enumerate(torch.autograd.grad(total, wanted, allow_unused=True)):
                    if new is not None:
                        sums[place] += new
    return sums


def _pull(
    model: OutputModel, leaves: list[Tensor], row: Tensor, some: Simplices, points: Tensor, weight: Tensor
) -> Tensor:
    """A number whose gradient in the leaves is that of `sum_k w_k log p(x, z_k)`, for weights `(m, k)` of nodes.

    Eta is affine on a simplex, so its part is a slope at the vertices: `sum_v eta_v sum_k l_kv w_k dlog p / deta_k`,
    with l the barycentric coordinates of the nodes.
    """
    x, value, slope, head, bias, prior, *scale = leaves
    piece, output = some.piece, model.output
    of_scale, fixed = (scale[0], scale[0].detach()) if scale else (None, None)
    away = some.corner - model.cells.origin[piece][:, None]
    corners = (value[piece][:, None] + away @ slope[piece].mT) @ head.mT + bias
    eta = points @ corners.detach()
    rows = output.observe(x[row].detach(), fixed).between()
    pull = points.mT @ (weight[:, :, None] * output.slope(rows, eta, fixed))
    total = (corners * pull).sum()
    if x.requires_grad or (of_scale is not None and of_scale.requires_grad):
        rows = output.observe(x[row], of_scale).between()
        total = total + (weight * (output.log_density(rows, eta, of_scale) + rows.constant)).sum()
    if prior.requires_grad:
        total = total + (weight * gaussian_parts(prior).log_prob(points @ some.corner)).sum()
    return total


class OutputDistribution(DGNDistribution):
    """It is the distribution of x under a `DGN` whose outputs are not Gaussian.

    Exact up to the error of the cubature, which is estimated: 1e-8 of p(x) or so.
    """

    def _kind(self) -> dict[str, str]:
        return {"likelihood": self._output.name}

    @property
    def _output(self) -> Output:
        output = self._dgn.output
        assert output is not None, "outputs are not Gaussian"
        return output

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Draws have no gradients."""
        return False

    def _evidence(self, x: Tensor, state: State) -> tuple[Tensor, ...]:
        log_p, left_out, error = OutputLogProb.apply(_Call(self._model(state)), x, *self._inputs(state))
        self._check(log_p)
        return log_p, left_out, error

    @staticmethod
    def _model(state: State) -> OutputModel:
        assert isinstance(state.model, OutputModel), "outputs are not Gaussian"
        return state.model

    def evidence(self, value: ArrayLike | Tensor) -> Evidence:
        """`log_prob(x)` with `left_out`, a certified bound on the part of each p(x) that was left out, and `rounding`.

        `rounding` holds the estimate of the error of the cubature too, in nats.

        Example:
            >>> import girih
            >>> p = girih.DGN(girih.mlp([1, 8, 3], seed=0), likelihood="bernoulli")()
            >>> bool(p.evidence([[1.0, 0.0, 1.0]]).rounding < 1e-7)
            True
        """
        return super().evidence(value)

    @property
    def output_model(self) -> OutputModel:
        """The current parameters."""
        return self._model(self._refresh())

    def expect(self, x: Tensor, weight: Tensor, parameters: list[Tensor]) -> Expectation:
        """The E-step of rows `(N, D)` with weights `(N,)`, and the gradient by Fisher's identity in some parameters."""
        state = self._refresh()
        model = self._model(state)
        with torch.enable_grad():
            inputs = self._inputs(state)
        fixed = inputs[4]  # the prior: its M-step is known
        moving = [tensor for tensor in inputs if tensor.requires_grad and tensor is not fixed]
        leaves = [x, *(t.detach().clone().requires_grad_(t.requires_grad and t is not fixed) for t in inputs)]
        log_p, points, latent = torch.empty_like(x[:, 0]), [], torch.zeros_like(model.prior)
        sums = [torch.zeros_like(tensor) for tensor in moving]
        for some in model.split(x):
            found = integrate(some.mesh, some.likelihood, model.tol)
            log_p[some.which] = some.common + found.log_p
            points.append(_points(some, found, weight))
            latent += _second_moment(found, weight[some.which])
            for total, part in zip(
                sums, _fisher(model, [(some, found)], weight, leaves, *_EM_NODES[len(model.prior)]), strict=True
            ):
                total += part
        self._check(log_p)
        found_gradient = torch.autograd.grad(moving, parameters, sums, allow_unused=True)
        gradient = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found_gradient, strict=True)]
        return Expectation(log_p, Points(*map(torch.cat, zip(*points, strict=True))), latent, gradient)

    def bounds(self, value: ArrayLike | Tensor, width: float = 0.1, most: int = 100_000) -> tuple[Tensor, Tensor]:
        r"""Certified bounds on `log p(x)`, nats, `(N,)` each: no estimate is in them.

        Where log p(x | z) is concave in z on a cell, `exp(f)` is between the exponentials of the interpolation of f at
        the vertices of a simplex and of its tangent plane, both of which have closed integrals.

        Args:
            value: rows `(N, D)`.
            width: how far apart they may be, nats.
            most: they may be further apart where a row needs more simplices than this at a time, as for S = 3.

        Raises:
            NoClosedFormError: the log-density of the outputs is not concave (Student).

        Example:
            >>> import girih
            >>> p = girih.DGN(girih.mlp([1, 8, 3], seed=0), likelihood="bernoulli")()
            >>> lower, upper = p.bounds([[1.0, 0.0, 1.0]], width=0.01)
            >>> bool(lower < p.log_prob([[1.0, 0.0, 1.0]]) < upper), bool(upper - lower <= 0.01)
            (True, True)
        """
        model, x = self.output_model, self._dgn.rows(value).detach()
        if isinstance(self._output.excess(model.scale), Tensor):
            raise NoClosedFormError(
                f'log p(x | z) is not concave for likelihood="{self._output.name}"; evidence(x) has an estimate'
            )
        width, most = real(width, "width"), whole(most, "most")
        lower, upper = torch.empty_like(x[:, 0]), torch.empty_like(x[:, 0])
        for n in range(len(x)):  # one by one: their simplices are many
            for some in model.split(x[n : n + 1]):
                low, high = bracket(some.mesh, some.likelihood, model.tol, width, most)
                rounding = some.rounding(some.common + high)
                lower[n], upper[n] = (some.common + low - rounding)[0], (some.common + high + rounding)[0]
        return lower, upper

    def score(self, value: ArrayLike | Tensor) -> Tensor:
        """The gradient of `log p(x)` in x, `(N, D)`, 0 at missing entries.

        Raises:
            DerivativeError: x is discrete.
        """
        x = self._dgn.rows(value).detach().requires_grad_()
        with torch.enable_grad():
            (score,) = torch.autograd.grad(self.log_prob(x).sum(), x)
        return score

    def denoise(self, value: ArrayLike | Tensor) -> Tensor:
        """`E[E[x | z] | x]`, `(N, D)`: the mean of a new x with the latents of this one."""
        state, x = self._refresh(), self._dgn.rows(value).detach()
        model = self._model(state)
        return model.posterior(state.traced, x).expectation(
            lambda features, _: model.output.mean(features @ model.weight.mT + model.bias, model.scale)
        )

    def rsample(self, sample_shape: Shape = torch.Size(), seed: int | None = None) -> Tensor:
        """Refuse: draws of these outputs have no gradients.

        Raises:
            DerivativeError: always.
        """
        raise DerivativeError(f'draws with likelihood="{self._output.name}" have no gradients; use sample')

    def sample(self, sample_shape: Shape = torch.Size(), seed: int | None = None) -> Tensor:
        """Draws of x, `(*sample_shape, D)`."""
        dgn, shape = self._dgn, torch.Size(sample_shape) + self.batch_shape
        generator = make_generator(seed, dgn.trace.device)
        with torch.no_grad():
            eta = dgn.trace(self._latents(shape.numel(), generator))
            scale = dgn.noise_tensors[0] if dgn.noise_tensors else None
            return self._output.sample(eta, scale, generator).reshape(*shape, dgn.output_dim)

    @property
    def mean(self) -> Tensor:
        """E[x], `(D,)`."""
        return self.denoise(self._nothing())[0].expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Refuse: it is not computed for these outputs.

        Raises:
            NoClosedFormError: always; `p.sample((n,)).var(0)` estimates it.
        """
        raise NoClosedFormError(
            "the variance of x is not computed for these outputs; p.sample((n,)).var(0) estimates it"
        )
