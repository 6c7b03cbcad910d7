"""What was found out about a file of a table as it was read."""

from __future__ import annotations

from dataclasses import dataclass, field

from girih._formats import FileFormat
from girih.datasets.texts import Written

__all__ = ["FileFormat", "Findings"]

_WORDS = {",": "commas", ";": "semicolons", "\t": "tabs"}


@dataclass
class Findings:
    """`Findings` are what was found out as a file was read.

    Attributes:
        separator: of a csv file.
        header: whether its first line held names.
        written: by column, how its numbers or dates are written, where not plainly.
        markers: by column, the texts that meant a missing entry, beside the usual ones.
        doubts: by column, what could be meant otherwise.
        renamed: names that the file had several times.
    """

    separator: str = ""
    header: bool | None = None
    written: dict[str, Written] = field(default_factory=dict)
    markers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    doubts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    renamed: tuple[str, ...] = ()

    def kept(self, names: list[str]) -> Findings:
        """The same of some columns alone."""
        some = set(names)
        written = {name: value for name, value in self.written.items() if name in some}
        markers = {name: value for name, value in self.markers.items() if name in some}
        doubts = {name: value for name, value in self.doubts.items() if name in some}
        return Findings(self.separator, self.header, written, markers, doubts, self.renamed)

    def table(self) -> list[tuple[str, str, str]]:
        """What was found, how it was taken, and the option that changes it."""
        rows = []
        if self.separator:
            rows.append(("cells", f"between {_WORDS[self.separator]}", "--separator"))
        if self.header is not None:
            rows.append(("names of columns", "the first line" if self.header else "none", "--header, --no-header"))
        if self.renamed:
            rows.append(("names that came twice", ", ".join(self.renamed), "rename them in the file"))
        for kind, what in (("comma", "decimal comma"), ("thousands", "commas between thousands")):
            names = [name for name, written in self.written.items() if written == kind]
            if names:
                rows.append((what, ", ".join(names), "--decimal"))
        for marker in dict.fromkeys(mark for marks in self.markers.values() for mark in marks):
            names = [name for name, marks in self.markers.items() if marker in marks]
            rows.append((f"{marker!r}, a missing entry", ", ".join(names), "--missing"))
        dates = [name for name, written in self.written.items() if "date" in written]
        if dates:
            rows.append(("dates, as days since 1970-01-01", ", ".join(dates), "--drop"))
        rows += [(name, doubt, "") for name, doubts in self.doubts.items() for doubt in doubts]
        return rows
