"""Activation patterns in few bytes, a bit for each unit with one kink and a byte for others, and tables of them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from girih.networks import KinkStep, MaxStep, Step
from girih.partition.memory import Array

_SIGN = np.uint8(0x80)  # so that bytes are in the order of the codes
_BITS = 53 - 8  # sums of products of bytes with weights stay exact in float64
_BYTES = 2**25


class Packing:
    """Packs the codes `(R, U)` int8 of the steps of a network as bytes `(R, B)` uint8.

    Rows are in the same order, packed or not.
    """

    def __init__(self, steps: Iterable[Step]) -> None:
        self.parts = [(step.size, is_sign(step)) for step in steps if isinstance(step, KinkStep | MaxStep)]

    def pack(self, codes: Array) -> Array:
        """The bytes of the codes `(R, U)`."""
        out, start = [np.empty((len(codes), 0), np.uint8)], 0
        for size, signs in self.parts:
            part = codes[:, start : start + size]
            out.append(pack_signs(part > 0) if signs else pack_bytes(part))
            start += size
        return np.concatenate(out, 1)

    def unpack(self, packed: Array) -> Array:
        """The codes, `(R, U)` int8."""
        out = np.empty((len(packed), sum(size for size, _ in self.parts)), np.int8)
        start = at = 0
        for size, signs in self.parts:
            width = -(-size // 8) if signs else size
            part = packed[:, at : at + width]
            if signs:
                out[:, start : start + size] = np.unpackbits(part, axis=1, count=size)
                out[:, start : start + size] *= 2
                out[:, start : start + size] -= 1
            else:
                out[:, start : start + size] = (part ^ _SIGN).view(np.int8)
            start, at = start + size, at + width
        return out

    def nested_order(self, packed: Array) -> Array:
        """An order `(R,)` that brings rows together which share the codes of the first steps: of one, of two, ...

        It goes by hashes, so that rows which share them may, rarely, be apart.
        """
        rng, at, hashes = np.random.default_rng(0), 0, []
        for size, signs in self.parts[:-1]:
            width = -(-size // 8) if signs else size
            hashes.append(packed[:, at : at + width] @ rng.random(width))
            at += width
        return np.lexsort(hashes[::-1]) if hashes else np.arange(len(packed))


def is_sign(step: KinkStep | MaxStep) -> bool:
    """Tells whether the codes of a step are signs."""
    return isinstance(step, KinkStep) and len(step.thresholds) == 1


def pack_signs(positive: Array) -> Array:
    """A bit for each unit."""
    return np.packbits(positive, axis=1)


def pack_bytes(codes: Array) -> Array:
    """A byte for each unit."""
    return np.ascontiguousarray(codes).view(np.uint8) ^ _SIGN


class Lookup:
    """A sorted table of hashes of the rows of packed `codes (R, B)`; equal hashes are compared in full."""

    def __init__(self, codes: Array) -> None:
        self.codes = codes
        width = max(codes.shape[1], 1)
        self._rows = max(_BYTES // (8 * width), 1)
        largest = 2 ** min(32, _BITS - width.bit_length())
        self._weights = np.random.default_rng(0).integers(1, largest, codes.shape[1]).astype(np.float64)
        hashes = self._hash(codes)
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]

    def _hash(self, codes: Array) -> Array:
        rows = self._rows
        parts = [codes[i : i + rows].astype(np.float64) @ self._weights for i in range(0, len(codes), rows)]
        return np.concatenate(parts) if parts else np.empty(0)

    def find(self, codes: Array) -> Array:
        """The row that equals each of packed `codes (N, B)`, `(N,)`; -1 where there is none."""
        hashes = self._hash(codes)
        at = np.searchsorted(self._sorted, hashes)
        out = np.full(len(codes), -1)
        pending = np.arange(len(codes))
        while len(pending):
            pending = pending[at[pending] < len(self._sorted)]
            pending = pending[self._sorted[at[pending]] == hashes[pending]]
            row = self._order[at[pending]]
            same = np.empty(len(pending), bool)
            for i in range(0, len(pending), self._rows):
                part = slice(i, i + self._rows)
                same[part] = (self.codes[row[part]] == codes[pending[part]]).all(1)
            out[pending[same]] = row[same]
            pending = pending[~same]
            at[pending] += 1
        return out
