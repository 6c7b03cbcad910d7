"""`RADCoupling`, a layer that folds some features with parameters that the others determine, and its `FoldTransform`.

Called with a context, the layer gives the transform: no bijection of x with z, but one of x with (z, k).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from zuko.lazy import LazyTransform
from zuko.nn import MLP

from girih._options import real, whole
from girih.errors import ParameterError, ShapeError
from girih.flows.fold import Fold, check_pieces, lines, log_gate, make_fold, piece_of, tied_logits, unbend

# On the last layer of what shapes the folds: at the start they hardly depend on the other features. After 600 steps the
# NLL is 0.2 nats lower on a ring of Gaussians than without; Real NVP gains nothing from it there.
_SPREAD = 0.1

# Slopes stay within a factor of 1,000 of their start by the soft clip of zuko's affine couplings (flows train better
# with it than with tanh), and so do the ratios of the gate at the ends of the interval, which the slopes of tails are
# multiplied by: far out, networks give large numbers.
_STEEPEST = math.log(1e3)

# Softplus underflows to 0, where a fold has no interior to divide by.
_NARROWEST = 1e-6


class RADCoupling(LazyTransform):
    r"""A coupling layer of RAD: `z_1 = x_1`, and each feature of `x_2` is folded onto an interval.

        z_2, k = fold(x_2 - shift; slopes, half_width),   (shift, slopes, half_width, ends) = s(x_1, c)
        p(k | z) = prod_i p(k_i | z),                     gate logits from ends and s'(x_1, c, u_2)

    with `u_2 = clamp(z_2 / height, -1, 1)`, see `girih.flows.fold` and `girih.flows.fold`. In the tail of a feature,
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
        mask: Tensor | Sequence[bool] | None = None,
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


def check_mask(mask: Tensor | Sequence[bool] | None, features: int) -> Tensor:
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


class Folded(NamedTuple):
    """The image of x under a fold, in nats."""

    z: Tensor  # (..., D)
    k: Tensor  # (..., F) the piece of each folded feature
    log_weight: Tensor  # (...) log|det dz/dx| + log p(k | z)
    log_gate: Tensor  # (...) log p(k | z)


class Gated(NamedTuple):
    """A fold with its gate at points z."""

    fold: Fold
    shift: Tensor  # (..., F, 1)
    z: Tensor  # (..., F, 1)
    log_gate: Tensor  # (..., F, K) at the end of the interval for z beyond it


class FoldTransform(Transform):
    r"""The map x -> z of a `RADCoupling` for a context; `unfold` takes z and k back to x.

    In a stack of zuko's transforms it counts with `log|det dz/dx| + log p(k | z)` instead of a log-determinant, which
    is what `call_and_ladj` and `log_abs_det_jacobian` give, so any `zuko.flows.Flow` has the right `log_prob`. Its
    inverse *draws* k from `p(k | z)`, so any such flow has the right `sample` too, but no `rsample`.

    Args:
        layer: the coupling.
        context: `(..., C)`, or `None`.

    Source:
        RAD, section 2.2 and figure 6.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = False

    def __init__(self, layer: RADCoupling, context: Tensor | None) -> None:
        super().__init__()
        self.layer, self.context = layer, context

    def fold(self, x: Tensor) -> Folded:
        """x to z, k and the terms of `log p`."""
        z, k, log_weight, u, log_gate = self._folded(x)
        # in a tail one piece is left: the gate is 1, and its value at the end of the interval is in the slope
        inside = torch.where(u.abs() < 1.0, log_gate, torch.zeros_like(log_gate))
        return Folded(z, k.squeeze(-1), log_weight, inside.sum((-2, -1)))

    def _folded(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """z, k, the weight, and for each feature u and the gate: what one step of training costs."""
        kept, moved = self._split(x)
        inputs = self._inputs(kept)
        fold, shift, ends = self._shape(inputs)
        moved = moved.unsqueeze(-1) - shift
        k = piece_of(moved, fold)
        centre, half = lines(fold, k)
        v = (moved - centre) / half
        u = F.hardtanh(v)
        log_gate = self._gate(inputs, u, ends, fold).gather(-1, k)
        z = fold.height * torch.addcmul(u, v - u, log_gate.exp())
        log_weight = (log_gate + fold.log_slopes.gather(-1, k)).sum((-2, -1))
        return self._merge(kept, z), k, log_weight, u, log_gate

    def unfold(self, z: Tensor, k: Tensor) -> Tensor:
        """z and k `(..., F)` to x; where the gate gives k no probability, the lines of the pieces go on."""
        kept, gated = self._gated(z)
        return self._merge(kept, self._onto(gated, k.unsqueeze(-1)))

    def log_gate(self, z: Tensor) -> Tensor:
        """`log p(k | z)` of each piece and folded feature, `(..., F, K)`; `-inf` where a piece does not reach z."""
        return self._log_gate(self._gated(z)[1])

    def draw(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """x and k for z, with k drawn from `p(k | z)`."""
        kept, gated = self._gated(z)
        with torch.no_grad():
            # the largest of log p(k | z) + Gumbel noise
            noise = torch.empty_like(gated.log_gate).exponential_().log()
            k = (self._log_gate(gated) - noise).argmax(-1, keepdim=True)
        return self._merge(kept, self._onto(gated, k)), k.squeeze(-1)

    def _gated(self, z: Tensor) -> tuple[Tensor, Gated]:
        kept, moved = self._split(z)
        inputs = self._inputs(kept)
        fold, shift, ends = self._shape(inputs)
        moved = moved.unsqueeze(-1)
        log_gate = self._gate(inputs, F.hardtanh(moved / fold.height), ends, fold)
        return kept, Gated(fold, shift, moved, log_gate)

    @staticmethod
    def _log_gate(gated: Gated) -> Tensor:
        """The gate, with the one piece that is left in a tail."""
        v = gated.z / gated.fold.height
        below, above = torch.full_like(gated.log_gate, -math.inf), torch.full_like(gated.log_gate, -math.inf)
        below[..., 0], above[..., -1] = 0.0, 0.0
        return torch.where(v < -1.0, below, torch.where(v > 1.0, above, gated.log_gate))

    @staticmethod
    def _onto(gated: Gated, k: Tensor) -> Tensor:
        centre, half = lines(gated.fold, k)
        v = unbend(gated.z, gated.fold.height, gated.log_gate.gather(-1, k).exp())
        return gated.shift + torch.addcmul(centre, half, v)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.context is not None and x.shape[:-1] != self.context.shape[:-1]:
            x = x.expand(*torch.broadcast_shapes(x.shape[:-1], self.context.shape[:-1]), -1)
        kept, moved = x.index_select(-1, self.layer.order).split(self.layer.sizes, -1)
        return kept, moved

    def _merge(self, kept: Tensor, moved: Tensor) -> Tensor:
        return torch.cat((kept, moved.squeeze(-1)), -1).index_select(-1, self.layer.order_back)

    def _inputs(self, kept: Tensor) -> Tensor:
        if self.context is None:
            return kept
        return torch.cat((kept, self.context.expand(*kept.shape[:-1], -1)), -1)

    def _shape(self, inputs: Tensor) -> tuple[Fold, Tensor, Tensor]:
        """The fold, its shift and the ends of its gate."""
        pieces = self.layer.pieces
        numbers = self.layer.shape_network(inputs).unflatten(-1, (-1, 2 * pieces + 1))
        shift, width, rest = numbers.split((1, 1, 2 * pieces - 1), -1)
        slopes, ends = (rest / torch.add(1.0, rest.abs(), alpha=1.0 / _STEEPEST)).split((pieces, pieces - 1), -1)
        return make_fold(math.log(pieces) + slopes, _NARROWEST + F.softplus(width)), shift, ends

    def _gate(self, inputs: Tensor, u: Tensor, ends: Tensor, fold: Fold) -> Tensor:
        free = self.layer.gate_network(torch.cat((inputs, u.squeeze(-1)), -1)).unflatten(-1, (-1, self.layer.pieces))
        return log_gate(tied_logits(u, ends, free, fold.half_width), fold.log_slopes)

    def _call(self, x: Tensor) -> Tensor:
        return self._folded(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.draw(y)[0]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z and `log|det dz/dx| + log p(k | z)`."""
        z, _, log_weight, *_ = self._folded(x)
        return z, log_weight

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """`log|det dz/dx| + log p(k | z)`, the pseudo log-determinant of appendix A."""
        return self._folded(x)[2]


class Constant(nn.Module):
    """The same numbers for every input: what is left of a network that has nothing to look at."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-0.5, 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """The numbers, `(..., outputs)`, for x `(..., anything)`."""
        return self.bias.expand(*x.shape[:-1], -1)


def network(inputs: int, start: Sequence[float], hidden: Sequence[int], spread: float = 1.0) -> nn.Module:
    """A ReLU network with random weights whose outputs lie around `start`; constants where there are no inputs.

    Args:
        inputs: how many numbers it sees.
        start: what its outputs begin near.
        hidden: widths of its hidden layers.
        spread: a factor on the weights of the last layer.
    """
    made = MLP(inputs, len(start), hidden) if inputs else Constant(len(start))
    last = made[-1] if isinstance(made, MLP) else made
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.mul_(spread)
        last.bias.add_(torch.tensor(start))
    return made


def check_widths(hidden: int | Sequence[int]) -> tuple[int, ...]:
    """Widths of hidden layers; one number is one layer.

    Raises:
        ParameterError: a width is not a positive whole number.
    """
    if isinstance(hidden, int):
        hidden = (hidden,)
    try:
        widths = tuple(hidden)
    except TypeError:
        raise ParameterError(f"hidden_features must be widths of layers, e.g. (64, 64); got {hidden!r}") from None
    return tuple(whole(width, "each of hidden_features") for width in widths)
