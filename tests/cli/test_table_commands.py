"""`girih fit` and what follows it, for tables with text, categories and holes."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import girih as library
from effort import try_few_settings
from girih.datasets import load
from tests.cli.conftest import QUICK, call


def trees(n=70, seed=0):
    """Text that names the rows, numbers, whole numbers, text, booleans, holes."""
    rng = np.random.default_rng(seed)
    t = rng.normal(size=n)
    table = pd.DataFrame(
        {
            "name": [f"tree {i}" for i in range(n)],
            "height": 20.0 + 5.0 * t + rng.normal(size=n),
            "age": np.round(60 + 20 * t + 4 * rng.normal(size=n)).astype(int),
            "kind": np.where(t > 0.3, "oak", np.where(rng.random(n) < 0.5, "fir", "elm")),
            "tame": rng.random(n) < 0.5,
        }
    )
    holes = rng.random((n, 5)) < 0.1
    holes[:, [0, 4]] = False
    return table.mask(pd.DataFrame(holes, columns=table.columns))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A folder with `trees.csv`, `trees.parquet`, and `fit`, the results of a fit; and what the command said."""
    folder = tmp_path_factory.mktemp("trees")
    trees().to_csv(folder / "trees.csv", index=False)
    trees().astype({"age": "Int64"}).to_parquet(folder / "trees.parquet")
    with pytest.MonkeyPatch.context() as patch:
        try_few_settings(patch)
        done = call("fit", folder / "trees.csv", "--out", folder / "fit", "--seed", 1)
    assert done.code == 0, done.err
    return folder, done


def test_fit_writes_model_numbers_pictures_and_report(fitted):
    folder, _ = fitted
    names = {path.name for path in (folder / "fit").iterdir()}
    assert names == {
        "model", "metrics.json", "data.json", "scores.csv", "report.html", "explorer.html", "pairs.png", "curve.png",
        ".girih.json",
    }  # fmt: skip
    model = library.load(folder / "fit" / "model")
    assert isinstance(model, library.TableModel) and model.random_state == 1 and model.verbose == 0
    X = trees().drop(columns="name")
    metrics = json.loads((folder / "fit" / "metrics.json").read_text())
    assert metrics["kind"] == "table" and metrics["held_out_nll"] == -model.held_out_score_
    assert metrics["best"]["held_out_nll"] == -model.best_.held_out_score_ and metrics["best"]["bic"] == model.bic(X)
    assert metrics["nll_per_row"] == pytest.approx(-model.score(X), abs=1e-12)
    assert sum(one["weight"] for one in metrics["weights"]) == pytest.approx(1.0)
    assert metrics["left_out"] == ["name"] and metrics["data"]["missing"] == int(X.isna().sum().sum())
    assert [one["column"] for one in metrics["columns"]] == list(X) and len(metrics["rivals"]) == 2
    scores = pd.read_csv(folder / "fit" / "scores.csv")
    np.testing.assert_allclose(scores["log_p"], model.score_samples(X), atol=1e-12)
    assert {"z", "z_deviation", "missing"} < set(scores)


def test_fit_says_what_it_did(fitted):
    folder, done = fitted
    assert "'name' holds a different text in each row: it names the rows and is left out" in done.err
    assert "are missing" in done.err and "are integrated out" in done.err
    for text in ("category with 3 levels: 'elm', 'fir', 'oak'", "boolean", "average", "best single model", "weight"):
        assert text in done.out
    assert f"Report:   {folder / 'fit' / 'report.html'}" in done.out and "One Gaussian" in done.out


def test_the_report_is_one_page_with_all_of_it(fitted):
    page = (fitted[0] / "fit" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 == page.count("src=")
    assert not any(text in page for text in ("http", "url(", "<script", "@import"))
    assert re.findall('href="(.*?)"', page) == ["explorer.html"] and "On rows that it had not seen" in page
    for text in ("Held-out NLL", "GaussianMixture", "Columns", "Settings that carry weight", "Imputed entries",
                 "90 % interval", "The strangest rows, and why", "along one curve"):  # fmt: skip
        assert text in page
    code = re.search(r"<pre>(.*?)</pre>", page, re.DOTALL)[1].replace("&#39;", "'")
    names = {}
    exec(code, names)
    assert names["model"].score_samples(names["rows"]).shape == (70,)


def test_score_finds_columns_by_name(girih, fitted):
    folder, _ = fitted
    trees()[["tame", "kind", "age", "name", "height"]].to_csv("t.csv", index=False)
    done = girih("score", folder / "fit", "t.csv", "--out", "s", "--json")
    assert done.code == 0 and done.json["rows"] == 70 and "left_out" not in done.json
    expected = pd.read_csv(folder / "fit" / "scores.csv")
    np.testing.assert_allclose(pd.read_csv("s/scores.csv")["log_p"], expected["log_p"], atol=1e-12)
    assert girih("score", folder / "fit", folder / "trees.csv").out.startswith("trees.csv: 70 rows")


def test_impute_keeps_the_table_and_writes_deviations_and_draws(girih, fitted):
    folder, _ = fitted
    data = folder / "trees.csv"
    done = girih("impute", folder / "fit", data, "--std", "--draws", 3, "--seed", 2, "--out", "o", "--json")
    assert done.code == 0 and done.json["files"] == ["imputed.csv", "deviations.csv", "draws.csv"]
    before, after = pd.read_csv(data), pd.read_csv("o/imputed.csv")
    gaps = before.isna()
    assert done.json["filled"] == gaps.sum().sum() > 0 and not after.isna().any().any()
    assert list(after) == list(before) and (after.mask(gaps).isna() == gaps).all().all()
    old, new = data.read_text().splitlines(), Path("o/imputed.csv").read_text().splitlines()
    assert all(a == b for a, b, gap in zip(old[1:], new[1:], gaps.any(axis=1), strict=True) if not gap)
    model = library.load(folder / "fit" / "model")
    filled, deviation = model.impute(before.drop(columns="name"), return_std=True)
    np.testing.assert_array_equal(after["height"], filled["height"])
    assert (after["kind"] == filled["kind"]).all()
    written = pd.read_csv("o/deviations.csv")
    assert list(written) == list(before)[1:]
    np.testing.assert_allclose(written.to_numpy(), deviation, atol=1e-12)
    drawn = pd.read_csv("o/draws.csv")
    assert list(drawn)[:2] == ["draw", "row"] and len(drawn) == 210 and not drawn.isna().any().any()
    one = drawn[drawn["draw"] == 1].reset_index(drop=True)
    kept = ~gaps["height"]
    np.testing.assert_allclose(one["height"][kept], before["height"][kept])
    assert (one["kind"][~gaps["kind"]] == before["kind"][~gaps["kind"]]).all()


def test_parquet_keeps_its_types(girih, fitted):
    folder, _ = fitted
    done = girih("impute", folder / "fit", folder / "trees.parquet", "--out", "o", "--json")
    assert done.code == 0 and done.json["files"] == ["imputed.csv", "imputed.parquet"]
    before, after = pd.read_parquet(folder / "trees.parquet"), pd.read_parquet("o/imputed.parquet")
    assert list(after) == list(before) and after["tame"].dtype == before["tame"].dtype
    assert pd.api.types.is_string_dtype(after["kind"]) and not after["kind"].isna().any()
    assert (after["name"] == before["name"]).all()


def test_sample_is_a_table_of_the_same_columns(girih, fitted):
    folder, _ = fitted
    done = girih("sample", folder / "fit", "-n", 7, "--seed", 3, "--out", "s", "--json")
    assert done.code == 0 and done.json["files"] == ["samples.csv"] and done.json["columns"] == 4
    drawn = pd.read_csv("s/samples.csv")
    assert list(drawn) == ["height", "age", "kind", "tame"] and len(drawn) == 7
    assert set(drawn["kind"]) <= {"oak", "fir", "elm"} and drawn["tame"].dtype == bool
    assert (drawn["age"] == drawn["age"].round()).all()
    girih("sample", folder / "fit", "-n", 7, "--seed", 3, "--out", "again")
    assert Path("again/samples.csv").read_text() == Path("s/samples.csv").read_text()


def test_anomalies_finds_the_strange_row_and_says_why(girih, fitted):
    folder, _ = fitted
    fresh = trees(40, seed=3)
    fresh.loc[5, ["height", "age", "kind"]] = [29.0, 30, "oak"]  # each of them usual
    fresh.to_csv("fresh.csv", index=False)
    done = girih("anomalies", folder / "fit", "fresh.csv", "-n", 4, "--out", "a", "--json")
    assert done.code == 0 and len(done.json["anomalies"]) == 4
    worst = done.json["anomalies"][0]
    assert worst["row"] == 5 and {worst["reasons"][0]["column"], worst["reasons"][1]["column"]} == {"height", "age"}
    written = pd.read_csv("a/anomalies.csv")
    assert written["row"].tolist() == [one["row"] for one in done.json["anomalies"]]
    model = library.load(folder / "fit" / "model")
    X = fresh.drop(columns="name")
    nats = model.explain(X.iloc[[5]])[0]
    np.testing.assert_allclose(written.iloc[0][["nats of height", "nats of age"]].astype(float), nats[:2], atol=1e-12)
    assert "height = 29" in written["reasons"][0] and "given the rest" in written["reasons"][0]
    shown = girih("anomalies", folder / "fit", folder / "trees.csv")
    assert "below usual" in shown.out and "Anomalies:" in shown.out


def test_info(girih, fitted):
    facts = girih("info", fitted[0] / "fit", "--json").json
    assert facts["kind"] == "table" and facts["columns"][2].startswith("kind: category with 3 levels")
    assert facts["members"] == 10 * len(facts["weights"]) and facts["rows"] == 70
    assert "best single model" in girih("info", fitted[0] / "fit").out


@pytest.mark.slow
def test_arrays_and_built_in_tables(girih, tmp_path):
    np.save("t.npy", np.where(np.random.default_rng(0).random((30, 2)) < 0.1, np.nan, load("circle", n=30).X))
    done = girih("fit", "t.npy", "--json", "--out", "m")
    assert done.code == 0 and done.json["kind"] == "table" and done.json["columns"][0]["column"] == "x0"
    done = girih("impute", "m", "t.npy", "--std", "--draws", 2, "--out", "o", "--json")
    assert done.json["files"] == ["imputed.csv", "imputed.npy", "deviations.csv", "deviations.npy", "draws.csv",
                                  "draws.npy"]  # fmt: skip
    assert not np.isnan(np.load("o/imputed.npy")).any() and np.load("o/draws.npy").shape == (2, 30, 2)
    assert girih("sample", "m", "-n", 5, "--out", "s", "--json").json["files"] == [
        "samples.csv", "samples.npy", "samples.png",
    ]  # fmt: skip
    assert girih("score", "m", "circle", "--rows", 20, "--json").json["rows"] == 20


@pytest.mark.parametrize(
    ("options", "kind"),
    [((), "table"), (("--model", "dgn"), "dgn"), (("--hidden", "3"), "dgn"), (("--noise", "isotropic"), "dgn")],
)
def test_what_is_fitted(girih, monkeypatch, options, kind):
    """An option that only generators have chooses one, though it is what is there by default."""

    class ChosenError(Exception):
        pass

    def stop(which):
        def stopped(*arguments, **named):
            raise ChosenError(which)

        return stopped

    monkeypatch.setattr("girih.cli.table_fit.fit_table", stop("table"))
    monkeypatch.setattr("girih.cli.fitting.fit", stop("dgn"))
    with pytest.raises(ChosenError, match=kind):
        girih("fit", "circle", "--out", "o", *options)
    with pytest.raises(ChosenError, match="dgn"):
        girih("fit", "digits-3", "--out", "o")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fit", "t.csv", "--model", "table", "--latent-dim", "2"), "--latent-dim is an option of a single generator"),
        (("fit", "t.csv", "--kind", "a"), "--kind takes NAME=number"),
        (("fit", "t.csv", "--kind", "b=number"), "no column 'b'"),
        (("fit", "t.csv", "--kind", "a=category", "--model", "dgn"), "--kind is an option of tables"),
        (("fit", "digits", "--kind", "a=category"), "these are images"),
        (("fit", "t.csv", "--columns", "a", "--drop", "c"), "exclude each other"),
        (("fit", "t.csv", "--columns", "b"), "no column 'b'"),
        (("fit", "t.csv", "--rows", "99"), "99 rows were asked"),
        (("fit", "names.csv"), "nothing but columns that name its rows"),
        (("fit", "names.csv", "--columns", "n"), "--kind n=category"),
        (("fit", "mixed.csv"), "text among numbers"),
        (("anomalies", "generator", "t.csv"), "needs the model of a table"),
    ],
)
def test_refusals(girih, arguments, message):
    pd.DataFrame({"a": np.arange(5.0), "c": np.arange(5.0) ** 2}).to_csv("t.csv", index=False)
    pd.DataFrame({"n": [f"row {i}" for i in range(30)]}).to_csv("names.csv", index=False)
    pd.DataFrame({"a": ["1", "2", "x", "3"], "b": [1.0, 2.5, 3.1, 4.2]}).to_csv("mixed.csv", index=False)
    library.save(library.DGN(library.mlp([1, 3, 2], seed=0), noise=0.1), "generator")
    done = girih(*arguments)
    assert done.code == 2 and message in done.error and "Traceback" not in done.err


def test_rows_that_do_not_fit_the_model(girih, fitted):
    folder, _ = fitted
    trees().drop(columns="age").to_csv("t.csv", index=False)
    assert "t.csv has no column 'age'" in girih("score", folder / "fit", "t.csv").error
    trees().assign(kind="palm").to_csv("t.csv", index=False)
    for command in ("score", "impute", "anomalies"):
        assert "'palm'" in girih(command, folder / "fit", "t.csv").error
    np.save("t.npy", np.zeros((3, 2)))
    assert "t.npy has 2 columns, and the model was fitted to 4" in girih("score", folder / "fit", "t.npy").error


@pytest.mark.slow
def test_kinds_and_columns_are_kept(girih):
    table = pd.DataFrame({"a": [1, 2, 3] * 10, "b": np.arange(30.0), "c": np.arange(30.0)})
    table.to_csv("t.csv", index=False)
    done = girih("fit", "t.csv", "--columns", "b,a", "--kind", "a=category", "--json")
    assert done.code == 0 and done.json["out"] == "girih-out/t"
    kinds = {one["column"]: one["kind"] for one in done.json["columns"]}
    assert kinds == {"b": "number", "a": "category"}
    assert library.load("girih-out/t/model").kinds == {"a": "category"}


@pytest.mark.slow
def test_a_table_in_place_of_a_generator_leaves_nothing_of_it(girih):
    assert girih("fit", "circle", "--rows", 20, "--out", "o", *QUICK).code == 0
    done = girih("fit", "circle", "--rows", 20, "--out", "o", "--json")
    assert done.code == 0 and done.json["entropy"] is not None
    names = {path.name for path in Path("o").iterdir()}
    assert "nll_curve.csv" not in names and "pairs.png" in names and "manifold.png" not in names


def test_ctrl_c_writes_nothing(girih, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("girih.TableModel.fit", interrupt)
    done = girih("fit", "circle", "--out", "o")
    assert done.code == 130 and "interrupted" in done.err and not Path("o/model").exists()


def test_select_says_that_fit_chooses(girih):
    assert "chooses by itself now" in " ".join(girih("select", "--help").out.split())


def test_score_says_how_rare_rows_are_and_why(girih, fitted):
    folder, _ = fitted
    table = trees()
    table.loc[5, "height"] = 300.0
    table.to_csv("strange.csv", index=False)
    done = girih("score", folder / "fit", "strange.csv", "--out", "s", "--threshold", 0.002, "--json")
    scores = pd.read_csv("s/scores.csv", keep_default_na=False)
    model = library.load(folder / "fit" / "model")
    rows = table.drop(columns="name")
    log_p = model.score_held_out(rows)
    order = np.argsort(log_p, kind="stable")
    assert scores["percentile"].iloc[order[0]] == pytest.approx(100 / 70) and scores["percentile"].max() == 100.0
    assert scores["p_value"][5] == 0.001 and scores["strange"].sum() == done.json["strange"] >= 1
    assert "height = 300 (given the rest: " in scores["reasons"][5]
    assert ((scores["reasons"] != "") == scores["strange"]).all()
    # the p-values of a detector of the same draws
    detector = library.DGNOutlierDetector(score="joint")
    detector.model_, detector._seed, detector.n_features_in_, detector.offset_ = model, 0, 4, 0.0
    detector.feature_names_in_ = model.feature_names_in_
    patterns = len(rows.isna().drop_duplicates())
    np.testing.assert_allclose(scores["p_value"], detector.p_value(rows, min(999, 300_000 // patterns)))


def test_condition_says_what_columns_are_given_others(girih, fitted):
    folder, _ = fitted
    model = library.load(folder / "fit" / "model")
    done = girih("condition", folder / "fit", "--given", "kind=OAK", "--given", "age=61", "--draws", 4, "--out", "c")
    table = pd.read_csv("c/condition.csv")
    given = model.condition({"kind": "oak", "age": 61})
    height = table[table["column"] == "height"].iloc[0]
    assert height["mean"] == pytest.approx(given.mean[0, 0]) and height["deviation"] == pytest.approx(given.std[0, 0])
    assert height["95%"] == pytest.approx(given.quantile(0.95)[0, 0]) and "Given kind = oak, age = 61" in done.out
    tame = table[table["column"] == "tame"].astype({"value": str}).set_index("value")["probability"]
    chances = {str(value): float(p[0]) for value, p in given.probabilities("tame").items()}
    assert tame.to_dict() == pytest.approx(chances) and set(table["column"]) == {"height", "tame"}
    drawn = pd.read_csv("c/draws.csv")
    assert (drawn["kind"] == "oak").all() and (drawn["age"] == 61).all() and len(drawn) == 4
    whole = girih("condition", folder / "fit", "--json").json["columns"]
    assert {one["column"] for one in whole} == {"height", "age", "kind", "tame"}


def test_samples_have_the_entries_that_are_given(girih, fitted):
    known = ("--given", "kind=elm", "--given", "tame=true")
    assert girih("sample", fitted[0] / "fit", "-n", 6, *known, "--out", "d").code == 0
    drawn = pd.read_csv("d/samples.csv")
    assert len(drawn) == 6 and (drawn["kind"] == "elm").all() and drawn["tame"].all() and drawn["height"].nunique() == 6


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("kind", "NAME=VALUE"),
        ("size=3", "with one of height, age, kind, tame"),
        ("kind=ash", "one of elm, fir, oak"),
        ("age=old", "takes a number"),
    ],
)
def test_what_is_given_is_checked(girih, fitted, given, words):
    assert words in girih("condition", fitted[0] / "fit", "--given", given).error


def test_info_and_help_load_nothing_slow():
    import subprocess
    import sys

    code = (
        "import sys; sys.argv = ['girih', *sys.argv[1:]]\nfrom girih.cli import main\ntry:\n main()\n"
        "except SystemExit:\n pass\nassert not {'torch', 'numpy', 'pandas'} & set(sys.modules), 'slow'"
    )
    for arguments in (["--help"], ["info"], ["score", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_a_single_generator_says_how_sure_its_fillings_are(girih):
    dgn = library.DGN(library.mlp([1, 3, 2], seed=0), noise=0.1)
    library.save(dgn, "generator")
    x = np.array([[0.3, np.nan], [0.1, 0.2], [np.nan, -0.4]])
    pd.DataFrame(x, columns=["a", "c"]).to_csv("t.csv", index=False)
    done = girih("impute", "generator", "t.csv", "--std", "--draws", 3, "--out", "o", "--json")
    assert done.code == 0 and done.json["files"] == ["imputed.csv", "deviations.csv", "draws.csv"], done.err
    known = dgn.impute(x, return_std=True)[1].numpy()
    assert pd.read_csv("o/deviations.csv").to_numpy() == pytest.approx(known)
    draws = pd.read_csv("o/draws.csv").to_numpy()
    assert draws.shape == (9, 4) and draws[:, :2].tolist() == [[m, n] for m in range(3) for n in range(3)]
    assert draws[:, 2:] == pytest.approx(dgn.impute(x, draws=3, seed=0).reshape(9, 2).numpy())
