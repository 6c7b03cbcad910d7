"""The zigzag and its gate, against the formulas of the paper written out piece by piece."""

import math

import pytest
import torch

from girih.errors import ParameterError
from girih.flows import RADCoupling, fold, log_gate, tied_logits
from girih.flows import fold as folds

f64 = torch.float64


def paper(x, alpha, beta, tail_left, tail_right):
    """Appendix A with the outer knots where the fold ends: z, k and |dz/dx| of a number x."""
    a1, a2, a3 = alpha
    left, right = -(1 + 2 * a2 / a1) * beta, (1 + 2 * a2 / a3) * beta
    if x < left:
        return a1 * tail_left * (x - left) - a2 * beta, 0, a1 * tail_left
    if x <= -beta:
        return a1 * (x + beta) + a2 * beta, 0, a1
    if x <= beta:
        return -a2 * x, 1, a2
    if x <= right:
        return a3 * (x - beta) - a2 * beta, 2, a3
    return a3 * tail_right * (x - right) + a2 * beta, 2, a3 * tail_right


def random_fold(pieces, seed, rows=()):
    generator = torch.Generator().manual_seed(seed)
    log_slopes = torch.randn(*rows, pieces, dtype=f64, generator=generator)
    half_width = torch.rand(*rows, 1, dtype=f64, generator=generator) + 0.2
    return folds.make_fold(log_slopes, half_width)


def one_layer(pieces, seed):
    """A coupling of one feature with random numbers."""
    layer = RADCoupling(1, pieces=pieces, hidden_features=(5,)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn(parameter.shape, dtype=f64, generator=generator))
    return layer, layer()


def shape(layer):
    fold, shift, ends = layer()._shape(torch.zeros(1, 0, dtype=f64))
    return fold, shift, ends


@pytest.mark.parametrize("seed", range(5))
def test_three_pieces_are_those_of_the_paper(seed):
    layer, transform = one_layer(3, seed)
    fold, shift, ends = shape(layer)
    alpha, beta = fold.log_slopes.exp().flatten().tolist(), fold.half_width.item()
    # at the ends the gate is known without the free network: lower = (a, 0, 0), upper = (0, 0, b)
    a, b = (math.tanh(beta) * ends).flatten().tolist()
    left = (math.exp(a) / alpha[0]) / (math.exp(a) / alpha[0] + 1 / alpha[1] + 1 / alpha[2])
    right = (math.exp(b) / alpha[2]) / (math.exp(b) / alpha[2] + 1 / alpha[1] + 1 / alpha[0])
    x = torch.linspace(-12, 12, 2001, dtype=f64)
    folded = transform.fold(x[:, None] + shift.item())
    for i in range(len(x)):
        z, k, slope = paper(x[i].item(), alpha, beta, left, right)
        assert folded.z[i].item() == pytest.approx(z, abs=1e-12)
        assert folded.k[i].item() == k
        assert (folded.log_weight - folded.log_gate)[i].item() == pytest.approx(math.log(slope), abs=1e-12)


@pytest.mark.parametrize("pieces", [3, 5, 7, 9])
def test_every_piece_covers_the_interval_and_meets_the_next(pieces):
    fold = random_fold(pieces, pieces)
    edges = folds.knots(fold)
    assert (edges.diff() > 0).all() and len(edges) == pieces - 1
    middle = pieces // 2
    assert edges[middle].item() == pytest.approx(fold.half_width.item())
    assert edges[middle - 1].item() == pytest.approx(-fold.half_width.item())
    for k in range(pieces):
        centre, half = folds.lines(fold, torch.tensor([k]))
        assert (half > 0) == (k % 2 == 0)
        assert (fold.height / half).abs().log().item() == pytest.approx(fold.log_slopes[k].item())
        if k > 0:  # it begins at the knot where the piece before ends, at the same height
            before, width = folds.lines(fold, torch.tensor([k - 1]))
            edge = edges[k - 1]
            assert ((edge - centre) / half).item() == pytest.approx((-1.0) ** (k + 1), abs=1e-12)
            assert ((edge - before) / width).item() == pytest.approx((-1.0) ** (k + 1), abs=1e-12)
        inside = torch.stack((centre - 0.999 * half.abs(), centre, centre + 0.999 * half.abs()))
        assert (folds.piece_of(inside, fold) == k).all()


def test_a_batch_of_folds_is_many_folds():
    many = random_fold(5, 3, rows=(4, 2))
    x = torch.linspace(-3, 3, 8, dtype=f64).reshape(4, 2, 1)
    k = folds.piece_of(x, many)
    centre, half = folds.lines(many, k)
    for i in range(4):
        for j in range(2):
            one = folds.make_fold(many.log_slopes[i, j], many.half_width[i, j])
            alone = folds.piece_of(x[i, j], one)
            assert torch.equal(alone, k[i, j])
            torch.testing.assert_close(folds.lines(one, alone), (centre[i, j], half[i, j]))


def test_unbend_undoes_the_tail():
    v = torch.linspace(-4, 4, 41, dtype=f64)
    u, height, tail = v.clamp(-1, 1), torch.tensor(1.7, dtype=f64), torch.tensor(0.3, dtype=f64)
    torch.testing.assert_close(folds.unbend(height * (u + tail * (v - u)), height, tail), v, atol=1e-14, rtol=0)


@pytest.mark.parametrize("pieces", [1, 2, 4, 0, -3, 3.0, True, "3"])
def test_pieces_must_make_a_zigzag(pieces):
    with pytest.raises(ParameterError, match="odd number, 3 or more"):
        folds.check_pieces(pieces)


@pytest.mark.parametrize("pieces", [3, 5, 7])
def test_ties_hold_at_the_ends_whatever_the_numbers(pieces):
    generator = torch.Generator().manual_seed(pieces)
    ends = torch.randn(20, pieces - 1, dtype=f64, generator=generator)
    free = 10 * torch.randn(20, pieces, dtype=f64, generator=generator)
    width = torch.rand(20, 1, dtype=f64, generator=generator)
    one = torch.ones(20, 1, dtype=f64)
    lower, upper = tied_logits(-one, ends, free, width), tied_logits(one, ends, free, width)
    for k in range(0, pieces - 1, 2):
        assert torch.equal(upper[:, k], upper[:, k + 1])
        assert torch.equal(lower[:, k + 1], lower[:, k + 2])
    # and nothing else is tied: the free numbers of each end are seen
    differences = torch.cat((lower.diff(dim=1)[:, ::2], upper.diff(dim=1)[:, 1::2]), 1)
    assert (differences.abs() > 1e-6).all()
    weight = log_gate(upper, free)
    torch.testing.assert_close(weight.exp().sum(1), torch.ones(20, dtype=f64))


@pytest.mark.parametrize("pieces", [3, 5, 7])
@pytest.mark.parametrize("seed", range(4))
def test_log_weight_is_continuous_at_every_knot(pieces, seed):
    layer, transform = one_layer(pieces, seed)
    for knot in all_knots(layer):
        gaps = knot_gap(transform, knot)
        assert gaps["weight"] < 1e-10 and gaps["z"] < 1e-10


def all_knots(layer):
    """Inner and outer knots of a layer of one feature, as numbers x."""
    fold, shift, _ = shape(layer)
    inner = folds.knots(fold).flatten() + shift.flatten()
    halves = fold.halves.flatten()
    return torch.cat((inner[:1] - 2 * halves[:1], inner, inner[-1:] + 2 * halves[-1:])).tolist()


def knot_gap(transform, knot):
    """How far log p and z jump between the two sides of a knot."""
    step = 1e-13 * max(1.0, abs(knot))
    folded = transform.fold(torch.tensor([[knot - step], [knot + step]], dtype=f64))
    return {"weight": abs(folded.log_weight.diff().item()), "z": abs(folded.z.flatten().diff().item())}


@pytest.mark.parametrize("broken", ["swapped ties", "no ties"])
def test_a_wrong_gate_is_seen_to_jump(broken, monkeypatch):
    right = fold.ties(3, f64, torch.device("cpu"))
    groups = (
        right.groups.flip(0) if broken == "swapped ties" else right.groups + torch.tensor([[0.0, 1, 0], [1.0, 0, 0]])
    )
    monkeypatch.setattr(fold, "ties", lambda *_: right._replace(groups=groups))
    layer, transform = one_layer(3, 0)
    assert max(knot_gap(transform, knot)["weight"] for knot in all_knots(layer)) > 0.05


@pytest.mark.parametrize("pieces", [3, 5])
@pytest.mark.parametrize("offset", [0.0, 1e-15, 1e-12, 1e-9, 1e-5, 0.1, 30.0])
def test_unfolding_gives_x_back_on_every_side_of_every_knot(pieces, offset):
    layer, transform = one_layer(pieces, 2)
    edges = torch.tensor(all_knots(layer), dtype=f64)
    x = torch.cat((edges - offset, edges + offset))[:, None]
    folded = transform.fold(x)
    assert (transform.unfold(folded.z, folded.k) - x).abs().max() < 1e-9
    # what the gate says about z agrees with what was found on the way
    gate_of_z = transform.log_gate(folded.z).gather(-1, folded.k[..., None]).squeeze(-1).sum(-1)
    if offset >= 1e-5:  # nearer, z may lie on the other side of the end by a rounding
        torch.testing.assert_close(gate_of_z, folded.log_gate, atol=1e-9, rtol=0)


def test_a_narrow_fold_is_a_line_of_the_parallel_slope():
    layer, transform = one_layer(5, 1)
    with torch.no_grad():
        layer.shape_network.bias[1] = -60.0  # a half width of 1e-6
    fold, shift, _ = shape(layer)
    slope = 1.0 / (-fold.log_slopes).exp().sum().item()
    x = torch.tensor([[-3.0], [-1e-3], [1e-3], [2.0]], dtype=f64) + shift.item()
    folded = transform.fold(x)
    torch.testing.assert_close(folded.z, slope * (x - shift.item()), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(folded.log_weight, torch.full((4,), math.log(slope), dtype=f64), atol=1e-4, rtol=0)
