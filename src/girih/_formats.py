"""How a file of a table is written, as far as one knows: in a module that loads nothing, for the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from girih.errors import ParameterError

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t"}


@dataclass(frozen=True)
class FileFormat:
    """A `FileFormat` says how a csv file is written, where that is not to be found out.

    Attributes:
        header: whether the first line holds the names of the columns.
        separator: between the cells: ",", ";" or a tab.
        decimal: "." or ",".
        missing: texts that mean a missing entry, beside empty cells, NA and the like; by default "?", ".", "-", "--"
            and "*" among numbers, and none among texts.

    Raises:
        ParameterError: another separator or decimal.
    """

    header: bool | None = None
    separator: str | None = None
    decimal: str | None = None
    missing: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.separator not in (None, *SEPARATORS.values()):
            raise ParameterError(f"separator must be a comma, a semicolon or a tab; got {self.separator!r}")
        if self.decimal not in (None, ".", ","):
            raise ParameterError(f"decimal must be '.' or ','; got {self.decimal!r}")

    def known(self) -> dict[str, Any]:
        """What is said, as values that JSON has."""
        every: dict[str, Any] = {"header": self.header, "separator": self.separator, "decimal": self.decimal}
        every["missing"] = None if self.missing is None else list(self.missing)
        return {name: value for name, value in every.items() if value is not None}

    def code(self, name: str) -> str:
        """What is said, as an argument of a call in Python; nothing where nothing is.

        Example:
            >>> from girih._formats import FileFormat
            >>> FileFormat(separator=";").code("reading"), FileFormat().code("reading")
            (", reading=girih.datasets.FileFormat(separator=';')", '')
        """
        said = {**self.known(), "missing": self.missing}
        words = ", ".join(f"{part}={value!r}" for part, value in said.items() if value is not None)
        return f", {name}=girih.datasets.FileFormat({words})" if words else ""

    @staticmethod
    def of(known: object) -> FileFormat:
        """What `known` gave; nothing is known of anything else."""
        if not isinstance(known, dict):
            return FileFormat()
        names = ("header", "separator", "decimal", "missing")
        parts = {name: known[name] for name in names if known.get(name) is not None}
        return FileFormat(**{**parts, "missing": tuple(parts["missing"])} if "missing" in parts else parts)

    def over(self, other: FileFormat) -> FileFormat:
        """The same, and what `other` says besides."""
        return FileFormat.of({**other.known(), **self.known()})
