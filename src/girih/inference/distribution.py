"""`DGNDistribution`: the distribution of x that a `DGN` returns when it is called."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, NamedTuple, Protocol

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from girih._arrays import as_tensor, bare, in_transform, outside_transforms
from girih._shown import Shown
from girih.covariance import Covariance
from girih.errors import DerivativeError, NoClosedFormError, NonFiniteError, ParameterError, ShapeError
from girih.inference.fisher import BATCHED, Denoised, denoised, log_prob_of, score_of
from girih.inference.model import AffinePieces, Evidence, Jets, Model, Moments, chunks
from girih.inference.outputs import Output
from girih.inference.posterior import Shape, make_generator
from girih.inference.priors import LatentPrior
from girih.inference.statistics import expect
from girih.networks import Snapshot, Trace
from girih.partition import Partition


class Made(Protocol):
    """The current parameters of a `DGN`, detached, in the form that the computations take."""

    @property
    def cells(self) -> AffinePieces | Jets:
        """The pieces with the last hidden features on them."""
        ...

    @property
    def weight(self) -> Tensor:
        """`(D, H)`."""
        ...

    @property
    def bias(self) -> Tensor:
        """`(D,)`."""
        ...

    @property
    def prior(self) -> Tensor:
        """The covariance of z, `(S, S)`."""
        ...

    @property
    def tol(self) -> float:
        """The share of p(x) that may be left out."""
        ...


class Joint(Protocol):
    """It is what a distribution needs to know of the `DGN` that made it."""

    tol: float
    latent_prior: LatentPrior | None
    output: Output | None
    _home: list[nn.Parameter]

    @property
    def trace(self) -> Trace:
        """The network as it is built now."""
        ...

    @property
    def latent_dim(self) -> int:
        """S."""
        ...

    @property
    def output_dim(self) -> int:
        """D."""
        ...

    @property
    def noise_tensors(self) -> tuple[Tensor, ...]:
        """What the noise is made of."""
        ...

    @property
    def prior_tensors(self) -> tuple[Tensor, ...]:
        """The covariance of a Gaussian prior."""
        ...

    @property
    def noise_covariance(self) -> Covariance:
        """The noise."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of the module."""
        ...

    def _partition(self, traced: Trace) -> Partition:
        """The latent partition of a generator."""
        ...

    def _model(self, partition: Partition | None = None, traced: Trace | None = None) -> Made:
        """The parameters, detached."""
        ...

    def rows(self, x: ArrayLike | Tensor, allow_missing: bool = True) -> Tensor:
        """Checked observations `(N, D)`."""
        ...


class DGNDistribution(Shown, Distribution):
    """It is the distribution of x under a `DGN`. The partition is made once, and again if the parameters change.

    The values of all parameters are compared at each use, so it does not matter how they were changed: by a step of
    an optimiser, `load_state_dict`, `.data`, an array that shares their memory, other layers in the network, or what a
    hook or a parametrization computes them from.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, dgn: Joint) -> None:
        self._dgn = dgn
        # tensors that are there only for now, as inside torch.func.functional_call
        self._away = not _same_objects(dgn.parameters(), dgn._home)
        self._state: State | None = None
        super().__init__(torch.Size([]), torch.Size([dgn.output_dim]), validate_args=False)
        self._refresh()

    def _facts(self) -> dict[str, str]:
        """Dimensions, cells and noise."""
        dgn = self._dgn
        cells = "?" if self._state is None else f"{len(self._state.partition):,}"
        return {"S": str(dgn.latent_dim), "D": str(dgn.output_dim), "cells": cells} | self._kind()

    def _kind(self) -> dict[str, str]:
        return {"noise": self._dgn.noise_covariance.kind}

    def _refresh(self) -> State:
        dgn, state = self._dgn, self._state
        if self._away and state is not None and _same_objects(dgn.parameters(), dgn._home):
            raise ParameterError(
                "this distribution was made with other tensors as parameters, as inside torch.func.functional_call, "
                "and they are gone; call log_prob inside it, in the forward of a module that holds the DGN: "
                "`return self.dgn().log_prob(x)`; or call dgn() again"
            )
        traced = dgn.trace
        tensors = traced.tensors()
        if state is None or traced is not state.traced or dgn.tol != state.model.tol:
            state = None
        every = (*tensors, *dgn.noise_tensors, *dgn.prior_tensors)
        if state is None or not state.snapshot.holds(list(every)):
            _refuse_batched(every)
            snapshot, plain = Snapshot(every), traced
            if in_transform() or any(bare(tensor) is not tensor for tensor in every):
                plain = traced.frozen()
            with outside_transforms():
                partition = dgn._partition(plain)
                self._state = state = State(snapshot, traced, partition, dgn._model(partition, plain))
        return state

    def _inputs(self, state: State) -> tuple[Tensor, ...]:
        """`log p` is differentiable in these: hidden features, the last map, the noise and the prior."""
        dgn, traced, model = self._dgn, state.traced, state.model
        tensors, (prior,) = traced.tensors(), dgn.prior_tensors or (model.prior,)
        wrapped = any(bare(tensor) is not tensor for tensor in tensors)
        if not wrapped and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
            return model.cells.value, model.cells.slope, model.weight, model.bias, prior, *dgn.noise_tensors
        every = (*tensors, *dgn.noise_tensors, *dgn.prior_tensors)
        if not torch.is_inference_mode_enabled() and any(tensor.is_inference() for tensor in every):
            raise ParameterError(
                "the parameters were made in torch.inference_mode, where nothing can be differentiated in them; use a "
                "copy.deepcopy of the model made outside of it, or torch.no_grad() for densities alone"
            )
        jet = traced.hidden_jet(state.partition.piece_patterns, state.model.cells.origin)
        return *jet, *traced.head_parameters(), prior, *dgn.noise_tensors

    @property
    def partition(self) -> Partition:
        """The latent partition."""
        return self._refresh().partition

    def log_prob(self, value: ArrayLike | Tensor) -> Tensor:
        """`log p(x)` in nats, `(N,)`: exact, with NaN entries of x marginalised.

        Differentiable once in the parameters of the network, the noise and the prior, and twice in x. `torch.func`
        and forward mode work in x; in the parameters, reverse mode does. Leading batch axes are kept: `(..., N, D)`
        gives `(..., N)`.

        Raises:
            DerivativeError: on asking for other derivatives: they are refused when they are computed, and never 0.
        """
        return self.evidence(value).log_prob

    def evidence(self, value: ArrayLike | Tensor) -> Evidence:
        """`log_prob(x)` together with `left_out`, a certified bound on the relative error of each p(x), and `rounding`.

        `left_out` covers what was left out of the sum over cells: at most the `tol` of the `DGN` (S = 2, 3), or what
        the rounding of `log p` alone amounts to where that is more, as for rows a million units away. `rounding`
        bounds, in nats, what the rounding of rows and maps changes in `log p(x)`: more than a nat where the signal is
        1e9 times the noise. The error of the integrals, `1e-8 max(1, |log p|)` nats at most, comes on top of both.

        Example:
            >>> import girih
            >>> dgn = girih.DGN(girih.mlp([2, 8, 2], seed=0), noise=0.01, tol=1e-6)
            >>> bool(dgn().evidence([[0.5, 0.2]]).left_out <= 1e-6)
            True
        """
        return Evidence(*self._by_rows(value, self._evidence))

    def score(self, value: ArrayLike | Tensor) -> Tensor:
        r"""The gradient of `log p(x)` in x, `(N, D)` nats per unit of x, 0 at missing entries.

            score(x) = -noise^-1 (x - E[g(z) | x])

        Differentiable once more in x: its derivative is `noise^-1 Cov[g(z) | x] noise^-1 - noise^-1`, the curvature of
        `log p`. Leading batch axes are kept.

        Raises:
            DerivativeError: on differentiating it in the parameters, or twice in x.

        Example:
            >>> import girih, torch
            >>> p = girih.DGN(girih.mlp([1, 8, 2], seed=0), noise=0.05)()
            >>> x = p.sample((4,), seed=0)
            >>> p.score(x).shape, torch.allclose(p.denoise(x), x + 0.05 * p.score(x))
            (torch.Size([4, 2]), True)
        """
        return self._by_rows(value, lambda x, state: (score_of(_gaussian(state), x, self._inputs(state)),))[0]

    def denoise(self, value: ArrayLike | Tensor) -> Tensor:
        """`E[g(z) | x]`, `(N, D)`: what x was before the noise, on average; missing entries are filled in.

        For complete rows it is `x + noise score(x)` (Tweedie's formula). Leading batch axes are kept.

        Raises:
            DerivativeError: on differentiating it.

        Example:
            >>> import girih
            >>> p = girih.DGN(girih.mlp([1, 8, 2], seed=0), noise=0.05)()
            >>> p.denoise([[0.5, float("nan")], [0.1, 0.2]]).isnan().any().item()
            False
        """
        return self._by_rows(value, lambda x, state: (Denoised.apply(_gaussian(state), x, *self._inputs(state)),))[0]

    def _by_rows(
        self, value: ArrayLike | Tensor, function: Callable[[Tensor, State], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """A function of rows `(N, D)`, of a single one `(D,)`, or with leading batch axes."""
        dgn, state = self._dgn, self._refresh()
        value = as_tensor(value, "x", state.model.bias.device)
        batch, given = self.batch_shape, value.ndim - 1
        if 0 <= given < len(batch) and value.shape == batch[len(batch) - given :] + self.event_shape:
            value = value.expand(batch + self.event_shape)
        if value.ndim > 2 and value.shape[-1] == dgn.output_dim:
            flat = self._by_rows(value.reshape(-1, value.shape[-1]), function)
            return tuple(part.reshape(*value.shape[:-1], *part.shape[1:]) for part in flat)
        single = value.ndim == 1 and len(value) == dgn.output_dim and dgn.output_dim > 1
        found = function(dgn.rows(value), state)
        return tuple(part[0] for part in found) if single else found

    def _evidence(self, x: Tensor, state: State) -> tuple[Tensor, ...]:
        found = log_prob_of(_gaussian(state), x, self._inputs(state))
        self._check(found[0])
        return found

    @staticmethod
    def _check(log_p: Tensor) -> None:
        numbers = bare(log_p).detach().reshape(-1)
        if not torch.isfinite(numbers).all():
            row = int((~torch.isfinite(numbers)).nonzero()[0])
            raise NonFiniteError(
                f"log p(x) of row {row} is {numbers[row].item()}: the row or the network's output is out of range, or "
                "the noise is no longer positive definite; rescale x, take smaller training steps, or train log(noise)"
            )

    def rsample(self, sample_shape: Shape = torch.Size(), seed: int | None = None) -> Tensor:
        """Draws of x, `(*sample_shape, D)`, differentiable in the parameters: `g(z) + e`."""
        dgn, shape = self._dgn, torch.Size(sample_shape)
        generator = make_generator(seed, dgn.trace.device)
        shape = shape + self.batch_shape
        z = self._latents(shape.numel(), generator)
        e = dgn.noise_covariance.sample(shape.numel(), generator)
        return (dgn.trace(z) + e).reshape(*shape, dgn.output_dim)

    def _latents(self, count: int, generator: torch.Generator | None) -> Tensor:
        """Draws of the prior, `(count, S)`."""
        dgn = self._dgn
        prior = dgn.latent_prior or Covariance.from_tensors(dgn.prior_tensors, dgn.latent_dim)
        return prior.sample(count, generator)

    def sample(self, sample_shape: Shape = torch.Size(), seed: int | None = None) -> Tensor:
        """Draws of x, `(*sample_shape, D)`."""
        with torch.no_grad():
            return self.rsample(sample_shape, seed)

    def expand(self, batch_shape: Shape, _instance: DGNDistribution | None = None) -> DGNDistribution:
        """The distribution for a batch of independent rows: draws are `(*sample_shape, *batch_shape, D)`.

        `log_prob` has taken leading batch axes all along; of an expanded distribution a single row stands for all.

        Example:
            >>> import girih
            >>> p = girih.DGN(girih.mlp([1, 8, 2], seed=0), noise=0.05)().expand((3,))
            >>> p.sample((5,)).shape, p.log_prob(p.sample()).shape, p.mean.shape
            (torch.Size([5, 3, 2]), torch.Size([3]), torch.Size([3, 2]))
        """
        if len(self.batch_shape) > len(torch.Size(batch_shape)):
            raise ShapeError(f"batch_shape must have {len(self.batch_shape)} axes or more, got {tuple(batch_shape)}")
        new = copy.copy(self)
        new._batch_shape = torch.broadcast_shapes(self.batch_shape, torch.Size(batch_shape))
        return new

    @property
    def mean(self) -> Tensor:
        """E[x], `(D,)`: the cells' maps weighted by the exact prior masses and means."""
        return denoised(_gaussian(self._refresh()), self._nothing())[0].expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        r"""Var[x] of each coordinate, `(D,)`, exact.

            Var[x] = diag(W Cov[h] W^T) + diag(noise),    Cov[h] over the cells of the prior

        Example:
            >>> import girih, torch
            >>> p = girih.DGN(girih.mlp([1, 2], seed=0), noise=0.25)()   # linear: x = W z + v + e
            >>> torch.allclose(p.variance, p._dgn.net[0].weight[:, 0] ** 2 + 0.25)
            True
        """
        model = _gaussian(self._refresh())
        ((_, rows),) = chunks(model, self._nothing())
        moments = expect(model, rows)[1]
        spread = variance_of(model.weight, model, moments, moments.features(model.cells))[0]
        return (spread + model.noise.variances).expand(self.batch_shape + self.event_shape)

    def entropy(self) -> Tensor:
        """Refuse: a mixture of truncated Gaussians under noise has no closed entropy.

        Raises:
            NoClosedFormError: always. `-p.log_prob(p.sample((n,))).mean()` is an unbiased estimate, and
                `girih.geometry.entropy(net)` is the exact one of g(z) on its manifold, without noise.
        """
        raise NoClosedFormError(
            "the differential entropy of x has no closed form; -p.log_prob(p.sample((n,))).mean() estimates it without "
            "bias, and girih.geometry.entropy(net) is that of g(z) on its manifold, exact"
        )

    def _nothing(self) -> Tensor:
        """A row with every entry missing, `(1, D)`: it has the prior as its posterior."""
        return torch.full((1, self._dgn.output_dim), torch.nan, dtype=torch.float64, device=self._dgn.trace.device)


class State(NamedTuple):
    """A state holds what a distribution has found out about its model, and the numbers for which that is right."""

    snapshot: Snapshot
    traced: Trace
    partition: Partition
    model: Made


def _gaussian(state: State) -> Model:
    assert isinstance(state.model, Model), "the outputs are Gaussian"
    return state.model


def _same_objects(some: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    some, others = list(some), list(others)
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))


def _refuse_batched(tensors: Iterable[Tensor]) -> None:
    if any(bare(tensor).shape != tensor.shape for tensor in tensors):
        raise DerivativeError(BATCHED)


def variance_of(maps: Tensor, model: Model, moments: Moments, features: Tensor) -> Tensor:
    """`Var[(maps h)_d | x]`, `(n, D)`, of linear maps `(n, D, H)` or `(D, H)` of the features h."""
    mean = torch.nn.functional.pad(features, (0, 1), value=1.0)
    spread = moments.feature_covariance(model.cells, mean)[:, :-1, :-1]
    return ((maps @ spread) * maps).sum(2)
