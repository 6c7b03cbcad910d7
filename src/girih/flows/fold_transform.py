"""`FoldTransform`: what a RAD coupling does to x, given the context: not a bijection, but one of x with (z, k)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Transform, constraints

from girih.flows import gate
from girih.flows.fold import Fold, lines, make_fold, piece_of, unbend

if TYPE_CHECKING:
    from girih.flows.coupling import RADCoupling

# Slopes stay within a factor of 1,000 of their start by the soft clip of zuko's affine couplings (flows train better
# with it than with tanh), and so do the ratios of the gate at the ends of the interval, which the slopes of tails are
# multiplied by: far out, networks give large numbers.
_STEEPEST = math.log(1e3)

# Softplus underflows to 0, where a fold has no interior to divide by.
_NARROWEST = 1e-6


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
        return gate.log_gate(gate.tied_logits(u, ends, free, fold.half_width), fold.log_slopes)

    def _call(self, x: Tensor) -> Tensor:
        return self._folded(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.draw(y)[0]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z and `log|det dz/dx| + log p(k | z)`."""
        z, _, log_weight, *_ = self._folded(x)
        return z, log_weight

    def log_abs_det_jacobian(self, x: Tensor, y: Any) -> Tensor:
        """`log|det dz/dx| + log p(k | z)`, the pseudo log-determinant of appendix A."""
        return self._folded(x)[2]
