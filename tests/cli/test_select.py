"""`girih select`: the table, the files, the model, going on, and what it refuses."""

import json

import numpy as np
import pandas as pd
import pytest

from tests.cli.conftest import make_table

QUICK = ("--latent-dims", "1", "--hidden", "none 3", "--max-iter", "5", "--n-init", "1")


@pytest.fixture(scope="module")
def selected(tmp_path_factory):
    from tests.cli.conftest import call

    folder = tmp_path_factory.mktemp("selected")
    make_table(60).to_csv(folder / "people.csv", index=False)
    done = call("select", folder / "people.csv", "--drop", "name", "--out", folder / "out", *QUICK)
    assert done.code == 0, done.err
    return folder, done


def test_files_and_table(selected):
    folder, done = selected
    names = {path.name for path in (folder / "out").iterdir()}
    assert names == {
        ".girih.json",
        "data.json",
        "fits",
        "model",
        "selection.csv",
        "selection.json",
        "selection.png",
    }
    table = pd.read_csv(folder / "out" / "selection.csv")
    assert table["hidden"].fillna("none").tolist() == ["none", "3"] and table["best"].sum() == 1
    value = json.loads((folder / "out" / "selection.json").read_text())
    assert value["criterion"] == "bic" and value["skipped"].keys() == {"GaussianMixture", "FactorAnalysis"}
    assert "held-out NLL" in done.out and "Best by BIC: S = 1" in done.out
    assert "GaussianMixture is left out: it cannot take missing entries" in done.err


def test_the_best_model_scores_rows(girih, selected):
    folder, _ = selected
    done = girih("score", folder / "out", folder / "people.csv", "--json")
    assert done.code == 0 and done.json["rows"] == 60 and np.isfinite(done.json["mean"])
    assert girih("impute", folder / "out", folder / "people.csv").code == 0


def test_it_goes_on_from_finished_fits(girih):
    first = girih("select", "circle", "--rows", "50", "--json", *QUICK)
    assert first.code == 0 and first.json["resumed"] == 0 and first.json["out"] == "girih-out/circle-select"
    assert [row["model"] for row in first.json["table"]] == ["DGN", "DGN", "GaussianMixture", "FactorAnalysis"]
    again = girih("select", "circle", "--rows", "50", "--json", *QUICK, "--hidden", "2", "--criterion", "held-out")
    assert again.json["resumed"] == 4 and again.json["criterion"] == "held_out"
    assert [row["hidden"] for row in again.json["table"][:3]] == ["none", "3", "2"]


def test_ctrl_c_keeps_finished_fits(girih, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("girih.selection.select.fit_candidate", interrupt)
    done = girih("select", "circle", "--rows", "50", *QUICK)
    assert done.code == 130 and "finished fits are kept" in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--latent-dims", "9"], "exact inference covers"),
        (["--test-fraction", "1"], "--test-fraction must be"),
        (["--test-fraction", "0", "--criterion", "held-out"], "give --test-fraction or --folds"),
        (["--folds", "100"], "too few for 100 folds"),
        (["--columns", "nothing"], "no column 'nothing'"),
    ],
)
def test_refusals(girih, options, message):
    done = girih("select", "circle", "--rows", "50", *options, "--json")
    assert done.code == 2 and message in done.error and done.json == {"error": done.error}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hidden", "8 x"], "not a list of widths"),
        (["--latent-dims", "1,x"], "not a list of latent dimensions"),
        (["--criterion", "loo"], "loo"),
        (["--folds", "1"], "folds"),
    ],
)
def test_usage(girih, options, message):
    done = girih("select", "circle", *options)
    assert done.code == 2 and message in " ".join(done.err.split()) and "Traceback" not in done.err
