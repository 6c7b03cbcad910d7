"""Whether two latents have the same image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from girih._options import whole
from girih.errors import CellLimitError, GirihError
from girih.geometry.cells import Shown, jets
from girih.geometry.dimension import RANK_TOLERANCE
from girih.geometry.invert import as_partition, images, preimages_by
from girih.geometry.search import Search
from girih.networks import Trace
from girih.partition import Partition
from girih.partition.memory import Array

_APART = 1e-6  # latents closer than that are one
_SAME = 1e-8  # images, relative to 1 + |x|
SAMPLES = 200
_PAIRS = 1 << 14
_DEPENDENT = 1e-9  # singular values and directions up to this multiple of the largest count as 0


@dataclass(frozen=True, repr=False)
class Injectivity(Shown):
    """The answer of `is_injective`; true where the generator is injective.

    Attributes:
        injective: whether different latents have different images.
        witness: two latents with the same image, `(2, S)`; `None` for an injective generator.
        reason: "injective", "degenerate cell" (rank below S), or "cells meet".
        pairs: how many pairs of cells were decided by linear programs.
    """

    injective: bool
    witness: Tensor | None
    reason: str
    pairs: int

    def __bool__(self) -> bool:
        return self.injective


def is_injective(net: nn.Module | Trace | Partition, max_pairs: int = 100_000) -> Injectivity:
    r"""Tells whether `g(z) = g(z')` holds for `z = z'` only; S <= 3. With a pair of latents where not.

    Full rank on every cell is needed but not enough: the images of different cells may meet. A tree over the images
    finds the pairs of cells that are close enough. Those whose planes meet in more than a point are decided by linear
    programs: over z in one and z' in the other with
    `A z + b = A' z' + b'`, both ends of `d . (z - z')` are 0 for a random direction d only if no other solution than
    `z = z'` exists (with probability 1).

    Args:
        net: a partition, or any module with S <= 3 that `girih.trace` supports.
        max_pairs: how many pairs to leave to linear programs at most; a thousand of them take a few seconds. Where
            `D >= 2 S` hardly any are left, where D < 2 S nearly all pairs of cells are.

    Returns:
        An object that is true or false, with the witness. Latents closer than 1e-6 are not told apart, and singular
        values up to 1e-10 of the largest count as 0.

    Raises:
        LatentDimensionError: S is larger than 3.
        CellLimitError: more pairs than `max_pairs` are left.
        GirihError: a linear program fails, on maps that are too badly scaled.

    Source:
        MAS, section 4.1, Proposition 3, which is necessary and not sufficient (design, errata).

    Example:
        >>> import girih
        >>> bool(girih.geometry.is_injective(girih.mlp([1, 6, 3], seed=0)))
        True
        >>> fold = girih.geometry.is_injective(girih.mlp([1, 6, 1], activation="abs", seed=0))
        >>> fold.injective, fold.reason, fold.witness.shape
        (False, 'cells meet', torch.Size([2, 1]))
    """
    part = as_partition(net)
    max_pairs = whole(max_pairs, "max_pairs")
    slopes, values = [], []
    generator = torch.Generator().manual_seed(0)
    D, S = part.trace.output_dim, part.latent_dim
    # images of two cells lie in 2 S + 1 dimensions: a random projection to so many tells as much
    mix = torch.randn(2 * S + 1, D, generator=generator, dtype=torch.float64) / D**0.5
    mix = (mix if D > 2 * S + 1 else torch.eye(D, dtype=torch.float64)).to(part.trace.device)
    for rows, jet in jets(part.trace, part.patterns, part.origins):
        _, spectrum, V = torch.linalg.svd(torch.linalg.qr(jet.slope).R)
        flat = spectrum[:, -1] <= (RANK_TOLERANCE * spectrum[:, 0] if D >= S else torch.inf)
        if flat.any():
            k = int(flat.nonzero()[0])
            return Injectivity(False, _along(part, rows.start + k, V[k, -1].cpu()), "degenerate cell", 0)
        slopes.append((mix @ jet.slope).cpu())
        values.append((jet.value @ mix.mT).cpu())
    search = Search(part)
    found = second_preimage(search)
    if found is not None:
        return Injectivity(False, found, "cells meet", 0)
    A, b = torch.cat(slopes), torch.cat(values)
    pairs, found = _open_pairs(part, A, b, search.meeting(_SAME))
    if found is not None:
        return Injectivity(False, found, "cells meet", 0)
    if len(pairs) > max_pairs:
        raise CellLimitError(
            f"{len(pairs):,} pairs of cells need a linear program, more than max_pairs = {max_pairs:,}; raise it "
            "(each thousand takes some seconds), or ask for a smaller domain: girih.Partition(net, domain=...)"
        )
    direction = np.random.default_rng(0).normal(size=S)
    direction /= np.linalg.norm(direction)
    faces: dict[int, tuple[Array, Array]] = {}
    for decided, (i, j) in enumerate(pairs.tolist(), start=1):
        found = _meet(part, A.numpy(), b.numpy(), i, j, direction, faces)
        if found is not None:
            return Injectivity(False, found, "cells meet", decided)
    return Injectivity(True, None, "injective", len(pairs))


def _along(part: Partition, i: int, null: Tensor) -> Tensor:
    """Two latents of cell i on a line that it maps to a point."""
    H, h = part.halfspaces(i)
    start = part.interior[i].cpu()
    speed = H @ null
    far = (h - H @ start) / torch.where(speed > 0.0, speed, torch.nan)
    step = float(far.nan_to_num(nan=torch.inf).amin()) if len(h) else torch.inf
    return torch.stack((start, start + min(0.5 * step, 1.0) * null))


def second_preimage(search: Search) -> Tensor | None:
    """Two latents with the same image, if a point inside some cell has another preimage."""
    part = search.images.part
    index = torch.linspace(0, len(part) - 1, min(len(part), SAMPLES)).long()
    z = part.interior[index].to(part.trace.device)
    found = preimages_by(search, images(part.trace, z))
    apart = (found.latent - z[found.row]).norm(dim=1) > _APART * (1.0 + z[found.row].norm(dim=1))
    if not apart.any():
        return None
    k = int(apart.nonzero()[0])
    return torch.stack((z[found.row[k]], found.latent[k])).cpu()


def _open_pairs(part: Partition, A: Tensor, b: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor | None]:
    """The pairs of cells that linear programs have to decide, `(P, 2)`, or a witness that was found.

    The planes of two cells have no point in common; or one, which is in both cells or not; or points with `z = z'`
    only; or they are left to the programs. The maps `A`, `b` are about the origins of the cells.
    """
    S, kept = part.latent_dim, []
    origins = part.origins.cpu()
    for pairs in candidates.split(_PAIRS):
        i, j = pairs.mT
        M = torch.cat((A[i], -A[j]), 2)
        gap = b[j] - b[i]
        if M.shape[1] < 2 * S:
            M = torch.cat((M, M.new_zeros(len(M), 2 * S - M.shape[1], 2 * S)), 1)
            gap = torch.cat((gap, gap.new_zeros(len(gap), M.shape[1] - gap.shape[1])), 1)
        reach = _SAME * (1.0 + b[i].norm(dim=1) + b[j].norm(dim=1))
        near = distance_to_span(M, gap) <= reach
        pairs, M, gap, reach = pairs[near], M[near], gap[near], reach[near]
        i, j = pairs.mT
        U, values, Vt = torch.linalg.svd(M, full_matrices=False)
        counts = values > _DEPENDENT * values[:, :1]
        along = (U.mT @ gap[:, :, None])[:, :, 0] * counts
        rest = gap - (U @ along[:, :, None])[:, :, 0]
        meet = rest.norm(dim=1) <= reach
        at = (Vt.mT @ (along / torch.where(counts, values, 1.0))[:, :, None])[:, :, 0]
        z, other = origins[i] + at[:, :S], origins[j] + at[:, S:]
        room = _APART * (1.0 + z.norm(dim=1))
        same = (z - other).norm(dim=1) <= room
        free = ((Vt[:, :, :S] - Vt[:, :, S:]).norm(dim=2) * ~counts).amax(1)  # of z - z' along common lines
        single = counts.all(1)
        kept.append(pairs[meet & ~single & ~(same & (free <= _DEPENDENT))])
        witness = _verified(part, z[meet & single & ~same], other[meet & single & ~same])
        if witness is not None:
            return kept[0][:0], witness
    return (torch.cat(kept) if kept else torch.empty(0, 2, dtype=torch.int64)), None


def distance_to_span(M: Tensor, gap: Tensor) -> Tensor:
    """A lower bound on the distance of vectors from what the columns of matrices span: cheaper than singular values.

    It is the distance itself where M has full rank.

    Args:
        M: `(P, k, n)`.
        gap: `(P, k)`.

    Returns:
        `(P,)`; 0 for `k <= n`.

    Example:
        >>> import girih, torch
        >>> girih.geometry.distance_to_span(torch.tensor([[[1.0], [0.0]]]), torch.tensor([[3.0, 4.0]]))
        tensor([4.])
    """
    rows, columns = M.shape[1:]
    if rows <= columns:
        return torch.zeros_like(gap[:, 0])
    # the last column of Q R is gap: what R has below the columns of M is not in their span
    R = torch.linalg.qr(torch.cat((M, gap[:, :, None]), 2), mode="r").R
    result: Tensor = R[:, columns, columns].abs()
    return result


def _verified(part: Partition, z: Tensor, other: Tensor) -> Tensor | None:
    """The first of some pairs of latents that are in the domain and do have the same image."""
    if not len(z):
        return None
    x, y = (images(part.trace, some.to(part.trace.device)) for some in (z, other))
    same = (x - y).norm(dim=1) <= _SAME * (1.0 + x.norm(dim=1))
    for k in same.nonzero()[:, 0].tolist():
        pair = torch.stack((z[k], other[k]))
        if (part.locate(pair.to(part.trace.device)) >= 0).all():
            return pair
    return None


def _meet(
    part: Partition, A: Array, b: Array, i: int, j: int, direction: Array, faces: dict[int, tuple[Array, Array]]
) -> Tensor | None:
    """A latent of cell i and another of cell j with the same image."""
    for k in (i, j):
        if k not in faces:
            normals, offsets = part.halfspaces(k)
            faces[k] = (normals.numpy(), (offsets - normals @ part.origins[k].cpu()).numpy())
    (H, h), (H2, h2) = faces[i], faces[j]
    S = len(direction)
    first, second = part.origins[i].cpu().numpy(), part.origins[j].cpu().numpy()
    shift = direction @ (first - second)
    scale = np.abs(A[i]).max() + np.abs(A[j]).max()
    equal, at = np.concatenate((A[i], -A[j]), 1) / scale, (b[j] - b[i]) / scale
    blocks = np.zeros((len(h) + len(h2), 2 * S))
    blocks[: len(h), :S], blocks[len(h) :, S:] = H, H2
    for sign in (1.0, -1.0):
        gain = sign * np.concatenate((direction, -direction))  # of d . (z - z'), kept below 1
        answer = linprog(
            -gain,
            A_ub=np.vstack((blocks, gain)),
            b_ub=np.concatenate((h, h2, [1.0 - sign * shift])),
            A_eq=equal,
            b_eq=at,
            bounds=(None, None),
            options={"primal_feasibility_tolerance": 1e-10},
        )
        if answer.status == 2:  # no common image
            return None
        if answer.status != 0:
            raise GirihError(
                f"the linear program for the cells {i} and {j} failed ({answer.message}); their maps may be too badly "
                "scaled: check the singular values of the two cells"
            )
        if gain @ answer.x + sign * shift > _APART:
            exact = answer.x + np.linalg.lstsq(equal, at - equal @ answer.x)[0]  # the program's own room is too wide
            pair = torch.as_tensor(np.stack((first + exact[:S], second + exact[S:])))
            x = images(part.trace, pair.to(part.trace.device))
            if (x[0] - x[1]).norm() <= _SAME * (1.0 + x[0].norm()):
                return pair
    return None
