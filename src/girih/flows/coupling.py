"""`RADCoupling`: a coupling layer that folds some features, with parameters that the others determine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from zuko.lazy import LazyTransform

from girih._options import real, whole
from girih.errors import ParameterError, ShapeError
from girih.flows.fold import check_pieces
from girih.flows.fold_transform import FoldTransform
from girih.flows.networks import check_widths, network

# On the last layer of what shapes the folds: at the start they hardly depend on the other features. After 600 steps the
# NLL is 0.2 nats lower on a ring of Gaussians than without; Real NVP gains nothing from it there.
_SPREAD = 0.1


class RADCoupling(LazyTransform):
    r"""A coupling layer of RAD: `z_1 = x_1`, and each feature of `x_2` is folded onto an interval.

        z_2, k = fold(x_2 - shift; slopes, half_width),   (shift, slopes, half_width, ends) = s(x_1, c)
        p(k | z) = prod_i p(k_i | z),                     gate logits from ends and s'(x_1, c, u_2)

    with `u_2 = clamp(z_2 / height, -1, 1)`, see `girih.flows.fold` and `girih.flows.gate`. In the tail of a feature,
    the gate of the others does not see how far out it is: so z and its gate take one pass. Called with a context, it
    gives a `FoldTransform`, which goes into any stack of zuko's transforms.

    Args:
        features: D.
        context: C, the number of context features.
        mask: D booleans, true for the features `x_1` that are kept; every other one by default. For D = 1, or if no
            feature is kept, all are folded, by numbers that depend on the context alone.
        pieces: K, odd, 3 or more.
        hidden_features: widths of the hidden layers of both networks.
        half_width: of the middle piece, at the start.

    Raises:
        ParameterError: an option is out of its domain.
        ShapeError: the mask does not have D entries.

    Source:
        RAD, section 3.2 and appendix A, which has no shift: without one every fold is centred at 0.

    Example:
        >>> import torch
        >>> from girih.flows import RADCoupling
        >>> layer = RADCoupling(2).double()
        >>> x = torch.tensor([[0.3, -2.0]], dtype=torch.float64)
        >>> folded = layer().fold(x)
        >>> back = layer().unfold(folded.z, folded.k)
        >>> folded.k.shape, bool((back - x).abs().max() < 1e-12)
        (torch.Size([1, 1]), True)
    """

    order: Tensor
    order_back: Tensor

    def __init__(
        self,
        features: int,
        context: int = 0,
        mask: Any = None,
        pieces: int = 3,
        hidden_features: int | Sequence[int] = (64,),
        half_width: float = 0.5,
    ) -> None:
        super().__init__()
        self.features, self.context = whole(features, "features"), whole(context, "context", 0)
        check_pieces(pieces)
        self.pieces = pieces
        widths, half_width = check_widths(hidden_features), real(half_width, "half_width")
        keep = check_mask(mask, self.features)
        moved = (~keep).nonzero().squeeze(-1)
        order = torch.cat((keep.nonzero().squeeze(-1), moved))
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("order_back", order.argsort(), persistent=False)
        self.folded = tuple(moved.tolist())
        self.sizes = (self.features - len(moved), len(moved))
        known = self.sizes[0] + self.context
        start = [0.0, math.log(math.expm1(half_width))] + [0.0] * (2 * pieces - 1)
        self.shape_network = network(known, start * len(moved), widths, _SPREAD)
        self.gate_network = network(known + len(moved), [0.0] * (len(moved) * pieces), widths)

    def forward(self, c: Tensor | None = None) -> FoldTransform:
        """The transform for the context c, `(..., C)`."""
        check_context(c, self.context)
        return FoldTransform(self, c)

    def extra_repr(self) -> str:
        """Shown by `print(layer)`."""
        return f"features={self.features}, folded={list(self.folded)}, pieces={self.pieces}, context={self.context}"


def check_mask(mask: Any, features: int) -> Tensor:
    """`(D,)` booleans, true for the features that a coupling keeps."""
    if mask is None:
        return torch.arange(features) % 2 == 1
    keep = torch.as_tensor(mask).detach().cpu()
    if keep.shape != (features,):
        raise ShapeError(f"mask must have an entry for each of the {features} features; got shape {tuple(keep.shape)}")
    keep = keep.bool()
    if keep.all():
        raise ParameterError("mask keeps every feature; set at least one entry to False, the features to be folded")
    return keep


def check_context(c: Tensor | None, context: int) -> None:
    """Refuse a context of another size than the layer was built for."""
    given = 0 if c is None else c.shape[-1]
    if given != context:
        raise ShapeError(
            f"the context has {given} features, but the flow was built with context={context}; "
            + ("call it without a context" if context == 0 else f"pass an array of shape (..., {context})")
        )
