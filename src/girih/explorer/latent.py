"""The page of a generator: its cells, its network, and rows with their posteriors, as values that JSON has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from girih._arrays import as_rows, column_labels
from girih.errors import ShapeError
from girih.explorer.generator import network_spec
from girih.explorer.packed import packed
from girih.explorer.planes import line_spec, plane_spec, planes_of
from girih.explorer.rows import COLUMNS, beside_columns, chosen_rows, pictures, row_spec, rows_of
from girih.explorer.subject import Subject, names_of, places_of, subject_of

if TYPE_CHECKING:
    from girih.report.table_numbers import TablePage

Array = NDArray[np.float64]


class Wanted(NamedTuple):
    """`Wanted` says what a page is asked to show beside the model and its rows, see `girih.explore`.

    Of more rows than `most`, so many are drawn at random; the title is the name of the model unless it is given;
    `prior` `(S, S)` is that of a decoder alone, 1 by default; `dates` are columns of a table that hold days since 1970;
    `page` is what a report of a table knows of all its rows.
    """

    latents: ArrayLike | None = None
    beside: Mapping[str, object] | None = None
    columns: Sequence[object] | None = None
    image_shape: Sequence[int] | None = None
    most: int = 50_000
    prior: torch.Tensor | None = None
    dates: frozenset[str] = frozenset()
    title: str = ""
    page: TablePage | None = None


def latent_payload(model: object, data: object, wanted: Wanted) -> dict[str, Any]:
    """All that the page of a generator shows.

    Args:
        model: what `subject_of` takes.
        data: rows, or `None`.
        wanted: what else was asked for.
    """
    subject = subject_of(model)
    if wanted.prior is not None:
        subject = subject._replace(prior=wanted.prior.detach().cpu(), part=None)
    traced, D, S = subject.trace, subject.trace.output_dim, subject.trace.latent_dim
    names = names_of(wanted.columns, column_labels(data), D)
    image = _image(wanted.image_shape, D)
    X = None if data is None else rows_of(data, D)
    z = (
        None
        if wanted.latents is None
        else as_rows(wanted.latents, "latents", S, "the latent dimension S").cpu().numpy()
    )
    if X is not None and z is not None and len(X) != len(z):
        raise ShapeError(f"latents must hold one latent for each of the {len(X)} rows, got {len(z)}")
    count = len(X) if X is not None else 0 if z is None else len(z)
    chosen = chosen_rows(count, wanted.most)
    beside = beside_columns(wanted.beside, count, chosen)
    X, z = (None if part is None else part[chosen] for part in (X, z))
    places = places_of(subject, X, z)
    network = network_spec(traced)
    limits = _range(subject, X)
    payload: dict[str, Any] = {
        "kind": "latent",
        "title": wanted.title or type(model).__name__,
        "S": S,
        "D": D,
        "names": names,
        "image": image,
        "range": limits,
        "prior": subject.prior.tolist(),
        "noise": None if subject.dgn is None else packed(_variances(subject), "f8"),
        "network": network,
    }
    if places is not None:
        listed = names if D <= COLUMNS and image is None else None
        payload["rows"] = row_spec(X, places, listed, beside, chosen)
        if X is not None and listed is None:
            payload["rows"]["pictures"] = pictures(X, *limits)
    mean = None if places is None else places.mean
    payload |= _cells(subject, mean, network is None)
    shown = payload.get("planes", [payload.get("line")])
    payload["notes"] = _notes(payload, shown, count, places.what if places is not None else "")
    payload["lead"] = _lead(subject, shown)
    return payload


def on_plane(z: Array, origin: torch.Tensor, basis: torch.Tensor) -> Array:
    """The coordinates (a, b) of latents `(N, S)` on a plane, by least squares, `(N, 2)`."""
    return np.asarray((z - origin.numpy()) @ np.linalg.pinv(basis.numpy()).T)


def _cells(subject: Subject, mean: Array | None, with_maps: bool) -> dict[str, Any]:
    """The line of S = 1, or the planes."""
    traced = subject.trace
    if traced.latent_dim == 1:
        return {"line": line_spec(traced, subject.prior, subject.part, mean, with_maps)}
    planes = planes_of(traced, subject.prior, subject.part)
    placed = [None if mean is None else on_plane(mean, plane.origin, plane.basis) for plane in planes]
    specs = [plane_spec(plane, traced, rows, with_maps) for plane, rows in zip(planes, placed, strict=True)]
    if mean is not None:
        for spec, rows in zip(specs, placed, strict=True):
            spec["rows"] = packed(rows, "f4")  # type: ignore[arg-type]
    return {"planes": specs}


def _variances(subject: Subject) -> Array:
    assert subject.dgn is not None
    return np.asarray(subject.dgn.noise_covariance.detached().variances.cpu().expand(subject.trace.output_dim))


def _image(shape: Sequence[int] | None, D: int) -> dict[str, Any] | None:
    """Height, width and channels of an output that is an image, and whether the channels come first."""
    if shape is None:
        return None
    size = tuple(int(part) for part in shape)
    if len(size) not in (2, 3) or int(np.prod(size)) != D or (len(size) == 3 and not {size[0], size[2]} & {1, 3}):
        raise ShapeError(f"image_shape must be (H, W), (C, H, W) or (H, W, C) with {D} entries; got {size}")
    if len(size) == 2:
        return {"height": size[0], "width": size[1], "channels": 1, "first": True}
    first = size[0] in (1, 3)
    channels, height, width = size if first else (size[2], size[0], size[1])
    return {"height": height, "width": width, "channels": channels, "first": first}


def _range(subject: Subject, X: Array | None) -> tuple[float, float]:
    """The values that are drawn black and white: those of the rows, or of prior draws."""
    if X is None:
        draws = torch.randn(256, subject.trace.latent_dim, generator=torch.Generator().manual_seed(0)).double()
        with torch.no_grad():
            X = subject.trace(draws @ torch.linalg.cholesky(subject.prior).mT).cpu().numpy()
    low, high = np.nanquantile(X, (0.001, 0.999))
    return float(low), float(high) if high > low else float(low) + 1.0


def _notes(payload: dict[str, Any], shown: list[Any], count: int, what: str) -> list[str]:
    """What the reader has to know of what is left out."""
    notes: list[str] = []
    if what:
        kept = payload["rows"]["count"]
        notes.append(f"Rows lie at the mean of {what}." if what.startswith("the exact") else f"Rows lie at {what}.")
        if kept < count:
            notes.append(f"{kept:,} of the {count:,} rows, drawn at random, are in this page.")
        if payload["S"] > 2:
            notes.append("They are seen along the other latents, onto the plane.")
    if any(spec.get("cut") for spec in shown):
        notes.append("The planes end where more cells would be too many for a page.")
    if payload["network"] is None:
        kept = sum(spec["maps"]["count"] for spec in shown)
        total = sum(spec["cells"] for spec in shown)
        notes.append(
            f"The network is too heavy for a page, which holds the maps of {kept:,} of {total:,} cells, the heaviest."
        )
    return notes


def _lead(subject: Subject, shown: list[Any]) -> str:
    S, D = subject.trace.latent_dim, subject.trace.output_dim
    cells = shown[0]["cells"]
    where = "" if S == 1 else " of the latent plane" if S == 2 else f" that {shown[0]['name']} meets"
    return (
        f"A generator from {S} latent{'s' if S > 1 else ''} to {D:,} output{'s' if D > 1 else ''}: on each of the "
        f"{cells:,} cells{where} it is one affine map, which the page computes exactly."
    )
