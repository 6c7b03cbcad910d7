"""`girih fit` and `girih select`: the commands and their options; the work is in `fitting`, the pages in `results`."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import girih
from girih._formats import FileFormat
from girih.cli.folder import OutputFolder, default_out
from girih.cli.options import (
    Acceleration,
    Activation,
    Criterion,
    DataArgument,
    Explorer,
    ModelKind,
    Noise,
    Output,
    Reading,
    Rows,
    compute_threads,
    data_option,
    parse_dimensions,
    parse_networks,
    parse_weight_prior,
    parse_widths,
)
from girih.cli.terminal import INTERRUPTED, CommandError, Terminal, command

if TYPE_CHECKING:
    from girih.cli.fitting import Settings
    from girih.cli.table_data import TableData
    from girih.datasets import Dataset

_model, _training, _grid, _comparison = (
    partial(typer.Option, rich_help_panel=panel)
    for panel in ("A single generator", "Training of generators", "Models to try", "Comparison")
)
_LONG = 1000  # EM iterations: the default of Python is for those who look at `converged_`
_ENOUGH = "Stop when three iterations in a row gain less than this (nats per row)."
MaxIter = Annotated[int, _training("--max-iter", min=1, help="Largest number of EM iterations.")]
Tolerance = Annotated[float, _training("--tol", min=0.0, help=_ENOUGH)]
Starts = Annotated[int, _training("--n-init", min=1, help="Random starts of a fit; the best is continued.")]


@dataclass(frozen=True)
class Generator:
    """A `Generator` groups the options that only a single generator has: one that is given chooses it."""

    latent_dim: Annotated[int, _model("--latent-dim", min=1, help="Latent dimension S: 1, 2 or 3.")] = 1
    hidden: Annotated[
        str | None,
        _model(
            "--hidden",
            metavar="N,N,...",
            help="Widths of the hidden layers, or [b]none[/b] for a linear generator.",
            show_default="8; for images 8,16",
        ),
    ] = None
    activation: Annotated[Activation, _model("--activation", help="Of the hidden units.")] = Activation.leaky_relu
    negative_slope: Annotated[float, _model("--negative-slope", help="Of the leaky ReLU.")] = 0.1
    noise: Annotated[
        Noise,
        _model(
            "--noise",
            help="One variance for all columns, one for each, a full covariance, or factors beside those.",
        ),
    ] = Noise.isotropic
    noise_rank: Annotated[int, _model("--noise-rank", min=1, help="Factors of low-rank noise.")] = 1
    learn_prior: Annotated[bool, _model("--learn-prior", help="Also fit the covariance of the latent.")] = False
    weight_prior: Annotated[
        str | None,
        _model(
            "--weight-prior",
            metavar="FAMILY:SCALE",
            help="[b]gaussian:S[/b] (ridge), [b]laplace:S[/b] (lasso), [b]uniform:S[/b] (clipping) or [b]none[/b].",
            show_default="none; for images gaussian:0.3",
        ),
    ] = None
    standardize: Annotated[
        bool | None,
        data_option(
            "--standardize/--no-standardize",
            help="Fit with every column at mean 0 and variance 1; for columns in different units. "
            "The scaling is folded into the saved model, which takes and gives rows in their own units.",
            show_default="no",
        ),
    ] = None
    max_iter: MaxIter = _LONG
    tol: Annotated[float | None, _training("--tol", min=0.0, help=_ENOUGH, show_default="1e-6; for images 0.01")] = None
    n_init: Starts = 5
    acceleration: Annotated[
        Acceleration,
        _training(
            "--acceleration", help="Quasi-Newton iterations beside those of EM where they gain more, or [b]none[/b]."
        ),
    ] = Acceleration.quasi_newton
    batch_size: Annotated[
        int | None,
        _training(
            "--batch-size",
            min=1,
            help="Rows in a batch, for tens of thousands of rows and more; the exact NLL of all still never rises.",
            show_default="all rows at once",
        ),
    ] = None
    noise_floor: Annotated[
        float, _training("--noise-floor", min=0.0, help="Least noise variance, as a share of the variance of the data.")
    ] = 1e-6
    noise_prior: Annotated[
        float,
        _training("--noise-prior", min=0.0, help="Rows of the data's variances that hold the noise up."),
    ] = 0.0
    kink_ridge: Annotated[
        float, _training("--kink-ridge", min=0.0, help="Penalty on how the generator departs from an affine one.")
    ] = 0.0
    early_stopping: Annotated[
        bool, _training("--early-stopping", help="Stop, and choose the parameters, by rows that are held out.")
    ] = False
    validation_fraction: Annotated[
        float,
        _training(
            "--validation-fraction",
            min=0.0,
            max=0.9,
            help="Share of the rows that [b]--early-stopping[/b] holds out.",
        ),
    ] = 0.1

    def check(self) -> None:
        """Refuse what cannot be read as widths or as a weight prior."""
        parse_widths(self.hidden)
        if self.weight_prior is not None:
            parse_weight_prior(self.weight_prior)

    def settings(self, source: str, dataset: Dataset | None, seed: int, reading: FileFormat) -> Settings:
        """Settle what is fitted to a data set, None for a stream: an option that was not given may depend on it."""
        from girih.cli import fitting

        widths, prior = parse_widths(self.hidden), self.weight_prior
        changed = {
            "hidden": fitting.default_hidden(dataset) if widths is None else widths,
            "activation": self.activation.value,
            "noise": self.noise.value.replace("-", "_"),
            "weight_prior": fitting.default_weight_prior(dataset) if prior is None else parse_weight_prior(prior),
            "standardize": bool(self.standardize),
            "tol": fitting.default_tol(dataset) if self.tol is None else self.tol,
            "acceleration": self.acceleration.value,
        }
        header, known = reading.header, reading.known()
        return fitting.Settings(source=source, seed=seed, header=header, reading=known or None, **vars(self) | changed)


@dataclass(frozen=True)
class RowsOfFit(Reading):
    """`RowsOfFit` groups the options of the data that are fitted."""

    kind: Annotated[
        list[str] | None,
        data_option(
            "--kind",
            metavar="NAME=KIND",
            help="What a column of a table holds, where what is found out does not suit: [b]number[/b], "
            "[b]category[/b] or [b]boolean[/b]; may be repeated.",
            show_default=False,
        ),
    ] = None
    rows: Rows = None


@dataclass(frozen=True)
class Run:
    """A `Run` groups how a fit is computed and shown."""

    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of the folds, of random starts, and of rows that are drawn.")
    ] = 0
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", min=1, help="Processor threads.", show_default="1; all for more than 5 million entries"
        ),
    ] = None
    restart: Annotated[bool, _training("--restart", help="Start anew instead of going on with an unfinished fit.")] = (
        False
    )
    explorer: Explorer = True


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
    *,
    reading: RowsOfFit,
    generator: Generator,
    run: Run,
    output: Output,
) -> None:
    """Fit the joint density of a table, with holes, text and categories, and draw what it found.

    What fits is found out by held-out likelihood; no setting is needed. Images get a single generator instead, fitted
    by exact EM, and so does every table with [b]--model dgn[/b] or an option that only generators have.

    Writes the model, its numbers and pictures, [b]report.html[/b], one page with all of it, and [b]explorer.html[/b],
    one page to look around in. A fit that was killed goes on when the same command is run again, and Ctrl-C ends that
    of a generator with the best model so far.

    A folder of Parquet files is read in blocks, again in each pass, and need not fit into memory; then the model and
    its numbers are all that is written. Several processes share it:
    [b]torchrun --nproc-per-node 2 -m girih fit DATA[/b].
    """
    generator.check()
    own = [option.name for option in fields(Generator) if _given(context, option.name)]
    if model is ModelKind.table and own:
        raise CommandError(
            f"--{own[0].replace('_', '-')} is an option of a single generator; leave it out, or say --model dgn"
        )
    single = model is ModelKind.dgn or bool(own)
    if single and reading.kind:
        raise CommandError("--kind is an option of tables, and a single generator takes numbers alone; leave it out")
    if _is_stream(data):
        from girih.cli import fitting, streams

        fitting.check_latent_dim(generator.latent_dim)
        streams.check(reading, reading.rows, generator.standardize)
        kinds = streams.parse_kinds(reading.kind)
        chosen_model = generator.settings(data, None, run.seed, FileFormat()) if single else kinds
        with compute_threads(0, run.threads):
            streams.fit(data, chosen_model, run.seed, run.restart, output)
        return
    terminal = Terminal(output.as_json)
    started = time.perf_counter()
    with terminal.busy("loading"):
        from girih.cli import fitting, results, table_data, table_fit, tables

        imported = time.perf_counter()
        fitting.check_latent_dim(generator.latent_dim)
        chosen = reading.chosen(run.seed, reading.rows)
        found = tables.load_data(data, chosen) if single else table_data.load_table(data, chosen)
        if model is ModelKind.table and isinstance(found, girih.datasets.Dataset):
            found = table_data.of_dataset(replace(found, image_shape=None), data)
        if reading.kind and isinstance(found, girih.datasets.Dataset):
            raise CommandError("--kind is an option of tables, and these are images; leave it out")
        if isinstance(found, girih.datasets.Dataset):
            fitting.check_columns(found)
        else:
            kinds = table_fit.parse_kinds(reading.kind, found)
            found = table_data.without_ids(found, chosen, kinds or {})
            table_data.check_cells(found, kinds or {})
        names = (*results.FILES, *table_fit.FILES)
        folder = OutputFolder(default_out(output.out, Path(data).stem), "fit", tuple(dict.fromkeys(names)))
        fitting.check_model_folder(folder.path)
    seconds = {"import": imported - started, "load": time.perf_counter() - imported}
    if isinstance(found, girih.datasets.Dataset):
        settings = generator.settings(data, found, run.seed, chosen.reading)
        _fit_generator(found, settings, generator.standardize, folder, run, seconds, terminal)
    else:
        _fit_table(found, kinds, folder, run, seconds, terminal)


def _is_stream(data: str) -> bool:
    """Whether DATA is read in blocks; what is slow to import is left out where it cannot be."""
    if not Path(data).expanduser().is_dir() and "WORLD_SIZE" not in os.environ:
        return False
    from girih.cli import streams

    return streams.is_stream(data)


def _fit_table(
    table: TableData,
    kinds: dict[str | int, str] | None,
    folder: OutputFolder,
    run: Run,
    seconds: dict[str, float],
    terminal: Terminal,
) -> None:
    from girih.cli import table_fit, tables
    from girih.cli.fitting import CHECKPOINT

    about = f"{tables.plural(len(table), 'row')} of {tables.plural(len(table.names), 'column')}"
    terminal.say(f"{table.name}: {about}", style="bold")
    with compute_threads(len(table) * len(table.names), run.threads):
        fitted, taken = table_fit.fit_table(table, kinds, run.seed, folder / CHECKPOINT, run.restart, terminal)
        metrics = table_fit.write_table(folder, fitted, table, taken | seconds, terminal, run.explorer)
    table_fit.tell(terminal, folder, fitted, metrics)


def _fit_generator(
    dataset: Dataset,
    settings: Settings,
    standardize: bool | None,
    folder: OutputFolder,
    run: Run,
    seconds: dict[str, float],
    terminal: Terminal,
) -> None:
    from girih.cli import fitting, results, tables

    terminal.say(f"{dataset.name}: {tables.describe(dataset)}", style="bold")
    fitting.notes_on(dataset, settings, standardize, terminal)
    with compute_threads(dataset.X.size, run.threads):
        fitted = fitting.fit(dataset, settings, folder.path, run.restart, terminal)
        fitted.seconds |= seconds
        metrics = results.write(folder, fitted, dataset, settings, terminal, run.explorer)
    results.tell(terminal, folder.path, metrics)
    if fitted.est.interrupted_:
        raise typer.Exit(INTERRUPTED)


def _given(context: typer.Context, name: str) -> bool:
    """Whether an option was given, and is not there by default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


@dataclass(frozen=True)
class Grid:
    """A `Grid` groups which models are tried."""

    latent_dims: Annotated[
        str | None,
        _grid(
            "--latent-dims",
            metavar="S,S,...",
            help="Latent dimensions S; up to 3, where a fit takes minutes.",
            show_default="1,2",
        ),
    ] = None
    hidden: Annotated[
        list[str] | None,
        _grid(
            "--hidden",
            metavar="N,N,...",
            help="Widths of the hidden layers of a network, or [b]none[/b] for a linear one; give it once for each "
            'network, or several in quotes: [b]"none 8 16,16"[/b].',
            show_default='"none 8 16"',
        ),
    ] = None
    noise: Annotated[
        list[Noise] | None,
        _grid(
            "--noise",
            help="One variance for all columns, one for each, or a full covariance; may be repeated.",
            show_default="diagonal",
        ),
    ] = None
    baselines: Annotated[
        bool,
        _grid(
            "--baselines/--no-baselines",
            help="Also fit scikit-learn's GaussianMixture and FactorAnalysis, their components by BIC.",
        ),
    ] = True


@dataclass(frozen=True)
class Comparison:
    """A `Comparison` groups by what the models are compared."""

    criterion: Annotated[Criterion, _comparison("--criterion", help="What chooses the best.")] = Criterion.bic
    test_fraction: Annotated[float, _comparison("--test-fraction", help="Share of the rows held out; 0 for none.")] = (
        0.2
    )
    folds: Annotated[int | None, _comparison("--folds", min=2, help="Cross-validate instead of one split.")] = None
    standardize: Annotated[
        bool,
        data_option(
            "--standardize/--no-standardize",
            help="Fit with every column at mean 0 and variance 1; numbers and model are in the columns' own units.",
        ),
    ] = True

    def check(self) -> None:
        """Refuse a share of rows that is none, and a criterion without rows for it."""
        if self.folds is None and not 0.0 <= self.test_fraction < 1.0:
            raise CommandError(f"--test-fraction must be at least 0 and below 1; got {self.test_fraction:g}")
        if self.criterion is Criterion.held_out and self.folds is None and self.test_fraction == 0.0:
            raise CommandError("--criterion held-out needs held-out rows; give --test-fraction or --folds")


@dataclass(frozen=True)
class EveryFit:
    """`EveryFit` groups what the fits of a comparison have in common."""

    activation: Annotated[Activation, _training("--activation", help="Of the hidden units.")] = Activation.leaky_relu
    weight_prior: Annotated[
        str | None,
        _training("--weight-prior", metavar="FAMILY:SCALE", help="As for [b]girih fit[/b].", show_default="none"),
    ] = None
    max_iter: MaxIter = _LONG
    tol: Tolerance = 1e-6
    n_init: Starts = 5
    seed: Annotated[int, _training("--seed", min=0, help="Of the split and of every fit.")] = 0
    jobs: Annotated[int, _training("--jobs", "-j", min=1, help="Fits at the same time.")] = 1


@command
def select(
    data: DataArgument,
    grid: Grid,
    comparison: Comparison,
    reading: Reading,
    rows: Rows = None,
    *,
    each: EveryFit,
    output: Output,
) -> None:
    """Fit single generators of several sizes, and compare them by their exact likelihoods.

    [b]girih fit[/b] chooses by itself now, among more models: use this only for the sizes of single generators.

    Writes the table ([b]selection.csv[/b], [b]selection.json[/b]), a picture, and the best model, fitted to all
    rows, for [b]girih score[/b] and the others. A comparison that was killed goes on from its finished fits.
    """
    dims, networks = parse_dimensions(grid.latent_dims), parse_networks(grid.hidden)
    prior = None if each.weight_prior is None else parse_weight_prior(each.weight_prior)
    terminal = Terminal(output.as_json)
    terminal.note("girih fit chooses by itself now, by held-out likelihood; select compares single generators alone")
    with terminal.busy("loading"):
        from girih.cli import fitting, results, tables

        dims = dims or (1, 2)
        for dim in dims:
            fitting.check_latent_dim(dim)
        comparison.check()
        dataset = tables.load_data(data, reading.chosen(each.seed, rows))
        fitting.check_columns(dataset)
        folder = OutputFolder(default_out(output.out, Path(data).stem, "select"), "select", results.SELECTION_FILES)
        fitting.check_model_folder(folder.path)
    terminal.say(f"{dataset.name}: {tables.describe(dataset)}", style="bold")
    try:
        with compute_threads(dataset.X.size):
            result = girih.select_model(
                dataset.X,
                dims,
                networks or ((), (8,), (16,)),
                [one.value.replace("-", "_") for one in grid.noise or (Noise.diagonal,)],
                criterion=comparison.criterion.value.replace("-", "_"),
                validation=comparison.test_fraction or None,
                folds=comparison.folds,
                baselines=grid.baselines,
                standardize=comparison.standardize,
                activation=each.activation.value,
                weight_prior=prior,
                max_iter=each.max_iter,
                tol=each.tol,
                n_init=each.n_init,
                seed=each.seed,
                n_jobs=each.jobs,
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
