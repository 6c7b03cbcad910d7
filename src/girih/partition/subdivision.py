"""From a traced generator to the complex of its cells: each unit's hyperplanes cut the cells that they cross."""

from __future__ import annotations

from math import comb
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from girih._progress import Progress
from girih.errors import CellLimitError, EmptyDataError, NonFiniteError
from girih.networks.operators import LinearMap
from girih.networks.steps import AffineStep, KinkStep, MaxStep
from girih.networks.trace import Trace
from girih.partition.fan import Fan, fan
from girih.partition.growing import Array, Growing
from girih.partition.polytopes import BLOCK, DOMAIN, Complex

_EPS = float(np.finfo(np.float64).eps)
_CHUNK = 2**16


class Cut(NamedTuple):
    """One function whose sign cuts cells: a unit at one of its thresholds, or one input of a maximum."""

    step: int
    unit: int
    column: int  # of the pattern
    threshold: float


class Subdivision(NamedTuple):
    """The cells of a generator, as pieces: several where a plane was needed that no unit made."""

    complex: Complex
    codes: Array  # (P, U) int8
    cuts: list[Cut]  # what the label of a facet stands for
    several: bool  # whether a cell may consist of several pieces


def expected_cells(trace: Trace) -> int:
    """The number of cells that U hyperplanes in general position cut R^S into: a rough guess for U hidden units."""
    units = sum(_cuts_of_step(step) for step in trace.steps)
    return sum(comb(units, k) for k in range(min(trace.latent_dim, units) + 1))


def subdivide(
    trace: Trace, halfspaces: tuple[Array, Array] | None, max_cells: int, show_progress: bool = True
) -> Subdivision:
    """Cut the domain `{z: H z <= h}`, or all of R^S, with every unit of a generator.

    Raises:
        CellLimitError: there are more than `max_cells` cells.
        NonFiniteError: weights that are not finite, or overflow.
        EmptyDataError: the domain is empty.
    """
    with torch.no_grad():
        return _Subdivider(trace, max_cells, show_progress).run(halfspaces)


def _cuts_of_step(step: object) -> int:
    if isinstance(step, KinkStep):
        return step.size * len(step.thresholds)
    return step.size * (step.windows.shape[1] - 1) if isinstance(step, MaxStep) else 0


class _Subdivider:
    """Walks through the steps of a network, with the values of those that are still needed at every vertex."""

    def __init__(self, trace: Trace, max_cells: int, show_progress: bool) -> None:
        self.trace, self.max_cells = trace, max_cells
        self.total = sum(_cuts_of_step(step) for step in trace.steps)
        self.done = 0
        self.cuts: list[Cut] = []
        guess = expected_cells(trace)
        self.bar = Progress(f"partition (about {guess:,} cells)", self.total, show=show_progress and guess > 5000)
        self.several = False
        cutting = [i for i, step in enumerate(trace.steps) if isinstance(step, KinkStep | MaxStep)]
        self.last = cutting[-1] if cutting else -1  # what comes after the last kink cuts nothing
        self.last_use = {i: index for index, step in enumerate(trace.steps) for i in step.inputs}

    def run(self, halfspaces: tuple[Array, Array] | None) -> Subdivision:
        try:
            first = self._start(halfspaces)
            self.complex = first.complex
            on_planes: dict[int, Array] = {}
            if halfspaces is not None:
                self._cut_domain(*halfspaces, first)
            else:
                on_planes = {int(c): row for c, row in zip(first.chosen, first.on, strict=True)}
            self.codes = np.empty((self.complex.count, 0), np.int8)
            for index, step in enumerate(self.trace.steps[: self.last + 1]):
                self.current = index
                if isinstance(step, KinkStep):
                    self._cut_kinks(index, step, on_planes)
                elif isinstance(step, MaxStep):
                    self._cut_maxima(index, step)
                else:
                    self._advance(index, step)
                if isinstance(step, KinkStep | MaxStep):
                    on_planes = {}  # the fan is made of the first of these steps
                self._forget(index)
        finally:
            self.bar.close()
        for name in list(self.complex.columns):
            if name != "point":
                del self.complex.columns[name]
        return Subdivision(self.complex, self.codes, self.cuts, self.several)

    # The domain

    def _start(self, halfspaces: tuple[Array, Array] | None) -> Fan:
        """The fan of S independent planes: faces of the domain first, then the first units with a kink."""
        dim = self.trace.latent_dim
        normals, offsets, labels = self._first_planes()
        if halfspaces is not None:
            H, h = halfspaces
            outer = fan(H, -h, DOMAIN - np.arange(len(h)), dim)
            if not outer.artificial:
                return outer
            # the faces of the domain do not meet in a point: units complete them
            chosen = outer.chosen
            rest = fan_rest(H[chosen], normals)
            normals = np.concatenate((H, normals[rest]))
            offsets = np.concatenate((-h, offsets[rest]))
            labels = np.concatenate((DOMAIN - np.arange(len(h)), labels[rest]))
            picked = np.concatenate((chosen, np.arange(len(h), len(labels))))
            first = fan(normals[picked], offsets[picked], labels[picked], dim)
            rows = picked[first.chosen]
            first = first._replace(chosen=np.where(rows < len(h), rows, -1))
        else:
            first = fan(normals, offsets, labels, dim)
        self.several = first.artificial
        return first

    def _first_planes(self) -> tuple[Array, Array, Array]:
        """The hyperplanes of the first step with kinks, affine on all of R^S."""
        dim = self.trace.latent_dim
        values = {0: torch.cat((torch.eye(dim, dtype=torch.float64), torch.zeros(1, dim, dtype=torch.float64)))}
        t = torch.cat((torch.zeros(dim, 1), torch.ones(1, 1))).to(torch.float64)
        for index, step in enumerate(self.trace.steps):
            if isinstance(step, AffineStep):
                values[index] = self._linear(step, [values[i] for i in step.inputs]) + t * step.bias.cpu()
                _check(values[index], step.path)
            elif isinstance(step, KinkStep):
                rows = values[step.inputs[0]].numpy()
                K = len(step.thresholds)
                normals = np.repeat(rows[:dim].T, K, 0)
                offsets = np.repeat(rows[dim], K) - np.tile(np.array(step.thresholds), step.size)
                # labels are numbered threshold by threshold, see _cut_kinks
                labels = (np.arange(K) * step.size + np.arange(step.size)[:, None]).ravel()
                return normals, offsets, labels
            elif isinstance(step, MaxStep):
                break
        return np.empty((0, dim)), np.empty(0), np.empty(0, np.int64)

    def _cut_domain(self, H: Array, h: Array, first: Fan) -> None:
        position = {int(c): i for i, c in enumerate(first.chosen) if c >= 0}
        for start in range(0, len(h), BLOCK):
            part = slice(start, min(start + BLOCK, len(h)))
            rows = self.complex.points
            normals = np.concatenate((H[part], -h[part, None]), 1)
            values = rows @ normals.T
            errors = 4 * _EPS * (np.abs(rows) @ np.abs(normals).T) * (rows.shape[1] + 1)
            for column in range(values.shape[1]):
                if start + column in position:
                    on = first.on[position[start + column]]
                    values[: len(on)][on[: len(values)], column] = 0.0
            self.complex.begin(Growing(values), Growing(errors))
            for j in range(values.shape[1]):
                self.complex.cut(j, DOMAIN - start - j)
            outside = np.asarray(self.complex.block_signs(values.shape[1]).any(1))
            if outside.all():
                raise EmptyDataError("the domain is empty, or has no interior; pass half-spaces H z <= h that meet")
            if start + BLOCK < len(h) or outside.any():
                left = self._drop(~outside, first.on.shape[1])
                first = first._replace(on=first.on[:, left])

    def _drop(self, inside: Array, known: int) -> Array:
        """Keep the cells inside; returns which of the first `known` vertices are left."""
        self.complex.columns["number"] = Growing(np.arange(len(self.complex.points), dtype=np.float64))
        self.complex.keep(np.flatnonzero(inside))
        number = self.complex.columns.pop("number").data.astype(np.int64)
        return number[number < known]

    # The steps of the network

    def _linear(self, step: AffineStep, values: list[Tensor], absolute: bool = False) -> Tensor:
        device = self.trace.device
        moved = [value.to(device) for value in values]
        return (step.magnitude(*moved) if absolute else step.linear(*moved)).cpu()

    def _advance(self, index: int, step: object) -> None:
        """The values of an affine step at all vertices, and bounds on their rounding errors."""
        complex_ = self.complex
        points = complex_.points
        if index == 0:
            complex_.columns[0] = Growing(points[:, :-1])
            complex_.columns[0, "error"] = Growing((_EPS * np.abs(points[:, :-1])).astype(np.float32))
            return
        assert isinstance(step, AffineStep)
        bias = step.bias.cpu()
        # bounds need no more than three digits; operators other than dense ones compute in float64 only
        precision = torch.float32 if isinstance(step.operator, LinearMap) else torch.float64
        values, errors = np.empty((len(points), step.size)), np.empty((len(points), step.size), np.float32)
        for start in range(0, len(points), _CHUNK):
            part = slice(start, start + _CHUNK)
            t = torch.as_tensor(points[part, -1:])
            inputs = [torch.as_tensor(complex_.columns[i].data[part]) for i in step.inputs]
            wrong = [torch.as_tensor(complex_.columns[i, "error"].data[part]).to(precision) for i in step.inputs]
            width = sum(value.shape[1] for value in inputs) + 1
            value = self._linear(step, inputs) + t * bias
            # a sum of n terms is off by at most n eps of their sizes; in practice by sqrt(n), and 8 leaves room
            rounding = _EPS * min(width, 8.0 + 2.0 * width**0.5)
            spread = [torch.add(e, v.abs().to(precision), alpha=rounding) for e, v in zip(wrong, inputs, strict=True)]
            error = self._linear(step, spread, absolute=True) + (rounding * t * bias.abs()).to(precision)
            values[part], errors[part] = value.numpy(), error.numpy()
            _check(value, step.path)
            _check(torch.as_tensor(errors[part]), step.path)
        complex_.columns[index], complex_.columns[index, "error"] = Growing(values), Growing(errors)

    def _cut_kinks(self, index: int, step: KinkStep, on_planes: dict[int, Array]) -> None:
        """Cut with every unit; `on_planes` are the vertices known to lie on the plane of a unit at a threshold."""
        complex_, source = self.complex, step.inputs[0]
        column, K = self.codes.shape[1], len(step.thresholds)
        counts = np.zeros((complex_.count, step.size), np.int8)
        units = [range(start, min(start + BLOCK, step.size)) for start in range(0, step.size, BLOCK)]
        blocks = self._blocks(source, units)
        for k, threshold in enumerate(step.thresholds):
            for part, block in zip(units, blocks, strict=True):
                value, error = complex_.columns.pop(block), complex_.columns.pop((block, "error"))
                t = complex_.points[:, -1:]
                value.data[...] -= threshold * t
                error.data[...] += _EPS * abs(threshold) * t
                for j, unit in enumerate(part):
                    on = on_planes.get(unit * K + k)
                    if on is not None:
                        value.data[: len(on), j][on] = 0.0
                signs = self._cut_block(value, error, [Cut(index, u, column + u, threshold) for u in part])
                counts = counts[complex_.origin.data]
                counts[:, part.start : part.stop] += signs
                value.data[...] += threshold * complex_.points[:, -1:]
                if index != self.last or k + 1 < K:
                    complex_.columns[block], complex_.columns[block, "error"] = value, error
        self.codes = np.concatenate((self.codes, _code(counts, K)), 1)
        if index != self.last:
            self._activate(index, step, blocks)
            for block in blocks:
                del complex_.columns[block], complex_.columns[block, "error"]

    def _blocks(self, source: int, units: list[range]) -> list[tuple[str, int]]:
        """The values of a step in blocks of units, each with columns of its own; dropped as a whole if not needed."""
        columns = self.complex.columns
        for b, part in enumerate(units):
            columns["block", b] = Growing(columns[source].data[:, part.start : part.stop])
            columns[("block", b), "error"] = Growing(columns[source, "error"].data[:, part.start : part.stop])
        if self.last_use[source] <= self.current:
            del columns[source], columns[source, "error"]
        return [("block", b) for b in range(len(units))]

    def _cut_block(self, value: Growing, error: Growing, cuts: list[Cut]) -> Array:
        """Cut with up to 64 functions; returns on which cells each is positive."""
        complex_ = self.complex
        complex_.begin(value, error)
        for j, cut in enumerate(cuts):
            label = len(self.cuts)
            self.cuts.append(cut)
            complex_.cut(j, label)
            self.done += 1
            if complex_.count > self.max_cells:
                path = self.trace.steps[cut.step].path or "the input"
                raise CellLimitError(
                    f"the partition has more than max_cells = {self.max_cells:,} cells: {complex_.count:,} were "
                    f"reached after {self.done} of {self.total} cuts (at layer '{path}'); raise max_cells, pass a "
                    "smaller domain=, or use Partition.slice or girih.trace(net).affine(z)"
                )
            if not self.bar.hidden and (self.done % 8 == 0 or self.done == self.total):
                self.bar.show(self.done, f"{complex_.count:,} cells")
        del complex_.columns["value"], complex_.columns["error"]
        self.codes = self.codes[complex_.origin.data]
        return complex_.block_signs(len(cuts))

    def _activate(self, index: int, step: KinkStep | MaxStep, names: list[Any]) -> None:
        """The values and errors after an activation of the columns `names` side by side, at all vertices."""
        complex_, device = self.complex, self.trace.device
        points = complex_.points
        values, errors = np.empty((len(points), step.size)), np.empty((len(points), step.size), np.float32)

        def read(names: list[Any], part: slice) -> Tensor:
            data = [complex_.columns[name].data[part] for name in names]
            return torch.as_tensor(data[0] if len(data) == 1 else np.concatenate(data, 1)).to(device)

        for start in range(0, len(points), _CHUNK):
            part = slice(start, start + _CHUNK)
            h, error = read(names, part), read([(name, "error") for name in names], part)
            if isinstance(step, KinkStep):
                t = torch.as_tensor(points[part, -1:]).to(device)
                values[part] = step.apply(h, t).cpu().numpy()
                code = step.code(h, t)
                # at a kink either slope may act: take the larger of the slope here and the outermost ones
                slope = step.slopes(code).abs()
                for outer in (-1, 1):
                    slope = slope.maximum(step.slopes(torch.full_like(code[:1], outer)).abs())
                errors[part] = (error * slope).cpu().numpy()
            else:
                values[part] = step.apply(h).cpu().numpy()
                errors[part] = error[:, step.windows.to(device)].amax(2).cpu().numpy()
        complex_.columns[index], complex_.columns[index, "error"] = Growing(values), Growing(errors)

    def _cut_maxima(self, index: int, step: MaxStep) -> None:
        """A maximum as a knock-out: each input in turn against the largest before it."""
        columns, source = self.complex.columns, step.inputs[0]
        windows = step.windows.cpu().numpy()
        column = self.codes.shape[1]
        self.several |= windows.shape[1] > 2
        winner = np.zeros((self.complex.count, step.size), np.int8)
        columns["best"] = Growing(columns[source].data[:, windows[:, 0]])
        columns["best", "error"] = Growing(columns[source, "error"].data[:, windows[:, 0]])
        for i in range(1, windows.shape[1]):
            for start in range(0, step.size, BLOCK):
                units = range(start, min(start + BLOCK, step.size))
                part = slice(units.start, units.stop)
                rivals = windows[part, i]
                value = columns[source].data[:, rivals] - columns["best"].data[:, part]
                error = columns[source, "error"].data[:, rivals] + columns["best", "error"].data[:, part]
                padding = (windows[part, :i] == rivals[:, None]).any(1)
                value[:, padding], error[:, padding] = 0.0, 1.0  # no rival at all
                cuts = [Cut(index, u, column + u, 0.0) for u in units]
                signs = self._cut_block(Growing(value), Growing(error), cuts)
                winner = winner[self.complex.origin.data]
                winner[:, part][signs] = i
            best, error = columns["best"].data, columns["best", "error"].data
            np.maximum(best, columns[source].data[:, windows[:, i]], out=best)
            np.maximum(error, columns[source, "error"].data[:, windows[:, i]], out=error)
        del columns["best"], columns["best", "error"]
        self.codes = np.concatenate((self.codes, winner), 1)
        if index != self.last:
            self._activate(index, step, [source])

    def _forget(self, index: int) -> None:
        """Drop the values that no later step reads."""
        for name in list(self.complex.columns):
            step = name[0] if isinstance(name, tuple) else name
            if isinstance(step, int) and self.last_use.get(step, -1) <= index:
                del self.complex.columns[name]


def fan_rest(rows: Array, normals: Array) -> Array:
    """The normals, made orthogonal to some rows, that are not zero: candidates to complete the rows."""
    if not len(normals):
        return np.empty(0, np.int64)
    basis = np.linalg.qr(rows.T)[0] if len(rows) else np.empty((normals.shape[1], 0))
    left = normals - (normals @ basis) @ basis.T
    size = np.linalg.norm(normals, axis=1)
    return np.flatnonzero((np.linalg.norm(left, axis=1) > 1e-6 * size) & (size > 0))


def _code(counts: Array, thresholds: int) -> Array:
    if thresholds == 1:
        return 2 * counts - 1
    return counts - 1 if thresholds == 2 else counts


def _check(values: Tensor, path: str) -> None:
    if not torch.isfinite(values).all():
        raise NonFiniteError(
            f"layer '{path}' has weights that are not finite, or so large that its output overflows; "
            "reload the network, or train it with smaller steps"
        )
