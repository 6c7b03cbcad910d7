"""The numbers of an inspection: one structure for programs, and a table of the cells."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from girih.geometry import Cells, CellValues
from girih.geometry.priors import UniformPrior
from girih.networks import AffineStep, KinkStep, LatentStep, Trace
from girih.plots.histograms import cell_weights, weighted_quantiles
from girih.plots.numbers import Array, to_array
from girih.report.gap_page import facts_of_gap
from girih.report.inspection import Inspection
from girih.report.inspection_rows import InspectedRows

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_LISTED = 8  # singular values in the table of cells
_COORDINATES = 16  # latents of a cell in that table


def facts(found: Inspection) -> dict[str, Any]:
    """The numbers of an inspection by name. Standard errors are 0 for what is exact.

    Example:
        >>> import girih
        >>> from girih.report import inspect_decoder
        >>> from girih.report.inspection_facts import facts
        >>> numbers = facts(inspect_decoder(girih.mlp([2, 8, 3], seed=0)))
        >>> numbers["cells"]["count"], numbers["dimension"]["mean"]
        (37, 2.0)
    """
    return {
        "decoder": {
            "latent_dim": found.latent_dim,
            "output_dim": found.trace.output_dim,
            "hidden_units": found.trace.hidden_units,
            "layers": describe_layers(found.trace),
        },
        "prior": _prior(found),
        "cells": _cells(found),
        "dimension": _dimension(found),
        "singular_values": _spectrum(found),
        "log_volume": _volume(found),
        "entropy": _entropy(found),
        "disentanglement": {
            "mean": found.disentanglement.mean,
            "standard_error": _error(found.disentanglement),
            "largest": float(found.disentanglement.values[_with_mass(found)].max()),
            "overlap": found.overlap.tolist(),
        },
        "angles": _angles(found),
        "injectivity": {
            "injective": found.verdict.injective,
            "reason": found.verdict.reason,
            "witness": None if found.verdict.witness is None else found.verdict.witness.tolist(),
        },
    }


def facts_of_rows(found: InspectedRows, cells: Cells) -> dict[str, Any]:
    """The numbers of rows beside an inspected decoder by name, nats where they are logarithms.

    Example:
        >>> import girih
        >>> from girih.report import facts_of_rows, inspect_decoder, inspect_rows
        >>> dgn = girih.DGN(girih.mlp([1, 8, 3], seed=0), noise=0.01)
        >>> cells = inspect_decoder(dgn.net).cells
        >>> numbers = facts_of_rows(inspect_rows(cells, dgn().sample((50,), seed=0), noise=0.01), cells)
        >>> numbers["rows"], numbers["nll"]["exact"], numbers["noise"]["from"]
        (50, True, 'given')
    """
    _, counts = torch.unique(found.patterns, dim=0, return_counts=True)
    share = counts.sort(descending=True).values.cumsum(0).cpu().numpy() / len(found.rows)
    held = None if found.cell is None else torch.unique(found.cell)
    return {
        "rows": len(found.rows),
        "missing_entries": int(found.rows.isnan().sum()),
        "how": found.how,
        "nll": None if found.log_p is None else _nll(found, found.log_p),
        "noise": None
        if found.noise is None
        else {"kind": found.noise.kind, "variance": float(found.noise.mean_variance), "from": found.noise_from},
        "likelihood": found.noise_from if found.noise is None else "Gaussian",
        "cells": {
            "held": len(counts),
            "of": len(cells) if cells.exact else None,
            "hold_90_percent": int(np.searchsorted(share, 0.9)) + 1,
            "prior_mass": None
            if held is None or not cells.exact
            else float(cells.mass[held.to(cells.mass.device)].sum()),
            "share": None if found.share is None else float(found.share.mean()),
        },
        "latents": {"mean_square": found.spread},
        "residual": float(found.residual.square().nanmean().sqrt()),
        "bound": None if found.bound is None else float(found.bound.mean()),
        "gap": None if found.gap is None else {**facts_of_gap(found.gap), "rows": len(found.gap_rows)},
        "unknown": found.missing,
    }


def _nll(found: InspectedRows, log_p: Tensor) -> dict[str, Any]:
    """The mean NLL, the standard error of its estimate, and that of the mean over such rows."""
    error, count = found.log_p_error, len(log_p)
    assert error is not None
    return {
        "mean": -float(log_p.mean()),
        "exact": not bool(error.any()),
        "standard_error": float(error.square().sum().sqrt()) / count,
        "over_rows": float(log_p.std()) / math.sqrt(count) if count > 1 else None,
        "gaussian": found.gaussian,
    }


def row_table(found: InspectedRows) -> dict[str, NDArray[Any]]:
    """A table by its columns, a line for each row: log p, its cell, where it lies, and the gap where it is known."""
    count = len(found.rows)
    table: dict[str, NDArray[Any]] = {"row": np.arange(count)}
    if found.log_p is not None:
        table["log_p"] = to_array(found.log_p)
    if found.log_p_error is not None and bool(found.log_p_error.any()):
        table["log_p_error"] = to_array(found.log_p_error)
    if found.cell is not None:
        table["cell"] = found.cell.cpu().numpy()
    if found.share is not None:
        table["cell_probability"] = to_array(found.share)
    table["residual"] = to_array(found.residual)
    for k in range(min(found.latents.shape[1], _COORDINATES)):
        table[f"z{k + 1}"] = to_array(found.latents[:, k])
        if found.deviations is not None:
            table[f"z{k + 1}_deviation"] = to_array(found.deviations[:, k])
    if found.bound is not None:
        table["bound"] = to_array(found.bound)
    if found.gap is not None:
        for name in ("bound", "gap", "approximation", "amortisation"):
            table[name] = np.full(count, np.nan)
            table[name][found.gap_rows.cpu().numpy()] = to_array(getattr(found.gap, name))
    return table


def describe_layers(traced: Trace) -> list[str]:
    """One line for each step of a traced network.

    Example:
        >>> import girih
        >>> from girih.report.inspection_facts import describe_layers
        >>> describe_layers(girih.trace(girih.mlp([2, 8, 3], activation="relu", seed=0)))
        ['0: affine, 2 to 8', '1: 8 units, 1 kink each', '2: affine, 8 to 3']
    """
    lines = []
    for step in traced.steps:
        if isinstance(step, LatentStep):
            continue
        if isinstance(step, AffineStep):
            taken = " + ".join(str(traced.steps[i].size) for i in step.inputs)
            what = f"affine, {taken} to {step.size}"
        elif isinstance(step, KinkStep):
            kinks = len(step.thresholds)
            what = f"{step.size} units, {kinks} kink{'s' if kinks > 1 else ''} each"
        else:
            what = f"{step.size} maxima"
        lines.append(f"{step.path}: {what}" if step.path else what)
    return lines


def cell_table(found: Inspection, rows: InspectedRows | None = None) -> dict[str, NDArray[Any]]:
    """A table by its columns, a line for each cell: in the order of the partition or, if sampled, as they were met.

    With rows it has a column of how many fall on each cell, where all cells are known.
    """
    cells, S = found.cells, found.latent_dim
    table: dict[str, NDArray[Any]] = {
        "cell": np.arange(len(cells)),
        "prior_mass": to_array(cells.mass),
        "prior_mass_error": to_array(cells.mass_error),
        "rank": found.dimension.values.cpu().numpy(),
        "layer_bound": found.bound.values.cpu().numpy(),
        "log_volume": to_array(found.volume.values),
    }
    for k in range(min(S, _LISTED)):
        table[f"singular_value_{k + 1}"] = to_array(cells.singular_values[:, k])
    table["disentanglement"] = to_array(found.disentanglement.values)
    table["largest_angle_degrees"] = _largest_angles(found)
    if rows is not None and rows.cell is not None and cells.exact:
        table["rows"] = torch.bincount(rows.cell.cpu(), minlength=len(cells)).numpy()
    for k in range(min(S, _COORDINATES)):
        table[f"z{k + 1}"] = to_array(cells.points[:, k])
    return table


def _largest_angles(found: Inspection) -> Array:
    """The largest known angle of each cell to a neighbour, of sampled cells to one; NaN where there is none."""
    largest = np.full(len(found.angles.cells), -1.0)
    pairs, value = found.angles.pairs.cpu().numpy(), np.degrees(to_array(found.angles.largest))
    for side in (0, 1):
        np.maximum.at(largest, pairs[:, side], value)
    largest = largest[: len(found.cells)]
    return np.where(largest < 0.0, np.nan, largest)


def _prior(found: Inspection) -> dict[str, Any]:
    prior = found.cells.prior
    assert prior is not None
    if isinstance(prior, UniformPrior):
        about: dict[str, Any] = {"kind": "uniform", "low": prior.low.tolist(), "high": prior.high.tolist()}
    else:
        about = {"kind": "gaussian", "covariance": prior.covariance.tolist()}
    return {**about, "entropy": prior.entropy()}


def _cells(found: Inspection) -> dict[str, Any]:
    cells = found.cells
    mass = np.sort(cell_weights(cells)[0])[::-1].cumsum()
    return {
        "count": len(cells),
        "exact": cells.exact,
        "draws": cells.draws,
        "unseen_mass": cells.unseen_mass,
        "hold_90_percent": int(np.searchsorted(mass, 0.9)) + 1 if cells.exact else None,
        "note": found.note,
    }


def _dimension(found: Inspection) -> dict[str, Any]:
    weight = cell_weights(found.cells)[0]
    weight = weight / weight.sum()
    ranks = to_array(found.layer_ranks)
    mean = weight @ ranks
    narrow = (ranks == ranks.min(1, keepdims=True)) & (ranks < found.latent_dim)
    first = np.where(narrow.any(1), narrow.argmax(1), -1)  # the first layer that lets through the fewest
    share = [float(weight[first == k].sum()) for k in range(ranks.shape[1])]
    values = found.dimension.values.cpu().numpy()
    draws = found.cells.draws
    shares = np.bincount(values, weight, found.latent_dim + 1)
    return {
        "mean": found.dimension.mean,
        "standard_error": _error(found.dimension),
        "largest": int(values[weight > 0].max()),
        "shares": {str(k): float(s) for k, s in enumerate(shares)},
        "shares_error": {
            str(k): math.sqrt(s * max(1.0 - s, 0.0) / draws) if draws else 0.0 for k, s in enumerate(shares)
        },
        "bound_mean": found.bound.mean,
        "layers": [
            {"layer": name, "mean": float(m), "least": int(column.min()), "bottleneck_share": s}
            for name, m, column, s in zip(found.layer_names, mean, ranks[weight > 0].T, share, strict=True)
        ],
        "bottleneck": found.layer_names[int(np.argmax(share))] if max(share) > 0.0 else None,
    }


def _spectrum(found: Inspection) -> dict[str, Any]:
    values, weight = to_array(found.cells.singular_values), cell_weights(found.cells)[0]
    square = found.cells.singular_values.square()
    fourth = square.square().sum(1)
    effective = CellValues(found.cells, torch.where(fourth > 0.0, square.sum(1).square() / fourth, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        condition = np.where(values[:, -1] > 0, values[:, 0] / values[:, -1], np.inf)
    quantiles = weighted_quantiles(values, weight, QUANTILES)
    return {
        "quantiles": {str(q): line for q, line in zip(QUANTILES, quantiles.tolist(), strict=True)},
        "condition_median": float(weighted_quantiles(condition[:, None], weight, [0.5])[0, 0]),
        "effective_dimension": effective.mean,
        "effective_dimension_error": _error(effective),
    }


def _volume(found: Inspection) -> dict[str, Any]:
    values, weight = to_array(found.volume.values), cell_weights(found.cells)[0]
    known = np.isfinite(values)
    rest = weight[known] / max(weight[known].sum(), np.finfo(float).tiny)
    mean = float(rest @ values[known]) if known.any() else math.nan
    deviation = math.sqrt(float(rest @ (values[known] - mean) ** 2)) if known.any() else math.nan
    draws = found.cells.draws * float(weight[known].sum() / weight.sum())  # those behind the mean
    return {
        "mean": mean,
        "standard_error": 0.0 if found.cells.exact else deviation / math.sqrt(draws - 1.0) if draws > 1.5 else math.nan,
        "deviation": deviation,
        "quantiles": {
            str(q): float(v)
            for q, v in zip(QUANTILES, weighted_quantiles(values[:, None], weight, QUANTILES)[:, 0], strict=True)
        },
        "degenerate_mass": found.entropy.degenerate_mass,
        "uniform": found.uniformity.uniform,
        "least": found.uniformity.least,
        "most": found.uniformity.most,
    }


def _entropy(found: Inspection) -> dict[str, Any]:
    prior = found.cells.prior
    assert prior is not None
    return {
        "value": found.entropy.value,
        "standard_error": found.entropy.standard_error,
        "of_prior": prior.entropy(),
        "degenerate_mass": found.entropy.degenerate_mass,
        "upper_bound": found.verdict.injective is not True,
        "folded": None if found.folded is None else {"value": found.folded[0], "standard_error": found.folded[1]},
    }


def _angles(found: Inspection) -> dict[str, Any]:
    degrees, weight = np.degrees(to_array(found.angles.largest)), to_array(found.pair_weights)
    about: dict[str, Any] = {"pairs": len(degrees), "source": found.pair_source}
    if not len(degrees) or weight.sum() <= 0.0:
        return {**about, "mean": None, "standard_error": None, "largest": None, "quantiles": None}
    mean = float((weight * degrees).sum() / weight.sum())
    error = 0.0 if found.cells.exact else math.sqrt(float(weight**2 @ (degrees - mean) ** 2)) / float(weight.sum())
    quantiles = weighted_quantiles(degrees[:, None], weight, QUANTILES)[:, 0]
    return {
        **about,
        "mean": mean,
        "standard_error": error,
        "largest": float(degrees.max()),
        "quantiles": {str(q): float(v) for q, v in zip(QUANTILES, quantiles, strict=True)},
    }


def _error(values: CellValues) -> float:
    """The standard error of the mean; 0 where it is only the rounding of equal values."""
    error = values.mean_error
    return 0.0 if error <= 1e-14 * abs(values.mean) else error


def _with_mass(found: Inspection) -> Tensor:
    mask: Tensor = found.cells.mass.to(found.disentanglement.values.device) > 0.0
    return mask if bool(mask.any()) else torch.ones_like(mask)
