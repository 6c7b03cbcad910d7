"""Large partitions: patterns as bits, and a limit on memory that is kept before it is reached."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import girih
from girih.errors import CellLimitError, ParameterError
from girih.networks import Maxout
from girih.partition.codes import Packing

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "partition.py"


def layers():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(2, 70), nn.ReLU(), nn.Linear(70, 12), Maxout(3), nn.Hardtanh(), nn.Linear(4, 1)
    ).double()


def test_packed_codes_come_back_and_keep_their_order():
    trace = girih.trace(layers())
    codes = trace.pattern(torch.randn(500, 2, dtype=torch.float64)).numpy()
    packing = Packing(trace.steps)
    packed = packing.pack(codes)
    assert packed.dtype == np.uint8 and packed.shape == (500, 9 + 4 + 4)
    assert (packing.unpack(packed) == codes).all()
    assert (packing.unpack(np.unique(packed, axis=0)) == np.unique(codes, axis=0)).all()
    assert packing.unpack(packed[:0]).shape == (0, 78)


def test_patterns_are_those_of_points_inside():
    part = girih.Partition(layers())
    z = part.interior
    assert part.patterns.dtype == torch.int8 and part.patterns.shape == (len(part), part.trace.hidden_units)
    assert torch.equal(part.patterns, part.trace.pattern(z))
    assert torch.equal(part.locate(z), torch.arange(len(part)))


def test_a_slice_is_the_plane_of_the_whole():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 65), nn.LeakyReLU(0.1), nn.Linear(65, 70), nn.ReLU(), nn.Linear(70, 2)).double()
    origin, u, v = torch.randn(3, 3, dtype=torch.float64)
    part = girih.Partition.slice(net, origin, u, v, domain=(-0.5, 0.5))
    z = origin + part.interior @ torch.stack((u, v))
    assert torch.equal(part.patterns, girih.trace(net).pattern(z))
    assert float(part.volume.sum()) == pytest.approx(1.0, abs=1e-12)


def test_memory_is_kept():
    net = girih.mlp([2, 256, 256, 2], activation="relu", seed=0)
    with pytest.raises(CellLimitError, match=r"takes more memory than memory = 0\.01 GB: .* smaller domain="):
        girih.Partition(net, memory=0.01, progress=False)
    with pytest.raises(CellLimitError, match=r"memory = 0\.001 GB"):
        girih.Partition.slice(girih.mlp([9, 64, 64, 2], seed=0), torch.zeros(9), *torch.eye(9)[:2], memory=1e-3)
    small = girih.mlp([2, 8, 2], seed=0)
    assert len(girih.Partition(small, memory=0.01)) == len(girih.Partition(small))
    for wrong in (0, -1.0, True, "1", float("nan")):
        with pytest.raises(ParameterError, match="memory must be a positive number of GB"):
            girih.Partition(small, memory=wrong)


@pytest.mark.slow
def test_a_slice_of_a_convolutional_decoder_in_one_gigabyte():
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, str(BENCHMARK), "--one", "slice", "[]"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["R"] == 22931 and found["GB"] < 1.0
