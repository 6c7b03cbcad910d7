"""`explore`: a model and its rows as a page to look around in."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import ArrayLike

from girih._extras import require
from girih._files import write_text
from girih.explorer.latent import Wanted, latent_payload
from girih.explorer.page import page
from girih.tables import TableModel

if TYPE_CHECKING:
    from girih.explorer.widget import ExplorerWidget

_HEIGHT = 860  # of the frame in a notebook, in pixels


class Explorer:
    """An `Explorer` is a page about a model; in a notebook it shows itself.

    Made by `girih.explore`.

    Attributes:
        payload: what the page shows, as values that JSON has.
        path: where the page was written, or `None`.
    """

    def __init__(self, payload: dict[str, Any], path: Path | None = None) -> None:
        self.payload, self.path = payload, path

    @property
    def html(self) -> str:
        """The page as text, with everything inside."""
        return page(self.payload)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page to a file, atomically.

        Raises:
            OSError: it cannot be written.
        """
        write_text(path, self.html)
        self.path = Path(path)

    def widget(self) -> ExplorerWidget:
        """The page as a widget, whose `selected` holds the numbers of the rows that are selected in it.

        Raises:
            MissingExtraError: the extra `notebook` is not installed.
        """
        require("anywidget", "notebook")
        from girih.explorer.widget import ExplorerWidget

        return ExplorerWidget.of(self.payload)

    def __repr__(self) -> str:
        rows = self.payload.get("rows")
        held = f", {rows['count']:,} rows" if rows else ""
        return f"Explorer({self.payload['title']}{held}, {self.path if self.path else 'not saved'})"

    def _repr_html_(self) -> str:
        """The page in a frame of its own, for notebooks."""
        return (
            f'<iframe srcdoc="{escape(self.html, quote=True)}" sandbox="allow-scripts" width="100%" '
            f'height="{_HEIGHT}" style="border: 0" title="girih explorer"></iframe>'
        )


def explore(
    model: object,
    data: object = None,
    path: str | os.PathLike[str] | None = "explorer.html",
    latents: ArrayLike | None = None,
    beside: Mapping[str, object] | None = None,
    columns: Sequence[object] | None = None,
    image_shape: Sequence[int] | None = None,
) -> Explorer:
    """`explore` writes one self-contained page to look around in a model, and in rows beside it.

    Use it to see the cells of a latent space, move through it and watch g(z) change exactly, find rows in it and in a
    list beside it; or, with a `TableModel`, the densities and conditionals of pairs of columns, the strangest rows with
    their reasons, and imputed entries with their intervals. The page needs no server and no network.

    Args:
        model: a `TableModel`, or a generator: a `DGN`, `DGNEstimator`, `girih.vae.VAE`, `Partition` (a slice too), or
            any module that `girih.trace` supports. For S > 2 the page shows planes of the latents along which the
            outputs change most; for one of your own, pass `girih.Partition.slice(net, origin, u, v)`.
        data: rows as the model takes them, NaN where missing.
        path: the file to write, or `None` for none.
        latents: of a decoder alone, where its rows lie, `(N, S)`.
        beside: further columns by name, one value for each row, such as labels to colour by.
        columns: names of the outputs; of a `TableModel`, the columns of numbers whose pairs are shown, at most 8.
        image_shape: `(H, W)`, `(C, H, W)` or `(H, W, C)`, where the outputs are images.

    Returns:
        An `Explorer`, which shows itself in a notebook.

    Raises:
        ParameterError: the model is of no kind that can be explored, or nothing says where rows lie.
        ShapeError: rows, latents, names or shapes do not fit the model.
        UnsupportedLayerError, CellLimitError: the decoder is not piecewise affine, or has too many cells.

    Example:
        >>> import girih, pathlib, tempfile
        >>> dgn = girih.DGN(girih.mlp([2, 8, 3], seed=0), noise=0.1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = girih.explore(dgn, dgn().sample((5,)), pathlib.Path(folder, "page.html"))
        ...     found.path.stat().st_size < 200_000, found.payload["rows"]["count"]
        (True, 5)
    """
    wanted = Wanted(latents, beside, columns, image_shape)
    explorer = explorer_of(model, data, wanted)
    if path is not None:
        explorer.save(path)
    return explorer


def explorer_of(model: object, data: object, wanted: Wanted) -> Explorer:
    """The page that `explore` writes."""
    if isinstance(model, TableModel):
        from girih.explorer.table import table_payload

        return Explorer(table_payload(model, data, wanted))
    return Explorer(latent_payload(model, data, wanted))
