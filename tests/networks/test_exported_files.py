"""A `.pt2` file is read as data: what a stranger put into it does not run, and what is damaged is refused."""

import contextlib
import io
import json
import os
import pickle
import random
import zipfile

import pytest
import torch
from torch import nn

import girih
from effort import cases
from girih.errors import GirihError, ModelFileError, UnsupportedLayerError
from networks.decoders import Of, Several

WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
MODEL, SAMPLES = "models/model.json", "data/sample_inputs/model.pt"
Z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))


def export(net: nn.Module, path) -> None:
    shapes = ({0: torch.export.Dim("rows", min=2)},)
    torch.export.save(torch.export.export(net.eval(), (Z,), dynamic_shapes=shapes), path)


@pytest.fixture(scope="module")
def members(tmp_path_factory) -> dict[str, bytes]:
    """The members of a good file, and its bytes under the name "file"."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("exported") / "net.pt2"
    net = Of(lambda m, z: torch.relu(m.a(z)) * m.k, a=nn.Linear(2, 4))
    net.k = torch.randn(4)  # a constant: neither a parameter nor a buffer
    export(net, path)
    with zipfile.ZipFile(path) as archive:
        found = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    return found | {"file": path.read_bytes()}


def write(members: dict[str, bytes], path, root="net/") -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            if name != "file":
                archive.writestr(root + name, data)
    return str(path)


class Harm:
    """Unpickling makes a file."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def edited(members, name, change) -> dict[str, bytes]:
    content = json.loads(members[name])
    return members | {name: json.dumps(change(content) or content).encode()}


def node(content, k, **entries):
    content["graph_module"]["graph"]["nodes"][k] |= entries


def string(text):
    return {"name": "x", "arg": {"as_string": text}, "kind": 1}


def attacks(members, sign):
    """Files that would make the folder `sign` in a reader that unpickles, imports or evaluates what they hold."""
    saved = io.BytesIO()
    torch.save(Harm(sign), saved)
    harm, raw, code = saved.getvalue(), pickle.dumps(Harm(sign)), f"__import__('os').mkdir({str(sign)!r})"

    def pickled(name, config, key, path, meta=True):
        def change(content):
            content["config"].setdefault(key, {"path_name": path, "is_param": False, "tensor_meta": None})
            content["config"][key] |= {"use_pickle": True, "path_name": path}
            if not meta:
                content["config"][key]["tensor_meta"] = None

        return edited(members, config, change) | {name + path: harm}

    def symbols(content):
        for value in content["graph_module"]["graph"]["tensor_values"].values():
            for size in value["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = code

    def renamed(content):
        return json.loads(json.dumps(content).replace('"relu"', json.dumps(f"x);{code}#")))

    without = {name: data for name, data in members.items() if name not in (WEIGHTS, CONSTANTS)}
    yield "sample inputs", members | {SAMPLES: harm}
    yield "sample inputs as a bare pickle", members | {SAMPLES: raw}
    yield "weights", pickled("data/weights/", WEIGHTS, "a.weight", "weight_0")
    yield "constants", pickled("data/constants/", CONSTANTS, "k", "tensor_9")
    yield "an object", pickled("data/constants/", CONSTANTS, "extra", "custom_obj_0", meta=False)
    yield "weights of torch 2.8", without | {"data/weights/model.pt": harm, "data/constants/model.pt": harm}
    yield "sizes", edited(members, MODEL, symbols)
    yield "names", edited(members, MODEL, renamed)
    for target in ("torch.os.mkdir", "torch.ops.aten.save.default", "builtins.eval", "math.os.mkdir", "_operator.call"):
        yield target, edited(members, MODEL, lambda c, t=target: node(c, -1, target=t, inputs=[string(str(sign))]))
    arguments = [string(str(sign)), {"name": "y", "arg": {"as_bool": True}, "kind": 1}]
    arguments.append({"name": "z", "arg": {"as_int": 9}, "kind": 1})
    yield (
        "a file",
        edited(members, MODEL, lambda c: node(c, 1, target="torch.ops.aten.from_file.default", inputs=arguments)),
    )
    yield "compiled code", members | {"data/aotinductor/model/net.so": b"\x7fELF", "extra/run.py": code.encode()}


def test_nothing_in_a_file_runs(members, tmp_path):
    sign = tmp_path / "sign"
    good = girih.trace(write(members, tmp_path / "good.pt2"))
    loaded = []
    for name, changed in attacks(members, sign):
        try:
            trace = girih.trace(write(changed, tmp_path / "net.pt2"))
            assert torch.equal(trace(Z), good(Z))
            loaded.append(name)
        except (ModelFileError, UnsupportedLayerError):
            pass
        assert not sign.exists(), name
    # what is not needed is not opened, and no reason to refuse
    assert loaded == ["sample inputs", "sample inputs as a bare pickle", "an object", "sizes", "names", "compiled code"]


@pytest.mark.skipif(os.name == "nt", reason="a pickle that makes a folder")
def test_the_attack_would_work_on_torch_itself(members, tmp_path):
    _, changed = next(attacks(members, tmp_path / "sign"))
    torch.load(io.BytesIO(changed[SAMPLES]), weights_only=False)
    assert (tmp_path / "sign").exists()


def test_the_command_line_runs_nothing_either(members, tmp_path):
    from girih.cli import decoders

    sign = tmp_path / "sign"
    for name, changed in attacks(members, sign):
        with contextlib.suppress(GirihError):
            decoders.load_decoder(write(changed, tmp_path / "net.pt2"))
        assert not sign.exists(), name


@pytest.mark.parametrize("version", ["2.6", "2.8"])
def test_files_of_older_versions(members, tmp_path, version):
    def pickled(config, folder):
        tensors = {}
        for name, entry in json.loads(members[config])["config"].items():
            sizes = [size["as_int"] for size in entry["tensor_meta"]["sizes"]]
            raw = bytearray(members[f"data/{folder}/{entry['path_name']}"])
            tensors[name] = torch.frombuffer(raw, dtype=torch.float32).reshape(sizes)
        file = io.BytesIO()
        torch.save(tensors, file)
        return file.getvalue()

    parts = pickled(WEIGHTS, "weights"), pickled(CONSTANTS, "constants")
    model = json.loads(members[MODEL])
    for entry in model["graph_module"]["graph"]["nodes"]:
        del entry["name"], entry["is_hop_single_tensor_return"]
        for given in entry["inputs"]:
            del given["kind"]
    old = json.dumps(model).encode()
    if version == "2.6":
        names = ("serialized_exported_program.json", "serialized_state_dict.pt", "serialized_constants.pt")
        path = write(dict(zip(names, (old, *parts), strict=True)) | {"version": b"7.1"}, tmp_path / "old.pt2", "")
    else:
        kept = {"archive_format": b"pt2", "byteorder": b"little", MODEL: old}
        files = {"data/weights/model.pt": parts[0], "data/constants/model.pt": parts[1], **kept}
        path = write(files, tmp_path / "old.pt2")
    assert torch.equal(girih.trace(path)(Z), girih.trace(write(members, tmp_path / "new.pt2"))(Z))


def test_outputs_and_heads_of_a_file(tmp_path):
    torch.manual_seed(0)
    net = Several()
    path = tmp_path / "net.pt2"
    export(net, path)
    with pytest.raises(UnsupportedLayerError, match=r"returns 3 tensors \('mean', 'std', 'inner.h'\)"):
        girih.trace(path)
    own = net(Z)
    for program in (path, torch.export.export(net, (Z,))):
        for output, expected in (("mean", own["mean"]), ("inner.h", own["inner"]["h"]), (0, own["mean"])):
            torch.testing.assert_close(girih.trace(program, output=output)(Z).float(), expected)
        torch.testing.assert_close(girih.trace(program, until="exp")(Z).exp().float(), own["std"])
        with pytest.raises(UnsupportedLayerError, match=r"the call 'exp'.*until='exp'"):
            girih.trace(program, output="std")


def test_a_fixed_shape_and_an_unused_argument(tmp_path):
    net = nn.Sequential(nn.ConvTranspose2d(3, 2, 4), nn.ReLU())
    z = torch.randn(4, 3, 1, 1)
    torch.export.save(torch.export.export(net, (z,)), tmp_path / "net.pt2")
    trace = girih.trace(tmp_path / "net.pt2")
    assert trace.output_shape == (2, 4, 4)
    torch.testing.assert_close(trace(z.flatten(1)).float(), net(z).flatten(1))

    class Optional(nn.Module):
        def forward(self, z, levels=None):
            return torch.relu(z)

    torch.export.save(torch.export.export(Optional(), (Z, None)), tmp_path / "net.pt2")
    for program in (tmp_path / "net.pt2", torch.export.export(Optional(), (Z, None))):
        assert girih.trace(program).hidden_units == 2
    torch.export.save(torch.export.export(nn.Bilinear(2, 3, 4), (Z, torch.zeros(5, 3))), tmp_path / "net.pt2")
    with pytest.raises(UnsupportedLayerError, match="takes 2 inputs; a generator takes z alone"):
        girih.trace(tmp_path / "net.pt2")


def damaged(members):
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/" + MODEL, b"[" * 10**7)

    def sizes(content):
        content["config"]["a.weight"]["tensor_meta"]["sizes"] = [{"as_int": 10**12}] * 2

    def strides(content):
        content["config"]["a.weight"]["tensor_meta"] |= {
            "sizes": [{"as_int": 10**12}, {"as_int": 2}],
            "strides": [{"as_int": 0}, {"as_int": 1}],
        }

    def negative(content):
        content["config"]["a.weight"]["tensor_meta"]["storage_offset"] = {"as_int": -4}

    yield "empty", b""
    yield "no archive", b"not a zip"
    yield "another archive", zipped({"x": b"1"})
    yield "a bomb", bomb.getvalue()
    yield "deep", zipped(members | {MODEL: b"[" * 10**5})
    yield "no weights", zipped({name: data for name, data in members.items() if name != WEIGHTS})
    yield "version", zipped(edited(members, MODEL, lambda c: c | {"schema_version": {"major": 9, "minor": 0}}))
    for change in (sizes, strides, negative):
        yield change.__name__, zipped(edited(members, WEIGHTS, change))


def zipped(members) -> bytes:
    file = io.BytesIO()
    write(members, file)
    return file.getvalue()


def test_damaged_files_raise_one_error(members, tmp_path):
    path = tmp_path / "net.pt2"
    for name, data in damaged(members):
        path.write_bytes(data)
        with pytest.raises(ModelFileError, match=r"net\.pt2 cannot be read as a torch\.export file"):
            girih.trace(path)
            pytest.fail(name)
    for place in (tmp_path / "absent.pt2", tmp_path):
        with pytest.raises(GirihError):
            girih.trace(place)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.pt2")  # must not hang
        with pytest.raises(ModelFileError, match="not a regular file"):
            girih.trace(tmp_path / "pipe.pt2")


@pytest.mark.fuzz
def test_flipped_bits_and_cut_files_give_the_same_network_or_one_error(members, tmp_path):
    path = tmp_path / "net.pt2"
    path.write_bytes(members["file"])
    good = girih.trace(path)(Z)
    rng = random.Random(0)
    refused, count = 0, cases(300, 20_000)
    for _ in range(count):
        data, at = bytearray(members["file"]), rng.randrange(len(members["file"]))
        kind = rng.random()
        if kind < 0.6:
            data[at] ^= 1 << rng.randrange(8)
        elif kind < 0.75:
            del data[at:]
        elif kind < 0.9:
            data[at : at + rng.randrange(1, 64)] = rng.randbytes(rng.randrange(1, 64))
        else:
            del data[at : at + rng.randrange(1, 200)]
        path.write_bytes(data)
        try:
            found = girih.trace(path)(Z)
        except ModelFileError:
            refused += 1
        else:
            assert torch.equal(found, good)
    assert refused > 0.5 * count
