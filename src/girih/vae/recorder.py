"""What early stopping of a VAE watches: the free energy of rows that it does not train on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from girih.training import Recorder, evaluating

# Rows of one forward pass.
_CHUNK = 10_000

_SEED = 0


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
