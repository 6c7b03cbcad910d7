"""`DGNFlow`: a generator from R^D to R^D as a flow, trained by maximum likelihood without noise.

`square_net` is a bijective one to start from: square leaky ReLU layers that are affine together.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from zuko.lazy import LazyDistribution

from girih._arrays import Rows, as_rows
from girih._options import real, whole
from girih.errors import LatentDimensionError, NonFiniteError, ParameterError, ShapeError
from girih.flows.chains import is_bijective_chain
from girih.flows.fitting import mean_nll
from girih.flows.push_forward import PushForward
from girih.flows.scaling import check_varying
from girih.geometry.priors import PriorLike, as_prior
from girih.networks import Followed, Trace
from girih.partition import MAX_LATENT_DIM
from girih.training import (
    Accelerator,
    FitOptions,
    FitResult,
    LogFormat,
    Measure,
    OptimizerName,
    Recorder,
    minimise,
    split,
    watching,
)

_KINKS = 1.5  # in deviations of z: kinks start within so many of the mean
_BREAK = 1e-2  # random changes of the weights, which tell the two layers of a pair apart


class DGNFlow(LazyDistribution):
    r"""A piecewise-affine generator as a normalizing flow, `x = g(z)` without noise, S = D.

        p(x) = sum_{z: g(z) = x} p_z(z) / |det A(z)|

    Exact in two ways. Chains of square Linear layers with leaky ReLU or PReLU of positive slopes are bijections and
    are inverted layer by layer, for any D. Any other generator may fold: for D <= 3 its latent partition gives all
    preimages, whose densities add up, and rows that it does not reach have p(x) = 0.

    Args:
        net: the generator, any module that `girih.trace` supports, kept by reference and trained in place.
        prior: of z: a variance, a covariance `(S, S)`, `girih.geometry.Uniform(low, high)`, or `None` for `N(0, I)`.
            It is not trained: the layers can do what it does.

    Attributes:
        net: the generator.
        features: D.

    Raises:
        UnsupportedLayerError: the generator is not piecewise affine.
        ShapeError: S and D differ, or the prior has the wrong shape.
        LatentDimensionError: D > 3 and the generator is not such a chain.
        ParameterError, NoiseError, NonFiniteError: a prior that is not one.

    Source:
        MAS, appendix C; Theorem 3.

    Example:
        >>> import girih, torch
        >>> from girih.flows import DGNFlow
        >>> fold = DGNFlow(torch.nn.Sequential(girih.networks.Abs(), torch.nn.Linear(1, 1)).double())
        >>> x = fold().sample((3,), seed=0)
        >>> fold().log_prob(x).shape, len(fold().latents(x).row)  # two latents for each x
        (torch.Size([3]), 6)
    """

    def __init__(self, net: nn.Module, prior: PriorLike | None = None) -> None:
        super().__init__()
        self._followed = Followed(net)
        size, outputs = self.trace.latent_dim, self.trace.output_dim
        if size != outputs:
            raise ShapeError(
                f"a flow needs as many outputs as latents, and this generator has S = {size} and D = {outputs}; for "
                "its density on the manifold use girih.geometry.density, for data with noise girih.DGN"
            )
        if size > MAX_LATENT_DIM and not is_bijective_chain(self.trace):
            raise LatentDimensionError(
                f"preimages of any generator are found for D <= {MAX_LATENT_DIM}, and this one has D = {size}; for "
                "larger D use a chain of square Linear layers with leaky ReLU or PReLU of positive slopes: "
                f"girih.flows.square_net({size})"
            )
        self.net, self.features = net, size
        self.prior = as_prior(1.0 if prior is None else prior, size)

    @property
    def trace(self) -> Trace:
        """The trace of the generator as it is built now."""
        return self._followed.trace

    @classmethod
    def square(
        cls,
        dim: int,
        depth: int = 8,
        negative_slope: float = 0.5,
        seed: int = 0,
        data: Rows | None = None,
        prior: PriorLike | None = None,
    ) -> DGNFlow:
        """Make a bijective flow of square leaky ReLU layers.

        Args:
            dim: D, the number of features and of latents.
            depth: pairs of activations.
            negative_slope: of the leaky ReLU, positive.
            seed: of the weights.
            data: rows `(N, D)` to take mean and covariance from, as in `girih.flows.square_net`.
            prior: of the latents, as for a `DGNFlow`.

        Example:
            >>> from girih.flows import DGNFlow
            >>> flow = DGNFlow.square(5, depth=4, seed=0)
            >>> flow().log_prob(flow().sample((3,))).shape, flow.is_bijective
            (torch.Size([3]), True)
        """
        return cls(square_net(dim, depth, negative_slope, seed, data), prior)

    @property
    def is_bijective(self) -> bool:
        """Tells whether it is inverted layer by layer, as bijective chains are with the parameters of now."""
        return is_bijective_chain(self.trace)

    def forward(self, c: Tensor | None = None) -> PushForward:
        """The distribution of x for the current parameters.

        Raises:
            ParameterError: a context was passed, or slopes became negative and D is larger than 3.
        """
        if c is not None:
            raise ParameterError("this flow has no context; call it without one")
        if self.features > MAX_LATENT_DIM and not self.is_bijective:
            raise ParameterError("a slope of this flow is no longer positive, so it has no inverse; use a smaller lr")
        return PushForward(self)

    def nll(self, rows: Tensor) -> Tensor:
        """`-log p(x)` of rows `(B, D)`, `(B,)` nats.

        Raises:
            NonFiniteError: p(x) is 0 or infinite for some rows: the message says for how many, and what to do.
        """
        return self._checked(-self().log_prob(rows))

    def _loss(self, rows: Tensor) -> Tensor:
        """`nll` with the gradient of its mean over the distribution of the rows, where there is one."""
        return self._checked(-self().smooth_log_prob(rows))

    def _checked(self, nll: Tensor) -> Tensor:
        lost = ~torch.isfinite(nll)
        if lost.any():
            outside = int((nll == torch.inf).sum())
            raise NonFiniteError(
                f"log p(x) is not finite for {int(lost.sum())} of {len(nll)} rows ({outside} that the generator does "
                "not reach); train a bijection instead, girih.flows.DGNFlow.square(dim, data=X), or start from "
                "weights whose images cover the data"
            )
        return nll

    def fit(
        self,
        X: Rows,
        *,
        optimizer: OptimizerName = "adam",
        max_epochs: int | None = None,
        max_steps: int | None = None,
        batch_size: int | Literal["auto"] | None = "auto",
        lr: float | None = None,
        validation: Rows | float | Literal["auto"] | None = "auto",
        patience: int | Literal["auto"] | None = "auto",
        min_improvement: float | None = None,
        monitor: str | None = None,
        keep_best: bool | None = None,
        seed: int | None = 0,
        record: Recorder | Measure | None = None,
        record_every: int | None = None,
        progress: bool = True,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_seconds: float = 2.0,
        settings: Mapping[str, Any] | None = None,
        log: str | os.PathLike[str] | None = None,
        log_format: LogFormat = "csv",
        accelerator: Accelerator = "auto",
    ) -> FitResult:
        """Maximum likelihood by Adam, in place.

        The log density jumps at kinks, which no gradient at a row sees; for chains of Linear layers and activations
        with one kink the gradient here is that of the mean over the distribution of the rows, which does. Other
        generators are trained by gradients at the rows, and may not improve. Batches of some hundred rows or more are
        best: the density of rows at the kinks is estimated from each.

        Args:
            X: `(N, D)`, complete.
            optimizer: "adam", or "lbfgs" with all rows at once.
            max_epochs: as all that follow, a field of `girih.FitOptions`, which says what it means; here by default
                1000.
            max_steps: gradient steps at most, instead.
            batch_size: by default all rows.
            lr: by default 1e-3.
            validation: by default none; the mean NLL of held-out rows is what is recorded and watched.
            patience: by default `None`.
            min_improvement: by default 1e-4.
            monitor: what is watched.
            keep_best: by default where rows are held out.
            seed: of rows and draws.
            record: what is measured besides.
            record_every: by default 100.
            progress: show a bar.
            checkpoint: a file to go on from.
            checkpoint_seconds: time between writes of it.
            settings: what else the numbers depend on.
            log: a folder.
            log_format: "csv" or "tensorboard".
            accelerator: "cpu", "gpu" or "auto".

        Raises:
            ShapeError, EmptyDataError: X is not a table with D columns and rows.
            ParameterError: a column of X is constant, or an option is out of its domain.
            NonFiniteError: X is not finite; or p(x) became 0 for some rows, or a parameter left the range of numbers.
                (A bijection reaches all rows.)

        Source:
            MAS, appendix C.

        Example:
            >>> import girih
            >>> from girih.flows import DGNFlow
            >>> X = girih.datasets.load("moons", n=200, seed=0).X
            >>> flow = DGNFlow.square(2, depth=4, seed=0, data=X)
            >>> result = flow.fit(X, lr=0.01, max_epochs=50, record_every=25, progress=False)
            >>> result.history["step"].tolist(), bool(result.history["loss"][-1] < result.history["loss"][1])
            ([0, 25, 50], True)
        """
        options = FitOptions.among(locals()).filled()
        rows, held_out = split(self._rows(X), options.validation, options.seed, self._rows)
        check_varying(rows)
        if held_out is not None:
            options = watching(options, held_out, mean_nll)
        return minimise(self, rows, DGNFlow._loss, options, optimizer=optimizer)

    def _rows(self, X: Rows) -> Tensor:
        return as_rows(X, "X", self.features, "the number of features").detach()

    def extra_repr(self) -> str:
        """Shown by `print(flow)`."""
        return f"features={self.features}, bijective={self.is_bijective}"


def square_net(
    dim: int, depth: int = 8, negative_slope: float = 0.5, seed: int = 0, data: Rows | None = None
) -> nn.Sequential:
    r"""A chain of `2 depth` leaky ReLU layers of width `dim` between square Linear layers: a bijection.

    It starts near `g(z) = mean + L z` with the mean and covariance `L L^T` of the data, a Gaussian density. Each pair
    of activations undoes itself, `f^-1(h) = -f(-h) / slope`, about a rotation and a bias of its own, which spread the
    kinks; training takes the pairs apart. (A random chain is a bad start: slopes multiply, and its inverse explodes.)

    Args:
        dim: S = D.
        depth: pairs of activations; each adds `2 dim` kinks.
        negative_slope: between 0 and 1, smaller for sharper kinks.
        seed: of the weights; the global random state is left alone.
        data: `(N, D)` rows to take mean and covariance from; by default 0 and the identity.

    Raises:
        ParameterError: a size below 1, a slope outside (0, 1), or data that lie in a hyperplane.
        ShapeError, NonFiniteError, EmptyDataError: data that are not a table of finite numbers with `dim` columns.

    Source:
        MAS, appendix C.

    Example:
        >>> from girih.flows import square_net
        >>> net = square_net(2, depth=3, seed=0)
        >>> [type(layer).__name__ for layer in net[:3]], len(net)
        (['Linear', 'LeakyReLU', 'Linear'], 13)
    """
    dim, depth, slope = whole(dim, "dim"), whole(depth, "depth", 0), real(negative_slope, "negative_slope")
    if not slope < 1.0:
        raise ParameterError(f"negative_slope must be between 0 and 1, got {slope:g}")
    generator = torch.Generator().manual_seed(whole(seed, "seed", None))
    mean, factor = torch.zeros(dim, dtype=torch.float64), torch.eye(dim, dtype=torch.float64)
    if data is not None:
        mean, factor = _moments(as_rows(data, "data", dim, "dim").detach().cpu())
    W, v = torch.eye(dim, dtype=torch.float64), torch.zeros(dim, dtype=torch.float64)  # from features to z
    layers: list[nn.Module] = []
    for _ in range(depth):
        rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
        bias = _KINKS * (2.0 * torch.rand(dim, generator=generator, dtype=torch.float64) - 1.0)
        layers += [_linear(rotation @ W, rotation @ v + bias, generator), nn.LeakyReLU(slope)]
        layers += [_linear(-torch.eye(dim, dtype=torch.float64), torch.zeros_like(bias), generator)]
        layers += [nn.LeakyReLU(slope)]
        W, v = -rotation.mT / slope, -rotation.mT @ bias
    layers.append(_linear(factor @ W, factor @ v + mean, None))
    return nn.Sequential(*layers)


def _linear(weight: Tensor, bias: Tensor, generator: torch.Generator | None) -> nn.Linear:
    out: nn.Linear = nn.utils.skip_init(nn.Linear, len(weight), len(weight), dtype=torch.float64)
    with torch.no_grad():
        out.weight.copy_(weight)
        out.bias.copy_(bias)
        if generator is not None:
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            out.weight += _BREAK * noise * weight.abs().amax() / len(weight) ** 0.5
    return out


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and a Cholesky factor of the covariance."""
    check_varying(rows)
    mean = rows.mean(0)
    off = rows - mean
    covariance = off.mT @ off / len(rows)
    size = covariance.diagonal().sqrt()
    factor, info = torch.linalg.cholesky_ex(covariance / size[:, None] / size)
    if int(info) or float(factor.diagonal().min()) < 1e-7:
        raise ParameterError(
            f"the {len(rows)} rows of data lie in a hyperplane or nearly so, and have no density; remove columns that "
            "depend on others, or pass more rows"
        )
    return mean, size[:, None] * factor
