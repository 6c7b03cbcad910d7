"""Networks in `.onnx` files: a graph of torch functions, made from the operators that girih knows.

The file is read as data by the package `onnx` (extra `onnx`), and nothing in it runs. Each operator is a function of
tensors (`girih.networks.onnx_operators`): on the constants of the file it is computed, on what depends on z it becomes
calls of the graph. What is not known stands in the graph by its name, and is refused where it is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import GraphAppendingTracer

from girih._extras import require
from girih.errors import ModelFileError, UnsupportedLayerError
from girih.networks.latent_shape import checked_sizes
from girih.networks.onnx_operators import OPERATORS, Operand
from girih.networks.torch_graph import Unknown

ROWS = 2  # that a file for any number of rows is read with


class Network(NamedTuple):
    """A `Network` is what was read: the parts of an `Exported`, in its order."""

    graph: fx.Graph
    root: nn.Module
    outputs: dict[str, Any]
    shape: tuple[int, ...]
    batch: int


def read_onnx(path: Path) -> Network:
    """The network in an `.onnx` file, and in the file of weights beside it, where there is one.

    Raises:
        MissingExtraError: the package `onnx` is not installed.
        UnsupportedLayerError: it takes several inputs, or has an operator with arguments that are not supported.
        ModelFileError: the file is not there, or damaged.
    """
    onnx = require("onnx", "onnx")
    if not path.is_file():
        raise ModelFileError(f"there is no file {path}, or it is not a regular file")
    try:
        model = onnx.load(str(path))
        if not model.graph.output:
            raise ModelFileError(f"{path.name} cannot be read as an ONNX file: it holds no network; export it again")
        if model.functions:
            model = require("onnx.inliner", "onnx").inline_local_functions(model)
        return _Reader(model).read()
    except (UnsupportedLayerError, ModelFileError):
        raise
    except Exception as error:  # whatever is wrong with it, the file is
        text = " ".join(str(error).split()) or type(error).__name__
        raise ModelFileError(
            f"{path.name} cannot be read as an ONNX file ({type(error).__name__}: {text}); export it again, and keep "
            "the file of weights that belongs to it (.onnx.data) beside it"
        ) from error


class _Tracer(GraphAppendingTracer):
    """Records calls, and computes each for an example, whose sizes may be asked for; constants go into `root`."""

    def __init__(self, graph: fx.Graph, root: nn.Module) -> None:
        super().__init__(graph)
        self.root, self.label = root, "value"

    def create_arg(self, a: Any) -> Any:
        if not isinstance(a, Tensor):
            return super().create_arg(a)
        name = f"tensor{len(list(self.root.named_parameters())) + len(list(self.root.buffers()))}"
        if a.is_floating_point():
            self.root.register_parameter(name, nn.Parameter(a, requires_grad=True))
        else:
            self.root.register_buffer(name, a)
        node = self.graph.get_attr(name)
        node.meta["example"] = a
        return node

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any) -> fx.Node:
        node = self.graph.create_node(kind, target, args, kwargs, name=self.label)
        if kind in ("call_function", "call_method") and not isinstance(target, Unknown):
            known, named = fx.node.map_aggregate((args, kwargs), _example)
            with torch.no_grad():
                node.meta["example"] = target(*known, **named) if kind == "call_function" else getattr(
                    known[0], target)(*known[1:], **named)  # fmt: skip
        return node


def _example(value: Any) -> Any:
    return value.meta["example"] if isinstance(value, fx.Node) else value


class _Reader:
    """Makes a graph of a model."""

    def __init__(self, model: Any) -> None:
        self.model, self.numpy = model, require("onnx.numpy_helper", "onnx")
        self.helper = require("onnx.helper", "onnx")
        self.graph, self.root = fx.Graph(), nn.Module()
        self.tracer = _Tracer(self.graph, self.root)
        self.values: dict[str, Operand] = {"": None}

    def read(self) -> Network:
        """Makes the network of the file."""
        given = self.model.graph
        for tensor in given.initializer:
            self.values[tensor.name] = self._tensor(tensor)
        if given.sparse_initializer:
            raise UnsupportedLayerError("the ONNX file has sparse weights, which are not supported; export dense ones")
        inputs = [one for one in given.input if one.name not in self.values]
        if len(inputs) != 1:
            raise UnsupportedLayerError(
                f"the ONNX file takes {len(inputs)} inputs; a generator takes z alone: export a module whose "
                "forward(z) calls it with the others fixed"
            )
        kind = inputs[0].type.tensor_type
        sizes = [one.dim_value if one.dim_value > 0 else None for one in kind.shape.dim]
        shape, rows = checked_sizes(sizes, "the ONNX file")
        batch = rows or ROWS
        self._input(inputs[0].name, (batch, *shape), self.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        for node in given.node:
            self._node(node)
        outputs = {one.name: self._returned(one.name) for one in given.output}
        self.graph.output(tuple(outputs.values()))
        return Network(self.graph, self.root, outputs, shape, batch)

    def _tensor(self, tensor: Any) -> Tensor:
        return torch.from_numpy(self.numpy.to_array(tensor).copy())

    def _input(self, name: str, shape: tuple[int, ...], kind: Any) -> None:
        node = self.graph.placeholder("z")
        node.meta["example"] = torch.zeros(shape).to(torch.from_numpy(_empty(kind)).dtype)
        self.values[name] = fx.Proxy(node, self.tracer)

    def _returned(self, name: str) -> Any:
        value = self.values[name]
        return value.node if isinstance(value, fx.Proxy) else self.tracer.create_arg(value)

    def _node(self, node: Any) -> None:
        inputs = [self.values[name] for name in node.input]
        named = {one.name: self._attribute(one) for one in node.attribute}
        self.tracer.label = _label(node.name or node.output[0])
        known = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        try:
            found = known(*inputs, **named) if known else self._unknown(node.op_type, inputs)
        except (UnsupportedLayerError, KeyError, TypeError) as error:
            label = f"the operator {node.op_type} (node '{node.name or node.output[0]}')"
            raise UnsupportedLayerError(f"{label} of the ONNX file is not supported: {error}") from error
        for place, name in enumerate(node.output):
            self.values[name] = found[place] if isinstance(found, tuple | list) else found

    def _unknown(self, name: str, inputs: list[Operand]) -> Operand:
        return self.tracer.create_proxy("call_function", Unknown(name), tuple(inputs), {})

    def _attribute(self, given: Any) -> Any:
        value = self.helper.get_attribute_value(given)
        if isinstance(value, bytes):
            return value.decode("utf-8")
        if type(value).__name__ == "TensorProto":
            return self._tensor(value)
        return list(value) if type(value).__name__.startswith("Repeated") else value


def _empty(kind: Any) -> Any:
    return require("numpy", "onnx").zeros(0, dtype=kind)


def _label(name: str) -> str:
    """The name of a node as torch.fx takes it: the last part of a path of modules, as in /body/body.0/Gemm."""
    text = "_".join(part for part in name.replace(".", "/").split("/") if part)
    return "".join(sign if sign.isalnum() else "_" for sign in text) or "value"
