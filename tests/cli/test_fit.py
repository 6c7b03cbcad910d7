import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import girih as library
from girih.cli import explorers
from girih.datasets import load
from girih.em import Scaling
from tests.cli.conftest import QUICK


def test_circle_leaves_model_numbers_pictures_and_report(girih):
    done = girih("fit", "circle", "--rows", 60, "--out", "out/circle", *QUICK)
    assert done.code == 0
    written = {
        "model",
        "metrics.json",
        "data.json",
        "scores.csv",
        "nll_curve.csv",
        "nll_curve.png",
        "manifold.png",
        "marginal.png",
        "posterior.png",
        "partition.png",
        "embedding.png",
        "report.html",
        "explorer.html",
        ".girih.json",
    }
    out = Path("out/circle")
    assert {path.name for path in out.iterdir()} == written
    assert "Report:   out/circle/report.html" in done.out and "manifold.png" in done.out
    assert re.search(r"^note: EM still gained .* --max-iter 6; ", done.err, re.MULTILINE)

    metrics = json.loads((out / "metrics.json").read_text())
    model, X = library.load(out / "model"), load("circle", n=60).X
    log_p = model.score_samples(X)
    assert metrics["nll_per_row"] == pytest.approx(-log_p.mean(), abs=1e-12)
    assert metrics["aic"] == pytest.approx(model.aic(X)) and metrics["bic"] == pytest.approx(model.bic(X))
    assert metrics["entropy"] == pytest.approx(0.26, abs=0.01)
    assert metrics["cells"] == len(model.dgn_.partition) and metrics["settings"]["hidden"] == [3]
    scores = pd.read_csv(out / "scores.csv")
    np.testing.assert_allclose(scores["log_p"], log_p, atol=1e-12)
    np.testing.assert_allclose(scores["z1"], model.transform(X)[:, 0], atol=1e-12)
    curve = pd.read_csv(out / "nll_curve.csv")["nll"]
    assert len(curve) == 7 and all(b <= a for a, b in pairwise(curve))
    assert model.checkpoint is None


def test_the_explorer_takes_as_many_rows_as_there_is_time_for(tmp_path, monkeypatch):
    data = load("circle", n=60)
    est = library.DGNEstimator(hidden=(3,), n_init=1, max_iter=30, tol=1e-2, random_state=0).fit(data.X)

    def rows(seconds):
        monkeypatch.setattr(explorers, "_SECONDS", seconds)
        explorers.explore_fit(tmp_path / "explorer.html", est, data)
        text = (tmp_path / "explorer.html").read_text()
        shown = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
        return shown["rows"]["count"], any("4 of the 60 rows" in note for note in shown["notes"])

    assert rows(1e9) == (60, False) and rows(0.0) == (4, True)


def test_report_is_one_self_contained_page(fitted):
    page = (fitted / "fit" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert page.count("src=") == 5 and not any(text in page for text in ("http", "url(", "<script", "@import"))
    assert re.findall('href="(.*?)"', page) == ["explorer.html"] and "No row was held out" in page
    for text in ("Exact NLL", "AIC", "Missing entries", "girih.load(", "load_frame("):
        assert text in page


def test_report_escapes_what_comes_from_the_data(girih):
    pd.DataFrame({"<b>": np.arange(9.0) ** 2, "y": np.arange(9.0)}).to_csv("<i>.csv", index=False)
    done = girih("fit", "<i>.csv", "--out", "o", *QUICK)
    assert done.code == 0
    with open("o/report.html") as page:
        assert "<i>" not in page.read()


def test_code_in_the_report_runs(fitted):
    page = (fitted / "fit" / "report.html").read_text()
    code = re.search(r"<pre>(.*?)</pre>", page, re.DOTALL)[1].replace("&#39;", "'")
    names = {}
    exec(code, names)
    assert names["model"].score_samples(names["rows"]).shape == (40,)


def test_standardised_fit_is_in_the_units_of_the_data(fitted):
    metrics = json.loads((fitted / "fit" / "metrics.json").read_text())
    model = library.load(fitted / "fit" / "model")
    table = pd.read_csv(fitted / "people.csv").drop(columns="name")
    assert list(model.feature_names_in_) == ["height", "income", "ratio"]
    assert -model.score(table) == pytest.approx(metrics["nll_per_row"], abs=1e-9)
    assert model.nll_curve_[-1] == pytest.approx(metrics["nll_per_row"], abs=1e-9)
    assert metrics["noise"]["shape"] == "diagonal" and metrics["data"]["missing"] == int(table.isna().sum().sum())
    deviation = np.array(metrics["noise"]["deviation_of_columns"])
    assert (deviation < 1.2 * Scaling.of(table).scale.numpy()).all()


def test_columns_of_unlike_scales_are_pointed_out(girih, fitted):
    done = girih("fit", fitted / "people.csv", "--columns", "income,ratio", "--out", "o", *QUICK)
    assert done.code == 0
    assert "ratio varies by" in done.err and "--standardize weighs all alike" in done.err
    assert "entries in" in done.err and "are integrated out" in done.err


def test_images_get_two_layers_a_weight_prior_and_their_own_pictures(images):
    folder, metrics = images
    assert metrics["settings"]["weight_prior"] == "gaussian:0.3"
    assert metrics["pictures"][:2] == ["manifold_images.png", "samples.png"]
    assert (folder / "fit" / "samples.png").stat().st_size > 0
    # fitted in units of the pixel range, kept in pixels
    assert metrics["noise"]["shape"] == "isotropic" and 5 < metrics["noise"]["deviation"] < 120
    from girih.cli import fitting

    assert fitting.default_hidden(load("digits-3")) == (8, 16) and fitting.default_hidden(load("iris")) == (8,)


def test_json_is_one_object_with_the_metrics(images):
    _, metrics = images
    assert {"nll_per_row", "aic", "bic", "n_iter", "converged", "cells", "seconds", "versions", "report"} <= set(
        metrics
    )
    assert set(metrics["seconds"]) == {"import", "load", "fit", "score", "pictures"}


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_other_files_and_options(girih, suffix, monkeypatch):
    monkeypatch.setattr("girih.report.pictures.draw_fit", lambda *args, **options: [])
    X = load("iris", n=30).X
    if suffix == "npy":
        np.save("t.npy", X)
    else:
        pd.DataFrame(X, columns=list("abcd")).to_parquet("t.parquet")
    options = ("--noise", "full", "--hidden", "none", "--learn-prior", "--max-iter", 5, "--n-init", 1)
    done = girih("fit", f"t.{suffix}", "--json", "--weight-prior", "gaussian:5", *options)
    assert done.code == 0 and done.json["out"] == "girih-out/t"
    model = library.load("girih-out/t/model")
    assert model.noise == "full" and model.hidden == () and model.learn_prior
    assert model.weight_prior == "gaussian:5" and hasattr(model, "feature_names_in_") == (suffix == "parquet")


def test_a_second_fit_removes_the_pictures_of_the_first_and_nothing_else(girih, images):
    shutil.copytree(images[0] / "fit", "o")
    with open("o/mine.txt", "w") as file:
        file.write("mine")
    done = girih("fit", "circle", "--rows", 20, "--out", "o", *QUICK)
    assert done.code == 0
    names = {path.name for path in Path("o").iterdir()}
    assert "mine.txt" in names and "manifold_images.png" not in names and "samples.png" not in names


def test_two_latents_from_fit_to_imputation(girih, fitted):
    options = ("--drop", "name", "--standardize", "--latent-dim", 2, "--acceleration", "none", "--batch-size", 20)
    done = girih("fit", fitted / "people.csv", *options, "--out", "two", "--json", *QUICK)
    assert done.code == 0, done.err
    assert done.json["settings"]["acceleration"] == "none" and done.json["settings"]["batch_size"] == 20
    scored = girih("score", "two", fitted / "people.csv", "--json")
    assert 0.0 < scored.json["left_out"] <= 1e-10
    assert -scored.json["mean"] == pytest.approx(done.json["nll_per_row"])
    with open("girih-out/two-score-people/scores.csv") as file:
        assert file.readline().startswith("row,log_p,z1,z1_deviation,z2,z2_deviation")
    assert girih("sample", "two", "-n", 3, "--json").code == 0
    assert girih("impute", "two", fitted / "people.csv", "--json").json["filled"] > 0


def test_four_latents_are_refused_before_anything_is_read(girih):
    done = girih("fit", "absent.csv", "--latent-dim", 4)
    assert done.code == 2 and "use a generator with S <= 3, or, for this one, girih.bracket" in done.error
