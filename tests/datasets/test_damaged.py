"""Damaged and malicious files: every format gives rows or a typed error, in bounded memory, and nothing crashes."""

import gzip
import os
import pickle
import random
import resource
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from effort import cases
from girih.datasets import load
from girih.datasets.arrayfile import read_mat
from girih.errors import DataSourceError, EmptyDataError, GirihError, ParameterError

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(12, 3))
PIXELS = RNG.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
DIGITS = RNG.integers(0, 256, (2, 28, 28), dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype("u1").tobytes()


def write_idx(path: Path, pack: Callable[[bytes], bytes] = bytes) -> None:
    path.write_bytes(pack(idx(DIGITS)))
    path.with_name(path.name.replace("images-idx3", "labels-idx1")).write_bytes(pack(idx(np.array([1, 2]))))


def write_mat(path: Path, packed: bool) -> None:
    savemat(path, {"X": PIXELS.transpose(1, 2, 3, 0), "y": np.array([[3], [10]])}, do_compression=packed)


def write_cifar(path: Path) -> None:
    path.write_bytes(pickle.dumps({b"data": PIXELS.reshape(2, -1), b"labels": [3, 0]}, protocol=2))


WRITERS: dict[str, Callable[[Path], None]] = {
    "t.csv": lambda p: pd.DataFrame(TABLE, columns=["a", 'b "x"\n', "c,d"]).to_csv(p, index=False),
    "t.npy": lambda p: np.save(p, TABLE),
    "t.npz": lambda p: np.savez_compressed(p, TABLE.round(1)),
    "t.parquet": lambda p: pd.DataFrame(TABLE, columns=["a", "b", "c"]).to_parquet(p),
    "data_batch_1": write_cifar,
    "data_batch_1.bin": lambda p: p.write_bytes(bytes([3]) + PIXELS[0].tobytes()) and None,
    "train_32x32.mat": lambda p: write_mat(p, False),
    "test_32x32.mat": lambda p: write_mat(p, True),
    "train-images-idx3-ubyte": write_idx,
    "train-images-idx3-ubyte.gz": lambda p: write_idx(p, gzip.compress),
}


def damage(content: bytes, seed: int) -> bytes:
    """Changed bytes, most of them near the ends, where headers are; cuts, doubled and foreign parts."""
    r, out = random.Random(seed), bytearray(content)
    for _ in range(r.choice([1, 1, 2, 5, 20])):
        near = r.randrange(min(len(out), 300))
        at = r.choice([r.randrange(len(out)), near, len(out) - 1 - near])
        out[at] = r.choice([r.randrange(256), 0, 127, 128, 255, out[at] ^ (1 << r.randrange(8))])
    low, high = sorted((r.randrange(len(out)), r.randrange(len(out))))
    how = r.randrange(12)
    if how == 0:
        return bytes(out[:low])
    if how == 1:
        return bytes(out[:low] + out[high:])
    if how == 2:
        return bytes(out[:high] + out[low:high] + out[high:])
    if how == 3:
        return bytes(out) + r.randbytes(r.randrange(40))
    return bytes(out)


def check_outcome(path: Path) -> bool:
    """Load a file that may be anything: rows, or an error of girih in one line; whether it was rows."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", UserWarning)  # names that are ambiguous or stand twice
            dataset = load(path)
    except GirihError as error:
        assert len(str(error)) < 700
        return False
    assert dataset.X.ndim == 2 and dataset.X.dtype == np.float64 and not np.isinf(dataset.X).any()
    assert len(dataset.feature_names) == dataset.X.shape[1]
    return True


def memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.fuzz
@pytest.mark.parametrize("name", WRITERS)
def test_damaged_files_give_rows_or_a_typed_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    content = path.read_bytes()
    assert check_outcome(path)
    before, read = memory(), 0
    for seed in range(cases(400, 20_000)):
        path.write_bytes(damage(content, seed))
        read += check_outcome(path)
    assert memory() - before < 200e6
    assert read < cases(400, 20_000)  # some damage was seen


@pytest.mark.fuzz
@pytest.mark.parametrize("name", WRITERS)
def test_any_bytes_at_all_give_rows_or_a_typed_error(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    path = tmp_path_factory.mktemp("any") / name
    WRITERS[name](path)
    content = path.read_bytes()

    @settings(max_examples=cases(40, 1000), deadline=None, derandomize=True, database=None)
    @given(st.integers(0, len(content)), st.integers(0, len(content)), st.binary(max_size=64))
    def check(low: int, high: int, middle: bytes) -> None:
        path.write_bytes(content[:low] + middle + content[high:])
        check_outcome(path)

    check()


NAMES = st.text("ab1é \",;\t\n#'", max_size=8)
NAMES = st.builds("n{}m".format, NAMES)


@pytest.mark.fuzz
@settings(max_examples=cases(60, 2000), deadline=None, derandomize=True, database=None)
@given(st.data())
def test_csv_reads_what_was_written(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    names = data.draw(st.lists(NAMES, min_size=2, max_size=4, unique=True))
    entries = st.floats(-1e50, 1e50, allow_subnormal=False) | st.integers(-(2**70), 2**70) | st.none()
    rows = data.draw(st.lists(st.tuples(*(entries for _ in names)), min_size=1, max_size=6))
    if all(entry is None for row in rows for entry in row):
        return
    frame = pd.DataFrame(rows, columns=names, dtype=object)
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    frame.to_csv(path, index=False, sep=data.draw(st.sampled_from(",;\t")), lineterminator="\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = load(path)
    assert dataset.feature_names == names
    expected = np.array([[np.nan if entry is None else float(entry) for entry in row] for row in rows])
    np.testing.assert_allclose(dataset.X, expected, rtol=1e-15)


def npy(shape: str, descr: str = "'<f8'", body: bytes = b"") -> bytes:
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return raw_npy(head + b" " * (63 - (10 + len(head)) % 64) + b"\n") + body


def raw_npy(head: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head


def refused(kind: type[GirihError], path: Path, **options: Any) -> str:
    before = memory()
    with pytest.raises(kind) as caught:
        load(path, **options)
    assert memory() - before < 100e6
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (npy("(1, 1000000000000)"), DataSourceError, "claims 1,000,000,000,000 columns"),
        (npy("(0, 1000000000000)"), EmptyDataError, "has no rows"),
        (npy("(1000000000000, 1)"), DataSourceError, "claims 8,000,000,000,000 bytes"),
        (npy("(-1, 3)", body=bytes(48)), DataSourceError, "claims the shape"),
        (npy("(2.0, 3)", body=bytes(48)), DataSourceError, "damaged"),
        (npy("(2,)", "('<f8', (100000000,))"), DataSourceError, "not real numbers"),
        (npy("(2,)", body=bytes(24)), DataSourceError, "24 are there"),
        (npy(f"({10**4000}, {10**4000})"), DataSourceError, "damaged"),
        (raw_npy(b"{'descr': '<f8', 'shape': (3L, "), DataSourceError, "damaged"),
        (raw_npy(b"(" * 5000), DataSourceError, "damaged"),
        (raw_npy(b"-" * 9000 + b"1"), DataSourceError, "damaged"),
        (b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1), DataSourceError, "damaged"),
    ],
)
def test_npy_headers_that_lie(tmp_path: Path, content: bytes, kind: type[GirihError], words: str) -> None:
    (tmp_path / "t.npy").write_bytes(content)
    assert words in refused(kind, tmp_path / "t.npy")


def test_archives_do_not_unpack_to_more_than_was_allowed(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a.npy", "w") as file:
        file.write(npy("(400, 10000)"))
        file.write(bytes(8 * 400 * 10000))
    assert path.stat().st_size < 50_000
    message = refused(DataSourceError, path, memory=0.01)
    assert "4,000,000 entries" in message and "memory=1" in message
    assert load(path).shape == (400, 10000)
    assert "memory must be a positive number" in refused(ParameterError, path, memory=-1)


def test_gzip_is_not_unpacked_beyond_what_its_header_claims(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    write_idx(path, gzip.compress)
    path.write_bytes(gzip.compress(idx(DIGITS) + bytes(100_000_000)))
    assert "more bytes for the shape (2, 28, 28)" in refused(DataSourceError, path)
    path.write_bytes(gzip.compress(bytes((0, 0, 8, 3)) + struct.pack(">3I", 1000, 1000, 1000) + bytes(1000)))
    assert "claims to unpack" in refused(DataSourceError, path)
    path.write_bytes(gzip.compress(bytes((0, 0, 8, 3)) + struct.pack(">3I", 0, 2**32 - 1, 2**32 - 1)))
    assert "has no rows" in refused(EmptyDataError, path)


def test_mat_files_do_not_unpack_to_more_than_was_allowed(tmp_path: Path) -> None:
    path = tmp_path / "train_32x32.mat"
    images = np.zeros((32, 32, 3, 2000), np.uint8)
    savemat(path, {"X": images, "y": np.ones((2000, 1), np.uint8)}, do_compression=True)
    message = refused(DataSourceError, path, memory=0.01)
    assert "unpacks to 6,144,056 bytes" in message and "memory=" in message
    assert len(load(path)) == 2000


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", ["u1", "i2", "<i4", "f4", "f8", "i8", "u8"])
def test_mat_parser_agrees_with_what_scipy_writes(tmp_path: Path, kind: str, packed: bool) -> None:
    values = {"a": RNG.integers(0, 100, (3, 4, 2)).astype(kind), "b": np.arange(5, dtype=kind)[None], "c": "text"}
    savemat(tmp_path / "t.mat", values, do_compression=packed)
    found = read_mat(tmp_path / "t.mat", ("a", "b"), 1.0)
    for name in ("a", "b"):
        assert found[name].dtype == np.dtype(kind) and np.array_equal(found[name], values[name])


def test_a_pickle_with_nested_tuples_as_a_key_does_not_crash(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s.")
    assert "keys that are no texts or numbers" in refused(DataSourceError, path)
    path.write_bytes(b"\x80\x02}(K\x01" + b"]" * 200_000 + b"a" * 199_999 + b"u.")
    assert "no 'data'" in refused(DataSourceError, path)


def test_a_pickle_cannot_make_more_than_it_has(tmp_path: Path) -> None:
    text = b"\x80\x02X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"q\x00c_codecs\nencode\nq\x010"
    (tmp_path / "data_batch_1").write_bytes(text + b"(h\x01h\x00X\x06\x00\x00\x00latin1\x86R" * 2000 + b".")
    assert "makes more bytes than it has" in refused(DataSourceError, tmp_path / "data_batch_1")


@pytest.mark.parametrize("protocol", range(5))
def test_pickles_of_every_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    held = {b"data": PIXELS.reshape(2, -1), b"labels": [3, 0], b"filenames": ["a", "b"], b"more": (1, 2.5, None, True)}
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(held, protocol=protocol))
    planes = PIXELS.reshape(2, 3, 1024)  # as CIFAR-10 stores them
    assert np.array_equal(load(tmp_path / "data_batch_1").X * 255.0, planes.transpose(0, 2, 1).reshape(2, -1))


def test_parquet_claims_are_checked_and_texts_stay_packed(tmp_path: Path) -> None:
    pd.DataFrame({"a": np.zeros(3_000_000, np.int8)}).to_parquet(tmp_path / "t.parquet")
    assert "claims to unpack" in refused(DataSourceError, tmp_path / "t.parquet", memory=0.01)
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(3000, np.int32)), ["x" * 1_000_000])
    pq.write_table(pa.table({"t": texts, "a": np.arange(3000.0)}), tmp_path / "u.parquet", store_schema=False)
    assert "'t' is not numeric" in refused(DataSourceError, tmp_path / "u.parquet")
    assert load(tmp_path / "u.parquet", drop=["t"]).shape == (3000, 1)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    for name in ("t.csv", "t.npy", "t.parquet", "train_32x32.mat", "data_batch_1"):
        os.mkfifo(tmp_path / name)
        assert "no regular file" in (text := refused(DataSourceError, tmp_path / name)) or "there is no file" in text
