"""Draws docs/images/architecture.png from the imports: `python docs/draw_architecture.py`.

The rows are the layers of `[tool.importlinter]` in pyproject.toml, a box is a folder with its files and lines, a line
stands for imports that go down, thicker where there are more of them.
"""

from __future__ import annotations

import ast
import tomllib
from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "girih"
WIDTH, HEIGHT = 1.9, 0.52
BOX = {"fc": "#eef3f8", "ec": "#33475b", "zorder": 2}


def layers() -> list[list[str]]:
    """The folders of each layer, from the top; modules with an underscore stand in one box."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    rows = [[name.strip().removeprefix("girih.") for name in layer.split("|")] for layer in contract["layers"]]
    top = [row for row in rows if not row[0].startswith("_") and row != ["errors"]]
    return [*top, ["checks, files, errors"]]


def home(path: Path) -> str:
    """The box that a file belongs to."""
    first = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    return "checks, files, errors" if first.startswith("_") or first in ("errors", "experiments") else first


def imports(path: Path) -> set[str]:
    """The boxes that a file imports from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("girih."):
            name = (node.module or "").split(".")[1]
            found.add(home(SOURCE / name))
    return found


def main() -> None:
    """Count, place and draw."""
    files, lines, arrows = Counter[str](), Counter[str](), Counter[tuple[str, str]]()
    for path in SOURCE.rglob("*.py"):
        box = home(path)
        files[box] += 1
        lines[box] += path.read_text().count("\n")
        arrows.update((box, other) for other in imports(path) if other != box)
    place = {}
    rows = layers()
    for height, row in enumerate(reversed(rows)):
        for index, name in enumerate(row):
            place[name] = ((index - (len(row) - 1) / 2) * (WIDTH + 0.6), height * 1.1)
    figure = Figure(figsize=(10, 9), layout="constrained")
    ax = figure.add_subplot()
    for (start, end), count in arrows.items():
        if start in place and end in place and end != "checks, files, errors":
            (x0, y0), (x1, y1) = place[start], place[end]
            ax.plot([x0, x1], [y0 - HEIGHT / 2, y1 + HEIGHT / 2], color="#8899aa", lw=0.4 + 0.12 * count, alpha=0.7)
    for name, (x, y) in place.items():
        corner = (x - WIDTH / 2, y - HEIGHT / 2)
        ax.add_patch(FancyBboxPatch(corner, WIDTH, HEIGHT, boxstyle="round,pad=0.04", **BOX))
        ax.text(x, y + 0.08, name, ha="center", va="center", fontsize=11, zorder=3)
        about = f"{files[name]} file{'s' * (files[name] > 1)}, {lines[name]:,} lines"
        ax.text(x, y - 0.15, about, ha="center", va="center", fontsize=8, color="#445", zorder=3)
    ax.set_axis_off()
    ax.autoscale_view()
    figure.savefig(ROOT / "docs" / "images" / "architecture.png", dpi=130)


if __name__ == "__main__":
    main()
