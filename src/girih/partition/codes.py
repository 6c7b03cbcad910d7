"""Activation patterns in few bytes: a bit for each unit with one kink, a byte for others."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from girih.networks import KinkStep, MaxStep, Step
from girih.partition.growing import Array

_SIGN = np.uint8(0x80)  # so that bytes are in the order of the codes


class Packing:
    """How the codes `(R, U)` int8 of the steps of a network are packed, `(R, B)` uint8.

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


def is_sign(step: KinkStep | MaxStep) -> bool:
    """Whether the codes of a step are signs."""
    return isinstance(step, KinkStep) and len(step.thresholds) == 1


def pack_signs(positive: Array) -> Array:
    """A bit for each unit."""
    return np.packbits(positive, axis=1)


def pack_bytes(codes: Array) -> Array:
    """A byte for each unit."""
    return np.ascontiguousarray(codes).view(np.uint8) ^ _SIGN
