"""`EMOptions`: how a fit by exact EM starts, moves and ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from girih._options import real, whole
from girih.em.mstep import WeightPrior
from girih.errors import ParameterError

ACCELERATIONS = ("none", "quasi-newton")


@dataclass(frozen=True, kw_only=True)
class EMOptions:
    """They are the options of `girih.em.fit_em` that its numbers depend on, checked; `DGNEstimator` has them too.

    Attributes:
        weight_prior: `None`, `("gaussian", s)`, `("laplace", s)` or `("uniform", s)`; see `WeightPrior`. The last two
            need a chain of Linear layers and activations.
        learn_prior: also update the latent prior.
        noise_floor: lower bound on the noise variance, as a share of the variance of the data (column by column
            unless the noise is isotropic). Without one the likelihood is unbounded: a network that passes through
            points can let the noise go to 0.
        max_iter: iterations of the run that is kept.
        tol: converged when three iterations in a row each gain less than this (nats per row).
        n_init: random starts; each gets `init_iter` iterations, the best is continued. 0 keeps the parameters that
            the model has (a warm start).
        init_iter: trial iterations of each start.
        acceleration: "quasi-newton", or "none" for EM alone. With a Laplace or uniform weight prior it is EM alone.
        batch_size: rows in a batch, for data with many rows: an iteration is then a pass over the rows in batches,
            undone where it raised the exact NLL of all rows. Batches double when that happens or little is gained,
            until all rows are used together. `None` uses all rows from the start.
        seed: of the starts and the batches.

    Raises:
        ParameterError: an option is out of its domain.

    Example:
        >>> from girih.em import EMOptions
        >>> EMOptions(weight_prior=("gaussian", 1.0)).updates
        ('head', 'noise', 'hidden')
    """

    weight_prior: WeightPrior | tuple[str, float] | str | None = None
    learn_prior: bool = False
    noise_floor: float = 1e-6
    max_iter: int = 200
    tol: float = 1e-6
    n_init: int = 5
    init_iter: int = 25
    acceleration: str = "quasi-newton"
    batch_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.acceleration not in ACCELERATIONS:
            raise ParameterError(f"acceleration must be one of {', '.join(ACCELERATIONS)}; got {self.acceleration!r}")
        checked = {
            "weight_prior": WeightPrior.parse(self.weight_prior),
            "learn_prior": bool(self.learn_prior),
            "noise_floor": real(self.noise_floor, "noise_floor"),
            "max_iter": whole(self.max_iter, "max_iter"),
            "tol": real(self.tol, "tol", positive=False),
            "n_init": whole(self.n_init, "n_init", 0),
            "init_iter": whole(self.init_iter, "init_iter"),
            "batch_size": None if self.batch_size is None else whole(self.batch_size, "batch_size"),
            "seed": whole(self.seed, "seed", None),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # frozen: only while it is made

    @classmethod
    def among(cls, named: Mapping[str, Any]) -> EMOptions:
        """The options among named values; those that are not there have their defaults."""
        return cls(**{field.name: named[field.name] for field in fields(cls) if field.name in named})

    @property
    def prior(self) -> WeightPrior | None:
        """The prior of the weights."""
        return WeightPrior.parse(self.weight_prior)

    @property
    def updates(self) -> tuple[str, ...]:
        """These are changed by an iteration."""
        return ("head", "noise", "hidden", *(("prior",) if self.learn_prior else ()))

    def plain(self) -> dict[str, Any]:
        """The options as plain values, for the checks of a checkpoint."""
        return {**vars(self), "weight_prior": str(self.weight_prior)}
