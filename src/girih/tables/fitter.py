"""Fits of the mixtures of any setting to one set of rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from girih.em.orderings import orderings
from girih.tables.basis import Basis
from girih.tables.fitting import Prior, fit
from girih.tables.member import Member
from girih.tables.mixture import Mixture, Rows
from girih.tables.scales import Scales
from girih.tables.setting import Setting, Table
from girih.tables.starts import bent, beside, clustered, completed, curve, gaussian

CURVE = 11  # kinks of a single curve, or of several side by side
SCREENED = 2000  # rows on which settings are compared; to twice as many a curve starts from orderings
RESUMED = 20  # iterations on all rows, from a fit to a sample
_WORK = 1.2e6  # rows times components times cells times iterations of one fit
_CUBES = 300.0  # D^3 that cost what a row and a cell does


class Fitter:
    """Fits settings to one set of rows; what they share (scales, completed rows, plain mixtures) is found once."""

    def __init__(self, table: Table, seed: int) -> None:
        self.table, self.seed = table, seed
        self._scaled: dict[bool, _Scaled] = {}
        self._plain: dict[Setting, Mixture] = {}
        self._curves: dict[Setting, Mixture] = {}

    def scaled(self, bend: bool) -> _Scaled:
        """The rows in their own units, or in bent ones."""
        if bend not in self._scaled:
            scales = Scales.learn(self.table.x, self.table.weight, self.table.width, bend)
            self._scaled[bend] = _Scaled(self.table, scales)
        return self._scaled[bend]

    def resume(self, start: Member, setting: Setting) -> Member:
        """The mixture of a setting, from one for other rows, with its scales."""
        on = _Scaled(self.table, start.scales)
        return Member(fit(start.mixture, on.rows, setting.prior(on.least), RESUMED)[0], start.scales)

    def fit(self, setting: Setting) -> Member:
        """The mixture of a setting."""
        on = self.scaled(setting.bend)
        prior = setting.prior(on.least)
        if not setting.kinks:
            return Member(self._plain_of(setting), on.scales)
        start = self._start(setting, prior)
        mixture = fit(start, on.rows, prior, _iterations(on.rows, start))[0]
        if setting.components == 1:
            self._curves[setting] = mixture
        return Member(mixture, on.scales)

    def _start(self, setting: Setting, prior: Prior) -> Mixture:
        """Where EM of bent components starts."""
        basis, on = Basis.line(setting.kinks), self.scaled(setting.bend)
        if setting.kinks >= CURVE and setting.components > 1:
            alone = replace(setting, components=1, tied=False, shared=False)
            return beside(self._curve_of(alone), setting.components)
        straight = bent(self._plain_of(setting), basis)
        if setting.components > 1 or len(on.rows) > 2 * SCREENED:
            return straight
        loose = replace(prior, ridge=max(10.0, prior.ridge))
        x, levels = on.completed, self.table.levels
        starts = [straight, *(curve(x, z, basis, on.rows, loose, levels) for z in orderings(x))]
        return min((fit(one, on.rows, prior, 8) for one in starts), key=lambda trial: trial[1][-1])[0]

    def learn(self, plain: Mapping[Setting, Mixture], curves: Mapping[Setting, Mixture]) -> None:
        """Take over what a copy of this has found."""
        self._plain.update(plain)
        self._curves.update(curves)

    @property
    def found(self) -> tuple[dict[Setting, Mixture], dict[Setting, Mixture]]:
        """What fits of other settings start from."""
        return self._plain, self._curves

    def _curve_of(self, setting: Setting) -> Mixture:
        return self._curves[setting] if setting in self._curves else self.fit(setting).mixture

    def _plain_of(self, setting: Setting) -> Mixture:
        key = replace(setting, kinks=0, ridge=0.0, shared=False)
        if key not in self._plain:
            on = self.scaled(setting.bend)
            prior, levels = key.prior(on.least), self.table.levels
            if key.components == 1:
                self._plain[key] = gaussian(on.rows, prior, levels)
            else:
                start = clustered(on.completed, on.rows, key.components, prior, levels, self.seed)
                self._plain[key] = fit(start, on.rows, prior, _iterations(on.rows, start))[0]
        return self._plain[key]


def fit_apart(task: tuple[Fitter, Setting]) -> tuple[Member, dict[Setting, Mixture], dict[Setting, Mixture]]:
    """A fit in another process, and what others may start from."""
    fitter, setting = task
    return fitter.fit(setting), *fitter.found


def _iterations(rows: Rows, mixture: Mixture) -> int:
    """How many are made at most, so that fits of many rows, components and cells end in time."""
    solved = len(rows.masks) * rows.x.shape[1] ** 3 / _CUBES  # a covariance for each pattern of holes
    return int(min(60, max(20, _WORK / (mixture.components * (len(rows) * len(mixture.basis.constant) + solved)))))


class _Scaled:
    """Rows in the units of a mixture."""

    def __init__(self, table: Table, scales: Scales) -> None:
        self.levels, self.scales = table.levels, scales
        self.rows = Rows.of(self.scales.forward(table.x), table.codes, table.weight)
        typical = self.scales.log_slope(table.x).nanmedian(0).values.nan_to_num(0.0)
        self.least = ((table.width.log() + typical).exp().square() / 12.0).clamp(min=1e-8)  # slopes may be 1e310
        self._completed: Tensor | None = None

    @property
    def completed(self) -> Tensor:
        """The rows without holes, by one Gaussian."""
        if self._completed is None:
            whole = bool(self.rows.masks.all())
            one = None if whole else gaussian(self.rows, Prior(self.least), self.levels)
            self._completed = self.rows.x if one is None else completed(self.rows, one)
        return self._completed
