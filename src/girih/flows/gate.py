r"""The gate `p(k | z)` of a fold, tied at the ends of the folded interval so that `log p` is continuous.

    log p(k | z) = log softmax_k(tanh(half_width) q_k(u) - log slope_k),   u = clamp(z / height, -1, 1)
    q(u)         = (1 - u)/2 lower + (1 + u)/2 upper + (1 - u^2) free(u, ...)

**Where the ties come from.** At a knot the index jumps from k to k + 1 and `|dz/dx|` from `slope_k` to `slope_(k+1)`,
so `log p(x)` is continuous there if and only if `p(k | z) slope_k = p(k+1 | z) slope_(k+1)` at the turning point, that
is `q_k = q_(k+1)`. Pieces turn at `u = +1` in the pairs (0, 1), (2, 3), ... and at `u = -1` in (1, 2), (3, 4), ...:

    lower = (a_0, a_1, a_1, a_2, a_2, ...)   upper = (b_0, b_0, b_1, b_1, ..., b_last)

up to a constant each, which makes `(K - 1)/2` free numbers for each end: for K = 3 `lower = (a, 0, 0)` and
`upper = (0, 0, b)`. The window `1 - u^2` leaves the free logits out at both ends. Beyond the interval one piece is
left, so `p(k | z)` jumps to 1, and `log p` stays continuous because the slope of the tail is multiplied by the
probability that the piece has at the end. The conditions hold for all parameters, hence `log p` is continuous in them
as well; as `half_width -> 0` all of them merge, and the fold becomes the line of slope `1 / sum_k 1/slope_k`. The
factor that vanishes there is `beta` itself in the paper; wide folds then have steep gates, far out above all, where
networks give wide folds.

**Any odd K.** All turning points lie at one of two heights here, so no piece ends while others go on, and the
conditions are the same for every odd K. With turning points at several heights they do not extend: where two pieces
end inside the range of a third, its probability jumps, and it would need a knot of its own there. Stacked layers give
such maps.

Source: RAD, appendix A, with the two ties of the print swapped: pieces 2 and 3 meet at `z = -alpha_2 beta`. Its
`a_s z + b_s` is the line from `lower` to `upper`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


class Ties(NamedTuple):
    """What depends on K alone."""

    one: Tensor  # () 1
    start: Tensor  # () 1/2, the weight of each end in the middle
    step: Tensor  # (K - 1,) -1/2 for the free numbers of the lower end, 1/2 for those of the upper
    groups: Tensor  # (K - 1, K) which pieces each free number belongs to


@lru_cache(maxsize=64)
def ties(pieces: int, dtype: torch.dtype, device: torch.device) -> Ties:
    """The constants of a gate of `pieces` pieces.

    Example:
        >>> import torch
        >>> from girih.flows.gate import ties
        >>> ties(5, torch.float64, torch.device("cpu")).groups.int().tolist()
        [[1, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
    """
    half = pieces // 2
    groups = torch.zeros(2 * half, pieces, dtype=dtype)
    for k in range(pieces):
        if (k + 1) // 2 < half:  # the last group of the lower end is the one that is 0
            groups[(k + 1) // 2, k] = 1.0
        if k // 2 > 0:  # the first group of the upper end
            groups[half + k // 2 - 1, k] = 1.0
    step = torch.tensor([-0.5, 0.5], dtype=dtype).repeat_interleave(half)
    one = torch.ones((), dtype=dtype, device=device)
    return Ties(one, 0.5 * one, step.to(device), groups.to(device))


def tied_logits(u: Tensor, ends: Tensor, free: Tensor, half_width: Tensor) -> Tensor:
    """`tanh(half_width) q(u)`: the logits of the gate plus `log slope_k`, `(..., K)`, up to a constant.

    Args:
        u: where in the folded interval, from -1 to 1, `(..., 1)`.
        ends: `(..., K - 1)`, the free numbers of the lower end, then of the upper.
        free: `(..., K)`, what is added between the ends.
        half_width: of the middle piece, `(..., 1)`.

    Example:
        >>> import torch
        >>> from girih.flows import tied_logits
        >>> one, ends, free = torch.tensor([1.0]), torch.tensor([0.3, 0.7]), torch.tensor([5.0, 6.0, 7.0])
        >>> lower, upper = tied_logits(-one, ends, free, one), tied_logits(one, ends, free, one)
        >>> bool(lower[1] == lower[2]), bool(upper[0] == upper[1])
        (True, True)
    """
    constants = ties(free.shape[-1], free.dtype, free.device)
    between = (ends * torch.addcmul(constants.start, u, constants.step)) @ constants.groups
    window = torch.addcmul(constants.one, u, u, value=-1.0)
    return half_width.tanh() * torch.addcmul(between, window, free)


def log_gate(logits: Tensor, log_slopes: Tensor) -> Tensor:
    """`log p(k | z)` of all pieces, `(..., K)`, from what `tied_logits` gives, where all pieces reach z."""
    return torch.log_softmax(logits - log_slopes, -1)
