"""Tables in blocks: every kind of source gives the same rows in each pass, and blocks that do not fit are named."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch

from girih import Blocks
from girih._arrays import as_floats
from girih.errors import DataSourceError, ParameterError, ShapeError, StreamError
from girih.streams import is_stream

X = np.arange(46.0).reshape(23, 2)
FRAME = pd.DataFrame(X, columns=["a", "b"])


@pytest.fixture
def folder(tmp_path):
    """A folder of two Parquet files with three row groups each."""
    for part, rows in enumerate(np.array_split(np.arange(23), 2)):
        pq.write_table(pa.Table.from_pandas(FRAME.iloc[rows]), tmp_path / f"{part}.parquet", row_group_size=5)
    return tmp_path


def sources(folder):
    np.save(folder / "rows.npy", X)
    parts = [X[:10], X[10:10], X[10:]]
    batches = [pa.RecordBatch.from_pandas(FRAME[:7]), pa.RecordBatch.from_pandas(FRAME[7:])]
    return {
        "parquet": Blocks(str(folder / "0.parquet"), rows=3),
        "npy": Blocks(folder / "rows.npy", rows=4),
        "dataset": Blocks(pa.dataset.dataset([folder / "0.parquet", folder / "1.parquet"]), rows=2),
        "array": Blocks(X, rows=5),
        "tensor": Blocks(torch.from_numpy(X), rows=5),
        "pandas": Blocks(FRAME, rows=5),
        "polars": Blocks(pl.from_pandas(FRAME), rows=5),
        "arrow": Blocks(pa.Table.from_pandas(FRAME), rows=5),
        "list": Blocks(parts),
        "batches": Blocks(batches),
        "own class": Blocks(type("Own", (), {"__iter__": lambda self: iter(parts)})()),
        "iterator": Blocks(iter(parts)),
    }


def rows_of(blocks, rank=0, ranks=1):
    return {number: as_floats(block, "X").tolist() for number, block in blocks.read(rank, ranks)}


def test_every_source_gives_the_rows_in_every_pass_and_to_any_number_of_processes(folder):
    for name, blocks in sources(folder).items():
        whole = rows_of(blocks) if not blocks.once else None
        if whole is None:
            assert [row for rows in rows_of(blocks).values() for row in rows] == X.tolist(), name
            continue
        expected = X[:12] if name == "parquet" else X
        assert [row for number in sorted(whole) for row in whole[number]] == expected.tolist(), name
        assert rows_of(blocks) == whole, name
        assert as_floats(blocks.first(), "X").tolist() == whole[min(whole)]
    for name, blocks in sources(folder).items():
        if not blocks.once:
            blocks.first()  # a process looks at the first block whoever reads it
            whole, parts = rows_of(sources(folder)[name]), [rows_of(blocks, rank, 3) for rank in (1,)]
            parts += [rows_of(sources(folder)[name], rank, 3) for rank in (0, 2)]
            assert {k: v for part in parts for k, v in part.items()} == whole, name
            assert sum(map(len, parts)) == len(whole)


def test_an_iterator_may_be_looked_at_and_is_then_passed_once():
    blocks = Blocks(iter([X[:0], X[:3], X[3:]]))
    assert blocks.once and len(blocks.first()) == 3 and len(blocks.first()) == 3
    assert list(rows_of(blocks)) == [1, 2]
    with pytest.raises(StreamError, match="passed before"):
        rows_of(blocks)
    with pytest.raises(StreamError, match="several processes"):
        rows_of(Blocks(iter([X])), 0, 2)
    with pytest.raises(StreamError, match="no rows"):
        Blocks(iter([])).first()


class Changing:
    """A source that gives other blocks each time."""

    def __init__(self, *passes):
        self.passes = list(passes)

    def __iter__(self):
        return iter(self.passes.pop(0))


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ([X[:5]], "gave 1 blocks in this pass and 2 in the first"),
        ([X[:5], X[5:], X], "block 2 of X has 23 rows in this pass and was not there in the first"),
        ([X[:5], X[6:]], "block 1 of X has 17 rows in this pass and 18 in the first"),
        ([X[:5], X[5:, :1]], r"block 1 of X has the columns 1, but the first has 2"),
        ([X[:5], FRAME[5:]], r"block 1 of X has the columns \('a', 'b'\), but the first has 2"),
        ([X[:5], X[5]], "block 1 of X is no table of two axes, but a ndarray"),
        ([X[:5], "text"], "block 1 of X is no table of two axes, but a str"),
    ],
)
def test_a_stream_that_changes_is_refused_by_block(second, words):
    blocks = Blocks(Changing([X[:5], X[5:]], second))
    rows_of(blocks)
    with pytest.raises(StreamError, match=words):
        rows_of(blocks)


def test_a_block_that_cannot_be_read_is_named(folder):
    def breaks():
        yield X
        raise OSError("the disk is gone")

    with pytest.raises(StreamError, match=r"the block after block 0 of X cannot be read \(OSError: the disk is gone\)"):
        rows_of(Blocks(breaks()))
    whole = (folder / "1.parquet").read_bytes()
    blocks = Blocks(folder)
    (folder / "1.parquet").write_bytes(whole[:40] + b"\0" * 60 + whole[100:])
    with pytest.raises(StreamError, match=r"block after block .* of X cannot be read"):
        rows_of(blocks)


def test_a_filter_that_blocks_would_pass_over_is_refused(folder):
    few = pa.dataset.dataset(folder, format="parquet").filter(pa.dataset.field("a") > 9.0)
    with pytest.raises(StreamError, match=r"the first block of X cannot be read .*filtered"):
        rows_of(Blocks(few))


def test_what_is_no_stream_is_refused(tmp_path):
    with pytest.raises(DataSourceError, match="there is no file or folder"):
        Blocks(tmp_path / "nothing")
    (tmp_path / "rows.txt").write_text("1 2")
    with pytest.raises(DataSourceError, match="no Parquet file, no npy file"):
        Blocks(tmp_path / "rows.txt")
    (tmp_path / "bad.parquet").write_text("1 2")
    with pytest.raises(DataSourceError, match="holds no Parquet that can be read"):
        Blocks(tmp_path / "bad.parquet")
    with pytest.raises(ShapeError, match="a stream of rows must be"):
        Blocks(3)
    with pytest.raises(ShapeError, match="a stream of rows must be"):
        Blocks([[1.0, 2.0]])
    with pytest.raises(ParameterError, match="rows"):
        Blocks(X, rows=0)


def test_tables_are_no_streams():
    for table in (X, X.tolist(), FRAME, pl.from_pandas(FRAME), torch.from_numpy(X), pa.Table.from_pandas(FRAME)):
        assert not is_stream(table)
    for other in (None, 3, {"a": [1.0]}, {1.0}, range(3), b"x", [], [1.0], [X[0], X[1]]):
        assert not is_stream(other)
    for stream in ("folder", iter([X]), [X], (FRAME,), Blocks(X), (X for _ in range(2))):
        assert is_stream(stream)
