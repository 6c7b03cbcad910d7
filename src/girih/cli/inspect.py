"""`girih inspect`: what a decoder does. The work is in `girih.report`, the page in `decoders`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

import girih
from girih.cli.folder import OutputFolder, default_out
from girih.cli.options import Explorer, Output, Reading, Seed, data_option
from girih.cli.terminal import CommandError, Terminal, command

if TYPE_CHECKING:
    import torch

    from girih.cli.decoders import Decoder

_cells, _decoder = (partial(typer.Option, rich_help_panel=panel) for panel in ("Cells", "Decoder"))


@dataclass(frozen=True)
class Latent:
    """A `Latent` groups the options of the latent prior."""

    prior: Annotated[
        float | None,
        _decoder(
            "--prior",
            metavar="VARIANCE",
            help="Variance of the Gaussian latent prior.",
            show_default="1, or that of a fitted model",
        ),
    ] = None
    uniform: Annotated[
        tuple[float, float] | None,
        _decoder("--uniform", metavar="LOW HIGH", help="A latent prior that is uniform on a box.", show_default=False),
    ] = None


@dataclass(frozen=True)
class Traced:
    """`Traced` groups which part of a network is looked at, and as what."""

    latent_dim: Annotated[
        int | None,
        _decoder("--latent-dim", min=1, help="S, where the first layer does not tell it.", show_default=False),
    ] = None
    until: Annotated[
        str | None,
        _decoder(
            "--until",
            metavar="NAME",
            help="Stop before the module or call of this name: for a Sigmoid, Tanh or Softmax at the end.",
            show_default=False,
        ),
    ] = None
    output: Annotated[
        str | None,
        _decoder(
            "--output",
            metavar="NAME",
            help="Which tensor of a network that returns several: a key, a field, or a place (0, 1, ...).",
            show_default=False,
        ),
    ] = None
    image_shape: Annotated[
        str | None,
        _decoder(
            "--image-shape",
            metavar="HxW",
            help="Shape of outputs that are images, as in 28x28 or 3x32x32, or [b]none[/b].",
            show_default="that of the output; square for square D",
        ),
    ] = None


@dataclass(frozen=True)
class CellsSeen:
    """`CellsSeen` groups how many cells are looked at."""

    cells: Annotated[
        int, _cells("--cells", min=2, help="Prior draws by which cells are sampled, where they are not enumerated.")
    ] = 2000
    sample: Annotated[bool, _cells("--sample", help="Sample cells for S = 1, 2, 3 too.")] = False
    max_cells: Annotated[
        int, _cells("--max-cells", min=1, help="Sample instead of enumerating more cells than this (S = 1, 2, 3).")
    ] = 50_000
    seed: Seed = 0


@dataclass(frozen=True)
class RowsSeen:
    """`RowsSeen` groups what is asked of DATA."""

    rows: Annotated[
        int | None,
        data_option(
            "--rows",
            min=1,
            help="Look at so many rows of DATA, drawn at random.",
            show_default="all; 5,000 for S = 2, 200 for S = 3",
        ),
    ] = None
    noise: Annotated[
        float | None,
        data_option(
            "--noise",
            metavar="VARIANCE",
            help="Variance of the noise around the decoder's output.",
            show_default="that of the model, or the likeliest one",
        ),
    ] = None


@command
def inspect(
    decoder: Annotated[
        str,
        typer.Argument(
            metavar="DECODER",
            help="A torch.export file (.pt2) or an ONNX file (.onnx); [b]module:function[/b] or "
            "[b]file.py:function[/b], where the function returns the torch.nn.Module or a girih.vae.VAE (this runs "
            "your code); or the folder that [b]girih fit[/b] or girih.save wrote.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="[DATA]",
            help="Rows in the units of its output: a file, or a built-in name. They are placed on the cells, and "
            "scored; of a girih.vae.VAE, the gap of its encoder is measured on them.",
            show_default=False,
        ),
    ] = None,
    *,
    latent: Latent,
    part: Traced,
    seen: CellsSeen,
    rows: RowsSeen,
    reading: Reading,
    output: Output,
    explorer: Explorer = True,
) -> None:
    """Say what a decoder does: cells, dimension, volumes, entropy, disentanglement, angles, injectivity.

    With DATA it also says which cells rows fall on, their NLL, and what the encoder of a VAE loses.

    For a decoder that was trained anywhere. For latent dimension S up to 3 all cells are enumerated and the numbers
    are exact; for larger S they are estimated from cells that prior draws meet, with standard errors.

    A Sigmoid, Tanh or Softmax at the end is taken off, and a note says so.

    Writes [b]report.html[/b], [b]explorer.html[/b] to look around in its latent space, [b]inspection.json[/b],
    [b]cells.csv[/b], [b]rows.csv[/b] and pictures. A module is imported from the
    current folder or from the installed packages, and its code runs; of a .pt2 or .onnx file the graph and the
    weights are read, and nothing in it runs.
    """
    terminal = Terminal(output.as_json)
    started = time.perf_counter()
    if latent.prior is not None and latent.uniform is not None:
        raise CommandError("--prior and --uniform exclude each other; give one of them")
    with terminal.busy("loading"):
        from girih.cli import decoders, tables

        loaded = decoders.load_decoder(decoder, decoders.Wanted(part.until, _place(part.output), part.latent_dim))
        prior = _prior(latent, loaded.prior)
        shape, guessed = decoders.image_shape_of(loaded, part.image_shape)
        path = default_out(output.out, loaded.name, "inspect")
        if (path / tables.MODEL).is_dir():
            raise CommandError(f"{path} holds a fitted model with a report of its own; choose another --out")
        folder = OutputFolder(path, "inspect", decoders.FILES)
    traced = loaded.trace
    terminal.say(f"{loaded.name}: S = {traced.latent_dim}, D = {traced.output_dim}", style="bold")
    for note in loaded.notes:
        terminal.note(note)
    if guessed and shape is not None:
        terminal.note(f"outputs are drawn as {shape[0]}x{shape[1]} images; change that with --image-shape")
    dataset = None if data is None else _dataset(terminal, loaded, data, rows, reading, seen.seed)
    begun = time.perf_counter()
    found = girih.report.inspect_decoder(
        traced,
        prior,
        draws=seen.cells,
        sample=seen.sample,
        max_cells=seen.max_cells,
        seed=seen.seed,
        progress=terminal.shows_progress,
    )
    if found.note:
        terminal.note(found.note)
    looked_at = None if dataset is None else decoders.inspected_rows(
        loaded, found.cells, dataset, rows.noise, seen.seed, terminal.shows_progress
    )  # fmt: skip
    seconds = {"load": begun - started, "inspect": time.perf_counter() - begun}
    settings = {**vars(seen), **vars(rows), "data": data, "explorer": explorer}
    metrics = decoders.write(folder, loaded, found, looked_at, shape, settings, seconds, terminal)
    decoders.tell(terminal, folder.path, metrics)


def _dataset(
    terminal: Terminal, loaded: Decoder, data: str, wanted: RowsSeen, reading: Reading, seed: int
) -> girih.datasets.Dataset:
    """The rows of DATA that are looked at."""
    from girih.cli import decoders

    dataset = decoders.rows_for(loaded, data, reading.chosen(seed, wanted.rows))
    most = decoders.most_rows(loaded)
    if wanted.rows is not None or len(dataset.X) <= most:
        return dataset
    terminal.note(f"{most:,} of the {len(dataset.X):,} rows are looked at, drawn at random; --rows takes more")
    return decoders.rows_for(loaded, data, reading.chosen(seed, most))


def _place(output: str | None) -> str | int | None:
    """The output by its place, where a number is given."""
    return int(output) if output is not None and output.lstrip("-").isdecimal() else output


def _prior(latent: Latent, fitted: torch.Tensor | None) -> float | torch.Tensor | girih.geometry.Uniform:
    variance, uniform = latent.prior, latent.uniform
    if variance is not None and not 0.0 < variance < float("inf"):
        raise CommandError(f"--prior takes a positive variance, got {variance:g}")
    if uniform is None:
        return variance if variance is not None else 1.0 if fitted is None else fitted
    low, high = uniform
    if not -float("inf") < low < high < float("inf"):
        raise CommandError(f"--uniform takes two finite numbers, LOW below HIGH; got {low:g} and {high:g}")
    return girih.geometry.Uniform(low, high)
