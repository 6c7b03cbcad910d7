"""The command line: `girih fit`, `score`, `anomalies`, `impute`, `condition`, `sample`, `select` and the rest.

What is slow to import (torch, matplotlib, pandas) is imported inside the commands.
"""

from __future__ import annotations

from typing import Annotated

import typer

import girih
from girih.cli.fit import fit, select
from girih.cli.gap import gap
from girih.cli.inspect import inspect
from girih.cli.models import anomalies, condition, datasets, impute, info, sample, score
from girih.cli.reproduce import reproduce

__all__ = ["app", "main"]

app = typer.Typer(
    name="girih",
    help="The exact joint density of a table with holes: fit it, fill the holes, find strange rows and why, draw new "
    "ones. And exact probability for piecewise-affine generative networks.",
    epilog="Start with [b]girih fit circle[/b] or [b]girih fit your-table.csv[/b].",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for function in (fit, score, anomalies, impute, condition, sample, info, select, inspect, gap, datasets, reproduce):
    # one line a paragraph: the terminal breaks them where it is wide
    paragraphs = (" ".join(part.split()) for part in (function.__doc__ or "").split("\n\n"))
    app.command(function.__name__, help="\n\n".join(paragraphs))(function)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"girih {girih.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the `girih` command."""
    app(prog_name="girih")
