"""The terminal: a command says what it found, and fails with one line, never with a traceback."""

from __future__ import annotations

import functools
import inspect
import json
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, NoReturn, get_type_hints

import typer
from rich.console import Console
from rich.table import Table

from girih._progress import is_json, json_lines
from girih._signals import terminations_raise
from girih.errors import GirihError

ERROR, INTERRUPTED = 2, 130
TERMINATED = (129, 143)  # by SIGHUP, by SIGTERM

_KINDS = re.compile(r"kinds=\{'([^']*)': [\"'](\w+)[\"']\}")

# Where a message speaks Python, the terminal speaks of options.
_OPTIONS = {"drop=[...]": "--drop NAME,NAME", "columns=[...]": "--columns NAME,NAME"}
_OPTIONS |= {"header=True": "--header", "header=False": "--no-header"}


class CommandError(GirihError):
    """A command was asked for something that it cannot do."""


class Terminal:
    """Standard output for results, standard error for notes; with JSON, standard output holds one object alone.

    Args:
        as_json: whether `--json` was given.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self._out = Console(highlight=False, soft_wrap=True, markup=False, quiet=as_json)

    @property
    def shows_progress(self) -> bool:
        """True where progress would be seen: standard error is a terminal, or takes lines of JSON."""
        return sys.stderr.isatty() or is_json()

    def say(self, text: str = "", style: str | None = None) -> None:
        """A line of the result."""
        self._out.print(text, style=style)

    def note(self, text: str) -> None:
        """Something to know, on standard error."""
        _to_stderr(f"note: {text}", "yellow")

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """A sign of life on standard error while something runs."""
        if not self.shows_progress or is_json():
            yield
            return
        with Console(stderr=True).status(text):
            yield

    @contextmanager
    def drawing(self, seconds: dict[str, float]) -> Iterator[None]:
        """A sign of life while pictures are drawn; the time that they take becomes one of the `seconds`."""
        start = time.perf_counter()
        with self.busy("drawing"):
            yield
        seconds["pictures"] = time.perf_counter() - start

    def table(self, rows: Mapping[str, str], style: str = "bold") -> None:
        """Names and values in two columns."""
        table = Table.grid(padding=(0, 3))
        table.add_column(style=style, no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows.items():
            table.add_row(name, value)
        self._out.print(table, soft_wrap=False)

    def columns(self, header: Sequence[str], rows: Sequence[Sequence[str]], bold: int | None = None) -> None:
        """A table with a heading: the first column to the left, the others to the right; one row may be bold."""
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for i, name in enumerate(header):
            table.add_column(name, justify="right" if i else "left", no_wrap=True)
        for i, row in enumerate(rows):
            table.add_row(*row, style="bold" if i == bold else None)
        # a narrow terminal wraps the lines; cutting them would lose numbers
        wide = Console(highlight=False, markup=False, quiet=self.as_json, width=max(self._out.width, 130))
        wide.print(table, crop=False)

    def result(self, value: Mapping[str, Any]) -> None:
        """The one JSON object of `--json`; nothing without it."""
        if self.as_json:
            from girih._files import finite

            print(json.dumps(finite(dict(value)), allow_nan=False))


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Run a command with plain warnings, and end it with one line and an exit code when it fails.

    A parameter whose type is a dataclass is a group of options: typer sees its fields, and the command gets it filled.

    Exit codes: 2 for what cannot be done, 130 for Ctrl-C, 143 for SIGTERM and 129 for SIGHUP, which keep what Ctrl-C
    keeps. An error of girih itself keeps its traceback.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parts = {name: [part.name for part in fields(group)] for name, group in groups.items()}

    @functools.wraps(function)
    def wrapper(**options: Any) -> None:
        as_json = bool(options.get("as_json", False))
        progress = options.get("progress")
        filled = {name: group(**{part: options.pop(part) for part in parts[name]}) for name, group in groups.items()}
        try:
            with terminations_raise() as asked, plain_warnings(), json_lines(progress == "json"):
                function(**options, **filled)
        except KeyboardInterrupt:
            if asked.number:
                _fail("terminated", as_json, asked.status)
            _fail("interrupted", as_json, INTERRUPTED)
        except typer.Exit as end:  # the command has said what it has kept
            raise typer.Exit(asked.status) if end.exit_code == INTERRUPTED and asked.number else end from None
        except SystemExit as end:
            if end.code not in TERMINATED:
                raise
            _fail("terminated", as_json, int(end.code))  # by training, which has saved its checkpoint
        except BrokenPipeError:
            raise
        except (GirihError, OSError, MemoryError) as error:
            _fail(describe(error), as_json)
        except RuntimeError as error:
            if "allocate" not in str(error):  # torch has no error of its own for a lack of memory
                raise
            _fail(describe(MemoryError()), as_json)

    shown = [one for parameter in inspect.signature(function).parameters.values() for one in _options(parameter, hints)]
    vars(wrapper)["__signature__"] = inspect.Signature(shown)
    wrapper.__annotations__ = {option.name: option.annotation for option in shown}
    return wrapper


def _options(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> list[inspect.Parameter]:
    """The parameter as typer takes it, or the fields of a group of options."""
    kind = hints[parameter.name]
    if not is_dataclass(kind):
        return [parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY)]
    types = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(part.name, inspect.Parameter.KEYWORD_ONLY, default=part.default, annotation=types[part.name])
        for part in fields(kind)
    ]


def describe(error: BaseException) -> str:
    """An error as one line for the terminal."""
    if isinstance(error, MemoryError):
        return "out of memory; use fewer rows (--rows) or a smaller model"
    if isinstance(error, OSError) and not isinstance(error, GirihError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return _spoken(str(error)) or type(error).__name__


def _spoken(text: str) -> str:
    """A message on one line, with the options of the command line."""
    text = " ".join(text.split())
    text = _KINDS.sub(r"--kind \1=\2", text)
    for python, option in _OPTIONS.items():
        text = text.replace(python, option)
    return text


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Show warnings to the user as one line each, without file names and source code."""

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        _to_stderr(f"note: {_spoken(str(message))}", "yellow")

    with warnings.catch_warnings():
        warnings.simplefilter("once")
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning):
            warnings.simplefilter("ignore", category)  # for programmers
        warnings.showwarning = show
        yield


def _fail(text: str, as_json: bool, code: int = ERROR) -> NoReturn:
    _to_stderr(f"girih: error: {text}" if code == ERROR else f"girih: {text}", "red")
    if as_json:
        print(json.dumps({"error": text}))
    raise typer.Exit(code)


def _to_stderr(text: str, style: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print(text, style=style)
