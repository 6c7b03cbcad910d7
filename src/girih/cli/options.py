"""The options that several commands share, in groups, and the threads that they compute with."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from girih._formats import SEPARATORS, FileFormat

data_option = partial(typer.Option, rich_help_panel="Data")
_output = partial(typer.Option, rich_help_panel="Output")
_FAMILIES = ("gaussian", "laplace", "uniform")

DataArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A csv, tsv, xlsx, npy, npz or parquet file, or a built-in name (see [b]girih datasets[/b]); "
        "[b]girih fit[/b] also takes a folder of parquet files. Empty cells are missing entries.",
        show_default=False,
    ),
]
ModelArgument = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="The folder that [b]girih fit[/b] wrote, or a saved model.", show_default=False
    ),
]
Json = Annotated[bool, _output("--json", help="Print one JSON object and nothing else.")]
Explorer = Annotated[
    bool,
    _output("--explorer/--no-explorer", help="Write [b]explorer.html[/b], one page to look around in the model."),
]
Given = Annotated[
    list[str] | None,
    typer.Option("--given", metavar="NAME=VALUE", help="An entry that is known; may be repeated.", show_default=False),
]
Rows = Annotated[int | None, data_option("--rows", min=1, help="Use this many rows, drawn at random.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Makes every random draw reproducible.")]
# Up to this many entries of the table, the steps of EM are so short that threads mostly wait for each other; beside
# another busy program they wait for its time slices too, which was measured to make a fit 25 times as slow.
_SMALL = 5_000_000


class Separator(StrEnum):
    """A `Separator` stands between the cells of a csv file."""

    comma = "comma"
    semicolon = "semicolon"
    tab = "tab"


class Decimal(StrEnum):
    """A `Decimal` is the decimal sign of a csv file."""

    point = "point"
    comma = "comma"


@dataclass(frozen=True)
class Chosen:
    """The part of DATA that is asked for: names of columns, or of those to drop, and how many rows, drawn with a seed.

    `reading` says how a csv file is written, where that is not to be detected.
    """

    columns: Sequence[str] | None = None
    drop: Sequence[str] | None = None
    rows: int | None = None
    seed: int = 0
    reading: FileFormat = field(default_factory=FileFormat)


@dataclass(frozen=True)
class Reading:
    """A `Reading` groups the options of every command that reads DATA (see `girih.cli.terminal.command`)."""

    columns: Annotated[
        str | None, data_option("--columns", metavar="NAME,...", help="Use these columns, in this order.")
    ] = None
    drop: Annotated[str | None, data_option("--drop", metavar="NAME,...", help="Leave these columns out.")] = None
    header: Annotated[
        bool | None,
        data_option(
            "--header/--no-header",
            help="Whether the first line of a csv file holds the names of its columns.",
            show_default="detected",
        ),
    ] = None
    separator: Annotated[
        Separator | None,
        data_option("--separator", help="What stands between the cells of a csv file.", show_default="detected"),
    ] = None
    decimal: Annotated[
        Decimal | None,
        data_option("--decimal", help="The decimal sign of a csv file, a point or a comma.", show_default="detected"),
    ] = None
    missing: Annotated[
        str | None,
        data_option(
            "--missing",
            metavar="TEXT,...",
            help="Texts that mean a missing entry, beside empty cells and NA; [b]none[/b] for no others.",
            show_default="?, ., -, -- and * among numbers",
        ),
    ] = None

    def chosen(self, seed: int, rows: int | None = None) -> Chosen:
        """The columns that were asked for, and `rows` of the rows, drawn with the seed."""
        separator = None if self.separator is None else SEPARATORS[self.separator.value]
        decimal = None if self.decimal is None else {"point": ".", "comma": ","}[self.decimal.value]
        missing = split_names(self.missing)
        marks = None if missing is None else () if missing == ["none"] else tuple(missing)
        reading = FileFormat(self.header, separator, decimal, marks)
        return Chosen(split_names(self.columns), split_names(self.drop), rows, seed, reading)


class ProgressKind(StrEnum):
    """A `ProgressKind` is how progress is shown."""

    auto = "auto"
    json = "json"


@dataclass(frozen=True)
class Output:
    """An `Output` groups the options that every command with results has."""

    out: Annotated[
        Path | None,
        _output("--out", "-o", metavar="DIR", help="Folder for the results.", show_default="a folder in girih-out"),
    ] = None
    as_json: Json = False
    progress: Annotated[
        ProgressKind,
        _output(
            "--progress",
            help="[b]auto[/b]: a bar where standard error is a terminal. [b]json[/b]: lines of JSON there.",
        ),
    ] = ProgressKind.auto


class Activation(StrEnum):
    """Activations by name."""

    relu = "relu"
    leaky_relu = "leaky_relu"
    abs = "abs"


class ModelKind(StrEnum):
    """A `ModelKind` is what `girih fit` fits."""

    table = "table"
    dgn = "dgn"


class Acceleration(StrEnum):
    """`Acceleration` says how EM gains speed near its end."""

    quasi_newton = "quasi-newton"
    none = "none"


class Criterion(StrEnum):
    """A `Criterion` chooses among models."""

    bic = "bic"
    aic = "aic"
    held_out = "held-out"


class Noise(StrEnum):
    """Shapes of the noise covariance."""

    isotropic = "isotropic"
    diagonal = "diagonal"
    full = "full"
    low_rank = "low-rank"


def split_names(text: str | None) -> list[str] | None:
    """Names between commas; a name that holds a comma goes in double quotes."""
    if text is None:
        return None
    return [name.strip() for name in next(csv.reader([text], skipinitialspace=True), []) if name.strip()]


def parse_widths(text: str | None) -> tuple[int, ...] | None:
    """`8,16` as widths of hidden layers; `none` as no hidden layer."""
    if text is None:
        return None
    if text.strip().lower() == "none":
        return ()
    try:
        widths = tuple(int(part) for part in text.split(","))
    except ValueError:
        widths = (0,)
    if min(widths) < 1:
        raise typer.BadParameter(
            f"{text!r} is not a list of widths; write e.g. 8 or 8,16, or none for a linear generator",
            param_hint="--hidden",
        )
    return widths


def parse_networks(texts: list[str] | None) -> tuple[tuple[int, ...], ...] | None:
    """`--hidden 8 --hidden 16,16` or `--hidden "8 16,16"`: a network for each word."""
    words = [word for text in texts or () for word in text.replace(";", " ").split()]
    networks = [parse_widths(word) for word in words]
    return tuple(network for network in networks if network is not None) or None


def parse_dimensions(text: str | None) -> tuple[int, ...] | None:
    """`1,2,3` as latent dimensions."""
    if text is None:
        return None
    try:
        dims = tuple(int(part) for part in text.split(","))
    except ValueError:
        dims = (0,)
    if min(dims) < 1:
        raise typer.BadParameter(
            f"{text!r} is not a list of latent dimensions; write e.g. 1 or 1,2", param_hint="--latent-dims"
        )
    return dims


def parse_weight_prior(text: str) -> str | None:
    """`gaussian:1.0` as it is, once it is known to be one; `none` is no prior."""
    if text.strip().lower() == "none":
        return None
    family, _, scale = text.strip().partition(":")
    try:
        known = family in _FAMILIES and 0.0 < float(scale) < float("inf")
    except ValueError:
        known = False
    if not known:
        raise typer.BadParameter(
            f"{text!r} is not a weight prior; write {', '.join(f'{name}:S' for name in _FAMILIES)} with a positive "
            "number S, or none",
            param_hint="--weight-prior",
        )
    return text.strip()


@contextmanager
def compute_threads(entries: int, asked: int | None = None) -> Iterator[None]:
    """Compute with the threads that were asked for; by default with one up to 5 million entries, then with all."""
    from girih._jobs import alone, threads

    with alone(entries, _SMALL) if asked is None else threads(asked):
        yield
