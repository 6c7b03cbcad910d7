"""The work of `girih fit`: settings, checkpoint, EM, and the model in the units of the data."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from girih.cli.tables import MODEL, has_names, is_file
from girih.cli.terminal import CommandError, Terminal
from girih.em import DGNEstimator, Scaling, fold_estimator
from girih.errors import ModelFileError
from girih.inference import check_latent_dim
from girih.io import check_target
from girih.training import Checkpoint

if TYPE_CHECKING:
    from girih.datasets import Dataset

__all__ = [
    "CHECKPOINT",
    "Fitted",
    "Settings",
    "check_columns",
    "check_latent_dim",
    "check_model_folder",
    "fit",
    "notes_on",
]

CHECKPOINT = "checkpoint.safetensors"

# Columns whose deviations differ by more than this are worth a word about --standardize.
_UNLIKE = 20.0

# Squares of values up to here, summed over rows and columns, are finite.
_LARGEST = 1e100


@dataclass(frozen=True)
class Settings:
    """`Settings` are what was asked for, as the options of `girih fit`."""

    source: str
    latent_dim: int
    hidden: tuple[int, ...]
    activation: str
    negative_slope: float
    noise: str
    learn_prior: bool
    weight_prior: str | None
    standardize: bool
    max_iter: int
    tol: float
    n_init: int
    noise_floor: float
    seed: int
    acceleration: str = "quasi-newton"
    batch_size: int | None = None
    noise_rank: int = 1
    noise_prior: float = 0.0
    kink_ridge: float = 0.0
    early_stopping: bool = False
    validation_fraction: float = 0.1
    header: bool | None = None
    reading: dict[str, Any] | None = None


@dataclass
class Fitted:
    """A fitted estimator in the units of the data, and how long things took."""

    est: DGNEstimator
    resumed: bool
    seconds: dict[str, float] = field(default_factory=dict)


def default_hidden(dataset: Dataset | None) -> tuple[int, ...]:
    """One layer of 8 units, and a second of 16 for images, which need more cells."""
    return (8, 16) if dataset is not None and dataset.image_shape is not None else (8,)


def default_weight_prior(dataset: Dataset | None) -> str | None:
    """Take a Gaussian prior for images: without one, the ends of the latent that hold no row draw wild pixels."""
    return "gaussian:0.3" if dataset is not None and dataset.image_shape is not None else None


def default_tol(dataset: Dataset | None) -> float:
    """Count a row of an image as its hundreds of pixels: their sum gains a little in every iteration."""
    return 1e-2 if dataset is not None and dataset.image_shape is not None else 1e-6


def check_columns(dataset: Dataset) -> None:
    """Refuse columns without a single value, and those whose squares overflow, by name."""
    names = [dataset.feature_names[int(i)] for i in np.flatnonzero(np.isnan(dataset.X).all(0))[:8]]
    if names:
        raise CommandError(
            f"{dataset.name} has no values in {', '.join(map(repr, names))}; leave out with --drop {','.join(names)}"
        )
    largest = np.nanmax(np.abs(dataset.X), 0)
    if largest.max() > _LARGEST:
        at = int(largest.argmax())
        raise CommandError(
            f"{dataset.name} holds values up to {largest[at]:.1e} in {dataset.feature_names[at]!r}, too large to "
            "compute with; use a larger unit"
        )


def notes_on(dataset: Dataset, settings: Settings, standardize: bool | None, terminal: Terminal) -> None:
    """Say what about the data may surprise: missing entries, and columns on very different scales."""
    missing = np.isnan(dataset.X)
    if missing.any():
        terminal.note(
            f"{missing.sum():,} entries in {missing.any(1).sum():,} rows are missing ({missing.mean():.1%}); "
            "they are integrated out"
        )
    if standardize is not None or settings.noise != "isotropic" or dataset.image_shape is not None:
        return
    deviation = np.nanstd(dataset.X, 0)
    low, high = int(np.where(deviation > 0, deviation, np.inf).argmin()), int(deviation.argmax())
    if deviation[high] > _UNLIKE * deviation[low] > 0:
        names = dataset.feature_names
        terminal.note(
            f"columns differ much in scale ({names[low]} varies by {deviation[low]:.3g}, {names[high]} by "
            f"{deviation[high]:.3g}), so the largest decide; --standardize weighs all alike"
        )


def check_model_folder(out: Path) -> None:
    """Refuse early what `girih.save` would refuse after the fit."""
    folder = out / MODEL
    if folder.is_symlink():
        raise CommandError(f"{folder} is a link; move it away or choose another --out")
    try:
        check_target(folder)
    except ModelFileError:
        raise CommandError(f"{folder} exists and is not a girih model; move it away or choose another --out") from None


def estimator(settings: Settings, checkpoint: Path, verbose: int) -> DGNEstimator:
    """The estimator that does what was asked for."""
    return DGNEstimator(
        latent_dim=settings.latent_dim,
        hidden=settings.hidden,
        activation=settings.activation,
        negative_slope=settings.negative_slope,
        noise=settings.noise,
        weight_prior=settings.weight_prior,
        max_iter=settings.max_iter,
        tol=settings.tol,
        n_init=settings.n_init,
        random_state=settings.seed,
        verbose=verbose,
        learn_prior=settings.learn_prior,
        noise_floor=settings.noise_floor,
        checkpoint=checkpoint,
        acceleration=settings.acceleration,
        batch_size=settings.batch_size,
        noise_rank=settings.noise_rank,
        noise_prior=settings.noise_prior,
        kink_ridge=settings.kink_ridge,
        early_stopping=settings.early_stopping,
        validation_fraction=settings.validation_fraction,
    )


def fit(dataset: Dataset, settings: Settings, out: Path, restart: bool, terminal: Terminal) -> Fitted:
    """Fit by exact EM, going on from the checkpoint of an unfinished run if there is one."""
    start = time.perf_counter()
    checkpoint = out / CHECKPOINT
    if restart:
        checkpoint.unlink(missing_ok=True)
    resumed = checkpoint.exists()
    if resumed:
        terminal.note(f"{out} holds an unfinished fit{_progress_of(checkpoint)}; going on from there")
    est = estimator(settings, checkpoint, int(terminal.shows_progress))
    scaling = _scaling(dataset, settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said in the words of the command line below
        try:
            est.fit(dataset.X if scaling is None else scaling.apply(dataset.X).numpy())
        except ModelFileError as error:
            raise cannot_resume(error) from None
    if scaling is not None:
        fold_estimator(est, scaling, dataset.X)
    # a saved model should not go on from, or write to, this run's files
    est.set_params(checkpoint=None, verbose=0)
    if is_file(settings.source) and has_names(dataset):
        est.feature_names_in_ = np.array(dataset.feature_names, dtype=object)
    if est.overfit_ is not None:
        terminal.note(est.overfit_)
    if est.interrupted_:
        terminal.note(f"interrupted after {est.n_iter_} iterations; keeping the best model so far")
    elif not est.converged_:
        terminal.note(
            f"EM still gained {last_gain(est):.1e} nats per row when it reached --max-iter {settings.max_iter}; "
            "with more it fits a little closer"
        )
    return Fitted(est, resumed, {"fit": time.perf_counter() - start})


def _scaling(dataset: Dataset, settings: Settings) -> Scaling | None:
    if settings.standardize:
        return Scaling.of(dataset.X)
    if dataset.image_shape is not None and not (np.nanmin(dataset.X) >= 0 and np.nanmax(dataset.X) <= 1):
        return Scaling.of_range(dataset.X)  # so that the weight prior means the same for pixels up to 255
    return None


def last_gain(est: DGNEstimator) -> float:
    """Say what the last iteration gained, in nats per row."""
    return float(est.nll_curve_[-2] - est.nll_curve_[-1]) if len(est.nll_curve_) > 1 else 0.0


def _progress_of(checkpoint: Path) -> str:
    """Say where the unfinished run stands, in parentheses, as far as the file tells."""
    try:
        state = Checkpoint(checkpoint).read() or {}
        done, iterations = len(state["starts"]), len(state["run"]["curve"]) - 1
        return f" ({done} starts tried, {iterations} iterations in the current run)"
    except (ModelFileError, KeyError, TypeError):
        return ""


def cannot_resume(error: ModelFileError) -> CommandError:
    """What to do about a checkpoint that is damaged, or of another run."""
    reason = str(error).split(";")[0]
    return CommandError(
        f"the unfinished fit cannot be continued: {reason}; repeat the command that began it, add --restart to begin "
        "anew, or choose another --out"
    )
