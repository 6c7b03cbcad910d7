"""Sphinx configuration."""

from __future__ import annotations

from typing import Any

import girih

project = "girih"
author = "The girih developers"
copyright = "2026, The girih developers"
version = release = girih.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["build"]
html_theme = "furo"
html_title = "girih"
default_role = "code"  # docstrings write code in single backticks
myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Source"]


def literal_formulas(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Indented formulas between paragraphs of a docstring are shown as they are written."""
    out: list[str] = [""] if what == "property" else []  # or napoleon reads "E[x], `(D,)`: ..." as a type
    for i, line in enumerate(lines):
        follows_text = i >= 2 and not lines[i - 1].strip() and lines[i - 2][:1].strip()
        if line.startswith("    ") and follows_text:
            out += [".. code-block:: text", ""]
        out.append(line)
    lines[:] = out


def skip_member(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool:
    """Leave out fields of named tuples ("Alias for field number 0") and scikit-learn's generated setters."""
    generated = name.startswith("set_") and name.endswith("_request")
    return skip or generated or type(obj).__name__ == "_tuplegetter"


def setup(app: Any) -> None:
    """Connect the hooks; formulas are marked before napoleon reads the docstring."""
    app.connect("autodoc-process-docstring", literal_formulas, priority=400)
    app.connect("autodoc-skip-member", skip_member)
