"""One of several processes of three fits, the last of which one of them leaves; see `test_two_processes`."""

from __future__ import annotations

import json
import os
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import girih
from effort import FEWEST, try_few_settings
from girih.em import streamed
from girih.tables import choice, fitter
from girih.tables import streamed as tables

LEAVES = 7  # the iteration at which the last process leaves


def few_rows(patch: pytest.MonkeyPatch) -> None:
    """Samples that are smaller than the data, and few settings."""
    try_few_settings(patch, **FEWEST)
    for module in (choice, fitter):
        patch.setattr(module, "SCREENED", 100)
    patch.setattr(streamed, "SAMPLE", 150)
    for name, value in {"SAMPLE": 200, "SAMPLED": 150, "HELD_OUT": 50}.items():
        patch.setattr(tables, name, value)


def fit_generator(folder: Path, checkpoint: Path | None = None) -> dict[str, list[float]]:
    """The numbers of a fit by EM."""
    dgn = girih.DGN(girih.mlp([1, 3, 2], seed=0), noise=0.3)
    options = {"n_init": 1, "max_iter": 6, "tol": 0.0, "progress": False, "checkpoint_seconds": 0.0}
    result = girih.em.fit_em(dgn, folder / "data", checkpoint=checkpoint, **options)
    return {"curve": result.curve.tolist(), "parameters": torch.cat([p.flatten() for p in dgn.parameters()]).tolist()}


def fit_table(folder: Path) -> dict[str, list[float]]:
    """The numbers of a fit of a table."""
    model = girih.TableModel(random_state=0).fit(folder / "data")
    parts = [part.flatten() for one in model.members_ for part in (one.mixture.maps, one.mixture.noise)]
    return {"curve": [model.held_out_score_], "parameters": torch.cat(parts).tolist()}


def leave(patch: pytest.MonkeyPatch) -> None:
    """End this process without a word at an iteration."""
    evaluate, count = streamed.StreamedProblem.evaluate, iter(range(1, 1000))

    def evaluate_or_leave(problem: streamed.StreamedProblem, index: torch.Tensor | None = None) -> object:
        if next(count) == LEAVES:
            os._exit(3)
        return evaluate(problem, index)

    patch.setattr(streamed.StreamedProblem, "evaluate", evaluate_or_leave)


def fits(folder: Path, leaves: bool) -> dict[str, object]:
    """The numbers of the three fits, and the error of the last one; written down before this process leaves."""
    with pytest.MonkeyPatch.context() as patch:
        few_rows(patch)
        found: dict[str, object] = {"generator": fit_generator(folder), "table": fit_table(folder)}
        if leaves:
            (folder / f"{dist.get_rank()}.json").write_text(json.dumps(found))
            leave(patch)
        try:
            fit_generator(folder, folder / "run.ckpt")
        except girih.errors.GirihError as error:
            found["error"] = f"{type(error).__name__}: {error}"
    return found


def main() -> None:
    folder, rank, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    meeting, patience = f"file://{folder}/meeting", timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size, timeout=patience)
    try:
        found = fits(folder, leaves=rank == size - 1)
    finally:
        dist.destroy_process_group()  # its threads, left to the interpreter's end, sometimes abort the process
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
