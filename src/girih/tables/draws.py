"""Joint draws of everything that is missing in rows: a piece, its latent, its numbers and its categories."""

from __future__ import annotations

import torch
from torch import Tensor

from girih.gaussian.interval import sample_anchored
from girih.tables.encoded import Atom
from girih.tables.pieces import Pieces, Units

_AT_ONCE = 1 << 21


def seeded(seed: int | None) -> torch.Generator:
    """A source of draws: of a seed, or of the system's chance."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
        return generator
    return generator.manual_seed(seed)


def drawn(
    pieces: Pieces,
    units: Units,
    tables: tuple[Tensor, ...],
    atoms: tuple[Atom, ...],
    x: Tensor,
    codes: Tensor,
    m: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """`x (m, B, D)` and `codes (m, B, C)` of B rows, encoded, by one piece for each draw."""
    B, D = x.shape
    piece = _pieces(pieces, B, m, generator)  # (m B,)
    out = x.repeat(m, 1)
    all_codes = codes.repeat(m, 1)
    eye = torch.eye(D, dtype=x.dtype)
    used, place = pieces.which[piece].unique(return_inverse=True)
    own = pieces.noise[used]
    certain = own.diagonal(dim1=1, dim2=2) == 0.0
    factor = torch.linalg.cholesky(own + eye * certain[:, None, :]) * ~certain[:, :, None]
    t = sample_anchored(pieces.below[piece], pieces.above[piece], pieces.anchor[piece], generator)
    e = torch.randn(len(piece), D, dtype=x.dtype, generator=generator)
    for some in torch.arange(len(piece)).split(max(1, _AT_ONCE // max(1, D * D))):
        p = piece[some]
        y = pieces.base[p] + pieces.slope[p] * t[some, None] + (factor[place[some]] @ e[some, :, None])[..., 0]
        new = units.at(pieces.member[p][:, None], torch.arange(D)).inverse(y)
        out[some] = torch.where(out[some].isnan(), new, out[some])
    for c, table in enumerate(tables):
        cumulative = table[pieces.component[piece]].cumsum(1)[:, :-1]
        u = torch.rand(len(piece), 1, dtype=x.dtype, generator=generator)
        new_code = (u >= cumulative).sum(1)
        all_codes[:, c] = torch.where(all_codes[:, c] < 0, new_code, all_codes[:, c])
    for atom in atoms:
        out[all_codes[:, atom.code] < len(atom.values), atom.x] = torch.nan
    return out.view(m, B, D), all_codes.view(m, B, -1)


def _pieces(pieces: Pieces, B: int, m: int, generator: torch.Generator | None) -> Tensor:
    """A piece of each row, m times: `(m B,)`, by inversion of the running sum of shares, which is n after n rows."""
    count = torch.bincount(pieces.row, minlength=B)
    last = count.cumsum(0)
    running = pieces.share.cumsum(0)
    start = torch.cat((running.new_zeros(1), running))[last - count]
    end = running[last - 1]
    u = torch.rand(m, B, dtype=running.dtype, generator=generator)
    found = torch.searchsorted(running, (start + u * (end - start)).flatten(), right=True).view(m, B)
    return torch.minimum(torch.maximum(found, last - count), last - 1).flatten()
