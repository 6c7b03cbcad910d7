"""The report of a fit or of an inspection: numbers in plain words, pictures, and one page that holds both.

`inspect_decoder` and the page need the core alone; the names that draw, or count as pictures do, load the extra `plots`
at first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from girih.report.inspection import Inspection, Verdict, inspect_decoder
from girih.report.inspection_rows import InspectedRows, inspect_rows
from girih.report.page import Number, Page, Picture, Section, explain, noise_text, render, versions

if TYPE_CHECKING:
    from girih.report.inspection_facts import cell_table, facts, facts_of_rows
    from girih.report.inspection_numbers import explain_inspection, explain_rows
    from girih.report.inspection_pictures import draw_inspection
    from girih.report.pictures import captions, draw_fit, draw_samples

__all__ = [
    "InspectedRows",
    "Inspection",
    "Number",
    "Page",
    "Picture",
    "Section",
    "Verdict",
    "captions",
    "cell_table",
    "draw_fit",
    "draw_inspection",
    "draw_samples",
    "explain",
    "explain_inspection",
    "explain_rows",
    "facts",
    "facts_of_rows",
    "inspect_decoder",
    "inspect_rows",
    "noise_text",
    "render",
    "versions",
]

_DRAWING = {
    "captions": "pictures",
    "cell_table": "inspection_facts",
    "draw_fit": "pictures",
    "draw_inspection": "inspection_pictures",
    "draw_samples": "pictures",
    "explain_inspection": "inspection_numbers",
    "explain_rows": "inspection_numbers",
    "facts": "inspection_facts",
    "facts_of_rows": "inspection_facts",
}


def __getattr__(name: str) -> object:
    if name not in _DRAWING:
        raise AttributeError(f"module 'girih.report' has no attribute {name!r}")
    return getattr(importlib.import_module(f"girih.report.{_DRAWING[name]}"), name)
