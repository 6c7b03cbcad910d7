"""`girih gap`: what the bound of a VAE loses. The work is in `girih.vae.gap`, words and picture in `girih.report`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Annotated

import typer

import girih
from girih.cli.folder import OutputFolder, default_out
from girih.cli.options import DataArgument, Output, Reading, Seed, data_option
from girih.cli.terminal import CommandError, Terminal, command

_REPORT, _NUMBERS, _TABLE = "report.html", "gap.json", "gap.csv"
_ROWS = 100


@dataclass(frozen=True)
class Wanted:
    """`Wanted` groups what is asked of the gap."""

    rows: Annotated[
        int, data_option("--rows", min=1, help="Look at so many rows of DATA, drawn at random; all if it has fewer.")
    ] = _ROWS
    full: Annotated[
        bool, typer.Option("--full", help="Look for the best Gaussian among those with any covariance.")
    ] = False
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget",
            metavar="SECONDS",
            help="Bound the NLL from both sides, certified and with 99 % confidence, in so much time for all rows.",
            show_default=False,
        ),
    ] = None
    seed: Seed = 0


@command
def gap(
    module: Annotated[
        str,
        typer.Argument(
            metavar="MODULE",
            help="[b]module:function[/b] or [b]file.py:function[/b], where the function returns a girih.vae.VAE or a "
            "girih.vae.Pair of a decoder and an encoder from another library (this runs your code); or the folder of a "
            "saved girih.vae.VAE.",
            show_default=False,
        ),
    ],
    data: DataArgument,
    *,
    wanted: Wanted,
    reading: Reading,
    output: Output,
) -> None:
    """Say what the bound of a VAE loses of log p(x), and whether its family or its encoder is to blame.

    For up to three latents the numbers are exact; beyond, they are estimates with standard errors, and [b]--budget[/b]
    adds bounds: certified, and with a confidence of 99 %.

    Writes [b]report.html[/b], [b]gap.json[/b], [b]gap.csv[/b] with a line for each row, and a picture.
    """
    terminal, begun = Terminal(output.as_json), time.perf_counter()
    with terminal.busy("loading"):
        from girih.cli import decoders
        from girih.cli.tables import load_data, plural, write_csv

        name, model, code = decoders.load_vae(module)
        folder = OutputFolder(default_out(output.out, name, "gap"), "gap", (_REPORT, _NUMBERS, _TABLE, "gap.png"))
    dataset = load_data(data, reading.chosen(wanted.seed, None))
    if len(dataset.X) > wanted.rows:
        dataset = load_data(data, reading.chosen(wanted.seed, wanted.rows))
    if dataset.shape[1] != model.output_dim:
        raise CommandError(
            f"{dataset.name} has {plural(dataset.shape[1], 'column')}, and the decoder has D = {model.output_dim} "
            "outputs; choose columns with --columns or --drop"
        )
    terminal.say(f"{name}: S = {model.latent_dim}, D = {model.output_dim}, {len(dataset.X):,} rows", style="bold")
    with terminal.busy("measuring the gap"):
        full = "full" if wanted.full else "diagonal"
        found = girih.vae.gap(model, dataset.X, seed=wanted.seed, covariance=full, budget=wanted.budget)
    from girih._files import write_json, write_text
    from girih.report import Page, versions
    from girih.report.gap_page import draw_gap, explain_gap, facts_of_gap, gap_table

    seconds = {"gap": round(time.perf_counter() - begun, 3)}
    numbers = {**facts_of_gap(found), "module": module, "data": data, "settings": vars(wanted), "seconds": seconds}
    explained = explain_gap(numbers)
    with folder.results() as results:
        write_json(results / _NUMBERS, {**numbers, "versions": versions()})
        write_csv(results / _TABLE, gap_table(found))
        with folder.outliving_interrupt():
            settings = {"model": module, "data": data, "rows": f"{len(dataset.X):,}", "seed": str(wanted.seed)}
            lead = (
                f"A VAE with {model.latent_dim} latents and {model.output_dim:,} outputs, on {len(dataset.X):,} rows. "
                + ("Numbers are estimates, with standard errors." if found.sampled else "Nothing is sampled.")
            )
            python = f"import girih\n{code}\nX = girih.datasets.load({data!r}).X\ngirih.vae.gap(model, X)\n"
            page = Page(name, lead, explained, draw_gap(results, found), settings, python)
            write_text(results / _REPORT, page.html())
    terminal.table({number.name: number.value for number in explained})
    terminal.say(f"\nRows:     {folder / _TABLE}\nNumbers:  {folder / _NUMBERS}\nReport:   {folder / _REPORT}")
    terminal.result({"out": str(folder.path), "report": str(folder / _REPORT), **numbers})
