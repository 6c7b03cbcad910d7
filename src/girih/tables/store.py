"""What a fitted `TableModel` is on disk: tensors by name and values that JSON has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from girih.errors import ModelFileError
from girih.tables.basis import Basis
from girih.tables.columns import Columns
from girih.tables.member import Ensemble, Member
from girih.tables.mixture import Mixture
from girih.tables.model import TableModel
from girih.tables.scales import Scales
from girih.tables.setting import Setting
from girih.tables.unseen import Unseen

_BASIS = ("constant", "slope", "kinky")
_MIXTURE = ("weights", "maps", "noise")
_SCALES = ("bent", "origin", "unit", "centre", "spread")
_BEST, _CURVE = "best", "curve"  # beside the members, which are numbered
_UNSEEN = ("unseen.keys", "unseen.folds")
_KINDS = {"full", "diagonal", "spherical", "low_rank"}


def table_parts(model: TableModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a model, and the rest as plain values.

    Raises:
        ModelFileError: it is not fitted.
    """
    if not hasattr(model, "columns_"):
        raise ModelFileError("the table model is not fitted; call fit before save")
    single = model.best_ is model
    tensors = {"weights": model._ensemble.weights}
    for place, member in enumerate(model.members_):
        tensors |= _member_parts(member, f"{place}.")
    if not single:
        tensors |= _member_parts(model.best_.members_[0], f"{_BEST}.")
    if model._curve is not None:
        tensors |= _member_parts(model._curve, f"{_CURVE}.")
    tensors |= dict(zip(_UNSEEN, (model._unseen.keys, model._unseen.folds), strict=True))
    seed = model.random_state
    config: dict[str, Any] = {
        "parameters": {
            "kinds": None if model.kinds is None else [[name, kind] for name, kind in model.kinds.items()],
            "n_folds": None if model.n_folds is None else int(model.n_folds),
            "random_state": int(seed) if isinstance(seed, (int, np.integer)) else None,
            "verbose": int(model.verbose),
        },
        "columns": model.columns_.to_config(),
        "members": len(model.members_),
        "folds": model._unseen.number,
        "single": single,
        "setting": asdict(model.best_.setting_),
        "best_score": model.best_.held_out_score_,
    }
    if not single:
        config |= {"held_out_score": model.held_out_score_, "cv_results": model.cv_results_}
    return tensors, {"table": config}


def table_from(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> TableModel:
    """The model that `table_parts` took apart.

    Raises:
        ModelFileError: the parts do not belong together.
    """
    found = config["table"]
    parameters = dict(found["parameters"])
    if parameters["kinds"] is not None:
        parameters["kinds"] = {name: kind for name, kind in parameters["kinds"]}
    columns = Columns.from_config(found["columns"])
    count, single = found["members"], found["single"]
    _need(type(count) is int and 1 <= count <= len(tensors) and type(single) is bool, "its number of members")
    members = tuple(_member_from(tensors, f"{place}.", columns) for place in range(count))
    weights = tensors["weights"]
    positive = bool((weights >= 0.0).all()) and abs(float(weights.sum()) - 1.0) < 1e-9
    _need(weights.shape == (count,) and weights.dtype == torch.float64 and positive, "the weights of its members")
    setting = _setting(found["setting"])
    model = TableModel(**parameters)
    ensemble = Ensemble(members, weights)
    curve = _member_from(tensors, f"{_CURVE}.", columns).settled() if f"{_CURVE}.maps" in tensors else None
    model._set(columns, ensemble)
    model._curve = curve
    model._unseen = _unseen_from(tensors, found.get("folds", 1), count)
    if single:
        _need(count == 1, "its number of members")
        model.setting_, model.best_, model.held_out_score_ = setting, model, float(found["best_score"])
        return model
    model.best_ = model._single(_member_from(tensors, f"{_BEST}.", columns), setting)
    model.best_._curve, model.best_.held_out_score_ = curve, float(found["best_score"])
    model.held_out_score_ = float(found["held_out_score"])
    model.cv_results_ = {  # JSON has no NaN, as the ridge of plain mixtures is
        str(name): [math.nan if value is None else value for value in values]
        for name, values in found["cv_results"].items()
    }
    return model


def _member_parts(member: Member, prefix: str) -> dict[str, Tensor]:
    mixture = member.mixture
    parts = {f"basis.{name}": getattr(mixture.basis, name) for name in _BASIS}
    parts["basis.kinks"] = mixture.basis.edges[1:-1]  # the ends are infinite, which no file holds
    parts |= {name: getattr(mixture, name) for name in _MIXTURE}
    parts |= {f"tables.{place}": table for place, table in enumerate(mixture.tables)}
    if mixture.own is not None:
        parts["own"] = mixture.own
    parts |= {f"scales.{name}": getattr(member.scales, name) for name in _SCALES}
    return {f"{prefix}{name}": tensor for name, tensor in parts.items()}


def _member_from(tensors: Mapping[str, Tensor], prefix: str, columns: Columns) -> Member:
    held = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    weights, maps, noise = (held[name] for name in _MIXTURE)
    kinks = held["basis.kinks"]
    (K, D), F, J = maps.shape[:2], maps.shape[-1], len(kinks)
    levels = columns.levels
    shapes: dict[str, tuple[int, ...]] = {
        "weights": (K,), "maps": (K, D, F), "noise": (K, D, D), "own": (K, D),
        "basis.kinks": (J,), "basis.constant": (J + 1, F), "basis.slope": (J + 1, F), "basis.kinky": (F,),
    }  # fmt: skip
    shapes |= {f"tables.{place}": (K, size) for place, size in enumerate(levels)}
    shapes |= {f"scales.{name}": (len(columns.width),) for name in _SCALES}
    _need(K > 0 and set(held) | {"own"} == set(shapes), "the parts of a member")
    for name, tensor in held.items():
        kind = torch.bool if name == "scales.bent" else torch.float64
        _need(tensor.shape == shapes[name] and tensor.dtype == kind, f"{prefix}{name}")
    tables = tuple(held[f"tables.{place}"] for place in range(len(levels)))
    for table in (weights[None], *tables):
        sums = (table.sum(1) - 1.0).abs()
        _need(bool((table >= 0.0).all()) and bool((sums < 1e-6).all()), f"the probabilities of {prefix}")
    positive = all(bool((held[f"scales.{name}"] > 0.0).all()) for name in ("unit", "spread"))
    _need(positive and bool((kinks.diff() > 0.0).all()), f"the scales or kinks of {prefix}")
    _need(bool((torch.linalg.cholesky_ex(noise).info == 0).all()), f"{prefix}noise")
    end = kinks.new_full((1,), torch.inf)
    basis = Basis(torch.cat((-end, kinks, end)), *(held[f"basis.{name}"] for name in _BASIS))
    scales = Scales(*(held[f"scales.{name}"] for name in _SCALES))
    return Member(Mixture(basis, weights, maps, noise, tables, held.get("own")), scales)


def _unseen_from(tensors: Mapping[str, Tensor], number: Any, members: int) -> Unseen:
    """Which rows were held out where; files of before there was one have nothing."""
    if _UNSEEN[0] not in tensors:
        return Unseen.nothing()
    keys, folds = (tensors[name] for name in _UNSEEN)
    whole = keys.dtype == folds.dtype == torch.long and keys.ndim == 1 and keys.shape == folds.shape
    fits = type(number) is int and number >= 1 and members % number == 0
    _need(whole and fits and bool(((folds >= 0) & (folds < number)).all()), "its folds")
    return Unseen(keys, folds, number)


def _setting(values: Mapping[str, Any]) -> Setting:
    setting = Setting(**values)
    whole = all(type(value) is int for value in (setting.components, setting.rank, setting.kinks))
    _need(whole and setting.kind in _KINDS, "the setting of the best model")
    return setting


def _need(holds: bool, what: str) -> None:
    if not holds:
        raise ModelFileError(f"{what} cannot be of one table model")
