"""What a `TableModel` says of rows, in words and numbers: the strangest ones and why, gaps, settings, columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from girih.datasets.texts import Written, write
from girih.tables import Setting, TableModel
from girih.tables.conditional import Conditional
from girih.tables.conditioned import TableConditional
from girih.tables.mixture import distinct_masks
from girih.tables.outliers import through

_DRAWS = 6000  # rows drawn in all to say what is usual where some entries are missing
_FEWEST, _MOST = 16, 300  # for each pattern of gaps
_PATTERNS = 1000
_INTERVAL = (0.05, 0.95)
_REASONS = 3  # columns that are named for a strange row
_STRANGE = 40  # rows that are told of, of which the first stand in the report


@dataclass(frozen=True)
class TablePage:
    """A `TablePage` holds what the page is about.

    Attributes:
        model: fitted.
        rows: as it takes them.
        entries: the same as objects, `(N, D)`.
        names: of the columns.
        missing: which entries are, `(N, D)`.
        written: by column, how its numbers are written where not plainly: dates are shown as such.
        labels: names of the rows, where they have any.
    """

    model: TableModel
    rows: object
    entries: NDArray[Any]
    names: Sequence[str]
    missing: NDArray[np.bool_]
    written: Mapping[str, Written] = field(default_factory=dict)
    labels: Sequence[object] = ()

    @cached_property
    def scored(self) -> Scored:
        """How strange each row is."""
        return scored_rows(self.model, self.rows)

    @cached_property
    def strange(self) -> list[Strange]:
        """The strangest rows, a tenth of all and from 10 to 40; the report and the explorer share them."""
        return strangest(self, max(10, min(_STRANGE, len(self.entries) // 10)))

    def label(self, row: int) -> str:
        """The number of a row, from 0, and its name where it has one."""
        return f"{row} ({text_of(self.labels[row])})" if len(self.labels) else str(row)

    def text(self, place: int, value: float, digits: int = 6) -> str:
        """A number of a column as text, or the day that it stands for."""
        written = self.written.get(self.names[place], "plain")
        return write(float(value), written) if "date" in written else f"{float(value):.{digits}g}"

    def interval(self, place: int, low: float, high: float) -> str:
        """Two numbers of a column with what is between."""
        return f"{self.text(place, low, 4)} to {self.text(place, high, 4)}"

    def entry(self, row: int, place: int) -> str:
        """An entry as text."""
        value = self.entries[row, place]
        dated = "date" in self.written.get(self.names[place], "")
        return self.text(place, value) if dated and value == value else text_of(value)

    def numbers(self) -> list[tuple[str, int, NDArray[np.float64]]]:
        """The columns of numbers: name, place in x, and the entries, atoms included, NaN where missing."""
        out = []
        for place, item in enumerate(self.model.columns_.items):
            if item.x is not None:
                values = [
                    np.nan if gap else float(v)
                    for v, gap in zip(self.entries[:, place], self.missing[:, place], strict=True)
                ]
                out.append((self.names[place], item.x, np.array(values)))
        return out


class Reason(NamedTuple):
    """A `Reason` is a cell that makes its row strange.

    Attributes:
        column: its name.
        value: the entry, as text.
        below: how far `log p` of the entry given the rest of its row is below its mean in that column, nats. Unlike
            `log p` it does not depend on the units of the columns, and so compares them.
        usual: what the entry is given the rest, as text.
    """

    column: str
    value: str
    below: float
    usual: str


class Strange(NamedTuple):
    """A strange row.

    Attributes:
        row: its place, from 0.
        log_p: nats.
        surprise: how far `log_p` is below its mean over rows with the same entries, in standard deviations.
        nats: by column, as `TableModel.explain`.
        reasons: the columns that make it strange, the strangest first.
    """

    row: int
    log_p: float
    surprise: float
    nats: NDArray[np.float64]
    reasons: list[Reason]


class Scored(NamedTuple):
    """How strange rows are.

    Attributes:
        log_p: nats, `(N,)`.
        surprise: how far it is below its mean over rows with the same entries, in standard deviations, `(N,)`.
    """

    log_p: NDArray[np.float64]
    surprise: NDArray[np.float64]


class Gap(NamedTuple):
    """A missing entry.

    Attributes:
        row: its place, from 0.
        column: the name of its column.
        value: what it is filled with, as text.
        interval: what holds it with probability 0.9, or the probability of the category, as text.
    """

    row: int
    column: str
    value: str
    interval: str


def scored_rows(model: TableModel, rows: object) -> Scored:
    """How strange rows are.

    A row of which more is known has another density than one of which less is known. So each is compared with rows that
    the model draws, of which the same entries are known. Rows of the fit are judged by the models that have not seen
    them, as a strange row that was learned looks less strange.
    """
    log_p = model.score_held_out(rows)
    x, codes = model.columns_.read(rows)
    return Scored(log_p, _surprise(model, x, codes, log_p))


def strangest(page: TablePage, count: int, scored: Scored | None = None) -> list[Strange]:
    """The strangest rows: those whose `log p` is furthest below usual, see `scored_rows`.

    Args:
        page: the model and its rows.
        count: how many.
        scored: in place of `page.scored`.
    """
    model, rows = page.model, page.rows
    log_p, surprise = page.scored if scored is None else scored
    x, codes = model.columns_.read(rows)
    worst = np.argsort(-surprise, kind="stable")[:count]
    at = torch.as_tensor(worst.copy())
    nats = model.explain(taken(rows, worst), held_out=True)
    seen = ~page.missing[worst]
    below = model._usual_reasons() - nats
    order = np.where(seen, -below, np.inf).argsort(1, kind="stable")[:, :_REASONS]
    pairs = [(n, int(j)) for n in range(len(worst)) for j in order[n] if seen[n, j]]
    usual = _given_the_rest(page, x[at], codes[at], pairs)
    out: list[Strange] = []
    for n, row in enumerate(worst.tolist()):
        reasons = [
            Reason(page.names[j], page.entry(row, j), float(below[n, j]), usual[n, j]) for m, j in pairs if m == n
        ]
        out.append(Strange(row, float(log_p[row]), float(surprise[row]), nats[n], reasons))
    return out


def gaps(page: TablePage, count: int) -> list[Gap]:
    """The first missing entries, with what they are filled with and how sure that is."""
    model, names = page.model, page.names
    places = np.argwhere(page.missing)[:count]
    if not len(places):
        return []
    some = np.unique(places[:, 0])
    given = model.condition(taken(page.rows, some))
    low, high = given.quantile(_INTERVAL)
    mean, chances = given.mean, cache(given.probabilities)
    out: list[Gap] = []
    for row, j in places.tolist():
        item, n = model.columns_.items[j], int(np.searchsorted(some, row))
        if item.x is not None:
            out.append(Gap(row, names[j], page.text(j, mean[n, j], 4), page.interval(j, low[n, j], high[n, j])))
        elif item.code is not None and item.size == len(item.levels):
            value, chance = _likeliest(chances(item.name), n)
            out.append(Gap(row, names[j], value, f"probability {chance:.0%}"))
        elif item.code is not None:
            out.append(Gap(row, names[j], text_of(item.constant), "as in every row"))
    return out


def setting_text(setting: Setting | Mapping[str, Any]) -> str:
    """Describe a mixture in words: a `Setting`, or a line of `TableModel.cv_results_`."""
    if isinstance(setting, Setting):
        components, kinks, tied = setting.components, setting.kinks, setting.tied
        kind, bend, alike = setting.kind, setting.bend, setting.shared
    else:
        components, kinks, tied = setting["components"], setting["kinks"], setting["tied"]
        kind, bend, alike = setting["noise"], setting["transformed"], setting.get("shared_bends", False)
    what = "curve" if kinks else "Gaussian"
    noise = {"full": "full", "diagonal": "diagonal", "spherical": "spherical", "low_rank": "low-rank"}[kind]
    shared = " shared by all" if tied and components > 1 else ""
    text = f"{components} {what}{'s' if components > 1 else ''}"
    text += f" with {kinks} kinks" if kinks else ""
    text += " and the same bends" if alike else ""
    text += f", {noise} {'noise' if kinks else 'covariance'}{shared}"
    return text + (", columns transformed" if bend else "")


def weighty(model: TableModel) -> list[tuple[str, float, float]]:
    """The settings that carry weight: in words, the weight, and the held-out score on the first folds, nats a row."""
    results = model.cv_results_
    lines = [dict(zip(results, values, strict=True)) for values in zip(*results.values(), strict=True)]
    kept = sorted((line for line in lines if line["weight"] > 0.0), key=lambda line: -line["weight"])
    out: list[tuple[str, float, float]] = []
    for line in kept:
        text = setting_text(line)
        ridge = f", kink ridge {line['kink_ridge']:g}" if line["kinks"] and line["kink_ridge"] != 1.0 else ""
        floor = f", noise prior {line['noise_prior']:g}" if line["noise_prior"] != 0.01 else ""
        out.append((text + ridge + floor, float(line["weight"]), float(line["mean_test_score"])))
    return out


def text_of(value: object) -> str:
    """An entry of a table."""
    if isinstance(value, (float, np.floating)):
        return f"{float(value):.6g}"
    return str(value)


def _surprise(model: TableModel, x: Tensor, codes: Tensor, log_p: NDArray[np.float64]) -> NDArray[np.float64]:
    masks, which = distinct_masks(model._known(x, codes))
    if len(masks) > _PATTERNS:  # rows of which as many entries are known are held to be alike
        sizes, first = np.unique(masks.sum(1).numpy(), return_index=True)
        which = torch.as_tensor(np.searchsorted(sizes, masks.sum(1).numpy()))[which]
        masks = masks[torch.as_tensor(first)]
    S = int(np.clip(_DRAWS // len(masks), _FEWEST, _MOST))
    drawn = model._anything().sample(S, torch.Generator().manual_seed(0))
    xs, cs = drawn[0][:, 0], drawn[1][:, 0]
    means, deviations = torch.zeros(len(masks)), torch.ones(len(masks))
    for place, mask in enumerate(masks):
        usual = model._log_prob(*through(model, mask, xs, cs))
        means[place], deviations[place] = usual.mean(), usual.std()
    out = (means[which].numpy() - log_p) / np.maximum(deviations[which].numpy(), 1e-3)
    return np.asarray(out, dtype=np.float64)


def _given_the_rest(
    page: TablePage, x: Tensor, codes: Tensor, pairs: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], str]:
    """What entries are, given the others of their rows, in words."""
    model = page.model
    if not pairs:
        return {}
    at = torch.tensor([n for n, _ in pairs])
    folds = model._unseen.folds_of(x, codes)[at]
    x, codes = x[at].clone(), codes[at].clone()
    for place, (_, j) in enumerate(pairs):
        item = model.columns_.items[j]
        if item.x is not None:
            x[place, item.x] = torch.nan
        if item.code is not None:
            codes[place, item.code] = -1
    out: dict[tuple[int, int], str] = {}
    for ensemble, some in model._unseen.parts(model._ensemble, folds):
        given = TableConditional(model.columns_, Conditional(ensemble, x[some], codes[some], model._atoms))
        low, high = given.quantile(_INTERVAL)
        chances = cache(given.probabilities)
        for place, pair in enumerate(some.tolist()):
            n, j = pairs[pair]
            item = model.columns_.items[j]
            if item.x is not None:
                out[n, j] = page.interval(j, low[place, j], high[place, j])
            elif item.size == len(item.levels):
                value, chance = _likeliest(chances(item.name), place)
                out[n, j] = f"{value} ({chance:.0%})"
            else:
                out[n, j] = f"always {text_of(item.constant)}"
    return out


def _likeliest(chances: Mapping[Any, NDArray[np.float64]], row: int) -> tuple[str, float]:
    value = max(chances, key=lambda label: float(chances[label][row]))
    return text_of(value), float(chances[value][row])


def taken(rows: object, places: NDArray[np.intp]) -> object:
    """Some of the rows, in a table of the same kind."""
    if isinstance(rows, list):
        return [rows[place] for place in places.tolist()]
    return rows.iloc[places] if hasattr(rows, "iloc") else rows[places]  # type: ignore[index]
