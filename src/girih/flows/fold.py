r"""The fold of a line, a zigzag, and the gate that says which piece of it x is on.

The zigzag has K affine pieces, K odd, that all map onto the interval `[-height, height]`:

    v = sign_k (x - centre_k) / half_k,   sign_k = +1, -1, +1, ..., +1,   half_k = height / slope_k    on piece k

The middle piece is `|x| <= half_width` and `height = slope_middle half_width`. With K = 3 this is the paper's function
with `alpha_k = slope_k` and `beta = half_width`. The two tails continue the outer pieces. There, and only there,
`|v| > 1`, and the slope is multiplied by the probability that the gate has at the end of the interval, which makes
`log p` continuous:

    z = height (u + tail (v - u)),   u = clamp(v, -1, 1)

In print the outer knots lack a factor 2: they are at `-(1 + 2 alpha_2 / alpha_1) beta` and
`(1 + 2 alpha_2 / alpha_3) beta`.

The gate `p(k | z)` is tied at the ends of the interval so that `log p` is continuous:

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
import torch.nn.functional as F
from torch import Tensor

from girih.errors import ParameterError


class Fold(NamedTuple):
    """A zigzag, or a batch of them, with K pieces; see `make_fold`."""

    log_slopes: Tensor  # (..., K) logs of the absolute slopes
    half_width: Tensor  # (..., 1) of the middle piece
    height: Tensor  # (..., 1)
    halves: Tensor  # (..., K) half the width of each piece


class Layout(NamedTuple):
    """Constants that depend on K alone."""

    centres: Tensor  # (K, K + 1) row k gives the centre of piece k from half the widths of the pieces; then sign_k
    knots: Tensor  # (K, K - 1) from half the widths to where a piece meets the next


@lru_cache(maxsize=64)
def layout(pieces: int, dtype: torch.dtype, device: torch.device) -> Layout:
    """The constants of a zigzag of `pieces` pieces.

    Example:
        >>> import torch
        >>> from girih.flows.fold import layout
        >>> layout(3, torch.float64, torch.device("cpu")).centres.tolist()
        [[-1.0, -1.0, 0.0, 1.0], [0.0, 0.0, 0.0, -1.0], [0.0, 1.0, 1.0, 1.0]]
    """
    middle = pieces // 2
    centres = torch.zeros(pieces, pieces, dtype=dtype)
    knots = torch.zeros(pieces, pieces - 1, dtype=dtype)
    for side in (1, -1):
        travelled = torch.zeros(pieces, dtype=dtype)
        travelled[middle] = side
        for step in range(1, middle + 1):
            piece = middle + side * step
            knots[:, min(piece, piece - side)] = travelled
            travelled[piece] = side
            centres[piece] = travelled
            travelled[piece] = 2 * side
    signs = torch.ones(pieces, 1, dtype=dtype)
    signs[1::2] = -1.0
    return Layout(torch.cat((centres, signs), 1).to(device), knots.to(device))


def make_fold(log_slopes: Tensor, half_width: Tensor) -> Fold:
    r"""The zigzag with given slopes and middle piece.

    Args:
        log_slopes: logs of the absolute slopes, `(..., K)`, K odd and at least 3.
        half_width: half the width of the middle piece, `(..., 1)`, positive.

    Source:
        RAD, appendix A, for K = 3.

    Example:
        >>> import torch
        >>> from girih.flows import knots, make_fold
        >>> fold = make_fold(torch.tensor([1.0, 2.0, 4.0]).log(), torch.tensor([1.0]))
        >>> fold.height.item(), fold.halves.tolist(), knots(fold).tolist()
        (2.0, [2.0, 1.0, 0.5], [-1.0, 1.0])
    """
    pieces = log_slopes.shape[-1]
    slopes = log_slopes.exp()
    height = slopes.narrow(-1, pieces // 2, 1) * half_width
    return Fold(log_slopes, half_width, height, height / slopes)


def check_pieces(pieces: int) -> None:
    """Refuse a number of pieces that does not make a zigzag from one side to the other.

    Raises:
        ParameterError: it is even or below 3: with an even number both tails would lie on the same side.
    """
    if isinstance(pieces, bool) or not isinstance(pieces, int) or pieces < 3 or pieces % 2 == 0:
        raise ParameterError(
            f"pieces must be an odd number, 3 or more, so that the fold covers the line; got {pieces!r} "
            "(one piece is an affine coupling: use girih.flows.RealNVP)"
        )


def knots(fold: Fold) -> Tensor:
    """The points where a piece meets the next, `(..., K - 1)`."""
    halves = fold.halves
    return halves @ layout(halves.shape[-1], halves.dtype, halves.device).knots


def piece_of(x: Tensor, fold: Fold) -> Tensor:
    """`f_K(x)`: the piece that x lies on, from 0, `(..., 1)` as x; a tail belongs to its outer piece.

    Example:
        >>> import torch
        >>> from girih.flows import make_fold, piece_of
        >>> fold = make_fold(torch.zeros(3), torch.tensor([1.0]))
        >>> piece_of(torch.tensor([[-5.0], [0.0], [1.5]]), fold).tolist()
        [[0], [1], [2]]
    """
    with torch.no_grad():
        return (x > knots(fold)).sum(-1, keepdim=True)


def lines(fold: Fold, k: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and signed half width, `sign_k half_k`, of the pieces k, `(..., 1)` each."""
    halves = fold.halves
    pieces = halves.shape[-1]
    rows = F.embedding(k.squeeze(-1), layout(pieces, halves.dtype, halves.device).centres)
    row, sign = rows.split((pieces, 1), -1)
    return (halves * row).sum(-1, keepdim=True), halves.gather(-1, k) * sign


def unbend(z: Tensor, height: Tensor, tail: Tensor) -> Tensor:
    """v for z: the inverse of `z = height (u + tail (v - u))` with `u = clamp(v, -1, 1)`.

    Example:
        >>> import torch
        >>> from girih.flows.fold import unbend
        >>> unbend(torch.tensor([1.0, 3.0]), torch.tensor(2.0), torch.tensor(0.5)).tolist()
        [0.5, 2.0]
    """
    v = z / height
    u = F.hardtanh(v)
    return torch.where(v == u, v, u + (v - u) / tail)


class Ties(NamedTuple):
    """Constants that depend on K alone."""

    one: Tensor  # () 1
    start: Tensor  # () 1/2, the weight of each end in the middle
    step: Tensor  # (K - 1,) -1/2 for the free numbers of the lower end, 1/2 for those of the upper
    groups: Tensor  # (K - 1, K) which pieces each free number belongs to


@lru_cache(maxsize=64)
def ties(pieces: int, dtype: torch.dtype, device: torch.device) -> Ties:
    """The constants of a gate of `pieces` pieces.

    Example:
        >>> import torch
        >>> from girih.flows.fold import ties
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
