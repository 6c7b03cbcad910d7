"""One column of a table: what it is, found from its entries, and its entries as numbers or codes, and back."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from girih._arrays import check_finite, check_largest
from girih.errors import NotNumericError, ParameterError
from girih.tables.frames import Label, Name, Raw
from girih.tables.grids import look, near
from girih.tables.written import CATEGORICAL, Written

Kind: TypeAlias = Literal["number", "category", "boolean"]
Unseen: TypeAlias = Literal["error", "missing"]

KINDS: tuple[Kind, ...] = ("number", "category", "boolean")

_MANY = 20  # rows from which on text that never repeats is refused: it names the rows


@dataclass(frozen=True)
class Column:
    """What one column of a table is.

    Attributes:
        name: its name, or its place in an array.
        kind: what it holds.
        x: its column of x, if it has one.
        code: its column of codes, if it has one.
        levels: the labels of a category or boolean, by code.
        atoms: the atoms of a number by code, ascending; the next code is "none of them".
        width: h, the step to which a number was rounded; 0 where it was not.
        whole: whether a number was whole in every row.
        constant: the only value that it had, if there was one.
        common: the commonest label or atom, `None` without codes.
        dtype: the name of its type in the container.
        ordered: whether the order of its levels means something there.
        seen: the least and the largest number that it had, `None` where that was not kept.
    """

    name: Name
    kind: Kind
    x: int | None = None
    code: int | None = None
    levels: tuple[Label, ...] = ()
    atoms: tuple[float, ...] = ()
    width: float = 0.0
    whole: bool = False
    constant: Label | None = None
    common: Label | None = None
    dtype: str = ""
    ordered: bool = False
    seen: tuple[float, float] | None = None

    @property
    def size(self) -> int:
        """How many codes it has, 0 without; one more than there are levels or atoms where "anything else" is one."""
        if self.code is None:
            return 0
        return len(self.atoms) + 1 if self.kind == "number" else max(len(self.levels), 2)

    @property
    def other(self) -> bool:
        """Whether it is a constant of which the second code is "anything else"."""
        return self.code is not None and self.constant is not None and len(self.levels or self.atoms) == 1

    def summary(self) -> str:
        """What was done with it, as a sentence without its end."""
        if self.x is None and self.code is None:
            return "no entry was observed: it is kept as it is, and no part of the model"
        if self.other:
            return f"always {self.constant!r}: a category, in which any other value is the second"
        if self.kind == "boolean":
            return "boolean"
        if self.kind == "category":
            of = ", ".join(map(repr, self.levels[:6])) + (", ..." if len(self.levels) > 6 else "")
            numbers = all(isinstance(level, (int, float)) for level in self.levels)
            return f"category with {len(self.levels)} {'values' if numbers else 'levels'}: {of}"
        text = "whole number" if self.whole else "number"
        text += f", rounded to {self.width:g}" if self.width and not self.atoms else ""
        if self.atoms:
            which = " and ".join(f"{atom:g}" for atom in self.atoms)
            one = len(self.atoms) == 1
            text += f"; {which} repeat{'s' if one else ''} so often that {'it counts' if one else 'they count'} as a "
            text += f"probability spread over the width {self.width:g}"
        return text


def learned(raw: Raw, wanted: Kind | None, x: int, code: int) -> Column:
    """What a column is; x and code are the next free places."""
    what = f"column {raw.name!r}"
    if raw.family == "mixed" and wanted != "category":
        text = next(value for value in raw.labels() if isinstance(value, str))
        raise NotNumericError(
            f"{what} holds text among numbers, e.g. {text!r}; make all of it numbers (pandas.to_numeric(..., "
            f'errors="coerce") makes the text missing), or pass kinds={{{raw.name!r}: "category"}}'
        )
    if wanted == "category" or (wanted is None and raw.family == "category"):
        return _category(raw, what, wanted, code)
    values = _numbers(raw, what, wanted or "number")
    seen = values[~np.isnan(values)]
    dtype = "float64" if raw.dtype in CATEGORICAL else raw.dtype
    boolean = wanted == "boolean" or (wanted is None and raw.family == "boolean")
    kind: Kind = "boolean" if boolean else "number"
    if not len(seen):
        return Column(raw.name, kind, dtype=dtype)
    if boolean:
        if not np.isin(seen, (0.0, 1.0)).all():
            raise NotNumericError(f"{what} is to be boolean, but holds {seen[~np.isin(seen, (0.0, 1.0))][0]:g}")
        common = bool(2 * seen.sum() >= len(seen))
        only = common if len(set(seen.tolist())) == 1 else None
        return Column(raw.name, kind, None, code, (False, True), constant=only, common=common, dtype=dtype)
    found = look(seen)
    if found.distinct == 1:
        value = float(seen[0])
        return Column(raw.name, kind, None, code, (), (value,), 1.0, found.whole, value, value, dtype)
    if wanted is None and found.distinct == 2 and _two_valued(seen, found.whole):
        return _category(raw, what, None, code)
    at = code if found.atoms else None
    commonest = max(found.atoms, key=lambda a: int((seen == a).sum())) if found.atoms else None
    ends = float(seen.min()), float(seen.max())
    return Column(raw.name, kind, x, at, (), found.atoms, found.width, found.whole, None, commonest, dtype, seen=ends)


def _two_valued(seen: NDArray[np.float64], whole: bool) -> bool:
    """Whether two different values are the names of two groups."""
    least = min(int((seen == seen.min()).sum()), int((seen == seen.max()).sum()))
    return len(seen) > 2 if whole else least >= 3


def _category(raw: Raw, what: str, wanted: Kind | None, code: int) -> Column:
    values = raw.labels()
    counts = Counter(value for value in values if value is not None)
    if not counts:
        return Column(raw.name, "category", levels=raw.levels or (), dtype=raw.dtype, ordered=raw.ordered)
    if wanted is None and raw.levels is None and len(counts) == counts.total() >= _MANY:
        raise ParameterError(
            f"{what} holds a different text in each of {len(counts)} rows, e.g. {next(iter(counts))!r}: it names the "
            f'rows and says nothing of them; leave it out, or pass kinds={{{raw.name!r}: "category"}}'
        )
    levels = raw.levels or tuple(sorted(counts, key=lambda label: (isinstance(label, str), label)))
    common = max(levels, key=lambda label: counts[label])
    only = common if len(counts) == 1 else None
    return Column(raw.name, "category", None, code, levels, (), 0.0, False, only, common, raw.dtype, raw.ordered)


def _numbers(raw: Raw, what: str, kind: Kind) -> NDArray[np.float64]:
    """The entries of a column that holds numbers or booleans, finite where observed."""
    if raw.family in ("category", "mixed"):
        text = next((value for value in raw.labels() if isinstance(value, str)), None)
        if text is not None:
            raise NotNumericError(f"{what} should hold {kind}s, but holds text, e.g. {text!r}; pass numbers there")
    values = raw.numbers()
    rows = torch.from_numpy(np.array(values))[:, None]  # a copy: the memory of frames may be read-only
    check_finite(rows, "X", True, [raw.name])
    check_largest(rows, "X", [raw.name])
    return values


def encoded(item: Column, raw: Raw, unseen: Unseen) -> tuple[NDArray[np.float64], NDArray[np.int64] | None]:
    """The numbers and the codes of a column."""
    what = f"column {item.name!r}"
    if item.kind == "category":
        return np.empty(0), _codes(item, raw, what, unseen)
    values = _numbers(raw, what, item.kind)
    missing = np.isnan(values)
    if item.kind == "boolean":
        wrong = ~missing & ~np.isin(values, (0.0, 1.0))
        if wrong.any() and unseen == "error":
            raise ParameterError(f"{what} is boolean, but holds {values[wrong][0]:g}; pass True, False or missing")
        return np.empty(0), np.where(missing | wrong, -1.0, values).astype(np.int64)
    if not item.atoms:
        return values, None
    code = np.where(missing, -1, len(item.atoms))
    for k, atom in enumerate(item.atoms):
        code[near(values, atom, None if item.other else item.width)] = k
    return np.where(code == len(item.atoms), values, np.nan), code


def _codes(item: Column, raw: Raw, what: str, unseen: Unseen) -> NDArray[np.int64]:
    """The codes of a category."""
    places: dict[Label | None, int] = {label: k for k, label in enumerate(item.levels)}
    places[None] = -1
    values = raw.labels()
    new = {value for value in set(values) if value not in places}
    floats = [float(level) for level in item.levels if not isinstance(level, str)]
    for value in sorted(new, key=str):
        if floats and not isinstance(value, str) and value is not None:  # numbers that went through float32
            k = int(np.abs(np.array(floats) - value).argmin())
            if abs(floats[k] - value) <= 1.2e-7 * abs(floats[k]):
                places[value] = next(i for i, level in enumerate(item.levels) if level == floats[k])
                new.discard(value)
    if new and item.other:
        places.update(dict.fromkeys(new, len(item.levels)))
    elif new and unseen == "error":
        remedy = (
            f'fit with kinds={{{item.name!r}: "number"}}'
            if floats
            else "declare it when fitting (a pandas categorical or polars enum)"
        )
        raise ParameterError(
            f"{what} holds {listed(sorted(new, key=str))}, which the table that was fitted has not; {remedy}, or pass "
            'unseen="missing"'
        )
    elif new:
        places.update(dict.fromkeys(new, -1))
    return np.fromiter((places[value] for value in values), dtype=np.int64, count=len(values))


def _labels(item: Column, code: NDArray[np.int64], old: Raw | None) -> Written:
    """The labels of codes; numbers where all of them are."""
    kept: Sequence[Label | None] = [None] * len(code) if old is None else old.labels()
    names: list[Label | None] = [*item.levels, None]
    out = [
        names[k] if k < len(item.levels) else kept[n] if kept[n] is not None else item.common
        for n, k in enumerate(code.tolist())
    ]
    if item.kind == "boolean":
        numbers = not item.dtype.lower().startswith(("bool", "object", "unknown"))
    else:
        numbers = item.dtype not in CATEGORICAL and not any(
            isinstance(one, (str, bool)) for one in (*item.levels, *out)
        )
    if numbers:
        return np.array([math.nan if label is None else float(label) for label in out])
    return out


def decoded(item: Column, x: Tensor, codes: Tensor, old: Raw | None, rounded: bool) -> Written:
    """One column to write, of encoded rows; `old` has the entries that the code cannot say."""
    code = None if item.code is None else codes[:, item.code].cpu().numpy()
    if item.kind != "number" and code is not None:
        return _labels(item, code, old)
    out = np.full(len(x), np.nan) if item.x is None else x[:, item.x].detach().cpu().numpy().astype(np.float64)
    if rounded and item.whole:
        out = out.round()
    if code is not None:
        for k, atom in enumerate(item.atoms):
            out = np.where(code == k, atom, out)
    if item.x is None:
        kept = None if old is None or old.family in ("category", "mixed") else old.numbers()
        other = np.isnan(out) if code is None else code == 1
        if kept is not None:
            out = np.where(other, kept, out)
        elif item.constant is not None:
            out = np.where(other, float(item.constant), out)
        elif old is not None and isinstance(old.values, list):
            return old.values
    return out


def listed(names: Sequence[object]) -> str:
    """Some names for an error."""
    return ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
