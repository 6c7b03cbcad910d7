"""`girih impute`: a table with its missing entries filled."""

from __future__ import annotations

from pathlib import Path

from girih.cli.folder import OutputFolder, default_out
from girih.cli.inputs import load_for, plural, read_model
from girih.cli.options import Columns, DataArgument, Drop, Header, Json, ModelArgument, Out, Seed, split_names
from girih.cli.terminal import Terminal, command
from girih.cli.threads import compute_threads

_CSV, _NPY = "imputed.csv", "imputed.npy"


@command
def impute(
    model: ModelArgument,
    data: DataArgument,
    columns: Columns = None,
    drop: Drop = None,
    header: Header = None,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Fill the empty cells of a table with their exact expectation given the rest of the row.

    Writes [b]imputed.csv[/b]: the table as it was, other columns included, with the empty cells of the model's
    columns filled. For an npy file also [b]imputed.npy[/b].
    """
    import numpy as np

    from girih.cli.completed import write_completed
    from girih.cli.rows import write_npy

    terminal = Terminal(as_json)
    saved = read_model(model)
    dataset = load_for(saved, data, columns=split_names(columns), drop=split_names(drop), seed=seed, header=header)
    folder = OutputFolder(default_out(out, saved.name, "impute", Path(data).stem), "impute", (_CSV, _NPY))
    missing = np.isnan(dataset.X)
    with compute_threads(dataset.X.size):
        filled = saved.dgn.impute(dataset.X).cpu().numpy()
    written = [_CSV]
    with folder.results() as results:
        write_completed(results / _CSV, data, dataset, filled, missing, header)
        if Path(data).suffix.lower() == ".npy":
            write_npy(results / _NPY, filled.reshape(len(filled), *(dataset.image_shape or (-1,))))
            written.append(_NPY)

    count, rows = int(missing.sum()), int(missing.any(1).sum())
    empty = int(missing.all(1).sum())
    if count:
        share = count / missing.size
        terminal.say(
            f"{dataset.name}: filled {count:,} of {missing.size:,} entries ({share:.1%}), in {plural(rows, 'row')}"
        )
    else:
        terminal.say(f"{dataset.name}: nothing is missing, so nothing was filled")
    if empty:
        terminal.note(f"{plural(empty, 'row')} without any observed entry got the mean of the model")
    for name in written:
        terminal.say(f"  {folder / name}")
    terminal.result(
        {"out": str(folder.path), "filled": count, "rows_filled": rows, "rows": len(filled), "files": written}
    )
