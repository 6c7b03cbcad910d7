"""The picture of a comparison: what is drawn, and what is left out."""

import dataclasses

import numpy as np
import pytest

import girih
from girih.errors import ParameterError
from girih.plots import plot_selection
from girih.selection import find_elbow

X = girih.datasets.load("circle", n=60, seed=0).X


@pytest.fixture(scope="module")
def result():
    return girih.select_model(X, hidden=((2,), (3,), (4,)), baselines=True, max_iter=5, n_init=1, refit=False)


def labels(figure):
    return [text.get_text() for text in figure.axes[0].get_yticklabels()]


def test_one_row_for_each_candidate_the_best_in_bold(result, tmp_path):
    figure = plot_selection(result)
    (ax,) = figure.axes
    assert labels(figure)[:3] == ["S = 1, hidden 2", "S = 1, hidden 3", "S = 1, hidden 4"]
    assert labels(figure)[4] == "FactorAnalysis, k = 1"
    bold = [text.get_text() for text in ax.get_yticklabels() if text.get_fontweight() == "bold"]
    assert bold == [f"S = 1, hidden {result.best.candidate.widths}"]
    drawn = {line.get_label(): line.get_xdata() for line in ax.lines}
    np.testing.assert_allclose(drawn["NLL, training rows"], [row.nll for row in result.rows])
    np.testing.assert_allclose(drawn["BIC / 2N"], [row.bic_per_row / 2 for row in result.rows])
    figure.savefig(tmp_path / "selection.png")


def test_the_worst_are_left_out_and_counted(result):
    figure = plot_selection(result, most=1)
    assert len(labels(figure)) == 3 and "2 worse ones not drawn" in figure.axes[0].get_xlabel()
    with pytest.raises(ParameterError, match="at least 1"):
        plot_selection(result, most=0)


def test_the_elbow_has_its_own_panels(result, tmp_path):
    wider = [dataclasses.replace(r.candidate, latent_dim=2) for r in result.rows[:3]]
    more = [
        dataclasses.replace(row, candidate=candidate, log_p=row.log_p + 1.0, held_out=row.held_out - 1.0)
        for row, candidate in zip(result.rows, wider, strict=False)
    ]
    rows = [*result.rows[:3], *more]
    figure = plot_selection(dataclasses.replace(result, rows=rows, elbow=find_elbow(rows, "bic")))
    assert len(figure.axes) == 3
    assert figure.axes[2].get_xlabel() == "latent dimension S (suggested: 2)"
    figure.savefig(tmp_path / "elbow.png")
