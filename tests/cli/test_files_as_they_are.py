"""Commands on a file with an id, a decimal comma, marks of what is missing, dates, and rows that came before."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import girih as library
from effort import try_few_settings
from girih.cli.explorers import explore_table
from girih.cli.options import Chosen
from girih.cli.table_data import load_table, page_of, without_ids
from tests.cli.conftest import call


def text_of_file(rows=50):
    rng = np.random.default_rng(3)
    lines = ["customer id;height;born;city;age"]
    for i in range(rows):
        height = f"{rng.normal(170.0, 9.0):.1f}".replace(".", ",")
        day = f"19{rng.integers(50, 99)}-0{rng.integers(1, 9)}-1{rng.integers(0, 9)}"
        age = "?" if i % 9 == 4 else rng.integers(20, 70)
        height = "" if i == 7 else height
        lines.append(f"{1001 + 7 * i};{height};{day};{('Rome', 'Oslo')[i % 2]};{age}")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    (folder / "odd.csv").write_text(text_of_file(), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        try_few_settings(patch)
        done = call("fit", folder / "odd.csv", "--out", folder / "fit", "--no-explorer")
    assert done.code == 0, done.err
    return folder, done


def test_the_explorer_shows_the_strange_rows_of_the_report(fitted, tmp_path):
    folder, _ = fitted
    chosen = Chosen()
    table = without_ids(load_table(str(folder / "odd.csv"), chosen), chosen)
    page = page_of(library.load(folder / "fit" / "model"), table)
    explore_table(tmp_path / "explorer.html", page, table)
    text = (tmp_path / "explorer.html").read_text()
    shown = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])["strange"]
    alone = library.explore(page.model, table.rows, path=None).payload["strange"]
    assert [one["row"] for one in shown] == [one["row"] for one in alone] == [one.row for one in page.strange[:5]]
    for one, known in zip(shown, page.strange, strict=False):
        assert one["reasons"] == [reason._asdict() for reason in known.reasons]
    days = [reason["value"] for one in shown for reason in one["reasons"] if reason["column"] == "born"]
    assert days and all(re.fullmatch(r"19\d\d-\d\d-\d\d", day) for day in days)


def test_what_was_read_is_said(fitted):
    folder, done = fitted
    assert "'customer id' holds a different number in each row" in done.err
    read = {what: found for what, found, _ in json.loads((folder / "fit" / "metrics.json").read_text())["read"]}
    assert read == {
        "cells": "between semicolons",
        "names of columns": "the first line",
        "decimal comma": "height",
        "'?', a missing entry": "age",
        "dates, as days since 1970-01-01": "born",
        "missing entries": "7 of 200",
        "names of rows, left out": "customer id",
    }
    page = (folder / "fit" / "report.html").read_text()
    assert "What was read" in page and "between semicolons" in page and not (folder / "fit" / "explorer.html").exists()
    assert re.search(r"<td>\d+ \(\d{4}\)</td>", page) and re.search(r"<td>19\d\d-\d\d-\d\d</td>", page)
    code = re.search(r"<pre>(.*?)</pre>", page, re.DOTALL)[1].replace("&#39;", "'")
    names = {}
    exec(code, names)
    assert names["rows"].shape == (50, 4) and names["rows"]["height"].dtype == float


def test_scores_and_anomalies_carry_the_names_of_rows(girih, fitted):
    folder, _ = fitted
    assert girih("score", folder / "fit", folder / "odd.csv", "--out", "s").code == 0
    assert pd.read_csv("s/scores.csv")["customer id"].tolist() == list(range(1001, 1001 + 350, 7))
    done = girih("anomalies", folder / "fit", folder / "odd.csv", "--out", "a", "-n", 3)
    found = pd.read_csv("a/anomalies.csv")
    assert (found["customer id"] == 1001 + 7 * found["row"]).all() and f"({found['customer id'][0]})" in done.out
    assert not re.search(r"born = \d{4,5} ", " ".join(found["reasons"]))


def test_imputed_entries_are_written_as_the_file_is(girih, fitted):
    folder, _ = fitted
    done = girih("impute", folder / "fit", folder / "odd.csv", "--out", "i", "--json")
    before = list(csv.reader((folder / "odd.csv").read_text().splitlines(), delimiter=";"))
    after = list(csv.reader(Path("i/imputed.csv").read_text().splitlines(), delimiter=";"))
    assert done.json["filled"] == 7 and len(after) == len(before)
    for old, new in zip(before, after, strict=True):
        for was, now in zip(old, new, strict=True):
            assert now == was or (was in ("", "?") and re.fullmatch(r"\d+,\d+", now))


def test_samples_have_dates(girih, fitted):
    assert girih("sample", fitted[0] / "fit", "-n", 5, "--out", "d").code == 0
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", day) for day in pd.read_csv("d/samples.csv")["born"])


def test_what_meant_missing_in_the_fit_does_so_later(girih, tmp_path):
    text = text_of_file(30).replace(";Rome;", ";unknown;", 3)
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        try_few_settings(patch)
        done = girih("fit", tmp_path / "t.csv", "--missing", "unknown,?", "--out", "m", "--no-explorer", "--json")
    assert done.code == 0 and "'unknown', a missing entry" in [what for what, *_ in done.json["read"]]
    done = girih("score", "m", tmp_path / "t.csv", "--out", "ms")
    assert done.code == 0 and pd.read_csv("ms/scores.csv")["missing"].sum() == 7


@pytest.mark.parametrize(
    ("name", "values", "left_out"),
    [
        ("x", np.arange(1, 41), True),
        ("x", np.arange(40)[::-1], True),
        ("x", np.arange(500, 540), False),
        ("year", np.arange(1960, 2000), False),
        ("customerID", np.arange(7, 407, 10), True),
        ("order_no", np.arange(7, 407, 10), True),
        ("paid", np.arange(7, 407, 10), False),
        ("piano", np.arange(7, 407, 10), False),
        ("id", np.arange(40) // 2, False),
        ("id", np.arange(40) + 0.5, False),
        ("id", np.arange(10), False),
        ("name", [f"row {i}" for i in range(40)], True),
    ],
)
def test_which_columns_name_their_rows(tmp_path, name, values, left_out):
    rows = len(values)
    pd.DataFrame({name: values, "y": np.sin(np.arange(rows))}).to_csv(tmp_path / "t.csv", index=False)
    data = load_table(str(tmp_path / "t.csv"), Chosen())
    found = without_ids(data, Chosen())
    assert found.left_out == ((name,) if left_out else ()) and (found.ids is not None) == left_out
    assert without_ids(data, Chosen(), {name}).left_out == ()
