"""The wheel: that it builds, holds all that the package reads, and runs where nothing else is installed."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUN = """
import numpy as np, girih

assert "site-packages" in girih.__file__, girih.__file__
net = girih.mlp([2, 6, 3], seed=0)
assert len(girih.Partition(net)) > 1
girih.explore(net, path="page.html")
assert girih.DGN(net, noise=0.1)().log_prob(np.zeros((2, 3))).isfinite().all()
"""


def pip(*arguments, python=sys.executable):
    subprocess.run([python, "-m", "pip", "--disable-pip-version-check", "--quiet", *map(str, arguments)], check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    return next(folder.glob("*.whl"))


def test_it_holds_every_file_of_the_package(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "src" / "girih"
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    missing = {str(Path("girih") / path.relative_to(package)) for path in files} - names
    assert not missing and len(files) > 200
    assert not [name for name in names if name.startswith("tests")]


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["", "[tables,plots]"])
def test_it_runs_in_a_clean_environment(wheel, extra, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip("install", "--constraint", ROOT / "constraints.txt", f"{wheel}{extra}", python=python)
    subprocess.run([python, "-c", RUN], check=True, cwd=tmp_path)
    done = subprocess.run([python.parent / "girih", "--help"], check=True, capture_output=True, text=True, cwd=tmp_path)
    assert "fit" in done.stdout
    assert (tmp_path / "page.html").stat().st_size > 10_000
    (tmp_path / "rows.csv").write_text("a,b\n" + "\n".join(f"{k},{k * k % 7}" for k in range(40)))
    command = [python.parent / "girih", "fit", "rows.csv", "--out", "out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    if extra:
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out" / "report.html").exists()
    else:
        assert done.returncode != 0 and 'pip install "girih[' in done.stderr and len(done.stderr.splitlines()) <= 3
