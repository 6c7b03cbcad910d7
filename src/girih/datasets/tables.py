"""Small real tables that come with scikit-learn, in their measured units."""

from __future__ import annotations

import numpy as np

from girih.datasets.dataset import Dataset


def iris() -> Dataset:
    """150 flowers, 4 lengths in cm, labelled by species."""
    return _table("iris", "150 iris flowers: lengths and widths of sepals and petals in cm")


def wine() -> Dataset:
    """178 wines, 13 chemical measurements, labelled by cultivar."""
    return _table("wine", "178 wines of three cultivars: 13 chemical measurements")


def breast_cancer() -> Dataset:
    """569 tumours, 30 measurements of cell nuclei, labelled malignant or benign."""
    return _table("breast_cancer", "569 breast tumours: 30 measurements of cell nuclei")


def diabetes() -> Dataset:
    """442 patients, 10 measurements in their own units (not scikit-learn's rescaled ones)."""
    return _table("diabetes", "442 diabetes patients: 10 measurements in their own units", scaled=False)


def _table(name: str, description: str, **options: bool) -> Dataset:
    import sklearn.datasets

    bunch = getattr(sklearn.datasets, f"load_{name}")(**options)
    # the target of diabetes is a number, not a class
    labels = np.asarray(bunch.target_names)[bunch.target] if "target_names" in bunch else None
    return Dataset(np.array(bunch.data, dtype=np.float64), list(bunch.feature_names), name, description, labels=labels)
