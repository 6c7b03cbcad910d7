"""The command."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

import girih
from girih.training import Progress
from tables import anomalies, data, density, imputation, summary
from tables.records import Key, Record, Store

PARTS = ("density", "imputation", "anomalies")
MODELS = tuple(dict.fromkeys((*density.MODELS, *imputation.MODELS, *anomalies.MODELS)))

_table = cache(data.load)


def _run(key: Key) -> list[tuple[Key, Record]]:
    if key.part == "anomalies":
        return anomalies.run(key)
    run: Callable[[Key, data.Table], list[tuple[Key, Record]]] = {
        "density": density.run,
        "imputation": imputation.run,
    }[key.part]
    return run(key, _table(key.table))


def work(arguments: argparse.Namespace) -> list[Key]:
    """All that was asked for, one split of everything after the other, so that a run that is stopped says something."""

    def models(known: tuple[str, ...]) -> tuple[str, ...]:
        chosen = tuple(model for model in known if not arguments.only_model or model in arguments.only_model)
        without = () if hasattr(girih, "TableModel") else ("girih", "girih_60")
        return tuple(model for model in chosen if model not in without)

    def tables(known: tuple[str, ...], quick: tuple[str, ...]) -> list[str]:
        known = quick if arguments.quick and not arguments.only else known
        return [table for table in known if not arguments.only or table.partition(":")[0] in arguments.only]

    keys = []
    for split in range(arguments.splits or (1 if arguments.quick else 5)):
        if "density" in arguments.part:
            for table in tables(tuple(data.TABLES), data.QUICK):
                keys += density.keys(table, split, models(density.MODELS), arguments.raw, arguments.quick)
        if "imputation" in arguments.part and not arguments.raw:
            for table in tables((*data.REAL, *data.KEPT_BACK), data.QUICK[:1]):
                keys += imputation.keys(table, split, models(imputation.MODELS), arguments.quick)
        if "anomalies" in arguments.part and not arguments.raw:
            for case in tables(tuple(anomalies.CASES), anomalies.QUICK):
                keys += anomalies.keys(case, split, models(anomalies.MODELS), arguments.quick)
    return keys


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="girih's TableModel beside its rivals; a run that is stopped goes on.")
    parser.add_argument(
        "--out", type=Path, default=Path("girih-out/tables"), help="folder of results, default %(default)s"
    )
    parser.add_argument(
        "--quick", action="store_true", help="few small tables, one split, few settings: not for numbers"
    )
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--only", nargs="+", metavar="TABLE", help=f"of {', '.join(data.TABLES)}")
    parser.add_argument("--only-model", nargs="+", metavar="MODEL", choices=MODELS, help=f"of {', '.join(MODELS)}")
    parser.add_argument("--splits", type=int, help="default 5; 1 with --quick")
    parser.add_argument("--raw", action="store_true", help="density without the noise of one rounding width")
    parser.add_argument("--again", action="store_true", help="measure what was asked for anew")
    parser.add_argument("--summary", action="store_true", help="only write the summary of what is there")
    options = parser.parse_args(arguments)
    known = {name.partition(":")[0] for name in (*data.TABLES, *anomalies.CASES)}
    if unknown := set(options.only or ()) - known:
        parser.error(f"there is no table {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    torch.set_num_threads(1)
    store = Store(options.out / "records.jsonl")
    if not options.summary:
        with threadpool_limits(1):
            measure(work(options), store, options.again)
    records = {
        key: record
        for key, record in store.records.items()
        if key.quick == options.quick and (key.part != "density" or key.raw == options.raw)
    }
    text = summary.markdown(records)
    path = options.out / f"summary{'-quick' if options.quick else ''}{'-raw' if options.raw else ''}.md"
    path.write_text(text)
    print(text)


def measure(keys: list[Key], store: Store, again: bool) -> None:
    """Do what has no record yet; a piece of work that fails is noted, and tried again by the next run."""
    done = {
        key for key in keys if not again and not {"failed", "missing"} & store.records.get(key, {"missing": ""}).keys()
    }
    todo = [key for key in keys if key not in done]
    progress = Progress("tables", len(keys), len(done))
    try:
        for number, key in enumerate(todo):
            name = " ".join(filter(None, (key.part, key.table, key.case, f"split {key.split}", key.model)))
            progress.show(len(done) + number, name)
            try:
                results = _run(key)
            except Exception as error:  # one rival on one table must not end hours of work
                traceback.print_exc()
                results = [(key, {"failed": f"{type(error).__name__}: {error}".splitlines()[0]})]
            for each, record in results:
                store.add(each, record)
            if progress.hidden:
                print(f"{len(done) + number + 1}/{len(keys)} {name}", file=sys.stderr, flush=True)
    finally:
        progress.close()
