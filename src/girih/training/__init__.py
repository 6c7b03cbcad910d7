"""Gradient training, common to every model that has a loss: one loop, records, early stopping, resuming.

`fit_gradient` trains any module. The `fit` of every other model takes the same options, `FitOptions`, and returns the
same `FitResult`; a new one is made of `FitOptions.among`, `split`, `watching` and `minimise`.
"""

from girih._deprecated import moved
from girih._progress import Progress
from girih.training.checkpoint import Checkpoint, digest, seed_of_run
from girih.training.fit import fit_gradient, mean_loss, minimise, run_steps, watching
from girih.training.generators import Dimensions, dimensions, evaluating, number_type, tried, type_of
from girih.training.loop import own_random_state
from girih.training.options import Accelerator, Ended, FitOptions, FitResult, Settled, split
from girih.training.records import Beside, ExactRecorder, LogFormat, Measure, Patience, Recorder, open_log
from girih.training.steps import Batches, LossStepper, OptimizerName, Stepper, check_loss, make_optimizer

__all__ = [
    "Accelerator",
    "Batches",
    "Beside",
    "Checkpoint",
    "Dimensions",
    "Ended",
    "ExactRecorder",
    "FitOptions",
    "FitResult",
    "LogFormat",
    "LossStepper",
    "Measure",
    "OptimizerName",
    "Patience",
    "Progress",
    "Recorder",
    "Settled",
    "Stepper",
    "check_loss",
    "digest",
    "dimensions",
    "evaluating",
    "fit_gradient",
    "make_optimizer",
    "mean_loss",
    "minimise",
    "number_type",
    "open_log",
    "own_random_state",
    "run_steps",
    "seed_of_run",
    "split",
    "tried",
    "type_of",
    "watching",
]

__getattr__ = moved(
    __name__,
    {
        "LikelihoodRun": ("girih", "FitResult"),
        "TrainingRun": ("girih", "FitResult"),
        "train": ("girih", "train"),
    },
)
