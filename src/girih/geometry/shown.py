"""How results are printed: short tensors as they are, long ones by their shape."""

from __future__ import annotations

from dataclasses import fields

from torch import Tensor

_SHORT = 6  # numbers


class Shown:
    """A dataclass, made with `repr=False`, whose long tensors print as their shape.

    Example:
        >>> from dataclasses import dataclass
        >>> import torch
        >>> from girih.geometry.shown import Shown
        >>> @dataclass(frozen=True, repr=False)
        ... class Found(Shown):
        ...     latent: torch.Tensor
        ...     pairs: int
        >>> Found(torch.zeros(200, 2), 3)
        Found(latent=<200 x 2>, pairs=3)
    """

    def __repr__(self) -> str:
        parts = (f"{field.name}={_text(getattr(self, field.name))}" for field in fields(self))  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(parts)})"


def _text(value: object) -> str:
    if not isinstance(value, Tensor) or value.numel() <= _SHORT:
        return str(value.tolist()) if isinstance(value, Tensor) else repr(value)
    return f"<{' x '.join(map(str, value.shape))}>"
