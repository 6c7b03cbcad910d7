"""Every python block of the README and the docs runs, one after the other in each page, as a reader would run them.

Tutorials, whose blocks are cells of notebooks, run too, with few settings and steps; `make docs` runs them in full.

A comment `<!-- run first ... -->` holds what a page leaves to its reader, such as the rows.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import girih
from effort import FEWEST, try_few_settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "papers/README.md", *(ROOT / "docs").rglob("*.md")]
BLOCK = re.compile(
    r"^(?:```(?:python|\{code-cell\} ipython3)\n(?::[^\n]*\n)*(.*?)^```|<!-- run first\n(.*?)^-->)",
    re.DOTALL | re.MULTILINE,
)
BLOCKS = {page: [m for m in BLOCK.finditer(page.read_text("utf-8"))] for page in PAGES}


def fit_shortly(est, *arguments, fit=girih.DGNEstimator.fit, **options):
    """From one start, for a few iterations: what a block calls is the same."""
    return fit(est.set_params(max_iter=min(est.max_iter, 30), n_init=1), *arguments, **options)


def shortly(fit):
    """A few steps of training instead of those that a page asks for."""
    return lambda model, *rows, **options: fit(
        model, *rows, **{k: v for k, v in options.items() if k not in ("max_epochs", "max_steps")}, max_steps=20
    )


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning", "ignore::girih.em.OverfitWarning")
@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in PAGES if BLOCKS[page]])
def test_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    try_few_settings(monkeypatch, **FEWEST)
    monkeypatch.setattr(girih.DGNEstimator, "fit", fit_shortly)
    if "tutorials" in page:
        monkeypatch.setattr(girih.vae.VAE, "fit", shortly(girih.vae.VAE.fit))
        monkeypatch.setattr(girih.flows.Flow, "fit", shortly(girih.flows.Flow.fit))
    text, names = (ROOT / page).read_text("utf-8"), {}
    for match in BLOCKS[ROOT / page]:
        line = text[: match.start()].count("\n") + 1
        exec(compile("\n" * line + (match[1] or match[2]), page, "exec"), names)  # errors name the line of the page


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "papers/README.md"])
def test_links_of_pages_that_sphinx_does_not_check_lead_to_files(page):
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", (ROOT / page).read_text("utf-8"))
    assert [to for to in targets if "://" not in to and not (ROOT / page).parent.joinpath(to).exists()] == []


def test_there_are_blocks():
    assert sum(len(blocks) for blocks in BLOCKS.values()) > 10


def test_the_page_of_the_command_line_has_every_command(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from commands import MARKER, commands

    assert MARKER in (ROOT / "docs/cli.md").read_text("utf-8")
    page = commands()
    assert {f"## girih {name}" for name in ("fit", "inspect", "impute", "reproduce")} <= set(page.splitlines())
    assert "| `--model` `table\\|dgn` |" in page and "[b]" not in page


@pytest.mark.slow
def test_the_documentation_builds_without_a_warning(tmp_path):
    pytest.importorskip("myst_nb")
    places = os.pathsep.join(str(ROOT / part) for part in ("src", "papers/src"))
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "--fail-on-warning",
        "--builder",
        "html",
        str(ROOT / "docs"),
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": places})
    assert done.returncode == 0, done.stderr
