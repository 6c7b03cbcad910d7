"""Gradient training, common to every model that has a loss: one loop, records, early stopping, resuming.

`train` is maximum likelihood for a `girih.DGN`, with exact gradients. Lightning runs the loop and is imported when
training starts, not before.
"""

from girih.training.exact import LikelihoodRun, train
from girih.training.fit import fit_gradient
from girih.training.recorder import ExactRecorder, Recorder
from girih.training.run import TrainingRun

__all__ = ["ExactRecorder", "LikelihoodRun", "Recorder", "TrainingRun", "fit_gradient", "train"]
