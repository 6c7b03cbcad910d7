"""The summary, in markdown: who wins, where, by how much, and the bars that were set."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from tables.data import CURVED, KEPT_BACK
from tables.records import Key, Record

Values = Mapping[int, float]  # a number for each split


class Difference(NamedTuple):
    """Mean over splits, and its standard error (NaN for one split)."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f}" + ("" if np.isnan(self.error) else f" ± {self.error:.3f}")


def difference(ours: Values, theirs: Values) -> Difference:
    """Over the splits that both have."""
    each = np.array([ours[split] - theirs[split] for split in sorted(ours.keys() & theirs.keys())])
    if not len(each):
        return Difference(np.nan, np.nan)
    return Difference(float(each.mean()), float(each.std(ddof=1) / np.sqrt(len(each))) if len(each) > 1 else np.nan)


def mean(values: Values) -> float:
    return float(np.mean(list(values.values())))


def grid(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    columns = lines[0].count("|") - 1
    return "\n".join([lines[0], "|" + " --- |" * columns, *lines[1:]])


def bar(text: str, reached: str, met: bool) -> list[str]:
    return [text, reached, "met" if met else "**not met**"]


def _bars(rows: list[list[str]]) -> str:
    return grid(("bar", "reached", ""), rows)


def _kind(table: str) -> str:
    name = table.partition(":")[0]
    return "curved" if name in CURVED else "kept back" if name in KEPT_BACK else ""


def density(records: Mapping[Key, Record]) -> str:
    """Nats a row; negative differences are in favour of girih."""
    nll = _scores(records)
    if not nll:
        return ""
    models = sorted({model for by_model in nll.values() for model in by_model}, key=_order)
    text = ["## Density: nats a row, less is better", _matrix(nll, models)]
    compared = {table: by_model for table, by_model in nll.items() if "girih" in by_model and len(by_model) > 1}
    if compared:
        text += [_duels(compared), _bars(_density_bars(compared))]
    text.append(_seconds(records, "density"))
    return "\n\n".join(text)


def _order(model: str) -> tuple[bool, str]:
    return not model.startswith("girih"), model


def _scores(records: Mapping[Key, Record]) -> dict[str, dict[str, Values]]:
    """For each table and model the NLL of each split: of a rival, the better of its two fits over all splits."""
    plain: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    again: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for key, record in records.items():
        if key.part == "density" and "nll" in record:
            plain[key.table, key.model][key.split] = float(record["nll"])  # type: ignore[arg-type]
            again[key.table, key.model][key.split] = float(record.get("nll_refit", record["nll"]))  # type: ignore[arg-type]
    nll: dict[str, dict[str, Values]] = defaultdict(dict)
    for (table, model), values in plain.items():
        nll[table][model] = min(values, again[table, model], key=mean)
    return nll


def _matrix(scores: dict[str, dict[str, Values]], models: list[str]) -> str:
    rows = []
    for table, by_model in scores.items():
        cells = [f"{mean(by_model[model]):.3f}" if model in by_model else "" for model in models]
        rows.append([table, _kind(table), str(max(map(len, by_model.values()))), *cells])
    return grid(("table", "", "splits", *models), rows)


def _rival(by_model: dict[str, Values], best: str) -> str:
    """The best rival; `best` is "min" or "max"."""
    rivals = {model: mean(values) for model, values in by_model.items() if not model.startswith("girih")}
    return (min if best == "min" else max)(rivals, key=rivals.__getitem__)


def _duels(compared: dict[str, dict[str, Values]]) -> str:
    rows, columns = [], ("gmm", "gmm_average")
    for table, by_model in compared.items():
        best = _rival(by_model, "min")
        against = [difference(by_model["girih"], by_model.get(model, {})) for model in (*columns, best)]
        cells = ["" if np.isnan(each.mean) else str(each) for each in against]
        rows.append([table, _kind(table), *cells, best])
    return grid(("girih less", "", *columns, "best rival", "which"), rows) + "\n\n" + _wins(compared)


def _wins(compared: dict[str, dict[str, Values]]) -> str:
    """girih against each rival, over the tables that both have."""
    rivals = sorted({model for by_model in compared.values() for model in by_model} - {"girih"})
    rows = []
    for rival in rivals:
        each = np.array([difference(m["girih"], m[rival]).mean for m in compared.values() if rival in m])
        wins = f"{(each < 0).sum()} of {len(each)}"
        rows.append([rival, f"{each.mean():+.3f}", f"{np.median(each):+.3f}", wins, f"{each.max():+.3f}"])
    return grid(("girih against", "mean difference", "median", "wins", "worst"), rows)


def _density_bars(compared: dict[str, dict[str, Values]]) -> list[list[str]]:
    def against(rival: str, curved: bool = False) -> dict[str, float]:
        return {
            table: difference(by_model["girih"], by_model[rival]).mean
            for table, by_model in compared.items()
            if rival in by_model and (curved or table not in CURVED)
        }

    rows = []
    tuned, averaged = against("gmm"), against("gmm_average")
    if tuned:
        reached = float(np.mean(list(tuned.values())))
        rows.append(bar("tuned mixture: -0.8 on average (real tables)", f"{reached:+.3f}", reached <= -0.8))
        everywhere = against("gmm", curved=True)
        behind = [f"{table} {value:+.3f}" for table, value in everywhere.items() if value >= 0]
        text = f"{len(everywhere) - len(behind)} of {len(everywhere)}" + (
            ": not " + ", ".join(behind) if behind else ""
        )
        rows.append(bar("tuned mixture: ahead on every table", text, not behind))
    if averaged:
        wins = sum(value < 0 for value in averaged.values())
        reached = float(np.mean(list(averaged.values())))
        rows.append(bar("averaged mixture: ahead on 4 of 5", f"{wins} of {len(averaged)}", wins >= 0.8 * len(averaged)))
        rows.append(bar("averaged mixture: -0.3 on average", f"{reached:+.3f}", reached <= -0.3))
    worse = []
    for table, by_model in compared.items():
        best = _rival(by_model, "min")
        gap = difference(by_model["girih"], by_model[best])
        if gap.mean > (0.0 if np.isnan(gap.error) else gap.error):
            worse.append(f"{table} {gap} ({best})")
    rows.append(bar("no rival better by more than a standard error", ", ".join(worse) or "none", not worse))
    for table, wanted in (("circle", -0.05), ("s_curve", -0.25), ("rotated_digits", -3.0)):
        if table in (everywhere := against("gmm", curved=True)):
            value = everywhere[table]
            rows.append(bar(f"{table}, tuned mixture: {wanted:+g}", f"{value:+.3f}", value <= wanted))
    return rows


def imputation(records: Mapping[Key, Record]) -> str:
    """RMSE of the hidden cells in units of the columns' deviations."""
    rmse: dict[str, dict[str, dict[str, Values]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    covered: dict[str, list[float]] = defaultdict(list)
    for key, record in records.items():
        if key.part == "imputation" and "rmse" in record:
            rmse[key.case][key.table][key.model][key.split] = float(record["rmse"])  # type: ignore[arg-type,index]
            if "coverage" in record:
                covered[key.case].append(float(record["coverage"]))  # type: ignore[arg-type]
    if not rmse:
        return ""
    text = ["## Imputation: RMSE in deviations of the column"]
    bars = []
    for case, by_table in sorted(rmse.items()):
        models = sorted({model for by_model in by_table.values() for model in by_model}, key=_order)
        text += [f"### {case}", _matrix(by_table, models)]
        compared = {t: m for t, m in by_table.items() if "girih" in m and len(m) > 1}
        if not compared:
            continue
        gaps = {t: difference(m["girih"], m[_rival(m, "min")]) for t, m in compared.items()}
        behind = [f"{table} {gap}" for table, gap in gaps.items() if gap.mean > 0]
        wins = len(gaps) - len(behind)
        reached = f"{wins} of {len(gaps)}" + (": behind on " + ", ".join(behind) if behind else "")
        bars.append(bar(f"{case}: no worse than the best rival on 10 of 12", reached, wins >= len(gaps) * 10 / 12))
        share = float(np.mean(covered[case]))
        bars.append(bar(f"{case}: 90 % intervals cover 87 to 93 %", f"{share:.1%}", 0.87 <= share <= 0.93))
    text += [_bars(bars)] if bars else []
    text.append(_seconds(records, "imputation"))
    return "\n\n".join(text)


def anomalies(records: Mapping[Key, Record]) -> str:
    """Areas under the ROC curve."""
    auc: dict[str, dict[str, Values]] = defaultdict(lambda: defaultdict(dict))
    for key, record in records.items():
        if key.part == "anomalies" and "auc" in record:
            auc[key.table][key.model][key.split] = float(record["auc"])  # type: ignore[arg-type,index]
    if not auc:
        return ""
    models = sorted({model for by_model in auc.values() for model in by_model}, key=_order)
    text = ["## Anomalies: area under the ROC curve", _matrix(auc, models)]
    compared = {table: m for table, m in auc.items() if "girih" in m and len(m) > 1}
    if compared:
        gaps = {t: difference(m["girih"], m[_rival(m, "max")]) for t, m in compared.items()}
        behind = [f"{table} {gap}" for table, gap in gaps.items() if gap.mean < 0]
        wins = len(gaps) - len(behind)
        reached = f"{wins} of {len(gaps)}" + (": behind on " + ", ".join(behind) if behind else "")
        text.append(_bars([bar("at least the best rival on two thirds", reached, wins >= len(gaps) * 2 / 3)]))
    text.append(_seconds(records, "anomalies"))
    return "\n\n".join(text)


def _seconds(records: Mapping[Key, Record], part: str) -> str:
    """Processor time of each model."""
    fits: dict[str, list[float]] = defaultdict(list)
    searches: dict[str, list[float]] = defaultdict(list)
    for key, record in records.items():
        if key.part == part and "seconds" in record:
            fits[key.model].append(float(record["seconds"]))  # type: ignore[arg-type]
            searches[key.model].append(float(record.get("seconds_search", 0.0)))  # type: ignore[arg-type]
    rows = [
        [model, f"{np.median(fits[model]):.2f}", f"{max(fits[model]):.2f}", f"{np.median(searches[model]):.1f}"]
        for model in sorted(fits, key=_order)
    ]
    return grid(("processor seconds", "fit, median", "fit, longest", "search, median"), rows)


def left_out(records: Mapping[Key, Record]) -> str:
    """What could not be measured, and why."""
    reasons: dict[str, set[str]] = defaultdict(set)
    for key, record in records.items():
        if "missing" in record:
            reasons[f"{key.model}: the package {record['missing']} is not installed"].add(key.table)
        elif "failed" in record:
            reasons[f"{key.model}: {record['failed']}"].add(f"{key.part} {key.table} {key.case}".strip())
    if not reasons:
        return ""
    return "## Left out\n\n" + "\n".join(f"- {why} ({', '.join(sorted(where))})" for why, where in reasons.items())


def markdown(records: Mapping[Key, Record]) -> str:
    """All parts that have records."""
    parts = (density(records), imputation(records), anomalies(records), left_out(records))
    return "\n\n".join(part for part in parts if part) + "\n"
