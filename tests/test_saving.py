"""Saving never loses the last good model: real kills, full disks, and processes that save to one path."""

import errno
import os
import signal
import time

import numpy as np
import pytest
import torch

import girih
from effort import cases
from girih._staging import temporary_name
from kills import at_event, child, kill, names

pytestmark = pytest.mark.skipif(os.name == "nt", reason="kills by signal, and forks")


def model(seed):
    return girih.DGN(girih.mlp([1, 4, 2], seed=seed), noise=0.1 + seed)


def which(folder):
    """The seed of the model in a folder, which must be all of one seed."""
    found = girih.load(folder)
    seed = round(found.noise.item() - 0.1)
    assert torch.equal(found.net[0].weight, model(seed).net[0].weight)
    return seed


def disk_full():
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.fuzz
@pytest.mark.parametrize("old", [True, False], ids=["over a model", "anew"])
def test_a_kill_at_any_step_leaves_the_old_model_or_the_new_one(old, tmp_path):
    new, found = model(1), []
    for step in range(0, 60, cases(4, 1)):
        folder = tmp_path / f"model-{step}"
        if old:
            girih.save(model(0), folder)

        def work(step=step, folder=folder):
            at_event(step, folder, kill)
            girih.save(new, folder)

        status = child(work)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        try:
            found.append(which(folder))
        except girih.errors.ModelFileError:
            assert not old
            found.append(None)
        girih.save(model(2), folder)
        assert which(folder) == 2 and names(folder) == ["config.json", "model.safetensors"]
    first = 0 if old else None
    assert status == 0 and 8 < step < 59 and found == sorted(found, key=lambda seed: seed == 1)
    assert found[0] == first and found[-1] == 1


@pytest.mark.fuzz
def test_a_full_disk_at_any_step_leaves_the_old_model_or_the_new_one(tmp_path):
    failed = set()
    for step in range(0, 30, cases(3, 1)):
        folder = tmp_path / f"model-{step}"
        girih.save(model(0), folder)

        def work(step=step, folder=folder):
            at_event(step, folder, disk_full)
            try:
                girih.save(model(1), folder)
            except OSError:
                os._exit(3)

        status = child(work)
        found = which(folder)
        assert found == 1 if status == 0 else status == 3 and found in (0, 1)
        if status:
            failed.add(found)
        girih.save(model(2), folder)
        assert which(folder) == 2 and names(folder) == ["config.json", "model.safetensors"]
    assert 0 in failed


@pytest.mark.fuzz
def test_kills_at_random_moments(tmp_path):
    folder, rng = tmp_path / "model", np.random.default_rng(0)
    girih.save(model(0), folder)
    models = [model(0), model(1)]
    for _ in range(cases(20, 300)):
        pid = os.fork()
        if pid == 0:
            for turn in range(10**6):
                girih.save(models[turn % 2], folder)
        time.sleep(rng.uniform(0.0, 0.15))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert which(folder) in (0, 1)
    girih.save(model(2), folder)
    assert which(folder) == 2 and names(folder) == ["config.json", "model.safetensors"]


def _save_often(folder, seed, times):
    mine = model(seed)
    for _ in range(times):
        girih.save(mine, folder)


@pytest.mark.fuzz
def test_two_processes_may_save_to_one_path(tmp_path):
    """Five of 300 saves raised bare errors before. A third process reads all the while."""
    folder, times = tmp_path / "model", cases(40, 300)
    pids = []
    for seed in (0, 1):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                _save_often(folder, seed, times)
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    seen, running = set(), set(pids)
    while running:
        if (folder / "config.json").exists():
            seen.add(which(folder))
        for pid in list(running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                assert status == 0
                running.discard(pid)
    assert which(folder) in (0, 1) and seen <= {0, 1}
    assert names(folder) == ["config.json", "model.safetensors"]


def test_temporary_files_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path):
    folder = tmp_path / "model"
    girih.save(model(0), folder)
    dead = child(lambda: (folder / temporary_name("report.html")).write_text("half of it"))
    assert dead == 0 and len(names(folder)) == 3
    alive = folder / temporary_name("model")
    alive.mkdir()
    (folder / ".notes-girih.txt").write_text("mine")
    girih.save(model(1), folder)
    assert names(folder) == sorted([".notes-girih.txt", "config.json", "model.safetensors", alive.name])


def test_what_else_is_in_the_folder_stays(tmp_path):
    girih.save(model(0), tmp_path)
    (tmp_path / "README.md").write_text("mine")
    girih.save(model(1), tmp_path)
    assert which(tmp_path) == 1 and (tmp_path / "README.md").read_text() == "mine"


def test_a_folder_behind_a_link_is_written_to(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "disk")
    girih.save(model(1), tmp_path / "model")
    assert which(tmp_path / "disk") == 1 and (tmp_path / "model").is_symlink()


def test_a_model_that_girih_0_1_0_lost_is_named(tmp_path):
    girih.save(model(0), tmp_path / ".model-old-x1y2" / "old")
    with pytest.raises(girih.errors.ModelFileError, match=r"killed left .*\.model-old-x1y2/old; move it"):
        girih.load(tmp_path / "model")


def test_saved_files_have_the_permissions_of_others(tmp_path):
    def work():
        os.umask(0o027)
        girih.save(model(0), tmp_path / "model")

    assert child(work) == 0
    modes = [(tmp_path / "model" / name).stat().st_mode & 0o777 for name in names(tmp_path / "model")]
    assert modes == [0o640, 0o640] and (tmp_path / "model").stat().st_mode & 0o777 == 0o750
