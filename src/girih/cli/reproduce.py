"""`girih reproduce`: rerun a figure or table of the papers."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Annotated, Any

import typer

from girih._extras import papers
from girih.cli.folder import OutputFolder, default_out
from girih.cli.options import Output, Seed
from girih.cli.terminal import CommandError, Terminal, command

_RESULT = "result.json"
_SAID = ("name", "description")


@command
def reproduce(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Which one; see --list.", show_default=False)
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List what can be reproduced.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A small version that takes seconds.")] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Another value for one of its settings (see result.json), as in [b]--set epochs=30[/b]; repeatable.",
            show_default=False,
        ),
    ] = None,
    seed: Seed = 0,
    *,
    output: Output,
) -> None:
    """Rerun a figure or table of the papers.

    Runs of training that a reproduction is made of are kept in the output folder: if it is stopped, the same command
    goes on with what is missing.
    """
    registry = _registry()
    terminal = Terminal(output.as_json)
    known = registry.names()
    if list_ or name is None:
        if name is None and not list_:
            raise CommandError(f"reproduce needs a NAME: {', '.join(known)}")
        costs = registry.costs()
        terminal.table({one: f"{known[one]} {_cost(costs[one])}" for one in known})
        terminal.result({"reproductions": known, "costs": costs})
        return
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{nearest[0]}'? " if nearest else ""
        raise CommandError(f"there is no reproduction {name!r}; {hint}known are {', '.join(known)}")
    changes = _changes(set_ or [])
    if changes:
        registry.options_of(name, quick, changes)  # refused before there is a folder
    folder = default_out(output.out, name)
    results = OutputFolder(folder, "reproduce", (_RESULT,))
    terminal.say(f"{name}: {known[name]}", style="bold")
    with results.results() as stage:
        result = registry.run(
            name, stage, quick=quick, seed=seed, progress=terminal.shows_progress, changes=changes, home=folder
        )
        pictures = sorted(path.name for path in stage.glob("*.png"))
    if quick:
        terminal.say("A smoke run: tiny sizes and unequal budgets, so that its numbers say and compare nothing.\n")
    else:
        _show(terminal, result)
    _show_verdicts(terminal, result, changes)
    terminal.say(f"Numbers:  {folder / _RESULT}")
    if pictures:
        terminal.say(f"Pictures: {folder} ({', '.join(pictures)})")
    terminal.result({"name": name, "out": str(folder), "pictures": pictures, "result": result})


def _registry() -> ModuleType:
    """The reproductions, which are installed apart."""
    try:
        return importlib.import_module(f"{papers().__name__}.registry")
    except ImportError as error:
        raise CommandError(str(error)) from None


def _changes(texts: list[str]) -> dict[str, str]:
    """`NAME=VALUE` texts by name."""
    changes = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise CommandError(f"--set takes NAME=VALUE, as in --set epochs=30; got {text!r}")
        changes[name.strip()] = value.strip()
    return changes


def _show(terminal: Terminal, result: dict[str, Any]) -> None:
    """The single numbers and short texts of a result; the rest is in its file."""
    single = {key: value for key, value in result.items() if isinstance(value, str | int | float) and key not in _SAID}
    texts = {key: f"{v:.6g}" if isinstance(v, float) else str(v) for key, v in single.items()}
    if texts:
        terminal.table({key.replace("_", " "): text for key, text in texts.items()})
        terminal.say()


def _cost(cost: Mapping[str, str]) -> str:
    """How long a reproduction takes, and what it needs."""
    needs = f"; {cost['needs']}" if cost["needs"] else ""
    return f"({cost['full']}; --quick {cost['quick']}{needs})"


def _show_verdicts(terminal: Terminal, result: Mapping[str, Any], changes: Mapping[str, str]) -> None:
    """Ours, the paper's and the verdict, in the words of `girih_papers.printed`."""
    lines = result.get("beside_the_paper", ())
    if not lines:
        return
    unit = [f"{line['what']} ({line['unit']})" if line["unit"] else line["what"] for line in lines]
    cells = [[line["ours"], line["paper"], line["verdict"]] for line in lines]
    terminal.columns(
        ["", "ours", "the paper's", "verdict"], [[what, *row] for what, row in zip(unit, cells, strict=True)]
    )
    if changes:
        told = ", ".join(f"{name} = {value}" for name, value in changes.items())
        terminal.say(f"With other settings than the paper's: {told}.")
    terminal.say()
