"""The compiled search against the one by tables: the same pairs, and every number that it finds on the way."""

import math

import numpy as np
import pytest
import torch

import girih
from girih.covariance import LowRank
from girih.gaussian import prepared
from girih.inference import accumulate, certificate, chunks, polytopes
from girih.inference.polytopes import log_marginal
from twins import f64, noise_of_kind

pytestmark = pytest.mark.skipif(prepared.kernels() is None, reason="needs Numba, the extra `fast`")

KINDS = ("scalar", "diagonal", "full", "low rank")


def cases(S, models):
    """Networks with noise of any kind from 1e-6 to 1e2, priors, and rows of the model, far off, and far out."""
    for seed in range(models):
        rng = np.random.default_rng((S, seed))
        size = int(rng.choice([1, 3, 6, 30]))
        widths = [(3, 8), (5, 4), (12, 9)][seed % 3] if S == 2 else [(3,), (4, 2), (5, 4)][seed % 3]
        net = girih.mlp([S, *widths, size], activation=("relu", "leaky_relu")[seed % 2], seed=seed)
        level = 10.0 ** rng.uniform(-6, 2)
        kind = KINDS[seed % 4]
        noise = (
            LowRank((f64([level] * size), f64(math.sqrt(level) * rng.normal(size=(size, 1)))), size)
            if kind == "low rank"
            else noise_of_kind(kind, level, size, seed)
        )
        root = np.eye(S) + 0.3 * np.tril(rng.normal(size=(S, S)))
        dgn = girih.DGN(net, noise=noise, prior=root @ root.T if seed % 2 else None, tol=(1e-10, 1e-3)[seed % 5 == 4])
        z = torch.as_tensor(rng.normal(size=(12, S)) * 10.0 ** rng.uniform(-1, 3, (12, 1)))
        with torch.no_grad():
            far = dgn.net(z) + math.sqrt(level) * torch.as_tensor(
                rng.normal(size=(12, size)) * 10.0 ** rng.integers(0, 5, size=(12, 1))
            )
            yield dgn, torch.cat((dgn().sample((12,), seed=seed), far))


@pytest.mark.parametrize(("S", "models"), [(2, 16), (3, 8)])
def test_the_same_pairs_and_what_they_say(S, models):
    sure, total = 0, 0
    for dgn, x in cases(S, models):
        model = dgn.model()
        geometry = model.cells.region.geometry(model)
        for _, rows in chunks(model, x):
            rows = rows.relative()
            ours, tables = certificate.select_pairs(geometry, rows), certificate._by_tables(geometry, rows)
            log_p, theirs = log_marginal(geometry, ours), log_marginal(geometry, tables)
            left = ours.log_left_out - log_p
            assert (left <= math.log(dgn.tol)).all()
            size = 1.0 + theirs.abs()
            assert (ours.log_known <= log_p + left.exp() + 1e-12 * size).all()
            both = left.exp() + (tables.log_left_out - theirs).exp()
            assert ((log_p - theirs).abs() <= both + 1e-13 * size).all()
            # rows are sorted, and no pair comes twice
            assert (ours.row.diff() >= 0).all()
            key = ours.row * geometry.pieces.count + ours.piece
            assert len(key.unique()) == len(key)
            # what both have is the same Gaussian
            at = torch.searchsorted(key.sort().values, tables.row * geometry.pieces.count + tables.piece)
            order = key.argsort()
            at = order[at.clamp(max=len(key) - 1)]
            shared = key[at] == tables.row * geometry.pieces.count + tables.piece
            assert shared.double().mean() > 0.9
            mine, yours = ours.gaussian.take(at[shared]), tables.gaussian.take(shared)
            length = 1.0 + yours.centre.norm(dim=1)
            assert ((mine.centre - yours.centre).norm(dim=1) <= 1e-12 * length).all()
            assert ((mine.base - yours.base).abs() <= 1e-12 * (1.0 + yours.base.abs())).all()
            search = geometry.recall(certificate.Search)
            outer = certificate.unbounded_bounds(geometry, rows)
            numbers = math.log(dgn.tol / 4.0), certificate.ROUNDING, certificate._WORTH, certificate._BEAM
            sure += int((~search.find(geometry, rows, outer, numbers).unsure).sum())
            total += len(rows.y)
    assert sure > 0.8 * total


@pytest.mark.parametrize("S", [2, 3])
def test_rows_that_compiled_code_is_not_sure_of_are_left_to_tables(S, monkeypatch):
    dgn, x = next(cases(S, 1))
    model = dgn.model()
    geometry = model.cells.region.geometry(model)
    rows = next(iter(chunks(model, x)))[1].relative()
    right = certificate.select_pairs(geometry, rows)
    find = certificate.Search.find

    def doubtful(*some):
        found = find(*some)
        odd = torch.arange(len(rows.y)) % 2 == 1
        kept = ~odd[found.row]
        return found._replace(unsure=odd, **{k: getattr(found, k)[kept] for k in ("row", "piece", "base", "centre")})

    monkeypatch.setattr(certificate.Search, "find", doubtful)
    mixed, tables = certificate.select_pairs(geometry, rows), certificate._by_tables(geometry, rows)

    def of(pairs, parity):
        return [pair for pair in zip(pairs.row.tolist(), pairs.piece.tolist(), strict=True) if pair[0] % 2 == parity]

    assert mixed.row.tolist() == sorted(mixed.row.tolist())
    assert sorted(of(mixed, 0)) == sorted(of(right, 0))
    assert sorted(of(mixed, 1)) == sorted(of(tables, 1))
    log_p = log_marginal(geometry, right)
    assert ((log_marginal(geometry, mixed) - log_p).abs() < 1e-10 * (1.0 + log_p.abs())).all()


@pytest.mark.parametrize("S", [2, 3])
def test_threads_change_nothing(S):
    dgn, x = next(cases(S, 1))
    x = x[:12].repeat(20, 1)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with torch.no_grad():
                found.append(dgn().evidence(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0].log_prob, found[1].log_prob)
    assert torch.equal(found[0].left_out, found[1].left_out)


@pytest.mark.parametrize("S", [2, 3])
def test_rows_of_any_size(S):
    dgn = girih.DGN(girih.mlp([S, 4, 2], seed=1), noise=0.1)
    with torch.no_grad():
        for size in (1e8, 1e30, 1e70):
            found = dgn().evidence(torch.full((3, 2), size, dtype=torch.float64))
            assert torch.isfinite(found.log_prob).all()
            assert (found.left_out <= dgn.tol).all()


@pytest.mark.parametrize("S", [2, 3])
def test_bounds_of_single_pieces(S):
    """The distance of a piece at most, and Jensen's bound: against `nearest` and the torch form."""
    from girih.inference import kernels

    for dgn, x in cases(S, 4):
        model = dgn.model()
        geometry = model.cells.region.geometry(model)
        rows = next(iter(chunks(model, x)))[1].relative()
        row, piece = (
            part.flatten()
            for part in torch.meshgrid(
                torch.arange(len(rows.y)), torch.arange(0, geometry.pieces.count, 3), indexing="ij"
            )
        )
        gaussian = geometry.gaussians(rows, row, piece)
        right = geometry.nearest(piece, gaussian)
        shape = geometry.recall(certificate.Search)._shape
        far = geometry.far[piece] + gaussian.centre.norm(dim=1)
        slack, centre = 1e-14 * far.numpy(), gaussian.centre.numpy()
        way, edges, length = np.empty((2, S)), np.empty((S, S)), np.empty(S)
        anchors, reach, least = np.empty(right.shape), np.empty(len(right)), np.empty(len(right))
        for i, k in enumerate(piece.tolist()):
            reach[i] = kernels._nearest(k, centre, i, slack[i], shape, anchors, way)
            least[i] = kernels._least_log_mass(k, centre, anchors, i, slack[i], shape, edges, length)
        distance = right.norm(dim=1).numpy()
        room = 1e-13 * far.numpy()
        assert (reach <= distance + room).all()
        # off by the rounding of a direction, to the farthest vertex
        assert (reach >= distance * (1.0 - 1e-9) - 20.0 * room).all()
        twin = geometry.least_log_mass(piece, gaussian, torch.as_tensor(anchors)).numpy()
        known = np.isfinite(least) & np.isfinite(twin)
        assert (np.isfinite(least) == np.isfinite(twin)).mean() > 0.95
        assert np.abs(least[known] - twin[known]).max() <= 1e-9 * (1.0 + np.abs(twin[known]).max())


@pytest.mark.parametrize("noise", [1e-6, 1e-2, 10.0])
@pytest.mark.parametrize("S", [2, 3])
def test_statistics_of_compiled_moments_are_those_of_the_torch_form(S, noise, monkeypatch):
    """Complete rows and rows with holes, near and far off, of which some pairs need care."""
    dgn = girih.DGN(girih.mlp([S, *((8, 8) if S == 2 else (5, 4)), 6], seed=3), noise=noise, prior=1.7)
    near = dgn().sample((60,), seed=0)
    holes = near[:20].clone()
    holes[::2, 1], holes[::3, 4] = torch.nan, torch.nan
    x = torch.cat((near, 3.0 * near[:20], 40.0 * near[:10], holes))
    weight, model = torch.linspace(0.0, 2.0, len(x), dtype=torch.float64), dgn.model()
    ours = accumulate(model, x, weight)
    monkeypatch.setattr(polytopes, "_fast", lambda *tensors: None)
    theirs = accumulate(model, x, weight)
    assert torch.allclose(ours[0].log_prob, theirs[0].log_prob, rtol=1e-14, atol=1e-12)
    for name, other in vars(theirs[1]).items():
        size = float(other.abs().max())
        assert torch.allclose(getattr(ours[1], name), other, rtol=0.0, atol=1e-11 * size), name
