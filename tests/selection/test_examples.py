"""The worked examples run, and write what they print."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
GIRIH = ("TableModel", "one generator, S = 1")
METHODS = {
    "density": [*GIRIH, "GaussianMixture, defaults", "GaussianMixture, by BIC", "FactorAnalysis, defaults"],
    "anomaly": [*GIRIH, "GaussianMixture, defaults", "GaussianMixture, by BIC", "IsolationForest, defaults"],
    "imputation": [*GIRIH, "KNNImputer, defaults", "IterativeImputer, defaults", "mean of the column"],
}


@pytest.mark.parametrize("topic", METHODS)
def test_quick(topic, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLES)
    page = tmp_path / "page.md"
    page.write_text(f"above\n<!-- table: {topic} -->\nold\n<!-- end: {topic} -->\nbelow\n")
    arguments = [topic, "--quick", "--latent-dims", "1", "--out", str(tmp_path / "out"), "--docs", str(page)]
    monkeypatch.setattr(sys, "argv", arguments)
    spec = importlib.util.spec_from_file_location("__main__", EXAMPLES / f"{topic}.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    monkeypatch.delitem(sys.modules, "common", raising=False)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert list(result["results"]) == METHODS[topic] and result["seeds"] == 1
    values = [value for tables in result["results"].values() for numbers in tables.values() for value in numbers]
    assert len(values) == 5 and all(abs(value) < 10 for value in values)
    printed = capsys.readouterr().out.strip().splitlines()[2:]
    text = page.read_text().splitlines()
    assert text[0] == "above" and text[-1] == "below" and text[2:-2] == printed
