r"""Log-masses of many boxes or polytopes in one call, differentiable, and their moments.

With `x ~ N(a, B B^T)` and a face F_j of `{x: H x <= h}` at distance d_j along its unit normal n_j,

    d log P / d h_j = f_j / |H_j|,    d log P / d H_j = -f_j E[x | F_j] / |H_j|,    f_j = int_F_j N(x) dx / P,
    d log P / d a   = E[x | P],       d log P / d B   = E[x x^T | P] - I                       at a = 0 and B = I:

a face that moves by s adds `s f_j` of the mass, and moves by `-x dH_j` where its normal turns. The mass of a face is
that of a set of one dimension less, times the density at its distance. Means and covariances go through a and B, and
not through the faces, whose large parts of both signs leave a thin set few digits.
"""

from __future__ import annotations

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from girih._arrays import ArrayLike, as_tensor, bare
from girih.errors import EmptyDataError, LatentDimensionError, NoiseError, NonFiniteError, ShapeError
from girih.gaussian.any_gaussian import Moments
from girih.gaussian.clipping import Clipped, clipped
from girih.gaussian.interval import interval_log_mass, interval_moments
from girih.gaussian.polytopes import Polygons, Polyhedra
from girih.gaussian.tables import complete, describe, flatten, slots

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
_LARGE = 1e-4  # mass per edge above which the signed form, right to 1e-15, is right to 1e-11 of it
_FAR = 1e-3  # by how much vertices count for more with each unit of distance


def polytope_log_mass(
    H: ArrayLike, h: ArrayLike, mean: ArrayLike | None = None, covariance: ArrayLike | None = None
) -> Tensor:
    r"""`log P(H x <= h)` of n polytopes at once, `x ~ N(mean, covariance)`, S = 1, 2 or 3, for many or for gradients.

    As exact as `log_mass`, also where P underflows. Tensors that ask for gradients get them, once, in all four
    arguments: those of half-spaces from the masses of the faces, those of mean and covariance from the moments.

    Args:
        H: `(n, m, S)`, or `(m, S)` for one polytope: m half-spaces each. Rows of zeros do not bind.
        h: `(n, m)`, or `(m,)`; +inf where a half-space does not bind.
        mean: `(S,)`, or `(n, S)`, one each; default 0.
        covariance: `(S, S)`, or `(n, S, S)`; default the identity. Its gradient is symmetric.

    Returns:
        `(n,)` nats, float64, or a scalar for one; -inf where no open set satisfies the half-spaces, of which the
        gradients are NaN.

    Raises:
        ShapeError: arrays that do not fit together.
        NonFiniteError: NaN, or infinite entries but in h.
        NoiseError: a covariance that is not symmetric positive definite.
        LatentDimensionError: S > 3.

    Example:
        >>> import girih.gaussian, numpy as np, torch
        >>> octants = np.stack([np.eye(3), -np.eye(3)])
        >>> girih.gaussian.polytope_log_mass(octants, np.zeros((2, 3))).exp()
        tensor([0.1250, 0.1250], dtype=torch.float64)
        >>> h = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
        >>> girih.gaussian.polytope_log_mass([[[1.0, 0.0]]], h).sum().backward()
        >>> h.grad  # density over mass of a half-plane
        tensor([[0.7979]], dtype=torch.float64)
    """
    single, given = _given(H, h, mean, covariance)
    out = _of(given)
    return out[0] if single else out


def box_log_mass(
    lower: ArrayLike, upper: ArrayLike, mean: ArrayLike | None = None, covariance: ArrayLike | None = None
) -> Tensor:
    r"""`log P(lower <= x <= upper)` of n boxes at once, `x ~ N(mean, covariance)`, S = 1, 2 or 3.

    Use it where `scipy.stats.multivariate_normal.cdf` is too slow, wrong in the tails, or has no gradient.

    Args:
        lower: `(n, S)`, or `(S,)` for one box; -inf for none.
        upper: of the same shape; +inf for none.
        mean: as in `polytope_log_mass`.
        covariance: as in `polytope_log_mass`.

    Returns:
        As `polytope_log_mass`; -inf where `upper <= lower` in some coordinate.

    Example:
        >>> import girih.gaussian, math
        >>> far = [-math.inf, -math.inf], [-10.0, -8.0]
        >>> girih.gaussian.box_log_mass(*far, covariance=[[1.0, -0.5], [-0.5, 1.0]])
        tensor(-170.1503, dtype=torch.float64)
    """
    return polytope_log_mass(*_box(lower, upper), mean, covariance)


def polytope_moments(
    H: ArrayLike, h: ArrayLike, mean: ArrayLike | None = None, covariance: ArrayLike | None = None
) -> Moments:
    """`log P`, `E[x | H x <= h]` and `Cov[x | H x <= h]` of n polytopes at once; without gradients.

    Args:
        H: as in `polytope_log_mass`.
        h: as in `polytope_log_mass`.
        mean: as in `polytope_log_mass`.
        covariance: as in `polytope_log_mass`.

    Raises:
        EmptyDataError: also where no open set satisfies the half-spaces, since nothing has its moments there.
        GirihError: the other errors of `polytope_log_mass`.

    Example:
        >>> import girih.gaussian, numpy as np
        >>> girih.gaussian.polytope_moments(-np.eye(2), np.zeros(2)).mean
        tensor([0.7979, 0.7979], dtype=torch.float64)
    """
    with torch.no_grad():
        single, (planes, room, mu, root) = _given(H, h, mean, covariance)
        sets = _Sets.of(planes @ root, room - (planes @ mu[:, :, None])[:, :, 0])
        log_p, at, spread = sets.roots()
        nothing = torch.isneginf(log_p)
        if nothing.any():
            raise EmptyDataError(f"polytope {int(nothing.nonzero()[0, 0])} holds no open set, so it has no moments")
        spread = root @ spread
        out = Moments(log_p, mu + (root @ at[:, :, None])[:, :, 0], spread @ spread.mT)
    return Moments(*(part[0] for part in out)) if single else out


def box_moments(
    lower: ArrayLike, upper: ArrayLike, mean: ArrayLike | None = None, covariance: ArrayLike | None = None
) -> Moments:
    """`log P`, mean and covariance of `x ~ N(mean, covariance)` in n boxes at once; without gradients.

    Args:
        lower: as in `box_log_mass`.
        upper: as in `box_log_mass`.
        mean: as in `polytope_log_mass`.
        covariance: as in `polytope_log_mass`.

    Raises:
        EmptyDataError: as `polytope_moments`.

    Example:
        >>> import girih.gaussian
        >>> girih.gaussian.box_moments([40.0], [41.0]).mean
        tensor([40.0250], dtype=torch.float64)
    """
    return polytope_moments(*_box(lower, upper), mean, covariance)


_Given = tuple[Tensor, Tensor, Tensor, Tensor]  # H (n, m, S), h (n, m), mean and root of the covariance, for each


def _box(lower: ArrayLike, upper: ArrayLike) -> tuple[Tensor, Tensor]:
    a, b = as_tensor(lower, "lower"), as_tensor(upper, "upper")
    if a.shape != b.shape or a.ndim not in (1, 2):
        raise ShapeError(f"lower {tuple(a.shape)} and upper {tuple(b.shape)} must have one shape, (S,) or (n, S)")
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    H = torch.cat((eye, -eye)).expand(*a.shape[:-1], -1, -1)
    return H, torch.cat((b, -a), -1)


def _given(H: ArrayLike, h: ArrayLike, mean: ArrayLike | None, covariance: ArrayLike | None) -> tuple[bool, _Given]:
    """Whether one polytope was given, and what was given for each, checked."""
    planes, room = as_tensor(H, "H"), as_tensor(h, "h")
    single = planes.ndim == 2
    if single:
        planes, room = planes[None], room[None]
    if planes.ndim != 3 or room.shape != planes.shape[:2]:
        raise ShapeError(
            f"H {tuple(planes.shape)} and h {tuple(room.shape)} must be (n, m, S) and (n, m), or (m, S) and (m,)"
        )
    n, _, S = planes.shape
    if not 1 <= S <= 3:
        raise LatentDimensionError(f"polytopes of dimension {S}: only 1, 2 and 3 are exact; sample in higher ones")
    if not n:
        raise EmptyDataError("there are no polytopes; give at least one")
    like = planes.detach()
    mu = like.new_zeros(S) if mean is None else as_tensor(mean, "mean", like.device)
    sigma = torch.eye(S).to(like) if covariance is None else as_tensor(covariance, "covariance", like.device)
    if mu.shape not in ((S,), (n, S)) or sigma.shape not in ((S, S), (n, S, S)):
        raise ShapeError(
            f"mean {tuple(mu.shape)} and covariance {tuple(sigma.shape)} must be ({S},) and ({S}, {S}), with a leading "
            f"{n} where each polytope has its own"
        )
    for name, part in (("H", planes), ("mean", mu), ("covariance", sigma)):
        if not torch.isfinite(bare(part)).all():
            raise NonFiniteError(f"{name} holds NaN or infinite values; only h may be infinite, where nothing binds")
    if room.isnan().any():
        raise NonFiniteError("h holds NaN; use +inf where a half-space does not bind")
    symmetric = (sigma - sigma.mT).abs().amax() <= 1e-10 * sigma.abs().amax()
    root, info = torch.linalg.cholesky_ex(0.5 * (sigma + sigma.mT))
    if not symmetric or info.any():
        raise NoiseError("covariance must be symmetric positive definite")
    return single, (planes, room, mu.expand(n, S), root.expand(n, S, S))


def _of(given: _Given) -> Tensor:
    """Log-masses, through coordinates in which the normal is standard now: `x = mu + L w`, `w ~ N(a, B B^T)`."""
    planes, room, mu, root = given
    now, L = mu.detach(), root.detach()
    a = torch.linalg.solve_triangular(L, (mu - now)[:, :, None], upper=False)[:, :, 0]
    B = torch.linalg.solve_triangular(L, root, upper=False)
    shifted = room - (planes @ now[:, :, None])[:, :, 0]
    result: Tensor = _LogMass.apply(planes @ L, shifted, a, B)  # type: ignore[no-untyped-call]
    return result


class _Context(torch.autograd.function.FunctionCtx):
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    sets: _Sets


class _LogMass(torch.autograd.Function):
    """`log P(H w <= h)`, `(n,)`, for `w ~ N(a, B B^T)` at a = 0 and B = I."""

    @staticmethod
    def forward(ctx: _Context, H: Tensor, h: Tensor, a: Tensor, B: Tensor) -> Tensor:
        ctx.sets = _Sets.of(H, h)
        log_p = ctx.sets.log_mass()
        ctx.save_for_backward(H, log_p)
        return log_p

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        H, log_p = ctx.saved_tensors
        in_H = in_h = in_a = in_B = None
        nothing = torch.isneginf(log_p)
        if any(ctx.needs_input_grad[:2]):
            owner, side, log_face, at = ctx.sets.faces()
            flux = (log_face - log_p[owner]).exp() / torch.linalg.vector_norm(H[owner, side], dim=1)
            in_h = H.new_zeros(H.shape[:2]).index_put((owner, side), flux, accumulate=True)
            in_H = torch.zeros_like(H).index_put((owner, side), -flux[:, None] * at, accumulate=True)
            in_h = grad[:, None] * in_h.masked_fill(nothing[:, None], torch.nan)
            in_H = grad[:, None, None] * in_H.masked_fill(nothing[:, None, None], torch.nan)
        if any(ctx.needs_input_grad[2:]):
            _, mean, root = ctx.sets.roots()
            in_a = grad[:, None] * mean.masked_fill(nothing[:, None], torch.nan)
            second = root @ root.mT + mean[:, :, None] * mean[:, None, :] - torch.eye(H.shape[2]).to(H)
            in_B = grad[:, None, None] * second.masked_fill(nothing[:, None, None], torch.nan)
        return in_H, in_h, in_a, in_B


class _Sets(NamedTuple):
    """Intervals, polygons or polyhedra as they are integrated over."""

    clipped: Clipped | None
    low: tuple[Tensor, Tensor]  # of intervals, the ends and the half-spaces that have them
    high: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, H: Tensor, h: Tensor) -> _Sets:
        """The sets `{w: H w <= h}`."""
        none = h[:, :0], h[:, :0]
        if H.shape[2] > 1:
            return cls(clipped(H, h), none, none)
        slope = H[:, :, 0]
        at = h / torch.where(slope == 0, 1.0, slope)
        never = ((slope == 0) & (h < 0)) | torch.isneginf(h)
        upper, lower = torch.where(slope > 0, at, torch.inf), torch.where(slope < 0, at, -torch.inf)
        low, high = lower.max(1), upper.min(1)
        gone = never.any(1) | (high.values <= low.values)
        ends = [torch.where(gone, 0.0, end.values) for end in (low, high)]
        return cls(None, (ends[0], low.indices), (ends[1], high.indices))

    def log_mass(self) -> Tensor:
        """`log P`, `(n,)`: the signed form in compiled code where masses are large, the best one elsewhere."""
        if self.clipped is None:
            return interval_log_mass(self.low[0], self.high[0])
        shapes, _, empty = self.clipped
        mass = shapes.mass()
        small = ~(mass > _LARGE * _terms(shapes)) & ~empty
        out = mass.log()
        out[small] = _some(shapes, small).log_mass()
        return out.masked_fill(empty, -torch.inf)

    def roots(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-mass `(n,)`, mean `(n, S)` and a root of the covariance `(n, S, S)` of the truncated normal."""
        if self.clipped is None:
            line = interval_moments(self.low[0], self.high[0])
            return line.log_mass, (line.anchor + line.mean)[:, None], line.variance.sqrt()[:, None, None]
        log_p, mean, root = self.clipped.shapes.roots()
        return log_p.masked_fill(self.clipped.empty, -torch.inf), mean, root

    def faces(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Owner, half-space, log-mass and mean `(F, S)` of every face."""
        if self.clipped is None:
            parts = []
            for end, side in (self.low, self.high):
                owner = torch.isfinite(end).nonzero()[:, 0]
                at = end[owner]
                parts.append((owner, side[owner], -0.5 * at.square() - _HALF_LOG_2PI, at[:, None]))
            return cast("tuple[Tensor, Tensor, Tensor, Tensor]", tuple(map(torch.cat, zip(*parts, strict=True))))
        shapes, side, _ = self.clipped
        if isinstance(shapes, Polygons):
            edge = describe(shapes.tail, shapes.head)
            line = interval_moments(edge.start, edge.end)
            along = (line.anchor + line.mean)[:, None] * edge.along
            distance, owner = edge.distance, shapes.owner
            at, log_face = distance[:, None] * edge.outward + along, line.log_mass
        else:
            axes = complete(shapes.normal)
            tail, head = (flatten(end, axes[shapes.face]) for end in (shapes.tail, shapes.head))
            flat = Polygons(tail, head, shapes.face, len(shapes.owner))
            log_face, mean, _ = flat.roots()
            distance, owner = shapes.offset, shapes.owner
            at = distance[:, None] * shapes.normal + (mean[:, :, None] * axes).sum(1)
        return owner, side, log_face - 0.5 * distance.square() - _HALF_LOG_2PI, at


def _owners(shapes: Polygons | Polyhedra) -> Tensor:
    """The set of each edge."""
    return shapes.owner if isinstance(shapes, Polygons) else shapes.owner[shapes.face]


def _terms(shapes: Polygons | Polyhedra) -> Tensor:
    """The number of edges and faces of each set, `(n,)`, more where vertices are far."""
    owner = _owners(shapes)
    far = torch.linalg.vector_norm(shapes.tail[:, :-1], dim=1) * shapes.tail[:, -1]
    reach = far.new_zeros(shapes.count).scatter_reduce(0, owner, far, "amax")
    faces = slots(shapes.owner, shapes.count)[0]
    number = faces if isinstance(shapes, Polygons) else faces + slots(owner.sort().values, shapes.count)[0]
    terms: Tensor = (1.0 + number) * (1.0 + _FAR * reach)
    return terms


def _some(shapes: Polygons | Polyhedra, kept: Tensor) -> Polygons | Polyhedra:
    """The sets that are kept, `(n,)`."""
    number, edges = kept.cumsum(0) - 1, kept[_owners(shapes)]
    tail, head, count = shapes.tail[edges], shapes.head[edges], int(kept.sum())
    if isinstance(shapes, Polygons):
        return Polygons(tail, head, number[shapes.owner[edges]], count)
    faces = kept[shapes.owner]
    place = faces.cumsum(0) - 1
    planes = shapes.normal[faces], shapes.offset[faces]
    return Polyhedra(tail, head, place[shapes.face[edges]], *planes, number[shapes.owner[faces]], count)
