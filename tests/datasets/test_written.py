"""Files as people have them: separators, decimal commas, marks of what is missing, dates, gzip and Excel."""

import gzip
import math
import re

import numpy as np
import pytest

import girih
from girih.datasets import FileFormat, load, load_frame
from girih.datasets.files import file_kind, read_frame
from girih.datasets.texts import read, tell, write
from girih.errors import DataSourceError, ParameterError

pytest.importorskip("pandas")

TABLE = {"height": [1.5, 1.25, float("nan"), 2.0], "n": [1, 2, 3, 4], "word": ["a", "b", "a", "c"]}


def write_text(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz", ".TSV.GZ"])
@pytest.mark.parametrize(("separator", "decimal"), [(",", "."), (";", ","), (";", "."), ("\t", ",")])
def test_the_same_table_comes_out_of_every_way_to_write_it(tmp_path, suffix, separator, decimal):
    lines = [separator.join(TABLE)]
    for height, n, word in zip(*TABLE.values(), strict=True):
        cell = "" if height != height else f"{height}".replace(".", decimal)
        lines.append(separator.join((cell, str(n), word)))
    path = tmp_path / f"t{suffix}"
    text = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(text) if suffix.lower().endswith(".gz") else text)
    frame, findings = read_frame(path, FileFormat())
    assert frame["height"].tolist()[:2] == [1.5, 1.25] and math.isnan(frame["height"][2])
    assert frame["n"].tolist() == TABLE["n"] and frame["n"].dtype.kind == "i"
    assert frame["word"].tolist() == TABLE["word"]
    assert findings.written == ({"height": "comma"} if decimal == "," else {})
    assert findings.separator == separator and findings.header is True


def test_marks_among_numbers_are_missing_entries_and_said(tmp_path):
    path = write_text(tmp_path / "t.csv", "a,b,c\n1,x,?\n?,y,-\n-,?,.\n2,z,?\n")
    frame, findings = read_frame(path, FileFormat())
    assert np.array_equal(frame["a"], [1.0, np.nan, np.nan, 2.0], equal_nan=True)
    assert frame["b"].tolist() == ["x", "y", "?", "z"] and findings.markers == {"a": ("?", "-")}
    assert "kept as a category; --missing '?'" in findings.doubts["b"][0]
    frame, findings = read_frame(path, FileFormat(missing=("?", "x")))
    assert frame["b"].isna().tolist() == [True, False, True, False] and "-" in frame["a"].tolist()
    assert set(findings.markers["b"]) == {"x", "?"}
    frame, _ = read_frame(path, FileFormat(missing=()))
    assert frame["a"].tolist() == ["1", "?", "-", "2"]


def test_custom_numbers_that_mean_missing(tmp_path):
    path = write_text(tmp_path / "t.csv", "a,b\n1,x\n-999,y\n3,z\n")
    assert load_frame(path, reading=FileFormat(missing=("-999",)))["a"].isna().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("texts", "separator", "decimal", "values", "written"),
    [
        (["1,5", "2"], ";", None, [1.5, 2.0], "comma"),
        (["1.234,5", "12", "1.234"], ";", None, [1234.5, 12.0, 1234.0], "comma"),
        (["1,234", "12"], ",", None, [1234.0, 12.0], "thousands"),
        (["1,234.5", "12"], ";", None, [1234.5, 12.0], "thousands"),
        (["1,234", "12"], ";", ".", [1234.0, 12.0], "thousands"),
        (["1,234"], ",", ",", [1.234], "comma"),
        (["1,2e3", "-0,5", ",5"], "\t", None, [1200.0, -0.5, 0.5], "comma"),
        (["2024-03-01", "1969-12-31"], ",", None, [19783.0, -1.0], "date"),
        (["1970-01-01T12:00", "1970-01-02 06:00:00"], ",", None, [0.5, 1.25], "date"),
        (["1.2.1970", "28.02.1970"], ";", None, [31.0, 58.0], "german date"),
    ],
)
def test_how_numbers_and_dates_are_written(texts, separator, decimal, values, written):
    told = tell(texts, separator, decimal)
    assert told.written == written and told.values == values and told.doubts == ()
    for value in values:
        if written in ("comma", "date", "german date"):
            assert read(write(round(value), written), written) == round(value)


@pytest.mark.parametrize("texts", [["1,5", "1.5"], ["2024-13-01"], ["1,23,4"], ["a", "1"], ["12,5 kg"], ["1_000"]])
def test_what_is_no_number_stays_text(texts):
    assert tell(texts, ";").values == texts


def test_what_could_be_meant_in_two_ways_is_said():
    assert "decimal comma; --decimal . reads thousands" in tell(["1,234", "2,500"], ";").doubts[0]
    assert "day and month cannot be told apart" in tell(["01/02/2024", "03/04/2024"]).doubts[0]


def test_a_decimal_comma_that_is_said_makes_points_thousands(tmp_path):
    path = write_text(tmp_path / "t.csv", "a;b\n1.234;x\n2.500;y\n")
    assert load_frame(path)["a"].tolist() == [1.234, 2.5]
    frame, findings = read_frame(path, FileFormat(decimal=","))
    assert frame["a"].tolist() == [1234, 2500] and findings.written == {"a": "comma"}


def test_rows_without_names_may_hold_commas_and_marks(tmp_path):
    path = write_text(tmp_path / "t.csv", "1,5;?;3\n2,5;4;5\n3,5;6;7\n")
    frame, findings = read_frame(path, FileFormat())
    assert list(frame) == ["x0", "x1", "x2"] and len(frame) == 3 and findings.header is False


def test_numbers_of_a_data_set_are_read_the_same_way(tmp_path):
    path = write_text(tmp_path / "t.csv", "a;day\n1,5;2020-01-01\n?;2020-01-03\n")
    X = load(path).X
    assert np.array_equal(X, [[1.5, 18262.0], [np.nan, 18264.0]], equal_nan=True)


def test_excel(tmp_path):
    pandas, _ = pytest.importorskip("pandas"), pytest.importorskip("openpyxl")
    path = tmp_path / "t.xlsx"
    day = pandas.to_datetime(["2020-01-01", None, "2020-01-02"])
    pandas.DataFrame({"a": [1.5, None, 2.0], "b": ["x", "y", None], "day": day, "m": [1, "?", 3]}).to_excel(
        path, index=False
    )
    frame, findings = read_frame(path, FileFormat())
    assert frame["a"].isna().tolist() == [False, True, False] and frame["day"].tolist()[::2] == [18262.0, 18263.0]
    assert findings.written == {"day": "date"} and np.array_equal(frame["m"], [1.0, np.nan, 3.0], equal_nan=True)
    (tmp_path / "bad.xlsx").write_bytes(b"no zip file")
    with pytest.raises(DataSourceError, match=r"bad\.xlsx"):
        load_frame(tmp_path / "bad.xlsx")


def test_damaged_and_huge_gzip_files_are_refused(tmp_path, monkeypatch):
    import girih.datasets.csvfile as csvfile

    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 40_000)[:-30])
    with pytest.raises(DataSourceError, match="no intact gzip file"):
        load_frame(path)
    path.write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 200_000))
    monkeypatch.setattr(csvfile, "MEMORY", 1e-6)
    with pytest.raises(DataSourceError, match="unpacks to more than"):
        load_frame(path)


def test_options_of_csv_files_are_refused_elsewhere(tmp_path):
    np.save(tmp_path / "t.npy", np.zeros((3, 2)))
    with pytest.raises(ParameterError, match="separator is an option of csv files"):
        load(tmp_path / "t.npy", reading=FileFormat(separator=";"))
    for wrong in ({"separator": "|"}, {"decimal": "'"}):
        with pytest.raises(ParameterError, match="must be"):
            FileFormat(**wrong)
    assert file_kind("a.gz") == file_kind(".csv") == "" and file_kind("b/a.CSV") == "csv"


def test_a_format_is_written_as_python_and_as_json():
    reading = FileFormat(separator=";", missing=("?",))
    assert FileFormat.of(reading.known()) == reading and FileFormat.of(None) == FileFormat()
    assert eval(re.sub(r"^, reading=", "", reading.code("reading")), {"girih": girih}) == reading
    assert FileFormat(decimal=",").over(reading) == FileFormat(separator=";", decimal=",", missing=("?",))
