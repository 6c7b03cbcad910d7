"""The settings of a reproduction: those of the paper, a quick version, and what a user changes of either."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from girih.errors import ParameterError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    T = TypeVar("T", bound=DataclassInstance)
else:
    T = TypeVar("T")


def changed(settings: T, changes: Mapping[str, str]) -> T:
    """Settings with some fields replaced; each text is read as what the field holds: a number, a text, or a list.

    Args:
        settings: a dataclass of whole numbers, numbers, texts, and tuples of one of them.
        changes: texts by the name of a field; a list is written with commas.

    Raises:
        ParameterError: there is no such field, or the text is not of its kind.

    Example:
        >>> from dataclasses import dataclass
        >>> from girih_papers.settings import changed
        >>> @dataclass(frozen=True)
        ... class Settings:
        ...     epochs: int = 300
        ...     widths: tuple[int, ...] = (8, 16)
        >>> changed(Settings(), {"epochs": "30", "widths": "4,6,8"})
        Settings(epochs=30, widths=(4, 6, 8))
    """
    known = {field.name: getattr(settings, field.name) for field in fields(settings)}
    new: dict[str, Any] = {}
    for name, text in changes.items():
        if name not in known:
            raise ParameterError(f"there is no setting {name!r}; known are {', '.join(known)}")
        new[name] = _read(name, text, known[name])
    return replace(settings, **new)


def arguments(function: Callable[..., Any], settings: DataclassInstance, **more: Any) -> dict[str, Any]:
    """The keyword arguments of a job of `run_jobs`: those fields of the settings that the function takes, and more.

    Example:
        >>> from dataclasses import dataclass
        >>> from girih_papers.settings import arguments
        >>> @dataclass(frozen=True)
        ... class Settings:
        ...     epochs: int = 300
        ...     runs: int = 8
        >>> arguments(lambda epochs, seed: None, Settings(), seed=3)
        {'epochs': 300, 'seed': 3}
    """
    taken = inspect.signature(function).parameters
    return {name: value for name, value in asdict(settings).items() if name in taken} | more


def _read(name: str, text: str, example: Any) -> Any:
    if isinstance(example, tuple):
        return tuple(_read(name, part.strip(), example[0]) for part in text.split(","))
    kind = type(example)
    try:
        value = kind(text)
    except ValueError:
        word = {int: "a whole number", float: "a number"}.get(kind, f"a {kind.__name__}")
        raise ParameterError(f"the setting {name} is {word}, as {example!r}; got {text!r}") from None
    if kind in (int, float) and not 0 <= value < float("inf"):
        raise ParameterError(f"the setting {name} must be 0 or more and finite; got {text}")
    return value
