"""Writes a real table with holes: the wines of scikit-learn, a tenth of whose entries were removed.

python examples/holes.py wine.csv
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_wine

SHARE = 0.1


def main(path: Path) -> None:
    """Write the table to a csv file."""
    table = load_wine(as_frame=True)
    frame = table.data.assign(cultivar=np.array(["Barolo", "Grignolino", "Barbera"])[table.target])
    removed = np.random.default_rng(0).random(frame.shape) < SHARE
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.mask(removed).to_csv(path, index=False)
    print(f"{path}: {len(frame)} wines, {frame.shape[1]} columns, {removed.sum()} entries removed")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
