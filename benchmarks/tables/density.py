"""The held-out density of one model on one split of a table."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

import girih
from tables.data import Split, Table, split
from tables.records import Key, Record
from tables.rivals import FAMILIES, UNFIT, Density, average, fitted, search

AVERAGED = 8
MODELS = ("girih", "girih_60", *FAMILIES)


def keys(table: str, number: int, models: tuple[str, ...], raw: bool, quick: bool) -> list[Key]:
    """One for each model; `gmm` gives the average of the best as well, under `gmm_average`."""
    return [Key("density", table, number, model, raw=raw, quick=quick) for model in models]


def run(key: Key, table: Table) -> list[tuple[Key, Record]]:
    """Fit and measure."""
    rows = split(table, key.split, key.raw)
    if key.quick:
        rows = Split(rows.train[:150], rows.validation[:60], rows.test[:60], rows.centre, rows.spread)
    if key.model.startswith("girih"):
        return [(key, _girih(rows, rows.both if key.model == "girih" else rows.train))]
    return _rival(key, rows)


def _girih(rows: Split, X: np.ndarray) -> Record:
    start = time.process_time()
    model = girih.TableModel(random_state=0).fit(X)
    seconds = time.process_time() - start
    # From the units of the data to those of the training rows.
    nll = -np.asarray(model.score_samples(rows.test)) - np.log(rows.spread).sum()
    return {"nll": float(nll.mean()), "seconds": seconds, "setting": _described(model)}


def _described(model: object) -> str:
    """How many models were averaged, where it says so."""
    members = getattr(model, "members_", None)
    return "" if members is None else f"{len(members)} members"


def _rival(key: Key, rows: Split) -> list[tuple[Key, Record]]:
    train, validation, test, both = (rows.standard(X) for X in (rows.train, rows.validation, rows.test, rows.both))
    start = time.process_time()
    try:
        ladders = FAMILIES[key.model](len(train), train.shape[1], key.quick)
    except ModuleNotFoundError as error:
        return [(key, {"missing": str(error.name)})]
    found = search(ladders, train, validation)
    searched = time.process_time() - start
    if not found:
        return [(key, {"failed": "no setting could be fitted"})]
    kept = found[: AVERAGED if key.model == "gmm" else 1]
    again: list[Density] = []
    seconds = np.nan
    for one in kept:
        start = time.process_time()
        try:
            again.append(fitted(one.candidate, both, None, one.hint)[0])
        except UNFIT:  # the better of the two fits counts: then it is the first
            again.append(one.density)
        if one is kept[0]:
            seconds = time.process_time() - start

    def record(count: int, setting: str) -> Record:
        return {
            "nll": _nll([one.density for one in kept[:count]], test),
            "nll_refit": _nll(again[:count], test),
            "setting": setting,
            "seconds_search": searched,
            "seconds": seconds,
        }

    out = [(key, record(1, kept[0].candidate.label))]
    if key.model == "gmm":
        out.append((replace(key, model="gmm_average"), record(AVERAGED, "; ".join(o.candidate.label for o in kept))))
    return out


def _nll(densities: list[Density], test: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        return -float(average(densities)(test).mean())
