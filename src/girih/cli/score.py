"""`girih score`: exact log-densities of rows."""

from __future__ import annotations

from pathlib import Path

from girih.cli.folder import OutputFolder, default_out
from girih.cli.inputs import load_for, plural, read_model
from girih.cli.options import Columns, DataArgument, Drop, Header, Json, ModelArgument, Out, Rows, Seed, split_names
from girih.cli.terminal import Terminal, command
from girih.cli.threads import compute_threads

_CSV, _SUMMARY = "scores.csv", "summary.json"


@command
def score(
    model: ModelArgument,
    data: DataArgument,
    columns: Columns = None,
    drop: Drop = None,
    header: Header = None,
    rows: Rows = None,
    seed: Seed = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Compute the exact log p(x) of each row: the lowest ones are the anomalies.

    Writes [b]scores.csv[/b] (log p in nats, the row's latent z and its uncertainty) and [b]summary.json[/b]. Of a
    row with empty cells, log p is that of the cells that are there, so compare it with rows that lack the same.
    """
    from girih._files import write_json
    from girih.cli.rows import score_rows, summarise, write_csv

    terminal = Terminal(as_json)
    saved = read_model(model)
    dataset = load_for(
        saved, data, columns=split_names(columns), drop=split_names(drop), rows=rows, seed=seed, header=header
    )
    folder = OutputFolder(default_out(out, saved.name, "score", Path(data).stem), "score", (_CSV, _SUMMARY))
    with compute_threads(dataset.X.size):
        scores, left_out = score_rows(saved.dgn, dataset.X)
    summary = {**summarise(scores), "left_out": left_out}
    with folder.results() as results:
        write_csv(results / _CSV, scores)
        write_json(results / _SUMMARY, summary)

    terminal.say(f"{dataset.name}: {plural(summary['rows'], 'row')}, log p(x) in nats", style="bold")
    quantiles = summary["quantiles"]
    terminal.table(
        {
            "mean": f"{summary['mean']:.4f} (standard deviation {summary['standard_deviation']:.4f})",
            "median": f"{quantiles['0.5']:.4f}",
            "from, to": f"{quantiles['0']:.4f}, {quantiles['1']:.4f}",
            "lowest 5%": f"below {quantiles['0.05']:.4f}",
            "least likely": "\n".join(f"row {x['row']:<8} {x['log_p']:10.3f}" for x in summary["least_probable"]),
            "left out": f"at most {left_out:.1e} of any p(x), by proof",
        }
    )
    if "missing" in scores:
        incomplete = int((scores["missing"] > 0).sum())
        terminal.note(f"{plural(incomplete, 'row')} with missing entries: log p is that of the entries that are there")
    terminal.say(f"Scores: {folder / _CSV} (rows are counted from 0)")
    terminal.result({"out": str(folder.path), **summary})
