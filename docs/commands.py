"""The commands of girih as Markdown, from their own help: what `cli.md` shows in the place of its marker."""

from __future__ import annotations

import re
from enum import Enum
from typing import Any, get_args

import typer.main

from girih.cli import app

MARKER = "<!-- the commands, from their help -->"


def commands() -> str:
    """A section for each command: its help, its usage, and a table of its options for each of their panels."""
    group: Any = typer.main.get_command(app)
    return "\n".join(_command(name, command) for name, command in group.commands.items())


def _command(name: str, command: Any) -> str:
    given = [one for one in command.params if one.param_type_name == "argument"]
    usage = " ".join(_metavar(one) if one.required else f"[{_metavar(one)}]" for one in given)
    panels: dict[str, list[Any]] = {}
    for one in command.params:
        if one.param_type_name == "option" and not one.hidden:
            panels.setdefault(one.rich_help_panel or "Options", []).append(one)
    lines = [
        f"## girih {name}",
        "",
        _markdown(command.help or ""),
        "",
        f"```console\n$ girih {name} {usage} [OPTIONS]\n```",
        "",
    ]
    lines += _table("argument", [(f"`{_metavar(one)}`", _told(one)) for one in given])
    for panel, options in panels.items():
        lines += _table(panel.lower(), [(_names(one), _told(one)) for one in options])
    return "\n".join(lines)


def _table(heading: str, rows: list[tuple[str, str]]) -> list[str]:
    if not rows:
        return []
    return [f"| {heading} | |", "| --- | --- |", *(f"| {name} | {text} |" for name, text in rows), ""]


def _metavar(one: Any) -> str:
    return (one.metavar or one.name.upper()).strip("[]")


def _names(one: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*one.opts, *one.secondary_opts))
    kind = "" if one.is_flag else one.metavar or _kind(one.type_descriptor.annotation)
    return f"{names} `{kind}`".replace("|", "\\|") if kind else names


def _kind(annotation: Any) -> str:
    """What an option takes: one of a few words, or a type."""
    kinds = [kind for kind in (get_args(annotation) or (annotation,)) if kind is not type(None)]
    if isinstance(kinds[0], type) and issubclass(kinds[0], Enum):
        return "|".join(str(member.value) for member in kinds[0])
    return {int: "INTEGER", float: "FLOAT"}.get(kinds[0], "TEXT")


def _told(one: Any) -> str:
    """The help of a parameter and its default, in one line."""
    text = _markdown(one.help or "").replace("|", "\\|").replace("\n", " ")
    default = one.show_default if isinstance(one.show_default, str) else None
    if default is None and one.show_default and one.default not in (None, (), False, True):
        default = str(getattr(one.default, "value", one.default))
    return f"{text} Default: {_markdown(default)}." if default else text


def _markdown(text: str) -> str:
    """The markup of rich as that of Markdown, in which nothing else is meant as markup."""
    text = re.sub(r"[*_<>]", lambda sign: f"\\{sign[0]}", text)
    return re.sub(r"\[/?b\]", "**", text).replace("[", "\\[").replace("]", "\\]")
