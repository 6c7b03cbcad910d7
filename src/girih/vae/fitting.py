"""How a VAE is trained: the free energy, the temperature of each step, held-out rows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from girih._options import whole
from girih.errors import ParameterError
from girih.training import FitResult, Recorder, digest, fit_gradient, seed_of_run, split
from girih.vae.annealing import Annealing
from girih.vae.bound import CentroidRecorder, FreePrior
from girih.vae.posteriors.base import checked_temperature
from girih.vae.recorder import HeldOutRecorder

if TYPE_CHECKING:
    from girih.vae.model import VAE


def fit_vae(
    vae: VAE,
    X: Any,
    samples: int,
    validation: Any,
    initial_temperature: float | None,
    divergence: str,
    options: dict[str, Any],
) -> FitResult:
    """`VAE.fit`; `options` are those of `fit_gradient`, with the batch size and the length of the run."""
    samples, seed = whole(samples, "samples"), seed_of_run(options.get("seed", 0), options.get("checkpoint"))
    options = {**options, "seed": seed}
    rows, held_out = split(vae.rows(X), validation, seed, vae.rows)
    settings = {"samples": samples, **(options.pop("settings", None) or {})}
    every = options.get("record_every", 100)
    recorder = options.get("record")
    if recorder is None:
        recorder = vae.default_recorder(rows, every)
    if held_out is not None:
        inner = recorder if isinstance(recorder, Recorder) else Recorder(recorder, every=every)
        recorder = HeldOutRecorder(inner, held_out.to(vae.dtype), samples)
        options = {"monitor": "held_out", "keep_best": True, **options}
        settings["held-out rows"] = digest(held_out)
    free = None
    if divergence == "bound":
        free = FreePrior(vae)
        inner = recorder if isinstance(recorder, Recorder) else Recorder(recorder, every=every)
        recorder = CentroidRecorder(inner, free, rows.to(vae.dtype))
        settings["divergence"] = divergence
    elif divergence != "prior":
        raise ParameterError(f"divergence must be 'prior' or 'bound'; got {divergence!r}")
    options["record"] = recorder
    annealing = _annealing(vae, len(rows), initial_temperature, options, settings)
    if annealing is not None:
        options["before_step"] = annealing

    def loss(model: VAE, batch: Tensor) -> Tensor:
        temperature = None if annealing is None else annealing.now
        if free is None:
            return model.terms(batch, samples, temperature=temperature).total.mean()
        encoded = model.encoded(batch)
        terms = model.terms(batch, samples, temperature=temperature, encoded=encoded)
        return terms.reconstruction.mean() + free.bound(encoded)

    return fit_gradient(vae, rows, loss=loss, dtype=vae.dtype, settings=settings, **options)


def _annealing(
    vae: VAE, count: int, initial: float | None, options: dict[str, Any], settings: dict[str, Any]
) -> Annealing | None:
    """The temperatures of a run, and what its checkpoint has to know of them; `None` where nothing changes."""
    final = vae.temperature
    if final is None:
        if initial is not None:
            raise ParameterError(f"{type(vae).__name__} has no temperature; leave initial_temperature out")
        return None
    settings["temperature"] = final
    initial = max(1.0, final) if initial is None else checked_temperature(initial)
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
