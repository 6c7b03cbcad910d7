"""Sphinx configuration."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

import girih

sys.path.insert(0, str(Path(__file__).parent))
from commands import MARKER, commands

from girih_papers.printed import markdown_of_costs, markdown_of_verdicts

project = "girih"
author = "The girih developers"
copyright = "2026, The girih developers"
version = release = girih.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["build", "jupyter_execute", ".jupyter_cache"]
nb_execution_mode = "cache"  # a tutorial runs again when it has changed, in build/.jupyter_cache
nb_execution_cache_path = str(Path(__file__).parent / "build/.jupyter_cache")
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_merge_streams = True
nb_output_stderr = "remove"
linkcheck_retries = 2
linkcheck_timeout = 20
linkcheck_anchors_ignore_for_url = [r"https://github\.com/"]  # made by a script
linkcheck_allow_unauthorized = True  # what needs an account to be read is there
linkcheck_report_timeouts_as_broken = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
html_math_renderer = "mathml"
html_theme = "furo"
html_title = "girih"
html_static_path = ["static"]
html_css_files = ["girih.css"]
default_role = "code"  # docstrings write code in single backticks
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
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


def no_link(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """The name of NumPy's type of objects ends like a link of reStructuredText."""
    lines[:] = [line.replace("numpy.object_", r"numpy.object\_") for line in lines]


def skip_member(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool:
    """Leave out fields of named tuples ("Alias for field number 0") and scikit-learn's generated setters."""
    generated = name.startswith("set_") and name.endswith("_request")
    return skip or generated or type(obj).__name__ == "_tuplegetter"


MADE = {
    MARKER: commands,
    "<!-- what ran, from printed.toml -->": markdown_of_costs,
    "<!-- ours beside the papers, from printed.toml -->": markdown_of_verdicts,
}


def fill_in(app: Any, name: str, source: list[str]) -> None:
    """The page of the command line is made from the help of its commands, tables of reproductions from their file."""
    for marker, made in MADE.items():
        if marker in source[0]:
            source[0] = source[0].replace(marker, made())


def inline_formula(self: Any, node: Any) -> None:
    """A formula within a line, as MathML: every browser typesets that, without a script or a network."""
    self.body.append(convert(node.astext()))
    raise SkipNode


def displayed_formula(self: Any, node: Any) -> None:
    """A formula on a line of its own."""
    self.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise SkipNode


def setup(app: Any) -> None:
    """Connect the hooks; formulas are marked before napoleon reads the docstring."""
    app.add_html_math_renderer("mathml", (inline_formula, None), (displayed_formula, None))
    app.connect("autodoc-process-docstring", literal_formulas, priority=400)
    app.connect("autodoc-process-docstring", no_link, priority=900)
    app.connect("autodoc-skip-member", skip_member)
    app.connect("source-read", fill_in)
