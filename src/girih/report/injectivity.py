"""Whether a decoder is injective, as far as that can be decided in seconds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from girih.errors import CellLimitError
from girih.geometry import Cells, is_injective
from girih.geometry.cells import triangle
from girih.geometry.dimension import nonzero
from girih.geometry.injective import SAMPLES, second_preimage
from girih.geometry.search import Search

_CELLS, _PROGRAMS = 10_000, 2000
_SHRINK = tuple(0.5**k for k in range(60))


@dataclass(frozen=True)
class Verdict:
    """An answer on injectivity.

    Attributes:
        injective: `True` or `False` where it is known, `None` where it was not decided.
        reason: a sentence that says why.
        witness: two latents with the same image, `(2, S)`, where there are.
    """

    injective: bool | None
    reason: str
    witness: Tensor | None = None


def judge(cells: Cells) -> Verdict:
    """Decide whether different latents have different images, or say what is known.

    A cell of rank below S is enough for a no, whether the cells were enumerated or sampled. A yes needs all cells.

    Source:
        MAS, section 4.1, Proposition 3, which is necessary and not sufficient (design, errata).

    Example:
        >>> import girih
        >>> from girih.report.injectivity import judge
        >>> judge(girih.geometry.enumerate_cells(girih.mlp([1, 6, 3], seed=0))).injective
        True
    """
    degenerate = (~nonzero(cells, 1e-10).all(1)).nonzero()[:, 0]
    if len(degenerate):
        share = "one cell" if len(degenerate) == 1 else f"{len(degenerate):,} cells"
        text = f"{share} of {len(cells):,} have a rank below S = {cells.latent_dim}: lines of latents share an image"
        return Verdict(False, text, _along(cells, int(degenerate[0])))
    if cells.partition is None:
        return Verdict(
            None,
            "not decided: all cells that were met have full rank, which is needed but not enough, since the images of "
            "different cells may meet",
        )
    part, count = cells.partition, f"{len(cells):,} cells"
    if len(part) <= _CELLS:
        try:
            found = is_injective(part, max_pairs=_PROGRAMS)
        except CellLimitError:
            return Verdict(
                None,
                f"not decided: all {count} have full rank, but more than {_PROGRAMS:,} pairs of them need a linear "
                "program each; girih.geometry.is_injective(partition, max_pairs=...) goes through all",
            )
        if found:
            return Verdict(True, f"decided for all pairs of its {count}: no two images meet")
        return Verdict(False, "the images of two cells meet", found.witness)
    found_pair = second_preimage(Search(part))
    if found_pair is not None:
        return Verdict(False, "the images of two cells meet", found_pair)
    return Verdict(
        None,
        f"not decided: all {count} have full rank and {SAMPLES} points have no second preimage, but there are too "
        "many pairs of cells to look at each; girih.geometry.is_injective(partition) does",
    )


def _along(cells: Cells, k: int) -> Tensor | None:
    """Two latents of cell k on a line that it maps to a point."""
    ((_, A, _),) = cells.maps(cells.patterns[k : k + 1])
    null = torch.linalg.svd(triangle(A))[2][0, -1].cpu()
    start = cells.points[k].cpu()
    steps = torch.tensor(_SHRINK, dtype=torch.float64)[:, None]
    codes = cells.trace.pattern(torch.cat((start[None], start + steps * null)))
    inside = (codes[1:] == codes[:1]).all(1).nonzero()[:, 0]
    if not len(inside):
        return None
    return torch.stack((start, start + steps[int(inside[0])] * null))
