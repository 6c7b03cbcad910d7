"""The table of a comparison, the best row of it, and the elbow in the latent dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from girih._extras import require
from girih.em import DGNEstimator
from girih.selection.candidates import Candidate, Outcome

if TYPE_CHECKING:
    import pandas as pd

CRITERIA = ("bic", "aic", "held_out")


@dataclass(frozen=True)
class Row:
    """A row holds the numbers of one candidate, means over the folds.

    Attributes:
        candidate: what was fitted.
        n_parameters: free parameters.
        nll: exact NLL of the training rows, nats per row.
        held_out: exact NLL of the held-out rows, nats per row; NaN without any.
        held_out_error: standard error of that mean over rows.
        aic, bic: on the training rows, in total.
        aic_per_row, bic_per_row: the same by training row.
        unexplained: noise variance over data variance, mean over columns; NaN for a mixture.
        seconds: of all its fits.
        converged: whether all its fits converged.
        components: of a baseline that chooses them, the largest of the folds.
        log_p: `log p(x)` of each held-out row.
    """

    candidate: Candidate
    n_parameters: int
    nll: float
    held_out: float
    held_out_error: float
    aic: float
    bic: float
    aic_per_row: float
    bic_per_row: float
    unexplained: float
    seconds: float
    converged: bool
    components: int
    log_p: NDArray[np.float64] = field(repr=False)

    @classmethod
    def of(cls, candidate: Candidate, outcomes: list[Outcome]) -> Row:
        """Make a row from the fits of all folds."""
        log_p = np.concatenate([np.asarray(one.held_out, dtype=np.float64) for one in outcomes])
        n = np.array([one.n_train for one in outcomes])
        k = np.array([one.n_parameters for one in outcomes])
        total = np.array([one.log_likelihood for one in outcomes])
        aic, bic = 2.0 * k - 2.0 * total, k * np.log(n) - 2.0 * total
        error = float(log_p.std(ddof=1)) / math.sqrt(len(log_p)) if len(log_p) > 1 else math.nan
        return cls(
            candidate=candidate,
            n_parameters=round(float(k.mean())),
            nll=float(-(total / n).mean()),
            held_out=float(-log_p.mean()) if len(log_p) else math.nan,
            held_out_error=error,
            aic=float(aic.mean()),
            bic=float(bic.mean()),
            aic_per_row=float((aic / n).mean()),
            bic_per_row=float((bic / n).mean()),
            unexplained=float(np.mean([one.unexplained for one in outcomes])),
            seconds=sum(one.seconds for one in outcomes),
            converged=all(one.converged for one in outcomes),
            components=max(one.components for one in outcomes),
            log_p=log_p,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for tables and JSON."""
        c, own = self.candidate, self.candidate.is_dgn
        names = ("n_parameters", "nll", "held_out", "held_out_error", "aic", "bic", "aic_per_row", "bic_per_row")
        numbers = {name: getattr(self, name) for name in (*names, "unexplained", "seconds", "converged")}
        what = {
            "model": c.model,
            "latent_dim": c.latent_dim if own else None,
            "hidden": c.widths if own else None,
            "noise": c.noise if own else None,
            "components": self.components or None,
        }
        return what | numbers


@dataclass(frozen=True)
class ElbowPoint:
    """A point of the elbow is the best candidate of one latent dimension.

    Attributes:
        latent_dim: S.
        row: the candidate of this S with the best criterion.
        gap: how much higher its score is than that of the best S, nats per row (0 for the best).
        gap_error: standard error of the gap, from paired held-out rows; NaN without any.
        explained: share of the data's variance that is not noise.
    """

    latent_dim: int
    row: Row
    gap: float
    gap_error: float
    explained: float


@dataclass(frozen=True)
class Elbow:
    """The elbow shows how the best candidate improves with the latent dimension.

    Attributes:
        points: one for each S, in order.
        suggested: the smallest S whose held-out NLL is within one standard error of the best S, the error of the
            paired difference between rows; without held-out rows, the S with the best criterion.
    """

    points: list[ElbowPoint]
    suggested: int


@dataclass(frozen=True)
class SelectionResult:
    """You read from it what `select_model` found: the table, the best row, the elbow and the refitted estimator.

    Attributes:
        rows: one for each candidate, in the order of the grid, baselines last.
        criterion: "bic", "aic" or "held_out".
        best: the generator that it prefers (baselines are shown, not chosen).
        elbow: the best against the latent dimension.
        estimator: the best, fitted to all rows; `None` with `refit=False`.
        skipped: what was left out and why, by name.
        resumed: fits that were taken from the output folder.
    """

    rows: list[Row]
    criterion: str
    best: Row
    elbow: Elbow
    estimator: DGNEstimator | None
    skipped: dict[str, str]
    resumed: int

    @property
    def table(self) -> list[dict[str, Any]]:
        """The rows as plain values."""
        return [row.as_dict() | {"best": row is self.best} for row in self.rows]

    def frame(self) -> pd.DataFrame:
        """The table as a pandas frame."""
        pandas = require("pandas", "tables")
        return pandas.DataFrame(self.table)

    def as_dict(self) -> dict[str, Any]:
        """Give everything but the estimator as plain values, for JSON."""
        points = [
            {
                "latent_dim": point.latent_dim,
                "label": point.row.candidate.label,
                "held_out": point.row.held_out,
                "criterion": score(point.row, self.criterion),
                "gap": point.gap,
                "gap_error": point.gap_error,
                "explained": point.explained,
            }
            for point in self.elbow.points
        ]
        return {
            "criterion": self.criterion,
            "best": self.best.as_dict(),
            "suggested_latent_dim": self.elbow.suggested,
            "elbow": points,
            "skipped": self.skipped,
            "resumed": self.resumed,
            "table": self.table,
        }


def score(row: Row, criterion: str) -> float:
    """The criterion compares this: lower is better."""
    return float(getattr(row, criterion))


def find_elbow(rows: list[Row], criterion: str) -> Elbow:
    """The best generator of each latent dimension, and the smallest dimension that is as good as the best."""
    best: dict[int, Row] = {}
    for row in rows:
        S = row.candidate.latent_dim
        if row.candidate.is_dgn and (S not in best or score(row, criterion) < score(best[S], criterion)):
            best[S] = row
    paired = all(len(row.log_p) for row in best.values())
    top = min(best.values(), key=lambda row: row.held_out if paired else score(row, criterion))
    points = []
    for S, row in sorted(best.items()):
        if paired:
            difference = top.log_p - row.log_p
            gap = float(difference.mean())
            error = float(difference.std(ddof=1)) / math.sqrt(len(difference)) if len(difference) > 1 else math.nan
        else:
            per_row = {"aic": "aic_per_row", "bic": "bic_per_row"}[criterion]
            gap, error = 0.5 * (score(row, per_row) - score(top, per_row)), math.nan
        points.append(ElbowPoint(S, row, gap, error, 1.0 - row.unexplained))
    near = [point.latent_dim for point in points if paired and point.gap <= point.gap_error]
    return Elbow(points, min([*near, top.candidate.latent_dim]))
