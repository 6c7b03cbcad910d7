"""--header and --no-header of every command that reads data."""

import pandas as pd
import pytest

from tests.cli.conftest import QUICK


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    monkeypatch.setattr("girih.report.pictures.draw_fit", lambda *args, **options: [])


@pytest.fixture
def years(tmp_path):
    """Rows below a first line of years."""
    rows = [f"{0.1 * i},{(i * 7) % 5}" for i in range(12)]
    (tmp_path / "years.csv").write_text("\n".join(["2001,2002", *rows[:-1], "0.5,"]) + "\n")
    return "years.csv"


def test_years_are_names_with_a_note_and_both_can_be_said(girih, years):
    done = girih("fit", years, "--out", "a", "--json", *QUICK)
    assert done.code == 0 and done.json["data"]["rows"] == 12 and done.json["settings"]["header"] is None
    assert "looks like years and was taken as names; say --header, or --no-header if it is a row" in done.err
    done = girih("fit", years, "--header", "--out", "a", "--json", *QUICK)
    assert done.json["data"]["rows"] == 12 and "years" not in done.err
    done = girih("fit", years, "--no-header", "--out", "b", "--json", *QUICK)
    assert done.json["data"]["rows"] == 13 and "looks like" not in done.err

    assert girih("score", "a", years, "--header", "--out", "s", "--json").json["rows"] == 12
    assert girih("score", "b", years, "--no-header", "--out", "s", "--json").json["rows"] == 13
    assert girih("impute", "a", years, "--header", "--out", "i", "--json").json["filled"] == 1
    with open("i/imputed.csv") as file:
        assert file.readline() == "2001,2002\n"
    assert girih("impute", "b", years, "--no-header", "--out", "j", "--json").json["rows"] == 13
    assert len(pd.read_csv("j/imputed.csv", header=None)) == 13
    grid = ("--latent-dims", "1", "--hidden", "none", "--no-baselines", "--n-init", "1", "--max-iter", "3")
    assert girih("select", years, "--no-header", "--out", "c", *grid).out.startswith("years.csv: 13 rows")


def test_the_header_is_an_option_of_csv_files(girih):
    done = girih("fit", "circle", "--header")
    assert done.code == 2 and "is an option of csv files" in done.error
    with open("t.npy", "w") as file:
        file.write("x")
    done = girih("fit", "t.npy", "--no-header")
    assert done.code == 2 and "option of csv files" in done.error


def test_comments_and_names_stay_to_the_letter_when_cells_are_filled(girih, tmp_path):
    text = '# made by hand\n"a\nb";c\n' + "".join(f"{i};{i * i}\n" for i in range(9))
    (tmp_path / "t.csv").write_text(text + "3;\n")
    assert girih("fit", "t.csv", "--out", "m", *QUICK).code == 0
    assert girih("impute", "m", "t.csv", "--out", "o").code == 0
    with open("o/imputed.csv") as file:
        found = file.read()
    assert found.startswith(text) and float(found.removeprefix(text).split(";")[1]) > 0.0
