"""From a traced generator to the complex of its cells: each unit's hyperplanes cut the cells that they cross."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from girih._progress import Progress
from girih.errors import CellLimitError, EmptyDataError, NonFiniteError
from girih.networks import AffineStep, KinkStep, MaxStep, Trace
from girih.partition.codes import is_sign, pack_bytes, pack_signs
from girih.partition.complex import BLOCK, DOMAIN, Complex, Fan, fan
from girih.partition.memory import Array, Growing, Limits

_EPS = float(np.finfo(np.float64).eps)
_CHUNK = 2**18  # numbers
_FACES = {1: 6, 2: 30, 3: 120}  # numbers that describe the faces of a cell


Block = tuple[int, str, int]  # the step, "value" or "error", the number of the block


class Cut(NamedTuple):
    """One function whose sign cuts cells: a unit at one of its thresholds, or one input of a maximum."""

    step: int
    unit: int
    column: int  # of the pattern
    threshold: float


class Subdivision(NamedTuple):
    """The cells of a generator, as pieces: several where a plane was needed that no unit made."""

    complex: Complex
    codes: Array  # (P, B) uint8, packed
    cuts: list[Cut]  # what the label of a facet stands for
    several: bool  # whether a cell may consist of several pieces


def expected_cells(trace: Trace) -> int:
    """The number of cells that U hyperplanes in general position cut R^S into: a rough guess for U hidden units."""
    units = sum(_cuts_of_step(step) for step in trace.steps)
    return sum(comb(units, k) for k in range(min(trace.latent_dim, units) + 1))


def subdivide(
    trace: Trace, halfspaces: tuple[Array, Array] | None, limits: Limits, show_progress: bool = True
) -> Subdivision:
    """Cut the domain `{z: H z <= h}`, or all of R^S, with every unit of a generator.

    Raises:
        CellLimitError: there are more cells than the limits allow, or they take more memory.
        NonFiniteError: weights that are not finite, or overflow.
        EmptyDataError: the domain is empty.
    """
    with torch.no_grad():
        return _Subdivider(trace, limits, show_progress).run(halfspaces)


def _cuts_of_step(step: object) -> int:
    if isinstance(step, KinkStep):
        return step.size * len(step.thresholds)
    return step.size * (step.windows.shape[1] - 1) if isinstance(step, MaxStep) else 0


class _Subdivider:
    """Walks through the steps of a network, with the values of those that are still needed at every vertex."""

    def __init__(self, trace: Trace, limits: Limits, show_progress: bool) -> None:
        self.trace, self.limits = trace, limits
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
            self.codes = np.empty((self.complex.count, 0), np.uint8)
            self.column = 0
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

    # Values and bounds on their errors lie in blocks of 64 units, each with columns of its own, (V, 64) and float32

    def _blocks(self, index: int) -> list[tuple[Block, Block]]:
        """The names of the values and errors of a step."""
        size = self.trace.steps[index].size
        return [((index, "value", b), (index, "error", b)) for b in range(-(-size // BLOCK))]

    def _columns(self, index: int) -> list[tuple[Growing, Growing]]:
        return [(self.complex.columns[value], self.complex.columns[error]) for value, error in self._blocks(index)]

    def _write(self, index: int, part: slice, values: Array, errors: Array) -> None:
        for b, (value, error) in enumerate(self._blocks(index)):
            units = slice(b * BLOCK, (b + 1) * BLOCK)
            self.complex.columns[value].data[part] = values[:, units]
            self.complex.columns[error].data[part] = errors[:, units]

    def _pick(self, index: int, kind: str, units: Array) -> Array:
        """Values or errors of some units of a step at all vertices."""
        block, place = np.divmod(units, BLOCK)
        out = np.empty((len(self.complex.points), len(units)), np.float64 if kind == "value" else np.float32)
        for b in np.unique(block):
            at = block == b
            out[:, at] = self.complex.columns[index, kind, int(b)].data[:, place[at]]
        return out

    def _make(self, index: int, sources: Sequence[int]) -> None:
        """Room for the values of a step: that of its sources, where nothing else reads them, then new room."""
        columns, size, rows = self.complex.columns, self.trace.steps[index].size, len(self.complex.points)
        spare = [pair for i in dict.fromkeys(sources) if self.last_use[i] <= index for pair in self._blocks(i)]
        free = [pair for pair in spare if columns[pair[0]].data.shape[1] == BLOCK]
        needed = size - BLOCK * min(len(free), size // BLOCK)
        self._afford(needed, self.trace.steps[index].path)
        for b, (value, error) in enumerate(self._blocks(index)):
            width = min(size - b * BLOCK, BLOCK)
            if width == BLOCK and free:
                old = free.pop()
                columns[value], columns[error] = columns[old[0]], columns[old[1]]
            else:
                columns[value] = Growing(np.empty((0, width)))
                columns[error] = Growing(np.empty((0, width), np.float32))
                for name in (value, error):
                    columns[name].extend(rows)

    def _advance(self, index: int, step: object) -> None:
        """The values of an affine step at all vertices, and bounds on their rounding errors."""
        complex_ = self.complex
        points = complex_.points
        if index == 0:
            self._make(0, ())
            z = points[:, :-1]
            self._write(0, slice(None), z, _EPS * np.abs(z))
            return
        assert isinstance(step, AffineStep)
        bias = step.bias.cpu()
        precision = torch.float32  # bounds need no more than three digits
        widest = max(step.size, *(self.trace.steps[i].size for i in step.inputs))
        sources = {i: self._columns(i) for i in step.inputs}
        self._make(index, step.inputs)
        for part in _chunks(len(points), widest):
            t = torch.as_tensor(points[part, -1:])
            read = [_joined(sources[i], part) for i in step.inputs]
            inputs, wrong = [value for value, _ in read], [error for _, error in read]
            width = sum(value.shape[1] for value in inputs) + 1
            value = self._linear(step, inputs) + t * bias
            # a sum of n terms is off by at most n eps of their sizes; in practice by sqrt(n), and 8 leaves room
            rounding = _EPS * min(width, 8.0 + 2.0 * width**0.5)
            spread = [torch.add(e, v.abs().to(precision), alpha=rounding) for e, v in zip(wrong, inputs, strict=True)]
            error = self._linear(step, spread, absolute=True) + (rounding * t * bias.abs()).to(precision)
            _check(value, step.path)
            _check(error, step.path)
            self._write(index, part, value.numpy(), error.numpy())

    def _cut_kinks(self, index: int, step: KinkStep, on_planes: dict[int, Array]) -> None:
        """Cut with every unit; `on_planes` are the vertices known to lie on the plane of a unit at a threshold."""
        complex_, source = self.complex, step.inputs[0]
        column, K, signed = self.column, len(step.thresholds), is_sign(step)
        counts = np.zeros((complex_.count, 0 if signed else step.size), np.int8)
        units = [range(start, min(start + BLOCK, step.size)) for start in range(0, step.size, BLOCK)]
        blocks = self._blocks(index)
        kept = self.last_use[source] > index
        for own, names in zip(blocks, self._blocks(source), strict=True):
            for name, old in zip(own, names, strict=True):
                columns = complex_.columns
                columns[name] = Growing(columns[old].data) if kept else columns.pop(old)
        for k, threshold in enumerate(step.thresholds):
            for part, block in zip(units, blocks, strict=True):
                value, error = (complex_.columns.pop(name) for name in block)
                t = complex_.points[:, -1:]
                value.data[...] -= threshold * t
                error.data[...] += _EPS * abs(threshold) * t
                for j, unit in enumerate(part):
                    on = on_planes.get(unit * K + k)
                    if on is not None:
                        value.data[: len(on), j][on] = 0.0
                signs = self._cut_block(value, error, [Cut(index, u, column + u, threshold) for u in part])
                if signed:
                    self.codes = np.concatenate((self.codes, pack_signs(signs)), 1)  # blocks are of whole bytes
                else:
                    counts = counts[complex_.origin.data]
                    counts[:, part.start : part.stop] += signs
                value.data[...] += threshold * complex_.points[:, -1:]
                if index != self.last or k + 1 < K:
                    complex_.columns[block[0]], complex_.columns[block[1]] = value, error
        if not signed:
            self.codes = np.concatenate((self.codes, pack_bytes(counts - 1 if K == 2 else counts)), 1)
        self.column += step.size
        if index != self.last:
            self._activate(index, step, index)

    def _cut_block(self, value: Growing, error: Growing, cuts: list[Cut]) -> Array:
        """Cut with up to 64 functions; returns on which cells each is positive."""
        complex_ = self.complex
        complex_.begin(value, error)
        width = self._width()
        most = self.limits.bytes / width
        for j, cut in enumerate(cuts):
            label = len(self.cuts)
            self.cuts.append(cut)
            complex_.cut(j, label)
            self.done += 1
            if complex_.count > self.limits.max_cells or len(complex_.points) > most:
                self._refuse(self.trace.steps[cut.step].path, width)
            if not self.bar.hidden and (self.done % 8 == 0 or self.done == self.total):
                self.bar.show(self.done, f"{complex_.count:,} cells")
        del complex_.columns["value"], complex_.columns["error"]
        self.codes = self.codes[complex_.origin.data]
        return complex_.block_signs(len(cuts))

    def _width(self, more: int = 0) -> float:
        """The bytes that a vertex takes, with what belongs to it of cells; `more` values are about to be made."""
        held = sum(column.data.dtype.itemsize * column.data[0].size for column in self.complex.columns.values())
        share = self.complex.count / max(len(self.complex.points), 1)
        # a column has room to grow, patterns are copied as they grow, and faces take some 30 numbers for each cell
        result: float = 1.25 * (held + 12.0 * more) + share * (
            3.0 * self.codes.shape[1] + 8.0 * _FACES[self.complex.dim]
        )
        return result

    def _afford(self, more: int, path: str) -> None:
        """Refuse to make values of so many units at every vertex where they do not fit into memory."""
        width = self._width(more)
        if width * len(self.complex.points) > self.limits.bytes:
            self._refuse(path, width)

    def _refuse(self, path: str, width: float) -> NoReturn:
        """Stop where there are too many cells, or they take too much memory."""
        count, most = self.complex.count, self.limits.max_cells
        where = f"after {self.done} of {self.total} cuts (at layer '{path or 'the input'}')"
        if count > most:
            raise CellLimitError(
                f"the partition has more than max_cells = {most:,} cells: {count:,} were reached {where}; raise "
                "max_cells, pass a smaller domain=, or use Partition.slice or girih.trace(net).affine(z)"
            )
        takes = width * len(self.complex.points) / 1e9
        raise CellLimitError(
            f"the partition takes more memory than memory = {self.limits.bytes / 1e9:.2g} GB: {count:,} cells were "
            f"reached {where}, which take {takes:.2g} GB here; pass a smaller domain=, use "
            " girih.partition.walk for a cell and its neighbours, or raise memory= where the machine has more"
        )

    def _activate(self, index: int, step: KinkStep | MaxStep, source: int) -> None:
        """The values and errors of step `index`, from those before it that lie under the name of step `source`."""
        complex_, device = self.complex, self.trace.device
        points, sources = complex_.points, self._columns(source)
        if source != index:
            self._make(index, ())
        for part in _chunks(len(points), sum(value.data.shape[1] for value, _ in sources)):
            h, error = (tensor.to(device) for tensor in _joined(sources, part))
            if isinstance(step, KinkStep):
                t = torch.as_tensor(points[part, -1:]).to(device)
                values = step.apply(h, t)
                code = step.code(h, t)
                # at a kink either slope may act: take the larger of the slope here and the outermost ones
                slope = step.slopes(code).abs()
                for outer in (-1, 1):
                    slope = slope.maximum(step.slopes(torch.full_like(code[:1], outer)).abs())
                errors = error * slope
            else:
                values, errors = step.apply(h), error[:, step.windows.to(device)].amax(2)
            self._write(index, part, values.cpu().numpy(), errors.cpu().numpy())

    def _cut_maxima(self, index: int, step: MaxStep) -> None:
        """A maximum as a knock-out: each input in turn against the largest before it."""
        columns, source = self.complex.columns, step.inputs[0]
        windows = step.windows.cpu().numpy()
        column = self.column
        self.several |= windows.shape[1] > 2
        winner = np.zeros((self.complex.count, step.size), np.int8)
        columns["best"] = Growing(self._pick(source, "value", windows[:, 0]))
        columns["best", "error"] = Growing(self._pick(source, "error", windows[:, 0]))
        for i in range(1, windows.shape[1]):
            for start in range(0, step.size, BLOCK):
                units = range(start, min(start + BLOCK, step.size))
                part = slice(units.start, units.stop)
                rivals = windows[part, i]
                value = self._pick(source, "value", rivals) - columns["best"].data[:, part]
                error = self._pick(source, "error", rivals) + columns["best", "error"].data[:, part]
                padding = (windows[part, :i] == rivals[:, None]).any(1)
                value[:, padding], error[:, padding] = 0.0, 1.0  # no rival at all
                cuts = [Cut(index, u, column + u, 0.0) for u in units]
                signs = self._cut_block(Growing(value), Growing(error), cuts)
                winner = winner[self.complex.origin.data]
                winner[:, part][signs] = i
            best, error = columns["best"].data, columns["best", "error"].data
            np.maximum(best, self._pick(source, "value", windows[:, i]), out=best)
            np.maximum(error, self._pick(source, "error", windows[:, i]), out=error)
        del columns["best"], columns["best", "error"]
        self.codes = np.concatenate((self.codes, pack_bytes(winner)), 1)
        self.column += step.size
        if index != self.last:
            self._activate(index, step, source)

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


def _joined(blocks: list[tuple[Growing, Growing]], part: slice) -> tuple[Tensor, Tensor]:
    """Values and errors at some vertices, `(n, size)`."""
    values, errors = zip(*((value.data[part], error.data[part]) for value, error in blocks), strict=True)
    return tuple(torch.as_tensor(np.concatenate(parts, 1)) for parts in (values, errors))  # type: ignore[return-value]


def _chunks(rows: int, width: int) -> list[slice]:
    """Parts of so many rows that their values take little memory."""
    size = max(_CHUNK // max(width, 1), 1)
    return [slice(start, start + size) for start in range(0, rows, size)]


def _check(values: Tensor, path: str) -> None:
    if not torch.isfinite(values).all():
        raise NonFiniteError(
            f"layer '{path}' has weights that are not finite, or so large that its output overflows; "
            "reload the network, or train it with smaller steps"
        )
