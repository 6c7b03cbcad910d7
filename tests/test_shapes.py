"""The shapes that docstrings state are those that come out: of every property that states one, and of some methods.

Letters mean the same within a case, as in `girih`'s docs: N rows, D columns, S latents, R cells, U hidden units.
"""

import inspect
import re

import numpy as np
import pytest
import torch

import girih
from girih import geometry
from girih.geometry import enumerate_cells, sample_cells

N, D = 5, 4
_SHAPE = re.compile(r"`(?:[A-Za-z] )?\(([^()`]*)\)`")


def stated(thing):
    """The shapes in the first paragraph of a docstring, as lists of their entries."""
    text = inspect.getdoc(thing).split("\n\n")[0]
    found = []
    for inside in _SHAPE.findall(text):
        entries = [entry.strip() for entry in inside.split(",") if entry.strip()]
        if all(re.fullmatch(r"\.\.\.|\d+|[A-Z][A-Z0-9 +*-]*", entry) for entry in entries):
            found.append(entries)
    return found


def fits(entries, shape, sizes):
    """Whether a shape is as stated; a letter without a size gets it here."""
    if entries[:1] == ["..."]:
        entries = entries[1:]
        shape = shape[len(shape) - len(entries) :]
    if len(entries) != len(shape):
        return False
    for entry, size in zip(entries, shape, strict=True):
        if re.fullmatch("[A-Z]", entry):
            sizes.setdefault(entry, size)
    return all(eval(entry, {}, sizes) == size for entry, size in zip(entries, shape, strict=True))


def check(thing, value, sizes):
    """Compare a result with a shape that its docstring states, or each of several with its own."""
    shapes, name = stated(thing), getattr(thing, "__qualname__", thing)
    if not isinstance(value, tuple):
        given = tuple(value.shape)
        assert any(fits(entries, given, dict(sizes)) for entries in shapes), f"{name}: {given}, not {shapes} of {sizes}"
        return
    assert len(shapes) >= len(value), f"{name}: {len(shapes)} shapes for {len(value)} results"
    for entries, one in zip(shapes, value, strict=False):
        assert fits(entries, tuple(one.shape), sizes), f"{name}: {tuple(one.shape)}, not {entries} of {sizes}"


def net(S):
    return girih.mlp([S, 6, D], activation="leaky_relu", seed=0)


def rows():
    X = torch.randn(N, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    X[0, 1] = torch.nan
    return X


def owners(S):
    """Objects whose properties are read, with the sizes that are known."""
    dgn, part = girih.DGN(net(S), noise=0.3), girih.Partition(net(S))
    known = {"S": S, "D": D, "R": len(part), "U": 6}
    sampled = sample_cells(net(S), 200)
    noises = [
        girih.Covariance.scalar(0.3, D),
        girih.Covariance.diagonal(np.ones(D)),
        girih.Covariance.full(np.eye(D)),
        girih.Covariance.low_rank(np.ones((D, 2)), np.ones(D)),
    ]
    return [
        (dgn.posterior(rows()), known | {"N": N}),
        (part, known),
        (enumerate_cells(part), known),
        (sampled, known | {"R": len(sampled)}),
        *((covariance, {"D": D}) for covariance in noises),
    ]


def properties(owner):
    """The public properties of an object that state a shape, and are no methods."""
    for name in dir(type(owner)):
        thing = inspect.getattr_static(type(owner), name)
        if not name.startswith("_") and not inspect.isroutine(thing) and thing.__doc__ and stated(thing):
            yield name, thing


@pytest.mark.parametrize("S", [1, 2, 3])
def test_properties(S):
    checked = 0
    for owner, sizes in owners(S):
        for name, thing in properties(owner):
            try:
                value = getattr(owner, name)
            except girih.errors.GirihError:  # of another S
                continue
            check(thing, value, dict(sizes))
            checked += 1
    assert checked > 20


@pytest.mark.parametrize("S", [1, 2, 3])
def test_functions_and_methods(S):
    dgn, x, z = girih.DGN(net(S), noise=0.3), rows(), torch.ones(N, S, dtype=torch.float64)
    part, p, posterior, cells = dgn.partition, dgn(), dgn.posterior(rows()), enumerate_cells(net(S))
    q = torch.distributions.MultivariateNormal(z, torch.eye(S, dtype=torch.float64))
    sizes = {"N": N, "D": D, "S": S, "R": len(part), "U": 6}
    cases = [
        (p.log_prob, x), (p.score, x), (p.denoise, x), (dgn.impute, x), (dgn.elbo, x, q), (posterior.kl, q),
        (posterior.cell_probs,), (dgn.trace.affine, z), (dgn.trace.pattern, z), (part.locate, z), (part.vertices, 0),
        (part.rays, 0), (geometry.singular_values, cells), (geometry.mean_overlap, cells),
    ]  # fmt: skip
    for function, *arguments in cases:
        check(function, function(*arguments), dict(sizes))


def test_a_wrong_shape_is_found():
    def wrong():
        """A number for each row, `(N, S)`."""

    with pytest.raises(AssertionError, match=r"wrong: \(5,\), not"):
        check(wrong, torch.ones(5), {"N": 5, "S": 2})
    with pytest.raises(AssertionError, match="1 shapes for 2 results"):
        check(wrong, (torch.ones(5, 2), torch.ones(5)), {"N": 5, "S": 2})
