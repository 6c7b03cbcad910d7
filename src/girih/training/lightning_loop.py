"""The bridge to Lightning. Importing this module imports Lightning, so only a run that starts imports it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from girih._extras import needs
from girih._progress import Progress
from girih.training.batches import blocks
from girih.training.loop import Loop

with needs("training"):
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.utilities.exceptions import SIGTERMException


class _Module(LightningModule):
    """A model under training. A Lightning "batch" is a block of gradient steps, see `girih.training.batches`."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model: nn.Module = loop.model
        self._loop = loop

    def configure_optimizers(self) -> list[Optimizer]:
        return list(self._loop.stepper.optimizers)

    def training_step(self, block: tuple[int, int], batch_idx: int) -> None:
        self._loop.take(*block)


class _Between(Callback):
    """Hands the moments between blocks to the loop."""

    def __init__(self, loop: Loop, progress: Progress) -> None:
        self._loop, self._progress = loop, progress

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._loop.begin()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._loop.between(self._progress):
            trainer.should_stop = True
        if trainer.received_sigterm:  # Lightning ends the run after this, without `on_train_end`
            self._loop.save()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._loop.finish()


class _Blocks:
    """The remaining blocks, as the iterable that Lightning asks for."""

    def __init__(self, start: int, end: int, every: int) -> None:
        self._range = start, end, every

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return blocks(*self._range)


def run(loop: Loop, end: int, progress: Progress, device: torch.device) -> None:
    """Train until step `end`, or until the loop says stop."""
    trainer = Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=[device.index or 0] if device.type == "cuda" else 1,
        # without this Lightning looks for SLURM or MPI around us and would start their processes
        plugins=[LightningEnvironment()],
        callbacks=[_Between(loop, progress)],
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    try:
        trainer.fit(_Module(loop), _Blocks(loop.steps, end, loop.recorder.every))
    except SIGTERMException:
        # Lightning's own exit has status 0, as if the work were done
        raise SystemExit(128 + signal.SIGTERM) from None
