"""What users pass as numbers: each kind is read right, or refused by column with its remedy."""

import datetime
import decimal
import fractions
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse
import torch

import girih
from girih._arrays import as_indices, as_rows, as_tensor
from girih._options import whole, wholes
from girih.errors import EmptyDataError, NonFiniteError, NotNumericError, ParameterError, ShapeError

NAN = float("nan")


class Frame:
    """Columns by name, as in polars."""

    columns = ("a", "b")

    def __getitem__(self, name: str) -> "Column":
        return Column()

    def to_numpy(self) -> np.ndarray:
        return np.ones((2, 2))


class Column:
    dtype = "Float64"

    def to_numpy(self) -> np.ndarray:
        return np.array([1.0, NAN])


def frame(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame(columns)


def test_a_tensor_that_asks_for_gradients_keeps_them():
    value = torch.ones(2, requires_grad=True)
    as_tensor(value, "x").sum().backward()
    assert torch.equal(value.grad, torch.ones(2))
    as_tensor([value, value], "x").sum().backward()
    assert torch.equal(value.grad, torch.full((2,), 3.0))


def test_a_single_row_or_column_is_promoted():
    assert as_rows([1.0, 2.0, 3.0], "x", 3, "D").shape == (1, 3)
    assert as_rows([1.0, 2.0, 3.0], "x", 1, "D").shape == (3, 1)
    with pytest.raises(ShapeError, match=r"x must be a table of shape \(N, 2\); got 1 dimension\(s\), shape \(3,\)"):
        as_rows([1.0, 2.0, 3.0], "x", 2, "D")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.ma.array([[1, 2], [3, -999]], mask=[[0, 0], [0, 1]]), [[1, 2], [3, NAN]]),
        (np.ma.array([[1.0, 2.0]]), [[1, 2]]),
        (np.ma.array([[1, "x"]], mask=[[0, 1]], dtype=object), [[1, NAN]]),
        ([np.ma.array([1.0, 2.0], mask=[0, 1]), np.ma.array([3.0, 4.0])], [[1, NAN], [3, 4]]),
        ([[1.0, np.ma.masked], [2, 3]], [[1, NAN], [2, 3]]),
        (np.array([[1, None], [pd.NA, decimal.Decimal("1.5")]], dtype=object), [[1, NAN], [NAN, 1.5]]),
        ([[fractions.Fraction(1, 2), True]], [[0.5, 1]]),
        (frame(a=pd.array([1, None], dtype="Int64"), b=pd.array([True, None], dtype="boolean")), [[1, 1], [NAN, NAN]]),
        (frame(a=pd.array([0.5, None], dtype="Float64"), b=[True, False]), [[0.5, 1], [NAN, 0]]),
        (frame(a=pd.Series([1, pd.NA, None], dtype=object), b=[1, 2, 3]), [[1, 1], [NAN, 2], [NAN, 3]]),
        (frame(a=pd.Categorical([3, None]), b=pd.arrays.SparseArray([0.0, 1.0])), [[3, 0], [NAN, 1]]),
        (frame(a=pd.array([1, None], dtype="int64[pyarrow]")), [[1], [NAN]]),
        (frame(a=pd.array([decimal.Decimal("1.5"), None], dtype=pd.ArrowDtype(pa.decimal128(5, 2)))), [[1.5], [NAN]]),
        (pa.table({"a": [1, None], "b": [0.5, 1.0]}), [[1, 0.5], [NAN, 1]]),
        (pa.array([1, None]), [1, NAN]),
        (pd.Series([1, pd.NA], dtype="Int64"), [1, NAN]),
        (Frame(), [[1, 1], [NAN, NAN]]),
        (torch.ones(2, 2, dtype=torch.bfloat16), [[1, 1], [1, 1]]),
        (np.ones((1, 2), dtype=np.float16), [[1, 1]]),
        (memoryview(np.ones((1, 2))), [[1, 1]]),
        (np.ones((1, 2), dtype=">i4"), [[1, 1]]),
    ],
)
def test_masks_nulls_and_nones_are_missing(value: Any, expected: list[Any]) -> None:
    found = as_tensor(value, "x")
    assert found.dtype == torch.float64
    np.testing.assert_array_equal(found.numpy(), expected)


DATE = datetime.datetime(2020, 1, 1)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([[1, "a"], [2, "b"]], "column 1 holds text, e.g. 'a' in row 0"),
        (np.array([["1", "2"]]), "text, e.g. '1'.*pandas.to_numeric"),
        (b"ab", "text"),
        (frame(a=[1.0, 2.0], b=["red", "blue"]), "holds columns that are not numbers .*'b': text, e.g. 'red'"),
        (frame(a=["x"], b=[1], c=[DATE]), "columns 'a', 'c'"),
        (frame(t=[DATE]), "'t': dates of dtype.*numpy.timedelta64"),
        (frame(t=pd.to_datetime([DATE]).tz_localize("UTC")), "'t': dates"),
        (frame(t=pd.to_timedelta([1], "s")), "'t': dates"),
        (frame(t=pd.period_range("2020", periods=1, freq="D")), "'t': a Period"),
        (frame(a=pd.Categorical(["u", "v"])), "'a': text"),
        (np.array([["2020"]], dtype="M8[D]"), "dates of dtype"),
        ([[np.timedelta64(1, "s"), 1.0]], "column 0 holds dates"),
        ([[DATE, 1.0]], "column 0 holds dates"),
        (torch.ones(2, dtype=torch.complex64), "Complex data not supported"),
        ([[1 + 2j]], "column 0 holds complex numbers"),
        (torch.eye(2).to_sparse(), "sparse"),
        (scipy.sparse.csr_matrix(np.eye(2)), "sparse.*toarray"),
        ([[1.0, 2.0], [3.0]], "must be an array of numbers; could not convert it .its rows have different lengths"),
        ([np.ones(2), np.ones(3)], "different lengths"),
        (np.array([[1, 2], [3]], dtype=object), "different lengths"),
        ([[10**400]], "column 0 holds a number that is no float64"),
        ({"a": 1}, "a dict"),
        (None, "is None"),
        (np.zeros(2, dtype=[("a", float), ("b", int)]), "its dtype is"),
        (torch.ones(2, device="meta"), "meta device"),
        (len, "real number"),
    ],
)
def test_what_is_no_number_is_refused_by_column(value: Any, words: str) -> None:
    for call in (
        lambda rows: as_tensor(rows, "x"),
        girih.DGNEstimator(max_iter=2).fit,
        girih.DGN(girih.mlp([1, 2, 2], seed=0))().log_prob,
    ):
        with pytest.raises(NotNumericError, match=words):
            call(value)


def test_nan_and_infinity_are_refused_with_their_column() -> None:
    table = frame(a=[1.0, 2.0], height=[3.0, np.inf])
    with pytest.raises(NonFiniteError, match=r"infinite values \(first in row 1\), column 'height'"):
        as_rows(table, "x", 2, "D", allow_missing=True)
    with pytest.raises(NonFiniteError, match=r"NaN or masked entries \(first in row 0\), column 1"):
        as_rows(np.ma.array([[1.0, 2.0]], mask=[[0, 1]]), "x", 2, "D")


def test_masked_entries_are_missing_wherever_rows_go() -> None:
    x = girih.datasets.load("circle", n=20, seed=0).X
    mask = np.random.default_rng(0).random(x.shape) < 0.3
    masked, missing = np.ma.array(np.where(mask, -1e6, x), mask=mask), np.where(mask, np.nan, x)
    dgn = girih.DGN(girih.mlp([1, 4, 2], seed=0), noise=0.1)
    assert torch.equal(dgn().log_prob(masked), dgn().log_prob(missing))
    assert torch.equal(dgn.posterior(masked).mean, dgn.posterior(missing).mean)
    assert torch.equal(dgn.impute(masked), dgn.impute(missing))
    flow, vae = girih.flows.RealNVP(2, seed=0), girih.vae.GaussVAE(girih.mlp([1, 4, 2], seed=0), seed=0)
    assert torch.equal(vae().log_prob(masked), vae().log_prob(missing))
    for call in (
        girih.Partition(girih.mlp([2, 4, 2], seed=0)).locate,
        lambda rows: flow.fit(rows, max_steps=1, progress=False),
        flow().log_prob,
        lambda rows: girih.gaussian.log_mass(rows[:3]),
        lambda rows: girih.geometry.invert(girih.mlp([1, 4, 2], seed=0), rows),
    ):
        with pytest.raises(NonFiniteError, match="NaN"):
            call(masked)


@pytest.mark.parametrize("value", [3, np.int64(3), np.array(3), torch.tensor(3), np.uint8(3)])
def test_whole_numbers_of_every_kind_are_whole(value: Any) -> None:
    assert whole(value, "n") == 3 and type(whole(value, "n")) is int and wholes(value, "n") == (3,)


@pytest.mark.parametrize("value", [1.5, 2.0, True, np.True_, torch.tensor(True), NAN, "3", None, np.timedelta64(3)])
def test_fractions_and_booleans_are_not_cut_to_whole_numbers(value: Any) -> None:
    calls = (
        lambda: girih.DGNEstimator(latent_dim=value).fit(np.eye(3)),
        lambda: girih.DGNEstimator(hidden=(value,)).fit(np.eye(3)),
        lambda: girih.DGNEstimator(n_init=value).fit(np.eye(3)),
        lambda: girih.DGNEstimator(max_iter=value).fit(np.eye(3)),
        lambda: girih.mlp([1, value, 2]),
        lambda: girih.networks.Maxout(value),
        lambda: girih.Partition(girih.mlp([1, 2, 2], seed=0)).halfspaces(value),
        lambda: girih.Partition(girih.mlp([1, 2, 2], seed=0)).plot(coordinates=[value]),
        lambda: girih.geometry.basis(girih.mlp([2, 3, 4], seed=0), shape=(value, 2)),
    )
    for call in calls:
        with pytest.raises(ParameterError, match="must be a whole number"):
            call()


def test_indices_are_not_cut_to_whole_numbers() -> None:
    assert as_indices([0.0, 2.0], "index").tolist() == [0, 2]
    with pytest.raises(ShapeError, match="index must hold whole numbers"):
        as_indices([0.5], "index")


def test_a_table_without_rows_or_columns_is_refused() -> None:
    for value in (np.zeros((0, 2)), np.zeros((3, 0)), pd.DataFrame(index=[0, 1])):
        with pytest.raises(EmptyDataError):
            girih.DGNEstimator().fit(value)
    with pytest.raises(ShapeError, match="dim 3"):
        girih.DGNEstimator().fit(np.ones((2, 2, 2)))
