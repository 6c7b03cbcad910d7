"""Training of a VAE: the free energy, the temperature of each step, held-out rows, a prior that is free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from girih._arrays import Rows
from girih._options import real, whole
from girih.errors import ParameterError
from girih.training import (
    FitOptions,
    FitResult,
    OptimizerName,
    Recorder,
    Settled,
    evaluating,
    mean_loss,
    minimise,
    split,
    watching,
)
from girih.vae.bpef.concrete import as_temperature
from girih.vae.free_energy import FreeEnergyModel

# Rows of one forward pass.
_CHUNK = 10_000

_DEFAULTS = FitOptions(max_steps=10_000, batch_size=100)


def fit_vae(
    vae: FreeEnergyModel,
    X: Rows,
    samples: int,
    initial_temperature: float | None,
    divergence: str,
    kl_weight: float,
    optimizer: OptimizerName,
    options: FitOptions,
) -> FitResult:
    """Train as `VAE.fit` does, with the fields of `girih.FitOptions` as one."""
    samples, settled = whole(samples, "samples"), options.filled(_DEFAULTS)
    free, weight = _is_free(vae, divergence), real(kl_weight, "kl_weight", positive=False)
    rows, held_out = split(vae.rows(X), settled.validation, settled.seed, vae.rows)
    if settled.record is None:
        settled = replace(settled, record=vae.default_recorder(rows, settled.record_every))
    if held_out is not None:
        mean = mean_loss(lambda model, part: model.terms(part, samples).total, vae.dtype)
        settled = watching(settled, held_out, mean)
    if free:
        settled = replace(settled, record=CentroidRecorder(settled, rows.to(vae.dtype)))
    annealing, known = _annealing(vae, len(rows), initial_temperature, settled)
    known |= {"divergence": divergence} if free else {}
    known |= {"kl_weight": weight} if weight != 1.0 else {}
    settled = settled.told_apart_by({"samples": samples, **known})

    def loss(model: FreeEnergyModel, batch: Tensor) -> Tensor:
        temperature = None if annealing is None else annealing.now
        if not free:
            terms = model.terms(batch, samples, temperature=temperature)
            return (weight * terms.divergence + terms.reconstruction).mean()
        encoded = model.encoded(batch)
        terms = model.terms(batch, samples, temperature=temperature, encoded=encoded)
        return terms.reconstruction.mean() + weight * model.family.free_prior_bound(encoded)

    return minimise(vae, rows, loss, settled, optimizer=optimizer, before_step=annealing, dtype=vae.dtype)


def _is_free(vae: FreeEnergyModel, divergence: str) -> bool:
    """Tell whether the prior is free while the networks are trained."""
    if divergence not in ("prior", "bound"):
        raise ParameterError(f"divergence must be 'prior' or 'bound'; got {divergence!r}")
    if divergence == "bound" and not vae.family.learns_prior:
        raise ParameterError(
            f"divergence='bound' needs a prior that is learned, and that of this {type(vae).__name__} is fixed; "
            "use CGBPEFVAE with learn_prior=True, or divergence='prior'"
        )
    return divergence == "bound"


def _annealing(
    vae: FreeEnergyModel, count: int, initial: float | None, options: Settled
) -> tuple[Annealing | None, dict[str, Any]]:
    """The temperatures of a run, `None` where nothing changes, and what its checkpoint has to know of them."""
    final = vae.temperature
    if final is None:
        if initial is not None:
            raise ParameterError(f"{type(vae).__name__} has no temperature; leave initial_temperature out")
        return None, {}
    initial = max(1.0, final) if initial is None else as_temperature(initial)
    if initial < final:
        raise ParameterError(f"initial_temperature must be at least the final temperature {final:g}; got {initial:g}")
    if initial == final:
        return None, {"temperature": final}
    length, _ = options.steps(math.ceil(count / min(options.batch_size or count, count)))
    return Annealing(length, initial, final), {"temperature": final, "annealing": [initial, length]}


def annealed(step: int, steps: int, initial: float, final: float) -> float:
    r"""The temperature of a gradient step: exponential decay over the first half of a run, then constant.

        T(t) = T_max (T_min / T_max)^min(1, 2 t / steps)

    Args:
        step: t, from 0.
        steps: of the whole run.
        initial: T_max.
        final: T_min.

    Source:
        CG-BPEF, section 3.3.

    Example:
        >>> from girih.vae import annealed
        >>> [annealed(step, 8, 1.0, 0.25) for step in (0, 2, 4, 7)]
        [1.0, 0.5, 0.25, 0.25]
    """
    result: float = initial * (final / initial) ** min(1.0, 2.0 * step / steps)
    return result


class Annealing:
    """The temperature of the current step, for a loss; it is told the steps by the trainer.

    Args:
        steps: of the whole run.
        initial: T_max.
        final: T_min.

    Attributes:
        now: the temperature.

    Example:
        >>> from girih.vae import Annealing
        >>> annealing = Annealing(8, 1.0, 0.25)
        >>> annealing(2)
        >>> annealing.now
        0.5
    """

    def __init__(self, steps: int, initial: float, final: float) -> None:
        self._steps, self._initial, self._final = steps, initial, final
        self.now = initial

    def __call__(self, step: int) -> None:
        """Take note of a step."""
        self.now = annealed(step, self._steps, self._initial, self._final)


class CentroidRecorder(Recorder):
    """Sets the prior to the centroid of the posteriors of the training rows before what the user asked for is measured.

    Args:
        options: which say what is measured, and how often.
        rows: the training rows, in the type of the model.
    """

    def __init__(self, options: Settled, rows: Tensor) -> None:
        record, every = options.record, options.record_every
        self._inner = record if isinstance(record, Recorder) else Recorder(record, every)
        super().__init__(every=self._inner.every)
        self._rows = rows

    def measure(self, model: nn.Module) -> Mapping[str, float]:
        """The numbers that were asked for."""
        assert isinstance(model, FreeEnergyModel)
        with torch.no_grad(), evaluating(model):
            encoded = [model.encoded(part) for part in self._rows.to(model.device).split(_CHUNK)]
        model.family.centre_prior(encoded)
        return self._inner.measure(model)
