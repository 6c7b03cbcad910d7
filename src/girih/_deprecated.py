"""Names of earlier versions: they keep working, and each says what took its place."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def warn_of(old: str, new: str, stacklevel: int = 3) -> None:
    """Say that `old` is called `new` now, in the line of whoever called the caller."""
    warnings.warn(f"{old} is deprecated and will be removed; use {new}", DeprecationWarning, stacklevel=stacklevel)


def renamed(names: Mapping[str, str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator for a function with keywords that had other names: from the old name to that of now.

    The signature that is shown has the names of now, and a keyword that is neither gives Python's own TypeError.

    Example:
        >>> import warnings
        >>> from girih._deprecated import renamed
        >>> @renamed({"epochs": "max_epochs"})
        ... def fit(max_epochs=1):
        ...     return max_epochs
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     fit(epochs=3), str(caught[0].message)
        (3, 'fit(epochs=...) is deprecated and will be removed; use fit(max_epochs=...)')
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def called(*args: P.args, **keywords: P.kwargs) -> R:
            for old, new in names.items():
                if old in keywords and new not in keywords:  # both: Python says that there is no `old`
                    warn_of(f"{function.__name__}({old}=...)", f"{function.__name__}({new}=...)")
                    keywords[new] = keywords.pop(old)
            return function(*args, **keywords)

        return called

    return decorate


def gathered(
    defaults: Mapping[str, object], parameter: str, gather: Callable[[Any, dict[str, Any]], object], new: str
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator for a function whose keywords are parts of one parameter now.

    Args:
        defaults: the keywords that were, with their defaults; those that are given as these are left out.
        parameter: the one that holds them now.
        gather: from what it is given as, and the former keywords, to what it is now.
        new: the way of now, for the warning.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def called(*args: P.args, **keywords: P.kwargs) -> R:
            former = {name: keywords.pop(name) for name in defaults if name in keywords}
            former = {name: value for name, value in former.items() if value is not defaults[name]}
            if not former:
                return function(*args, **keywords)
            warn_of(f"{function.__name__}({next(iter(former))}=...)", new)
            bound = inspect.signature(function).bind_partial(*args, **keywords)
            bound.arguments[parameter] = gather(bound.arguments.get(parameter), former)
            return function(*bound.args, **bound.kwargs)

        return called

    return decorate


def renamed_attribute(old: str, new: str, value: Callable[[Any], R]) -> property:
    """A read-only attribute that has another name now, or is computed from others by `value`."""

    def get(self: object) -> R:
        warn_of(f"{type(self).__name__}.{old}", new)
        return value(self)

    return property(get, doc=f"Deprecated: use {new}.")


def moved(module: str, homes: Mapping[str, tuple[str, str]]) -> Callable[[str], object]:
    """A `__getattr__` for a module: from the old name to the module and the name of now."""

    def find(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, new = homes[name]
        warn_of(f"{module}.{name}", f"{home}.{new}")
        value: object = getattr(importlib.import_module(home), new)
        return value

    return find


def former_module(module: str, homes: Mapping[str, tuple[str, str]]) -> None:
    """Let a module that is no more be imported: each of its names is found where it is now, with a warning."""
    former = ModuleType(module, "Deprecated: its names are elsewhere now.")
    vars(former)["__getattr__"] = moved(module, homes)
    sys.modules[module] = former
