"""A table of any container with fewer columns, or with more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from girih._extras import require
from girih.tables.frames import Name


def selected(whole: Any, places: Sequence[int], names: Sequence[Name]) -> Any:
    """Some columns of an array or a tensor by their places, of a frame by their names."""
    if isinstance(whole, (np.ndarray, torch.Tensor)):
        return whole if len(places) == whole.shape[1] else whole[:, list(places)]
    if _pandas(whole):
        return whole[list(names)]
    nw = require("narwhals", "tables")
    return nw.to_native(nw.from_native(whole, eager_only=True).select([str(name) for name in names]))


def filled(whole: Any, place: int, name: Name) -> Any:
    """The table with 0 in place of the holes of one column."""
    if isinstance(whole, torch.Tensor):
        whole = whole.clone()
        whole[:, place] = whole[:, place].nan_to_num(0.0)
        return whole
    if isinstance(whole, np.ndarray):
        whole = whole.copy()
        whole[[value is None or value != value for value in whole[:, place].tolist()], place] = 0.0
        return whole
    if _pandas(whole):
        whole = whole.copy()
        whole[name] = whole[name].where(whole[name].notna(), 0.0).infer_objects()
        return whole
    nw = require("narwhals", "tables")
    frame = nw.from_native(whole, eager_only=True)
    values = [0.0 if value is None or value != value else value for value in frame[str(name)].to_list()]
    series = nw.new_series(str(name), values, backend=frame.implementation)
    return nw.to_native(frame.with_columns(series))


def with_flags(whole: Any, flags: NDArray[np.bool_], names: Sequence[str]) -> Any:
    """The table with columns of booleans `(N, F)` appended; as 0 and 1 in arrays."""
    if isinstance(whole, torch.Tensor):
        return torch.cat((whole, torch.as_tensor(flags).to(whole.dtype)), 1)
    if isinstance(whole, np.ndarray):
        return np.hstack((whole, flags.astype(whole.dtype)))
    if _pandas(whole):
        pd = require("pandas", "tables")
        return pd.concat((whole, pd.DataFrame(flags, columns=list(names), index=whole.index)), axis=1)
    nw = require("narwhals", "tables")
    frame = nw.from_native(whole, eager_only=True)
    more = [nw.new_series(n, f.tolist(), backend=frame.implementation) for n, f in zip(names, flags.T, strict=True)]
    return nw.to_native(frame.with_columns(*more))


def _pandas(whole: Any) -> bool:
    return type(whole).__module__.partition(".")[0] == "pandas"
