"""The page to look around in that `girih fit` and `girih inspect` leave beside the report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from girih.cli.table_data import TableData
from girih.errors import CellLimitError
from girih.explorer import Wanted, explorer_of
from girih.explorer.rows import chosen_rows
from girih.geometry.priors import UniformPrior
from girih.report import InspectedRows, Inspection

if TYPE_CHECKING:
    from girih.datasets import Dataset
    from girih.em import DGNEstimator
    from girih.inference import DGN
    from girih.networks import Trace
    from girih.report.table_numbers import TablePage

EXPLORER = "explorer.html"
_ROWS = {1: 50_000, 2: 5_000, 3: 600}  # by S
_SECONDS = 15.0  # for their posteriors: at S = 3 with a thousand cells, one takes most of a second
_TIMED = 4
_PAIRS = 5  # columns whose pairs are shown, as in the pictures of the report


def explore_table(path: Path, page: TablePage, data: TableData) -> None:
    """Write the page of a table, with what the report knows of its rows."""
    items = page.model.columns_.items
    numbers = [item.name for item in items if item.x is not None][:_PAIRS]
    beside = None if data.ids is None else {name: data.ids[name].to_numpy() for name in data.ids.columns}
    dates = frozenset(name for name, written in data.findings.written.items() if "date" in written)
    wanted = Wanted(columns=numbers, title=data.name, beside=beside, dates=dates, page=page)
    explorer_of(page.model, data.rows, wanted).save(path)


def explore_fit(path: Path, est: DGNEstimator, dataset: Dataset) -> None:
    """Write the page of a fitted generator."""
    rows = np.asarray(dataset.X, dtype=np.float64)
    most = rows_in_time(est.dgn_, rows, _ROWS[est.dgn_.latent_dim])
    wanted = Wanted(columns=dataset.feature_names, image_shape=dataset.image_shape, most=most, title=dataset.name)
    explorer_of(est, rows, wanted).save(path)


def rows_in_time(dgn: DGN, rows: NDArray[np.float64], most: int) -> int:
    """How many rows, `most` at most, have their posteriors in some seconds, by the time that a few of them take."""
    if len(rows) <= 2 * _TIMED:
        return most
    some = rows[chosen_rows(len(rows), 2 * _TIMED)]
    for few in (some[:_TIMED], some[_TIMED:]):  # what the first need is there for the second
        start = time.perf_counter()
        _ = dgn.posterior(few).covariance
        taken = time.perf_counter() - start
    return int(np.clip(_SECONDS * _TIMED / taken, _TIMED, most))


def explore_decoder(path: Path, trace: Trace, found: Inspection, rows: InspectedRows | None, wanted: Wanted) -> str:
    """Write the page of a decoder, with its prior and the rows that were looked at; the reason where there is none."""
    prior = found.cells.prior
    if isinstance(prior, UniformPrior) or prior is None:
        return "there is no explorer for a uniform latent prior"
    if found.note and found.latent_dim <= 2:
        return "there is no explorer, since there are too many cells for a page"
    try:
        wanted = wanted._replace(prior=prior.covariance)
        if rows is not None:
            beside = None if rows.log_p is None else {"log p": rows.log_p.cpu().numpy()}
            wanted = wanted._replace(latents=rows.latents.cpu().numpy(), beside=beside)
        explorer_of(trace, None if rows is None else rows.rows.cpu().numpy(), wanted).save(path)
    except CellLimitError:
        return "there is no explorer, since there are too many cells for a page"
    return ""
