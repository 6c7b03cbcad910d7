"""Many polytopes in one call: the numbers of one at a time, and gradients against differences."""

import math

import mpmath
import numpy as np
import pytest
import torch

from girih.errors import EmptyDataError, LatentDimensionError, NoiseError, NonFiniteError, ShapeError
from girih.gaussian import (
    box_log_mass,
    box_moments,
    interval_log_mass,
    log_mass,
    moments,
    polytope_log_mass,
    polytope_moments,
    prepared,
)
from girih.gaussian.clipping import clipped
from twins import f64

INF = math.inf


def polytopes(S, m, n, seed, far=0.0):
    """Half-spaces of n polytopes, bounded or not, that hold a point `far` deviations out."""
    rng = np.random.default_rng((S, m, seed))
    H = rng.normal(size=(n, m, S))
    return f64(H), f64(np.abs(rng.normal(size=(n, m))) + 0.3 + H @ np.full(S, far))


@pytest.mark.parametrize("S", [1, 2, 3])
@pytest.mark.parametrize("m", [1, 2, 4, 7])
@pytest.mark.parametrize("far", [0.0, 6.0])
def test_the_numbers_of_one_at_a_time(S, m, far):
    H, h = polytopes(S, m, 12, 0, far)
    rng = np.random.default_rng(S)
    root = np.eye(S) + 0.3 * rng.normal(size=(12, S, S))
    mean, covariance = f64(0.3 * rng.normal(size=(12, S))), f64(root @ root.transpose(0, 2, 1) + 0.1 * np.eye(S))
    ours, several = polytope_log_mass(H, h, mean, covariance), polytope_moments(H, h, mean, covariance)
    for k in range(12):
        one = moments(halfspaces=(H[k], h[k]), mean=mean[k], covariance=covariance[k])
        assert ours[k].item() == pytest.approx(one.log_mass.item(), rel=1e-10, abs=1e-10)
        assert torch.allclose(several.mean[k], one.mean, rtol=1e-8, atol=1e-9)
        assert torch.allclose(several.covariance[k], one.covariance, rtol=1e-7, atol=1e-9)
    assert torch.equal(
        polytope_log_mass(H[0], h[0], mean[0], covariance[0]),
        polytope_log_mass(H[:1], h[:1], mean[0], covariance[0])[0],
    )


@pytest.mark.parametrize("S", [2, 3])
def test_clipping_where_planes_are_not_in_general_position(S):
    """Rounded half-spaces, repeated, parallel, opposite, several through a point or a line, against counted draws."""
    rng = np.random.default_rng(S)
    H, h = np.round(1.2 * rng.normal(size=(60, 6, S))), np.round(rng.normal(size=(60, 6)) + 1.0)
    ours = polytope_log_mass(H, h).exp().numpy()
    x = rng.normal(size=(60_000, S))
    share = np.array([(x @ some.T <= room).all(1).mean() for some, room in zip(H, h, strict=True)])
    assert 10 < (share > 0).sum() < 60
    assert (np.abs(ours - share) <= 5.0 * np.sqrt(ours / len(x)) + 1e-4).all()


@pytest.mark.parametrize("S", [2, 3])
def test_parts_of_a_set_cut_through_its_own_corners_add_up(S):
    """A plane through S corners of a rounded polytope: many planes meet in points of both parts."""
    rng = np.random.default_rng(S)
    H, h = np.round(1.2 * rng.normal(size=(40, 7, S))), np.round(rng.normal(size=(40, 7)) + 2.0)
    shapes, _, empty = clipped(f64(H), f64(h))
    used = 0
    for k in (~empty).nonzero()[:, 0].tolist():
        edges = (shapes.owner if S == 2 else shapes.owner[shapes.face]) == k
        corners = torch.unique(shapes.tail[edges & (shapes.tail[:, -1] != 0)][:, :-1], dim=0).numpy()
        if len(corners) < S + 1:
            continue
        at = corners[:S]
        normal = (
            np.array([at[0, 1] - at[1, 1], at[1, 0] - at[0, 0]]) if S == 2 else np.cross(at[1] - at[0], at[2] - at[0])
        )
        if np.linalg.norm(normal) < 1e-6:
            continue
        used += 1
        offset = normal @ at[0]
        parts = [polytope_log_mass(np.r_[H[k], [s * normal]], np.r_[h[k], s * offset]) for s in (1.0, -1.0)]
        whole = polytope_log_mass(H[k], h[k])
        assert torch.stack(parts).logsumexp(0).item() == pytest.approx(whole.item(), rel=1e-9, abs=1e-9)
    assert used > 10


def test_sets_of_planes_that_leave_no_volume_are_empty():
    """`x + 2 y` at most 0 and at least 0, beside others: found with a mass of its own, once."""
    H = [[1, 1, -1], [-1, 1, 0], [-1, 3, 0], [-1, -1, 1], [1, 0, 1], [-2, 0, 0]]
    assert torch.isneginf(log_mass(halfspaces=(np.array(H, float), [1.0, 0, 0, -1, 0, 1])))


def test_a_plane_that_touches_an_edge_or_a_corner_changes_nothing():
    cube = np.r_[np.eye(3), -np.eye(3)]
    exact = 3.0 * math.log(math.erf(1.0 / math.sqrt(2.0)))
    for touching in ([1.0, 1, 0], [1.0, 1, 1], [0.0, 3, -1], [1.0, 0, 0]):
        H = f64(np.r_[cube, [touching]])[None]
        h = f64([*np.ones(6), np.abs(touching).sum()])[None].requires_grad_()
        out = polytope_log_mass(H, h)
        assert out.item() == pytest.approx(exact, abs=1e-12)
        out.sum().backward()
        face = math.exp(-0.5) / math.sqrt(2.0 * math.pi) / math.erf(1.0 / math.sqrt(2.0))
        share = h.grad[0, 0] + h.grad[0, 6] if touching == [1.0, 0, 0] else h.grad[0, 0]
        assert share.item() == pytest.approx(face, rel=1e-10)


@pytest.mark.parametrize("S", [1, 2, 3])
def test_boxes_are_products_of_intervals(S):
    rng = np.random.default_rng(S)
    lower = rng.normal(size=(40, S)) * 10.0 ** rng.uniform(-1, 1.5, (40, S))
    upper = lower + 10.0 ** rng.uniform(-3, 1, (40, S))
    lower[::4, 0], upper[1::4, -1] = -INF, INF
    mean, scale = rng.normal(size=S), rng.uniform(0.5, 2.0, S)
    a, b = ((f64(end) - f64(mean)) / f64(scale) for end in (lower, upper))
    exact = interval_log_mass(a, b).sum(1)
    ours = box_log_mass(lower, upper, mean, np.diag(scale**2))
    assert ((ours - exact).abs() <= 1e-9 * exact.abs().clamp(min=1.0)).all()
    assert exact.min() < -80.0
    assert torch.allclose(box_moments(lower, upper, mean, np.diag(scale**2)).log_mass, exact, rtol=1e-9, atol=1e-9)


def test_a_corner_far_out_against_mpmath():
    """P(X < -10, Y < -8) at correlation -1/2, which cumulative distribution functions give as 0."""

    def slice_mass(x):
        return mpmath.npdf(x) * mpmath.erfc((8 - x / 2) / mpmath.sqrt(mpmath.mpf(3) / 2)) / 2

    with mpmath.workdps(30):
        exact = mpmath.log(mpmath.quad(slice_mass, [-30, -16, -14, -13, *np.arange(-12.0, -9.95, 0.1)]))
    ours = box_log_mass([-INF, -INF], [-10.0, -8.0], covariance=[[1.0, -0.5], [-0.5, 1.0]])
    assert ours.item() == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize("S", [1, 2, 3])
@pytest.mark.parametrize(("m", "far"), [(1, 0.0), (5, 0.0), (5, 6.0)])
def test_gradients_against_differences(S, m, far):
    H, h = polytopes(S, m, 6, 1, far)
    rng = np.random.default_rng((S, m))
    root = np.eye(S) + 0.2 * rng.normal(size=(6, S, S))
    at = [H, h, f64(0.2 * rng.normal(size=(6, S))), f64(root @ root.transpose(0, 2, 1) + 0.1 * np.eye(S))]
    given = [part.clone().requires_grad_() for part in at]
    gradient = torch.autograd.grad(polytope_log_mass(*given).sum(), given)
    for k, part in enumerate(gradient):
        step = f64(rng.normal(size=at[k].shape))
        step = step + step.mT if k == 3 else step
        assert torch.isfinite(part).all()

        def difference(size, k=k, step=step):
            ends = []
            for sign in (size, -size):
                moved = list(at)
                moved[k] = at[k] + sign * step
                ends.append(polytope_log_mass(*moved))
            return (ends[0] - ends[1]) / (2.0 * size)

        exact = (4.0 * difference(5e-5) - difference(1e-4)) / 3.0
        ours = (part * step).flatten(1).sum(1)
        assert ((ours - exact).abs() <= 1e-6 * (1.0 + exact.abs())).all(), k


def test_gradients_of_limits_far_out_are_hazards():
    """At 1e6 deviations the mass falls by |x| nats a unit, and more where an interval is thin."""
    lower = f64([[40.0], [1e6], [5.0], [-3.0]]).requires_grad_()
    upper = f64([[INF], [INF], [5.0 + 1e-6], [INF]])
    box_log_mass(lower, upper).sum().backward()
    log_p = interval_log_mass(lower.detach(), upper)
    hazard = (-0.5 * lower.detach().square() - 0.5 * math.log(2.0 * math.pi) - log_p).exp()
    assert torch.allclose(lower.grad, -hazard, rtol=1e-9)
    assert lower.grad[1, 0].item() == pytest.approx(-1e6, rel=1e-4)


def test_gradients_of_the_mean_of_a_thin_set_have_all_their_digits():
    """A slab of width 1e-6: its faces pull with 1e6 either way, and the mean with what is left."""
    mean = f64([[0.3, -0.2]]).requires_grad_()
    box_log_mass([[1.0, -INF]], [[1.0 + 1e-6, INF]], mean).sum().backward()
    assert torch.allclose(mean.grad, f64([[0.7 + 5e-7, 0.0]]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("S", [2, 3])
def test_without_compiled_code(S, monkeypatch):
    H, h = polytopes(S, 6, 20, 2)
    compiled = polytope_log_mass(H, h)
    monkeypatch.setattr(prepared, "kernels", lambda: None)
    assert torch.allclose(polytope_log_mass(H, h), compiled, rtol=1e-10, atol=1e-10)


def test_sets_without_mass():
    h = f64([[1.0, -1.0], [1.0, -2.0], [1.0, 1.0], [1.0, -INF]]).requires_grad_()
    for S in (1, 2, 3):
        H = torch.zeros(4, 2, S, dtype=torch.float64)
        H[:, 0, 0], H[:, 1, 0] = 1.0, -1.0
        out = polytope_log_mass(H, h)
        assert torch.isneginf(out).tolist() == [True, True, False, True]
        (gradient,) = torch.autograd.grad(out[2], h, retain_graph=True)
        assert torch.isfinite(gradient[2]).all()
        (gradient,) = torch.autograd.grad(out.sum(), h)
        assert gradient.isnan().all(1).tolist() == [True, True, False, True]
        with pytest.raises(EmptyDataError, match="polytope 0 holds no open set"):
            polytope_moments(H, h)
    assert torch.isneginf(box_log_mass([1.0, 0.0], [0.0, 1.0]))
    # what does not bind
    assert polytope_log_mass([[0.0, 0.0], [1.0, 0.0]], [0.0, INF]).item() == pytest.approx(0.0, abs=1e-15)
    assert log_mass(halfspaces=(np.eye(2)[:1], [0.0])) == polytope_log_mass([[1.0, 0.0], [0.0, 0.0]], [0.0, 2.0])


@pytest.mark.parametrize(
    ("error", "arguments"),
    [
        (ShapeError, (np.eye(2), np.ones(3))),
        (ShapeError, (np.ones((2, 3, 2)), np.ones((2, 3)), np.ones((3, 2)))),
        (LatentDimensionError, (np.eye(4), np.ones(4))),
        (EmptyDataError, (np.ones((0, 3, 2)), np.ones((0, 3)))),
        (NonFiniteError, (np.full((1, 2), np.nan), np.ones(1))),
        (NonFiniteError, (np.eye(2), [np.nan, 1.0])),
        (NoiseError, (np.eye(2), np.ones(2), None, [[1.0, 2.0], [2.0, 1.0]])),
        (NoiseError, (np.eye(2), np.ones(2), None, [[1.0, 0.2], [0.0, 1.0]])),
    ],
)
def test_errors_are_typed(error, arguments):
    with pytest.raises(error):
        polytope_log_mass(*arguments)
    with pytest.raises(error):
        polytope_moments(*arguments)


def test_boxes_of_two_shapes_are_refused():
    with pytest.raises(ShapeError, match="must have one shape"):
        box_log_mass([0.0, 0.0], [[1.0, 1.0]])
