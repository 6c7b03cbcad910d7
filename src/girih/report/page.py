"""The numbers of a fit in plain words, and one self-contained page with pictures and style inside."""

from __future__ import annotations

import base64
import platform
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from girih._version import __version__

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


class Section(NamedTuple):
    """A part of a report with a heading of its own; `html` is what `html_table` makes."""

    title: str
    lead: str
    html: str


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with a heading, which scrolls where the page is narrow."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<div class=scroll><table class=list>\n<tr>{head}</tr>\n{body}</table></div>\n"


def versions() -> dict[str, str]:
    """Collect the versions that a result was made with, as results note them."""
    return {
        "girih": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


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
    """The page as HTML.

    Args:
        title: the heading.
        lead: one or two sentences below it.
        numbers: the table of results.
        pictures: shown in this order, two in a row unless they are wide.
        settings: what the fit was asked for.
        code: how to go on in Python.
        footer: a last line; by default the versions of what made the page.
        sections: further parts, after the pictures.
    """
    if footer is None:
        footer = "girih {girih}, Python {python}, torch {torch}".format(**versions())
    return _PAGE.format(
        title=escape(title),
        lead=escape(lead),
        style=_STYLE,
        hero="".join(_figure(picture, True) for picture in pictures[:1]),
        numbers="".join(
            f"<tr><th>{escape(n.name)}</th><td class=value>{escape(n.value)}</td><td>{escape(n.meaning)}</td></tr>\n"
            for n in numbers
        ),
        pictures=_pictures(pictures[1:]),
        sections="".join(
            f"<h2>{escape(part.title)}</h2>\n<p class=lead>{escape(part.lead)}</p>\n{part.html}" for part in sections
        ),
        settings="".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>\n" for k, v in settings.items()),
        code=escape(code),
        footer=escape(footer),
    )


def _pictures(pictures: Sequence[Picture]) -> str:
    if not pictures:
        return ""
    return f"<h2>Pictures</h2>\n<div class=pictures>\n{''.join(_figure(p, p.wide) for p in pictures)}</div>"


def _figure(picture: Picture, wide: bool) -> str:
    kind = "svg+xml" if picture.file.suffix == ".svg" else "png"
    data = base64.b64encode(picture.file.read_bytes()).decode("ascii")
    return (
        f'<figure{" class=wide" if wide else ""}><img src="data:image/{kind};base64,{data}" '
        f'alt="{escape(picture.title, quote=True)}"><figcaption><b>{escape(picture.title)}.</b> '
        f"{escape(picture.caption)}</figcaption></figure>\n"
    )


_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #1c2430; }
body { font: 16px/1.55 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 40px 28px 56px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; }
h2 { font-size: 20px; margin: 44px 0 12px; }
.lead { color: #4a5565; margin: 0 0 24px; max-width: 48em; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 8px 16px 8px 0; border-top: 1px solid #e3e7ed; }
th { font-weight: 600; white-space: nowrap; }
td.value { white-space: nowrap; font-variant-numeric: tabular-nums; }
td:last-child { color: #4a5565; }
.pictures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 28px; }
figure { margin: 0; break-inside: avoid; }
figure.wide { grid-column: 1 / -1; }
figure img { display: block; max-width: 100%; max-height: 560px; margin: 0 auto; }
figcaption { color: #4a5565; font-size: 14px; margin-top: 6px; }
figcaption b { color: #1c2430; }
.scroll { overflow-x: auto; }
.list td, .list th { padding: 5px 16px 5px 0; font-variant-numeric: tabular-nums; }
.list th { color: #4a5565; font-weight: 400; }
.settings { width: auto; }
.settings th { font-weight: 400; padding-right: 48px; }
pre { background: #f5f7fa; padding: 16px 18px; overflow-x: auto; border-radius: 6px; }
pre, code { font: 14px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
footer { margin-top: 44px; color: #6a7585; font-size: 14px; }
@media (max-width: 720px) {
  .pictures { grid-template-columns: 1fr; }
  table:not([class]) tr { display: block; border-top: 1px solid #e3e7ed; padding: 8px 0; }
  table:not([class]) :is(th, td) { display: block; border: 0; padding: 0; white-space: normal; }
}
@media print { main { max-width: none; padding: 0; } body { font-size: 12px; } h2 { break-after: avoid; } }
"""
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body><main>
<h1>{title}</h1>
<p class="lead">{lead}</p>
{hero}
<h2>Numbers</h2>
<table>
{numbers}</table>
{pictures}
{sections}
<h2>Go on in Python</h2>
<pre>{code}</pre>
<h2>Settings</h2>
<table class="settings">
{settings}</table>
<footer>{footer}</footer>
</main></body>
</html>
"""
