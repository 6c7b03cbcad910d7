"""Finding the row of a table of activation patterns that equals a given pattern."""

from __future__ import annotations

import numpy as np

from girih.partition.growing import Array

# Sums of up to 2^13 products of codes below 2^7 with weights below 2^32 stay exact in float64.
_WEIGHT = 2**32
_ROWS = 2**15


class Lookup:
    """A sorted table of hashes of the rows of `codes (R, U)`; equal hashes are compared in full."""

    def __init__(self, codes: Array) -> None:
        self.codes = codes
        self._weights = np.random.default_rng(0).integers(1, _WEIGHT, codes.shape[1]).astype(np.float64)
        hashes = self._hash(codes)
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]

    def _hash(self, codes: Array) -> Array:
        parts = [codes[i : i + _ROWS].astype(np.float64) @ self._weights for i in range(0, len(codes), _ROWS)]
        return np.concatenate(parts) if parts else np.empty(0)

    def find(self, codes: Array) -> Array:
        """The row that equals each of `codes (N, U)`, `(N,)`; -1 where there is none."""
        hashes = self._hash(codes)
        at = np.searchsorted(self._sorted, hashes)
        out = np.full(len(codes), -1)
        pending = np.arange(len(codes))
        while len(pending):
            pending = pending[at[pending] < len(self._sorted)]
            pending = pending[self._sorted[at[pending]] == hashes[pending]]
            row = self._order[at[pending]]
            same = np.empty(len(pending), bool)
            for i in range(0, len(pending), _ROWS):
                part = slice(i, i + _ROWS)
                same[part] = (self.codes[row[part]] == codes[pending[part]]).all(1)
            out[pending[same]] = row[same]
            pending = pending[~same]
            at[pending] += 1
        return out
