"""Times over their floors, which no machine changes, as a history over commits.

    python benchmarks/ratios.py                # measure and compare with the history; ends with 1 if a ratio got worse
    python benchmarks/ratios.py --record       # ... and add the numbers to the history (benchmarks/history.jsonl)
    python benchmarks/ratios.py --table        # the history as a table in markdown

Each case is measured in turns with its floor, what the arithmetic alone would take, in processor time of one thread.
A ratio is worse if it is more than a tenth above the median of the last five records, in three measurements in a row.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import torch

import girih
from girih.inference import accumulate, chunks, evidence
from girih.inference.certificate import select_pairs
from girih.tables.basis import Basis
from girih.tables.mixture import Mixture, Rows
from girih.tables.mixture import statistics as table_statistics
from likelihood import generator

HISTORY = Path(__file__).parent / "history.jsonl"
WORSE = 1.1
_LAST, _TRIES, _TURNS, _LEAST = 5, 3, 5, 0.2  # records, measurements, turns, seconds of each

Run = Callable[[], object]


class Case(NamedTuple):
    """What is timed, and its floor."""

    run: Run
    floor: Run


def _log_ndtr(pairs: int) -> Run:
    """Two `log_ndtr` for each pair of a row and an interval."""
    ends = torch.randn(2, pairs, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return lambda: torch.special.log_ndtr(ends)


def lines() -> dict[str, Case]:
    """S = 1, an E-step: the floor is two `log_ndtr` a pair."""
    dgn = girih.DGN(girih.mlp([1, 8, 8], seed=0), noise=0.05)
    x, model = dgn().sample((4000,), seed=0), dgn.model()
    weight, pairs = torch.ones(len(x), dtype=torch.float64), len(x) * len(dgn.partition)
    moments = [model.cells.region.expect, accumulate]
    return {
        "E-step, S = 1": Case(lambda: [moments[0](model, rows) for _, rows in chunks(model, x)], _log_ndtr(pairs)),
        "E-step with statistics, S = 1": Case(lambda: moments[1](model, x, weight), _log_ndtr(pairs)),
    }


def polytopes(S: int, hidden: list[int], rows: int) -> dict[str, Case]:
    """S = 2 and 3: the floor is the masses, for an E-step the moments, of the pairs that matter."""
    dgn = girih.DGN(generator([S, *hidden, 10]), noise=0.05)
    model, weight = dgn.model(), torch.ones(rows, dtype=torch.float64)
    x = dgn().sample((rows,), seed=0)
    geometry = model.cells.region.geometry(model)
    pairs = [select_pairs(geometry, part.relative()) for _, part in chunks(model, x)]
    sets = [(p.piece, None, p.gaussian.centre) for p in pairs]
    shapes = geometry.stretched
    return {
        f"log_prob, S = {S}": Case(lambda: evidence(model, x), lambda: [shapes.raw_masses(*part) for part in sets]),
        f"E-step with statistics, S = {S}": Case(
            lambda: accumulate(model, x, weight), lambda: [shapes.raw_moments(*part) for part in sets]
        ),
    }


def tables() -> dict[str, Case]:
    """The E-step of a mixture of bent Gaussians: the floor is two `log_ndtr` a row, component and cell."""
    g = torch.Generator().manual_seed(0)
    K, D, basis = 6, 8, Basis.line(5)
    maps = 0.7 * torch.randn(K, D, basis.size, generator=g, dtype=torch.float64)
    noise = 0.1 * torch.eye(D, dtype=torch.float64).expand(K, -1, -1)
    mixture = Mixture(basis, torch.full((K,), 1.0 / K, dtype=torch.float64), maps, noise)
    x = torch.randn(2000, D, generator=g, dtype=torch.float64)
    holes = torch.where(torch.rand(x.shape, generator=g) < 0.1, torch.nan, x)
    pairs = len(x) * K * len(basis.constant)
    whole, some = Rows.of(x), Rows.of(holes)
    return {
        "E-step of a table": Case(lambda: table_statistics(mixture, whole), _log_ndtr(pairs)),
        "E-step of a table with holes": Case(lambda: table_statistics(mixture, some), _log_ndtr(pairs)),
    }


def partitions() -> dict[str, Case]:
    """A partition: the floor is the network at as many points as there are cells."""
    cases = {}
    for widths in ([2, 64, 64, 2], [3, 24, 24, 2]):
        net = girih.mlp(widths, seed=0)
        z = torch.randn(len(girih.Partition(net)), widths[0], dtype=torch.float64)
        name = "partition " + "-".join(map(str, widths))
        cases[name] = Case(lambda net=net: girih.Partition(net), lambda net=net, z=z: net(z))
    return cases


def cases() -> dict[str, Case]:
    """All of them."""
    return lines() | polytopes(2, [8, 8], 1000) | polytopes(3, [5, 5], 200) | tables() | partitions()


def ratio(case: Case) -> float:
    """The median over turns of the time over that of the floor, each as often as takes a fifth of a second."""
    counts = []
    for run in case:
        run()
        start = time.process_time()
        run()
        counts.append(max(1, round(_LEAST / max(time.process_time() - start, 1e-9))))
    found = []
    for _ in range(_TURNS):
        taken = []
        for run, count in zip(case, counts, strict=True):
            start = time.process_time()
            for _ in range(count):
                run()
            taken.append((time.process_time() - start) / count)
        found.append(taken[0] / taken[1])
    return statistics.median(found)


def history() -> list[dict[str, object]]:
    """The records, the oldest first."""
    return [json.loads(line) for line in HISTORY.read_text().splitlines()] if HISTORY.exists() else []


def usual(records: list[dict[str, object]], name: str) -> float | None:
    """The median of the last records of a case."""
    values = [record["ratios"][name] for record in records if name in record["ratios"]]  # type: ignore[index,operator]
    return statistics.median(values[-_LAST:]) if values else None


def table(records: list[dict[str, object]]) -> str:
    """The history in markdown, a line for each commit."""
    names = list(dict.fromkeys(name for record in records for name in record["ratios"]))  # type: ignore[attr-defined]
    lines = ["| commit | date | " + " | ".join(names) + " |", "|" + " --- |" * (len(names) + 2)]
    for record in records:
        ratios = record["ratios"]
        cells = [f"{ratios[name]:.1f}" if name in ratios else "" for name in names]  # type: ignore[index,operator]
        lines.append(f"| {record['commit']} | {record['date']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measure(records: list[dict[str, object]]) -> tuple[dict[str, float], list[str]]:
    """The ratios, and the names of those that got worse."""
    ratios, worse = {}, []
    with torch.no_grad():
        for name, case in cases().items():
            before = usual(records, name)
            ratios[name] = ratio(case)
            for _ in range(_TRIES - 1):
                if before is None or ratios[name] <= WORSE * before:
                    break
                ratios[name] = min(ratios[name], ratio(case))
            verdict = "new" if before is None else f"{ratios[name] / before - 1.0:+.0%}"
            print(f"{name:32} {ratios[name]:8.2f} times the floor   {verdict}", flush=True)
            if before is not None and ratios[name] > WORSE * before:
                worse.append(name)
    return ratios, worse


def main() -> int:
    """Run the command; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="add the numbers to the history")
    parser.add_argument("--table", action="store_true", help="only print the history")
    options = parser.parse_args()
    records = history()
    if options.table:
        print(table(records))
        return 0
    torch.set_num_threads(1)
    ratios, worse = measure(records)
    if options.record:
        command = ["git", "rev-parse", "--short", "HEAD"]
        found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
        commit = found.stdout.strip()
        date = datetime.now(UTC).date().isoformat()
        record = {"commit": commit, "date": date, "ratios": {name: round(v, 3) for name, v in ratios.items()}}
        with HISTORY.open("a") as file:
            file.write(json.dumps(record) + "\n")
    if worse:
        print(f"slower by more than {WORSE - 1:.0%}: {', '.join(worse)}", file=sys.stderr)
    return int(bool(worse))


if __name__ == "__main__":
    sys.exit(main())
