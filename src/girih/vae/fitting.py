"""How a VAE is trained: the free energy, the temperature of each step, held-out rows, a prior that is free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from girih._options import whole
from girih.errors import ParameterError
from girih.training import FitResult, Recorder, digest, evaluating, fit_gradient, seed_of_run, split
from girih.vae.bpef.concrete import as_temperature
from girih.vae.free_energy import FreeEnergyModel

# Rows of one forward pass.
_CHUNK = 10_000

_SEED = 0  # of the draws for held-out rows


def fit_vae(
    vae: FreeEnergyModel,
    X: ArrayLike | Tensor,
    samples: int,
    validation: ArrayLike | Tensor | None,
    initial_temperature: float | None,
    divergence: str,
    options: dict[str, Any],
) -> FitResult:
    """`VAE.fit`; `options` are those of `fit_gradient`, with the batch size and the length of the run."""
    samples, seed = whole(samples, "samples"), seed_of_run(options["seed"], options["checkpoint"])
    options = {**options, "seed": seed}
    rows, held_out = split(vae.rows(X), validation, seed, vae.rows)
    settings: dict[str, Any] = {"samples": samples}
    every, recorder = options["record_every"], options["record"]
    if recorder is None:
        recorder = vae.default_recorder(rows, every)
    if not isinstance(recorder, Recorder) and (held_out is not None or divergence == "bound"):
        recorder = Recorder(recorder, every=every)
    if held_out is not None:
        recorder = HeldOutRecorder(recorder, held_out.to(vae.dtype), samples)
        options["monitor"] = options["monitor"] or "held_out"
        settings["held-out rows"] = digest(held_out)
    if options["keep_best"] is None:
        options["keep_best"] = held_out is not None
    free = divergence == "bound"
    if free:
        if not vae.family.learns_prior:
            raise ParameterError(
                f"divergence='bound' needs a prior that is learned, and that of this {type(vae).__name__} is fixed; "
                "use CGBPEFVAE with learn_prior=True, or divergence='prior'"
            )
        recorder = CentroidRecorder(recorder, rows.to(vae.dtype))
        settings["divergence"] = divergence
    elif divergence != "prior":
        raise ParameterError(f"divergence must be 'prior' or 'bound'; got {divergence!r}")
    options["record"] = recorder
    annealing = _annealing(vae, len(rows), initial_temperature, options, settings)
    if annealing is not None:
        options["before_step"] = annealing

    def loss(model: FreeEnergyModel, batch: Tensor) -> Tensor:
        temperature = None if annealing is None else annealing.now
        if not free:
            return model.terms(batch, samples, temperature=temperature).total.mean()
        encoded = model.encoded(batch)
        terms = model.terms(batch, samples, temperature=temperature, encoded=encoded)
        return terms.reconstruction.mean() + model.family.free_prior_bound(encoded)

    return fit_gradient(vae, rows, loss=loss, dtype=vae.dtype, settings=settings, **options)


def _annealing(
    vae: FreeEnergyModel, count: int, initial: float | None, options: dict[str, Any], settings: dict[str, Any]
) -> Annealing | None:
    """The temperatures of a run, and what its checkpoint has to know of them; `None` where nothing changes."""
    final = vae.temperature
    if final is None:
        if initial is not None:
            raise ParameterError(f"{type(vae).__name__} has no temperature; leave initial_temperature out")
        return None
    settings["temperature"] = final
    initial = max(1.0, final) if initial is None else as_temperature(initial)
    if initial < final:
        raise ParameterError(f"initial_temperature must be at least the final temperature {final:g}; got {initial:g}")
    if initial == final:
        return None
    size = options["batch_size"]
    per_pass = 1 if size is None else math.ceil(count / min(whole(size, "batch_size"), count))
    epochs, steps = options.get("max_epochs"), options.get("max_steps")
    length = whole(epochs, "max_epochs") * per_pass if epochs is not None else whole(steps, "steps")
    settings["annealing"] = [initial, length]
    return Annealing(length, initial, final)


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


class HeldOutRecorder(Recorder):
    """Records `held_out`, the mean free energy of held-out rows in nats per row, beside what another recorder does.

    The draws of z are the same at every record, so that two records differ by the parameters alone, and the networks
    are in evaluation mode.

    Args:
        inner: the other recorder, which also says how often.
        x: the held-out rows `(M, D)`, in the type of the model.
        samples: draws of z for each row.
    """

    def __init__(self, inner: Recorder, x: Tensor, samples: int) -> None:
        super().__init__(every=inner.every)
        self._inner, self._x, self._samples = inner, x, samples

    def measure(self, model: Any) -> Mapping[str, float]:
        """The numbers of the other recorder, and `held_out`."""
        generator = torch.Generator(model.device).manual_seed(_SEED)
        total = 0.0
        with evaluating(model):
            for part in self._x.split(_CHUNK):
                terms = model.terms(part.to(model.device), self._samples, generator)
                total += float(terms.total.double().sum())
        return {**self._inner.measure(model), "held_out": total / len(self._x)}


class CentroidRecorder(Recorder):
    """Sets the prior to the centroid of the posteriors of the training rows before another recorder measures.

    Args:
        inner: the other recorder, which also says how often.
        rows: the training rows, in the type of the model.
    """

    def __init__(self, inner: Recorder, rows: Tensor) -> None:
        super().__init__(every=inner.every)
        self._inner, self._rows = inner, rows

    def measure(self, model: Any) -> Mapping[str, float]:
        """The numbers of the other recorder."""
        with torch.no_grad(), evaluating(model):
            encoded = [model.encoded(part) for part in self._rows.to(model.device).split(_CHUNK)]
        model.family.centre_prior(encoded)
        return self._inner.measure(model)
