"""Exact numbers for each row of a table, in chunks, and the csv files that hold them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from girih._extras import require

if TYPE_CHECKING:
    import pandas as pd

    from girih.inference import DGN

# Rows of one posterior at a time: its arrays are rows by cells.
_CHUNK = 8192


def score_rows(dgn: DGN, X: NDArray[np.float64]) -> tuple[pd.DataFrame, float]:
    """`log p(x)` of each row, its latent (posterior mean and deviation), and how many entries are missing.

    The second result is the certificate: the largest share of any p(x) that may have been left out.
    """
    pandas = require("pandas", "tables")
    log_p, mean, deviation, left_out = [], [], [], 0.0
    for start in range(0, len(X), _CHUNK):
        posterior = dgn.posterior(X[start : start + _CHUNK])
        log_p.append(posterior.log_evidence.cpu().numpy())
        left_out = max(left_out, float(posterior.left_out.max()))
        mean.append(posterior.mean.cpu().numpy())
        deviation.append(posterior.variance.sqrt().cpu().numpy())
    table: dict[str, Any] = {"row": np.arange(len(X)), "log_p": np.concatenate(log_p)}
    z, spread = np.concatenate(mean), np.concatenate(deviation)
    for s in range(dgn.latent_dim):
        table[f"z{s + 1}"] = z[:, s]
        table[f"z{s + 1}_deviation"] = spread[:, s]
    missing = np.isnan(X).sum(1)
    if missing.any():
        table["missing"] = missing
    return pandas.DataFrame(table), left_out


def summarise(scores: pd.DataFrame, least: int = 5) -> dict[str, Any]:
    """Mean, quantiles and the least probable rows."""
    log_p = scores["log_p"].to_numpy()
    order = np.argsort(log_p, kind="stable")[:least]
    return {
        "rows": len(log_p),
        "mean": float(log_p.mean()),
        "standard_deviation": float(log_p.std()),
        "quantiles": {f"{q:g}": float(np.quantile(log_p, q)) for q in (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 1.0)},
        "least_probable": [{"row": int(i), "log_p": float(log_p[i])} for i in order],
    }


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """A csv file, written atomically; missing entries are empty cells."""
    from girih._files import atomic_path

    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)


def write_npy(path: Path, array: NDArray[np.float64]) -> None:
    """An npy file, written atomically."""
    from girih._files import atomic_path

    with atomic_path(path) as temporary:
        np.save(temporary, array, allow_pickle=False)
