"""`DGN`: a generator with Gaussian noise and prior, as an exact density model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from girih._arrays import Rows, as_rows, bare
from girih._options import real, whole
from girih.covariance import Covariance, Observed
from girih.errors import NoClosedFormError, NonFiniteError, ParameterError
from girih.inference.box import Box
from girih.inference.cubature_posterior import CubatureRegion
from girih.inference.distribution import DGNDistribution, variance_of
from girih.inference.likelihoods import as_output
from girih.inference.line import Line
from girih.inference.mixture import Mixture
from girih.inference.model import AffinePieces, Jets, Model, Moments, Region, check_latent_dim, chunks
from girih.inference.output_model import OutputDistribution, OutputModel
from girih.inference.outputs import Output
from girih.inference.polytopes import Polytopes
from girih.inference.posterior import GaussianQ, Posterior, make_generator
from girih.inference.priors import GaussianMixturePrior, LatentPrior, Parts, Uniform, UniformPrior, gaussian_parts
from girih.inference.statistics import expect
from girih.networks import Followed, Trace
from girih.partition import Partition

# The share of each p(x) that may be left out, unless told otherwise.
TOL = 1e-10
_ENTRIES = 2**24  # of the largest table that variances of missing entries take

_REGIONS: dict[int, type[Line] | type[Polytopes]] = {1: Line, 2: Polytopes, 3: Polytopes}


class DGN(nn.Module):
    r"""A DGN is the joint model `z ~ N(0, prior)`, `x = g(z) + e`, `e ~ N(0, noise)`, solved exactly.

        p(x) = sum_cells N(x; b, noise + A prior A^T) P(z in cell | x, map of the cell)

    Calling it returns the distribution of x for the current parameters. Exact for S = 1, 2 and 3.

    Args:
        net: the generator g, any module that `girih.trace` supports; kept by reference, so training the
            module changes the model, and so does replacing a layer of it. What girih does not see is a change inside
            a list, a dict or an object of your own that a module holds.
        noise: the noise *variance*: a scalar, `(D,)` variances, a `(D, D)` covariance, or a `girih.Covariance`; 1 if it
            is `None`.
        prior: the `(S, S)` covariance of z, a scalar variance, or `None` for the identity; or a `girih.Uniform` or a
            `girih.GaussianMixturePrior`, both with the closed forms of a Gaussian prior.
        tol: for S = 2, 3, the share of each p(x) that may be left out because bounds prove it to be smaller than
            that; 0 leaves out nothing. What was left out at most is `Posterior.left_out`, or
            `dgn().evidence(x).left_out`.
        likelihood: what x is given the outputs of the network: "gaussian"; "bernoulli" (logits), "categorical" (logits;
            x holds one column of categories, or with `girih.inference.Categorical([3, 4])` a column for each group of
            outputs), "poisson" (logs of rates), `girih.inference.NegativeBinomial(total_count)` (logs of means),
            "laplace" or "student_t" (`noise` is their *scale*), or `girih.inference.StudentT(df)`; for columns of
            several kinds a list such as `[("gaussian", 2), ("bernoulli", 3)]`, see `girih.inference.Mixed`. All but the
            first are integrated by adaptive cubature.

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
        noise: Covariance | Rows | float | None = None,
        prior: Rows | float | Uniform | GaussianMixturePrior | None = None,
        tol: float = TOL,
        likelihood: str | Output | Sequence[tuple[str | Output, int]] = "gaussian",
    ) -> None:
        super().__init__()
        self.tol = _check_tol(tol)
        self._followed = Followed(net)
        traced = self.trace
        check_latent_dim(traced.latent_dim)
        self.net = net
        device = traced.device
        self.output = as_output(likelihood)
        self._set_noise(noise, traced)
        self.latent_prior: LatentPrior | None = None
        if isinstance(prior, Uniform | GaussianMixturePrior):
            self.latent_prior = prior.of(traced.latent_dim, device)
        else:
            self.prior: Tensor = _own(Covariance.prior(prior, traced.latent_dim, device))
        # what rounding took from the last bias of a fit to data far from 0: `(D,)`, or `None`
        self.bias_rest: Tensor | None
        self.register_buffer("bias_rest", None, persistent=False)
        self._home = list(self.parameters())

    def _set_noise(self, noise: Covariance | Rows | float | None, traced: Trace) -> None:
        self.noise_factor: Tensor | None
        if self.output is not None:
            self.output.columns(traced.output_dim)
            self.register_parameter("noise_factor", None)
            if isinstance(noise, Covariance):
                raise ParameterError(f'likelihood="{self.output.name}" takes no covariance as its noise; got {noise}')
            scale = self.output.scale(noise, self.output_dim, traced.device)
            if scale is not None:
                self.noise: Tensor = _own(scale)
            return
        noise = 1.0 if noise is None else noise
        own, *shared = Covariance.of(noise, traced.output_dim, "noise", traced.device).tensors
        self.noise = _own(own)
        if shared:
            self.noise_factor = _own(shared[0])
        else:
            self.register_parameter("noise_factor", None)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a copy or a pickle; those of earlier versions hold a trace of their own."""
        state.pop("trace", None)
        super().__setstate__(state)
        if "_followed" not in state:
            self._followed, self._home = Followed(self.net), list(self.parameters())
        self.__dict__.setdefault("latent_prior", None)
        self.__dict__.setdefault("output", None)
        if "noise_factor" not in vars(self):
            self._parameters.setdefault("noise_factor", None)

    def __getattr__(self, name: str) -> Any:
        """Refuse to name a covariance of a prior that is not Gaussian."""
        latent = self.__dict__.get("latent_prior")
        if name == "prior" and latent is not None:
            raise ParameterError(
                f"the prior of this DGN is not Gaussian ({latent.kind}), and this needs the covariance of a "
                "Gaussian one; read dgn.latent_prior, or make a DGN with prior=None or a covariance"
            )
        output = self.__dict__.get("output")
        if name == "noise" and output is not None and not output.scaled:
            raise ParameterError(f'outputs with likelihood="{output.name}" have no noise; read dgn.output')
        return super().__getattr__(name)

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
        """The data dimension D: that of the outputs of the network, but for categories, which are groups of these."""
        size = self.trace.output_dim
        return size if self.output is None else self.output.columns(size)

    @property
    def noise_tensors(self) -> tuple[Tensor, ...]:
        """`noise`, and `noise_factor` if there is one; nothing where outputs have none."""
        if self.output is not None and not self.output.scaled:
            return ()
        return (self.noise,) if self.noise_factor is None else (self.noise, self.noise_factor)

    @property
    def noise_covariance(self) -> Covariance:
        """The noise as a `girih.Covariance` of the current parameters; one of the same kind may be assigned.

        Raises:
            ParameterError: the outputs are not Gaussian.
        """
        self._check_gaussian()
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
    def prior_tensors(self) -> tuple[Tensor, ...]:
        """The prior covariance, of a Gaussian prior."""
        return (self.prior,) if self.latent_prior is None else ()

    @property
    def partition(self) -> Partition:
        """The latent partition for the current parameters: of the box alone, where the prior is uniform.

        Under a prior that is not Gaussian its cells have no `prior_mass`: that is then the `cell_probs()` of the
        posterior of a row with nothing but NaN.
        """
        return self._partition(self.trace)

    def _partition(self, traced: Trace) -> Partition:
        latent = self.latent_prior
        if latent is None:
            return Partition(traced, prior=bare(self.prior).detach())
        domain = None
        if isinstance(latent, UniformPrior):
            low, high = latent.low.cpu(), latent.high.cpu()
            domain = (float(low), float(high)) if latent.dim == 1 else (low, high)
        return Partition(traced, domain).forget_prior()

    def _check_gaussian(self) -> None:
        if self.output is not None:
            raise ParameterError(
                f'this needs Gaussian noise, and this DGN has likelihood="{self.output.name}", of which densities, '
                "posteriors, draws, gradients, girih.train and girih.em.fit_em are available"
            )

    def forward(self) -> DGNDistribution:
        """The distribution of x for the current parameters."""
        return DGNDistribution(self) if self.output is None else OutputDistribution(self)

    def model(self, partition: Partition | None = None, traced: Trace | None = None) -> Model:
        """The current parameters as detached tensors, in the form that the exact computations take.

        Args:
            partition: the latent partition for the current parameters, where it is known.
            traced: the network, where its trace is known.
        """
        self._check_gaussian()
        made = self._model(partition, traced)
        assert isinstance(made, Model), "the outputs are Gaussian"
        return made

    def _model(self, partition: Partition | None = None, traced: Trace | None = None) -> Model | OutputModel:
        traced = self.trace if traced is None else traced
        with torch.no_grad():
            noise, latent = tuple(_plain(part, "noise") for part in self.noise_tensors), self.latent_prior
            prior = _plain(self.prior, "prior") if latent is None else latent.covariance.to(traced.device)
            partition = self._partition(traced) if partition is None else partition
            value, slope = traced.hidden_jet(partition.piece_patterns, partition.piece_origins)
            weight, bias = (part.detach().clone() for part in traced.head_parameters())
            if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
                raise NonFiniteError(
                    "the last layer of the network has weights that are not finite; reload the network, or train it "
                    "with smaller steps"
                )
            origin = partition.piece_origins.to(value.device)
            if self.output is not None:
                parts = gaussian_parts(prior) if latent is None else latent.parts
                parts = Parts(*(part.to(traced.device) for part in parts))
                jets, scale = Jets(origin, value, slope), noise[0] if noise else None
                return OutputModel(partition, jets, weight, bias, self.output, scale, prior, parts, self.tol)
            region: Region
            of_gaussian = _REGIONS[traced.latent_dim]
            if latent is None:
                region = of_gaussian(partition, prior)
            elif not latent.near:
                region = CubatureRegion(partition, latent)
            elif isinstance(latent, UniformPrior):
                region = Box(of_gaussian, partition, latent)
                prior = region.covariance
            else:
                region = Mixture(of_gaussian, partition, latent)
            cells = AffinePieces(origin, value, slope, region)
            rest = self.bias_rest
            if rest is not None:  # a bias that was changed since then has no such rest
                rest = rest.where(rest.abs() <= torch.finfo(rest.dtype).eps * bias.abs(), 0.0)
            return Model(cells, weight, bias, Covariance.from_tensors(noise, traced.output_dim), prior, self.tol, rest)

    def output_model(self) -> OutputModel:
        """As `model`, for outputs that are not Gaussian.

        Raises:
            ParameterError: they are.
        """
        made = self._model()
        if not isinstance(made, OutputModel):
            raise ParameterError("the outputs of this DGN are Gaussian; use model()")
        return made

    def rows(self, x: Rows | ArrayLike, allow_missing: bool = True) -> Tensor:
        """Checked observations `(N, D)`; NaN means missing."""
        return as_rows(
            x, "x", self.output_dim, "the data dimension D", allow_missing=allow_missing, device=self.trace.device
        )

    def posterior(self, x: ArrayLike | Tensor) -> Posterior:
        """The exact posteriors `p(z | x_n)` of a batch `(N, D)`; NaN entries of x are missing."""
        model, rows = self._model(), self.rows(x).detach()
        if isinstance(model, OutputModel):
            return model.posterior(self.trace, rows)
        return model.cells.region.posterior(model, self.trace, rows)

    def elbo(self, x: ArrayLike | Tensor, q: GaussianQ) -> Tensor:
        r"""The evidence lower bound `E_q[log p(x, z)] + H(q)` in nats, `(N,)`, exact for a Gaussian q.

        `log p(x) = elbo(x, q) + KL(q || p(z | x))`; see `Posterior.kl` for what q may be.

        Source:
            EM-DGN, eq. 3.
        """
        posterior = self.posterior(x)
        return posterior.log_evidence - posterior.kl(q)

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
        rows, model = self.rows(x).detach(), self._model()
        if draws is not None:
            if return_std:
                raise ParameterError("impute gives deviations of the means, or draws; ask for one of them")
            generator = make_generator(seed, rows.device)
            if isinstance(model, OutputModel):
                z = model.posterior(self.trace, rows)._draw(whole(draws, "draws"), generator)
                return model.drawn(self.trace, rows, z, generator)
            return self._completions(rows, model, whole(draws, "draws"), generator)
        if isinstance(model, OutputModel):
            if return_std:
                raise NoClosedFormError("deviations of imputed entries are not computed for these outputs; use draws=")
            return model.completed(self.trace, rows)
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
        kind = f"noise={self.noise_covariance.kind}" if self.output is None else f"likelihood={self.output.name}"
        return f"S={self.latent_dim}, D={self.output_dim}, {kind}"


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
    variance = variance_of(of_rows, model, moments, features) + noise.variances
    if noise.kind in ("low_rank", "full"):
        told = observed.complete(noise.matrix.expand(len(unseen), -1, -1)).diagonal(dim1=1, dim2=2)
        variance = variance - told
    return (unseen * variance).clamp(min=0.0)


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
