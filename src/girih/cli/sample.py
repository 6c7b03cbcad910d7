"""`girih sample`: new rows from a model."""

from __future__ import annotations

from typing import Annotated

import typer

from girih._extras import require
from girih.cli.folder import OutputFolder, default_out
from girih.cli.inputs import plural, read_model
from girih.cli.options import Json, ModelArgument, Out, Seed
from girih.cli.terminal import Terminal, command

_CSV, _NPY, _PICTURE = "samples.csv", "samples.npy", "samples.png"


@command
def sample(
    model: ModelArgument,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many rows.")] = 100,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Draw new rows from a model.

    Writes [b]samples.csv[/b], the same as [b]samples.npy[/b] (images in their shape), and for images and plane
    data a picture, [b]samples.png[/b].
    """
    pandas = require("pandas", "tables")
    from girih.cli.rows import write_csv, write_npy

    terminal = Terminal(as_json)
    saved = read_model(model)
    folder = OutputFolder(default_out(out, saved.name, "sample"), "sample", (_CSV, _NPY, _PICTURE))
    X = saved.dgn().sample((count,), seed=seed).cpu().numpy()
    written = [_CSV, _NPY]
    with folder.results() as results:
        write_csv(results / _CSV, pandas.DataFrame(X, columns=saved.header()))
        write_npy(results / _NPY, X.reshape(count, *saved.image_shape) if saved.image_shape else X)
        if saved.image_shape is not None or X.shape[1] == 2:
            from girih.report.pictures import draw_samples

            draw_samples(results / _PICTURE, X, saved.image_shape, saved.header())
            written.append(_PICTURE)
    terminal.say(f"{plural(count, 'row')} of {plural(X.shape[1], 'column')} drawn with seed {seed}", style="bold")
    for name in written:
        terminal.say(f"  {folder / name}")
    terminal.result({"out": str(folder.path), "rows": count, "columns": X.shape[1], "seed": seed, "files": written})
