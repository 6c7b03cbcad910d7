"""`girih fit`: the command and its options; the work is in `fitting`, the pages in `results`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from girih._extras import require
from girih.cli.folder import OutputFolder, default_out
from girih.cli.inputs import describe, load_data
from girih.cli.options import (
    Acceleration,
    Activation,
    Columns,
    DataArgument,
    Drop,
    Header,
    Json,
    Noise,
    Out,
    Rows,
    Threads,
    parse_weight_prior,
    parse_widths,
    split_names,
)
from girih.cli.terminal import INTERRUPTED, Terminal, command
from girih.cli.threads import compute_threads

_MODEL, _TRAINING = "Model", "Training"


@command
def fit(
    data: DataArgument,
    latent_dim: Annotated[
        int, typer.Option("--latent-dim", min=1, help="Latent dimension S: 1, 2 or 3.", rich_help_panel=_MODEL)
    ] = 1,
    hidden: Annotated[
        str | None,
        typer.Option(
            "--hidden",
            metavar="N,N,...",
            help="Widths of the hidden layers, or [b]none[/b] for a linear generator.",
            show_default="8; for images 8,16",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    activation: Annotated[
        Activation, typer.Option("--activation", help="Of the hidden units.", rich_help_panel=_MODEL)
    ] = Activation.leaky_relu,
    negative_slope: Annotated[
        float, typer.Option("--negative-slope", help="Of the leaky ReLU.", rich_help_panel=_MODEL)
    ] = 0.1,
    noise: Annotated[
        Noise,
        typer.Option(
            "--noise",
            help="One variance for all columns, one for each, or a full covariance.",
            rich_help_panel=_MODEL,
        ),
    ] = Noise.isotropic,
    learn_prior: Annotated[
        bool, typer.Option("--learn-prior", help="Also fit the covariance of the latent.", rich_help_panel=_MODEL)
    ] = False,
    weight_prior: Annotated[
        str | None,
        typer.Option(
            "--weight-prior",
            metavar="FAMILY:SCALE",
            help="[b]gaussian:S[/b] (ridge), [b]laplace:S[/b] (lasso), [b]uniform:S[/b] (clipping) or [b]none[/b].",
            show_default="none; for images gaussian:0.3",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    standardize: Annotated[
        bool | None,
        typer.Option(
            "--standardize/--no-standardize",
            help="Fit with every column at mean 0 and variance 1; for columns in different units. "
            "The scaling is folded into the saved model, which takes and gives rows in their own units.",
            show_default="no",
            rich_help_panel="Data",
        ),
    ] = None,
    columns: Columns = None,
    drop: Drop = None,
    header: Header = None,
    rows: Rows = None,
    max_iter: Annotated[
        int, typer.Option("--max-iter", min=1, help="Largest number of EM iterations.", rich_help_panel=_TRAINING)
    ] = 200,
    tol: Annotated[
        float,
        typer.Option(
            "--tol",
            min=0.0,
            help="Stop when three iterations in a row gain less than this (nats per row).",
            rich_help_panel=_TRAINING,
        ),
    ] = 1e-6,
    n_init: Annotated[
        int,
        typer.Option("--n-init", min=1, help="Random starts; the best is continued.", rich_help_panel=_TRAINING),
    ] = 5,
    acceleration: Annotated[
        Acceleration,
        typer.Option(
            "--acceleration",
            help="Quasi-Newton iterations beside those of EM where they gain more, or [b]none[/b].",
            rich_help_panel=_TRAINING,
        ),
    ] = Acceleration.quasi_newton,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            min=1,
            help="Rows in a batch, for tens of thousands of rows and more; the exact NLL of all still never rises.",
            show_default="all rows at once",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    noise_floor: Annotated[
        float,
        typer.Option(
            "--noise-floor",
            min=0.0,
            help="Least noise variance, as a share of the variance of the data.",
            rich_help_panel=_TRAINING,
        ),
    ] = 1e-6,
    seed: Annotated[
        int,
        typer.Option(
            "--seed", min=0, help="Of the random starts, and of rows that are drawn.", rich_help_panel=_TRAINING
        ),
    ] = 0,
    threads: Threads = None,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart", help="Start anew instead of going on with an unfinished fit.", rich_help_panel=_TRAINING
        ),
    ] = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Fit a generator to a table by exact EM, and draw what it found.

    Writes the model, its numbers and pictures, and [b]report.html[/b], one page with all of it. A fit that was
    killed goes on when the same command is run again; Ctrl-C ends it with the best model so far.
    """
    widths = parse_widths(hidden)
    penalty = None if weight_prior is None else parse_weight_prior(weight_prior)
    terminal = Terminal(as_json)
    started = time.perf_counter()
    with terminal.busy("loading"):
        from girih.cli import fitting, results
        from girih.inference.limits import check_latent_dim

        for package, extra in (("matplotlib", "plots"), ("pandas", "tables")):  # for what is written after the fit
            require(package, extra)
        imported = time.perf_counter()
        check_latent_dim(latent_dim)
        dataset = load_data(
            data, columns=split_names(columns), drop=split_names(drop), rows=rows, seed=seed, header=header
        )
        fitting.check_columns(dataset)
        folder = OutputFolder(default_out(out, Path(data).stem), "fit", results.FILES)
        fitting.check_model_folder(folder.path)
    settings = fitting.Settings(
        source=data,
        latent_dim=latent_dim,
        hidden=widths if widths is not None else fitting.default_hidden(dataset),
        activation=activation.value,
        negative_slope=negative_slope,
        noise=noise.value,
        learn_prior=learn_prior,
        weight_prior=penalty if weight_prior is not None else fitting.default_weight_prior(dataset),
        standardize=bool(standardize),
        max_iter=max_iter,
        tol=tol,
        n_init=n_init,
        noise_floor=noise_floor,
        seed=seed,
        acceleration=acceleration.value,
        batch_size=batch_size,
        header=header,
    )
    terminal.say(f"{dataset.name}: {describe(dataset)}", style="bold")
    fitting.notes_on(dataset, settings, standardize, terminal)
    loaded = time.perf_counter()
    with compute_threads(dataset.X.size, threads):
        fitted = fitting.fit(dataset, settings, folder.path, restart, terminal)
        fitted.seconds |= {"import": imported - started, "load": loaded - imported}
        metrics = results.write(folder, fitted, dataset, settings, terminal)
    results.tell(terminal, folder.path, metrics)
    if fitted.est.interrupted_:
        raise typer.Exit(INTERRUPTED)
