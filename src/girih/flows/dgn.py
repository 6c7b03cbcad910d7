"""`DGNFlow`: a generator from R^D to R^D as a flow, trained by maximum likelihood without noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from zuko.lazy import LazyDistribution

from girih._arrays import as_rows
from girih.errors import LatentDimensionError, NonFiniteError, ParameterError, ShapeError
from girih.flows.fitting import held_out_nll
from girih.flows.layerwise import is_bijective_chain
from girih.flows.push_forward import PushForward
from girih.flows.scaling import check_varying
from girih.flows.square_net import square_net
from girih.geometry.priors import as_prior
from girih.networks import Followed, Trace
from girih.partition import MAX_LATENT_DIM
from girih.training import Recorder, TrainingRun, fit_gradient
from girih.training.checkpoint import digest, seed_of_run
from girih.training.held_out import split


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

    def __init__(self, net: nn.Module, prior: Any = None) -> None:
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
        """What `girih.trace` makes of the generator as it is built now."""
        return self._followed.trace

    @classmethod
    def square(
        cls,
        dim: int,
        depth: int = 8,
        negative_slope: float = 0.5,
        seed: int = 0,
        data: Any = None,
        prior: Any = None,
    ) -> DGNFlow:
        """A bijective flow of square leaky ReLU layers; see `girih.flows.square_net`.

        Example:
            >>> from girih.flows import DGNFlow
            >>> flow = DGNFlow.square(5, depth=4, seed=0)
            >>> flow().log_prob(flow().sample((3,))).shape, flow.is_bijective
            (torch.Size([3]), True)
        """
        return cls(square_net(dim, depth, negative_slope, seed, data), prior)

    @property
    def is_bijective(self) -> bool:
        """Whether it is inverted layer by layer, as bijective chains are with the parameters of now."""
        return is_bijective_chain(self.trace)

    def forward(self, c: Any = None) -> PushForward:
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

    def fit(self, X: Any, *, validation: Any = None, **options: Any) -> TrainingRun:
        """Maximum likelihood by Adam, in place.

        The log density jumps at kinks, which no gradient at a row sees; for chains of Linear layers and activations
        with one kink the gradient here is that of the mean over the distribution of the rows, which does. Other
        generators are trained by gradients at the rows, and may not improve. Batches of some hundred rows or more are
        best: the density of rows at the kinks is estimated from each.

        Args:
            X: `(N, D)`, complete.
            validation: held-out rows `(M, D)`, or the fraction of X to hold out, drawn with `seed`. Their mean NLL is
                recorded as `held_out`; `patience` watches it, and the record where it was lowest is kept.
            **options: those of `girih.training.fit_gradient`: `lr`, `batch_size`, `max_epochs`, `patience`, `seed`,
                `record`, `record_every`, `progress`, `checkpoint` and so on.

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
            >>> run = flow.fit(X, lr=0.01, max_epochs=50, record_every=25, progress=False)
            >>> run.history["step"].tolist(), bool(run.history["loss"][-1] < run.history["loss"][1])
            ([0, 25, 50], True)
        """
        rows = self._rows(X)
        options["seed"] = seed_of_run(options.get("seed", 0), options.get("checkpoint"))
        rows, held_out = split(rows, validation, options["seed"], self._rows)
        check_varying(rows)
        if held_out is not None:
            options.setdefault("record", Recorder(held_out_nll(held_out), options.get("record_every", 100)))
            options.setdefault("monitor", "held_out")
            options.setdefault("keep_best", True)
            options["settings"] = {"validation": digest(held_out), **(options.get("settings") or {})}
        return fit_gradient(self, rows, loss=lambda model, batch: model._loss(batch), **options)

    def _rows(self, X: Any) -> Tensor:
        return as_rows(X, "X", self.features, "the number of features").detach()

    def extra_repr(self) -> str:
        """Shown by `print(flow)`."""
        return f"features={self.features}, bijective={self.is_bijective}"
