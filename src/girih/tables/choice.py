r"""Which mixtures make the density of a table, and with which weights: by held-out likelihood.

Every setting is fitted to the rows outside a fold and judged on the rows of the fold. Plain mixtures come first, as
they cost little; the best of each kind are bent. Settings are compared on the first folds, as many as hold 80 rows, and
those that carry weight there are fitted on all. They are weighted by EM on their held-out log-likelihoods (stacking),
and what is averaged in the end are their models of all folds: each row was held out once, no model has seen all rows,
and an average of exact densities is an exact density.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from girih._jobs import jobs, side_by_side
from girih._progress import Counted
from girih.tables.finished import Finished
from girih.tables.fitter import CURVE, SCREENED, Fitter, fit_apart
from girih.tables.member import Ensemble, Member
from girih.tables.mixture import distinct_masks
from girih.tables.setting import Setting, Table

_SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
_ROWS_EACH = 8  # rows that a component needs
_KINKS = 5  # of the curves of a mixture
_RIDGES, _FINER, _SIDE_BY_SIDE = (0.1, 0.01, 1e-3), (19,), (2, 3, 4, 6)  # what a curve goes on to
_ALIKE_BENT = (3, 6, 12)  # curves side by side with the same bends
_SMALL = 300  # rows up to which there are 10 folds
_JUDGES, _MOST_JUDGES = 80, 4  # held-out rows by which settings are compared, and the most folds that have them
_DOUBT = 3.0  # standard errors by which the best must be ahead for a setting not to be fitted on more folds
_TRIED, _ALIKE, _KEPT = 12, 2, 8  # settings on two folds, of them alike, and on all
_APART = 0.3  # nats a row by which one choice of scales decides for the curves too
_WORTH = 0.01  # nats a row, for which the next rung of a ladder is tried
_LIGHT = 0.02  # the least weight that is worth a member
_FACTORS = 6  # columns from which low-rank noise is tried
_LARGE, HELD_OUT = 4000, 5000  # rows beyond which samples do, and the most that are held out then
SAMPLED = 4 * SCREENED  # rows that larger settings, and those that are kept, are fitted to first
EXPECTED = 60  # settings that are compared, about
_COSTLY = 3e6  # patterns of holes times D^3 from which fewer settings are tried


def fold_count(rows: int, asked: int | None = None) -> int:
    """How many folds so many rows are divided into, if none were asked for."""
    return min(rows, asked or (10 if rows <= _SMALL else 5))


def folds(count: int, number: int, seed: int) -> list[Tensor]:
    """So many disjoint sets of rows that together are all."""
    order = torch.as_tensor(np.random.default_rng(seed).permutation(count))
    return [part.sort().values for part in order.tensor_split(number)]


def stacked(log_p: Tensor, weight: Tensor, iterations: int = 200) -> Tensor:
    """The weights `(M,)` with which models of held-out `log_p (N, M)` are likeliest as a mixture, by EM."""
    M = log_p.shape[1]
    shares = log_p.new_full((M,), 1.0 / M)
    for _ in range(iterations):
        each = torch.softmax(log_p + shares.log(), 1)
        shares = (weight[:, None] * each).sum(0) + 0.5 / M
        shares = shares / shares.sum()
    return shares


@dataclass(frozen=True)
class Choice:
    """The density that was chosen.

    Attributes:
        ensemble: of the models of all folds.
        settings: of its kinds of model, M.
        weights: `(M,)`.
        held_out: `(N, M)`, the log-likelihood of each held-out row under the model that did not see it.
        weight: `(N,)`, of those rows.
        folds: `(N,)`, the fold of each row, where each was held out by some members of the ensemble; else None.
        screened: all settings with their mean held-out log-likelihood on the folds that judge, best first.
    """

    ensemble: Ensemble
    settings: tuple[Setting, ...]
    weights: Tensor
    held_out: Tensor
    weight: Tensor
    folds: Tensor | None
    screened: tuple[tuple[Setting, float], ...]


class _Search:
    """Fits to the rows outside each fold, each made once and judged on the rows of the fold."""

    def __init__(
        self,
        splits: Sequence[tuple[Table, Table]],
        seed: int,
        report: Counted,
        finished: Finished,
        name: str,
        judges: int = 1,
    ) -> None:
        self.finished, self.name = finished, name
        self._made: dict[tuple[Setting, int], Member] = {}  # ahead of the search
        self.fitters = [Fitter(train, seed) for train, _ in splits]
        self.held = [held for _, held in splits]
        self.report, self.judges = report, judges  # the first folds, by which settings are compared
        self.members: dict[tuple[Setting, int], tuple[Member, Tensor]] = {}
        self.scores: dict[Setting, float] = {}
        self.leader: Setting | None = None  # the best of them

    def member(self, setting: Setting, fold: int) -> tuple[Member, Tensor]:
        """The model, and `log p` of the rows that it did not see."""
        if (setting, fold) not in self.members:
            self.add(setting, fold, self.fitters[fold].fit)
        return self.members[setting, fold]

    def add(self, setting: Setting, fold: int, fit: Callable[[Setting], Member]) -> None:
        """Fit and judge a model."""
        held, made = self.held[fold], self._made.pop((setting, fold), None)
        member = self.finished.member(self._of(fold), setting, lambda: fit(setting) if made is None else made)
        self.members[setting, fold] = member, member.log_prob(held.x, held.codes)
        if made is None:
            self._tell(setting)

    def _tell(self, setting: Setting) -> None:
        self.report.step(f"{setting.components} components, {setting.kind} noise")

    def _of(self, fold: int) -> str:
        return f"{self.name}, fold {fold}"

    def ahead(self, settings: Iterable[Setting], number: int) -> None:
        """Make the fits that the search will ask for, on the first folds, side by side where there are several jobs.

        The search goes its way as without them, to the same numbers; some may be made for nothing.
        """
        if jobs(self.finished.n_jobs) == 1:
            return
        pairs = [(setting, fold) for setting in dict.fromkeys(settings) for fold in range(number)]
        known = {*self.members, *self._made}
        left = [(s, k) for s, k in pairs if (s, k) not in known and not self.finished.has(self._of(k), s)]
        tasks = [(self.fitters[fold], setting) for setting, fold in left]
        for place, (member, plain, curves) in side_by_side(fit_apart, tasks, self.finished.n_jobs):
            setting, fold = left[place]
            self._made[setting, fold] = member
            self.fitters[fold].learn(plain, curves)
            self._tell(setting)

    def score(self, setting: Setting) -> float:
        """The mean held-out log-likelihood on the folds that judge.

        A setting that the best so far beats beyond doubt on the first of these folds is not fitted on the others: its
        score is that of the best less the difference on the rows that both have seen.
        """
        if setting not in self.scores:
            self.ahead([setting], self.judges)
            fold, ahead = 0, -math.inf
            while fold < self.judges and ahead < _DOUBT:
                fold += 1
                behind, ahead = self._behind(setting, fold)
            best = 0.0 if self.leader is None else self.scores[self.leader]
            self.scores[setting] = best - behind
            if self.leader is None or behind < 0.0:
                self.leader = setting
        return self.scores[setting]

    def _behind(self, setting: Setting, number: int) -> tuple[float, float]:
        """By how much the best is ahead on the first folds, nats a row, and in standard errors of that."""
        weight = torch.cat([held.weight for held in self.held[:number]])
        log_p = torch.cat([self.member(setting, fold)[1] for fold in range(number)])
        if self.leader is None:
            return -float((log_p * weight).sum() / weight.sum()), -math.inf
        lead = torch.cat([self.member(self.leader, fold)[1] for fold in range(number)]) - log_p
        mean = (lead * weight).sum() / weight.sum()
        error = ((lead - mean).square() * weight.square()).sum().sqrt().clamp(min=1e-300) / weight.sum()
        return float(mean), float(mean / error)

    def best(self, count: int) -> list[Setting]:
        """The best settings so far."""
        return sorted(self.scores, key=self.scores.__getitem__, reverse=True)[:count]

    def tried(self) -> list[Setting]:
        """The best settings, no more than two that differ in how they are kept from learning by heart only."""
        found: dict[Setting, int] = {}
        kept = []
        for setting in self.best(len(self.members)):
            family = replace(setting, ridge=0.0, floor=0.0)
            found[family] = found.get(family, 0) + 1
            if found[family] <= _ALIKE:
                kept.append(setting)
        return kept[:_TRIED]

    def plan(self, settings: list[Setting], number: int, more: int = 0) -> None:
        """Tell that settings on the first folds are what is left, and so many fits besides."""
        pairs = {(setting, fold) for setting in settings for fold in range(number)}
        self.report.left(len(pairs - {*self.members, *self._made}) + more)

    def stacked(self, settings: list[Setting], number: int) -> tuple[Tensor, Tensor]:
        """The weights of settings on the first folds, and their `log p (N, M)` there, fold after fold."""
        self.ahead(settings, number)
        log_p = torch.cat([torch.stack([self.member(s, fold)[1] for s in settings], 1) for fold in range(number)])
        return stacked(log_p, torch.cat([held.weight for held in self.held[:number]])), log_p

    def heaviest(self, settings: list[Setting], number: int, count: int) -> list[Setting]:
        """The settings that carry weight on the first folds."""
        shares, _ = self.stacked(settings, number)
        order = shares.argsort(descending=True)[:count]
        return [settings[int(m)] for m in order if float(shares[m]) > _LIGHT]


def screen(search: _Search, lean: bool) -> None:
    """Try settings: sizes of each kind until they get worse, then bends of the best."""
    fitter = search.fitters[0]
    rows, columns = fitter.table.x.shape
    bends = [False, True] if bool(fitter.scaled(True).scales.bent.any()) else [False]
    kinds: list[Setting] = [Setting(kind="full", tied=True), Setting(kind="full"), Setting(kind="diagonal")]
    if columns >= _FACTORS:
        kinds.append(Setting(kind="low_rank", rank=min(3, columns // 3)))
    if lean:
        bends = [max(bends, key=lambda bend: search.score(Setting(bend=bend)))]
    most = min(rows, _ROWS_EACH * 8) if lean else rows
    search.ahead([one for bend in bends for kind in kinds for one in _first(replace(kind, bend=bend), most)], 1)
    plain = {bend: [_sizes(search, replace(kind, bend=bend), most) for kind in kinds] for bend in bends}
    best = {bend: max(search.score(found[0]) for found in plain[bend] if found) for bend in bends}
    for bend in bends:
        if not columns or best[bend] < max(best.values()) - _APART:
            continue
        both = plain[bend] if rows >= _ROWS_EACH * _KINKS else []
        search.ahead([replace(found[0], kinks=_KINKS) for found in both if found], search.judges)
        for found in both:
            if found and found[0].tied:
                search.score(replace(found[0], kinks=_KINKS, shared=True))
            for setting in found[: 2 if found and found[0].kind == "full" and not lean else 1]:
                search.score(replace(setting, kinks=_KINKS))
                smaller = [K for K in _SIZES if setting.components / 2 >= K]
                if smaller and setting.components > 2 and not lean:
                    search.score(replace(setting, components=smaller[-1], kinks=_KINKS))
        if lean:
            search.score(Setting(kinks=CURVE, ridge=0.1, bend=bend))
        else:
            _curves(search, bend, rows)
    for setting in search.best(1 if lean else 2):
        _along(search, setting, "floor", (0.3, 1.0))
        if lean:
            continue
        _along(search, setting, "floor", (1e-3, 1e-4, 1e-5))
        if setting.kinks:
            _along(search, setting, "ridge", [ridge for ridge in _RIDGES if ridge < setting.ridge])
            _along(search, setting, "ridge", (10.0, 100.0))


def _curves(search: _Search, bend: bool, rows: int) -> None:
    """One curve, ever freer, with ever more kinks, and several side by side, each as long as that is better.

    Several with the same bends are what is left of a surface where its second dimension is a few levels.
    """
    best = _along(search, Setting(kinks=CURVE, bend=bend), "ridge", _RIDGES)
    best = _along(search, best, "kinks", [kinks for kinks in _FINER if rows >= _ROWS_EACH * kinks])
    _along(search, best, "components", [K for K in _SIDE_BY_SIDE if rows >= _ROWS_EACH * CURVE * K])
    alike = [replace(best, components=K, tied=True, shared=True) for K in _ALIKE_BENT if rows >= _ROWS_EACH * 2 * K]
    _climb(search, best, alike)


def _along(search: _Search, setting: Setting, name: str, rungs: Sequence[float]) -> Setting:
    """The best of a setting and of others up one ladder."""
    changes: list[dict[str, Any]] = [{name: rung} for rung in rungs]
    return _climb(search, setting, [replace(setting, **change) for change in changes])


def _climb(search: _Search, setting: Setting, rungs: Sequence[Setting]) -> Setting:
    """The best of a setting and of a ladder, which is left where a rung is hardly worth it."""
    for one in rungs:
        better = search.score(one) - search.score(setting)
        if better > 0.0:
            setting = one
        if better < _WORTH:
            break
    return setting


def _first(kind: Setting, rows: int) -> list[Setting]:
    """The sizes of a kind that are tried whatever comes of them."""
    return [replace(kind, components=K) for K in _SIZES[:4] if _fits(kind, K, rows)]


def _fits(kind: Setting, components: int, rows: int) -> bool:
    return not (components == 1 and kind.tied) and (components == 1 or rows >= components * _ROWS_EACH)


def _sizes(search: _Search, kind: Setting, rows: int) -> list[Setting]:
    """Plain mixtures of one kind, best first; larger ones are not tried once two in a row were worse."""
    tried: list[Setting] = []
    for K in _SIZES:
        if not _fits(kind, K, rows):
            continue
        tried.append(replace(kind, components=K))
        if len(tried) > 2 and max(map(search.score, tried[-2:])) < max(map(search.score, tried[:-2])):
            break
    return sorted(tried, key=search.score, reverse=True)


def choose(table: Table, seed: int, report: Counted, finished: Finished, number: int | None = None) -> Choice:
    """The ensemble for a table.

    Up to 4,000 rows by folds. With more, a fifth of the rows is held out (5,000 at most), settings are compared on a
    sample of 2,000 of the others, larger ones on 8,000, and the few that carry weight go on from there on all.

    Args:
        table: the rows, two or more.
        seed: of folds and starts.
        report: counts the fits.
        finished: what an earlier run has fitted.
        number: of folds; by default 10 up to 300 rows, and 5 beyond.
    """
    parts = folds(len(table), fold_count(len(table), number), seed)
    if len(table) > _LARGE:
        return _by_samples(table, parts[0][:HELD_OUT], seed, report, finished)
    lean = _cost(table) > _COSTLY
    if lean:
        parts = folds(len(table), min(3, len(table)), seed)
    judges = 1 if lean else min(len(parts), _MOST_JUDGES, math.ceil(_JUDGES / len(parts[0])))
    splits = [(table.without(part), table.take(part)) for part in parts]
    search = _Search(splits, seed, report, finished, "folds", judges)
    few, most = (1, 3) if lean else (max(judges, 2), _KEPT)
    report.left(EXPECTED * judges + most * (len(parts) - judges), certain=False)
    screen(search, lean)
    tried = search.tried()
    search.plan(tried, few, most * (len(parts) - few))
    tried = search.heaviest(tried, few, most)
    search.plan(tried, len(parts))
    weights, log_p = search.stacked(tried, len(parts))
    held_out = torch.empty_like(log_p)
    held_out[torch.cat(parts)] = log_p
    members = tuple(search.member(setting, fold)[0] for setting in tried for fold in range(len(parts)))
    ensemble = Ensemble(members, weights.repeat_interleave(len(parts)) / len(parts))
    where = torch.empty(len(table), dtype=torch.long)
    where[torch.cat(parts)] = torch.repeat_interleave(torch.tensor([len(part) for part in parts]))
    return Choice(ensemble, tuple(tried), weights, held_out, table.weight, where, _screened(search))


def _by_samples(table: Table, part: Tensor, seed: int, report: Counted, finished: Finished) -> Choice:
    """`choose` for many rows: three searches, each on more rows and with fewer settings."""
    held, left = table.take(part), table.without(part)
    order = torch.as_tensor(np.random.default_rng(seed).permutation(len(left)))
    second, kept, screened = narrowed(left.take(order[:SAMPLED]), held, seed, report, finished)
    last = _Search([(left, held)], seed, report, finished, "all")
    report.left(len(kept))
    for setting in kept:
        start, _ = second.member(setting, 0)
        last.add(setting, 0, partial(last.fitters[0].resume, start))
    return judged(last, kept, held.weight, screened)


Screened = tuple[tuple[Setting, float], ...]


def narrowed(
    left: Table, held: Table, seed: int, report: Counted, finished: Finished
) -> tuple[_Search, list[Setting], Screened]:
    """The few settings that are worth a fit to all rows, their fits to some, and what was compared before.

    Args:
        left: `SAMPLED` rows at most, in random order, the first of which compare all settings.
        held: the rows that judge, in random order too.
        seed: of starts.
        report: see `choose`.
        finished: see `choose`.
    """
    few = left.take(slice(SCREENED)), held.take(slice(SCREENED))
    first = _Search([few], seed, report, finished, "few")
    screen(first, _cost(first.fitters[0].table) > _COSTLY)
    tried = first.heaviest(first.tried(), 1, 4)
    larger = [replace(s, components=K) for s in tried for K in _SIZES if s.components < K <= 2 * s.components]
    second = _Search([(left, held)], seed, report, finished, "more")
    return second, second.heaviest(list(dict.fromkeys((*tried, *larger))), 1, 3), _screened(first)


def judged(search: _Search, kept: list[Setting], weight: Tensor, screened: Screened) -> Choice:
    """The average of the fits of settings, weighted by held-out rows with weights `(N,)`."""
    weights, log_p = search.stacked(kept, 1)
    ensemble = Ensemble(tuple(search.member(setting, 0)[0] for setting in kept), weights)
    return Choice(ensemble, tuple(kept), weights, log_p, weight, None, screened)


def _screened(search: _Search) -> Screened:
    return tuple((setting, search.score(setting)) for setting in search.best(len(search.members)))


def _cost(table: Table) -> float:
    """What the factorisations of one E-step of one component cost: patterns of holes times D^3."""
    patterns = len(distinct_masks(~table.x.isnan())[0]) if table.x.numel() else 1
    return float(patterns * table.x.shape[1] ** 3)
