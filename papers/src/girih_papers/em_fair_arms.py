"""The arms of `em-fair`: ways to fit one generator from one starting point in so many processor seconds."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

import girih
from girih.em import fit_em
from girih.inference import DGN
from girih.training import Recorder, fit_gradient
from girih.vae import VAE, GaussVAE
from girih_papers.arrays import Array
from girih_papers.comparison import PAPER_VAES, RATES, TUNED
from girih_papers.ppca import PPCA

LAYERWISE, PLAIN, ACCELERATED = "EM, layer-wise", "EM, joint steps", "EM, quasi-Newton"
ADAM, LBFGS, AFTER = "exact NLL, Adam", "exact NLL, L-BFGS", "Adam, then EM"
IWAE, MPPCA = "IWAE", "mixture of PPCA"
VAES = (*PAPER_VAES, TUNED)
EXACT = (LAYERWISE, PLAIN, ACCELERATED, ADAM, LBFGS, AFTER)
ARMS = (*EXACT, *VAES, IWAE, MPPCA)

_EM: dict[str, dict[str, Any]] = {
    LAYERWISE: {"m_step": "layerwise"},
    PLAIN: {"acceleration": "none"},
    ACCELERATED: {},
}
_LOOKS = 12  # at the exact NLL of a model that does not compute it while it trains
_SAMPLES = 16  # draws of an IWAE's bound, and of the bound that a VAE's restarts are compared by
_LARGE = 1000  # rows from which VAEs take batches
_BATCH = 100
_COMPONENTS = (1, 2, 3, 4, 6, 8, 12, 16, 24)
_TOL = 1e-7


@dataclass
class Clock:
    """It measures a model while it trains, and tells when its processor time is over, in which no look at it counts.

    As the measure of a `Recorder` it gives a number `clock` that falls until then, for a patience of one record.

    Attributes:
        seconds: of processor time.
        objective: what training lowers, of the model.
        nll: the exact one.
    """

    seconds: float
    objective: Callable[[Any], float]
    nll: Callable[[Any], float]
    curve: list[tuple[float, float]] = field(default_factory=list)
    value: float = math.inf
    state: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._began, self._next, self._records = time.process_time(), 0.0, 0

    @property
    def spent(self) -> float:
        """Processor seconds of training so far."""
        return time.process_time() - self._began

    @property
    def over(self) -> bool:
        """Whether the time is over."""
        return self.spent >= self.seconds

    def __call__(self, model: Any) -> dict[str, float]:
        """Look at the model, if it is time for that."""
        self._records += 1
        over = self.over
        if over or self.spent >= self._next:
            self.look(model)
            self._next += self.seconds / _LOOKS
        return {"clock": 0.0 if over else -float(self._records)}

    def look(self, model: Any) -> None:
        """Note the exact NLL, and the parameters if none before had a lower objective."""
        spent = self.spent
        with torch.no_grad():
            value = self.objective(model)
            self.curve.append((spent, self.nll(model)))
        if value < self.value:
            self.value, self.state = value, copy.deepcopy(model.state_dict())
        self._began += self.spent - spent

    def stopping(self, every: int) -> dict[str, Any]:
        """Options of a `fit` by gradients that let it run until the time is over."""
        return {
            "record": Recorder(self, every=every),
            "monitor": "clock",
            "patience": 1,
            "min_improvement": 0.0,
            "keep_best": False,
            "max_steps": 10**9,
            "progress": False,
        }


def starting_point(kind: str, rows: Array, hidden: int, noise: float, seed: int) -> DGN:
    """A generator of one latent to start from.

    Args:
        kind: "plain" for the weights that the layers are drawn with and the noise that is given, as in the paper;
            "random" and "curve" for those starts of `girih.em`, after one iteration of EM.
        rows: `(N, D)`.
        hidden: units.
        noise: variance.
        seed: of the weights.
    """
    dgn = DGN(girih.mlp([1, hidden, rows.shape[1]], negative_slope=0.1, seed=seed), noise=noise)
    if kind != "plain":
        init = "auto" if kind == "curve" else "random"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fit_em(dgn, rows, n_init=1, max_iter=1, init=init, seed=seed, acceleration="none", progress=False)
    return dgn


def fit_arm(arm: str, start: DGN, rows: Array, seconds: float, seed: int) -> tuple[Callable[[Array], Array], Clock]:
    """Fit from a starting point; returns `log p` of rows under the best model, by the arm's own objective, and clock.

    Raises:
        KeyError: there is no such arm.
    """
    if arm == MPPCA:
        return _mixture(rows, seconds, seed)
    dgn = copy.deepcopy(start)
    if arm in EXACT:
        clock = _exact(arm, dgn, rows, seconds)
        dgn.load_state_dict(clock.state)
    else:
        vae, clock = _variational(arm, dgn, rows, seconds, seed)
        vae.load_state_dict(clock.state)
        dgn = vae.dgn()

    def log_prob(x: Array) -> Array:
        with torch.no_grad():
            return np.asarray(dgn().log_prob(x))

    return log_prob, clock


def _exact(arm: str, dgn: DGN, rows: Array, seconds: float) -> Clock:
    """EM, or gradients of the same exact NLL."""

    def nll(model: DGN) -> float:
        return -float(model().log_prob(rows).mean())

    clock = Clock(seconds, nll, nll)
    if arm in _EM:
        _em(dgn, rows, clock, _EM[arm])
        return clock
    if arm == AFTER:
        clock.seconds = 0.5 * seconds
    if arm == LBFGS:
        girih.train(dgn, rows, optimizer="lbfgs", **clock.stopping(1))
    else:
        girih.train(dgn, rows, optimizer="adam", **clock.stopping(10))
    if arm == AFTER:
        clock.seconds = seconds
        dgn.load_state_dict(clock.state)
        _em(dgn, rows, clock, _EM[ACCELERATED])
    return clock


def _em(dgn: DGN, rows: Array, clock: Clock, options: dict[str, Any]) -> None:
    """EM from the parameters that the model has; its NLL never rises, so its end is its best."""

    def watch(iteration: int, nll: float) -> None:
        clock.curve.append((clock.spent, nll))
        if clock.over:
            raise KeyboardInterrupt  # keeps what there is

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fit_em(dgn, rows, n_init=0, max_iter=10**9, tol=_TOL, progress=False, callback=watch, **options)
    clock.look(dgn)


def _variational(arm: str, dgn: DGN, rows: Array, seconds: float, seed: int) -> tuple[VAE, Clock]:
    """A VAE with this decoder and noise, by the bound of its kind; the tuned one as in `em-circle`."""
    tuned = arm in (TUNED, IWAE)
    vae = GaussVAE(dgn.net, hidden=(64, 64) if tuned else (32, 32), noise=float(dgn.noise.detach()), seed=seed)
    x = torch.as_tensor(rows)

    def bound(model: VAE) -> float:
        if arm == IWAE:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                return float(iwae_loss(model, x))
        return float(model.free_energy(x, samples=_SAMPLES, seed=0).total.mean())

    clock = Clock(seconds, bound, lambda model: -float(model.dgn()().log_prob(rows).mean()))
    options = clock.stopping(25) | {"batch_size": None if len(rows) < _LARGE else _BATCH, "seed": seed}
    if arm == IWAE:
        fit_gradient(vae, rows, loss=iwae_loss, lr=0.002, accelerator="cpu", **options)
    else:
        lr = 0.002 if arm == TUNED else dict(zip(PAPER_VAES, RATES, strict=True))[arm]
        vae.fit(rows, samples=8 if tuned else 1, lr=lr, accelerator="cpu", **options)
    return vae, clock


def iwae_loss(vae: VAE, x: Tensor) -> Tensor:
    """Minus the bound of an importance weighted autoencoder, the mean over rows `()`, with draws of its own.

    Source:
        Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders, eq. 8.
    """
    q = vae.encode(x)
    z = q.rsample((_SAMPLES,))
    weights = vae.log_likelihood(x, z) + vae.prior().log_prob(z) - q.log_prob(z)
    return math.log(_SAMPLES) - torch.logsumexp(weights, 0).mean()


def _mixture(rows: Array, seconds: float, seed: int) -> tuple[Callable[[Array], Array], Clock]:
    """Mixtures of probabilistic PCA with one latent each, from k-means; their number by BIC on the same rows."""
    clock, floor = Clock(seconds, float, float), 1e-6 * float(rows.var(0).mean())
    best: tuple[float, PPCA] | None = None
    for count in _COMPONENTS:
        if best is not None and (clock.over or count * 4 > len(rows)):
            break
        model = PPCA.fit(rows, 1, count, floor, seed)
        score = model.bic(rows)
        if best is None or score < best[0]:
            best = score, model
            clock.curve.append((clock.spent, -float(model.log_prob(rows).mean())))
    assert best is not None
    clock.value = best[0] / (2 * len(rows))
    return best[1].log_prob, clock
