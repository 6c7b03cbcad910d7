"""How objects show themselves: one line with the numbers that matter, and a small table in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape


class Shown:
    """A class that is `Shown` says what matters about it in `_facts`, and has a line and a table of that."""

    def _facts(self) -> Mapping[str, str]:
        """What matters, as short texts by name."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return line_of(type(self).__name__, self._facts())

    def _repr_html_(self) -> str:
        return table_of(type(self).__name__, self._facts())


def line_of(name: str, facts: Mapping[str, str]) -> str:
    """Facts on one line.

    Example:
        >>> from girih._shown import line_of
        >>> line_of("Posterior", {"rows": "3", "S": "2"})
        'Posterior(rows=3, S=2)'
    """
    return f"{name}({', '.join(f'{key}={value}' for key, value in facts.items())})"


def table_of(name: str, facts: Mapping[str, str]) -> str:
    """Facts as a table of HTML, below their name."""
    left = "style='text-align: left'"
    rows = "".join(f"<tr><th {left}>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in facts.items())
    return f"<table><caption {left}><b>{escape(name)}</b></caption>{rows}</table>"


def span(low: float, high: float) -> str:
    """Two numbers with what is between, or one where they agree to the digits shown."""
    first, last = f"{low:.4g}", f"{high:.4g}"
    return first if first == last else f"{first} to {last}"
