"""Files: each format is read as it was written, and each way of being wrong has one clear line."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from girih.datasets import load
from girih.errors import DataSourceError, EmptyDataError, GirihError, NonFiniteError, ParameterError

TABLE = np.array([[1.5, -2.0, 3.25], [np.nan, 0.0, 1e-9], [7.0, 8.0, np.nan]])


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def refused(kind: type[GirihError], path: Any, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        load(path, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize("suffix", ["csv", "npy", "npz", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    if suffix == "csv":
        pd.DataFrame(TABLE, columns=["x0", "x1", "x2"]).to_csv(path, index=False)
    elif suffix == "npy":
        np.save(path, TABLE)
    elif suffix == "npz":
        np.savez(path, rows=TABLE)
    else:
        pd.DataFrame(TABLE, columns=["x0", "x1", "x2"]).to_parquet(path)
    for given in (path, str(path)):
        dataset = load(given)
        assert np.array_equal(dataset.X, TABLE, equal_nan=True) and dataset.X.dtype == np.float64
        assert dataset.feature_names == ["x0", "x1", "x2"] and dataset.name == f"rows.{suffix}"
        assert dataset.image_shape is None
    assert load(path, n=2, seed=1).shape == (2, 3)
    assert load(path, columns=["x2", "x0"]).X[0].tolist() == [3.25, 1.5]
    assert load(path, drop=["x1"]).feature_names == ["x0", "x2"]


@pytest.mark.parametrize(
    ("text", "names", "rows"),
    [
        ("a,b\n1,2\n3,4\n", ["a", "b"], 2),
        ("1,2\n3,4\n", ["x0", "x1"], 2),
        ("1,\nnan,4\n", ["x0", "x1"], 2),
        ("-1e3,+.5\n3,4\n", ["x0", "x1"], 2),
        ("\ufeffa,b\n1,2\n", ["a", "b"], 1),
        ("a;b\n1;2\n", ["a", "b"], 1),
        ("a\tb\n1\t2\n", ["a", "b"], 1),
        ("a, b\r\n1, 2\r\n", ["a", "b"], 1),
        ('"a, in cm","b"\n1,2\n', ["a, in cm", "b"], 1),
        ("\n\na,b\n1,2\n\n", ["a", "b"], 1),
        ("# a,b\n1,2\n", ["a", "b"], 1),
        ("a,b,\n1,2,\n3,4,\n", ["a", "b"], 2),
        (",a,b\n0,5,6\n1,7,8\n", ["a", "b"], 2),
        ("0,1\n0.5,2.5\n", ["0", "1"], 1),
        ("0,1\n1,0\n", ["x0", "x1"], 2),
        ("only\n1\n2\n", ["only"], 2),
        ("5\n1\n2\n", ["x0"], 3),
    ],
)
def test_the_header_is_found_and_no_row_is_lost(tmp_path: Path, text: str, names: list[str], rows: int) -> None:
    dataset = load(write(tmp_path / "t.csv", text))
    assert dataset.feature_names == names and len(dataset) == rows


def test_the_header_can_be_forced(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "2001,2002\n3,4\n")
    assert load(path, header=False).X.tolist() == [[2001, 2002], [3, 4]]
    assert load(path, header=True).feature_names == ["2001", "2002"]
    assert len(load(write(tmp_path / "u.csv", "0,1\n0.5,2.5\n"), header=False)) == 2


@pytest.mark.parametrize(
    ("text", "names", "rows", "words"),
    [
        ("2001,2002,2003\n1.5,2,3\n4,5,6\n", ["2001", "2002", "2003"], 2, "looks like years and was taken as names"),
        ("1990,2000,2010\n1,2,3\n4,5,6\n", ["1990", "2000", "2010"], 2, "header=False if it is a row"),
        ("2001,2002\n3,4\n5,\n", ["2001", "2002"], 2, "looks like years"),
        ("10,20,30\n1,5,2\n4,3,6\n", ["x0", "x1", "x2"], 3, "may hold names, and was taken as a row"),
        ("a,1.5\n1,2\n3,4\n", ["a", "1.5"], 2, "holds numbers and was taken as names"),
        (
            "a,a,b,a\n1,2,3,4\n",
            ["a", "a.1", "b", "a.2"],
            1,
            "several columns named 'a'; the later ones are called 'a.1'",
        ),
        ("a,a,a.1\n1,2,3\n", ["a", "a.2", "a.1"], 1, "are called 'a.2'"),
    ],
)
def test_what_is_ambiguous_is_said(tmp_path: Path, text: str, names: list[str], rows: int, words: str) -> None:
    with pytest.warns(UserWarning, match=re.escape(words)) as caught:
        dataset = load(write(tmp_path / "t.csv", text))
    assert dataset.feature_names == names and len(dataset) == rows and len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("text", "names", "rows"),
    [
        ("1900,1980\n1910,1990\n1915,2000\n", ["x0", "x1"], 3),  # years of birth and death
        ("1,2,3\n4,5,6\n7,8,9\n", ["x0", "x1", "x2"], 3),
        ("2001,5\n1999,6\n2002,7\n", ["x0", "x1"], 3),
        ('"a\nb","c"\n1,2\n3,4\n', ["a\nb", "c"], 2),
        ('"a, in\ncm";b\n1;2\n', ["a, in\ncm", "b"], 1),
        ("# by x, y\n# in cm\na,b\n1,2\n", ["a", "b"], 1),
        ("# hello\n1,2\n3,4\n", ["x0", "x1"], 2),
        ("# a,b\n1,2\n3,4\n", ["a", "b"], 2),
        ("a,b\r1,2\r3,4\r", ["a", "b"], 2),
        ('"a",b\n\n1,2\n   \n3,4\n', ["a", "b"], 2),
        ("a\tb\n1\t2\n\t\n3\t4\n", ["a", "b"], 3),
        ('only\n""\n1\n', ["only"], 2),
        ("a,,b\n1,2,3\n", ["a", "Unnamed: 1", "b"], 1),
        (",\n1,2\n", ["x0", "x1"], 2),
        ("a\n12345678901234567890123\n", ["a"], 1),
        (";".join(f"column{i:06}" for i in range(20_000)) + "\n" + ";".join("1" * 20_000), None, 1),
    ],
)
def test_no_row_and_no_name_is_lost(tmp_path: Path, text: str, names: list[str] | None, rows: int) -> None:
    (tmp_path / "t.csv").write_bytes(text.encode())
    dataset = load(tmp_path / "t.csv")
    assert len(dataset) == rows and (dataset.feature_names == names or names is None)


def test_empty_cells_are_missing(tmp_path: Path) -> None:
    X = load(write(tmp_path / "t.csv", "a,b,c\n1,,NA\nNaN,2,null\n,,3\n")).X
    assert np.isnan(X).tolist() == [[False, True, True], [True, False, True], [True, True, False]]


def test_a_frame_with_missing_types_is_read(tmp_path: Path) -> None:
    frame = pd.DataFrame({"i": pd.array([1, None], dtype="Int64"), "f": [0.5, np.nan], "b": [True, False]})
    frame.to_parquet(tmp_path / "t.parquet")
    assert np.array_equal(load(tmp_path / "t.parquet").X, [[1, 0.5, 1], [np.nan, np.nan, 0]], equal_nan=True)


@pytest.mark.parametrize("shape", [(4, 3, 2), (4, 3, 2, 3)])
def test_images_are_flattened(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    np.save(tmp_path / "images.npy", images)
    dataset = load(tmp_path / "images.npy", n=3)
    assert dataset.image_shape == shape[1:] and dataset.X.shape == (3, np.prod(shape[1:]))
    assert load(tmp_path / "images.npy").X[1, 0] == np.prod(shape[1:])
    assert load(tmp_path / "images.npy", columns=["x0"]).image_shape is None


def test_one_axis_is_one_column(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.arange(5))
    assert load(tmp_path / "t.npy").shape == (5, 1)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_column_of_words_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0], "species": ["cat", "dog"], "when": ["2020-01-01", "2020-01-02"]})
    path = tmp_path / f"t.{suffix}"
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    message = refused(DataSourceError, path)
    which = "'species', 'when' are" if suffix == "parquet" else "'species' is"  # dates of csv are days
    assert f"{which} not numeric (e.g. 'cat')" in message and "drop=[...]" in message
    assert load(path, drop=["species", "when"]).feature_names == ["a"]
    assert load(path, columns=["a"]).shape == (2, 1)
    assert "'species' is not numeric" in refused(DataSourceError, path, columns=["a", "species"])


def test_one_bad_cell_is_shown(tmp_path: Path) -> None:
    message = refused(DataSourceError, write(tmp_path / "t.csv", "a,b\n1,2\n3,oops\n"))
    assert "'b' is not numeric (e.g. 'oops')" in message


def test_numbers_stored_as_text_are_refused(tmp_path: Path) -> None:
    pd.DataFrame({"a": ["1.5", None]}).to_parquet(tmp_path / "t.parquet")
    assert "'a' is not numeric (e.g. '1.5')" in refused(DataSourceError, tmp_path / "t.parquet")


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "height,width\n1,2\n")
    assert "no column 'heigth'; did you mean 'height'?" in refused(DataSourceError, path, columns=["heigth"])
    assert "it has height, width" in refused(DataSourceError, path, drop=["zzz"])
    assert "exclude each other" in refused(ParameterError, path, columns=["width"], drop=["height"])
    assert "lists of names" in refused(ParameterError, path, columns="width")
    assert "no columns left" in refused(EmptyDataError, path, drop=["width", "height"])


def test_missing_files_folders_and_suffixes(tmp_path: Path) -> None:
    assert "there is no file" in refused(DataSourceError, tmp_path / "none.csv")
    assert "there is no file none.csv" in refused(DataSourceError, "none.csv")
    assert "is a folder" in refused(DataSourceError, tmp_path)
    write(tmp_path / "t.xls", "1")
    assert "has '.xls', and girih reads .csv, .tsv, .csv.gz" in refused(DataSourceError, tmp_path / "t.xls")
    write(tmp_path / "rows", "1")
    assert "has no suffix" in refused(DataSourceError, tmp_path / "rows")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "t.csv is empty"),
        ("\n \n", "t.csv is empty"),
        ("a,b\n", "column names and no rows"),
        ("# a,b\n", "lines that begin with # and no rows"),
        ("a,b\n,\n,\n", "no observed entries"),
    ],
)
def test_csv_without_rows(tmp_path: Path, text: str, part: str) -> None:
    assert part in refused(EmptyDataError, write(tmp_path / "t.csv", text))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a,b\n1,2\n3\n", "line 3 has 1 cells, and the first line has 2"),
        ("a,b\n1,2\n3,4,5\n", "line 3 has 3 cells"),
        ("a,b\n1,2,3\n4,5,6\n", "line 2 has 3 cells"),
        ('"a",b\n1,2\n3\n', "line 3 has 1 cells"),
        ('a,b\n1,"2\n', "t.csv"),
        ("a,b\n1,2\n# note\n3,4\n", "line 3 has 1 cells"),
        ("# one\n# two\na,b\n1,2\n3\n", "line 5 has 1 cells"),
        ('"a\nb",c\n1,2\n3\n', "line 4 has 1 cells"),
        ("a,b\n1,2,\n3,4,\n", "line 2 has 3 cells"),
        ("a,b\n1,\0\n", "NUL bytes"),
    ],
)
def test_damaged_csv(tmp_path: Path, text: str, part: str) -> None:
    assert part in refused(DataSourceError, write(tmp_path / "t.csv", text))


def test_csv_of_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("größe,b\n1,2\n".encode("latin-1"))
    assert "not UTF-8 text" in refused(DataSourceError, tmp_path / "t.csv")


def test_infinite_values_are_located(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "a,b\n1,2\n3,inf\n")
    assert "first in row 1, column 'b'" in refused(NonFiniteError, path)


@pytest.mark.parametrize("suffix", ["npy", "npz", "parquet"])
def test_damaged_binary_files(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole.{suffix}"
    if suffix == "npy":
        np.save(whole, np.zeros((50, 3)))
    elif suffix == "npz":
        np.savez_compressed(whole, np.random.default_rng(0).normal(size=(50, 3)))
    else:
        pd.DataFrame(np.zeros((50, 3)), columns=["a", "b", "c"]).to_parquet(whole)
    content = whole.read_bytes()
    part = tmp_path / f"part.{suffix}"
    part.write_bytes(content[: len(content) // 2])
    assert "part" in refused(DataSourceError, part)
    part.write_bytes(b"")
    assert "is empty" in refused(EmptyDataError, part)
    part.write_bytes(b"this is no such file at all")
    assert part.name in refused(DataSourceError, part)
    if suffix == "npz":
        broken = bytearray(content)
        broken[len(content) // 2] ^= 0xFF
        part.write_bytes(broken)
        assert "damaged" in refused(DataSourceError, part)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "exploded",))

    np.save(tmp_path / "t.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    assert "never unpickles" in refused(DataSourceError, tmp_path / "t.npy")
    np.savez(tmp_path / "t.npz", np.array([Bomb()], dtype=object))
    assert "never unpickles" in refused(DataSourceError, tmp_path / "t.npz")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("array", "part"),
    [
        (np.array(["a", "b"]), "dtype <U1"),
        (np.array([1 + 2j]), "complex numbers"),
        (np.array(3.0), "a single number"),
        (np.zeros((2, 2, 2, 2, 2)), "shape (2, 2, 2, 2, 2)"),
        (np.zeros(2, dtype=[("a", float), ("b", int)]), "dtype [("),
    ],
)
def test_arrays_that_are_no_table(tmp_path: Path, array: np.ndarray, part: str) -> None:
    np.save(tmp_path / "t.npy", array)
    assert part in refused(DataSourceError, tmp_path / "t.npy")


def test_arrays_without_rows_or_columns(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.zeros((0, 3)))
    assert "no rows" in refused(EmptyDataError, tmp_path / "t.npy")
    np.save(tmp_path / "t.npy", np.zeros((3, 0)))
    assert "no columns" in refused(EmptyDataError, tmp_path / "t.npy")


def test_an_archive_of_several_arrays_lists_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", train=np.zeros(2), test=np.zeros(2))
    assert "holds 2 arrays (train, test)" in refused(DataSourceError, tmp_path / "t.npz")


def test_options_of_files(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.zeros((3, 2)))
    message = refused(ParameterError, tmp_path / "t.npy", noise=1)
    assert "takes the options columns, drop, header, memory, reading; got 'noise'" in message
    assert "header is an option of csv files" in refused(ParameterError, tmp_path / "t.npy", header=True)
