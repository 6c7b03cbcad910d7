"""Fits that are finished, so that a run that was killed goes on from them to the same numbers."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, fields

from girih.streams import Processes
from girih.tables.basis import Basis
from girih.tables.member import Member
from girih.tables.mixture import Mixture
from girih.tables.scales import Scales
from girih.tables.setting import Setting, Table
from girih.training.checkpoint import Checkpoint, digest

_OWN = ("weights", "maps", "noise", "tables", "own")  # of a mixture; its basis follows from the setting


class Finished:
    """Mixtures by what was fitted to which rows, kept in a file where one is given; and how many are made at once.

    Args:
        path: the file, or None for none.
        table: the rows of the run.
        choices: what else must agree between the run that wrote the file and the run that goes on, by name.
        processes: of the run; the first reads and writes the file.
        n_jobs: fits that are made at once.

    Raises:
        ModelFileError: the file is damaged, or no checkpoint.
        CheckpointError: it belongs to a run with other rows or choices.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        table: Table,
        choices: dict[str, int | None],
        processes: Processes | None = None,
        n_jobs: int | None = 1,
    ) -> None:
        self.n_jobs = n_jobs
        self._processes = processes or Processes()
        self._checkpoint = None
        self._fits: dict[str, dict[str, object]] = {}
        if path is not None:
            rows = digest(table.x, table.codes, table.weight, table.width)
            self._checkpoint = saved = Checkpoint(path, {"table": True, "data": rows, **choices})
            self._fits = self._processes.agreed(lambda: (saved.read() or {}).get("fits", {}))

    def member(self, name: str, setting: Setting, fit: Callable[[], Member]) -> Member:
        """The mixture of a setting for the rows of this name: as it was found before, or by `fit`."""
        if self._checkpoint is None:
            return fit().settled()
        key = f"{name}: {setting}"
        if key not in self._fits:
            member = fit().settled()
            self.put(key, parts_of(member))
            return member
        return member_of(self._fits[key], setting)

    def has(self, name: str, setting: Setting) -> bool:
        """Whether `member` would find it."""
        return f"{name}: {setting}" in self._fits

    def get(self, key: str) -> dict[str, object] | None:
        """What was put under a name, by this run or the one that it goes on from."""
        return self._fits.get(key)

    def put(self, key: str, value: dict[str, object]) -> None:
        """Keep tensors and plain values under a name."""
        self._fits[key] = value
        if self._checkpoint is not None and self._checkpoint.due():
            self.save()

    def save(self) -> None:
        """Write the file, where one was given."""
        if self._checkpoint is not None and self._fits and self._processes.leads:
            self._checkpoint.write({"fits": self._fits})

    def remove(self) -> None:
        """Remove the file of a run that is over."""
        if self._checkpoint is not None and self._processes.leads:
            self._checkpoint.path.unlink(missing_ok=True)


def parts_of(member: Member) -> dict[str, object]:
    """A mixture and its scales as tensors by name."""
    return {"scales": asdict(member.scales), **{name: getattr(member.mixture, name) for name in _OWN}}


def member_of(parts: dict[str, object], setting: Setting) -> Member:
    """What `parts_of` took apart."""
    basis = Basis.line(setting.kinks) if setting.kinks else Basis.plain()
    scales = parts["scales"]
    own = {name: parts[name] for name in _OWN}
    return Member(
        Mixture(basis, **own),  # type: ignore[arg-type]
        Scales(**{field.name: scales[field.name] for field in fields(Scales)}),  # type: ignore[index]
    ).settled()
