"""girih inspect: every kind of decoder, every S, and what goes wrong."""

import html
import json
import os

import numpy as np
import pandas as pd
import pytest
import torch

import girih as library
from girih.cli import decoders

CODE = """
import torch
import girih
print("loading")

def make(sizes, **options):
    return lambda: girih.mlp(sizes, activation="leaky_relu", seed=0, **options)

line, plane = make([1, 6, 4]), make([2, 6, 6, 3])
solid, deep, pixels = make([3, 4, 4, 5]), make([10, 12, 12, 20]), make([10, 12, 64])
wide = make([2, 6, 6, 9])
module = girih.mlp([2, 5, 4], seed=1).float()

class Reshaped(torch.nn.Module):
    def __init__(self):
        super().__init__()
        layers = torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(8, 48)
        self.body = torch.nn.Sequential(*layers)
    def forward(self, z):
        return self.body(z).reshape(-1, 3, 4, 4)

def needs(path, depth): return girih.mlp([2, 3, 2])
def optional(path=None, *more, **other): return girih.mlp([2, 3, 2], seed=0)
def state(): return {}
def fails(): raise RuntimeError("no weights here\\nat all")
def leaves(): raise SystemExit(3)
def curved(): return torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
def conv(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.ReLU())
def broken():
    net = girih.mlp([2, 3, 2], seed=0)
    net[0].weight.data.fill_(float("nan"))
    return net
class Several(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = girih.mlp([2, 5, 4], seed=1), torch.nn.Sigmoid()
    def forward(self, z):
        h = self.body(z)
        return {"logits": h, "probability": self.head(h)}
def several(): return Several()
def smooth(): return torch.nn.Sequential(girih.mlp([2, 5, 4], seed=1), torch.nn.Sigmoid(), torch.nn.Flatten())
def vae(): return girih.vae.VAE(girih.mlp([1, 4, 3], seed=0), noise=0.1, seed=0)
number = 3
"""
ALWAYS = {"report.html", "explorer.html", "inspection.json", "cells.csv", ".girih.json"}


@pytest.fixture
def code(tmp_path):
    """A module of decoders in the current folder, under a name that no other test has imported."""
    name = f"decoders_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(CODE)
    return name


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch):
    monkeypatch.setattr("girih.plots.style.DPI", 50)


@pytest.fixture
def no_pictures(monkeypatch):
    """For tests of numbers: pictures take most of the time."""
    from girih.cli import decoders

    monkeypatch.setattr(decoders, "draw_inspection", lambda *_: [])


def text(path):
    with open(path) as file:
        return file.read()


def run_code(page, monkeypatch):
    """Run the Python of a report, in the current folder."""
    lines = html.unescape(page.split("<pre>")[1].split("</pre>")[0])
    monkeypatch.syspath_prepend(".")
    exec(lines, {})
    return lines


def pictures(folder):
    return {name.removesuffix(".png") for name in os.listdir(folder) if name.endswith(".png")}


def log_volumes(net, S, n=3000):
    z = torch.randn(n, S, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    J = torch.func.vmap(torch.func.jacrev(net))(z).detach()
    return torch.linalg.svdvals(J).log().sum(1)


@pytest.mark.parametrize(
    ("name", "sizes", "drawn"),
    [
        ("line", [1, 6, 4], {"partition", "line_volumes", "log_volumes", "angles", "basis"}),
        ("plane", [2, 6, 6, 3], {"image", "singular_values", "log_volumes", "angles", "basis"}),
        ("solid", [3, 4, 4, 5], {"slices", "singular_values", "log_volumes", "disentanglement", "angles", "basis"}),
        ("deep", [10, 12, 12, 20], {"slices", "singular_values", "log_volumes", "disentanglement", "angles", "basis"}),
    ],
)
def test_a_function_of_the_user(girih, code, name, sizes, drawn, monkeypatch):
    done = girih("inspect", f"{code}:{name}", "--out", "o", "--cells", 400, "--json")
    assert done.code == 0, done.err
    numbers, S = done.json, sizes[0]
    assert numbers["decoder"]["latent_dim"] == S and numbers["decoder"]["output_dim"] == sizes[-1]
    assert numbers["cells"]["exact"] == (S <= 3)
    net = library.mlp(sizes, activation="leaky_relu", seed=0)
    values = log_volumes(net, S)
    part = numbers["log_volume"]
    error = (part["standard_error"] ** 2 + float(values.var()) / len(values)) ** 0.5
    assert abs(part["mean"] - float(values.mean())) < 5.0 * error
    assert pictures("o") == drawn and set(os.listdir("o")) == ALWAYS | {f"{one}.png" for one in drawn}
    written = json.loads(text("o/inspection.json"))
    assert written == {key: value for key, value in numbers.items() if key not in ("out", "report")}
    table = pd.read_csv("o/cells.csv")
    assert len(table) == numbers["cells"]["count"] and table["prior_mass"].sum() == pytest.approx(1.0)
    assert table["largest_angle_degrees"].notna().mean() > 0.9
    page = text("o/report.html")
    assert page.count("data:image/png;base64,") == len(drawn)
    assert ("(exact)" in page) == (S <= 3) and ("(sampled)" in page) == (S > 1)
    run_code(page, monkeypatch)
    assert "loading" in done.err  # what user code prints stays out of the JSON


def test_an_exported_file(girih, no_pictures, monkeypatch):
    net = library.mlp([2, 6, 3], activation="relu", seed=0)
    rows = torch.export.Dim("rows", min=2, max=1000)
    torch.export.save(
        torch.export.export(net, (torch.zeros(4, 2, dtype=torch.float64),), dynamic_shapes=({0: rows},)), "net.pt2"
    )
    done = girih("inspect", "net.pt2", "--json")
    assert done.code == 0, done.err
    assert done.json["out"] == "girih-out/net-inspect"
    assert done.json["cells"]["count"] == len(library.Partition(net))
    library_value = library.geometry.log_volume(library.Partition(net)).values
    table = pd.read_csv("girih-out/net-inspect/cells.csv")
    np.testing.assert_allclose(table["log_volume"], library_value, atol=1e-9)
    assert "net.pt2" in run_code(text("girih-out/net-inspect/report.html"), monkeypatch)


def test_a_fitted_model_with_its_prior_columns_and_pixels(girih, fitted, images, monkeypatch):
    done = girih("inspect", fitted / "fit", "--out", "o", "--json")
    assert done.code == 0, done.err
    model = library.load(fitted / "fit" / "model")
    assert done.json["cells"]["count"] == len(model.dgn_.partition)
    assert done.json["decoder"]["image_shape"] is None
    done = girih("inspect", images[0] / "fit", "--out", "i", "--json")
    assert done.json["decoder"]["image_shape"] == [8, 8] and {"samples", "basis"} <= pictures("i")
    net = library.mlp([2, 4, 3], seed=0)
    prior = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    library.save(library.DGN(net, noise=0.1, prior=prior), "m")
    done = girih("inspect", "m", "--out", "p", "--json")
    assert done.json["prior"]["covariance"] == prior.tolist()
    expected = library.geometry.entropy(library.geometry.enumerate_cells(net, prior.double()))
    assert done.json["entropy"]["value"] == pytest.approx(expected.value, abs=1e-12)
    assert "model.prior" in run_code(text("p/report.html"), monkeypatch)


def test_a_file_a_module_and_a_class(girih, code, no_pictures, monkeypatch):
    os.makedirs("sub")
    os.rename(f"{code}.py", f"sub/{code}.py")
    done = girih("inspect", f"sub/{code}.py:plane", "--out", "a", "--json")
    assert done.json["decoder"]["latent_dim"] == 2
    run_code(text("a/report.html"), monkeypatch)
    os.rename(f"sub/{code}.py", f"{code}.py")
    assert girih("inspect", f"{code}.py:module", "--out", "a", "--json").json["decoder"]["latent_dim"] == 2
    assert girih("inspect", f"{code}:optional", "--out", "b").code == 0
    done = girih("inspect", f"{code}:Reshaped", "--out", "c", "--json")
    assert done.code == 0 and done.json["decoder"]["image_shape"] == [3, 4, 4]
    assert "it is inspected in eval mode" in done.err


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        ("pixels", None, ((8, 8), True)),
        ("pixels", "4x16", ((4, 16), False)),
        ("pixels", "none", (None, False)),
        ("wide", None, (None, False)),  # nine columns are no image
        ("Reshaped", None, ((3, 4, 4), False)),
        ("Reshaped", "4x4x3", ((4, 4, 3), False)),
    ],
)
def test_image_shapes(code, name, asked, expected):
    assert decoders.image_shape_of(decoders.load_decoder(f"{code}:{name}"), asked) == expected


def test_a_guessed_image_shape_is_told_and_old_pictures_go(girih, code):
    options = ("--out", "o", "--cells", 20)
    assert "drawn as 8x8 images" in girih("inspect", f"{code}:pixels", *options).err and "samples" in pictures("o")
    done = girih("inspect", f"{code}:pixels", *options, "--image-shape", "none")
    assert "drawn as" not in done.err and "samples" not in pictures("o")


def test_sampling_when_asked_or_needed_and_other_priors(girih, code, no_pictures):
    done = girih("inspect", f"{code}:plane", "--sample", "--cells", 300, "--seed", 4, "--out", "a", "--json")
    assert not done.json["cells"]["exact"] and done.json["cells"]["draws"] == 300
    again = girih("inspect", f"{code}:plane", "--sample", "--cells", 300, "--seed", 4, "--out", "b", "--json")
    assert again.json["log_volume"] == done.json["log_volume"] and again.json["angles"] == done.json["angles"]
    done = girih("inspect", f"{code}:plane", "--uniform", -1, 2, "--out", "a", "--json")
    uniform = {"kind": "uniform", "low": [-1, -1], "high": [2, 2], "entropy": pytest.approx(np.log(9))}
    assert done.json["prior"] == uniform and done.json["cells"]["exact"]
    done = girih("inspect", f"{code}:plane", "--max-cells", 5, "--cells", 300, "--out", "a")
    assert done.code == 0 and "more than 5 cells, so they were sampled" in done.err and "±" in done.out
    done = girih("inspect", f"{code}:plane", "--uniform", -1, 2, "--out", "a", "--json")
    assert done.json["prior"] == {
        "kind": "uniform",
        "low": [-1, -1],
        "high": [2, 2],
        "entropy": pytest.approx(np.log(9)),
    }
    done = girih("inspect", f"{code}:line", "--uniform", 0, 1, "--out", "a", "--json")
    net = library.mlp([1, 6, 4], activation="leaky_relu", seed=0)
    speed = torch.func.vmap(torch.func.jacrev(net))(torch.linspace(0, 1, 20001, dtype=torch.float64)[:, None])
    assert done.json["entropy"]["value"] == pytest.approx(float(speed.detach().norm(dim=1).log().mean()), abs=1e-3)
    done = girih("inspect", f"{code}:line", "--prior", 4.0, "--out", "a", "--json")
    assert done.json["prior"]["covariance"] == [[4.0]]


@pytest.mark.parametrize(
    ("decoder", "options", "message"),
    [
        ("absent.pt2", (), "there is no file absent.pt2"),
        ("damaged.pt2", (), "damaged.pt2 cannot be read as a torch.export file ("),
        ("net.onnx", (), "net.onnx cannot be read as an ONNX file"),
        ("net.pth", (), "a state dict or a pickled module is not enough"),
        (
            "whatever",
            (),
            "whatever is not there, and is not a .pt2 file (torch.export.save), an .onnx file, module:function, or",
        ),
        ("empty", (), "empty"),
        ("no_such_module:f", (), "there is no module 'no_such_module' in the current folder"),
        ("absent.py:f", (), "there is no file absent.py"),
        ("bad_import:f", (), "importing bad_import fails: ModuleNotFoundError: No module named 'not_installed'"),
        ("bad_syntax:f", (), "importing bad_syntax fails: SyntaxError"),
        ("{code}:plain", (), "has no 'plain'; did you mean 'plane'?"),
        ("{code}:number", (), "is a int; name a function that returns the torch.nn.Module"),
        ("{code}:needs", (), "needs arguments (path, depth); name a function that takes none"),
        ("{code}:state", (), "returned a dict; it must return the torch.nn.Module"),
        ("{code}:fails", (), "fails: RuntimeError: no weights here at all"),
        ("{code}:leaves", (), "fails: SystemExit: 3"),
        ("{code}:curved", (), "Tanh"),
        ("{code}:conv", (), "pass --latent-dim S"),
        ("{code}:several", (), "returns 2 tensors ('logits', 'probability')"),
        ("{code}:several", ("--output", "x"), "no output 'x'"),
        ("{code}:broken", (), "64 of 64 prior draws"),
        ("{code}:plane", ("--image-shape", "28x28"), "has 784 pixels, and the decoder has D = 3 outputs"),
        ("{code}:plane", ("--image-shape", "large"), "--image-shape takes HxW"),
        ("{code}:plane", ("--prior", -1), "--prior takes a positive variance, got -1"),
        ("{code}:plane", ("--uniform", 1, 1), "--uniform takes two finite numbers"),
        ("{code}:plane", ("--uniform", 0, 1, "--prior", 1), "exclude each other"),
    ],
)
def test_errors(girih, code, decoder, options, message):
    for name, text in {
        "damaged.pt2": "not a zip",
        "net.onnx": "",
        "net.pth": "",
        "bad_import.py": "import not_installed",
        "bad_syntax.py": "def f(:",
    }.items():
        with open(name, "w") as file:
            file.write(text)
    os.makedirs("empty")
    done = girih("inspect", decoder.format(code=code), *options, "--json")
    lines = [line for line in done.err.splitlines() if line.startswith("girih: error: ")]
    assert done.code == 2 and len(lines) == 1 and message in lines[0], done.err
    assert done.json == {"error": lines[0].removeprefix("girih: error: ")}
    assert not os.path.exists("girih-out") or not any(
        files for _, _, files in os.walk("girih-out") if "report.html" in files
    )


@pytest.mark.parametrize("options", [("--output", "logits"), ("--output", "0"), ("--until", "head")])
def test_one_output_or_what_goes_into_a_head(girih, code, no_pictures, monkeypatch, options):
    done = girih("inspect", f"{code}:several", *options, "--out", "o", "--json")
    assert done.code == 0, done.err
    assert done.json["cells"]["count"] == len(library.Partition(library.mlp([2, 5, 4], seed=1)))
    assert f"{options[0][2:]}=" in run_code(text("o/report.html"), monkeypatch)


@pytest.mark.parametrize(("name", "options"), [("several", ("--output", "probability")), ("smooth", ())])
def test_a_smooth_head_is_taken_off_and_said(girih, code, no_pictures, monkeypatch, name, options):
    done = girih("inspect", f"{code}:{name}", *options, "--out", "o", "--json")
    assert done.code == 0 and "the Sigmoid at the end is not piecewise affine" in done.err, done.err
    assert done.json["cells"]["count"] == len(library.Partition(library.mlp([2, 5, 4], seed=1)))
    assert "until=" in run_code(text("o/report.html"), monkeypatch)
    np.save("rows.npy", np.zeros((3, 4)))
    refused = girih("inspect", f"{code}:{name}", "rows.npy", *options, "--out", "p")
    assert refused.code == 2 and "whose Sigmoid was taken off" in refused.error


def test_rows_are_placed_and_scored(girih, code, no_pictures, monkeypatch):
    net = library.mlp([2, 6, 6, 3], activation="leaky_relu", seed=0)
    dgn = library.DGN(net, noise=0.05)
    x = dgn().sample((40,), seed=0)
    pd.DataFrame(x.numpy(), columns=["a", "b", "c"]).to_csv("rows.csv", index=False)
    done = girih("inspect", f"{code}:plane", "rows.csv", "--noise", 0.05, "--out", "o", "--json")
    assert done.code == 0, done.err
    known = dgn().log_prob(x).detach().numpy()
    table = pd.read_csv("o/rows.csv")
    assert table["log_p"].to_numpy() == pytest.approx(known, abs=1e-8)
    assert done.json["rows"]["nll"]["mean"] == pytest.approx(-known.mean(), abs=1e-8)
    cells = pd.read_csv("o/cells.csv")
    assert (cells["rows"].to_numpy() == np.bincount(table["cell"], minlength=len(cells))).all()
    assert "Cells with rows" in text("o/report.html")
    library.save(dgn, "model")
    again = girih("inspect", "model", "rows.csv", "--out", "p", "--json", "--rows", 10)
    assert again.json["rows"]["rows"] == 10 and again.json["rows"]["noise"]["from"] == "that of the fitted model"
    wrong = girih("inspect", f"{code}:plane", "rows.csv", "--drop", "a")
    assert wrong.code == 2 and "2 columns, and the decoder has D = 3 outputs" in wrong.error


def test_a_vae_is_measured_on_rows(girih, code, no_pictures):
    vae = library.vae.VAE(library.mlp([1, 4, 3], seed=0), noise=0.1, seed=0)
    np.save("rows.npy", vae.sample(12, seed=0).numpy())
    library.save(vae, "vae")
    for decoder in (f"{code}:vae", "vae"):
        done = girih("inspect", decoder, "rows.npy", "--out", "o", "--json", "--no-explorer")
        assert done.code == 0, done.err
        assert done.json["rows"]["gap"]["gap"] == pytest.approx(
            float(library.vae.gap(vae, vae.sample(12, seed=0)).gap.mean())
        )


def test_a_latent_dimension_can_be_told(girih, code, no_pictures):
    done = girih("inspect", f"{code}:conv", "--latent-dim", 2, "--out", "o", "--json")
    assert done.code == 0, done.err
    assert done.json["decoder"]["latent_dim"] == 2 and done.json["cells"]["count"] == 4


def test_the_report_of_a_fit_is_not_replaced(girih, fitted):
    done = girih("inspect", fitted / "fit", "--out", fitted / "fit")
    assert done.code == 2 and "choose another --out" in done.error


def test_the_table_and_the_help_say_what_is_exact(girih, code, no_pictures):
    done = girih("inspect", f"{code}:plane", "--out", "o")
    assert "Cells" in done.out and "(exact)" in done.out and "Report:   o/report.html" in done.out
    helped = " ".join(girih("inspect", "--help").out.split())
    assert "runs your code" in helped and "module:function" in helped
