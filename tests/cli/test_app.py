"""info, datasets, reproduce, help, version, and how fast the command starts."""

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import girih as library
from girih.cli import options


def test_version_and_help(girih):
    assert girih("--version").out == f"girih {library.__version__}\n"
    listed = girih("--help").out
    for name in ("fit", "score", "sample", "impute", "info", "datasets", "reproduce"):
        assert re.search(rf"\b{name}\b", listed) and girih(name, "--help").code == 0
    assert girih().code == 2 and "Usage" in girih().out


def test_python_m_girih():
    done = subprocess.run([sys.executable, "-m", "girih", "info", "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["girih"] == library.__version__ and done.stderr == ""


def test_the_command_itself_imports_nothing_slow():
    code = """
import sys, types, pathlib, importlib.util
spec = importlib.util.find_spec("girih")
package = types.ModuleType("girih")
package.__path__ = list(spec.submodule_search_locations)  # the commands alone, without girih/__init__.py
sys.modules["girih"] = package
import girih.cli
print([name for name in ("torch", "numpy", "matplotlib", "pandas", "sklearn", "lightning") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_info(girih, fitted, images):
    facts = girih("info", "--json").json
    assert {"girih", "python", "torch", "numpy", "threads"} <= set(facts)
    facts = girih("info", fitted / "fit", "--json").json
    assert facts["columns"] == ["height", "income", "ratio"] and facts["output_dim"] == 3 and facts["cells"] == 4
    assert facts["layers"] == ["affine 1 -> 3", "kink with slope 0.1", "affine 3 -> 3"]
    shown = girih("info", fitted / "fit").out
    assert re.search(r"noise +diagonal", shown) and re.search(r"columns +height, income, ratio", shown)
    assert girih("info", images[0] / "fit", "--json").json["image_shape"] == [8, 8]


def test_info_of_a_bare_model(girih, tmp_path):
    library.save(library.DGN(library.mlp([1, 3, 2], seed=0), noise=0.25), tmp_path / "m")
    facts = girih("info", "m", "--json").json
    assert facts["noise_deviation"] == 0.5 and facts["nll_per_row"] is None


def test_datasets(girih):
    listed = girih("datasets", "--json").json["datasets"]
    assert "circle" in listed and "mnist" in listed and "circle" in girih("datasets").out


def test_reproduce_lists(girih):
    from girih_papers import registry

    listed = girih("reproduce", "--list", "--json").json
    assert listed == {"reproductions": registry.names(), "costs": registry.costs()}
    shown = " ".join(girih("reproduce", "--list").out.split())
    assert all(name in shown for name in registry.names())
    assert "(10 s; --quick 5 s)" in shown and "(5 h; --quick 7 s; 5,000 digits come along;" in shown


LINE = {"what": "NLL", "unit": "nats", "ours": "0.5", "paper": "0.4", "verdict": "within"}


@pytest.fixture
def stand_in(monkeypatch):
    """A registry whose only reproduction writes two files."""
    from girih_papers import registry

    calls = []

    def run(name, out, quick, seed, progress, changes, home):
        assert home == Path("o") or home == Path("girih-out/em-circle")
        calls.append((name, quick, seed, changes))
        warnings.warn("slow today", stacklevel=1)
        result = {"nll": 0.5, "curve": [1.0, float("nan")], "beside_the_paper": [LINE]}
        (out / "result.json").write_text("{}")
        (out / "figure.png").write_bytes(b"")
        return result

    monkeypatch.setattr(registry, "names", lambda: {"em-circle": "EM against VAE"})
    monkeypatch.setattr(registry, "run", run)
    monkeypatch.setattr(registry, "options_of", lambda name, quick, changes: {})
    return calls


def test_reproduce(girih, stand_in):
    done = girih("reproduce", "em-circle", "--quick", "--seed", 3, "--out", "o", "--json")
    assert done.code == 0 and stand_in == [("em-circle", True, 3, {})]
    assert done.json == {
        "name": "em-circle",
        "out": "o",
        "pictures": ["figure.png"],
        "result": {"nll": 0.5, "curve": [1.0, None], "beside_the_paper": [LINE]},
    }
    assert done.err == "note: slow today\n"
    shown = girih("reproduce", "em-circle").out
    assert "Numbers:  girih-out/em-circle/result.json" in shown and re.search(r"nll +0.5", shown)
    assert re.search(r"NLL \(nats\) +0\.5 +0\.4 +within", shown) and "other settings" not in shown


def test_a_quick_reproduction_shows_no_number_as_if_it_meant_something(girih, stand_in):
    shown = girih("reproduce", "em-circle", "--quick", "--set", "epochs=3").out
    assert "A smoke run" in shown and not re.search(r"nll +0.5", shown)
    assert "With other settings than the paper's: epochs = 3." in shown


def test_reproduce_says_how_to_install_the_papers(girih, monkeypatch):
    monkeypatch.setitem(sys.modules, "girih_papers", None)  # as if it were not installed
    for arguments in (["--list"], ["em-circle"]):
        done = girih("reproduce", *arguments)
        assert done.code == 2 and "`make papers`" in done.error and "`pip install ./papers`" in done.error


def test_reproduce_with_other_settings(girih, stand_in):
    assert girih("reproduce", "em-circle", "--set", "epochs=30", "--set", "widths=8,16").code == 0
    assert stand_in[0][3] == {"epochs": "30", "widths": "8,16"}
    done = girih("reproduce", "em-circle", "--set", "epochs")
    assert done.code == 2 and "--set takes NAME=VALUE" in done.error


@pytest.mark.parametrize(
    ("name", "message"),
    [("em-circle", "em-circle has no settings to change"), ("mas-angles", "no setting 'epochs'; known are")],
)
def test_settings_that_are_not_there(girih, tmp_path, name, message):
    done = girih("reproduce", name, "--set", "epochs=30", "--out", tmp_path / "o")
    assert done.code == 2 and message in done.error and not (tmp_path / "o").exists()


@pytest.mark.parametrize("arguments", [["em-circel"], []])
def test_reproduce_without_a_known_name_lists_them(girih, stand_in, arguments):
    done = girih("reproduce", *arguments)
    assert done.code == 2 and "em-circle" in done.error and not stand_in


def test_threads_are_put_back():
    import sklearn.cluster  # noqa: F401, whose threads are bounded too
    import torch
    from threadpoolctl import threadpool_info

    def pools():
        return [pool["num_threads"] for pool in threadpool_info()]

    before, all_before = torch.get_num_threads(), pools()
    with options.compute_threads(10, asked=2):
        assert torch.get_num_threads() == 2
    with pytest.raises(KeyError), options.compute_threads(10):
        assert torch.get_num_threads() == 1 and set(pools()) == {1}
        raise KeyError
    assert torch.get_num_threads() == before and pools() == all_before


def test_progress_as_lines_of_json(girih, tmp_path):
    done = girih(
        "fit",
        "circle",
        "--model",
        "dgn",
        "--hidden",
        4,
        "--max-iter",
        3,
        "--out",
        "o",
        "--progress",
        "json",
        "--no-explorer",
    )
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in done.err.splitlines() if line.startswith("{")]
    assert lines and all(set(line) == {"step", "done", "total", "numbers", "seconds"} for line in lines)
    done = [line["done"] for line in lines if line["step"] == lines[0]["step"]]
    assert done == sorted(done)
