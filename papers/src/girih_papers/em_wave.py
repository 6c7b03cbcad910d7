"""EM-DGN, Figs. 7 to 9 of the appendix and Fig. 6 of the second version: a part of a cosine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from girih.plots import BLUE, new_figure, styled
from girih_papers.arrays import Array
from girih_papers.figures import save
from girih_papers.toys import compare_on_toy

# The initial noise variance of all methods: the VAEs end lowest from 1, of 0.03, 0.1, 0.3 and 1.
_NOISE = 1.0


def run(out: Path, quick: bool, seed: int, progress: bool) -> dict[str, Any]:
    """Run it; returns the body of `result.json`."""
    _, result, rows = compare_on_toy("wave", 500, _NOISE, 8, 3, out, quick, seed, progress)
    result["figures"].insert(0, _draw_rows(rows, out))
    return result


@styled
def _draw_rows(rows: Array, out: Path) -> str:
    figure = new_figure(3.5, 2.1)
    ax = figure.add_subplot()
    ax.scatter(rows[:, 0], rows[:, 1], s=5.0, color=BLUE, lw=0, alpha=0.7)
    ax.set_aspect("equal")
    ax.set(xlabel="$x_0$", ylabel="$x_1$")
    return save(figure, out / "data.png")
