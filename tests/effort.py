"""How many random cases a law is tried on: few in `make test`, many in `make fuzz`."""

from __future__ import annotations

import os

LONG = os.environ.get("GIRIH_FUZZ") == "long"


def cases(short: int, long: int) -> int:
    """`short` in `make test`, `long` in `make fuzz`."""
    return long if LONG else short
