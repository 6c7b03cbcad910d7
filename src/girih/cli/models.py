"""`girih score`, `sample`, `impute` and `info`: what a fitted model says of rows, and of itself; `girih datasets`."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import girih
from girih.cli.folder import OutputFolder, default_out
from girih.cli.options import DataArgument, Given, Json, ModelArgument, Output, Reading, Rows, Seed, compute_threads
from girih.cli.terminal import CommandError, Terminal, command

if TYPE_CHECKING:
    import torch

    from girih.cli.tables import SavedModel


_SCORES, _SUMMARY = "scores.csv", "summary.json"
_SAMPLES, _SAMPLES_NPY, _PICTURE = "samples.csv", "samples.npy", "samples.png"
_SAMPLES_PARQUET = "samples.parquet"
_IMPUTED, _IMPUTED_NPY = "imputed.csv", "imputed.npy"
_DEVIATIONS, _DRAWS = "deviations.csv", "draws.csv"


@command
def score(
    model: ModelArgument,
    data: DataArgument,
    reading: Reading,
    rows: Rows = None,
    seed: Seed = 0,
    *,
    threshold: Annotated[
        float,
        typer.Option("--threshold", min=0.0, max=1.0, help="Rows of a table with a p-value up to it are strange."),
    ] = 0.01,
    output: Output,
) -> None:
    """Compute the exact log p(x) of each row: the lowest ones are the anomalies.

    Writes [b]scores.csv[/b] (log p in nats, the percentile of it among these rows, the row's latent z and its
    uncertainty) and [b]summary.json[/b]. Of a row with empty cells, log p is that of the cells that are there. With the
    model of a table also the p-value of each row, which is how often the model draws a row that is as unlikely with the
    same cells, whether it is strange by the threshold, and the columns that make it so.
    """
    from girih._files import write_json
    from girih.cli import table_data, table_rows, tables

    terminal = Terminal(output.as_json)
    saved = table_data.read_any(model)
    chosen = reading.chosen(seed, rows)
    folder = OutputFolder(default_out(output.out, saved.name, "score", Path(data).stem), "score", (_SCORES, _SUMMARY))
    if isinstance(saved, table_data.SavedTable):
        table = table_data.rows_for(saved, data, chosen)
        name = table.name
        with compute_threads(table.missing.size):
            scores = table_data.scores_of(saved.model, table) | table_rows.judged(saved.model, table, threshold, seed)
        summary = tables.summarise(scores["log_p"])
        summary |= {"threshold": threshold, "strange": int(sum(scores["strange"]))}
    else:
        dataset = tables.load_for(saved, data, chosen)
        name = dataset.name
        with compute_threads(dataset.X.size):
            scores, left_out = tables.score_rows(saved.dgn, dataset.X)
        summary = {**tables.summarise(scores["log_p"]), "left_out": left_out}
    scores["percentile"] = tables.percentiles(scores["log_p"])
    with folder.results() as results:
        tables.write_csv(results / _SCORES, scores)
        write_json(results / _SUMMARY, summary)

    terminal.say(f"{name}: {tables.plural(summary['rows'], 'row')}, log p(x) in nats", style="bold")
    quantiles = summary["quantiles"]
    terminal.table(
        {
            "mean": f"{summary['mean']:.4f} (standard deviation {summary['standard_deviation']:.4f})",
            "median": f"{quantiles['0.5']:.4f}",
            "from, to": f"{quantiles['0']:.4f}, {quantiles['1']:.4f}",
            "lowest 5%": f"below {quantiles['0.05']:.4f}",
            "least likely": "\n".join(f"row {x['row']:<8} {x['log_p']:10.3f}" for x in summary["least_probable"]),
        }
        | ({"strange": f"{summary['strange']} with p <= {threshold:g}"} if "strange" in summary else {})
        | ({"left out": f"at most {summary['left_out']:.1e} of any p(x), by proof"} if "left_out" in summary else {})
    )
    if "missing" in scores:
        incomplete = int((scores["missing"] > 0).sum())
        terminal.note(
            f"{tables.plural(incomplete, 'row')} with missing entries: log p is that of the entries that are there"
        )
    terminal.say(f"Scores: {folder / _SCORES} (rows are counted from 0)")
    terminal.result({"out": str(folder.path), **summary})


@command
def sample(
    model: ModelArgument,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many rows.")] = 100,
    seed: Seed = 0,
    *,
    given: Given = None,
    output: Output,
) -> None:
    """Draw new rows from a model; with [b]--given[/b], of a table, those that have some entries.

    Writes [b]samples.csv[/b], numbers also as [b]samples.npy[/b] (images in their shape), rows of a model of a parquet
    file also as [b]samples.parquet[/b], and for images and plane data a picture, [b]samples.png[/b].
    """
    from girih.cli import conditions, table_data, table_rows, tables

    terminal = Terminal(output.as_json)
    saved = table_data.read_any(model)
    files = (_SAMPLES, _SAMPLES_NPY, _SAMPLES_PARQUET, _PICTURE)
    folder = OutputFolder(default_out(output.out, saved.name, "sample"), "sample", files)
    if isinstance(saved, table_data.SavedTable):
        known = conditions.parse_given(saved, given or [])
        written = table_rows.write_sample(folder, saved, count, seed, known)
        _tell_sample(terminal, folder, written, count, len(saved.names), seed)
        return
    if given:
        raise CommandError("--given needs the model of a table; this is a single generator")
    X = saved.dgn().sample((count,), seed=seed).cpu().numpy()
    written = [_SAMPLES, _SAMPLES_NPY]
    with folder.results() as results:
        tables.write_csv(results / _SAMPLES, dict(zip(saved.header(), X.T, strict=True)))
        tables.write_npy(results / _SAMPLES_NPY, X.reshape(count, *saved.image_shape) if saved.image_shape else X)
        if saved.image_shape is not None or X.shape[1] == 2:
            girih.report.draw_samples(results / _PICTURE, X, saved.image_shape, saved.header())
            written.append(_PICTURE)
    _tell_sample(terminal, folder, written, count, X.shape[1], seed)


def _tell_sample(
    terminal: Terminal, folder: OutputFolder, written: list[str], count: int, columns: int, seed: int
) -> None:
    from girih.cli.tables import plural

    terminal.say(f"{plural(count, 'row')} of {plural(columns, 'column')} drawn with seed {seed}", style="bold")
    for name in written:
        terminal.say(f"  {folder / name}")
    terminal.result({"out": str(folder.path), "rows": count, "columns": columns, "seed": seed, "files": written})


@command
def impute(
    model: ModelArgument,
    data: DataArgument,
    reading: Reading,
    std: Annotated[
        bool, typer.Option("--std", help="Also write the standard deviation of each entry; 0 where it was there.")
    ] = False,
    draws: Annotated[
        int | None,
        typer.Option(
            "--draws",
            min=1,
            metavar="M",
            help="Also draw this many completions of the table, for multiple imputation.",
            show_default=False,
        ),
    ] = None,
    seed: Seed = 0,
    *,
    output: Output,
) -> None:
    """Fill the empty cells of a table with their exact expectation given the rest of the row.

    Writes [b]imputed.csv[/b]: the table as it was, other columns included, with the empty cells of the model's
    columns filled: numbers by their mean, text by the likeliest. For an npy file also [b]imputed.npy[/b], for a model
    of a table and a parquet file [b]imputed.parquet[/b]. [b]--std[/b] writes [b]deviations.csv[/b] and [b]--draws[/b]
    writes [b]draws.csv[/b].
    """
    from girih.cli import table_data, table_rows, tables

    terminal = Terminal(output.as_json)
    saved = table_data.read_any(model)
    path, chosen = default_out(output.out, saved.name, "impute", Path(data).stem), reading.chosen(seed)
    if isinstance(saved, table_data.SavedTable):
        table_rows.impute(terminal, saved, data, chosen, path, std, draws)
        return
    dataset = tables.load_for(saved, data, chosen)
    folder = OutputFolder(path, "impute", (_IMPUTED, _IMPUTED_NPY, _DEVIATIONS, _DRAWS))
    missing = dataset.X != dataset.X  # NaN alone is not itself
    with compute_threads(dataset.X.size):
        filled = saved.dgn.impute(dataset.X).cpu().numpy()
        spread = saved.dgn.impute(dataset.X, return_std=True)[1].cpu().numpy() if std else None
        drawn = None if draws is None else saved.dgn.impute(dataset.X, draws=draws, seed=seed).cpu().numpy()
    written = [_IMPUTED, *([_DEVIATIONS] if std else []), *([_DRAWS] if draws else [])]
    with folder.results() as results:
        if spread is not None:
            tables.write_csv(results / _DEVIATIONS, dict(zip(saved.header(), spread.T, strict=True)))
        if drawn is not None:
            tables.write_draws(results / _DRAWS, saved.header(), drawn)
        tables.write_completed(results / _IMPUTED, data, dataset, filled, missing, chosen.reading)
        if data.lower().endswith(".npy"):
            tables.write_npy(results / _IMPUTED_NPY, filled.reshape(len(filled), *(dataset.image_shape or (-1,))))
            written.append(_IMPUTED_NPY)

    count, rows = int(missing.sum()), int(missing.any(1).sum())
    empty = int(missing.all(1).sum())
    if count:
        share, where = count / missing.size, tables.plural(rows, "row")
        terminal.say(f"{dataset.name}: filled {count:,} of {missing.size:,} entries ({share:.1%}), in {where}")
    else:
        terminal.say(f"{dataset.name}: nothing is missing, so nothing was filled")
    if empty:
        terminal.note(f"{tables.plural(empty, 'row')} without any observed entry got the mean of the model")
    for name in written:
        terminal.say(f"  {folder / name}")
    terminal.result(
        {"out": str(folder.path), "filled": count, "rows_filled": rows, "rows": len(filled), "files": written}
    )


@command
def anomalies(
    model: ModelArgument,
    data: DataArgument,
    reading: Reading,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many rows.")] = 10,
    rows: Rows = None,
    seed: Seed = 0,
    *,
    output: Output,
) -> None:
    """Find the strangest rows of a table, and the columns that make each of them strange.

    Rows are compared with rows that the model draws, of which the same cells are known. Writes [b]anomalies.csv[/b]:
    the rows, how strange each is, the cells that make it so, and for each column log p of its cell given the rest of
    the row, in nats.
    """
    from girih.cli import table_data, table_rows

    terminal = Terminal(output.as_json)
    saved = table_data.read_any(model)
    if not isinstance(saved, table_data.SavedTable):
        raise CommandError("girih anomalies needs the model of a table; of a single generator use girih score")
    chosen = reading.chosen(seed, rows)
    path = default_out(output.out, saved.name, "anomalies", Path(data).stem)
    table_rows.anomalies(terminal, saved, data, chosen, path, count)


@command
def condition(
    model: ModelArgument,
    given: Given = None,
    draws: Annotated[
        int | None,
        typer.Option(
            "--draws", min=1, metavar="M", help="Also draw this many rows with these entries.", show_default=False
        ),
    ] = None,
    seed: Seed = 0,
    *,
    output: Output,
) -> None:
    """Say what the columns of a table are, given some entries of a row.

    Writes [b]condition.csv[/b]: of each other column of numbers the exact mean, standard deviation, and 5, 50 and 95 %
    quantiles; of each other column of text the probability of every value. Without [b]--given[/b] that is what the
    table is like on the whole.
    """
    from girih.cli import conditions, table_data

    terminal = Terminal(output.as_json)
    saved = table_data.read_any(model)
    if not isinstance(saved, table_data.SavedTable):
        raise CommandError("girih condition needs the model of a table; this is a single generator")
    known = conditions.parse_given(saved, given or [])
    conditions.condition(terminal, saved, known, default_out(output.out, saved.name, "condition"), draws, seed)


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
        from girih.cli import table_data, table_rows, tables

        saved = table_data.read_any(model)
        facts = describe_model(saved) if isinstance(saved, tables.SavedModel) else table_rows.describe_table(saved)
        terminal.table({key.replace("_", " "): _text(value) for key, value in facts.items() if value is not None})
    terminal.result(facts)


@command
def datasets(as_json: Json = False) -> None:
    """List the built-in data sets."""
    terminal, known = Terminal(as_json), girih.datasets.names()
    terminal.table(known)
    terminal.result({"datasets": known})


def versions() -> dict[str, Any]:
    """Versions of girih and of what it computes with, told without loading any of it."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "girih": girih.__version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "numpy")},
        "threads": int(os.environ.get("OMP_NUM_THREADS") or processors or 1),
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
