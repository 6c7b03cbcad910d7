r"""Mass and moments of the standard normal by the divergence theorem: fast, good for large masses.

In the plane the field `x (1 - exp(-|x|^2/2)) / (2 pi |x|^2)` has the density as its divergence. An edge at distance `p`
from the origin that runs from `t0` to `t1` adds

    sign(p) ([atan(t/|p|)] / (2 pi) - [T(|p|, t/|p|)]),      [f(t)] = f(t1) - f(t0), T = Owen's function,

which vanishes with `p`, and infinity adds `angle / (2 pi)`. The moments need the density on the edges only:
`E[x] = -sum n phi(p) [Phi(t)]` and `E[x x'] = m I - sum n phi(p) (p [Phi(t)] n - [phi(t)] e)'`.

In space, with `M` the distribution function of the distance from the origin, `x M(|x|) / (4 pi |x|^3)` has the density
as its divergence. On a face at distance `h`, the edge at in-plane distance `p` from the foot point adds (h, p > 0;
otherwise with the sign of `h p`)

    (1 / 4 pi) int [erf(h/sqrt2) - h erf(r/sqrt2) / r] da,    r^2 = h^2 + p^2 + t^2,  t = p tan a
    = (1 / 4 pi) ( [a] erf(h/sqrt2) - [atan(h t / (p r))] + int h erfc(r/sqrt2) / r da ),

and infinity its solid angle / (4 pi). The last integrand is analytic within pi/2 of the real axis in `s`,
`t = p sinh s`, and negligible beyond r = 8.8: Gauss-Legendre panels of length 2 integrate it to 1e-15.
Moments: `E[x] = -sum n phi(h) A` and `E[x x'] = m I - sum n phi(h) (h A n + B)'`, with A and B the face's mass and
first moment in its plane.

Every term is right to about 1e-16, and they are of both signs: the *absolute* error of all that is some 1e-16 per edge.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import owens_t
from torch import Tensor

from girih._devices import Constant
from girih.gaussian.tables import Edges, PolygonTable, PolyhedronTable, Table, angle_at_infinity, is_unbounded

_SQRT_2PI = math.sqrt(2.0 * math.pi)
_ROOT_HALF = math.sqrt(0.5)
_FAR = 8.8  # erfc(8.8 / sqrt 2) is 1e-18
_STEP = 2.0
_NODES, _WEIGHTS = (Constant(torch.as_tensor(array)) for array in np.polynomial.legendre.leggauss(20))
# Directions in which to look for a viewpoint off all planes
_VIEWS = Constant(
    torch.tensor(
        [
            [0.0, 0, 0],
            [0.39, 0.61, 0.69],
            [-0.71, 0.33, 0.62],
            [0.53, -0.83, 0.17],
            [0.23, 0.37, -0.9],
            [-0.47, -0.59, -0.66],
        ],
        dtype=torch.float64,
    )
)


def signed_mass(table: Table) -> Tensor:
    """Mass of each set, `(n,)`, to about 1e-16 per edge (absolute; it may come out negative)."""
    return _polygon_mass(table.edges) if isinstance(table, PolygonTable) else _polyhedron_mass(table)


def signed_moments(table: Table) -> tuple[Tensor, Tensor, Tensor]:
    """Mass `(n,)`, first `(n, S)` and second `(n, S, S)` moment about the origin, none divided by the mass."""
    return _polygon_moments(table.edges) if isinstance(table, PolygonTable) else _polyhedron_moments(table)


def _polygon_mass(edges: Edges) -> Tensor:
    p = edges.distance.abs()
    used = edges.real & (p > 0)
    p, start, end = p[used], edges.start[used], edges.end[used]
    angle = torch.atan2(end, p) - torch.atan2(start, p)
    term = angle / (2.0 * math.pi) - (_owens_t(p, end) - _owens_t(p, start))
    terms = torch.zeros_like(edges.distance)
    terms[used] = term * edges.distance[used].sign()
    return terms.sum(-1) + angle_at_infinity(edges) / (2.0 * math.pi)


def _owens_t(p: Tensor, t: Tensor) -> Tensor:
    """`T(p, t/p)` for p > 0, nearly 0 beyond p = 9."""
    if p.device.type != "cpu":
        return _owens_t_by_nodes(p, t)
    ratio = (t / p).clamp(-1e300, 1e300)
    return torch.as_tensor(owens_t(p.numpy(), ratio.numpy()))


def _owens_t_by_nodes(p: Tensor, t: Tensor) -> Tensor:
    """The same on any device, to 1e-16 (absolute).

    `T(h, a) = int_0^a exp(-h^2 (1 + x^2) / 2) / (1 + x^2) dx / (2 pi)` for a up to 1 and, with Q the upper tail,
    `T(h, a) = (Q(h) + Q(a h)) / 2 - Q(h) Q(a h) - T(a h, 1 / a)` beyond: what is integrated is smooth either way.
    """
    size = t.abs()
    near, far = torch.minimum(p, size), torch.maximum(p, size)
    ratio = torch.where(torch.isfinite(far), near / far, 0.0)
    x2 = (0.5 * ratio[:, None] * (1.0 + _NODES.on(p.device))).square_()
    far2 = -0.5 * far.clamp(max=1e3).square()
    density = torch.addcmul(far2[:, None], far2[:, None], x2).exp_()
    inner = (density / x2.add_(1.0)) @ _WEIGHTS.on(p.device) * ratio / (4.0 * math.pi)
    q, q_far = 0.5 * (p * _ROOT_HALF).erfc(), 0.5 * (size * _ROOT_HALF).erfc()
    return t.sign() * torch.where(size <= p, inner, 0.5 * (q + q_far) - q * q_far - inner)


def _polygon_moments(edges: Edges) -> tuple[Tensor, Tensor, Tensor]:
    p = edges.distance
    density = torch.where(edges.real, (-0.5 * p.square()).exp() / _SQRT_2PI, 0.0)
    below, above = edges.start * _ROOT_HALF, edges.end * _ROOT_HALF
    # differences of the distribution function from the side where they do not cancel
    upper = below > 0
    line = torch.where(upper, below.erfc() - above.erfc(), (-above).erfc() - (-below).erfc()) * 0.5
    slope = ((-below.square()).exp() - (-above.square()).exp()) / _SQRT_2PI
    flux = density * line
    mass = _polygon_mass(edges)
    first = -(flux[..., None] * edges.outward).sum(-2)
    on_edge = (flux * p)[..., None] * edges.outward + (density * slope)[..., None] * edges.along
    second = mass[:, None, None] * torch.eye(2, dtype=p.dtype, device=p.device)
    second = second - torch.einsum("nki,nkj->nij", edges.outward, on_edge)
    return mass, first, 0.5 * (second + second.mT)


def _polyhedron_mass(faces: PolyhedronTable) -> Tensor:
    h, edges = faces.offset, faces.edges
    size = h.abs()
    angle, solid = _angles(size, edges)
    open_angle = torch.where(faces.real, angle_at_infinity(edges), 0.0)
    flux = (angle.sum(-1) + open_angle) * (size * _ROOT_HALF).erf() - solid.sum(-1) + _remainder(size, edges).sum(-1)
    total = torch.where(faces.real, flux * h.sign(), 0.0).sum(-1)
    return (total + solid_angle_at_infinity(faces)) / (4.0 * math.pi)


def _angles(size: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
    """Angle of each edge about the foot point, and the same of `atan(h t / (p r))`, with the sign of p; `(n, F, K)`."""
    p = edges.distance.abs()
    used = edges.real & (p > 0)
    sign = torch.where(used, edges.distance.sign(), 0.0)
    angle, solid = torch.zeros_like(p), torch.zeros_like(p)
    for t, direction in ((edges.end, 1.0), (edges.start, -1.0)):
        finite = torch.isfinite(t)
        t0 = torch.where(finite, t, t.sign())
        r = torch.where(finite, (size[..., None].square() + p.square() + t0.square()).sqrt(), 1.0)
        angle = angle + direction * torch.atan2(t, p)
        solid = solid + direction * torch.atan2(size[..., None] * t0, p * r)
    return torch.where(used, sign * angle, 0.0), torch.where(used, sign * solid, 0.0)


def _remainder(size: Tensor, edges: Edges) -> Tensor:
    """`int h erfc(r/sqrt2) / r da` with the sign of p, `(n, F, K)`."""
    p = edges.distance.abs()
    room = _FAR**2 - size[..., None].square() - p.square()
    limit = room.clamp(min=0.0).sqrt()
    used = (edges.real & (p > 0) & (size[..., None] > 0) & (room > 0)).nonzero(as_tuple=True)
    h, q, limit = size[..., None].expand_as(p)[used], p[used], limit[used]
    lower = (torch.maximum(edges.start[used], -limit) / q).clamp(-1e300, 1e300).asinh()
    upper = (torch.minimum(edges.end[used], limit) / q).clamp(-1e300, 1e300).asinh()
    lower, upper = lower.clamp(min=-42.0), upper.clamp(max=42.0)  # the integrand decays like exp(-|s|)
    total = torch.zeros_like(h)
    active = (upper > lower).nonzero()[:, 0]
    while len(active):
        low = lower[active]
        half = 0.5 * (upper[active] - low).clamp(max=_STEP)
        cosh = torch.addcmul((low + half)[:, None], half[:, None], _NODES.on(h.device)).cosh()
        r = torch.addcmul(h[active, None].square(), q[active, None] * cosh, q[active, None] * cosh).sqrt()
        total[active] += h[active] * half * (((r * _ROOT_HALF).erfc() / (r * cosh)) @ _WEIGHTS.on(h.device))
        lower[active] = low + 2.0 * half
        active = active[upper[active] - lower[active] > 0]
    out = torch.zeros_like(p)
    out[used] = total * edges.distance[used].sign()
    return out


def solid_angle_at_infinity(faces: PolyhedronTable) -> Tensor:
    """Solid angle `(n,)` of the directions in which each polyhedron is unbounded.

    It is what the faces leave of the sphere around a viewpoint, whichever it is: one far from all planes is taken.
    """
    out = faces.offset.new_zeros(len(faces.offset))
    empty = ~faces.real.any(-1)
    out[empty] = 4.0 * math.pi
    rows = is_unbounded(faces).any(-1).nonzero()[:, 0]
    if not len(rows):
        return out
    some = faces.select(rows)
    finite = some.tail[..., 3] != 0
    points = torch.where(finite[..., None], some.tail[..., :3], 0.0).flatten(1, 2)
    number = finite.flatten(1).sum(1).clamp(min=1)[:, None]
    centre = points.sum(1) / number
    off = torch.where(finite.flatten(1), (points - centre[:, None]).norm(dim=-1), 0.0)
    scale = 1.0 + off.amax(1) if off.shape[1] else torch.ones_like(centre[:, 0])
    views = centre[:, None] + scale[:, None, None] * _VIEWS.on(centre.device)
    gap = some.offset[:, None] - torch.einsum("nfi,nvi->nvf", some.normal, views)
    gap = torch.where(some.real[:, None], gap.abs(), torch.inf).amin(-1)
    view = views[torch.arange(len(rows), device=rows.device), gap.argmax(1)]
    h, seen = some.seen_from(view)
    angle, solid = _angles(h.abs(), seen)
    covered = h.sign() * (angle.sum(-1) + angle_at_infinity(seen) - solid.sum(-1))
    inside = (some.real & (h <= 0)).sum(-1) == 0
    rest = 4.0 * math.pi * inside.to(h.dtype) - torch.where(some.real, covered, 0.0).sum(-1)
    out[rows] = rest.clamp(min=0.0)
    return out


def _polyhedron_moments(faces: PolyhedronTable) -> tuple[Tensor, Tensor, Tensor]:
    mass, h = _polyhedron_mass(faces), faces.offset
    shape = h.shape
    area, tilt, _ = _polygon_moments(Edges(*(part.flatten(0, 1) for part in faces.edges)))
    area, tilt = area.view(shape), tilt.view(*shape, 2)
    density = torch.where(faces.real, (-0.5 * h.square()).exp() / _SQRT_2PI, 0.0)
    first = -((density * area)[..., None] * faces.normal).sum(-2)
    on_face = (h * area)[..., None] * faces.normal + (tilt[..., None] * faces.axes).sum(-2)
    second = mass[:, None, None] * torch.eye(3, dtype=h.dtype, device=h.device)
    second = second - torch.einsum("nf,nfi,nfj->nij", density, faces.normal, on_face)
    return mass, first, 0.5 * (second + second.mT)
