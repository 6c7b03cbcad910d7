"""`DGN`: a generator with Gaussian noise and prior, as an exact density model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal, NamedTuple, overload

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from girih._arrays import Rows, as_rows, as_tensor, bare, in_transform, outside_transforms
from girih._options import real, whole
from girih._shown import Shown
from girih.covariance import Covariance, Observed
from girih.errors import DerivativeError, NoClosedFormError, NonFiniteError, ParameterError, ShapeError
from girih.inference.fisher import BATCHED, Denoised, log_prob_of, score_of
from girih.inference.line import Line
from girih.inference.model import AffinePieces, Evidence, Model, Moments, Region, check_latent_dim, chunks
from girih.inference.polytopes import Polytopes
from girih.inference.posterior import GaussianQ, Posterior, Shape, gaussian_entropy, make_generator
from girih.inference.statistics import expect
from girih.networks import Followed, Snapshot, Trace
from girih.partition import Partition

# The share of each p(x) that may be left out, unless told otherwise.
TOL = 1e-10
_ENTRIES = 2**24  # of the largest table that variances of missing entries take

_REGIONS: dict[int, Callable[[Partition, Tensor], Region]] = {1: Line, 2: Polytopes, 3: Polytopes}


class DGN(nn.Module):
    r"""A DGN is the joint model `z ~ N(0, prior)`, `x = g(z) + e`, `e ~ N(0, noise)`, solved exactly.

        p(x) = sum_cells N(x; b, noise + A prior A^T) P(z in cell | x, map of the cell)

    Calling it returns the distribution of x for the current parameters. Exact for S = 1, 2 and 3.

    Args:
        net: the generator g, any module that `girih.trace` supports; kept by reference, so training the
            module changes the model, and so does replacing a layer of it. What girih does not see is a change inside
            a list, a dict or an object of your own that a module holds.
        noise: the noise *variance*: a scalar, `(D,)` variances, a `(D, D)` covariance, or a `girih.Covariance`.
        prior: the `(S, S)` covariance of z, a scalar variance, or `None` for the identity.
        tol: for S = 2, 3, the share of each p(x) that may be left out because bounds prove it to be smaller than
            that; 0 leaves out nothing. What was left out at most is `Posterior.left_out`, or
            `dgn().evidence(x).left_out`.

    `noise` and `prior` are parameters of the module. A tensor that already asks for gradients is used as it is. Of a
    low-rank noise, `noise` holds the variances that each coordinate has of its own, and `noise_factor` `(D, r)` what
    they share; `noise_covariance` is the noise of any kind as a `girih.Covariance`.

    Raises:
        UnsupportedLayerError, LatentDimensionError, ShapeError, NoiseError, NonFiniteError.

    Source:
        EM-DGN, eq. 4 and Theorem 1.

    Example:
        >>> import girih, torch
        >>> dgn = girih.DGN(girih.mlp([1, 8, 2], seed=0), noise=0.0025)
        >>> x = dgn().sample((4,))
        >>> dgn().log_prob(x).shape, dgn.posterior(x).mean.shape
        (torch.Size([4]), torch.Size([4, 1]))
    """

    def __init__(
        self,
        net: nn.Module,
        noise: Covariance | Rows | float = 1.0,
        prior: Rows | float | None = None,
        tol: float = TOL,
    ) -> None:
        super().__init__()
        self.tol = _check_tol(tol)
        self._followed = Followed(net)
        traced = self.trace
        check_latent_dim(traced.latent_dim)
        self.net = net
        device = traced.device
        own, *shared = Covariance.of(noise, traced.output_dim, "noise", device).tensors
        self.noise: Tensor = _own(own)
        self.prior: Tensor = _own(Covariance.prior(prior, traced.latent_dim, device))
        self.noise_factor: Tensor | None
        if shared:
            self.noise_factor = _own(shared[0])
        else:
            self.register_parameter("noise_factor", None)
        # what rounding took from the last bias of a fit to data far from 0: `(D,)`, or `None`
        self.bias_rest: Tensor | None
        self.register_buffer("bias_rest", None, persistent=False)
        self._home = list(self.parameters())

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a copy or a pickle; those of earlier versions hold a trace of their own."""
        state.pop("trace", None)
        super().__setstate__(state)
        if "_followed" not in state:
            self._followed, self._home = Followed(self.net), list(self.parameters())
        if "noise_factor" not in vars(self):
            self._parameters.setdefault("noise_factor", None)

    @property
    def trace(self) -> Trace:
        """`girih.trace` makes this of the network as it is built now."""
        return self._followed.trace

    def keep_trace(self) -> DGN:
        """Keep the trace of the network as it is now, whatever becomes of its mode or its layers; returns self."""
        self._followed = Followed(self.trace)
        return self

    @property
    def latent_dim(self) -> int:
        """The latent dimension S."""
        return self.trace.latent_dim

    @property
    def output_dim(self) -> int:
        """The data dimension D."""
        return self.trace.output_dim

    @property
    def noise_tensors(self) -> tuple[Tensor, ...]:
        """`noise`, and `noise_factor` if there is one."""
        return (self.noise,) if self.noise_factor is None else (self.noise, self.noise_factor)

    @property
    def noise_covariance(self) -> Covariance:
        """The noise as a `girih.Covariance` of the current parameters; one of the same kind may be assigned."""
        return Covariance.from_tensors(self.noise_tensors, self.output_dim)

    @noise_covariance.setter
    def noise_covariance(self, value: Covariance) -> None:
        if [part.shape for part in value.tensors] != [part.shape for part in self.noise_tensors]:
            raise ParameterError(
                f"the noise of this DGN is {self.noise_covariance}, and stays of that kind and rank; got {value}; make "
                "a new DGN with it"
            )
        with torch.no_grad():
            for part, new in zip(self.noise_tensors, value.tensors, strict=True):
                part.copy_(new)

    @property
    def partition(self) -> Partition:
        """The latent partition for the current parameters."""
        return Partition(self.trace, prior=self.prior.detach())

    def forward(self) -> DGNDistribution:
        """The distribution of x for the current parameters."""
        return DGNDistribution(self)

    def model(self, partition: Partition | None = None, traced: Trace | None = None) -> Model:
        """The current parameters as detached tensors, in the form that the exact computations take.

        Args:
            partition: the latent partition for the current parameters, where it is known.
            traced: the network, where its trace is known.
        """
        traced = self.trace if traced is None else traced
        with torch.no_grad():
            parts = tuple(_plain(part, "noise") for part in self.noise_tensors)
            noise, prior = Covariance.from_tensors(parts, traced.output_dim), _plain(self.prior, "prior")
            partition = Partition(traced, prior=prior) if partition is None else partition
            value, slope = traced.hidden_jet(partition.piece_patterns, partition.piece_origins)
            weight, bias = (part.detach().clone() for part in traced.head_parameters())
            if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
                raise NonFiniteError(
                    "the last layer of the network has weights that are not finite; reload the network, or train it "
                    "with smaller steps"
                )
            origin = partition.piece_origins.to(value.device)
            cells = AffinePieces(origin, value, slope, _REGIONS[traced.latent_dim](partition, prior))
            rest = self.bias_rest
            if rest is not None:  # a bias that was changed since then has no such rest
                rest = rest.where(rest.abs() <= torch.finfo(rest.dtype).eps * bias.abs(), 0.0)
            return Model(cells, weight, bias, noise, prior, self.tol, rest)

    def rows(self, x: Rows | ArrayLike, allow_missing: bool = True) -> Tensor:
        """Checked observations `(N, D)`; NaN means missing."""
        return as_rows(
            x, "x", self.output_dim, "the data dimension D", allow_missing=allow_missing, device=self.trace.device
        )

    def posterior(self, x: ArrayLike | Tensor) -> Posterior:
        """The exact posteriors `p(z | x_n)` of a batch `(N, D)`; NaN entries of x are missing."""
        model, rows = self.model(), self.rows(x).detach()
        return model.cells.region.posterior(model, self.trace, rows)

    def elbo(self, x: ArrayLike | Tensor, q: GaussianQ) -> Tensor:
        r"""The evidence lower bound `E_q[log p(x, z)] + H(q)` in nats, `(N,)`, exact for a Gaussian q.

        `log p(x) = elbo(x, q) + KL(q || p(z | x))`; see `Posterior.kl` for what q may be.

        Source:
            EM-DGN, eq. 3.
        """
        posterior = self.posterior(x)
        mean, factor = posterior.gaussian_parameters(q)
        return posterior.expected_log_prob(mean, factor) + posterior.log_evidence + gaussian_entropy(factor)

    @overload
    def impute(
        self,
        x: ArrayLike | Tensor,
        return_std: Literal[False] = False,
        draws: int | None = None,
        seed: int | None = None,
    ) -> Tensor: ...

    @overload
    def impute(self, x: ArrayLike | Tensor, return_std: Literal[True]) -> tuple[Tensor, Tensor]: ...

    def impute(
        self, x: ArrayLike | Tensor, return_std: bool = False, draws: int | None = None, seed: int | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        r"""`E[x_missing | x_observed]` in place of the NaN entries of x, `(N, D)`; observed entries stay as they are.

            Var[x_m | x_o] = diag(M Cov[h | x_o] M^T) + Var[e_m | e_o],    M = W_m - C_mo C_oo^-1 W_o

        Args:
            x: rows, `(N, D)`, NaN where missing.
            return_std: also give the standard deviation of each entry, `(N, D)`, 0 where it was observed.
            draws: instead draw so many completions, `(draws, N, D)`: exact, and joint over the entries of a row.
            seed: of the draws.

        Example:
            >>> import girih
            >>> dgn = girih.DGN(girih.mlp([1, 8, 2], seed=0), noise=0.01)
            >>> filled, std = dgn.impute([[0.5, float("nan")], [0.1, 0.2]], return_std=True)
            >>> filled.isnan().any().item(), filled[1].tolist(), (std > 0).tolist()
            (False, [0.1, 0.2], [[False, True], [False, False]])
        """
        rows, model = self.rows(x).detach(), self.model()
        if draws is not None:
            if return_std:
                raise ParameterError("impute gives deviations of the means, or draws; ask for one of them")
            return self._completions(rows, model, whole(draws, "draws"), make_generator(seed, rows.device))
        if not return_std:
            return _filled(model, rows, False)[0]
        step = max(1, _ENTRIES // max(*model.weight.shape) ** 2)  # a table of features by features for each row
        filled, variance = zip(*(_filled(model, some, True) for some in rows.split(step)), strict=True)
        return torch.cat(filled), torch.cat(variance).sqrt()

    def _completions(self, x: Tensor, model: Model, draws: int, generator: torch.Generator | None) -> Tensor:
        """Draws of the rows: z of the posterior, x of z, and what the observed entries say of its noise (Matheron)."""
        out = x.repeat(draws, 1, 1)
        holes = (torch.isnan(x).any(1)).nonzero()[:, 0]
        if not len(holes):
            return out
        posterior = model.cells.region.posterior(model, self.trace, x[holes])
        z = posterior._draw(draws, generator).reshape(draws, len(holes), -1)
        for some, latents in zip(out, z, strict=True):
            with torch.no_grad():
                drawn = self.trace(latents) + model.noise.sample(len(holes), generator)
            for index, part in chunks(model, x[holes]):
                own = drawn[index]
                if part.observed is not None:
                    known = torch.nan_to_num(part.x) - own
                    own = own + part.observed.complete(known[:, :, None])[:, :, 0]
                some[holes[index]] = torch.where(torch.isnan(part.x), own, part.x)
        return out

    def extra_repr(self) -> str:
        """Shown by `print(dgn)`."""
        return f"S={self.latent_dim}, D={self.output_dim}, noise={self.noise_covariance.kind}"


def _filled(model: Model, x: Tensor, spread: bool) -> tuple[Tensor, Tensor]:
    """`E[x_m | x_o]` in place of missing entries, and their variances where these are asked for."""
    filled, variance = x.clone(), torch.zeros_like(x)
    for index, part in chunks(model, x):
        if part.observed is None:
            continue
        _, e = expect(model, part)
        features = e.features(model.cells)
        mean = features @ model.weight.mT + model.bias
        residual = part.observed.complete((torch.nan_to_num(part.x) - mean)[:, :, None])[:, :, 0]
        filled[index] = torch.where(torch.isnan(part.x), mean + residual, part.x)
        if spread:
            variance[index] = missing_variance(model, part.observed, e, features)
    return filled, variance


def missing_variance(model: Model, observed: Observed, moments: Moments, features: Tensor) -> Tensor:
    """`Var[x_m | x_o]` of each missing entry, `(n, D)`, 0 where observed: see `DGN.impute`.

    Args:
        model: the model.
        observed: its noise as n rows see it.
        moments: of the posteriors of these rows.
        features: `E[h | x_o]`, `(n, H)`.
    """
    unseen, noise = 1.0 - observed.mask, model.noise
    of_rows = model.weight - observed.complete(model.weight.expand(len(unseen), -1, -1))
    variance = _variance_of(of_rows, model, moments, features) + noise.variances
    if noise.kind in ("low_rank", "full"):
        told = observed.complete(noise.matrix.expand(len(unseen), -1, -1)).diagonal(dim1=1, dim2=2)
        variance = variance - told
    return (unseen * variance).clamp(min=0.0)


def _variance_of(maps: Tensor, model: Model, moments: Moments, features: Tensor) -> Tensor:
    """`Var[(maps h)_d | x]`, `(n, D)`, of linear maps `(n, D, H)` or `(D, H)` of the features h."""
    mean = torch.nn.functional.pad(features, (0, 1), value=1.0)
    spread = moments.feature_covariance(model.cells, mean)[:, :-1, :-1]
    return ((maps @ spread) * maps).sum(2)


class DGNDistribution(Shown, Distribution):
    """It is the distribution of x under a `DGN`. The partition is made once, and again if the parameters change.

    The values of all parameters are compared at each use, so it does not matter how they were changed: by a step of
    an optimiser, `load_state_dict`, `.data`, an array that shares their memory, other layers in the network, or what a
    hook or a parametrization computes them from.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, dgn: DGN) -> None:
        self._dgn = dgn
        # tensors that are there only for now, as inside torch.func.functional_call
        self._away = not _same_objects(dgn.parameters(), dgn._home)
        self._state: _State | None = None
        super().__init__(torch.Size([]), torch.Size([dgn.output_dim]), validate_args=False)
        self._refresh()

    def _facts(self) -> dict[str, str]:
        """Dimensions, cells and noise."""
        dgn = self._dgn
        cells = "?" if self._state is None else f"{len(self._state.partition):,}"
        return {"S": str(dgn.latent_dim), "D": str(dgn.output_dim), "cells": cells, "noise": dgn.noise_covariance.kind}

    def _refresh(self) -> _State:
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
        if state is None or not state.snapshot.holds([*tensors, *dgn.noise_tensors, dgn.prior]):
            every = (*tensors, *dgn.noise_tensors, dgn.prior)
            _refuse_batched(every)
            snapshot, plain = Snapshot(every), traced
            if in_transform() or any(bare(tensor) is not tensor for tensor in every):
                plain = traced.frozen()
            with outside_transforms():
                partition = Partition(plain, prior=bare(dgn.prior).detach())
                self._state = state = _State(snapshot, traced, partition, dgn.model(partition, plain))
        return state

    def _inputs(self, state: _State) -> tuple[Tensor, ...]:
        """`log p` is differentiable in these: hidden features, the last map, the noise and the prior."""
        dgn, traced, model = self._dgn, state.traced, state.model
        tensors = traced.tensors()
        wrapped = any(bare(tensor) is not tensor for tensor in tensors)
        if not wrapped and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)):
            return model.cells.value, model.cells.slope, model.weight, model.bias, dgn.prior, *dgn.noise_tensors
        every = (*tensors, *dgn.noise_tensors, dgn.prior)
        if not torch.is_inference_mode_enabled() and any(tensor.is_inference() for tensor in every):
            raise ParameterError(
                "the parameters were made in torch.inference_mode, where nothing can be differentiated in them; use a "
                "copy.deepcopy of the model made outside of it, or torch.no_grad() for densities alone"
            )
        jet = traced.hidden_jet(state.partition.piece_patterns, state.model.cells.origin)
        return *jet, *traced.head_parameters(), dgn.prior, *dgn.noise_tensors

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
        return self._by_rows(value, lambda x, state: (score_of(state.model, x, self._inputs(state)),))[0]

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
        return self._by_rows(value, lambda x, state: (Denoised.apply(state.model, x, *self._inputs(state)),))[0]

    def _by_rows(
        self, value: ArrayLike | Tensor, function: Callable[[Tensor, _State], tuple[Tensor, ...]]
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

    def _evidence(self, x: Tensor, state: _State) -> tuple[Tensor, ...]:
        found = log_prob_of(state.model, x, self._inputs(state))
        numbers = bare(found[0]).detach().reshape(-1)
        if not torch.isfinite(numbers).all():
            row = int((~torch.isfinite(numbers)).nonzero()[0])
            raise NonFiniteError(
                f"log p(x) of row {row} is {numbers[row].item()}: the row or the network's output is out of range, or "
                "the noise is no longer positive definite; rescale x, take smaller training steps, or train log(noise)"
            )
        return found

    def rsample(self, sample_shape: Shape = torch.Size(), seed: int | None = None) -> Tensor:
        """Draws of x, `(*sample_shape, D)`, differentiable in the parameters: `g(z) + e`."""
        dgn, shape = self._dgn, torch.Size(sample_shape)
        generator = make_generator(seed, dgn.trace.device)
        shape = shape + self.batch_shape
        z = Covariance.from_tensors((dgn.prior,), dgn.latent_dim).sample(shape.numel(), generator)
        e = dgn.noise_covariance.sample(shape.numel(), generator)
        return (dgn.trace(z) + e).reshape(*shape, dgn.output_dim)

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
        return self._dgn.impute(self._nothing())[0].expand(self.batch_shape + self.event_shape)

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
        model = self._refresh().model
        ((_, rows),) = chunks(model, self._nothing())
        moments = expect(model, rows)[1]
        spread = _variance_of(model.weight, model, moments, moments.features(model.cells))[0]
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


class _State(NamedTuple):
    """A state holds what a distribution has found out about its model, and the numbers for which that is right."""

    snapshot: Snapshot
    traced: Trace
    partition: Partition
    model: Model


def _same_objects(some: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    some, others = list(some), list(others)
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))


def _refuse_batched(tensors: Iterable[Tensor]) -> None:
    if any(bare(tensor).shape != tensor.shape for tensor in tensors):
        raise DerivativeError(BATCHED)


def _plain(parameter: Tensor, name: str) -> Tensor:
    """A copy of the numbers of a noise or prior, where exact inference can compute with them."""
    value = bare(parameter).detach()
    if value.is_meta or value.dtype != torch.float64:
        raise ParameterError(
            f"the {name} is {value.dtype} on {value.device}, as after dgn.float(), dgn.half() or dgn.to(...), and "
            "exact inference runs in float64 with values; call dgn.double(), and cast x and the results instead"
        )
    return value.clone()


def _own(value: Tensor) -> Tensor:
    """A parameter, unless the user's tensor already asks for gradients."""
    return value if value.requires_grad else nn.Parameter(value.clone())


def _check_tol(tol: float) -> float:
    value = real(tol, "tol", positive=False)
    if value >= 1.0:
        raise ParameterError(f"tol is the share of p(x) that may be left out, and must be below 1; got {value:g}")
    return value
