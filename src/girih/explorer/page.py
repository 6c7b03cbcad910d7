"""The page itself: script and style from the files beside, and what it shows as JSON, in one file without a network."""

from __future__ import annotations

import json
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from girih._files import finite

# In this order they are one script: each file uses what those before it define.
_SCRIPTS = (
    "data.js",
    "state.js",
    "generator.js",
    "chart.js",
    "cells.js",
    "points.js",
    "sheet.js",
    "drawn.js",
    "algebra.js",
    "latent.js",
    "line.js",
    "pairs.js",
    "table.js",
    "mount.js",
)


@cache
def script() -> str:
    """The script of a page and of a widget: it defines `mount(root, payload)`."""
    folder = files("girih.explorer") / "page"
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in _SCRIPTS)


@cache
def style() -> str:
    """The style of a page and of a widget; everything in it is below the class `girih`."""
    return (files("girih.explorer") / "page" / "explorer.css").read_text(encoding="utf-8")


def as_json(payload: dict[str, Any]) -> str:
    """What a page shows, as JSON; a number that is not finite is null there."""
    return json.dumps(finite(payload), allow_nan=False, separators=(",", ":"))


def page(payload: dict[str, Any]) -> str:
    """The page as HTML: its policy lets it load nothing."""
    data = as_json(payload).replace("<", "\\u003c")  # no name of a column ends the element
    return _PAGE.format(title=escape(payload["title"]), style=style(), data=data, script=script())


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>html, body {{ margin: 0; min-height: 100%; }}
{style}</style>
</head>
<body>
<main id="explorer"></main>
<script type="application/json" id="data">{data}</script>
<script type="module">
{script}
const root = document.getElementById("explorer");
root.explorer = mount(root, JSON.parse(document.getElementById("data").textContent));
</script>
</body>
</html>
"""
