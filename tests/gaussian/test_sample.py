import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2, kstest, special_ortho_group

from girih.gaussian import Polygons, from_halfspaces, interval_log_mass
from twins import f64

inf = math.inf
N = 20_000
# x between the first two, and so on; the last dimension is dropped for S = 2
SPANS = [
    ((-inf, inf), (-inf, inf), (-inf, inf)),
    ((-1, 2), (-1, 1), (-0.5, 3)),
    ((0, inf), (0, inf), (-inf, inf)),
    ((3, inf), (-inf, inf), (-inf, 1)),
    ((-1, 1), (-inf, inf), (0.3, inf)),
    ((30, 31), (-1, 2), (-20, inf)),
    ((300, inf), (-inf, 5), (-7, 9)),
    ((0.3, 0.3 + 1e-7), (-2, 1), (0, 1e-5)),
    ((25, 25 + 1e-6), (20, inf), (-1e-6, 0)),
]


def flat(H, h):
    return from_halfspaces([(H, h)])[0]


def box(spans, turn):
    rows = [(sign * turn[i], sign * b) for i, (lo, hi) in enumerate(spans) for sign, b in ((-1, lo), (1, hi))]
    rows = [(n, b) for n, b in rows if b < inf]
    return np.array([n for n, _ in rows]).reshape(-1, len(turn)), np.array([b for _, b in rows])


def draw(parts, n=N, seed=0):
    return parts.sample(torch.zeros(n, dtype=torch.long), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("S", [2, 3])
@pytest.mark.parametrize("spans", SPANS)
def test_boxes_have_independent_truncated_coordinates(spans, S):
    turn = special_ortho_group.rvs(S, random_state=1)
    H, h = box(spans[:S], turn)
    x = draw(flat(H, h)).numpy()
    y = x @ turn.T
    scale = np.abs(y).max(0)
    for i, (lo, hi) in enumerate(spans[:S]):
        assert (y[:, i] >= lo - 1e-14 * scale.max()).all() and (y[:, i] <= hi + 1e-14 * scale.max()).all()

        def cdf(t, lo=lo, hi=hi):
            low, high = f64(lo), f64(hi)
            t = torch.as_tensor(t).clamp(low, high)
            return (interval_log_mass(low, t) - interval_log_mass(low, high)).exp().numpy()

        assert kstest(y[:, i], cdf).pvalue > 1e-4
    correlation = np.corrcoef(y.T)
    assert np.abs(correlation - np.eye(S)).max() < 5 / math.sqrt(N)


@pytest.mark.parametrize("S", [2, 3])
@pytest.mark.parametrize("shift", [0.0, 4.0, 30.0])
@pytest.mark.parametrize("seed", range(3))
def test_random_cells_have_their_moments(S, shift, seed):
    rng = np.random.default_rng(seed)
    m = S + 1 + 2 * seed
    H = rng.normal(size=(m, S))
    h = np.abs(rng.normal(size=m)) + shift * H @ special_ortho_group.rvs(S, random_state=rng)[0]
    parts = flat(H, h)
    x = draw(parts).numpy()
    assert (x @ H.T - h).max() < 1e-13 * (1 + shift) ** 2
    _, mean, covariance = parts.moments()
    root = np.linalg.cholesky(covariance[0].numpy())
    z = np.linalg.solve(root, (x - mean[0].numpy()).T).T  # mean 0, covariance 1
    assert np.abs(z.mean(0)).max() < 5 / math.sqrt(N)
    products = z[:, :, None] * z[:, None]
    assert (np.abs(products.mean(0) - np.eye(S)) < 5 * products.std(0) / math.sqrt(N)).all()


@pytest.mark.parametrize("S", [2, 3])
@pytest.mark.parametrize("far", [0.0, 2.0, 30.0])
def test_parts_get_their_share_of_the_draws(S, far):
    """Chi-square test of the cells of a grid around the mean, against their exact masses."""
    rng = np.random.default_rng(5)
    turn = special_ortho_group.rvs(S, random_state=5)
    H = np.r_[turn[:1] * -1, rng.normal(size=(3, S))]
    h = np.r_[-far, 2.0 * np.linalg.norm(H[1:], axis=1) + far * H[1:] @ turn[0]]
    x = draw(flat(H, h)).numpy()
    cuts = [(n, np.median(x @ n) + 0.1 * np.std(x @ n)) for n in rng.normal(size=(2, S))]
    whole = flat(H, h).log_mass().item()
    statistic = 0.0
    for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        extra = [(s * n, s * c) for s, (n, c) in zip(signs, cuts, strict=True)]
        G, g = np.r_[H, [n for n, _ in extra]], np.r_[h, [c for _, c in extra]]
        part, empty = from_halfspaces([(G, g)])
        expected = 0.0 if empty else N * math.exp(part.log_mass().item() - whole)
        count = np.logical_and.reduce([x @ n <= c for n, c in extra]).sum()
        if expected < 5:
            assert count < 30
        else:
            statistic += (count - expected) ** 2 / expected
    assert chi2.sf(statistic, 3) > 1e-4


@pytest.mark.parametrize("far", [0.0, 30.0])
def test_slivers(far):
    rng = np.random.default_rng(6)
    for width in (1e-4, 1e-9):
        for _ in range(5):
            turn = special_ortho_group.rvs(2, random_state=rng)
            points = (np.array([[-1, 0], [2, -width], [1.5, width]]) + np.array([far, 0.3])) @ turn
            H = np.array([[b[1] - a[1], a[0] - b[0]] for a, b in zip(points, np.roll(points, -1, 0), strict=True)])
            tail = torch.as_tensor(np.c_[points, np.ones(3)])
            parts = Polygons(tail, tail.roll(-1, 0), torch.zeros(3, dtype=torch.long), 1)
            x = draw(parts, 4000).numpy()
            gap = np.stack([(x - p) @ n / np.linalg.norm(n) for p, n in zip(points, H, strict=True)])
            assert gap.max() < 1e-15 * (1 + far) * 4
            _, mean, covariance = parts.moments()
            along = (points[1] - points[0]) / np.linalg.norm(points[1] - points[0])
            spread = math.sqrt(along @ covariance[0].numpy() @ along)
            assert abs((x @ along).mean() - along @ mean[0].numpy()) < 5 * spread / math.sqrt(len(x))


def test_many_polygons_in_any_order_and_the_same_seed():
    rng = np.random.default_rng(7)
    n = 300
    size = rng.integers(3, 9, n)
    tails = []
    for k in size:
        angle = np.sort(rng.uniform(0, 2 * np.pi, k))
        points = rng.normal(size=2) * 5 + np.stack((np.cos(angle), np.sin(angle)), 1)
        tails.append(np.c_[points, np.ones(k)])
    heads = [np.roll(t, -1, 0) for t in tails]
    tail, head = torch.as_tensor(np.concatenate(tails)), torch.as_tensor(np.concatenate(heads))
    owner = torch.arange(n).repeat_interleave(torch.as_tensor(size))
    which = torch.as_tensor(rng.integers(0, n, 3000))
    polygons = Polygons(tail, head, owner, n + 1)
    first, second = (polygons.sample(which, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, polygons.sample(which, torch.Generator().manual_seed(4)))
    for i, x in zip(which.tolist(), first.numpy(), strict=True):
        a, b = tails[i][:, :2], heads[i][:, :2]
        step = b - a
        assert (step[:, 0] * (x[1] - a[:, 1]) - step[:, 1] * (x[0] - a[:, 0])).min() > -1e-13
    whole = polygons.sample(torch.full((N,), n), torch.Generator().manual_seed(3))
    assert kstest(whole[:, 0].numpy(), "norm").pvalue > 1e-4 and kstest(whole[:, 1].numpy(), "norm").pvalue > 1e-4


def test_sets_without_area_give_a_point_of_theirs():
    tail = torch.tensor([[3.0, 1, 1], [3, 4, 1], [3, 2, 1]], dtype=torch.float64)
    polygon = Polygons(tail, tail.roll(-1, 0), torch.zeros(3, dtype=torch.long), 1)
    x = polygon.sample(torch.zeros(4, dtype=torch.long))
    assert torch.equal(x[:, 0], torch.full((4,), 3.0, dtype=torch.float64))
    assert ((x[:, 1] >= 1) & (x[:, 1] <= 4)).all()
