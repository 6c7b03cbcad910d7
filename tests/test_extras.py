"""What runs without the extras, and what the errors say of one that is missing.

Each check runs in a process of its own, in which every package but those that the core brings is out of reach.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import numpy as np
import pytest

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
OF_EXTRAS = {"matplotlib", "networkx", "numba", "pandas", "pyarrow", "zuko", "lightning", "mlxtend", "huggingface_hub"}

FENCE = """
import json, sys

class Fence:  # in front of all finders: what is blocked is as if it were not installed
    def __init__(self, finders):
        self.finders = finders

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            return None
        found = (finder.find_spec(name, path, target) for finder in self.finders)
        return next((spec for spec in found if spec is not None), None)

    def find_distributions(self, context):
        found = sys.modules["importlib.metadata"].MetadataPathFinder.find_distributions(context)
        return (one for one in found if one.metadata["Name"].lower() not in BLOCKED)

sys.meta_path[:] = [Fence(sys.meta_path[:])]
"""

CORE = """
import pathlib, tempfile, warnings
import numpy as np, torch, girih
from girih.cli import main

X = np.stack([np.linspace(-1, 1, 40), np.linspace(-1, 1, 40) ** 2], 1)
net = girih.mlp([1, 4, 2], seed=0)
dgn = girih.DGN(net, noise=0.1)
out = {"log_prob": bool(dgn().log_prob(X).isfinite().all()), "cells": len(girih.Partition(net))}
out["posterior"] = list(dgn.posterior(X).mean.shape)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # four iterations do not converge
    est = girih.DGNEstimator(hidden=(4,), max_iter=4, n_init=1, random_state=0).fit(X)
with tempfile.TemporaryDirectory() as folder:
    girih.save(est, pathlib.Path(folder, "model"))
    out["saved"] = bool((girih.load(pathlib.Path(folder, "model")).score_samples(X) == est.score_samples(X)).all())
    np.save(pathlib.Path(folder, "rows.npy"), X)
    out["rows"] = list(girih.datasets.load(pathlib.Path(folder, "rows.npy")).shape)
    sys.argv = ["girih", "score", f"{folder}/model", f"{folder}/rows.npy", "--json", "--out", f"{folder}/scores"]
    try:
        main()
    except SystemExit as end:
        out["score"] = [end.code, len(pathlib.Path(folder, "scores", "scores.csv").read_text().splitlines())]
out["volume"] = bool(girih.geometry.log_volume(girih.geometry.enumerate_cells(net)).values.isfinite().all())
out["toy"] = list(girih.datasets.load("circle", n=5).shape) + list(girih.datasets.load("digits").shape)
print(json.dumps(out))
"""

PLANES = """
import torch, girih
from girih.gaussian import prepared

found = [prepared.kernels() is not None]
for S in (2, 3):
    dgn = girih.DGN(girih.mlp([S, 5, 4], seed=0), noise=0.1)
    x = dgn().sample((20,), seed=0) * torch.linspace(1.0, 9.0, 20, dtype=torch.float64)[:, None]
    x[0, 1] = torch.nan
    log_p = dgn().log_prob(x)
    log_p.sum().backward()
    found.append([log_p.tolist(), dgn.noise.grad.item(), dgn.posterior(x).mean.tolist()])
print(json.dumps(found))
"""

TRAINED = """
import numpy as np, girih

X = np.stack([np.linspace(-1, 1, 40), np.linspace(-1, 1, 40) ** 2], 1)
vae = girih.vae.GaussVAE(girih.mlp([1, 4, 2], seed=0), seed=0)
vae.fit(X, max_epochs=2, progress=False)
girih.train(girih.DGN(girih.mlp([1, 4, 2], seed=0), noise=0.1), X, max_epochs=2, progress=False)
print(json.dumps(list(vae.embed(X)[0].shape)))
"""

MISSING = """
import pathlib, tempfile, girih
from girih.cli import main

part = girih.Partition(girih.mlp([1, 4, 2], seed=0))
folder = pathlib.Path(tempfile.mkdtemp())
(folder / "rows.csv").write_text("a,b\\n1,2\\n3,4\\n")
(folder / "rows.parquet").write_bytes(b"PAR1")

def fit():
    sys.argv = ["girih", "fit", "circle", "--json", "--out", str(folder / "out")]
    main()

CASES = {
    "plots": part.plot,
    "face of plots": lambda: girih.plots.plot_cells,
    "csv": lambda: girih.datasets.load(folder / "rows.csv"),
    "parquet": lambda: girih.datasets.load(folder / "rows.parquet"),
    "flows": lambda: girih.flows.RAD(2),
    "images": lambda: girih.datasets.load("mnist"),
    "graphs": part.graph,
    "hub": lambda: girih.hub.HubModel,
}
out = {}
for name, use in CASES.items():
    try:
        use()
    except girih.errors.MissingExtraError as error:
        out[name] = [str(error), error.name, isinstance(error, ValueError) and isinstance(error, ImportError)]
print(json.dumps(out))
try:
    fit()
except SystemExit as end:
    print(end.code)
"""


def of_the_core():
    """The packages that the core dependencies bring, by the names of their distributions."""
    found, left = set(), list(PROJECT["dependencies"])
    while left:
        requirement = left.pop()
        name = re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-").replace(".", "-")
        if name in found or "extra ==" in requirement:
            continue
        found.add(name)
        try:
            left += requires(name) or []
        except PackageNotFoundError:  # of another platform
            continue
    return found


def blocked(core):
    """The modules of everything else that is installed."""
    ours = {"girih", "girih_papers"}
    tops = packages_distributions()
    kept = {top for top, dists in tops.items() if any(d.lower().replace("_", "-") in core for d in dists)}
    return sorted(set(tops) - kept - ours)


def run(code, blocked_modules):
    text = f"BLOCKED = {set(blocked_modules)!r}\n{FENCE}{code}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def outside():
    """What a plain `pip install girih` does not bring; torch brings networkx, which girih does not count on."""
    return sorted({*blocked(of_the_core()), *OF_EXTRAS})


@pytest.fixture(scope="module")
def on_the_core(outside):
    """What `CORE` and `TRAINED` print at their ends: one after the other, since it takes seconds to import torch."""
    return [json.loads(line) for line in run(CORE + TRAINED, outside)[-2:]]


def test_the_core_has_seven_dependencies():
    names = {re.match(r"[\w-]+", line)[0] for line in PROJECT["dependencies"]}
    assert names == {"torch", "numpy", "scipy", "scikit-learn", "safetensors", "rich", "typer"}


def test_all_and_dev_hold_every_extra():
    extras = PROJECT["optional-dependencies"]
    assert "girih[all]" in extras["dev"]
    named = set(re.findall(r"[\w-]+", extras["all"][0].partition("[")[2]))
    assert named == set(extras) - {
        "all",
        "dev",
        "docs",
        "benchmarks",
        "browser",
    }  # whose rivals and tools no user needs


def test_models_partitions_em_and_saving_run_on_the_core(on_the_core):
    assert on_the_core[0] == {
        "log_prob": True,
        "cells": 5,
        "posterior": [40, 1],
        "saved": True,
        "rows": [40, 2],
        "score": [0, 41],
        "volume": True,
        "toy": [5, 2, 1797, 64],
    }


def test_gradient_training_runs_on_the_core(on_the_core):
    assert on_the_core[1] == [40, 1]


def test_planes_and_spaces_need_no_compiled_code(outside):
    fast, *compiled = json.loads(run(PLANES, [])[-1])
    slow, *plain = json.loads(run(PLANES, outside)[-1])
    assert not slow
    assert fast or importlib.util.find_spec("numba") is None
    for ours, theirs in zip(compiled, plain, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert np.allclose(one, other, rtol=1e-11, atol=1e-11)


def test_a_model_loads_nothing_but_the_core():
    code = "import girih; girih.DGN(girih.mlp([1, 4, 2], seed=0), noise=0.1)\nprint(json.dumps(sorted(sys.modules)))"
    loaded = {name.partition(".")[0] for name in json.loads(run(code, [])[-1])}
    assert not loaded & OF_EXTRAS


def test_a_missing_extra_is_named(outside):
    *_, table, failed, code = run(MISSING, outside)
    found = json.loads(table)
    expected = {
        "plots": ("matplotlib", "plots"),
        "face of plots": ("matplotlib", "plots"),
        "csv": ("pandas", "tables"),
        "parquet": ("pandas", "tables"),
        "flows": ("zuko", "flows"),
        "images": ("mlxtend", "images"),
        "graphs": ("networkx", "graphs"),
        "hub": ("huggingface_hub", "hub"),
    }
    assert set(found) == set(expected)
    for name, (package, extra) in expected.items():
        message, module, typed = found[name]
        assert f"needs the package {package}" in message and f'pip install "girih[{extra}]"' in message, name
        assert module.partition(".")[0] == package and typed
    # the command says so before it fits anything
    assert 'pip install "girih[plots]"' in json.loads(failed)["error"] and code == "2"
