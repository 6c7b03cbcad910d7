"""The options of exact EM that its numbers depend on, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from girih._options import real, whole
from girih.em.mstep import WeightPrior
from girih.errors import ParameterError

ACCELERATIONS = ("none", "quasi-newton")
INITS = ("auto", "random")
M_STEPS = ("joint", "layerwise")


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
        noise_prior: rho, the scale of an inverse Wishart prior on the noise in units of the data's variances U
            (column by column unless the noise is isotropic): the penalty is `rho tr(noise^-1 U) / 2`, and the noise of
            N rows `(scatter + rho U) / N`. It keeps columns from collapsing, which a bound does not; 0 for none.
        kink_ridge: lambda, the weight of `lambda E |noise^-1/2 (g(z) - l(z))|^2 / 2`, with l the best affine
            approximation of the generator g under the latent prior: a matrix-normal prior on what bends, which leaves
            the linear part free and counts like lambda rows that lie on l. Large values give factor analysis.
        max_iter: iterations of the run that is kept.
        tol: converged when three iterations in a row each gain less than this (nats per row).
        n_init: random starts, beside which curves are tried (see `init`); each gets `init_iter` iterations, the best
            is continued. 1 is the best curve alone, or one random start. 0 keeps the parameters that the model has
            (a warm start). Of more than 2,048 rows with weight (of one latent 16,384) a uniform sample of so many,
            drawn with `seed`, stands for all in the trials, with its rows' weights scaled up; there the best goes on to
            `4 init_iter` iterations, and what it comes to begins the run that is kept, which is of all rows.
        init_iter: trial iterations of each start.
        acceleration: "quasi-newton", or "none" for EM alone. With a Laplace or uniform weight prior it is EM alone.
        batch_size: rows in a batch, for data with many rows: an iteration is then a pass over the rows in batches,
            undone where it raised the exact NLL of all rows. Batches double when that happens or little is gained,
            until all rows are used together. `None` uses all rows from the start.
        init: "random", or "auto": for S = 1, curves through the rows are tried as well, in the order of their first
            principal component, Fiedler vector or Laplacian eigenvectors: the two that a regression explains best. The
            best curve and the best random start then go on to `4 init_iter` iterations before they are compared.
        patience: where rows are held out, end when this many iterations in a row gain less than `tol` on them;
            `None` never does.
        m_step: "joint" moves all hidden layers together, along a damped Gauss-Newton step. "layerwise" moves them as
            EM-DGN does, one after the other to the closed form of appendix G.2, then all back by a share until the
            exact NLL does not rise. It is EM alone, on all rows at once, and needs a chain of Linear layers.
        safeguard: of "layerwise", whether steps that raise the exact NLL are shortened. Without, the updates are those
            in print, the curve can rise, and the model keeps the parameters of its lowest point (`best_step`).
        seed: of the starts, the batches and the rows that are held out.

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
    noise_prior: float = 0.0
    kink_ridge: float = 0.0
    max_iter: int = 200
    tol: float = 1e-6
    n_init: int = 5
    init_iter: int = 25
    acceleration: str = "quasi-newton"
    batch_size: int | None = None
    init: str = "auto"
    patience: int | None = 10
    m_step: str = "joint"
    safeguard: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.acceleration not in ACCELERATIONS:
            raise ParameterError(f"acceleration must be one of {', '.join(ACCELERATIONS)}; got {self.acceleration!r}")
        if self.init not in INITS:
            raise ParameterError(f"init must be one of {', '.join(INITS)}; got {self.init!r}")
        self._check_m_step()
        checked = {
            "weight_prior": WeightPrior.parse(self.weight_prior),
            "learn_prior": bool(self.learn_prior),
            "noise_floor": real(self.noise_floor, "noise_floor"),
            "noise_prior": real(self.noise_prior, "noise_prior", positive=False),
            "kink_ridge": real(self.kink_ridge, "kink_ridge", positive=False),
            "max_iter": whole(self.max_iter, "max_iter"),
            "tol": real(self.tol, "tol", positive=False),
            "n_init": whole(self.n_init, "n_init", 0),
            "init_iter": whole(self.init_iter, "init_iter"),
            "batch_size": None if self.batch_size is None else whole(self.batch_size, "batch_size"),
            "patience": None if self.patience is None else whole(self.patience, "patience"),
            "seed": whole(self.seed, "seed", None),
        }
        if self.kink_ridge and self.learn_prior:
            raise ParameterError(
                "kink_ridge measures bends under the latent prior, which learn_prior would move; leave learn_prior "
                "out, as the first layer can scale the latents as well"
            )
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # frozen: only while it is made

    def _check_m_step(self) -> None:
        if self.m_step not in M_STEPS:
            raise ParameterError(f"m_step must be one of {', '.join(M_STEPS)}; got {self.m_step!r}")
        if not isinstance(self.safeguard, bool | np.bool_):
            raise ParameterError(f"safeguard must be True or False; got {self.safeguard!r}")
        if self.m_step == "layerwise" and self.batch_size is not None:
            raise ParameterError("m_step='layerwise' uses all rows at once; leave batch_size out, or m_step")
        if self.m_step == "joint" and not self.safeguard:
            raise ParameterError(
                "safeguard=False leaves the updates of EM-DGN as they are; it goes with m_step='layerwise' only"
            )

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
