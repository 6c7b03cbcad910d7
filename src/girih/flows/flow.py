"""`Flow`: a density model made of a stack of bijections and folds, and how it is trained."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from zuko.lazy import LazyComposedTransform, LazyDistribution, LazyTransform
from zuko.transforms import ComposedTransform

from girih._arrays import Rows, as_rows, as_tensor, check_finite
from girih._deprecated import renamed
from girih._options import whole
from girih.errors import ParameterError, ShapeError
from girih.flows.coupling import check_context
from girih.flows.distribution import FlowDistribution
from girih.flows.fitting import maximise
from girih.training import Accelerator, FitOptions, FitResult, LogFormat, Measure, Recorder, split


class StandardNormal(LazyDistribution):
    """`N(0, I)` in D dimensions, for every context."""

    zeros: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("zeros", torch.zeros(features), persistent=False)

    def forward(self, c: Tensor | None = None) -> Independent[Normal]:
        """Gives the distribution of z."""
        return Independent(Normal(self.zeros, 1.0, validate_args=False), 1, validate_args=False)


class Flow(LazyDistribution):
    r"""A stack of transforms `x -> z` and the distribution of z; calling it gives the distribution of x.

    The stack may mix `RADCoupling` with any lazy transform of zuko: affine and spline couplings, autoregressive
    transforms, permutations, linear maps. Where a fold is among them, the distribution has discrete latents.

    Args:
        transforms: applied to x one after the other; for layers without parameters that depend on data,
            `zuko.lazy.UnconditionalTransform`.
        features: D.
        context: C, the number of context features.
        base: the lazy distribution of z; standard normal by default.

    Raises:
        ParameterError: there are no transforms, or one of them is not a lazy transform.

    Source:
        RAD, section 2; the convention of zuko.

    Example:
        >>> import torch, zuko
        >>> from girih.flows import Flow, RADCoupling
        >>> affine = zuko.flows.GeneralCouplingTransform(2, mask=[True, False])
        >>> flow = Flow([RADCoupling(2), affine], features=2).double()
        >>> flow().log_prob(torch.zeros(5, 2)).shape, flow().encode(torch.zeros(5, 2)).k.shape
        (torch.Size([5]), torch.Size([5, 1]))
    """

    def __init__(
        self,
        transforms: Sequence[LazyTransform],
        features: int,
        context: int = 0,
        base: LazyDistribution | None = None,
    ) -> None:
        super().__init__()
        self.features, self.context = whole(features, "features"), whole(context, "context", 0)
        stack = list(transforms)
        if not stack:
            raise ParameterError("transforms is empty; pass at least one layer")
        for transform in stack:
            if not isinstance(transform, LazyTransform):
                raise ParameterError(
                    f"transforms must be lazy transforms as those of zuko.flows; got a {type(transform).__name__} "
                    "(wrap a torch transform in zuko.lazy.UnconditionalTransform)"
                )
        self.transforms = nn.ModuleList(stack)
        self.base = StandardNormal(self.features) if base is None else base

    def forward(self, c: Rows | None = None) -> FlowDistribution:
        """The distribution of x, given a context `(..., C)` where the flow was built for one.

        Raises:
            ShapeError, NonFiniteError: the context does not have C features, or is not finite.
        """
        if c is not None:
            c = as_tensor(c, "the context", self._like.device).to(self._like.dtype)
            check_finite(c.detach(), "the context")
        return self._given(c)

    def _given(self, c: Tensor | None) -> FlowDistribution:
        check_context(c, self.context)
        base = self.base(c)
        if c is not None:
            base = base.expand(c.shape[:-1])
        transforms: list[Any] = []
        for layer in _flat(self.transforms):
            transform = layer(c)
            transforms += transform.transforms if isinstance(transform, ComposedTransform) else [transform]
        return FlowDistribution(transforms, base, self._like)

    @property
    def _like(self) -> Tensor:
        """A tensor of the flow's type, on its device."""
        result: Tensor = next(tensor for tensor in (*self.parameters(), *self.buffers()) if tensor.is_floating_point())
        return result

    def nll(self, rows: Tensor) -> Tensor:
        """`-log p(x | c)` of rows `(B, D + C)`, features and then context, `(B,)`: what one step of training costs.

        Nothing is checked here.
        """
        rows = rows.to(self._like)
        c = rows[:, self.features :] if self.context else None
        return -self._given(c).log_prob_of(rows[:, : self.features])

    @renamed({"steps": "max_steps"})
    def fit(
        self,
        X: Rows,
        context: Rows | None = None,
        *,
        smoothing: float | None = None,
        average: float = 0.98,
        standardise: bool = True,
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
        """Train the flow in place by Adam on its exact likelihood, by default in a way that suits the number of rows.

        Small data are soon learnt by heart. So the rows of each step get Gaussian noise, which falls on the way, and
        the parameters that are measured and kept are running means of those of the steps. With held-out rows the flow
        is left with the parameters of the record where their NLL was lowest, else with the last ones.

        Args:
            X: `(N, D)`, complete; a `Whiten` or `Standardise` layer at the start of the flow is set from all rows.
            context: `(N, C)` where the flow was built for one.
            smoothing: standard deviation of the noise at the first step, in units in which the training rows have the
                identity as covariance; it falls to a 25th of that. 0 adds none; by default `N^(-1 / (D + 4))`, the
                width of a kernel density estimate, 0.5 at most.
            average: weight of the past in the running mean of the parameters; 0 keeps those of single steps.
            standardise: whether to set the first layer; if not, it stays as it is.
            max_epochs: as all that follow, a field of `girih.FitOptions`, which says what it means.
            max_steps: here rounded up to whole passes over the data; by default 600 up to 256 training rows, and beyond
                in proportion to the square root of their number, 50,000 at most.
            batch_size: by default half of the training rows, 500 at most.
            lr: by default 5e-3, and 1e-3 from 5,000 training rows on.
            validation: the fraction, or held-out rows `(M, D)`, with context `(M, D + C)`; by default 0.2.
            patience: by default 15, where rows are held out.
            min_improvement: by default 1e-4.
            monitor: by default `held_out`, the mean NLL of the held-out rows.
            keep_best: by default where rows are held out.
            seed: of the held-out rows, of the order of the others and of the noise.
            record: what is measured besides.
            record_every: by default a 32nd of the steps, 500 at most.
            progress: show a bar.
            checkpoint: a file to go on from.
            checkpoint_seconds: time between writes of it.
            settings: what else the numbers depend on.
            log: a folder.
            log_format: "csv" or "tensorboard".
            accelerator: "cpu", "gpu" or "auto".

        Warns:
            ConvergenceWarning: no record was better than the flow before training, so that it is what is left.

        Raises:
            ShapeError, EmptyDataError: X or the context does not fit the flow, or has no rows.
            NonFiniteError: X is not finite; or the loss or a parameter left the range of numbers: the message names
                it.
            ParameterError: a column of X is constant, an option is out of its domain, or the checkpoint is of another
                run.
            ModelFileError: the checkpoint is damaged.

        Source:
            RAD, section 3.2: Adam, batches of 500, 50,000 steps on data without end. Noise on the rows: Rothfuss et
            al., *Noise regularization for conditional density estimation* (2019).

        Example:
            >>> import girih
            >>> from girih.flows import RealNVP
            >>> flow, X = RealNVP(2, hidden_features=(8,), seed=0), girih.datasets.load("moons", n=300).X
            >>> result = flow.fit(X, max_steps=60, lr=0.01, record_every=20, progress=False)
            >>> bool(result.held_out < result.history["held_out"][0]), result.ended
            (True, 'max_epochs')
        """
        options = FitOptions.among(locals())
        settled = options.filled(FitOptions(validation=0.2))
        columns = self.features + self.context

        def checked(given: Rows) -> Tensor:
            return as_rows(given, "validation", columns, "the number of features and context features").detach()

        every = self._rows(X, context)
        rows, held_out = split(every, settled.validation, settled.seed, checked)
        return maximise(
            self,
            rows,
            held_out,
            replace(options, seed=settled.seed),
            smoothing=smoothing,
            average=average,
            standardise=every[:, : self.features] if standardise else None,
        )

    def _rows(self, X: Rows, context: Rows | None) -> Tensor:
        """Features and context side by side, checked."""
        rows = as_rows(X, "X", self.features, "the number of features").detach()
        if not self.context:
            if context is not None:
                raise ShapeError("context was passed to a flow that was built without one; build it with context=C")
            return rows
        if context is None:
            raise ShapeError(f"the flow was built with context={self.context}; pass context, one row for each row of X")
        given = as_rows(context, "context", self.context, "the number of context features", device=rows.device).detach()
        if len(given) != len(rows):
            raise ShapeError(
                f"context has {len(given)} rows and X has {len(rows)}; pass one row of context for each of X"
            )
        return torch.cat((rows, given), 1)


fit_flow = Flow.fit  # the same as a function: `fit_flow(flow, X, ...)`


def _flat(layers: Iterable[nn.Module]) -> list[nn.Module]:
    """The layers of a stack, with composed ones taken apart."""
    flat: list[nn.Module] = []
    for layer in layers:
        flat += _flat(layer.transforms) if isinstance(layer, LazyComposedTransform) else [layer]
    return flat
