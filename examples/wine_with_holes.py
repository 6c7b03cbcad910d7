"""Write scikit-learn's wines as a csv file in which every tenth cell is empty: `python wine_with_holes.py wine.csv`."""

import sys

import numpy as np
from sklearn.datasets import load_wine

wines = load_wine()
holes = np.random.default_rng(0).random(wines.data.shape) < 0.1
with open(sys.argv[1], "w") as file:
    print(",".join(wines.feature_names), file=file)
    for row, gone in zip(wines.data.tolist(), holes.tolist(), strict=True):
        print(",".join("" if gap else f"{value:g}" for value, gap in zip(row, gone, strict=True)), file=file)
