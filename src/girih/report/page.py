"""The numbers of a fit in plain words, and one self-contained page with pictures and style inside."""

from __future__ import annotations

import base64
import platform
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from girih._extras import needs

with needs("plots"):
    import jinja2

import numpy as np
import torch

from girih._version import __version__

if TYPE_CHECKING:
    from jinja2 import Template

# Up to this many columns are listed one by one.
_FEW = 6


class Number(NamedTuple):
    """One row of the table of numbers."""

    name: str
    value: str
    meaning: str


def explain(metrics: dict[str, Any]) -> list[Number]:
    """The metrics of `girih fit` as rows of a table, the most important first."""
    rows = [
        Number(
            "Exact NLL",
            f"{metrics['nll_per_row']:.4f} nats per row",
            "Minus the mean of log p(x) over the rows: nothing is sampled or bounded. Lower is better; one nat less "
            "means that the model makes each row e = 2.7 times as likely. Below 0, densities are above 1.",
        )
    ]
    if metrics.get("entropy") is not None:
        rows.append(
            Number(
                "Entropy of the truth",
                f"{metrics['entropy']:.4f} nats per row",
                "The NLL of the distribution that the rows were drawn from. No model does better on new rows; on the "
                "rows that it was fitted to, a model may, by fitting their chance.",
            )
        )
    k = metrics["n_parameters"]
    rows += [
        Number(
            "AIC",
            f"{metrics['aic']:,.1f}",
            f"Akaike's criterion, with {k:,} free parameters. To choose among models of the same rows: lower is "
            "better, a model with more parameters must earn them.",
        ),
        Number(
            "BIC",
            f"{metrics['bic']:,.1f}",
            "Schwarz's criterion: the same, with a stronger pull towards few parameters.",
        ),
        Number("Noise", noise_text(metrics["noise"]), _noise_meaning(metrics["noise"])),
        Number(
            "Cells",
            f"{metrics['cells']}",
            "Pieces of the latent space; on each of them the generator is one affine map.",
        ),
        Number("Iterations", f"{metrics['n_iter']}", _ending(metrics)),
    ]
    if metrics["data"]["missing"]:
        rows.append(
            Number(
                "Missing entries",
                f"{metrics['data']['missing']:,}",
                "They were integrated out exactly; no row was dropped and nothing was filled in before the fit.",
            )
        )
    seconds = metrics["seconds"]
    if seconds.get("fit") is not None:
        rows.append(Number("Time", f"{seconds['fit']:.1f} s", "Of the fit, all random starts included."))
    return rows


def noise_text(noise: dict[str, Any]) -> str:
    """The standard deviation of the noise: one, one for each of a few columns, or their root mean square."""
    columns = noise["deviation_of_columns"]
    if columns is not None and len(columns) <= _FEW:
        return ", ".join(_short(value) for value in columns)
    return _short(noise["deviation"])


def _short(value: float) -> str:
    return f"{value:.0f}" if 1e3 <= value < 1e6 else f"{value:.3g}"


def _noise_meaning(noise: dict[str, Any]) -> str:
    columns = noise["deviation_of_columns"]
    text = "Standard deviation of the rows about what the generator draws, in the units of the data"
    if noise["shape"] == "isotropic":
        return f"{text}."
    return (
        f"{text}, column by column." if columns is not None and len(columns) <= _FEW else f"{text}: root mean square."
    )


def _ending(metrics: dict[str, Any]) -> str:
    if metrics["interrupted"]:
        return "The fit was interrupted; this is the best model up to then."
    if metrics["converged"]:
        return "EM has converged: the last iterations gained next to nothing."
    return (
        f"EM was still gaining {metrics['last_gain']:.1e} nats per row in its last iteration when it reached the "
        "largest number of iterations; with more, it fits a little closer."
    )


class Picture(NamedTuple):
    """A picture of a report."""

    file: Path
    title: str
    caption: str
    wide: bool = False


def versions() -> dict[str, str]:
    """Collect the versions that a result was made with, as results note them."""
    return {
        "girih": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


class Section(NamedTuple):
    """A part of a report with a heading of its own, and a table with a heading line."""

    title: str
    lead: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Page(NamedTuple):
    """A `Page` is a report, before it is HTML.

    Attributes:
        title: the heading.
        lead: one or two sentences below it.
        numbers: the table of results.
        pictures: shown in this order, two in a row unless they are wide.
        settings: what the fit was asked for.
        code: how to go on in Python.
        verdict: whether the model is to be trusted, in words.
        explorer: the file of the page to look around in, beside the report.
        footer: a last line; by default the versions of what made the page.
        sections: further parts, after the pictures.
    """

    title: str
    lead: str
    numbers: Sequence[Number]
    pictures: Sequence[Picture]
    settings: Mapping[str, str]
    code: str
    verdict: str = ""
    explorer: str = ""
    footer: str | None = None
    sections: Sequence[Section] = ()

    def html(self) -> str:
        """The page as HTML, with pictures and style inside."""
        values = self._asdict()
        if self.footer is None:
            values["footer"] = "girih {girih}, Python {python}, torch {torch}".format(**versions())
        return _template().render(**values, style=_read("page.css"), data_of=_data_of)


def render(
    title: str,
    lead: str,
    numbers: Sequence[Number],
    pictures: Sequence[Picture],
    settings: Mapping[str, str],
    code: str,
    footer: str | None = None,
    sections: Sequence[Section] = (),
) -> str:
    """Render a report as HTML: `Page(...).html()`, which says what the arguments are and has more of them."""
    return Page(title, lead, numbers, pictures, settings, code, footer=footer, sections=sections).html()


@cache
def _template() -> Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(_read("page.html.jinja"))


def _read(name: str) -> str:
    return (files("girih.report") / name).read_text(encoding="utf-8")


def _data_of(picture: Picture) -> str:
    """A picture as an address that holds it."""
    kind = "svg+xml" if picture.file.suffix == ".svg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(picture.file.read_bytes()).decode('ascii')}"
