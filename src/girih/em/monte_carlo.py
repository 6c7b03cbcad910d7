r"""Monte Carlo EM for latents of any dimension: the E-step draws from the exact posterior.

Each row keeps chains that `girih.sampling` moves. Given their latents z the M-step is that of a regression of x on z:

    minimise  sum_n mean_c |x_n - g(z_nc)|^2_noise / 2   over the parameters of g, by L-BFGS,
    noise     = M-step of its kind for the residuals x_n - g(z_nc).

Missing entries are integrated out: the draws are those of p(z | x_o), distances are those of the observed entries under
their own noise, and the M-step of the noise is an EM step on its own, from residuals that are completed by their
conditional means given z and x_o, and the conditional covariances.

The likelihood of held-out rows is estimated after each iteration with the same random numbers. An iteration that lowers
it by more than two standard errors of the difference is undone, and the next one has twice the chains; the parameters
that are best on these rows are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from girih._arrays import Rows, as_rows, check_observed
from girih._options import real, whole
from girih._progress import Progress
from girih._shown import Shown
from girih.covariance import Covariance
from girih.errors import ParameterError
from girih.networks import trace
from girih.sampling.annealing import pilot
from girih.sampling.modes import find_modes, importance
from girih.sampling.motion import Flow, Places
from girih.sampling.row import Model, Row
from girih.training import split

_DRAWS = 2048  # of importance sampling, for each held-out row
_MOST_CHAINS = 64
_COMPLETIONS = 5  # EM steps of the noise in an M-step, each of which completes the residuals anew
_NUMBERS = 2**23  # in the largest array


@dataclass(frozen=True, repr=False)
class MonteCarloFit(Shown):
    """A `MonteCarloFit` says how `fit_monte_carlo` went; the network is changed in place.

    Attributes:
        noise: the covariance of the noise.
        curve: the mean NLL of the held-out rows, nats, estimated before the first iteration and after each, `(T + 1,)`.
        error: the standard error of each by sampling, `(T + 1,)`.
        best_step: the iteration whose parameters were kept.
        undone: how many iterations were.
    """

    noise: Covariance
    curve: Tensor
    error: Tensor
    best_step: int
    undone: int

    def _facts(self) -> Mapping[str, str]:
        best = self.best_step
        return {
            "iterations": f"{len(self.curve) - 1}",
            "held-out NLL": f"{float(self.curve[0]):.4f} to {float(self.curve[best]):.4f} nats",
            "its error": f"{float(self.error[best]):.2g}",
            "undone": f"{self.undone}",
        }


def fit_monte_carlo(
    net: nn.Module,
    X: Rows,
    noise: Covariance | Rows | float = 1.0,
    *,
    validation: Rows | float = 0.2,
    max_iter: int = 50,
    patience: int = 5,
    chains: int = 4,
    moves: int = 3,
    steps: int = 10,
    noise_floor: float = 1e-6,
    seed: int = 0,
    progress: bool = True,
) -> MonteCarloFit:
    r"""Fit a generator `x = g(z) + noise`, `z ~ N(0, I)`, of any latent dimension by Monte Carlo EM, in place.

    For S <= 3 `girih.em.fit_em` is exact, and faster.

    Args:
        net: the generator g, in float64, any module that `girih.trace` takes; all its parameters are trained.
        X: rows `(N, D)`; NaN entries are missing, which is marginalised.
        noise: variance of the noise at the start: a number, `(D,)`, `(D, D)` or a `girih.Covariance`, whose kind stays.
        validation: held-out rows, or which fraction of X is held out.
        max_iter: iterations at most.
        patience: end when so many iterations in a row do not improve the held-out rows.
        chains: for each row, at first.
        moves: of each chain in an iteration.
        steps: of L-BFGS in an iteration.
        noise_floor: least noise variance, as a share of the variance of the data.
        seed: of all draws.
        progress: show a bar.

    Returns:
        A `MonteCarloFit`: `noise`, the `curve` of the held-out NLL with its `error`.

    Raises:
        ShapeError, NonFiniteError, EmptyDataError: X is not a table with D columns, or a column has no entry.
        ParameterError: an option is out of its domain, or the parameters are not in float64.
        GirihError: the errors of `girih.trace` and of covariances.

    Source:
        Wei & Tanner, A Monte Carlo implementation of the EM algorithm (1990); Caffo, Jank & Jones, Ascent-based Monte
        Carlo expectation-maximization (2005), for the number of chains.

    Example:
        >>> import girih, torch
        >>> x = torch.randn(60, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        >>> fit = girih.em.fit_monte_carlo(girih.mlp([4, 6, 6], seed=0), x, max_iter=2, progress=False)
        >>> bool(fit.curve[fit.best_step] <= fit.curve[0])
        True
    """
    counts = whole(max_iter, "max_iter"), whole(patience, "patience"), whole(moves, "moves"), whole(steps, "steps")
    chains, generator = whole(chains, "chains", 2), torch.Generator().manual_seed(whole(seed, "seed", 0))
    traced = trace(net)
    if any(p.dtype != torch.float64 for p in net.parameters()):
        raise ParameterError("EM needs float64 parameters; call net.double() first")

    def checked(x: Rows, name: str = "validation") -> Tensor:
        return as_rows(x, name, traced.output_dim, "the output dimension D", allow_missing=True).detach()

    rows, held_out = split(checked(X, "X"), validation, seed, checked)
    check_observed(rows, "X")
    if held_out is None:
        raise ParameterError("validation=None leaves no rows to judge iterations by; give rows, or a fraction")
    start = Covariance.of(noise, traced.output_dim).detached()
    floor = real(noise_floor, "noise_floor") * torch.as_tensor(np.nanvar(rows.numpy(), 0, ddof=1))
    fit = _Fit(net, rows, held_out, start, floor.mean() if start.kind == "scalar" else floor, chains, generator)
    bar = Progress("Monte Carlo EM", counts[0], show=progress)
    try:
        for k in range(counts[0]):
            fit.iterate(*counts[2:])
            bar.show(k + 1, f"held-out NLL {fit.curve[-1]:.4f}")
            if len(fit.curve) - 1 - fit.best >= counts[1]:
                break
    finally:
        bar.close()
        fit.restore()
    return MonteCarloFit(fit.noise, torch.tensor(fit.curve), torch.tensor(fit.error), fit.best, fit.undone)


class _Fit:
    """The network, the noise, the chains, and the best parameters so far."""

    def __init__(
        self,
        net: nn.Module,
        x: Tensor,
        held_out: Tensor,
        noise: Covariance,
        floor: Tensor,
        chains: int,
        generator: torch.Generator,
    ) -> None:
        self._net, self._x, self._held_out, self._floor = net, x, held_out, floor
        self.noise, self._generator, self._chains = noise, generator, chains
        self._seen = ~torch.isnan(x)
        self._holes = not bool(self._seen.all())
        with torch.no_grad():
            row, _ = self._model.each(x)
            groups = self._split(row, len(x), chains)
            self._places = _joined(pilot(row.take(some), chains, generator)[0] for some in groups)
        self.best, self.undone = 0, 0
        self._last = self._judge()
        self.curve, self.error = [float(self._last.mean())], [self._sampling]
        self._kept = self._parameters()

    @property
    def _model(self) -> Model:
        return Model.of(self._net, self.noise, None, "")

    def _parameters(self) -> tuple[list[Tensor], Covariance]:
        return [p.detach().clone() for p in self._net.parameters()], self.noise

    def _put(self, parameters: tuple[list[Tensor], Covariance]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self._net.parameters(), parameters[0], strict=True):
                parameter.copy_(value)
        self.noise = parameters[1]

    def restore(self) -> None:
        """Put back the best parameters."""
        self._put(self._kept)

    @torch.no_grad()
    def _judge(self) -> Tensor:
        """The NLL of each held-out row, with the same random numbers each time."""
        generator = torch.Generator().manual_seed(0)
        row, common = self._model.each(self._held_out)
        parts = [row.take(some) for some in self._split(row, len(common), _DRAWS)]
        found = [importance(part, find_modes(part, generator), _DRAWS, generator) for part in parts]
        value, error = (torch.cat(part) for part in zip(*found, strict=True))
        self._sampling = float(error.square().sum().sqrt()) / len(value)
        return -(common + value)

    @staticmethod
    def _split(row: Row, count: int, points: int) -> tuple[Tensor, ...]:
        """So many rows in groups with room for some points of each, and for heads where each row has its own."""
        K, H = row.head.shape[-2:]
        each = max(points * H, 16 * K * H if row.head.ndim == 3 else 0)
        groups: tuple[Tensor, ...] = torch.arange(count).split(max(1, _NUMBERS // each))
        return groups

    def iterate(self, moves: int, steps: int) -> None:
        """One iteration, undone if the held-out rows say so."""
        before = self._parameters()
        self._expect(moves)
        self._maximise(steps)
        now = self._judge()
        change = now - self._last
        self.curve.append(float(now.mean()))
        self.error.append(self._sampling)
        if float(change.mean()) > 2.0 * float(change.std()) / len(change) ** 0.5:
            self._put(before)
            self.undone += 1
            self._more_chains()
            return
        self._last = now
        if self.curve[-1] < self.curve[self.best]:
            self.best, self._kept = len(self.curve) - 1, self._parameters()

    def _more_chains(self) -> None:
        if self._chains < _MOST_CHAINS:
            self._places = Places(*(part.repeat_interleave(2, 0) for part in self._places))
            self._chains *= 2

    @torch.no_grad()
    def _expect(self, moves: int) -> None:
        row, _ = self._model.each(self._x)
        every = torch.arange(len(self._x)).repeat_interleave(self._chains)
        self._places = _joined(
            self._moved(row.take(every[some]), self._places.u[some], moves) for some in self._split(row, len(every), 1)
        )

    def _moved(self, row: Row, u: Tensor, moves: int) -> Places:
        flow = Flow(row, torch.ones(len(u), dtype=torch.float64))
        return flow.moves(Places(u, row.trace.pattern(u)), moves, self._generator)[0]

    def _maximise(self, steps: int) -> None:
        parameters = [p for p in self._net.parameters() if p.requires_grad]
        optimiser = torch.optim.LBFGS(parameters, max_iter=steps, line_search_fn="strong_wolfe")
        observed = self.noise.restrict(self._seen) if self._holes else None
        whiten = self.noise.whiten if observed is None else observed.whiten

        def loss() -> Tensor:
            optimiser.zero_grad()
            value = 0.5 * whiten(self._residuals()).square().sum() / len(self._places.u)
            value.backward()
            return value

        optimiser.step(loss)
        optimiser.zero_grad()
        with torch.no_grad():
            off = self._residuals()
            for _ in range(_COMPLETIONS if self._holes else 1):
                self.noise = self._noise_given(off)

    def _residuals(self) -> Tensor:
        """`x_n - g(z_nc)`: `(D, N C)`, or `(N, D, C)` where entries are missing, anything there."""
        image: Tensor = self._net(self._places.u).flatten(1)
        x = torch.nan_to_num(self._x)[:, None]
        off = x - image.reshape(len(x), self._chains, -1)
        return off.mT if self._holes else off.flatten(0, 1).mT

    def _noise_given(self, off: Tensor) -> Covariance:
        """The M-step of the noise from residuals; of what is missing, from its moments under the noise of now."""
        own, (n, D), chains = self.noise, self._x.shape, self._chains
        weight = torch.full((n,), float(chains), dtype=torch.float64)
        if not self._holes:
            return own.m_step(own.scatter((off.mT, off.mT)), weight.sum(), self._floor)
        observed = own.restrict(self._seen)
        off = observed.complete(off).movedim(1, 0).reshape(D, -1)
        scatter = own.scatter((off.mT, off.mT)) + observed.conditional_covariance(weight)
        return own.m_step(scatter, weight.sum(), self._floor)


def _joined(parts: Iterable[Places]) -> Places:
    return Places(*(torch.cat(part) for part in zip(*parts, strict=True)))
