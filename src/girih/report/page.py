"""One self-contained page: pictures and style are inside, nothing is fetched."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from girih.report.numbers import Number


class Picture(NamedTuple):
    """A picture of a report."""

    file: Path
    title: str
    caption: str
    wide: bool = False


def render(
    title: str,
    lead: str,
    numbers: Sequence[Number],
    pictures: Sequence[Picture],
    settings: Mapping[str, str],
    code: str,
    footer: str,
) -> str:
    """The page as HTML.

    Args:
        title: the heading.
        lead: one or two sentences below it.
        numbers: the table of results.
        pictures: shown in this order, two in a row unless they are wide.
        settings: what the fit was asked for.
        code: how to go on in Python.
        footer: a last line.
    """
    return _PAGE.format(
        title=escape(title),
        lead=escape(lead),
        style=_STYLE,
        hero="".join(_figure(picture, True) for picture in pictures[:1]),
        numbers="".join(
            f"<tr><th>{escape(n.name)}</th><td class=value>{escape(n.value)}</td><td>{escape(n.meaning)}</td></tr>\n"
            for n in numbers
        ),
        pictures="".join(_figure(picture, picture.wide) for picture in pictures[1:]),
        settings="".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>\n" for k, v in settings.items()),
        code=escape(code),
        footer=escape(footer),
    )


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
.settings { width: auto; }
.settings th { font-weight: 400; padding-right: 48px; }
pre { background: #f5f7fa; padding: 16px 18px; overflow-x: auto; border-radius: 6px; }
pre, code { font: 14px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
footer { margin-top: 44px; color: #6a7585; font-size: 14px; }
@media (max-width: 720px) { .pictures { grid-template-columns: 1fr; } }
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
<h2>Pictures</h2>
<div class="pictures">
{pictures}</div>
<h2>Go on in Python</h2>
<pre>{code}</pre>
<h2>Settings</h2>
<table class="settings">
{settings}</table>
<footer>{footer}</footer>
</main></body>
</html>
"""
