"""Probabilities of events of one and two columns, against draws, integrals and each other."""

from __future__ import annotations

import pytest
import torch

from girih.errors import LatentDimensionError, NonFiniteError, ShapeError
from girih.tables.basis import Basis
from girih.tables.conditional import Conditional
from girih.tables.encoded import Atom
from girih.tables.events import probability
from table_twins import Brute, ensemble

NAN = float("nan")
LINE, PLAIN = Basis.line(3), Basis.plain()


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def often(c, A, b, m=40_000, seed=0):
    """How often the event happens among draws, and five standard errors."""
    draws, drawn = c.sample(m, torch.Generator().manual_seed(seed))
    for atom in c.atoms:
        is_atom = drawn[:, :, atom.code] < len(atom.values)
        values = torch.tensor((*atom.values, 0.0)).double()[drawn[:, :, atom.code]]
        draws[:, :, atom.x] = torch.where(is_atom, values, draws[:, :, atom.x])
    p = (draws @ A.mT <= b).all(-1).double().mean(0)
    return p, 5.0 * ((p * (1 - p)).clamp(min=1e-3) / m).sqrt()


def test_one_column():
    e = ensemble(0, 3, [LINE, PLAIN], (3,))
    x, codes = rows([NAN, 0.2, NAN], [NAN, NAN, 0.4]), torch.tensor([[-1], [1]])
    c = Conditional(e, x, codes)
    p = probability(c, rows([1.0, 0.0, 0.0]), 0.3)
    assert torch.allclose(p, c.cdf(torch.full((2, 3), 0.3).double())[:, 0], atol=1e-12)
    both = probability(c, rows([2.0, 0.0, 0.0], [-1.0, 0.0, 0.0]), rows(1.0, 0.4))
    for n in range(2):
        brute = Brute(e, x[n], codes[n])
        assert float(both[n]) == pytest.approx(brute.cdf(0, 0.5) - brute.cdf(0, -0.4), abs=1e-10)
    assert not probability(c, rows([1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]), rows(-1.0, -1.0)).any()
    known = probability(c, rows([0.0, 1.0, 0.0]), 0.25)
    assert known[0] == 1.0 and 0.0 < known[1] < 1.0


def test_two_columns_that_are_straight_by_projection_and_by_the_nested_integral():
    e = ensemble(1, 3, [LINE, PLAIN], (), bend=False)
    x, codes = rows([NAN, 0.2, NAN], [NAN, NAN, NAN], [0.3, NAN, NAN]), torch.zeros(3, 0).long()
    c = Conditional(e, x, codes)
    A = rows([1.0, 0.0, -0.7])
    closed = probability(c, A, 0.2)
    nested = probability(c, torch.cat((A, 2.0 * A)), rows(0.2, 5.0))
    assert torch.allclose(closed, nested, atol=1e-9)
    p, error = often(c, A[None], 0.2)
    assert ((p - closed).abs() <= error).all()


@pytest.mark.parametrize("bend", [False, True])
def test_two_columns_and_several_inequalities(bend):
    e = ensemble(3, 3, [LINE, PLAIN], (2,), bend=bend)
    x, codes = rows([NAN, 0.2, NAN], [NAN, NAN, NAN]), torch.tensor([[-1], [0]])
    c = Conditional(e, x, codes)
    A = rows([1.0, 0.0, 1.0], [-1.0, 0.0, 0.5], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0])
    b = rows(1.0, 0.6, 0.8, 0.7)
    found = probability(c, A, b)
    turned = Conditional(e, x, codes).marginal([2, 1, 0])
    assert torch.allclose(probability(turned, A[:, [2, 1, 0]], b), found, atol=1e-9)
    p, error = often(c, A, b)
    assert ((p - found).abs() <= error).all() and (found > 0.01).all()
    flipped = probability(c, rows([1.0, 0.0, 1.0]), 0.3) + probability(c, rows([-1.0, 0.0, -1.0]), -0.3)
    assert torch.allclose(flipped, torch.ones(2).double(), atol=1e-8)


def test_atoms_in_both_columns():
    e = ensemble(2, 3, [LINE, PLAIN], (3, 2))
    atoms = (Atom(0, 0, (-0.5, 0.25)), Atom(2, 1, (1.0,)))
    x, codes = rows([NAN, 0.2, NAN], [NAN, NAN, NAN]), torch.tensor([[-1, -1], [2, 0]])
    c = Conditional(e, x, codes, atoms)
    for A, b in ((rows([1.0, 0.0, 0.5]), rows(0.75)), (rows([1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]), rows(0.25, 0.5))):
        A = A if A.ndim == 2 else A[None]
        found = probability(c, A, b)
        p, error = often(c, A, b)
        assert ((p - found).abs() <= error).all()


def test_a_joint_model_and_what_is_refused():
    e = ensemble(1, 3, [LINE], (), bend=False)
    p = probability(e, rows([1.0, 0.0, 1.0]), 0.2)
    assert p.shape == () and 0.0 < p < 1.0
    with pytest.raises(LatentDimensionError, match="draws"):
        probability(e, rows([1.0, 1.0, 1.0]), 0.2)
    with pytest.raises(ShapeError, match=r"\(E, 3\)"):
        probability(e, rows([1.0, 1.0]), 0.2)
    with pytest.raises(NonFiniteError, match="finite"):
        probability(e, rows([1.0, 1.0, 0.0]), float("inf"))
    c = Conditional(e, rows([NAN, 0.3, NAN]), torch.zeros(1, 0).long())
    assert torch.allclose(probability(c, rows([1.0, 2.0, 1.0]), 0.8), probability(c, rows([1.0, 0.0, 1.0]), 0.2))
