"""`Flow`: a density model made of a stack of bijections and folds, and how it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Independent, Normal
from zuko.lazy import LazyComposedTransform, LazyDistribution, LazyTransform
from zuko.transforms import ComposedTransform

from girih._arrays import as_tensor, check_finite
from girih._options import whole
from girih.errors import ParameterError
from girih.flows.coupling import check_context
from girih.flows.distribution import FlowDistribution
from girih.flows.fitting import FlowRun, fit_flow


class StandardNormal(LazyDistribution):
    """`N(0, I)` in D dimensions, for every context."""

    zeros: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("zeros", torch.zeros(features), persistent=False)

    def forward(self, c: Tensor | None = None) -> Independent[Normal]:
        """The distribution."""
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

    def forward(self, c: Any = None) -> FlowDistribution:
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
        return next(tensor for tensor in (*self.parameters(), *self.buffers()) if tensor.is_floating_point())

    def nll(self, rows: Tensor) -> Tensor:
        """`-log p(x | c)` of rows `(B, D + C)`, features and then context, `(B,)`: what one step of training costs.

        Nothing is checked here.
        """
        rows = rows.to(self._like)
        c = rows[:, self.features :] if self.context else None
        return -self._given(c).log_prob_of(rows[:, : self.features])

    def fit(self, X: Any, context: Any = None, **options: Any) -> FlowRun:
        """Maximum likelihood by Adam, with early stopping on held-out rows; see `girih.flows.fit_flow`.

        Example:
            >>> import girih
            >>> from girih.flows import RAD
            >>> X = girih.datasets.load("circle", n=200).X
            >>> flow = RAD(2, transforms=2, hidden_features=(8,), seed=0)
            >>> run = flow.fit(X, steps=50, record_every=25, progress=False)
            >>> run.history["step"].tolist(), len(run.history["held_out"])
            ([0, 25, 50], 3)
        """
        return fit_flow(self, X, context, **options)


def _flat(layers: Any) -> list[Any]:
    """The layers of a stack, with composed ones taken apart."""
    flat: list[Any] = []
    for layer in layers:
        flat += _flat(layer.transforms) if isinstance(layer, LazyComposedTransform) else [layer]
    return flat
