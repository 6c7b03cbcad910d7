"""What is not as it was saved is refused by `ModelFileError`, and so is what stands in for a file."""

import json
import os
import shutil
import struct

import numpy as np
import pytest
import torch
from torch import nn

import girih
from effort import cases
from girih import io
from girih.errors import ModelFileError
from girih.flows import RAD, DGNFlow, RealNVP
from girih.gan import GAN
from girih.vae import CGBPEFVAE, CatVAE, GaussVAE, MixtureVAE

FILES = ("config.json", "model.safetensors")


def estimator(seed):
    X = girih.datasets.load("circle", n=20, seed=seed).X
    return girih.DGNEstimator(hidden=(3,), max_iter=30, tol=1e-2, n_init=1, init="random", random_state=seed).fit(X)


def table(seed):
    """Of two numbers and a category, with holes."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(24, 3))
    X[:, 2] = X[:, 0] > 0.0
    X[::7, 1] = np.nan
    return girih.TableModel(n_folds=2, random_state=seed).fit(X)


def seeded(seed, *build):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(*(make() for make in build)).double().eval()


def convolutional(seed):
    """Of most kinds of steps: convolutions, normalisation, upsampling, padding, slopes by channel."""
    return seeded(
        seed, lambda: nn.Linear(2, 8), nn.ReLU, lambda: nn.Unflatten(1, (2, 2, 2)),
        lambda: nn.ConvTranspose2d(2, 2, 2, stride=2), lambda: nn.BatchNorm2d(2), lambda: nn.PReLU(2),
        lambda: nn.Upsample(scale_factor=2, mode="bilinear"), lambda: nn.ConstantPad2d(1, 0.5),
        lambda: nn.Conv2d(2, 1, 3, groups=1), nn.Hardtanh, lambda: nn.AvgPool2d(2), lambda: nn.Flatten(),
    )  # fmt: skip


def maxima(seed):
    return seeded(seed, lambda: nn.Linear(2, 6), lambda: girih.networks.Maxout(2), lambda: nn.Linear(3, 2))


KINDS = {
    "dgn": lambda seed: girih.DGN(girih.mlp([1, 4, 2], seed=seed), noise=[0.1, 0.2 + seed]),
    "estimator": estimator,
    "table": table,
    "partition of a line": lambda seed: girih.Partition(girih.mlp([1, 5, 2], seed=seed)),
    "partition of a plane": lambda seed: girih.Partition(girih.mlp([2, 3, 2], seed=seed)),
    "convolutions": lambda seed: girih.DGN(convolutional(seed), noise=0.1),
    "partition with maxima": lambda seed: girih.Partition(maxima(seed)),
    "rad": lambda seed: RAD(2, transforms=2, hidden_features=(4,), seed=seed),
    "nvp": lambda seed: RealNVP(3, transforms=2, hidden_features=(4,), seed=seed),
    "generator flow": lambda seed: DGNFlow.square(2, depth=2, seed=seed),
    "gauss": lambda seed: GaussVAE([1, 4, 3], seed=seed),
    "mixture": lambda seed: MixtureVAE([1, 4, 3], components=2, seed=seed),
    "cat": lambda seed: CatVAE([2, 4, 3], categories=3, seed=seed),
    "cgbpef": lambda seed: CGBPEFVAE([1, 4, 3], seed=seed),
    "gan": lambda seed: GAN(convolutional(seed), hidden=(4,), seed=seed),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of each kind, and another of the same kind and shapes."""
    home = tmp_path_factory.mktemp("saved")
    for name, build in KINDS.items():
        for seed in (0, 1):
            girih.save(build(seed), home / name / str(seed))
    return home


def values(model):
    """Everything that a model holds: tensors as bytes, the rest as JSON."""
    kind, tensors, rest = io._parts(model)
    parts = {name: (str(t.dtype), tuple(t.shape), t.detach().numpy().tobytes()) for name, t in tensors.items()}
    return kind, parts, json.dumps(rest, sort_keys=True)


def check_refused_or_same(folder, expected):
    """Whether it was refused; any other error, and other values, fail."""
    try:
        model = girih.load(folder)
    except ModelFileError as error:
        assert "\n" not in str(error) and len(str(error)) < 1500
        return True
    assert values(model) == expected
    return False


def flip(raw, rng, count):
    raw = bytearray(raw)
    for at in rng.integers(8 * len(raw), size=count):
        raw[at // 8] ^= 1 << (at % 8)
    return bytes(raw)


def truncated(raw, rng):
    return raw[: rng.integers(len(raw))]


def lengthened(raw, rng):
    return raw + rng.bytes(int(rng.integers(1, 40)))


def moved(raw, rng):
    """A block of bytes where another was."""
    size = int(rng.integers(1, 64))
    a, b = rng.integers(max(1, len(raw) - size), size=2)
    return raw[:a] + raw[b : b + size] + raw[a + size :]


HARM = {
    "one bit": lambda raw, rng: flip(raw, rng, 1),
    "some bits": lambda raw, rng: flip(raw, rng, int(rng.integers(2, 9))),
    "truncated": truncated,
    "longer": lengthened,
    "a block of bytes": moved,
}


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_changed_is_refused_or_the_same(kind, saved, tmp_path):
    original, folder = saved / kind / "0", tmp_path / "model"
    expected = values(girih.load(original))
    rng = np.random.default_rng(list(KINDS).index(kind))
    raws = {name: (original / name).read_bytes() for name in FILES}
    refused = 0
    shutil.copytree(original, folder)
    tried = cases(25, 400)
    for i in range(tried):
        name, harm = FILES[i % 2], list(HARM.values())[(i // 2) % len(HARM)]
        (folder / name).write_bytes(harm(raws[name], rng))
        refused += check_refused_or_same(folder, expected)
        (folder / name).write_bytes(raws[name])
    assert refused > 0.8 * tried  # the others differ in blanks or between tensors
    assert not check_refused_or_same(folder, expected)


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", KINDS)
def test_every_flip_in_the_weights_is_refused(kind, saved, tmp_path):
    """The bits of tensors are all protected: 213 of 240 loaded silently before."""
    folder = tmp_path / "model"
    shutil.copytree(saved / kind / "0", folder)
    path, rng = folder / "model.safetensors", np.random.default_rng(5)
    raw = path.read_bytes()
    start = 8 + struct.unpack("<Q", raw[:8])[0]
    for _ in range(cases(20, 250)):
        path.write_bytes(raw[:start] + flip(raw[start:], rng, 1))
        with pytest.raises(ModelFileError, match="checksum"):
            girih.load(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_swapped_files_are_refused(kind, saved, tmp_path):
    """Two models of the same shapes."""
    for name in FILES:
        folder = tmp_path / name.replace(".", "-")
        shutil.copytree(saved / kind / "0", folder)
        shutil.copy(saved / kind / "1" / name, folder / name)
        with pytest.raises(ModelFileError, match="checksum"):
            girih.load(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_files_without_checksums_are_read(kind, saved, tmp_path):
    """As girih 0.1.0 wrote them; what it wrote is still checked for sense."""
    folder = tmp_path / "model"
    shutil.copytree(saved / kind / "0", folder)
    forget_checksums(folder)
    assert values(girih.load(folder)) == values(girih.load(saved / kind / "0"))
    # one of both without is no model of 0.1.0
    shutil.copy(saved / kind / "0" / "config.json", folder)
    with pytest.raises(ModelFileError, match="checksum"):
        girih.load(folder)


def forget_checksums(folder, change=lambda tensors: None, **config):
    """Write the files as girih 0.1.0 did."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(folder / "model.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"girih": json.dumps({"format": "girih-model"})})
    old = json.loads((folder / "config.json").read_text()) | config
    old.pop("sha256", None)
    (folder / "config.json").write_text(json.dumps(old, indent=2))


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", KINDS)
def test_models_without_checksums_load_or_are_refused(kind, saved, tmp_path):
    """Without checksums a changed number cannot be told, but nothing else than `ModelFileError` comes of it."""
    original, folder = saved / kind / "0", tmp_path / "model"
    shutil.copytree(original, folder)
    forget_checksums(folder)
    raws, rng = {name: (folder / name).read_bytes() for name in FILES}, np.random.default_rng(3)
    refused = 0
    for i in range(cases(25, 400)):
        name, harm = FILES[i % 2], list(HARM.values())[(i // 2) % len(HARM)]
        (folder / name).write_bytes(harm(raws[name], rng))
        try:
            girih.load(folder)
        except ModelFileError:
            refused += 1
        (folder / name).write_bytes(raws[name])
    assert refused


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(kind, value, saved, tmp_path):
    def spoil(tensors):
        name = max((n for n, t in tensors.items() if t.is_floating_point() and n != "domain"), key=str)
        tensors[name].view(-1)[0] = value

    folder = tmp_path / "model"
    shutil.copytree(saved / kind / "0", folder)
    forget_checksums(folder, spoil)
    with pytest.raises(ModelFileError, match=r"NaN or infinite numbers in .*restore it or fit again"):
        girih.load(folder)


def test_a_model_that_is_not_finite_is_not_saved(tmp_path):
    flow = RAD(2, transforms=1, hidden_features=(4,), seed=0)
    with torch.no_grad():
        next(flow.parameters()).fill_(float("nan"))
    with pytest.raises(ModelFileError, match="this RAD holds NaN"):
        girih.save(flow, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def change_steps(config, field, value):
    for step in config["network"]["steps"]:
        if field in step:
            step[field] = value
    if not any(field in step for step in config["network"]["steps"]):
        config["network"]["steps"][0][field] = value
        config["network"]["steps"][0]["kind"] = "maximum"


def change_map(config, kind, field, value):
    for step in config["network"]["steps"]:
        if step["kind"] == kind:
            step["map"][field] = value


def huge_pad(config):
    """All shapes agree, and no file could hold them."""
    (step,) = (s for s in config["network"]["steps"] if s.get("map", {}).get("function") == "pad")
    step["map"]["args"][0] = [10**7] * 4
    channels, height, width = step["shapes"][0]
    step["shape"] = [channels, height + 2 * 10**7, width + 2 * 10**7]


HUGE = {
    "features": ("rad", {"features": 10**15}),
    "context": ("rad", {"context": 10**15}),
    "widths": ("rad", lambda c: c["stages"][1].update(hidden=[10**6, 10**6])),
    "one width": ("nvp", lambda c: c["stages"][1].update(hidden=[10**12])),
    "pieces": ("rad", lambda c: c["stages"][1].update(pieces=10**12 + 1)),
    "negative widths": ("rad", lambda c: c["stages"][1].update(hidden=[-4])),
    "order": ("cgbpef", lambda c: c["options"].update(order=10**9)),
    "levels": ("cgbpef", lambda c: c["options"].update(levels=10**12)),
    "components": ("mixture", lambda c: c["options"].update(components=10**9)),
    "categories": ("cat", lambda c: c["options"].update(categories=10**12)),
    "latents": ("convolutions", lambda c: c["network"].update(latent=10**15)),
    "a selection": ("convolutions", lambda c: change_steps(c, "windows", 10**15)),
    "a kernel": ("convolutions", lambda c: change_map(c, "convolution", "options", {"options": {"stride": 10**12}})),
    "a negative stride": (
        "convolutions",
        lambda c: change_map(c, "convolution", "options", {"options": {"stride": -1}}),
    ),
    "no stride": ("convolutions", lambda c: change_map(c, "convolution", "options", {"options": {"stride": 0}})),
    "an image": ("convolutions", lambda c: change_map(c, "average", "args", [10**9, None, "bilinear"])),
    "a border": ("convolutions", lambda c: change_map(c, "average", "args", [[10**9] * 4, "constant"])),
    "a border of an image that fits": ("convolutions", huge_pad),
    "slopes": ("convolutions", lambda c: change_steps(c, "size", 10**12)),
    "shapes": ("convolutions", lambda c: change_steps(c, "shape", [10**6, 10**9])),
    "an output": ("convolutions", lambda c: c["network"].update(shape=[10**15])),
    "an index": ("convolutions", lambda c: c["network"].update(output=10**15)),
    "no categories": ("cat", lambda c: c["options"].update(categories=0)),
}


@pytest.mark.parametrize("case", HUGE)
def test_absurd_sizes_are_refused_before_memory_is_taken(case, saved, tmp_path):
    kind, change = HUGE[case]
    folder = tmp_path / "model"
    shutil.copytree(saved / kind / "0", folder)
    config = json.loads((folder / "config.json").read_text())
    change(config) if callable(change) else config.update(change)
    forget_checksums(folder, **config)
    with pytest.raises(ModelFileError, match="do not fit together"):
        girih.load(folder)


def tensors_with(header):
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text)) + text + bytes(64)


def weight(shape, dtype="F64", offsets=(0, 64)):
    metadata = {"girih": json.dumps({"format": "girih-model"})}
    return {"__metadata__": metadata, "0.weight": {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}}


ONE = '"0.weight": {"dtype": "F64", "shape": [2, 4], "data_offsets": [0, 64]}'
TENSORS = {
    "more rows than bytes": tensors_with(weight([10**12, 10**6])),
    "no rows, many columns": tensors_with(weight([0, 10**15], offsets=(0, 0))),
    "a shape of text": tensors_with(weight(["many"])),
    "no shape": tensors_with(weight(None)),
    "a header longer than the file": struct.pack("<Q", 1 << 60) + bytes(64),
    "a header that is deep": tensors_with('{"a":' + "[" * 100_000 + "]" * 100_000 + "}"),
    "a header with a huge number": tensors_with('{"a": ' + "9" * 5000 + "}"),
    "a name twice": tensors_with("{" + ONE + ", " + ONE + "}"),
    "no metadata": tensors_with("{" + ONE + "}"),
    "deep metadata": tensors_with({"__metadata__": {"girih": "[" * 100_000}, **json.loads("{" + ONE + "}")}),
    "metadata of another kind": tensors_with({"__metadata__": {"girih": "7"}, **json.loads("{" + ONE + "}")}),
    "a list": tensors_with("[]"),
    "nothing": b"",
    "three bytes": b"abc",
    "zeros": bytes(100),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensor_files_are_not_believed(case, saved, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(saved / "dgn" / "0", folder)
    (folder / "model.safetensors").write_bytes(TENSORS[case])
    with pytest.raises(ModelFileError, match=r"damaged|girih did not write it"):
        girih.load(folder)


CONFIGS = {
    "deep": ("[" * 200_000, "nested too deeply"),
    "deep objects": ('{"a":' * 200_000, "nested too deeply"),
    "a huge number": ('{"format": "girih-model", "version": ' + "1" * 10_000 + "}", "is too large"),
    "a large number": ('{"format": "girih-model", "version": 1, "tol": 99999999999999999999999}', "is too large"),
    "a large decimal": ('{"format": "girih-model", "version": 1, "tol": 1e999}', "is too large"),
    "NaN": ('{"format": "girih-model", "version": 1, "tol": NaN}', "NaN is not a number of JSON"),
    "a key twice": ('{"format": "girih-model", "version": 1, "version": 1}', "'version' is there twice"),
    "a flag as version": ('{"format": "girih-model", "version": true}', "its version is True"),
    "nothing": ("", "not JSON"),
    "a list": ("[1]", "has another format"),
    "stages of another kind": ('{"format": "girih-model", "version": 1, "kind": "dgn", "stages": [[]]}', "do not fit"),
    "steps of another kind": (
        '{"format": "girih-model", "version": 2, "kind": "dgn", "network": {"latent": 1, "steps": [7]}}',
        "do not fit",
    ),
    "a kind of another kind": ('{"format": "girih-model", "version": 1, "kind": [], "stages": []}', "does not know"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_are_not_believed(case, saved, tmp_path):
    text, message = CONFIGS[case]
    folder = tmp_path / "model"
    shutil.copytree(saved / "dgn" / "0", folder)
    forget_checksums(folder)
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelFileError, match=message) as caught:
        girih.load(folder)
    assert len(str(caught.value)) < 1000


def _pipe(path):
    os.mkfifo(path)


STAND_INS = {
    "a pipe": _pipe,
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "an empty device": lambda path: path.symlink_to("/dev/null"),
    "a folder": lambda path: path.mkdir(),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to a folder": lambda path: path.symlink_to("."),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("case", STAND_INS)
@pytest.mark.skipif(os.name == "nt", reason="pipes and devices are files on Unix only")
def test_only_regular_files_are_read(case, name, saved, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(saved / "dgn" / "0", folder)
    (folder / name).unlink()
    STAND_INS[case](folder / name)
    with pytest.raises(ModelFileError):
        girih.load(folder)


@pytest.mark.parametrize("path", ["", "nowhere", "nul\0byte", "x" * 300, "config.json/model", "config.json"])
def test_paths_without_a_model_are_refused(path, saved):
    with pytest.raises(ModelFileError):
        girih.load(saved / "dgn" / "0" / path if path else str(saved))


def test_a_link_to_a_model_is_read(saved, tmp_path):
    (tmp_path / "link").symlink_to(saved / "dgn" / "0")
    (tmp_path / "copy").mkdir()
    for name in FILES:
        (tmp_path / "copy" / name).symlink_to(saved / "dgn" / "0" / name)
    assert values(girih.load(tmp_path / "link")) == values(girih.load(tmp_path / "copy"))
