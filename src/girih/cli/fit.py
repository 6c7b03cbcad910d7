"""`girih fit` and `girih select`: the commands and their options; the work is in `fitting`, the pages in `results`."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

import girih
from girih.cli.folder import OutputFolder, default_out
from girih.cli.options import (
    Acceleration,
    Activation,
    Columns,
    Criterion,
    DataArgument,
    Drop,
    Header,
    Json,
    ModelKind,
    Noise,
    Out,
    Rows,
    Threads,
    compute_threads,
    data_option,
    parse_dimensions,
    parse_networks,
    parse_weight_prior,
    parse_widths,
    split_names,
)
from girih.cli.terminal import INTERRUPTED, CommandError, Terminal, command

_model, _training, _grid, _comparison = (
    partial(typer.Option, rich_help_panel=panel)
    for panel in ("A single generator", "Training of generators", "Models to try", "Comparison")
)
# Options of `fit` that only a single generator has: one of them chooses it.
_GENERATOR = (
    "latent_dim", "hidden", "activation", "negative_slope", "noise", "learn_prior", "weight_prior", "standardize",
    "max_iter", "tol", "n_init", "acceleration", "batch_size", "noise_floor",
)  # fmt: skip

MaxIter = Annotated[int, _training("--max-iter", min=1, help="Largest number of EM iterations.")]
Tolerance = Annotated[
    float, _training("--tol", min=0.0, help="Stop when three iterations in a row gain less than this (nats per row).")
]
Starts = Annotated[int, _training("--n-init", min=1, help="Random starts of a fit; the best is continued.")]


@command
def fit(
    context: typer.Context,
    data: DataArgument,
    model: Annotated[
        ModelKind | None,
        typer.Option(
            "--model",
            help="[b]table[/b]: the joint density of the columns, with no setting to choose. [b]dgn[/b]: a single "
            "generator, by its options below.",
            show_default="table; dgn for images, and where an option of generators is given",
        ),
    ] = None,
    kind: Annotated[
        list[str] | None,
        data_option(
            "--kind",
            metavar="NAME=KIND",
            help="What a column of a table holds, where what is found out does not suit: [b]number[/b], "
            "[b]category[/b] or [b]boolean[/b]; may be repeated.",
            show_default=False,
        ),
    ] = None,
    latent_dim: Annotated[int, _model("--latent-dim", min=1, help="Latent dimension S: 1, 2 or 3.")] = 1,
    hidden: Annotated[
        str | None,
        _model(
            "--hidden",
            metavar="N,N,...",
            help="Widths of the hidden layers, or [b]none[/b] for a linear generator.",
            show_default="8; for images 8,16",
        ),
    ] = None,
    activation: Annotated[Activation, _model("--activation", help="Of the hidden units.")] = Activation.leaky_relu,
    negative_slope: Annotated[float, _model("--negative-slope", help="Of the leaky ReLU.")] = 0.1,
    noise: Annotated[
        Noise, _model("--noise", help="One variance for all columns, one for each, or a full covariance.")
    ] = Noise.isotropic,
    learn_prior: Annotated[bool, _model("--learn-prior", help="Also fit the covariance of the latent.")] = False,
    weight_prior: Annotated[
        str | None,
        _model(
            "--weight-prior",
            metavar="FAMILY:SCALE",
            help="[b]gaussian:S[/b] (ridge), [b]laplace:S[/b] (lasso), [b]uniform:S[/b] (clipping) or [b]none[/b].",
            show_default="none; for images gaussian:0.3",
        ),
    ] = None,
    standardize: Annotated[
        bool | None,
        data_option(
            "--standardize/--no-standardize",
            help="Fit with every column at mean 0 and variance 1; for columns in different units. "
            "The scaling is folded into the saved model, which takes and gives rows in their own units.",
            show_default="no",
        ),
    ] = None,
    columns: Columns = None,
    drop: Drop = None,
    header: Header = None,
    rows: Rows = None,
    max_iter: MaxIter = 200,
    tol: Tolerance = 1e-6,
    n_init: Starts = 5,
    acceleration: Annotated[
        Acceleration,
        _training(
            "--acceleration", help="Quasi-Newton iterations beside those of EM where they gain more, or [b]none[/b]."
        ),
    ] = Acceleration.quasi_newton,
    batch_size: Annotated[
        int | None,
        _training(
            "--batch-size",
            min=1,
            help="Rows in a batch, for tens of thousands of rows and more; the exact NLL of all still never rises.",
            show_default="all rows at once",
        ),
    ] = None,
    noise_floor: Annotated[
        float, _training("--noise-floor", min=0.0, help="Least noise variance, as a share of the variance of the data.")
    ] = 1e-6,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of the folds, of random starts, and of rows that are drawn.")
    ] = 0,
    threads: Threads = None,
    restart: Annotated[
        bool, _training("--restart", help="Start anew instead of going on with the unfinished fit of a generator.")
    ] = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Fit the joint density of a table, with holes, text and categories, and draw what it found.

    What fits is found out by held-out likelihood; no setting is needed. Images get a single generator instead, fitted
    by exact EM, and so does every table with [b]--model dgn[/b] or an option that only generators have.

    Writes the model, its numbers and pictures, and [b]report.html[/b], one page with all of it. The fit of a generator
    that was killed goes on when the same command is run again, and Ctrl-C ends it with the best model so far; the fit
    of a table starts anew.
    """
    widths = parse_widths(hidden)
    penalty = None if weight_prior is None else parse_weight_prior(weight_prior)
    own = [name for name in _GENERATOR if _given(context, name)]
    if model is ModelKind.table and own:
        raise CommandError(
            f"--{own[0].replace('_', '-')} is an option of a single generator; leave it out, or say --model dgn"
        )
    generator = model is ModelKind.dgn or bool(own)
    if generator and kind:
        raise CommandError("--kind is an option of tables, and a single generator takes numbers alone; leave it out")
    terminal = Terminal(as_json)
    started = time.perf_counter()
    with terminal.busy("loading"):
        from girih.cli import fitting, results, table_data, tables

        imported = time.perf_counter()
        fitting.check_latent_dim(latent_dim)
        chosen = tables.Chosen(split_names(columns), split_names(drop), rows, seed, header)
        found = tables.load_data(data, chosen) if generator else table_data.load_table(data, chosen)
        if model is ModelKind.table and isinstance(found, girih.datasets.Dataset):
            found = table_data.of_dataset(replace(found, image_shape=None), data)
        if kind and isinstance(found, girih.datasets.Dataset):
            raise CommandError("--kind is an option of tables, and these are images; leave it out")
        if isinstance(found, girih.datasets.Dataset):
            fitting.check_columns(found)
        from girih.cli import table_fit

        if isinstance(found, table_data.TableData):
            found = table_data.without_names_of_rows(found, chosen)
            kinds = table_fit.parse_kinds(kind, found)
            table_data.check_cells(found, kinds or {})
        names = (*results.FILES, *table_fit.FILES)
        folder = OutputFolder(default_out(out, Path(data).stem), "fit", tuple(dict.fromkeys(names)))
        fitting.check_model_folder(folder.path)
    if isinstance(found, table_data.TableData):
        table = found
        about = f"{tables.plural(len(table), 'row')} of {tables.plural(len(table.names), 'column')}"
        terminal.say(f"{table.name}: {about}", style="bold")
        loaded = time.perf_counter()
        with compute_threads(len(table) * len(table.names), threads):
            fitted_table, seconds = table_fit.fit_table(table, kinds, seed, terminal)
            seconds |= {"import": imported - started, "load": loaded - imported}
            metrics = table_fit.write_table(folder, fitted_table, table, seconds, terminal)
        table_fit.tell(terminal, folder, fitted_table, metrics)
        return
    dataset = found
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
    terminal.say(f"{dataset.name}: {tables.describe(dataset)}", style="bold")
    fitting.notes_on(dataset, settings, standardize, terminal)
    loaded = time.perf_counter()
    with compute_threads(dataset.X.size, threads):
        fitted = fitting.fit(dataset, settings, folder.path, restart, terminal)
        fitted.seconds |= {"import": imported - started, "load": loaded - imported}
        metrics = results.write(folder, fitted, dataset, settings, terminal)
    results.tell(terminal, folder.path, metrics)
    if fitted.est.interrupted_:
        raise typer.Exit(INTERRUPTED)


def _given(context: typer.Context, name: str) -> bool:
    """Whether an option was given, and is not there by default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


@command
def select(
    data: DataArgument,
    latent_dims: Annotated[
        str | None,
        _grid(
            "--latent-dims",
            metavar="S,S,...",
            help="Latent dimensions S; up to 3, where a fit takes minutes.",
            show_default="1,2",
        ),
    ] = None,
    hidden: Annotated[
        list[str] | None,
        _grid(
            "--hidden",
            metavar="N,N,...",
            help="Widths of the hidden layers of a network, or [b]none[/b] for a linear one; give it once for each "
            'network, or several in quotes: [b]"none 8 16,16"[/b].',
            show_default='"none 8 16"',
        ),
    ] = None,
    noise: Annotated[
        list[Noise] | None,
        _grid(
            "--noise",
            help="One variance for all columns, one for each, or a full covariance; may be repeated.",
            show_default="diagonal",
        ),
    ] = None,
    baselines: Annotated[
        bool,
        _grid(
            "--baselines/--no-baselines",
            help="Also fit scikit-learn's GaussianMixture and FactorAnalysis, their components by BIC.",
        ),
    ] = True,
    criterion: Annotated[Criterion, _comparison("--criterion", help="What chooses the best.")] = Criterion.bic,
    test_fraction: Annotated[
        float, _comparison("--test-fraction", help="Share of the rows held out; 0 for none.")
    ] = 0.2,
    folds: Annotated[int | None, _comparison("--folds", min=2, help="Cross-validate instead of one split.")] = None,
    standardize: Annotated[
        bool,
        data_option(
            "--standardize/--no-standardize",
            help="Fit with every column at mean 0 and variance 1; numbers and model are in the columns' own units.",
        ),
    ] = True,
    columns: Columns = None,
    drop: Drop = None,
    header: Header = None,
    rows: Rows = None,
    activation: Annotated[Activation, _training("--activation", help="Of the hidden units.")] = Activation.leaky_relu,
    weight_prior: Annotated[
        str | None,
        _training("--weight-prior", metavar="FAMILY:SCALE", help="As for [b]girih fit[/b].", show_default="none"),
    ] = None,
    max_iter: MaxIter = 200,
    tol: Tolerance = 1e-6,
    n_init: Starts = 5,
    seed: Annotated[int, _training("--seed", min=0, help="Of the split and of every fit.")] = 0,
    jobs: Annotated[int, _training("--jobs", "-j", min=1, help="Fits at the same time.")] = 1,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Fit single generators of several sizes, and compare them by their exact likelihoods.

    [b]girih fit[/b] chooses by itself now, among more models: use this only for the sizes of single generators.

    Writes the table ([b]selection.csv[/b], [b]selection.json[/b]), a picture, and the best model, fitted to all
    rows, for [b]girih score[/b] and the others. A comparison that was killed goes on from its finished fits.
    """
    dims, networks = parse_dimensions(latent_dims), parse_networks(hidden)
    prior = None if weight_prior is None else parse_weight_prior(weight_prior)
    terminal = Terminal(as_json)
    terminal.note("girih fit chooses by itself now, by held-out likelihood; select compares single generators alone")
    with terminal.busy("loading"):
        from girih.cli import fitting, results, tables

        dims = dims or (1, 2)
        for dim in dims:
            fitting.check_latent_dim(dim)
        if folds is None and not 0.0 <= test_fraction < 1.0:
            raise CommandError(f"--test-fraction must be at least 0 and below 1; got {test_fraction:g}")
        if criterion is Criterion.held_out and folds is None and test_fraction == 0.0:
            raise CommandError("--criterion held-out needs held-out rows; give --test-fraction or --folds")
        dataset = tables.load_data(data, tables.Chosen(split_names(columns), split_names(drop), rows, seed, header))
        fitting.check_columns(dataset)
        folder = OutputFolder(default_out(out, Path(data).stem, "select"), "select", results.SELECTION_FILES)
        fitting.check_model_folder(folder.path)
    terminal.say(f"{dataset.name}: {tables.describe(dataset)}", style="bold")
    try:
        with compute_threads(dataset.X.size):
            result = girih.select_model(
                dataset.X,
                dims,
                networks or ((), (8,), (16,)),
                [one.value for one in noise or (Noise.diagonal,)],
                criterion=criterion.value.replace("-", "_"),
                validation=test_fraction or None,
                folds=folds,
                baselines=baselines,
                standardize=standardize,
                activation=activation.value,
                weight_prior=prior,
                max_iter=max_iter,
                tol=tol,
                n_init=n_init,
                seed=seed,
                n_jobs=jobs,
                out=folder / results.FITS,
                progress=terminal.shows_progress,
            )
    except KeyboardInterrupt:
        terminal.note("finished fits are kept; the same command goes on from there")
        raise
    with terminal.busy("drawing"):
        value = results.write_selection(folder, result, dataset, data)
    results.tell_selection(terminal, folder.path, result)
    terminal.result(value)
