"""The reproductions by name."""

from __future__ import annotations

import importlib
import numbers
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

import girih
from girih.errors import ParameterError
from girih_papers.figures import SMOKE_RUN, smoke_run
from girih_papers.files import keeping, write_json
from girih_papers.printed import beside_the_paper, entries
from girih_papers.settings import changed

# Name to module and description; a module has `run(out, quick, seed, progress) -> dict`.
# A module followed by a colon and a function has that function instead, which takes the options too.
# A module with the dataclasses `SETTINGS` (those of the paper) and `QUICK` gets one of them, or what the user made of
# it, as `settings`.
_KNOWN: dict[str, tuple[str, str]] = {
    "em-distributions": (
        "em_distributions",
        "Exact marginal and posterior of random generators (EM-DGN, Figs. 3 and 6).",
    ),
    "em-circle": ("em_toys:circle", "EM against VAEs on a noisy circle: exact NLL and KL (EM-DGN, Figs. 4 and 5)."),
    "em-wave": (
        "em_toys:wave",
        "EM against VAEs on a part of a cosine: NLL, KL, manifolds (EM-DGN, Figs. 7-9; v2, Fig. 6).",
    ),
    "em-mnist": (
        "em_mnist",
        "EM against VAEs on the digit 4: exact NLL and images (EM-DGN, Figs. 10 and 11; v2, Fig. 7).",
    ),
    "em-fair": (
        "em_fair",
        "EM, exact gradients, VAEs and IWAE with the same starts, time and test rows (beyond the papers).",
    ),
    "em-applications": (
        "em_applications",
        "Model comparison, anomaly detection and imputation by exact densities of tables (beyond the papers).",
    ),
    "partition-discovery": (
        "partition_discovery",
        "The partition found cell by cell, and a cell cut into triangles (EM-DGN, Figs. 1 and 2).",
    ),
    "mas-surface": ("mas_surface", "The cells of a latent plane and the surface they are mapped to (MAS, Fig. 1)."),
    "mas-dropout-dimension": (
        "mas_dropout_dimension",
        "The intrinsic dimension under dropout and dropconnect (MAS, Fig. 2).",
    ),
    "mas-elbow": ("mas_elbow", "The least error on a plane against latent dimension and sample size (MAS, Fig. 4)."),
    "mas-angles": ("mas_angles", "Angles between the images of adjacent cells (MAS, Figs. 8 and 11)."),
    "mas-determinants": ("mas_determinants", "Volumes of cells against the variance of weights (MAS, Fig. 10)."),
    "mas-dropout-circle": (
        "mas_dropout_circle",
        "A GAN with dropout on a circle, realisation by realisation (MAS, Fig. 3).",
    ),
    "mas-bimodal": ("mas_bimodal", "Volumes of the cells of GANs on two Gaussians (MAS, Figs. 7 and 15)."),
    "mas-angles-circle": ("mas_angles_circle", "Curves of GANs on a circle and their kinks (MAS, Fig. 12)."),
    "mas-dropout-elbo": (
        "mas_dropout_elbo",
        "The negative ELBO of VAEs against width and dropout of the decoder (MAS, Figs. 4 and 9).",
    ),
    "mas-basis": (
        "mas_basis",
        "A basis vector of four generators of digits, and their digits (MAS, Figs. 5, 13 and 14).",
    ),
    "mas-disentanglement": (
        "mas_disentanglement",
        "How far from orthogonal the basis vectors of the generators of Fig. 5 are (MAS, Table 1).",
    ),
    "mas-smoothing": ("mas_smoothing", "Surfaces and VAEs with smoothed activations (MAS, Fig. 6)."),
    "rad-continuity": ("rad_continuity", "Folds, gates, and what keeps log p continuous (RAD, Figs. 2, 4 and 13)."),
    "rad-table": ("rad_table", "The log-likelihood of RAD and Real NVP on six problems (RAD, section 3.3; Fig. 5)."),
    "rad-samples": ("rad_samples", "What RAD and Real NVP draw after training on six problems (RAD, Figs. 5 and 7)."),
    "rad-gaussianization": (
        "rad_gaussianization",
        "What trained flows make of the data, beside a standard Gaussian (RAD, Figs. 8 and 18).",
    ),
    "rad-inference": ("rad_inference", "Data on their way through the layers of trained flows (RAD, Figs. 9 and 10)."),
    "rad-folding": ("rad_folding", "How each layer folds the plane (RAD, Figs. 11, 12 and 14-17)."),
    "rad-tables": (
        "rad_tables",
        "RAD on real tables beside Real NVP, spline flows, mixtures and exact EM (beyond the papers).",
    ),
    "concrete-density": (
        "concrete_density",
        "The density of the Concrete distribution on the simplex (CG-BPEF, Figs. 2 and 6-8).",
    ),
    "concrete-kl": (
        "concrete_kl",
        "The KL of categories against that of z = y^T zeta, over the temperature (CG-BPEF, Figs. 3 and 5).",
    ),
    "cgbpef-table": (
        "cgbpef_table",
        "The free energies of the three VAEs of Fig. 1 on MNIST or SVHN (CG-BPEF, Table 1).",
    ),
    "vae-geometry": (
        "vae_geometry",
        "Posteriors, prior, centroid and maximum-likelihood points of VAEs, with distances (CG-BPEF, Fig. 4).",
    ),
    "field-quadrature": (
        "field_evidence:quadrature",
        "Is quasi-Monte Carlo exact in practice for continuous mixtures? Its error over the noise (beyond the papers).",
    ),
    "field-iwae": (
        "field_evidence:iwae",
        "Is importance sampling with 5,000 draws close to log p? Its error on data and other rows (beyond the papers).",
    ),
    "field-amortisation": (
        "field_posteriors:amortisation",
        "Is amortisation the larger part of the gap? Its share over encoders and training (beyond the papers).",
    ),
    "field-collapse": (
        "field_posteriors:collapse",
        "Is posterior collapse a property of the optimum? Exact optima beside VAEs over the noise (beyond the papers).",
    ),
    "vae-gap": (
        "vae_gap",
        "The exact gaps of Gaussian, mixture and CG-BPEF posteriors during training (beyond the papers).",
    ),
    "em-circle-2d": (
        "density_race:circle",
        "The circle with S = 2: exact EM against VAE, Gaussian mixtures and flows (beyond the papers).",
    ),
    "em-mnist-2d": (
        "density_race:mnist",
        "Ten digits with S = 2: exact EM against VAE, Gaussian mixtures and flows (beyond the papers).",
    ),
    "em-mnist-3d": (
        "density_race:mnist",
        "Ten digits with S = 3: exact EM against VAE, Gaussian mixtures and flows (beyond the papers).",
    ),
    "mnist-latent-plane": (
        "latent_plane",
        "The latent plane of ten digits: cells, posteriors, decoded images (beyond the papers).",
    ),
}
_OPTIONS: dict[str, dict[str, Any]] = {
    "em-circle-2d": {"latent_dim": 2},
    "em-mnist-2d": {"latent_dim": 2},
    "em-mnist-3d": {"latent_dim": 3},
}


def names() -> dict[str, str]:
    """The reproductions, each with one line on what it is.

    Example:
        >>> from girih_papers.registry import names
        >>> list(names())[:4]
        ['em-distributions', 'em-circle', 'em-wave', 'em-mnist']
    """
    return {name: description for name, (_, description) in _KNOWN.items()}


def costs() -> dict[str, dict[str, str]]:
    """What each reproduction takes: `full` and `quick`, of one thread, and `needs`, beyond `girih[all]`.

    Example:
        >>> from girih_papers.registry import costs
        >>> costs()["rad-continuity"]
        {'full': '10 s', 'quick': '5 s', 'needs': ''}
    """
    return {name: {"full": e.full, "quick": e.quick, "needs": e.needs} for name, e in entries().items()}


def run(
    name: str,
    out: str | os.PathLike[str],
    quick: bool = False,
    seed: int = 0,
    progress: bool = True,
    changes: Mapping[str, str] | None = None,
    home: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Run a reproduction; write `result.json` and its pictures into a folder.

    Args:
        name: one that `names()` lists.
        out: the folder, made if there is none.
        quick: a small version of the same that takes seconds; its numbers mean nothing.
        seed: of the data, the networks and the training. The same seed gives the same numbers, times apart.
        progress: show a progress bar.
        changes: other values for some of its settings, as texts, for those reproductions that have settings.
        home: the folder that keeps finished runs of training; `out` by default. It matters where `out` goes if the
            reproduction fails.

    Returns:
        What `result.json` holds.

    Raises:
        ParameterError: the name is unknown, the seed is not a whole number of 0 or more, or a change does not fit.
    """
    if name not in _KNOWN:
        raise ParameterError(f"there is no reproduction {name!r}; known are {', '.join(_KNOWN)}")
    seed = _checked(seed)
    options = options_of(name, bool(quick), changes)
    module, function = _home(name)
    experiment, description = getattr(module, function), _KNOWN[name][1]
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with keeping(folder, folder if home is None else Path(home)), smoke_run(bool(quick)):
        body = experiment(folder, quick=bool(quick), seed=seed, progress=progress, **options)
    seconds = time.perf_counter() - start
    result = {"name": name, "description": description, "quick": bool(quick), "seed": seed, "wall_seconds": seconds}
    result |= {"smoke_run": SMOKE_RUN} if quick else {}
    result |= body
    if changes:
        result["changed_settings"] = dict(changes)
    result["beside_the_paper"] = beside_the_paper(name, result)
    result["versions"] = {
        "girih": girih.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    write_json(folder / "result.json", result)
    return result


def options_of(name: str, quick: bool, changes: Mapping[str, str] | None) -> dict[str, Any]:
    """What a reproduction is called with besides the arguments that all have.

    Raises:
        ParameterError: a change is of a setting that it does not have, or not of its kind.
    """
    module, _ = _home(name)
    options = dict(_OPTIONS.get(name, {}))
    if hasattr(module, "SETTINGS"):
        options["settings"] = changed(module.QUICK if quick else module.SETTINGS, changes or {})
    elif changes:
        raise ParameterError(f"{name} has no settings to change, only --quick and a seed; got {', '.join(changes)}")
    return options


def _checked(seed: int) -> int:
    if not isinstance(seed, numbers.Integral) or isinstance(seed, bool) or seed < 0:
        raise ParameterError(f"seed must be a whole number, 0 or more; got {seed!r}")
    return int(seed)


def _home(name: str) -> tuple[ModuleType, str]:
    """The module of a reproduction and the name of its function there."""
    file, _, function = _KNOWN[name][0].partition(":")
    return importlib.import_module(f"girih_papers.{file}"), function or "run"
