"""What others reach on the folds of a `TableModel`: one Gaussian, and scikit-learn's `GaussianMixture`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.utils import check_random_state
from torch import Tensor

from girih.tables import Member, Mixture, Setting, TableModel
from girih.tables.basis import Basis
from girih.tables.choice import fold_count, folds
from girih.tables.fitter import Fitter
from girih.tables.setting import Table

_SIZES = (1, 2, 3, 4, 6, 8)
_KINDS = ("full", "diag")
_ROWS, _COLUMNS = 4000, 60  # beyond which they would take long


class Rival(NamedTuple):
    """A `Rival` is another model and what it reaches.

    Attributes:
        name: what it is.
        nll: held out, nats a row.
        meaning: how it was fitted.
    """

    name: str
    nll: float
    meaning: str


def rivals(model: TableModel, rows: object) -> list[Rival]:
    """Held-out NLL of rivals on the folds by which the model was chosen; none where that would take long.

    Args:
        model: fitted to these rows, all of weight 1, with a whole number as `random_state`.
        rows: as the model takes them.
    """
    x, codes = model.columns_.read(rows)
    kept = ~x.isnan().all(1) | (codes >= 0).any(1)
    table = Table(
        x[kept], codes[kept], torch.ones(int(kept.sum()), dtype=torch.float64), model.columns_.width,
        model.columns_.levels,
    )  # fmt: skip
    D = table.x.shape[1]
    if len(table) > _ROWS or D > _COLUMNS or not D:
        return []
    seed = int(check_random_state(model.random_state).randint(2**31 - 1))
    parts = folds(len(table), fold_count(len(table), model.n_folds), seed)
    splits = [(table.without(part), table.take(part)) for part in parts]
    offset = table.mean(model.columns_.log_offset(table.codes))
    fitters = [Fitter(train, seed) for train, _ in splits]
    plain = [fitter.fit(Setting()) for fitter in fitters]
    one = -offset - _mean([member.log_prob(*_of(held)) for member, (_, held) in zip(plain, splits, strict=True)])
    nll, size, kind = min(_mixtures(fitters, plain, [held for _, held in splits], seed), key=lambda found: found[0])
    besides = " Categories count beside it as if independent." if codes.shape[1] else ""
    holes = bool(table.x.isnan().any())
    filled = " It takes no holes, so they were filled first by the means of one Gaussian." if holes else ""
    what = f"{size} component{'s' if size > 1 else ''}, {kind} covariance"
    return [
        Rival(
            "One Gaussian",
            one,
            "What factor analysis and IterativeImputer assume, at best; fitted to the incomplete rows." + besides,
        ),
        Rival(
            "GaussianMixture",
            nll - offset,
            f"scikit-learn's, the best of many sizes, chosen on the held-out rows themselves, which favours it: {what}."
            f"{filled}{besides}",
        ),
    ]


def _of(table: Table) -> tuple[Tensor, Tensor]:
    return table.x, table.codes


def _mean(log_p: Sequence[Tensor]) -> float:
    return float(torch.cat(list(log_p)).mean())


def _mixtures(
    fitters: Sequence[Fitter], plain: Sequence[Member], held: Sequence[Table], seed: int
) -> list[tuple[float, int, str]]:
    """The held-out NLL of each size and kind; categories have the tables of the one Gaussian."""
    filled = [fitter.scaled(False).completed.numpy() for fitter in fitters]
    out: list[tuple[float, int, str]] = []
    for kind in _KINDS:
        for size in _SIZES:
            if min(map(len, filled)) < 2 * size:
                continue
            log_p = []
            for y, alone, rows in zip(filled, plain, held, strict=True):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    one = GaussianMixture(size, covariance_type=kind, reg_covar=1e-3, random_state=seed).fit(y)
                noise = torch.as_tensor(one.covariances_)
                noise = noise if kind == "full" else torch.diag_embed(noise)
                maps = torch.as_tensor(one.means_)[:, :, None]
                tables = tuple(each.expand(size, -1) for each in alone.mixture.tables)
                mixture = Mixture(Basis.plain(), torch.as_tensor(one.weights_), maps, noise, tables)
                log_p.append(Member(mixture, alone.scales).log_prob(*_of(rows)))
            out.append((-_mean(log_p), size, kind))
    return out
