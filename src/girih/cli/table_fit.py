"""The work of `girih fit` on a table: the joint density of its columns, its numbers, and its page."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import girih
from girih._files import write_json, write_text
from girih.cli.explorers import EXPLORER, explore_table
from girih.cli.fitting import CHECKPOINT, cannot_resume
from girih.cli.folder import OutputFolder
from girih.cli.results import CURVE, PICTURES, REPORT, SCORES
from girih.cli.table_data import READ, TableData, is_frame, page_of, scores_of, what_was_read
from girih.cli.tables import DATA_FILE, METRICS, MODEL, plural, write_csv
from girih.cli.terminal import CommandError, Terminal
from girih.errors import ModelFileError
from girih.report import Section, versions
from girih.report.rivals import Rival, rivals
from girih.report.table_numbers import setting_text, weighty
from girih.report.table_page import draw_table, table_page
from girih.report.trust import trust
from girih.tables import TableModel

_LISTED = 12  # columns that are listed in the terminal
_PICTURES = ("pairs.png", "curve.png")
FILES = (METRICS, DATA_FILE, SCORES, CURVE, REPORT, EXPLORER, CHECKPOINT, *PICTURES, *_PICTURES)


def parse_kinds(texts: list[str] | None, data: TableData) -> dict[str | int, str] | None:
    """`NAME=KIND` as TableModel takes them."""
    if not texts:
        return None
    kinds: dict[str | int, str] = {}
    for text in texts:
        name, sign, kind = text.rpartition("=")
        if not sign or kind not in ("number", "category", "boolean"):
            raise CommandError(f"--kind takes NAME=number, NAME=category or NAME=boolean; got {text!r}")
        if name not in data.names:
            raise CommandError(f"--kind: {data.name} has no column {name!r}; it has {', '.join(data.names[:12])}")
        kinds[data.names.index(name) if isinstance(data.rows, np.ndarray) else name] = kind
    return kinds


def fit_table(
    data: TableData,
    kinds: Mapping[str | int, str] | None,
    seed: int,
    checkpoint: Path,
    restart: bool,
    terminal: Terminal,
) -> tuple[TableModel, dict[str, float]]:
    """Fit the density of a table, going on from the checkpoint of an unfinished fit; the model and how long it took."""
    for name in data.left_out:
        kind = "text" if data.ids is not None and data.ids[name].dtype.kind not in "fiu" else "number"
        terminal.note(
            f"{name!r} holds a different {kind} in each row: it names the rows and is left out "
            f"(--kind {name}=number or =category keeps it)"
        )
    for name, doubts in data.findings.doubts.items():
        for doubt in doubts:
            terminal.note(f"{name!r}: {doubt}")
    missing = data.missing
    if missing.any():
        terminal.note(
            f"{missing.sum():,} entries in {missing.any(1).sum():,} rows are missing ({missing.mean():.1%}); "
            "they are integrated out"
        )
    if restart:
        checkpoint.unlink(missing_ok=True)
    elif checkpoint.exists():
        terminal.note(f"{checkpoint.parent} holds an unfinished fit; going on from there")
    start = time.perf_counter()
    model = TableModel(kinds=kinds, random_state=seed, verbose=int(terminal.shows_progress), checkpoint=checkpoint)
    try:
        model.fit(data.rows)
    except ModelFileError as error:
        raise cannot_resume(error) from None
    model.set_params(verbose=0, checkpoint=None)
    return model, {"fit": time.perf_counter() - start}


def write_table(
    folder: OutputFolder,
    model: TableModel,
    data: TableData,
    seconds: dict[str, float],
    terminal: Terminal,
    exploring: bool = True,
) -> dict[str, Any]:
    """Write everything, with the explorer if asked for, and return the metrics.

    Model and numbers come first: they outlive a Ctrl-C in the rest.
    """
    start = time.perf_counter()
    scores = scores_of(model, data)
    seconds["score"] = time.perf_counter() - start
    metrics = _metrics(model, data, scores["log_p"], seconds)
    with folder.results() as results:
        girih.save(model, results / MODEL)
        notes: dict[str, Any] = {"source": data.source, "name": data.name, "columns": data.names, "image_shape": None}
        notes |= {"reading": data.reading.known(), "written": data.findings.written}
        write_json(results / DATA_FILE, notes)
        write_json(results / METRICS, metrics)
        write_csv(results / SCORES, scores)
        with folder.outliving_interrupt():
            with terminal.busy("comparing"):
                others = rivals(model, data.rows)
            metrics["rivals"] = {one.name: one.nll for one in others}
            with terminal.drawing(seconds):
                page = page_of(model, data)
                drawn = draw_table(results, page)
                report = table_page(data.name, _lead(data), page, _numbers(metrics, others), drawn, _code(folder, data))
            verdict = trust(metrics["held_out_nll"], metrics["nll_per_row"], others, len(data), len(data.names))
            read = [
                Section("What was read", "The file as it was understood, and what changes that.", READ, metrics["read"])
            ]
            report = report._replace(verdict=verdict, sections=[*read, *report.sections])
            if exploring:
                with terminal.busy("making the explorer"):
                    explore_table(results / EXPLORER, page, data)
                report = report._replace(explorer=EXPLORER)
            metrics |= {"seconds": _rounded(seconds), "pictures": [picture.file.name for picture in drawn]}
            metrics["verdict"] = verdict
            write_text(results / REPORT, report.html())
            write_json(results / METRICS, metrics)
    return metrics


def tell(terminal: Terminal, folder: OutputFolder, model: TableModel, metrics: dict[str, Any]) -> None:
    """The last lines of `girih fit`: columns, numbers, weights, and where all of it is."""
    columns = metrics["columns"]
    if metrics["read"]:
        terminal.say("What was read", style="bold")
        terminal.table(
            {what: found + (f" ({change})" if change else "") for what, found, change in metrics["read"]}, ""
        )
        terminal.say()
    terminal.say("Columns", style="bold")
    terminal.table({one["column"]: one["note"] for one in columns[:_LISTED]}, style="")
    if len(columns) > _LISTED:
        terminal.say(f"... and {len(columns) - _LISTED} more, all of them in the report")
    terminal.say()
    scores = {"average": metrics["held_out_nll"], "best single model": metrics["best"]["held_out_nll"]}
    scores |= metrics.get("rivals", {})
    if metrics["entropy"] is not None:
        scores["(entropy of the truth)"] = metrics["entropy"]
    header = ("held-out NLL, nats a row in the units of the data", "")
    terminal.columns(header, [(name, f"{nll:.4f}") for name, nll in scores.items()], bold=0)
    terminal.say()
    terminal.columns(("weight", "mixture"), [(f"{one['weight']:.2f}", one["setting"]) for one in metrics["weights"]])
    terminal.say(f"Best single model: {metrics['best']['setting']}")
    if "verdict" in metrics:
        terminal.say(metrics["verdict"])
    seconds = metrics["seconds"]
    terminal.say(f"Time: {seconds['fit']:.1f} s for the fit, {seconds.get('pictures', 0.0):.1f} s for the report")
    terminal.say()
    out = folder.path
    terminal.say(f"Pictures: {out}/ ({', '.join(metrics.get('pictures', ()))})")
    terminal.say(f"Model:    {out / MODEL}")
    terminal.say(f"Report:   {out / REPORT}")
    if (folder / EXPLORER).exists():
        terminal.say(f"Explorer: {out / EXPLORER}")
    terminal.say(f"Go on:    girih anomalies {out} DATA, girih impute {out} DATA --std, girih sample {out}")
    terminal.result({"out": str(out), "report": str(out / REPORT), "model": str(out / MODEL), **metrics})


def _metrics(
    model: TableModel, data: TableData, log_p: np.ndarray[Any, Any], seconds: dict[str, float]
) -> dict[str, Any]:
    best = model.best_
    return {
        "kind": "table",
        "held_out_nll": -model.held_out_score_,
        "nll_per_row": -float(log_p.mean()),
        "entropy": data.entropy,
        "best": {
            "held_out_nll": -best.held_out_score_,
            "setting": setting_text(best.setting_),
            "nll_per_row": -best.score(data.rows),
            "n_parameters": best._parameters(),
            "aic": model.aic(data.rows),
            "bic": model.bic(data.rows),
        },
        "weights": [{"setting": text, "weight": weight} for text, weight, _ in weighty(model)],
        "members": len(model.members_),
        "columns": model.columns_.summary()
        if model.columns_.named
        else [one | {"column": name} for one, name in zip(model.columns_.summary(), data.names, strict=True)],
        "left_out": list(data.left_out),
        "read": what_was_read(data),
        "data": {
            "source": data.source,
            "name": data.name,
            "rows": len(data),
            "columns": len(data.names),
            "missing": int(data.missing.sum()),
        },
        "seed": model.random_state,
        "seconds": _rounded(seconds),
        "versions": versions(),
    }


def _numbers(metrics: dict[str, Any], others: list[Rival]) -> list[girih.report.Number]:
    """The metrics as rows of a table, the most important first."""
    number, best = girih.report.Number, metrics["best"]

    def nats(value: float) -> str:
        return f"{value:.4f} nats per row"

    rows = [
        number(
            "Held-out NLL",
            nats(metrics["held_out_nll"]),
            "Minus the mean of log p(x) over rows that the models did not see, in the units of the data. Lower is "
            "better; one nat less means that each fresh row is e = 2.7 times as likely.",
        ),
        number(
            "Best single model",
            nats(best["held_out_nll"]),
            f"The simplest within one standard error of the best, to read and to draw: {best['setting']}. "
            f"{best['n_parameters']:,} parameters, AIC {best['aic']:,.1f}, BIC {best['bic']:,.1f}.",
        ),
    ]
    rows += [number(one.name, nats(one.nll), f"Held out, on the same folds. {one.meaning}") for one in others]
    if metrics["entropy"] is not None:
        rows.append(number("Entropy of the truth", nats(metrics["entropy"]), "No model does better on new rows."))
    rows.append(number("NLL of the rows", nats(metrics["nll_per_row"]), "On the rows of the fit themselves."))
    if metrics["data"]["missing"]:
        meaning = "They were integrated out exactly; no row was dropped and nothing was filled in before the fit."
        rows.append(number("Missing entries", f"{metrics['data']['missing']:,}", meaning))
    rows.append(number("Time", f"{metrics['seconds']['fit']:.1f} s", "Of the fit, the choice of settings included."))
    return rows


def _lead(data: TableData) -> str:
    return (
        f"The joint density of {plural(len(data.names), 'column')}, fitted to {plural(len(data), 'row')}: a weighted "
        "average of mixtures of Gaussians and of curves, whose settings and weights were chosen on held-out rows. "
        "Likelihoods, imputations and intervals are exact; none is estimated by sampling."
    )


def _code(folder: OutputFolder, data: TableData) -> str:
    """A few lines of Python that load the model and use it on the same rows."""
    imports, rows = "import girih", f"girih.datasets.load({data.source!r}).X"
    if not isinstance(data.rows, np.ndarray):
        rows = (
            f"girih.datasets.load_frame({data.source!r}{data.reading.code('reading')})[list(model.feature_names_in_)]"
        )
        if not is_frame(data.source):
            imports = "import girih\nimport pandas as pd"
            rows = f"pd.DataFrame(girih.datasets.load({data.source!r}).X, columns=model.feature_names_in_)"
    return f"""{imports}

model = girih.load({str(folder / MODEL)!r})
rows = {rows}

model.score_samples(rows)                  # log p(x) of what is known of each row, in nats
model.explain(rows)                        # how strange each column makes each row
model.impute(rows, return_std=True)        # the gaps filled, with standard deviations
model.condition(rows).quantile([0.05, 0.95])
model.sample(10, random_state=0)           # ten new rows
"""


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in seconds.items()}
