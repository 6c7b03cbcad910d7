"""score, sample and impute."""

import csv

import numpy as np
import pandas as pd
import pytest

import girih as library
from tests.cli.conftest import make_table


def test_score_finds_columns_by_name_and_the_least_probable_row(girih, fitted):
    table = make_table()[["ratio", "name", "income", "height"]]
    table.loc[7, "height"] = 400.0
    table.to_csv("shuffled.csv", index=False)
    done = girih("score", fitted / "fit", "shuffled.csv", "--out", "s", "--json")
    assert done.code == 0
    model = library.load(fitted / "fit" / "model")
    expected = model.score_samples(table[["height", "income", "ratio"]])
    scores = pd.read_csv("s/scores.csv")
    np.testing.assert_allclose(scores["log_p"], expected, atol=1e-12)
    assert scores["missing"].sum() == table.isna().sum().sum()
    assert done.json["mean"] == pytest.approx(expected.mean()) and done.json["least_probable"][0]["row"] == 7
    assert "that of the entries that are there" in done.err


def test_score_says_where_the_scores_are(girih, fitted):
    done = girih("score", fitted / "fit" / "model", fitted / "people.csv")
    assert done.code == 0 and "Scores: girih-out/fit-score-people/scores.csv" in done.out


def test_score_by_position_when_the_file_has_no_names(girih, fitted):
    np.save("rows.npy", make_table().drop(columns="name").to_numpy())
    by_position = girih("score", fitted / "fit", "rows.npy", "--json")
    by_name = girih("score", fitted / "fit", fitted / "people.csv", "--json")
    assert by_position.json["mean"] == pytest.approx(by_name.json["mean"], abs=1e-12)


def test_score_of_a_model_folder_alone(girih, fitted, tmp_path):
    model = library.load(fitted / "fit" / "model")
    library.save(model.dgn_, tmp_path / "bare")
    done = girih("score", "bare", fitted / "people.csv", "--drop", "name", "--json")
    assert done.json["mean"] == pytest.approx(
        girih("score", fitted / "fit", fitted / "people.csv", "--json").json["mean"]
    )


def test_sample_writes_header_and_the_same_rows_for_a_seed(girih, fitted):
    done = girih("sample", fitted / "fit", "-n", 7, "--seed", 3, "--out", "s", "--json")
    assert done.json["files"] == ["samples.csv", "samples.npy"]
    table, array = pd.read_csv("s/samples.csv"), np.load("s/samples.npy")
    assert list(table.columns) == ["height", "income", "ratio"] and array.shape == (7, 3)
    np.testing.assert_allclose(table, array)
    girih("sample", fitted / "fit", "-n", 7, "--seed", 3, "--out", "again")
    np.testing.assert_array_equal(array, np.load("again/samples.npy"))
    assert girih("sample", fitted / "fit", "-n", 1).out.startswith("1 row of 3 columns")


def test_sample_of_images_has_their_shape_and_a_picture(girih, images):
    done = girih("sample", images[0] / "fit", "-n", 5, "--out", "s")
    assert done.code == 0 and "s/samples.png" in done.out
    assert np.load("s/samples.npy").shape == (5, 8, 8)


def test_sample_in_the_plane_has_a_picture(girih, tmp_path):
    library.save(library.DGN(library.mlp([1, 3, 2], seed=0), noise=0.1), tmp_path / "m")
    assert "samples.png" in girih("sample", "m", "--json").json["files"]


def test_impute_keeps_what_is_there_to_the_letter(girih, fitted):
    text = 'name;height;ratio;income;note\n"a;b";1.50e2;;30000;NA\nc;; 0.01;;x\nd;170;0.020;2e4;\n'
    with open("t.csv", "w") as file:
        file.write(text)
    done = girih("impute", fitted / "fit", "t.csv", "--out", "o", "--json")
    assert done.json["filled"] == 3 and done.json["rows_filled"] == 2
    with open("o/imputed.csv") as file:
        before, after = list(csv.reader(text.splitlines(), delimiter=";")), list(csv.reader(file, delimiter=";"))
    assert after[0] == before[0] and after[3] == before[3]
    assert after[1][:2] == ["a;b", "1.50e2"] and after[1][3:] == ["30000", "NA"] and after[2][4] == "x"
    model = library.load(fitted / "fit" / "model")
    nan = float("nan")
    expected = model.dgn_.impute(np.array([[150.0, 3e4, nan], [nan, nan, 0.01]])).numpy()
    np.testing.assert_allclose([float(after[1][2])], expected[0, 2])
    np.testing.assert_allclose([float(after[2][1]), float(after[2][3])], expected[1, :2])


def test_impute_without_a_header_writes_none(girih, tmp_path):
    library.save(library.DGN(library.mlp([1, 3, 2], seed=0), noise=0.1), tmp_path / "m")
    with open("t.csv", "w") as file:
        file.write("1.0,\n0.25,0.5\n")
    girih("impute", "m", "t.csv", "--out", "o")
    with open("o/imputed.csv") as file:
        lines = file.read().splitlines()
    assert len(lines) == 2 and lines[0].startswith("1.0,") and lines[1] == "0.25,0.5"


def test_impute_parquet_and_npy(girih, fitted, images):
    table = make_table()
    table["count"] = pd.array([1, None] * 20, dtype="Int64")
    table.to_parquet("t.parquet")
    done = girih("impute", fitted / "fit", "t.parquet", "--out", "o")
    completed = pd.read_csv("o/imputed.csv")
    assert done.code == 0 and list(completed.columns) == list(table.columns)
    assert not completed[["height", "income", "ratio"]].isna().any(axis=None)
    assert completed["count"].isna().sum() == 20  # not a column of the model
    X = np.load(images[0] / "threes.npy").astype(float)
    X[0, 2:4] = np.nan
    np.save("holes.npy", X)
    done = girih("impute", images[0] / "fit", "holes.npy", "--out", "i", "--json")
    filled = np.load("i/imputed.npy")
    assert done.json["filled"] == 16 and filled.shape == X.shape
    np.testing.assert_array_equal(filled[~np.isnan(X)], X[~np.isnan(X)])


def test_impute_whole_numbers_stay_whole(girih, tmp_path):
    library.save(library.DGN(library.mlp([1, 3, 2], seed=0), noise=0.1), tmp_path / "m")
    pd.DataFrame({"a": [1.0, None, 3.0], "b": [0.5, 1.5, 2.0]}).to_parquet("t.parquet")
    girih("impute", "m", "t.parquet", "--out", "o")
    with open("o/imputed.csv") as file:
        lines = file.read().splitlines()
    assert lines[1] == "1,0.5" and lines[3] == "3,2.0" and lines[2].endswith(",1.5")


def test_impute_with_nothing_missing_says_so(girih, tmp_path):
    library.save(library.DGN(library.mlp([1, 3, 2], seed=0), noise=0.1), tmp_path / "m")
    assert "nothing is missing" in girih("impute", "m", "circle").out


def test_rows_without_any_entry_are_pointed_out(girih, fitted):
    with open("t.csv", "w") as file:
        file.write("height,income,ratio\n,,\n150,30000,0.01\n")
    done = girih("impute", fitted / "fit", "t.csv", "--out", "o")
    assert done.code == 0 and "1 row without any observed entry got the mean" in done.err
