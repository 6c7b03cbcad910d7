"""Networks in `.onnx` files: each operator against the reference evaluator of ONNX, exported modules against torch."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import girih
from girih.errors import MissingExtraError, ModelFileError, UnsupportedLayerError
from girih.networks import smooth_head

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402


def model_of(nodes, constants, sizes=(2, 8), outputs=("y",), opset=18):
    """A model of nodes over an input `h`, whose output has any shape."""
    given = helper.make_tensor_value_info("h", TensorProto.FLOAT, [None if n < 0 else n for n in sizes])
    found = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    arrays = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [given], found, arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def check(model, tmp_path, until=None, rows=2):
    path = tmp_path / "net.onnx"
    onnx.save(model, str(path))
    traced = girih.trace(path, until=until)
    z = np.random.default_rng(0).normal(size=(rows, traced.latent_dim)).astype(np.float32)
    shape = [d.dim_value or rows for d in model.graph.input[0].type.tensor_type.shape.dim]
    (known, *_) = ReferenceEvaluator(model).run(None, {"h": z.reshape(shape)})
    np.testing.assert_allclose(traced(torch.from_numpy(z)).detach(), known.reshape(rows, -1), atol=2e-5)
    return traced


RNG = np.random.default_rng(1)
IMAGE = (2, 4, 5, 5)


def draw(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def ints(*values):
    return np.array(values, dtype=np.int64)


def way(name):
    return {"coordinate_transformation_mode": name}


# name of the operator, sizes of h, constants that follow h, attributes
CASES = [
    ("Gemm", (2, 8), [draw(8, 3), draw(3)], {"alpha": 2.0, "beta": 0.5}),
    ("Gemm", (2, 8), [draw(3, 8), draw(1, 3)], {"transB": 1}),
    ("Gemm", (2, 8), [draw(3, 8)], {"transB": 1}),
    ("MatMul", (2, 8), [draw(8, 3)], {}),
    ("Add", (2, 8), [draw(8)], {}),
    ("Sub", (2, 8), [draw(8)], {}),
    ("Mul", IMAGE, [draw(4, 1, 1)], {}),
    ("Div", (2, 8), [np.float32(3.0)], {}),
    ("Neg", (2, 8), [], {}),
    ("Abs", (2, 8), [], {}),
    ("Relu", (2, 8), [], {}),
    ("LeakyRelu", (2, 8), [], {}),
    ("LeakyRelu", (2, 8), [], {"alpha": 0.3}),
    ("PRelu", IMAGE, [draw(4, 1, 1)], {}),
    ("PRelu", (2, 8), [draw(1)], {}),
    ("Clip", (2, 8), [np.float32(-0.5), np.float32(0.7)], {}),
    ("HardSigmoid", (2, 8), [], {}),
    ("Shrink", (2, 8), [], {"lambd": 0.3, "bias": 0.3}),
    ("Max", (2, 8), [draw(8), draw(8)], {}),
    ("Min", (2, 8), [draw(8)], {}),
    ("Sum", (2, 8), [draw(8), draw(8)], {}),
    ("Conv", IMAGE, [draw(6, 2, 3, 3), draw(6)], {"group": 2, "strides": [2, 1], "pads": [1, 1, 1, 1]}),
    ("Conv", IMAGE, [draw(3, 4, 2, 2)], {"pads": [0, 1, 1, 0], "dilations": [2, 1]}),
    ("Conv", IMAGE, [draw(3, 4, 4, 2)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", IMAGE, [draw(3, 4, 4, 2)], {"auto_pad": "SAME_LOWER"}),
    ("Conv", (2, 4, 7), [draw(3, 4, 3), draw(3)], {}),
    ("ConvTranspose", IMAGE, [draw(4, 3, 3, 3), draw(3)],
     {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 0]}),
    ("ConvTranspose", IMAGE, [draw(4, 3, 3, 3)], {"pads": [0, 1, 2, 0]}),
    ("BatchNormalization", IMAGE, [draw(4), draw(4), draw(4), np.abs(draw(4))], {"epsilon": 1e-3}),
    ("MaxPool", IMAGE, [], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("AveragePool", IMAGE, [], {"kernel_shape": [3, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("AveragePool", IMAGE, [], {"kernel_shape": [2, 2]}),
    ("GlobalAveragePool", IMAGE, [], {}),
    ("Flatten", IMAGE, [], {"axis": 1}),
    ("Reshape", IMAGE, [ints(0, -1, 10)], {}),
    ("Transpose", IMAGE, [], {"perm": [0, 2, 3, 1]}),
    ("Squeeze", (2, 8, 1), [ints(2)], {}),
    ("Unsqueeze", (2, 8), [ints(1, -1)], {}),
    ("Slice", IMAGE, [ints(1, -1), ints(4, -10), ints(1, 3), ints(2, -2)], {}),
    ("Gather", IMAGE, [ints(2, -1, 0)], {"axis": 1}),
    ("Expand", (2, 8, 1), [ints(1, 8, 3)], {}),
    ("Tile", (2, 8), [ints(1, 2)], {}),
    ("Pad", IMAGE, [ints(0, 0, 1, 0, 0, 0, 0, 2), np.float32(1.5)], {}),
    ("Pad", IMAGE, [ints(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": "reflect"}),
    ("Resize", IMAGE, [np.float32([]), np.float32([1, 1, 2, 3])], {"nearest_mode": "floor", **way("asymmetric")}),
    ("Resize", IMAGE, [np.float32([]), np.float32([1, 1, 2, 3])], {}),
    ("Resize", IMAGE, [np.float32([]), np.float32([1, 1, 2, 2])], {"mode": "linear"}),
    ("Resize", IMAGE, [np.float32([]), np.float32([1, 1, 2, 2])], {"mode": "linear", **way("align_corners")}),
    ("DepthToSpace", IMAGE, [], {"blocksize": 2, "mode": "CRD"}),
    ("DepthToSpace", IMAGE, [], {"blocksize": 2}),
    ("ReduceMean", IMAGE, [ints(2, 3)], {"keepdims": 0}),
    ("ReduceSum", IMAGE, [ints(-1)], {}),
    ("ReduceMax", IMAGE, [ints(1)], {}),
    ("Identity", (2, 8), [], {}),
    ("Dropout", (2, 8), [], {}),
    ("Cast", (2, 8), [], {"to": TensorProto.DOUBLE}),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "sizes", "constants", "attributes"), CASES, ids=[f"{k}-{n}" for n, (k, *_) in enumerate(CASES)]
)
def test_operators_are_those_of_the_reference(kind, sizes, constants, attributes, tmp_path):
    named = {f"c{k}": value for k, value in enumerate(constants)}
    inputs = ["h", *named]
    if kind == "Resize":
        inputs[1] = ""
    check(model_of([helper.make_node(kind, inputs, ["y"], **attributes)], named, sizes), tmp_path)


def test_concatenation_splits_and_sizes_for_any_number_of_rows(tmp_path):
    nodes = [
        helper.make_node("Split", ["h"], ["a", "b"], axis=1, num_outputs=2),
        helper.make_node("Relu", ["a"], ["c"]),
        helper.make_node("Concat", ["c", "b"], ["d"], axis=1),
        helper.make_node("Shape", ["d"], ["s"]),
        helper.make_node("Slice", ["s", "zero", "one"], ["n"]),
        helper.make_node("Concat", ["n", "two_four"], ["t"], axis=0),
        helper.make_node("Reshape", ["d", "t"], ["y"]),
    ]
    constants = {"zero": ints(0), "one": ints(1), "two_four": ints(2, 4)}
    traced = check(model_of(nodes, constants, (-1, 8)), tmp_path, rows=2)
    assert traced.output_shape == (2, 4) and traced.hidden_units == 4
    assert traced(torch.zeros(7, 8)).shape == (7, 8)


def decoder(S=2):
    torch.manual_seed(0)
    layers = nn.Linear(S, 12), nn.LeakyReLU(0.2), nn.Unflatten(1, (3, 2, 2)), nn.ConvTranspose2d(3, 2, 2, stride=2)
    return nn.Sequential(*layers, nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 3, padding=1), nn.Sigmoid()).eval()


def export(net, dynamo):
    if dynamo:
        pytest.importorskip("onnxscript")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (torch.zeros(1, 2),), "net.onnx", dynamo=dynamo, verbose=False)


@pytest.mark.parametrize("dynamo", [False, True])
def test_hundreds_of_cells_are_those_of_the_module_by_their_patterns(dynamo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    layers = nn.Linear(2, 12), nn.ReLU(), nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 6)).eval()
    export(net, dynamo)
    mine, known = girih.Partition("net.onnx"), girih.Partition(net)
    assert len(mine) == len(known) > 300
    assert {tuple(q) for q in mine.patterns.tolist()} == {tuple(q) for q in known.patterns.tolist()}


@pytest.mark.parametrize("dynamo", [False, True])
def test_an_exported_module_has_the_same_cells(dynamo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = decoder()
    export(net, dynamo)
    name, kind = smooth_head("net.onnx")
    assert kind == "sigmoid"
    mine, known = girih.trace("net.onnx", until=name), girih.trace(net, until="7")
    z = torch.randn(50, 2, dtype=torch.float64)
    torch.testing.assert_close(mine(z), known(z), atol=1e-6, rtol=1e-5)
    assert len(girih.Partition(mine)) == len(girih.Partition(known))
    with pytest.raises(UnsupportedLayerError, match=r"sigmoid.*--until"):
        girih.trace("net.onnx")


def test_what_cannot_be_read_is_refused_by_name(tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"

    def refused(error, match, *args, **options):
        onnx.save(model_of(*args, **options), str(path))
        with pytest.raises(error, match=match):
            girih.trace(path)

    node = helper.make_node
    refused(UnsupportedLayerError, "Gelu", [node("Gelu", ["h"], ["y"])], {}, opset=20)
    refused(UnsupportedLayerError, "Own", [node("Own", ["h"], ["y"], domain="me")], {})
    strange = node("Conv", ["h", "w"], ["y"], name="c", auto_pad="WHAT")
    refused(UnsupportedLayerError, r"Conv .*auto_pad=WHAT", [strange], {"w": draw(2, 4, 2, 2)}, IMAGE)
    refused(UnsupportedLayerError, r"shape \(N, N\)", [node("Relu", ["h"], ["y"])], {}, (-1, -1))
    both = [node("Relu", ["h"], ["y"]), node("Abs", ["h"], ["x"])]
    refused(UnsupportedLayerError, "returns 2 tensors", both, {}, outputs=("y", "x"))
    assert girih.trace(path, output="x").hidden_units == 8
    path.write_bytes(b"\x08\x07damaged")
    with pytest.raises(ModelFileError, match="cannot be read as an ONNX file"):
        girih.trace(path)
    with pytest.raises(ModelFileError, match="there is no file"):
        girih.trace(tmp_path / "absent.onnx")
    big = helper.make_tensor("w", TensorProto.FLOAT, [8], np.zeros(8))
    big.ClearField("float_data")
    big.data_location = TensorProto.EXTERNAL
    big.external_data.add(key="location", value="../outside")
    (tmp_path.parent / "outside").write_bytes(bytes(32))
    model = model_of([node("Add", ["h", "w"], ["y"])], {})
    model.graph.initializer.append(big)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match="cannot be read"):
        girih.trace(path)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"girih\[onnx\]"):
        girih.trace(path)
