"""Ways to train a generator from given initial weights, with the exact NLL against steps and seconds."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from girih.em import WeightPrior, fit_em
from girih.inference import DGN
from girih.networks import mlp
from girih_papers.arrays import Array


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        label: its name in tables and legends.
        kind: "em" or "vae".
        options: of `fit_em`, or `hidden` (the encoder's widths) and the options of `GaussVAE.fit`, with
            `max_steps` instead of `max_epochs`.
    """

    label: str
    kind: Literal["em", "vae"]
    options: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Task:
    """One run: a method, rows to train on and to hold out, and the network to start from.

    Attributes:
        method: the way to train.
        rows: `(N, D)`.
        held_out: other rows of the same distribution.
        sizes: widths of the generator, from S to D; leaky ReLU of slope 0.1.
        seed: of the initial weights, of the VAE's encoder and noise draws, and of EM's restarts.
        noise: the initial noise variance.
    """

    method: Method
    rows: Array
    held_out: Array
    sizes: tuple[int, ...]
    seed: int
    noise: float


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run gave.

    Attributes:
        label, seed: of the task.
        history: arrays of equal length: `step` (EM iterations or gradient steps), `seconds` of training, exact
            `nll` in nats per row; for EM the penalised NLL `objective`; for a VAE `elbo`, `kl` and `noise`.
        converged: whether the run stopped because it no longer improved, not at its cap.
        held_out_nll: exact, of the final model.
        parameters: the final generator's, in order, and the noise variance last.
        sizes: of the generator.
    """

    label: str
    kind: str
    seed: int
    history: dict[str, Array]
    converged: bool
    held_out_nll: float
    parameters: list[Array] = field(repr=False)
    sizes: tuple[int, ...]

    @property
    def nll(self) -> float:
        """The exact NLL of the final model, nats per row."""
        return float(self.history["nll"][-1])

    @property
    def best_nll(self) -> float:
        """The lowest exact NLL on record, nats per row."""
        return float(self.history["nll"].min())

    @property
    def dgn(self) -> DGN:
        """The final model."""
        net = mlp(self.sizes, seed=0)
        with torch.no_grad():
            for parameter, value in zip(net.parameters(), self.parameters[:-1], strict=True):
                parameter.copy_(torch.as_tensor(value))
        return DGN(net, noise=torch.as_tensor(self.parameters[-1]))

    @property
    def objective(self) -> Array:
        """What must not rise under EM: the NLL, with the weight prior's penalty if there is one."""
        return self.history.get("objective", self.history["nll"])

    def seconds_to(self, nll: float) -> float | None:
        """Seconds of training until the exact NLL is first at or below a level; `None` if it never is."""
        reached = np.flatnonzero(self.history["nll"] <= nll)
        return float(self.history["seconds"][reached[0]]) if len(reached) else None


def execute(task: Task) -> Outcome:
    """Carry out a run, on one thread, so that methods are timed alike."""
    with _one_thread():
        net = mlp(task.sizes, negative_slope=0.1, seed=task.seed)
        run = {"em": _run_em, "vae": _run_vae}[task.method.kind]
        dgn, history, converged = run(task, net)
        with torch.no_grad():
            held_out = -float(dgn().log_prob(task.held_out).mean())
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in history.items()}
    parameters = [p.detach().numpy().copy() for p in (*dgn.net.parameters(), dgn.noise)]
    return Outcome(
        task.method.label, task.method.kind, task.seed, arrays, converged, held_out, parameters, tuple(task.sizes)
    )


def _run_em(task: Task, net: torch.nn.Module) -> tuple[DGN, dict[str, Any], bool]:
    options: dict[str, Any] = {"n_init": 0, "init": "random", **task.method.options}
    dgn = DGN(net, noise=task.noise)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fit_em(copy.deepcopy(dgn), task.rows, n_init=0, max_iter=1)  # what is loaded at first use is not counted
    warm = options["n_init"] == 0
    # with restarts the clock starts before the trials, and the curve with the run that goes on after them
    before = max(options["n_init"] - 1, 0) * min(25, options["max_iter"])
    prior = WeightPrior.parse(options.get("weight_prior"))
    weights = [layer.weight for layer in dgn.net.modules() if isinstance(layer, torch.nn.Linear)]

    def penalty() -> float:
        with torch.no_grad():
            return 0.0 if prior is None else prior.energy(weights) / len(task.rows)

    steps, seconds, penalties = ([0], [0.0], [penalty()]) if warm else ([], [], [])

    def record(iteration: int, _: float) -> None:
        steps.append(iteration)
        seconds.append(time.perf_counter() - start)
        penalties.append(penalty())

    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported as `converged`
        result = fit_em(dgn, task.rows, init_iter=25, seed=task.seed, progress=False, callback=record, **options)
    if not steps:  # the trials were all
        record(result.steps, 0.0)
    if steps[-1] == result.steps:
        penalties[-1] = penalty()  # a generator without weights, where that is better, takes the place of the last
    objective = np.array([result.curve[step] for step in steps])
    history = {
        "step": before + np.array(steps),
        "seconds": seconds,
        "nll": objective - np.array(penalties),
        "objective": objective,
    }
    return dgn, history, result.converged


def _run_vae(task: Task, net: torch.nn.Module) -> tuple[DGN, dict[str, Any], bool]:
    from girih.vae import GaussVAE

    options = dict(task.method.options)
    vae = GaussVAE(net, hidden=options.pop("hidden"), noise=task.noise, seed=task.seed)
    size = options.get("batch_size") or len(task.rows)
    per_pass = -(-len(task.rows) // min(size, len(task.rows)))
    passes = max(1, options.pop("max_steps") // per_pass)
    run = vae.fit(task.rows, max_epochs=passes, seed=task.seed, progress=False, accelerator="cpu", **options)
    return vae.dgn(), {k: v for k, v in run.history.items() if k != "loss"}, run.converged


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
