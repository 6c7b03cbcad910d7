"""Finding the row of a table of activation patterns that equals a given pattern."""

from __future__ import annotations

import numpy as np

from girih.partition.growing import Array

_BITS = 53 - 8  # sums of products of bytes with weights stay exact in float64
_BYTES = 2**25


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
