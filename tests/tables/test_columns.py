"""The schema of a table: kinds, widths, atoms, and round trips through codes for every container."""

import datetime
import decimal
import json
import math
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import sklearn.datasets
import torch

import girih
from girih.errors import (
    EmptyDataError,
    ModelFileError,
    NonFiniteError,
    NotNumericError,
    ParameterError,
    ShapeError,
)
from girih.tables.columns import Columns

NAN = float("nan")
RNG = np.random.default_rng(0)


def every_type() -> pd.DataFrame:
    n = 24
    t = np.arange(n)
    return pd.DataFrame(
        {
            "float": t * 0.37 + 0.123 * np.sin(t),
            "holes": np.where(t % 5 == 0, NAN, t * 0.31),
            "single": (t * 0.1).astype(np.float32),
            "int": t * 3 - 7,
            "uint8": (t % 7).astype(np.uint8),
            "Int64": pd.array([None if i % 6 == 0 else int(i) for i in t], dtype="Int64"),
            "Float64": pd.array([None if i % 7 == 0 else i / 8 for i in t], dtype="Float64"),
            "arrow": pd.array([None if i % 6 == 0 else int(i) for i in t], dtype="int64[pyarrow]"),
            "bool": t % 3 == 0,
            "boolean": pd.array([None if i % 4 == 0 else i % 3 == 0 for i in t], dtype="boolean"),
            "flag": t % 2,
            "text": [None if i % 9 == 0 else "abc"[i % 3] for i in t],
            "string": pd.array([None if i % 9 == 0 else "xyz"[i % 3] for i in t], dtype="string"),
            "object": pd.Series([None if i % 8 == 0 else "pq"[i % 2] for i in t], dtype=object),
            "category": pd.Categorical(["low" if i % 3 else "high" for i in t], categories=["low", "mid", "high"]),
            "ordered": pd.Categorical(
                [None if i % 5 == 0 else "ba"[i % 2] for i in t], categories=["b", "a"], ordered=True
            ),
            "numbered": pd.Categorical([[3, 1, 2][i % 3] for i in t], categories=[3, 1, 2]),
            "large": pd.array([None if i % 4 == 0 else "uv"[i % 2] for i in t], dtype=pd.ArrowDtype(pa.large_string())),
            "arrow bool": pd.array([None if i % 4 == 0 else i % 3 == 0 for i in t], dtype="bool[pyarrow]"),
            "object bool": pd.Series([None if i % 4 == 0 else i % 3 == 0 for i in t], dtype=object),
            "half": (t % 9).astype(np.float16),
            "constant": np.full(n, 4.5),
            "same": ["only"] * n,
            "nothing": np.full(n, NAN),
        }
    )


def round_trip(X, **options):
    columns = Columns.learn(X, **options)
    x, codes = columns.read(X)
    assert x.dtype == torch.float64 and codes.dtype == torch.long
    assert x.shape[1] == len(columns.width) and codes.shape[1] == len(columns.levels)
    return columns, columns.write(x, codes, like=X)


# ------------------------------------------------------------------------------------------------- round trips


def test_a_pandas_frame_comes_back_with_its_types():
    X = every_type()
    columns, back = round_trip(X)
    pd.testing.assert_frame_equal(back, X)
    assert [columns[name].kind for name in ("float", "int", "bool", "flag", "text", "numbered")] == [
        *("number", "number", "boolean", "category", "category", "category")
    ]


def test_a_pandas_frame_comes_back_without_its_like_too():
    X = every_type()
    columns = Columns.learn(X)
    pd.testing.assert_frame_equal(columns.write(*columns.read(X)), X)


def test_columns_may_come_in_another_order_and_rows_with_an_index():
    X = every_type()
    columns = Columns.learn(X)
    shuffled = X.iloc[::-1, ::-1].set_index(pd.Index(range(100, 124), name="id"))
    x, codes = columns.read(X)
    y, other = columns.read(shuffled)
    assert torch.equal(y.nan_to_num(-99.0), x.flip(0).nan_to_num(-99.0)) and torch.equal(other, codes.flip(0))
    pd.testing.assert_frame_equal(columns.write(y, other, like=shuffled), shuffled)


def test_a_column_of_whole_numbers_is_restored_when_its_holes_are_filled():
    X = pd.DataFrame({"a": range(10), "b": pd.array(range(10), dtype="Int64"), "c": np.arange(10, dtype=np.uint8)})
    columns = Columns.learn(X)
    holed = X.astype("Float64").mask(X % 4 == 0)
    x, codes = columns.read(holed)
    kept = columns.write(x, codes, like=holed)
    assert kept.dtypes.astype(str).tolist() == ["float64", "Int64", "float64"] and kept.isna().sum().sum() == 9
    filled = columns.write(x.nan_to_num(2.4), codes, like=holed)
    assert filled.dtypes.astype(str).tolist() == ["float64", "Float64", "float64"] and filled.loc[0, "a"] == 2.4
    rounded = columns.write(x.nan_to_num(2.4), codes, like=holed, rounded=True)
    assert rounded.dtypes.astype(str).tolist() == ["int64", "Int64", "uint8"] and rounded.loc[0, "a"] == 2
    beyond = columns.write(x.nan_to_num(-3.0), codes, like=holed, rounded=True)
    assert beyond["c"].dtype == np.float64 and beyond.loc[0, "c"] == -3.0  # not 253


def test_polars_and_its_types_come_back():
    pl = pytest.importorskip("polars")
    X = pl.DataFrame(
        {
            "i": [1, None, 3, 4, 5],
            "u": pl.Series([1, 2, 3, 4, 9], dtype=pl.UInt8),
            "f": [0.5, None, 1.7, 2.0, 3.25],
            "f32": pl.Series([0.1, 0.2, 0.3, 0.5, 0.7], dtype=pl.Float32),
            "s": ["a", None, "b", "a", "b"],
            "b": [True, None, False, False, True],
            "e": pl.Series(["lo", "hi", "lo", None, "hi"], dtype=pl.Enum(["lo", "mid", "hi"])),
            "c": pl.Series(["q", "p", "q", "q", "p"], dtype=pl.Categorical),
            "flag": [0, 1, 1, 0, None],
            "same": ["one"] * 5,
            "none": pl.Series([None] * 5, dtype=pl.Float64),
        }
    )
    columns, back = round_trip(X)
    assert back.equals(X) and back.schema == X.schema
    assert columns["e"].levels == ("lo", "mid", "hi") and columns["flag"].levels == (0, 1)
    assert columns.write(*columns.read(X)).equals(X)
    permuted = X.select(X.columns[::-1])
    assert columns.write(*columns.read(permuted), like=permuted).equals(permuted)
    with pytest.raises(NotNumericError, match=r"lazy frame.*collect\(\)"):
        Columns.learn(X.lazy())
    with pytest.raises(NotNumericError, match=r"column 'd' of X.*dates.*turn dates into numbers"):
        Columns.learn(X.with_columns(d=pl.Series([datetime.date(2020, 1, 1)] * 5)))


def test_an_arrow_table_comes_back():
    X = pa.table({"a": [1, None, 3], "b": ["x", None, "y"], "c": [True, False, None], "f": [0.5, 1.25, None]})
    X = X.append_column("i8", pa.array([1, 2, None], pa.int8()))
    _, back = round_trip(X)
    assert back.equals(X)
    words = pa.table({"d": pa.array(["x", None, "y"]).dictionary_encode(), "n": pa.nulls(3)})
    back = round_trip(words)[1]
    assert back["d"].to_pylist() == ["x", None, "y"] and pa.types.is_dictionary(back["d"].type)
    assert back["n"].null_count == 3


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64, bool])
def test_arrays_of_numbers_come_back(kind):
    X = RNG.integers(0, 2 if kind is bool else 9, (30, 3)).astype(kind)
    columns, back = round_trip(X)
    np.testing.assert_array_equal(back, X)
    assert back.dtype == (bool if kind is bool else np.float64)
    assert columns.names == (0, 1, 2) and columns.source == "array"


def test_arrays_of_objects_lists_and_masks_come_back():
    rows = [[1.5, "a", True, None], [None, "b", None, 2], [2.25, None, False, 3], [7.0, "a", True, 4]]
    columns, back = round_trip(np.array(rows, dtype=object))
    assert [one.kind for one in columns.items] == ["number", "category", "boolean", "number"]
    assert (
        back[0].tolist()[:3] == [1.5, "a", True]
        and math.isnan(back[0][3])
        and back[2].tolist() == [2.25, None, False, 3]
    )
    _, again = round_trip(rows)
    assert again[0].tolist()[:3] == [1.5, "a", True]
    masked = np.ma.array([[1.0, 2.0], [3.0, -999.0], [4.0, 5.5]], mask=[[0, 0], [0, 1], [0, 0]])
    np.testing.assert_array_equal(round_trip(masked)[1], [[1, 2], [3, NAN], [4, 5.5]])
    texts = np.ma.array([["a", "b"], ["c", "d"], ["a", "b"]], mask=[[0, 0], [0, 1], [0, 0]])
    assert round_trip(texts)[1].tolist() == [["a", "b"], ["c", None], ["a", "b"]]


def test_tensors_come_back_as_tensors():
    X = torch.tensor([[1.0, 2.5], [NAN, 3.5], [4.0, 7.25]])
    back = round_trip(X.requires_grad_())[1]
    assert isinstance(back, torch.Tensor) and back.dtype == torch.float64
    torch.testing.assert_close(back, X.detach().double(), equal_nan=True)
    flags = torch.tensor([[True], [False], [True]])
    assert torch.equal(round_trip(flags)[1], flags)


def test_everything_that_means_missing_is_missing():
    column = pd.Series([1.5, None, pd.NA, NAN, np.float64("nan"), pd.NaT, np.datetime64("NaT"), 2.0], dtype=object)
    x, _ = (columns := Columns.learn(column.to_frame("a"))).read(column.to_frame("a"))
    assert x[:, 0].isnan().tolist() == [False, *[True] * 6, False] and columns["a"].kind == "number"
    words = pd.DataFrame({"a": pd.Series(["u", None, pd.NA, NAN, pd.NaT, "v"], dtype=object)})
    assert Columns.learn(words).read(words)[1][:, 0].tolist() == [0, -1, -1, -1, -1, 1]


def test_frames_of_one_kind_are_read_by_models_of_another():
    pl = pytest.importorskip("polars")
    X = pd.DataFrame({"a": [1.0, 2.5, 4.0], "b": ["x", "y", "x"]})
    columns = Columns.learn(X)
    other = pl.from_pandas(X)
    x, codes = columns.read(other)
    assert columns.write(x, codes, like=other).equals(other)
    values = X.to_numpy(dtype=object)
    assert columns.write(x, codes, like=values).tolist() == values.tolist()
    by_place = Columns.learn(values)
    pd.testing.assert_frame_equal(by_place.write(*by_place.read(X), like=X), X, check_dtype=False)


def test_names_may_be_whole_numbers():
    X = pd.DataFrame({7: [1.0, 2.5, 4.0], 0: [2.0, 2.75, 9.0], "b": ["x", "y", "x"]})
    columns, back = round_trip(X)
    pd.testing.assert_frame_equal(back, X)
    assert columns.names == (7, 0, "b") and columns.index(7) == 0 and columns.index(0) == 1


def test_a_single_row_and_a_single_column_are_promoted():
    columns = Columns.learn(RNG.normal(size=(10, 3)))
    assert columns.read([1.0, 2.0, 3.0])[0].shape == (1, 3)
    assert columns.read(np.array([1.0, "2", 3.0], dtype=object)[[0, 0, 2]])[0].shape == (1, 3)
    assert Columns.learn(RNG.normal(size=(10, 1))).read([1.0, 2.0])[0].shape == (2, 1)


# ------------------------------------------------------------------------------------------------------- kinds


def test_the_kinds_of_columns():
    n = 40
    X = pd.DataFrame(
        {
            "number": RNG.normal(size=n),
            "count": RNG.poisson(3.0, n),
            "two": RNG.integers(0, 2, n) * 3 + 2,
            "halves": RNG.integers(0, 2, n) / 2 + 0.5,
            "decimal": [decimal.Decimal(i) / 7 for i in range(n)],
            "flags": pd.Series([True, None] * (n // 2), dtype=object),
            "word": ["b", "a"] * (n // 2),
        }
    )
    columns = Columns.learn(X)
    assert [one.kind for one in columns.items] == [
        *("number", "number", "category", "category", "number", "boolean", "category")
    ]
    assert (
        columns["two"].levels == (2, 5)
        and columns["halves"].levels == (0.5, 1.0)
        and columns["word"].levels == ("a", "b")
    )
    assert columns["flags"].levels == (False, True)
    assert columns.levels == (2, 2, 2, 2)
    notes = {row["column"]: row["note"] for row in columns.summary()}
    assert notes["two"] == "category with 2 values: 2, 5" and notes["count"] == "whole number, rounded to 1"


def test_kinds_may_be_given():
    X = pd.DataFrame({"a": [0, 1, 1, 0], "b": [3, 7, 3, 9], "c": [0.0, 1.0, 1.0, NAN], "d": [True, False, True, True]})
    columns = Columns.learn(X, {"a": "number", "b": "category", "c": "boolean", "d": "number"})
    assert [one.kind for one in columns.items] == ["number", "category", "boolean", "number"]
    assert columns["b"].levels == (3, 7, 9) and columns["a"].width == 1.0
    pd.testing.assert_frame_equal(columns.write(*columns.read(X)), X)
    text = pd.DataFrame({"a": pd.Categorical([1, 5, 9, 5])})
    assert Columns.learn(text, {"a": "number"}).read(text)[0][:, 0].tolist() == [1, 5, 9, 5]
    mixed = np.array([[1], ["x"], [1]], dtype=object)
    assert Columns.learn(mixed, {0: "category"}).items[0].levels == (1, "x")


@pytest.mark.parametrize(
    ("kinds", "error", "says"),
    [
        ({"z": "number"}, ShapeError, "kinds names the column 'z', which X has not; it has 'a', 'b'"),
        ({"a": "real"}, ParameterError, r"kinds\['a'\] must be 'number', 'category' or 'boolean'; got 'real'"),
        ({"b": "number"}, NotNumericError, "column 'b' should hold numbers, but holds text, e.g. 'x'"),
        ({"a": "boolean"}, NotNumericError, "column 'a' is to be boolean, but holds 2"),
    ],
)
def test_wrong_kinds_are_refused(kinds, error, says):
    with pytest.raises(error, match=says):
        Columns.learn(pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": ["x", "y", "x"]}), kinds)


# ------------------------------------------------------------------------------------------- widths and atoms


def test_widths_of_tables_that_are_known():
    assert Columns.learn(sklearn.datasets.load_iris().data).width.tolist() == [0.1] * 4
    assert Columns.learn(sklearn.datasets.load_linnerud().data).width.tolist() == [1.0] * 3
    assert Columns.learn(girih.datasets.load("circle", n=400)).width.tolist() == [0.0, 0.0]
    assert Columns.learn(RNG.integers(-50, 50, (200, 2))).width.tolist() == [1.0, 1.0]
    diabetes = sklearn.datasets.load_diabetes(scaled=False).data
    assert Columns.learn(diabetes)[0].width == 1.0  # age


@pytest.mark.parametrize("h", [1.0, 0.5, 0.25, 0.2, 0.1, 0.05, 0.01, 2.54, 25.0])
@pytest.mark.parametrize("single", [False, True])
def test_a_rounded_column_has_its_width(h, single):
    values = (h * np.round(RNG.normal(0.3, 1.0, 300) / 0.02 * 0.2)) if h != 25.0 else h * RNG.integers(-9, 9, 300)
    values = values.astype(np.float32).astype(np.float64) if single else values
    assert Columns.learn(values[:, None])[0].width == pytest.approx(h, rel=1e-6)


def test_widths_do_not_depend_on_origin_and_unit():
    values = np.round(RNG.normal(60.0, 12.0, 400))
    standard = (values - values.mean()) / values.std()
    assert Columns.learn(standard[:, None])[0].width == pytest.approx(1.0 / values.std(), rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_random_numbers_have_no_width(seed):
    rng = np.random.default_rng(seed)
    X = np.stack([rng.normal(size=500), rng.lognormal(0, 3, 500), rng.normal(size=500).astype(np.float32)], 1)
    drawn_twice = X[rng.integers(0, 500, 500)]  # as in a bootstrap
    for table in (X, drawn_twice, X * 1e-8, X * 1e8):
        assert Columns.learn(table).width.tolist() == [0.0] * 3


def test_levels_on_no_grid_have_their_smallest_gap():
    values = np.log(RNG.integers(1, 8, 300).astype(float))
    assert Columns.learn(values[:, None])[0].width == pytest.approx(math.log(7 / 6))


def slag(n=1030):
    """Like the slag in concrete: almost half of the mixes have none."""
    amount = np.round(np.random.default_rng(3).uniform(11.0, 360.0, n), 1)
    amount[: n * 46 // 100] = 0.0
    return np.random.default_rng(4).permutation(amount)


def test_a_zero_inflated_column_has_an_atom_and_comes_back():
    strength = np.random.default_rng(5).normal(35.0, 16.0, 1030)
    X = pd.DataFrame({"slag": slag(), "strength": strength})
    X.loc[::17, "slag"] = NAN
    columns, back = round_trip(X)
    pd.testing.assert_frame_equal(back, X)
    one = columns["slag"]
    assert (one.kind, one.atoms, one.width, one.x, one.code, one.size) == ("number", (0.0,), 0.1, 0, 0, 2)
    x, codes = columns.read(X)
    zero, missing = (X["slag"] == 0).to_numpy(), X["slag"].isna().to_numpy()
    assert (codes[:, 0].numpy() == np.where(missing, -1, np.where(zero, 0, 1))).all()
    assert (x[:, 0].isnan().numpy() == (zero | missing)).all()
    torch.testing.assert_close(columns.log_offset(codes), torch.tensor(np.where(zero, math.log(10.0), 0.0)))
    assert "0 repeats so often that it counts as a probability spread over the width 0.1" in one.summary()


def test_atoms_of_a_column_that_is_not_rounded():
    rain = np.where(RNG.random(500) < 0.6, 0.0, RNG.gamma(1.0, 2.0, 500))
    one = Columns.learn(rain[:, None])[0]
    gap = np.diff(np.unique(rain)).min()
    assert one.atoms == (0.0,) and one.width == max(gap, 1e-3 * rain.std())
    both = np.clip(RNG.normal(0.5, 0.5, 600), 0.0, 1.0)
    assert Columns.learn(both[:, None])[0].atoms == (0.0, 1.0)
    coded = np.concatenate([np.full(200, -1.0), np.zeros(400), RNG.uniform(1, 99, 400)])
    assert Columns.learn(coded[:, None])[0].atoms == (-1.0, 0.0)
    five = np.concatenate([np.repeat([0.0, 10.0, 20.0, 30.0, 40.0], 90), RNG.uniform(0, 50, 200)])
    assert len(Columns.learn(five[:, None])[0].atoms) == 3


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(6).poisson(1.0, 800),
        np.random.default_rng(7).poisson(0.3, 800),
        np.random.default_rng(8).integers(0, 4, 800),
        np.round(np.random.default_rng(9).normal(40.0, 12.0, 800)),
        np.random.default_rng(10).geometric(0.5, 800),
        np.random.default_rng(11).normal(size=800),
        np.repeat([0.0, 1.0, 2.0], 4),
    ],
)
def test_smooth_columns_have_no_atoms(values):
    assert Columns.learn(np.asarray(values, dtype=float)[:, None])[0].atoms == ()


def test_an_atom_is_recognised_in_float32():
    rows = np.concatenate([np.full(60, 0.1), RNG.uniform(1.0, 2.0, 60)])[:, None]
    columns = Columns.learn(rows)
    assert columns[0].atoms == (0.1,)
    assert torch.equal(columns.read(rows.astype(np.float32))[1], columns.read(rows)[1])


# --------------------------------------------------------------------------------------------------- constants


def test_a_constant_is_a_category_in_which_anything_else_is_the_second():
    X = pd.DataFrame({"c": np.full(30, 4.5), "s": ["u"] * 30, "b": [True] * 30, "a": RNG.normal(size=30)})
    columns = Columns.learn(X)
    assert columns.levels == (2, 2, 2) and columns["c"].x is None and len(columns.width) == 1
    assert (columns["c"].constant, columns["s"].constant, columns["b"].constant) == (4.5, "u", True)
    x, codes = columns.read(X)
    assert codes.unique(dim=0).tolist() == [[0, 0, 1]]
    assert torch.equal(columns.log_offset(codes), torch.zeros(30, dtype=torch.float64))
    fresh = pd.DataFrame({"c": [4.5, 7.0, NAN], "s": ["u", "v", None], "b": [True, False, True], "a": [0.0, 1.0, 2.0]})
    x, codes = columns.read(fresh)
    assert codes.tolist() == [[0, 0, 1], [1, 1, 0], [-1, -1, 1]]
    pd.testing.assert_frame_equal(columns.write(x, codes, like=fresh), fresh)
    assert columns.write(x[:2], codes[:2])["c"].tolist() == [4.5, 4.5]  # a draw of "anything else"
    assert columns["c"].summary() == "always 4.5: a category, in which any other value is the second"


def test_a_tiny_constant_is_told_from_other_tiny_numbers():
    columns = Columns.learn(np.full((9, 1), 3e-8))
    assert columns.read([[3e-8], [np.float32(3e-8)], [5e-8], [0.0]])[1].tolist() == [[0], [0], [1], [1]]


def test_sparse_columns_are_read_and_come_back_dense():
    X = pd.DataFrame({"a": pd.arrays.SparseArray([0.0, 1.0, 0.0, 2.5], fill_value=0.0)})
    assert round_trip(X)[1]["a"].tolist() == [0.0, 1.0, 0.0, 2.5]


def test_a_column_without_entries_is_kept():
    X = np.stack([RNG.normal(size=9), np.full(9, NAN)], 1)
    columns = Columns.learn(X)
    assert columns[1].x is None and columns[1].code is None and "no entry was observed" in columns[1].summary()
    fresh = X.copy()
    fresh[0, 1] = 3.0
    x, codes = columns.read(fresh)
    assert x.shape == (9, 1) and codes.shape == (9, 0)
    np.testing.assert_array_equal(columns.write(x, codes, like=fresh), fresh)
    assert np.isnan(columns.write(x, codes)[:, 1]).all()


# -------------------------------------------------------------------------------------------- rows and configs


def test_a_row_of_known_values():
    X = every_type()
    columns = Columns.learn(X)
    x, codes = columns.row({"int": 5, "text": "b", "flag": 1})
    assert x.shape == (1, len(columns.width)) and codes.shape == (1, len(columns.levels))
    assert (~x.isnan()).sum() == 1 and x[0, columns["int"].x] == 5.0
    assert (codes >= 0).sum() == 2 and codes[0, columns["text"].code] == 1 and codes[0, columns["flag"].code] == 1
    assert columns.row({})[0].isnan().all() and (columns.row({"text": None})[1] == -1).all()
    assert columns.index("int") == 3 and columns.index(3) == 3
    with pytest.raises(ShapeError, match="there is no column 'wrong'; the table has 'float', 'holes'"):
        columns.row({"wrong": 1.0})
    with pytest.raises(ParameterError, match="column 'text' holds 'z'"):
        columns.row({"text": "z"})
    with pytest.raises(NonFiniteError):
        columns.row({"int": math.inf})
    assert Columns.learn(RNG.normal(size=(5, 2))).row({1: 2.0})[0][0, 1] == 2.0


def test_columns_survive_json():
    X = every_type().assign(slag=slag()[:24])
    X["labels"] = pd.Categorical([1.5, 2.5, 1.5, None] * 6)
    columns = Columns.learn(X)
    again = Columns.from_config(json.loads(json.dumps(columns.to_config(), allow_nan=False)))
    assert again == columns
    assert [[type(level) for level in one.levels] for one in again.items] == [
        [type(level) for level in one.levels] for one in columns.items
    ]
    pd.testing.assert_frame_equal(again.write(*again.read(X)), X)
    for wrong in ({}, {"source": "array", "columns": [{"name": 1}]}):
        with pytest.raises(ModelFileError, match="not the columns of a table"):
            Columns.from_config(wrong)


ON_THE_CORE = """
import sys
import numpy as np, girih
from girih.tables.columns import Columns

sys.modules.update(dict.fromkeys(("narwhals", "pandas", "polars", "pyarrow")))  # None: as if not installed

class Frame:
    columns = ["a"]
    def __getitem__(self, name):
        return None

for X in (np.arange(12.0).reshape(4, 3), np.array([[1.5, "a"], [None, "b"], [2.0, "a"]], dtype=object)):
    columns = Columns.learn(X)
    back = columns.write(*columns.read(X), like=X)
    assert back.shape == X.shape and back[0].tolist() == X[0].tolist()
try:
    Columns.learn(Frame())
except girih.errors.MissingExtraError as error:
    print(error)
"""


def test_arrays_need_no_extra_and_frames_name_theirs():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", ON_THE_CORE], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "needs the package narwhals" in done.stdout and 'pip install "girih[tables]"' in done.stdout


# ------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("X", "error", "says"),
    [
        (pd.DataFrame({"d": pd.to_datetime(["2020-01-01", None])}), NotNumericError, "'d'.*dates.*turn dates into num"),
        (pd.DataFrame({"d": pd.to_timedelta([1, 2], unit="D")}), NotNumericError, "turn dates into numbers"),
        (pd.DataFrame({"d": [datetime.date(2020, 1, 1)]}), NotNumericError, "turn dates into numbers"),
        (np.array([["2020-01-01"]], dtype="datetime64[D]"), NotNumericError, "turn dates into numbers"),
        (np.array([[1.0 + 2.0j]]), NotNumericError, "Complex"),
        (pd.DataFrame({"m": [1.0, "?", 2.0]}), NotNumericError, "column 'm' holds text among numbers, e.g. '\\?'"),
        ([[{"a": 1}], [{"a": 2}]], NotNumericError, "must be a string or a real number"),
        ([[1.0, 2.0], [3.0]], NotNumericError, "different lengths"),
        (np.array([[1.0, np.inf]]), NonFiniteError, "infinite values .first in row 0., column 1"),
        (pd.DataFrame({"big": [1.0, 1e200]}), NonFiniteError, "column 'big', too large"),
        (np.zeros((0, 3)), EmptyDataError, "no rows"),
        (np.zeros((3, 0)), EmptyDataError, r"0 feature\(s\) \(shape=\(3, 0\)\) while a minimum of 1 is required"),
        (pd.DataFrame(), EmptyDataError, "minimum of 1"),
        (np.zeros(3), ShapeError, r"table of shape \(N, D\)"),
        (np.zeros((2, 3, 4)), ShapeError, "table of shape"),
        (np.array(["a", "b"]), ShapeError, "table of shape"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), ShapeError, "more than one column named a"),
        (pd.DataFrame({("a", "b"): [1.0]}), ShapeError, "name columns by strings or whole numbers"),
        (pd.DataFrame({"i": pd.cut([1, 2, 3], 2)}), NotNumericError, "'i' of X has categories that are no text"),
        (pd.DataFrame({"id": [2**60, 2**60 + 1]}), NotNumericError, "'id' of X holds whole numbers above 2.53"),
        (pd.DataFrame({"name": [f"n{i}" for i in range(40)]}), ParameterError, "'name' holds a different text in each"),
        (None, NotNumericError, "it is None"),
    ],
)
def test_what_is_no_table_is_refused(X, error, says):
    with pytest.raises(error, match=says):
        Columns.learn(X)


def test_rows_of_another_table_are_refused_by_name():
    X = pd.DataFrame({"a": [1.0, 2.5, 4.0], "b": ["x", "y", "x"], "c": [True, False, True]})
    columns = Columns.learn(X)
    with pytest.raises(ShapeError, match="it lacks 'c' and has 'd', 'e' besides; pass 'a', 'b', 'c'"):
        columns.read(X.assign(d=1, e=2).drop(columns="c"))
    with pytest.raises(ShapeError, match="X has 2 columns, but the table that was fitted has 3"):
        columns.read(np.zeros((4, 2)))
    with pytest.raises(ParameterError, match=r"column 'b' holds 'w', 'z', which the table.*unseen=\"missing\""):
        columns.read(X.assign(b=["z", "x", "w"]))
    assert columns.read(X.assign(b=["z", "x", "w"]), unseen="missing")[1][:, 0].tolist() == [-1, 0, -1]
    with pytest.raises(NotNumericError, match=r"column 'a' should hold numbers, but holds text, e.g. 'k'"):
        columns.read(X.assign(a=["k", "l", "m"]))
    with pytest.raises(ParameterError, match="column 'c' is boolean, but holds 2"):
        columns.read(X.assign(c=[0, 1, 2]))
    with pytest.raises(NonFiniteError, match="column 'a'"):
        columns.read(X.assign(a=[1.0, math.inf, 2.0]))
    with pytest.raises(ParameterError, match="unseen must be"):
        columns.read(X, unseen="ignore")
    flag = Columns.learn(np.array([[0], [1], [1], [0]]))
    with pytest.raises(ParameterError, match=r'column 0 holds 2, .* fit with kinds=\{0: "number"\}'):
        flag.read([[2]])
