"""The reproductions of partitions: their numbers hold, and their figures are drawn."""

import json

import numpy as np
import pytest
from PIL import Image

from girih_papers import registry
from girih_papers.partition_discovery import triangulate

FIGURES = {
    "partition-discovery": {"walk.png", "layers.png", "triangulation.png"},
    "mas-surface": {"surfaces.png"},
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("name", FIGURES)
def test_numbers_and_figures(name, quick, tmp_path):
    result = registry.run(name, tmp_path, quick=quick, progress=False)
    written = json.loads((tmp_path / "result.json").read_text())
    assert written.keys() == result.keys() and written["settings"]["seeds"][0] == 0
    assert result["prior_mass_error"] < 1e-10
    if name == "mas-surface":
        assert result["largest_gap"] < 1e-7 and result["largest_map_error"] < 1e-10
    else:
        assert result["cells_not_reached"] == result["points_without_cell"] == 0
        assert result["triangulation_mass_error"] < 1e-9
    assert set(result["figures"]) == FIGURES[name] == {path.name for path in tmp_path.glob("*.png")}
    for figure in result["figures"]:
        with Image.open(tmp_path / figure) as image:
            assert min(image.size) > 150 and np.asarray(image.convert("L")).std() > 5


def test_triangles_fill_the_polygon():
    angle = np.linspace(0.0, 2.0 * np.pi, 7, endpoint=False)
    triangles = triangulate(np.stack((2.0 * np.cos(angle), np.sin(angle)), 1))
    a, b = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    area = 0.5 * (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])
    assert len(triangles) == 5 and (area > 0).all()
    assert area.sum() == pytest.approx(7.0 * np.sin(2.0 * np.pi / 7.0))
