"""`em-applications`: it runs small; girih's choices see nothing of what is scored, and its rivals' are the best."""

import json

import numpy as np
import pytest
from PIL import Image

from girih.errors import ParameterError
from girih_papers import em_applications, registry
from girih_papers.em_applications import GENERATORS, HEADS, MIXTURE, QUICK, TABLE, anomalies, best, methods_of

REPRODUCTION = "em-applications"


def test_it_runs_small_and_writes_what_it_says(result):
    folder, found = result
    with Image.open(folder / "applications.png") as image:
        assert image.width > 300 and len(np.unique(np.asarray(image.convert("L")))) > 10
    written = json.loads((folder / "result.json").read_text())["tasks"]
    assert set(written) == set(HEADS) == set(found["tasks"])
    for task in ("anomaly", "imputation"):
        assert list(written[task]["iris"]) == list(methods_of(task))
        for method, numbers in found["tasks"][task]["iris"].items():
            assert f"| {method} | {numbers['mean']:.3f} |" in (folder / "tables.md").read_text()
    assert written["comparison"]["iris"]["any of them"]["mean"] >= 0.0
    assert written["imputation"]["iris"][TABLE]["mean"] < written["imputation"]["iris"]["mean of the column"]["mean"]


def test_girih_chooses_by_bic_and_rivals_in_hindsight():
    found = {"scores": np.array([0.9, 0.7, 0.8]), "bic": np.array([3.0, 2.0, 1.0])}
    assert best("anomaly", next(iter(GENERATORS)), found) == 0.8
    assert best("anomaly", MIXTURE, found) == 0.9
    assert best("imputation", "nearest neighbours", found) == 0.7


def test_the_cost_of_a_choice_is_that_over_the_best_of_all_kinds():
    kinds = list(GENERATORS)
    columns = {
        "scores": [[3.0, 2.0], [1.0, 4.0], [5.0, 6.0]],
        "bic": [[1.0, 9.0], [2.0, 9.0], [9.0, 9.0]],
        "aic": [[9.0, 9.0], [1.0, 9.0], [9.0, 9.0]],
        "validation": [[9.0, 9.0], [9.0, 9.0], [9.0, 1.0]],
    }
    results = {
        ("comparison", "iris", kind, 0): {name: np.array(values[i]) for name, values in columns.items()}
        for i, kind in enumerate(kinds)
    }
    costs = em_applications._comparison(results, QUICK)["iris"]
    assert [value for (value,) in costs.values()] == [2.0, 0.0, 5.0, 2.5]


@pytest.mark.parametrize("table", ["iris", "wine", "breast_cancer", "diabetes"])
def test_anomalies_are_of_another_kind_and_not_trained_on(table):
    train, test, outliers = anomalies(table, 0)
    np.testing.assert_allclose(train.mean(0), 0.0, atol=1e-9)
    np.testing.assert_allclose(train.std(0), 1.0)
    assert train.shape[1] == test.shape[1] == outliers.shape[1]
    if table == "diabetes":  # every value by itself is ordinary
        np.testing.assert_allclose(np.sort(outliers, 0), np.sort(test, 0))


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="no tables 'moon' here; known are iris"):
        registry.run("em-applications", tmp_path, quick=True, progress=False, changes={"tables": "moon"})
