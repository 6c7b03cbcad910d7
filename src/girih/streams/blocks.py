"""Rows without end: a table in blocks that fit into memory, read again in every pass or, if it must be, once.

The blocks of a source have numbers that do not depend on who reads them, so several processes can share them (block n
goes to process n modulo their number), and a row is known by its block and its place there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np

from girih._arrays import column_labels
from girih._extras import require
from girih._options import whole
from girih.errors import DataSourceError, GirihError, ShapeError, StreamError
from girih.streams.containers import count, is_table, named, sliced

# A memory-mapped array above this is read in blocks; smaller ones are arrays like any other.
_MAPPED = 1 << 28
_ROWS = 65_536


class _Source(Protocol):
    def read(self, rank: int, ranks: int) -> Iterator[tuple[int, object]]:
        """The numbered blocks of one of so many processes."""


class Blocks:
    """You pass a table in blocks with it, where rows are too many for the memory.

    `fit` of `TableModel`, `DGNEstimator` and `girih.em.fit_em` take one, and whatever it takes but for arrays and
    frames, which they take as they are: with `Blocks` around them those are read in blocks too.

    Args:
        source: the path of a Parquet file or of a folder of them, a `pyarrow.dataset.Dataset`; the path of a npy file
            or a large array that is sliced (memory-mapped, HDF5); anything that can be iterated again and again and
            gives frames, record batches or arrays with the same columns; or an iterator of these, which can be passed
            once only.
        rows: of a block, where the source does not come in blocks of its own.

    Raises:
        DataSourceError: there is no such file, or it is of another kind.
        ShapeError: the source is neither a table nor blocks of one.
        StreamError, while it is read: a block cannot be read, or the blocks are not those of the first pass.

    Example:
        >>> import numpy as np
        >>> from girih import Blocks
        >>> blocks = Blocks(np.arange(10.0).reshape(5, 2), rows=2)
        >>> [(number, len(block)) for number, block in blocks.read()]
        [(0, 2), (1, 2), (2, 1)]
    """

    def __init__(self, source: object, rows: int = _ROWS) -> None:
        self._source = _source_of(source, whole(rows, "rows"))
        self._rows: dict[int, int] | None = None  # of each block, once all were read
        self._columns: tuple[object, ...] | int | None = None

    @staticmethod
    def of(source: object) -> Blocks:
        """The blocks of a source; of blocks, themselves."""
        return source if isinstance(source, Blocks) else Blocks(source)

    @property
    def once(self) -> bool:
        """Whether they can be passed once only."""
        return isinstance(self._source, _Once)

    def first(self) -> object:
        """The first block that has rows, which a pass gives again.

        Raises:
            StreamError: there is none.
        """
        if isinstance(self._source, _Once):
            return self._source.peek()
        for _, block in self.read():
            return block
        raise StreamError("X has no rows; pass a stream with at least one block of them")

    def read(self, rank: int = 0, ranks: int = 1) -> Iterator[tuple[int, object]]:
        """One pass: the numbers and tables of the blocks that are this process's, one of `ranks`; empty ones left out.

        Raises:
            StreamError: a block cannot be read, or the blocks are not those of the first pass.
        """
        at, seen = -1, dict[int, int]()
        iterator = self._source.read(rank, ranks)
        while True:
            try:
                step = next(iterator, None)
            except GirihError:
                raise
            except Exception as error:  # a source may fail in ways of its own
                where = f"the block after block {at}" if at >= 0 else "the first block"
                what = " ".join(f"{type(error).__name__}: {error}".split())
                raise StreamError(
                    f"{where} of X cannot be read ({what}); repair the source, or leave it out"
                ) from error
            if step is None:
                break
            at, block = step[0], named(step[1])
            seen[at] = self._checked(at, block)
            if seen[at]:
                yield at, block
        if self._rows is not None and len(seen) != len(self._rows):
            raise StreamError(
                f"X gave {len(seen)} blocks in this pass and {len(self._rows)} in the first; pass a source that gives "
                "the same blocks each time, or an iterator, which is passed once"
            )
        self._rows = seen

    def _checked(self, number: int, block: object) -> int:
        """The rows of a block that fits to those of before."""
        if not is_table(block):
            raise StreamError(
                f"block {number} of X is no table of two axes, but a {type(block).__name__}; give frames or arrays "
                "(B, D)"
            )
        labels = column_labels(block)
        columns = tuple(labels) if labels is not None else int(block.shape[1])  # type: ignore[attr-defined]
        rows = count(block)
        if self._columns is None:
            self._columns = columns
        if columns != self._columns:
            raise StreamError(
                f"block {number} of X has the columns {columns}, but the first has {self._columns}; give all blocks "
                "the same columns in the same order"
            )
        if self._rows is not None and self._rows.get(number) != rows:
            was = f"{self._rows[number]} in the first" if number in self._rows else "was not there in the first"
            raise StreamError(
                f"block {number} of X has {rows} rows in this pass and {was}; pass a source that gives the same "
                "blocks each time, or an iterator, which is passed once"
            )
        return rows


Stream: TypeAlias = Blocks | str | os.PathLike[str] | Iterable[object]  # what `girih.Blocks` takes, but for a table


def is_stream(X: object) -> bool:
    """Whether rows come in blocks, and not as one table.

    Example:
        >>> import numpy as np
        >>> from girih.streams import is_stream
        >>> is_stream(np.zeros((3, 2))), is_stream([[1.0, 2.0]]), is_stream([np.zeros((3, 2))]), is_stream("folder")
        (False, False, True, True)
    """
    if isinstance(X, (Blocks, str, os.PathLike)) or _is_dataset(X):
        return True
    if isinstance(X, np.memmap):
        return X.ndim == 2 and X.nbytes > _MAPPED
    if isinstance(X, (list, tuple)):
        return bool(X) and not isinstance(X[0], (list, tuple)) and is_table(named(X[0]))
    if isinstance(X, (Mapping, set, frozenset, range, bytes)) or _is_whole(X):
        return False
    return isinstance(X, Iterable)


def _is_whole(X: object) -> bool:
    """A table in one piece, or something that is no table at all."""
    return column_labels(X) is not None or hasattr(X, "shape") or hasattr(X, "__array__")


def _is_dataset(X: object) -> bool:
    return hasattr(X, "get_fragments") and hasattr(X, "to_batches")


def _source_of(source: object, rows: int) -> _Source:
    if isinstance(source, (str, os.PathLike)):
        return _of_path(Path(source).expanduser(), rows)
    if _is_dataset(source):
        return _Dataset(source, rows)
    if is_table(source) and not isinstance(source, (list, tuple)):
        return _Sliced(source, rows)
    if isinstance(source, Iterator):
        return _Once(source)
    if is_stream(source):
        assert isinstance(source, Iterable)
        return _Again(source)
    raise ShapeError(
        "a stream of rows must be the path of a Parquet or npy file or of a folder of Parquet files, a dataset of "
        f"pyarrow, a table, or something that gives tables block by block; got {type(source).__name__}"
    )


def _of_path(path: Path, rows: int) -> _Source:
    if not path.exists():
        raise DataSourceError(f"there is no file or folder {path}")
    if path.suffix.lower() == ".npy":
        return _Sliced(np.load(path, mmap_mode="r", allow_pickle=False), rows)
    if path.is_dir() or path.suffix.lower() in (".parquet", ".pq"):
        dataset = require("pyarrow.dataset", "tables")
        try:
            return _Dataset(dataset.dataset(path, format="parquet"), rows)
        except (OSError, ValueError) as error:
            what, kind = " ".join(str(error).split()), "is a folder and" if path.is_dir() else "is named so but"
            raise DataSourceError(f"{path} {kind} holds no Parquet that can be read ({what})") from None
    raise DataSourceError(f"{path} is no Parquet file, no npy file and no folder of Parquet files; girih streams those")


class _Sliced:
    """A table of which slices are read."""

    def __init__(self, table: object, rows: int) -> None:
        self.table, self.rows = table, rows

    def read(self, rank: int, ranks: int) -> Iterator[tuple[int, object]]:
        for number in range(rank, -(-count(self.table) // self.rows), ranks):
            yield number, sliced(self.table, number * self.rows, self.rows)


class _Dataset:
    """A dataset of pyarrow: a process reads whole row groups, some rows of them at a time."""

    def __init__(self, dataset: object, rows: int) -> None:
        self.dataset, self.rows = dataset, rows

    def read(self, rank: int, ranks: int) -> Iterator[tuple[int, object]]:
        for group, part in enumerate(self._groups()):
            if group % ranks == rank:
                options = {"batch_size": self.rows, "batch_readahead": 0, "fragment_readahead": 0}
                batches = part.to_batches(schema=self.dataset.schema, use_threads=False, **options)  # type: ignore[attr-defined]
                for place, batch in enumerate(batches):
                    yield (group << 20) + place, batch

    def _groups(self) -> Iterator[object]:
        for fragment in self.dataset.get_fragments():  # type: ignore[attr-defined]
            yield from fragment.split_by_row_group() if hasattr(fragment, "split_by_row_group") else [fragment]


class _Again:
    """Something that can be iterated again and again; of several processes each iterates all of it."""

    def __init__(self, blocks: Iterable[object]) -> None:
        self.blocks = blocks

    def read(self, rank: int, ranks: int) -> Iterator[tuple[int, object]]:
        for number, block in enumerate(self.blocks):
            if number % ranks == rank:
                yield number, block


class _Once:
    """An iterator."""

    def __init__(self, blocks: Iterator[object]) -> None:
        self.blocks, self.held, self.done = blocks, list[object](), False

    def peek(self) -> object:
        while not self.held or not count(self.held[-1]):
            try:
                self.held.append(named(next(self.blocks)))
            except StopIteration:
                raise StreamError("X has no rows; pass a stream with at least one block of them") from None
            if not is_table(self.held[-1]):
                break
        return self.held[-1]

    def read(self, rank: int, ranks: int) -> Iterator[tuple[int, object]]:
        if self.done:
            raise StreamError("X is an iterator, and was passed before; make a new one for another pass")
        self.done = True
        if ranks > 1:
            raise StreamError("an iterator cannot be shared by several processes; pass files, or a list of blocks")
        yield from enumerate(self._all())

    def _all(self) -> Iterator[object]:
        while self.held:
            yield self.held.pop(0)
        yield from self.blocks
