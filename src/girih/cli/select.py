"""`girih select`: the command and its options; the work is in `girih.selection`, the output in `selected`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from girih.cli.folder import OutputFolder, default_out
from girih.cli.inputs import describe, load_data
from girih.cli.options import (
    Activation,
    Columns,
    Criterion,
    DataArgument,
    Drop,
    Header,
    Json,
    Noise,
    Out,
    Rows,
    parse_dimensions,
    parse_networks,
    parse_weight_prior,
    split_names,
)
from girih.cli.terminal import CommandError, Terminal, command
from girih.cli.threads import compute_threads

_GRID, _COMPARE, _TRAINING = "Models to try", "Comparison", "Training"


@command
def select(
    data: DataArgument,
    latent_dims: Annotated[
        str | None,
        typer.Option(
            "--latent-dims",
            metavar="S,S,...",
            help="Latent dimensions S; up to 3, where a fit takes minutes.",
            show_default="1,2",
            rich_help_panel=_GRID,
        ),
    ] = None,
    hidden: Annotated[
        list[str] | None,
        typer.Option(
            "--hidden",
            metavar="N,N,...",
            help="Widths of the hidden layers of a network, or [b]none[/b] for a linear one; give it once for each "
            'network, or several in quotes: [b]"none 8 16,16"[/b].',
            show_default='"none 8 16"',
            rich_help_panel=_GRID,
        ),
    ] = None,
    noise: Annotated[
        list[Noise] | None,
        typer.Option(
            "--noise",
            help="One variance for all columns, one for each, or a full covariance; may be repeated.",
            show_default="diagonal",
            rich_help_panel=_GRID,
        ),
    ] = None,
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines/--no-baselines",
            help="Also fit scikit-learn's GaussianMixture and FactorAnalysis, their components by BIC.",
            rich_help_panel=_GRID,
        ),
    ] = True,
    criterion: Annotated[
        Criterion, typer.Option("--criterion", help="What chooses the best.", rich_help_panel=_COMPARE)
    ] = Criterion.bic,
    test_fraction: Annotated[
        float,
        typer.Option("--test-fraction", help="Share of the rows held out; 0 for none.", rich_help_panel=_COMPARE),
    ] = 0.2,
    folds: Annotated[
        int | None,
        typer.Option("--folds", min=2, help="Cross-validate instead of one split.", rich_help_panel=_COMPARE),
    ] = None,
    standardize: Annotated[
        bool,
        typer.Option(
            "--standardize/--no-standardize",
            help="Fit with every column at mean 0 and variance 1; numbers and model are in the columns' own units.",
            rich_help_panel="Data",
        ),
    ] = True,
    columns: Columns = None,
    drop: Drop = None,
    header: Header = None,
    rows: Rows = None,
    activation: Annotated[
        Activation, typer.Option("--activation", help="Of the hidden units.", rich_help_panel=_TRAINING)
    ] = Activation.leaky_relu,
    weight_prior: Annotated[
        str | None,
        typer.Option(
            "--weight-prior",
            metavar="FAMILY:SCALE",
            help="As for [b]girih fit[/b].",
            show_default="none",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    max_iter: Annotated[
        int, typer.Option("--max-iter", min=1, help="Largest number of EM iterations.", rich_help_panel=_TRAINING)
    ] = 200,
    tol: Annotated[
        float,
        typer.Option(
            "--tol", min=0.0, help="Stop when iterations gain less (nats per row).", rich_help_panel=_TRAINING
        ),
    ] = 1e-6,
    n_init: Annotated[
        int, typer.Option("--n-init", min=1, help="Random starts of each fit.", rich_help_panel=_TRAINING)
    ] = 5,
    seed: Annotated[
        int, typer.Option("--seed", min=0, help="Of the split and of every fit.", rich_help_panel=_TRAINING)
    ] = 0,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, help="Fits at the same time.", rich_help_panel=_TRAINING)
    ] = 1,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Fit generators of several sizes, and compare them by their exact likelihoods.

    Writes the table ([b]selection.csv[/b], [b]selection.json[/b]), a picture, and the best model, fitted to all
    rows, for [b]girih score[/b] and the others. A comparison that was killed goes on from its finished fits.
    """
    dims, networks = parse_dimensions(latent_dims), parse_networks(hidden)
    prior = None if weight_prior is None else parse_weight_prior(weight_prior)
    terminal = Terminal(as_json)
    with terminal.busy("loading"):
        from girih.cli import fitting, selected
        from girih.inference import check_latent_dim
        from girih.selection import select_model

        dims = dims or (1, 2)
        for dim in dims:
            check_latent_dim(dim)
        if folds is None and not 0.0 <= test_fraction < 1.0:
            raise CommandError(f"--test-fraction must be at least 0 and below 1; got {test_fraction:g}")
        if criterion is Criterion.held_out and folds is None and test_fraction == 0.0:
            raise CommandError("--criterion held-out needs held-out rows; give --test-fraction or --folds")
        dataset = load_data(
            data, columns=split_names(columns), drop=split_names(drop), rows=rows, seed=seed, header=header
        )
        fitting.check_columns(dataset)
        folder = OutputFolder(default_out(out, Path(data).stem, "select"), "select", selected.FILES)
        fitting.check_model_folder(folder.path)
    terminal.say(f"{dataset.name}: {describe(dataset)}", style="bold")
    try:
        with compute_threads(dataset.X.size):
            result = select_model(
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
                out=folder / selected.FITS,
                progress=terminal.shows_progress,
            )
    except KeyboardInterrupt:
        terminal.note("finished fits are kept; the same command goes on from there")
        raise
    with terminal.busy("drawing"):
        value = selected.write(folder, result, dataset, data)
    selected.tell(terminal, folder.path, result)
    terminal.result(value)
