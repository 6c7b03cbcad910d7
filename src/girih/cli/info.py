"""`girih info` and `girih datasets`: what is installed, what is in a model, what data there is."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import girih
from girih.cli.options import Json
from girih.cli.terminal import Terminal, command

if TYPE_CHECKING:
    import torch

    from girih.cli.inputs import SavedModel


@command
def info(
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="[MODEL]", help="The folder that girih fit wrote, or a saved model.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what is installed, or what is in a model."""
    terminal = Terminal(as_json)
    if model is None:
        facts = versions()
        terminal.table({key.replace("_", " "): str(value) for key, value in facts.items()})
    else:
        from girih.cli import inputs

        facts = describe_model(inputs.read_model(model))
        terminal.table({key.replace("_", " "): _text(value) for key, value in facts.items() if value is not None})
    terminal.result(facts)


@command
def datasets(as_json: Json = False) -> None:
    """List the built-in data sets."""
    terminal, known = Terminal(as_json), girih.datasets.names()
    terminal.table(known)
    terminal.result({"datasets": known})


def versions() -> dict[str, Any]:
    """Versions of girih and of what it computes with."""
    import torch

    return {
        **girih.report.versions(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "platform": platform.platform(),
    }


def describe_model(saved: SavedModel) -> dict[str, Any]:
    """Sizes, layers, noise and fit of a model."""
    dgn, est = saved.dgn, saved.estimator
    layers = []
    for step in dgn.trace.steps[1:]:
        if isinstance(step, girih.networks.LinearStep):
            layers.append(f"affine {step.in_features} -> {step.out_features}")
        elif isinstance(step, girih.networks.KinkStep) and step.bends_at_zero:
            layers.append(f"kink with slope {_slope(step.slope)}")
        else:
            layers.append(f"{step.kind} of {step.size} features")
    noise = dgn.noise_covariance.detached()
    columns = noise.variances.sqrt().tolist() if noise.kind != "scalar" and noise.dim <= 6 else None
    nll = saved.metrics.get("nll_per_row")
    if nll is None and est is not None:
        nll = float(est.nll_curve_[-1])
    return {
        "model": str(saved.path),
        "latent_dim": dgn.latent_dim,
        "output_dim": dgn.output_dim,
        "layers": layers,
        "cells": len(dgn.partition),
        "noise": noise.name,
        "noise_deviation": float(noise.mean_variance.sqrt()) if columns is None else columns,
        "stored_parameters": sum(p.numel() for p in dgn.parameters()),
        "identifiable_parameters": est.n_parameters_ if est is not None else girih.em.count_parameters(dgn),
        "fitted_to": saved.metrics.get("data", {}).get("source"),
        "nll_per_row": nll,
        "iterations": None if est is None else est.n_iter_,
        "converged": None if est is None else est.converged_,
        "image_shape": None if saved.image_shape is None else list(saved.image_shape),
        "columns": None if saved.image_shape is not None else saved.columns,
    }


def _slope(slope: torch.Tensor) -> str:
    return f"{float(slope):g}" if slope.numel() == 1 else "per unit"


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
