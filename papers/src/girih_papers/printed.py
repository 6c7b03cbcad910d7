"""What a reproduction found beside what its paper prints: the papers' numbers, in one file, and the verdicts on ours.

`printed.toml` has for each name what a run takes and needs, at what size the numbers of the documentation were found,
and its claims. A claim says where ours stands in `result.json` and what the verdict means:

    tolerance, better   "within", else "better" or "worse" ("outside", where neither is better)
    above, below        "holds" or "does not hold": what the paper says of the sign or the order; "undecided" where
                        ours is no further from the limit than the runs are from each other
    why                 "not comparable", and why
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

NO_VERDICT = "smoke run: not comparable"
NOT_RUN = "not run at these settings"
_STANDS_FOR = ("mean", "median")  # of a number over runs

Path = Sequence[Any]


@dataclass(frozen=True)
class Claim:
    """What a paper says, and where what we found stands.

    Attributes:
        what: is compared.
        ours: the way to our number in `result.json`: keys, places in a list, or what an entry of a list has.
        minus: the way to a number that is subtracted from it.
        unit: of both.
        paper: the printed number, or what the paper says in words.
        tolerance: how far ours may be from it.
        better: "lower" or "higher", where one of them is.
        above, below: a limit that our number must pass for the claim to hold.
        why: nothing can be said, and why,
        unless: the settings are these; `True` stands for any that is not empty.
        where: settings that it is about; with others there is no line for it.
        recorded: our numbers in the documentation, of `ours` and of `minus`.
    """

    what: str
    ours: Path = ()
    minus: Path = ()
    unit: str = ""
    paper: float | str = ""
    tolerance: float | None = None
    better: str = ""
    above: float | None = None
    below: float | None = None
    why: str = ""
    unless: Mapping[str, Any] = field(default_factory=dict)
    where: Mapping[str, Any] = field(default_factory=dict)
    recorded: Sequence[str] = ()

    def verdict(
        self, number: float | None, settings: Mapping[str, Any] = MappingProxyType({}), spread: float = 0.0
    ) -> str:
        """The verdict on our number, found with these settings; it is `None` where there is none.

        Args:
            number: ours.
            settings: with which it was found.
            spread: its deviation over runs.
        """
        if self.why and not (self.unless and _have(settings, self.unless)):
            return f"not comparable: {self.why}"
        if number is None or math.isnan(number):
            return NOT_RUN
        if self.tolerance is None:
            room = min(number - (-math.inf if self.above is None else self.above),
                       (math.inf if self.below is None else self.below) - number)  # fmt: skip
            if spread > 0.0 and abs(room) <= spread:
                return "undecided: within the spread over runs"
            return "holds" if room > 0.0 else "does not hold"
        apart = number - float(self.paper)
        if abs(apart) <= self.tolerance:
            return "within"
        if not self.better:
            return "outside"
        return "better" if (apart < 0.0) == (self.better == "lower") else "worse"


@dataclass(frozen=True)
class Entry:
    """A reproduction's part of the file.

    Attributes:
        full: how long it takes with its defaults, in one thread.
        quick: how long `--quick` takes.
        needs: beyond `girih[all]`, and what else helps.
        ran: at what size the numbers of the documentation were found.
        claims: of its paper; none beyond the papers.
    """

    full: str
    quick: str
    needs: str
    ran: str
    claims: Sequence[Claim]


@cache
def entries() -> dict[str, Entry]:
    """The reproductions by name, as the file has them; what a section has as `defaults` holds for all its claims.

    Example:
        >>> from girih_papers.printed import entries
        >>> entries()["rad-table"].claims[0].paper
        -1.2
    """
    told = tomllib.loads(files(__package__).joinpath("printed.toml").read_text("utf-8"))
    return {
        name: Entry(
            one["full"], one["quick"], one.get("needs", ""), one["ran"],
            [Claim(**one.get("defaults", {}) | claim) for claim in one.get("claims", ())],
        )
        for name, one in told.items()
    }  # fmt: skip


def paper_number(name: str, what: str) -> float:
    """The number that a paper prints, by the words of its claim.

    Example:
        >>> from girih_papers.printed import paper_number
        >>> paper_number("cgbpef-table", "mnist, L = 1, Gauss-VAE: free energy")
        101.3
    """
    (claim,) = (one for one in entries()[name].claims if one.what == what)
    return float(claim.paper)


def beside_the_paper(name: str, result: Mapping[str, Any]) -> list[dict[str, str]]:
    """A line for each claim of the paper: ours, the paper's, and the verdict; a quick run has none.

    Args:
        name: of the reproduction.
        result: what `result.json` holds.
    """
    lines, settings = [], result.get("settings", {})
    for claim in entries()[name].claims:
        if not _have(settings, claim.where):
            continue
        found, less = at(result, claim.ours), at(result, claim.minus)
        number = _number(found) if not claim.minus else _difference(_number(found), _number(less))
        ours = shown(found) if not claim.minus else _number_shown(number)
        spread = math.hypot(*(_deviation(value) for value in (found, less)))
        verdict = NO_VERDICT if result["quick"] else claim.verdict(number, settings, spread)
        lines.append(_line(claim, ours if claim.ours else "see the pictures", verdict))
    return lines


def recorded(name: str) -> list[dict[str, str]]:
    """The same lines for the numbers of the documentation."""
    lines = []
    for claim in entries()[name].claims:
        numbers = [_read(text) for text in claim.recorded]
        number = _difference(*numbers) if len(numbers) == 2 else numbers[0] if numbers else None
        ours = claim.recorded[0] if len(numbers) == 1 else _number_shown(number)
        spread = math.hypot(*(float(text.split("±")[1]) for text in claim.recorded if "±" in text))
        verdict = claim.verdict(number, spread=spread)
        if number is not None or (claim.why and not claim.ours):
            lines.append(_line(claim, ours, verdict))
    return lines


def at(result: Any, way: Path) -> Any:
    """What stands at the end of a way through a result, `None` where it leads nowhere.

    Example:
        >>> from girih_papers.printed import at
        >>> at({"cases": [{"S": 1, "nll": 3.0}, {"S": 2, "nll": 4.0}]}, ["cases", {"S": 2}, "nll"])
        4.0
    """
    for key in way:
        if isinstance(key, Mapping):
            result = next((one for one in result or () if key.items() <= one.items()), None)
        elif isinstance(result, Mapping):
            result = result.get(key)
        else:
            result = result[key] if isinstance(result, Sequence) and key < len(result) else None
    return result if way else None


def shown(value: Any) -> str:
    """A number over runs with its spread, or the number.

    Example:
        >>> from girih_papers.printed import shown
        >>> shown({"mean": 3.6004, "deviation": 0.01234}), shown({"median": 1.0, "min": 0.5, "max": 2.0}), shown(None)
        ('3.6 ± 0.012', '1 (0.5 to 2)', '–')
    """
    if not isinstance(value, Mapping):
        return _number_shown(_number(value)) if not isinstance(value, str) else value
    if "mean" in value:
        deviation = value.get("deviation")
        known = deviation is not None and not math.isnan(deviation)
        return _number_shown(value["mean"]) + (f" ± {deviation:.2g}" if known else "")
    return f"{_number_shown(value['median'])} ({_number_shown(value['min'])} to {_number_shown(value['max'])})"


def _have(settings: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    """Tell whether settings have these values; `True` stands for any that is not empty."""
    return all(settings.get(key) == value or (value is True and settings.get(key)) for key, value in values.items())


def markdown_of_costs() -> str:
    """The table of what ran, of what takes how long, and of what it needs, for the documentation."""
    rows = [(f"`{n}`", e.ran, e.full, e.quick, e.needs or "–") for n, e in entries().items()]
    return _markdown(("name", "numbers below are of", "defaults, one thread", "`--quick`", "needs"), rows)


def markdown_of_verdicts() -> str:
    """The table of the recorded numbers beside the papers', for the documentation."""
    rows = []
    for name in entries():
        for i, line in enumerate(recorded(name)):
            what = f"{line['what']} ({line['unit']})" if line["unit"] else line["what"]
            rows.append(("" if i else f"`{name}`", what, line["ours"], line["paper"], line["verdict"]))
    return _markdown(("name", "what", "ours", "the paper's", "verdict"), rows)


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _line(claim: Claim, ours: str, verdict: str) -> dict[str, str]:
    paper = claim.paper if isinstance(claim.paper, str) else _number_shown(claim.paper)
    return {"what": claim.what, "unit": claim.unit, "ours": ours, "paper": paper, "verdict": verdict}


def _number(value: Any) -> float | None:
    if isinstance(value, Mapping):
        value = next((value[name] for name in _STANDS_FOR if name in value), None)
    return None if value is None or isinstance(value, str | list) else float(value)


def _deviation(value: Any) -> float:
    """That of a number over runs, 0 where it is not known."""
    deviation = value.get("deviation") if isinstance(value, Mapping) else None
    return 0.0 if deviation is None or math.isnan(deviation) else float(deviation)


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def _number_shown(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def _read(text: str) -> float:
    """The number at the head of a text of the documentation: `−4.6 ± 0.8`, `1/15`, `0.9%`, `1,120`."""
    first = text.split()[0].replace("\N{MINUS SIGN}", "-").replace(",", "")
    if first.endswith("%"):
        return float(first[:-1]) / 100.0
    return float(Fraction(first)) if "/" in first else float(first)
