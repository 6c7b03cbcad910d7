"""Networks of `torch.export`: programs in memory, and in `.pt2` files.

The graph of a file is read as data: operators are looked up by name in a list, and nothing is compiled. Weights are raw
bytes, or pickles of tensors alone, read by torch's restricted reader (`weights_only`). The sample inputs, pickled
objects and compiled code that the archive may hold as well are never opened.
"""

from __future__ import annotations

import io
import json
import math
import operator
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument
from torch.utils import _pytree as pytree

from girih.errors import GirihError, ModelFileError, UnsupportedLayerError
from girih.networks.graph_walk import ATEN, CALLS, MOVES, SAME
from girih.networks.latent_shape import checked_sizes
from girih.networks.onnx_file import read_onnx
from girih.networks.torch_graph import SIZES, Unknown, parts_of

_MOST_NUMBERS = 2**31
_MOST_DEPTH = 200  # of JSON: torch itself writes less than twenty
_TYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip


class Archive:
    """The members of a `.pt2` file.

    Args:
        file: where it is.

    Raises:
        ModelFileError: no such archive, or a damaged one.
    """

    def __init__(self, file: Path) -> None:
        if not file.is_file():
            raise ModelFileError(f"there is no file {file}, or it is not a regular file")
        self.bytes = io.BytesIO(file.read_bytes())
        self.zip = zipfile.ZipFile(self.bytes)
        names = [info.filename for info in self.zip.infolist()]
        if len(set(names)) < len(names):
            raise ModelFileError("it holds two members of the same name")
        root = "" if "serialized_exported_program.json" in names else names[0].split("/")[0] + "/"
        self.members = {name.removeprefix(root): name for name in names if name.startswith(root)}

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def read(self, name: str) -> bytes:
        """The bytes of a member; torch stores them as they are, so none is larger than the file."""
        if name not in self.members:
            raise ModelFileError(f"it has no member {name}")
        info = self.zip.getinfo(self.members[name])
        if info.compress_type != zipfile.ZIP_STORED:
            raise ModelFileError(f"its member {name} is compressed, which torch.export.save does not do")
        return self.zip.read(info)

    def json(self, name: str) -> dict[str, Any]:
        """A member as JSON."""
        text = self.read(name).decode("utf-8")
        depth = deepest = 0
        for sign in text:
            depth += (sign in "[{") - (sign in "]}")
            deepest = max(deepest, depth)
        if deepest > _MOST_DEPTH:
            raise ModelFileError(f"its member {name} is nested too deeply")
        found: dict[str, Any] = json.loads(text)
        return found

    def program(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The exported program as JSON, and its weights and constants by name."""
        if "serialized_exported_program.json" in self:  # up to torch 2.7
            model = self.json("serialized_exported_program.json")
            parts = ("serialized_state_dict.pt", "serialized_constants.pt")
            return model, {k: v for part in parts if part in self for k, v in self._tensors(part).items()}
        models = [name[7:-5] for name in self.members if name.startswith("models/") and name.endswith(".json")]
        if len(models) != 1:
            raise ModelFileError(f"it holds {len(models)} exported programs, and one is expected")
        if "byteorder" in self and self.read("byteorder") != b"little":
            raise ModelFileError("its numbers are stored in another byte order")
        tensors: dict[str, Tensor] = {}
        for kind in ("weights", "constants"):
            whole, config = f"data/{kind}/{models[0]}.pt", f"data/{kind}/{models[0]}_{kind}_config.json"
            if whole in self:  # torch 2.8
                tensors |= self._tensors(whole)
            elif config in self:
                for name, entry in self.json(config)["config"].items():
                    if entry["tensor_meta"] is not None:  # else an object, which is not opened
                        tensors[name] = self._payload(f"data/{kind}/{entry['path_name']}", entry)
        return self.json(f"models/{models[0]}.json"), tensors

    def _payload(self, member: str, entry: dict[str, Any]) -> Tensor:
        if entry["use_pickle"]:
            return _tensor(self._unpickled(member), member)
        meta = entry["tensor_meta"]
        kind = _TYPES.get(meta["dtype"])
        if kind is None:
            raise UnsupportedLayerError(f"its weight {member} has a type of numbers that girih does not read")
        sizes, strides = (tuple(int(n["as_int"]) for n in meta[key]) for key in ("sizes", "strides"))
        offset = int(meta["storage_offset"]["as_int"])
        raw = bytearray(self.read(member))
        if len(sizes) != len(strides) or min((*sizes, *strides, offset), default=0) < 0 or len(raw) % kind.itemsize:
            raise ModelFileError(f"its weight {member} has a size that does not fit")
        count = math.prod(sizes)
        last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True)) if count else -1
        if last >= len(raw) // kind.itemsize or count > _MOST_NUMBERS:
            raise ModelFileError(f"its weight {member} has a size that does not fit")
        if not count:
            return torch.zeros(sizes, dtype=kind)
        return torch.frombuffer(raw, dtype=kind).as_strided(sizes, strides, offset).clone()

    def _unpickled(self, member: str) -> object:
        try:
            return torch.load(io.BytesIO(self.read(member)), map_location="cpu", weights_only=True)
        except Exception as error:
            raise ModelFileError(
                f"its member {member} is damaged, or holds more than tensors, which could run code and is not opened"
            ) from error

    def _tensors(self, member: str) -> dict[str, Tensor]:
        found = self._unpickled(member)
        if not isinstance(found, dict):
            raise ModelFileError(f"its member {member} holds no table of tensors")
        return {str(name): _tensor(value, member) for name, value in found.items()}


def _tensor(value: object, member: str) -> Tensor:
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_meta:
        raise ModelFileError(f"its member {member} holds something else than plain tensors")
    return value.detach()


_SCHEMA = 8  # the major version of the format, the same from torch 2.6 on
_OPERATOR = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)\Z")
_PYTHON: dict[str, Callable[..., object]] = {f"_operator.{name}": getattr(operator, name) for name in (
    "getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "pow", "eq", "ne", "lt", "le", "gt", "ge",
)} | {f"math.{name}": getattr(math, name) for name in ("trunc", "ceil", "floor", "sqrt")}  # fmt: skip
_FACTORIES = frozenset(("full", "zeros", "ones", "arange", "scalar_tensor", "eye", "linspace", "lift_fresh_copy"))
_ASSERTIONS = ("_assert_scalar", "_assert_tensor_metadata", "sym_constrain_range", "sym_constrain_range_for_size")
_PLAIN = (
    "as_int",
    "as_ints",
    "as_bool",
    "as_bools",
    "as_float",
    "as_floats",
    "as_string",
    "as_strings",
    "as_int_lists",
)
_LAYOUTS = {0: torch.contiguous_format, 1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format}


@dataclass(frozen=True)
class Exported:
    """An exported network.

    Attributes:
        graph: of `aten` operators.
        root: the module that the graph reads its tensors from.
        outputs: the nodes of its outputs, by name.
        shape: of one latent.
        batch: the number of rows, where it is fixed.
    """

    graph: fx.Graph
    root: nn.Module
    outputs: dict[str, Any]
    shape: tuple[int, ...]
    batch: int | None


def exported_program(program: torch.export.ExportedProgram) -> Exported:
    """The network of a program in memory."""
    module: Any = program.module()
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    if not inputs or "val" not in inputs[0].meta:
        raise UnsupportedLayerError("the exported network takes no input; it must take z, of shape (N, S)")
    (last,) = (node for node in module.graph.nodes if node.op == "output")
    returned = last.args[0]
    returned = list(returned) if isinstance(returned, tuple | list) else [returned]
    outputs = parts_of(pytree.tree_unflatten(returned, program.call_spec.out_spec))
    sizes = [int(n) if isinstance(n, int) else None for n in getattr(inputs[0].meta["val"], "shape", ())]
    return Exported(module.graph, module, outputs, *checked_sizes(sizes))


def exported_file(path: str | os.PathLike[str]) -> Exported:
    """The network in a `.pt2` file, or in an `.onnx` file.

    Raises:
        UnsupportedLayerError: another kind of file.
        MissingExtraError: an `.onnx` file, and the extra `onnx` is not installed.
        ModelFileError: a file that is not there, damaged, or that another version of torch wrote.
    """
    file = Path(path)
    if file.suffix == ".onnx":
        return Exported(*read_onnx(file))
    if file.suffix != ".pt2":
        raise UnsupportedLayerError(
            f"{file.name} is not a .pt2 file, nor an .onnx one; write one with torch.export.save or torch.onnx.export"
        )
    try:
        return _Reader(*Archive(file).program()).read()
    except UnsupportedLayerError:
        raise
    except Exception as error:  # whatever is wrong with it, the file is
        text = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, GirihError):
            text = f"{type(error).__name__}: {text}"
        raise ModelFileError(
            f"{file.name} cannot be read as a torch.export file ({text}); write it again with torch.export.save"
        ) from error


class _Reader:
    """Makes a graph of the JSON of an exported program."""

    def __init__(self, model: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        if model["schema_version"]["major"] != _SCHEMA:
            raise ModelFileError(f"its format has version {model['schema_version']['major']}, not {_SCHEMA}")
        self.module = model["graph_module"]
        self.tensors = tensors
        self.graph, self.root = fx.Graph(), nn.Module()
        self.values: dict[str, Argument] = {}

    def read(self) -> Exported:
        """Makes the network of the file."""
        specs = self.module["signature"]["input_specs"]
        users = [spec["user_input"]["arg"] for spec in specs if "user_input" in spec]
        if len(users) != 1 or "as_tensor" not in users[0]:
            raise UnsupportedLayerError(
                f"the exported network takes {len(users)} inputs; a generator takes z alone: export a module whose "
                "forward(z) calls it with the others fixed"
            )
        name = users[0]["as_tensor"]["name"]
        self.values[name] = self.graph.placeholder("z")
        sizes = self.module["graph"]["tensor_values"][name]["sizes"]
        shape, batch = checked_sizes([n.get("as_int") for n in sizes])
        for spec in specs:
            self._input(spec)
        for node in self.module["graph"]["nodes"]:
            self._node(node)
        outputs = [
            self._argument(spec["user_output"]["arg"])
            for spec in self.module["signature"]["output_specs"]
            if "user_output" in spec
        ]
        names = _output_names(self.module, len(outputs))
        self.graph.output(tuple(outputs))
        return Exported(self.graph, self.root, dict(zip(names, outputs, strict=True)), shape, batch)

    def _input(self, spec: dict[str, Any]) -> None:
        ((kind, entry),) = spec.items()
        if kind in ("parameter", "buffer", "tensor_constant"):
            tensor = self.tensors[entry[f"{kind}_name"]]
            path = f"tensor{len(self.values)}"
            if kind == "parameter":
                self.root.register_parameter(path, nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))
            else:
                self.root.register_buffer(path, tensor)
            self.values[entry["arg"]["name"]] = self.graph.create_node("get_attr", path, name=entry["arg"]["name"])
        elif kind == "constant_input":
            ((_, value),) = entry["value"].items()
            self.values[entry["name"]] = None if "as_none" in entry["value"] else value
        elif kind not in ("user_input", "token"):
            self.values[entry["arg"]["name"]] = None  # an object, which is not opened

    def _node(self, entry: dict[str, Any]) -> None:
        target: Any = _operator(entry["target"])
        if getattr(target, "__name__", "").split(".")[0] in _ASSERTIONS:
            return
        args, kwargs = [], {}
        try:
            for given in entry["inputs"]:
                value = self._argument(given["arg"])
                if given.get("kind") == 2 or (given.get("kind") is None and self._by_keyword(target, given["name"])):
                    kwargs[given["name"]] = value
                else:
                    args.append(value)
        except UnsupportedLayerError:  # a graph within a graph, and the like
            target, kwargs = Unknown(entry["target"]), {}
            held = [given["arg"]["as_tensor"]["name"] for given in entry["inputs"] if "as_tensor" in given["arg"]]
            args = [self.values[name] for name in held]
        node = self.graph.create_node("call_function", target, tuple(args), kwargs, name=entry.get("name"))
        stack = (entry.get("metadata") or {}).get("nn_module_stack", "")
        levels = [level.split(",") for level in stack.split(";") if level.count(",") >= 2]
        node.meta["nn_module_stack"] = {level[0]: (level[1], level[2]) for level in levels if level[0] != level[1]}
        self._outputs(node, entry["outputs"])

    def _by_keyword(self, target: object, name: str) -> bool:
        """Tells whether the schema of an operator knows an argument by its name alone; older files do not say."""
        schema = getattr(target, "_schema", None)
        return schema is not None and any(a.kwarg_only and a.name == name for a in schema.arguments)

    def _outputs(self, node: fx.Node, outputs: list[dict[str, Any]]) -> None:
        if len(outputs) == 1 and "as_tensors" not in outputs[0]:
            ((_, value),) = outputs[0].items()
            if isinstance(value, dict):
                self.values[value.get("name") or value["as_name"]] = node
            return
        parts = outputs[0]["as_tensors"] if len(outputs) == 1 else [next(iter(part.values())) for part in outputs]
        for place, part in enumerate(parts):
            if isinstance(part, dict):
                self.values[part["name"]] = self.graph.call_function(operator.getitem, (node, place))

    def _argument(self, argument: dict[str, Any]) -> Argument:
        ((kind, value),) = argument.items()
        if kind == "as_none":
            return None
        if kind in _PLAIN:
            return [float(n) for n in value] if kind == "as_floats" else float(value) if kind == "as_float" else value
        if kind == "as_tensor":
            return self.values[value["name"]]
        if kind == "as_tensors":
            return [self.values[part["name"]] for part in value]
        if kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
            return self._symbol(value)
        if kind in ("as_sym_ints", "as_sym_bools", "as_sym_floats"):
            return [self._symbol(part) for part in value]
        if kind == "as_optional_tensor":
            return self._argument(value)
        if kind == "as_optional_tensors":
            return [self._argument(part) for part in value]
        if kind == "as_scalar_type" and value in _TYPES:
            return _TYPES[value]
        if kind == "as_memory_format" and value in _LAYOUTS:
            return _LAYOUTS[value]
        if kind == "as_layout" and value == 7:
            return torch.strided
        if kind == "as_device":
            return torch.device("cpu")
        raise UnsupportedLayerError(
            f"the exported network holds an argument of the kind {kind}, which is not supported"
        )

    def _symbol(self, entry: dict[str, Any]) -> Argument:
        ((kind, value),) = entry.items()
        found: Argument = self.values[value] if kind == "as_name" else value
        return found


def _operator(target: str) -> Callable[..., object]:
    """The operator of that name, if it is one that computes with tensors and does nothing else."""
    if target in _PYTHON:
        return _PYTHON[target]
    found = _OPERATOR.match(target)
    name = found[1] if found else target.rpartition("::")[2]
    packet = getattr(torch.ops.aten, name, None) if found else None
    overload = getattr(packet, found[2], None) if found and isinstance(packet, torch._ops.OpOverloadPacket) else None
    if not isinstance(overload, torch._ops.OpOverload):
        return Unknown(name)
    known = any(name in names for names in (CALLS, ATEN, MOVES, SAME, SIZES, _FACTORIES, _ASSERTIONS))
    return overload if known or _is_pure(overload._schema) else Unknown(name)


def _is_pure(schema: torch.FunctionSchema) -> bool:
    """Tells whether an operator makes tensors from tensors, changes none, and reads no name of a file."""
    takes, gives = ([str(part.type) for part in parts] for parts in (schema.arguments, schema.returns))
    plain = not schema.is_mutable and "Tensor" in takes and not any("str" in kind for kind in takes)
    return plain and bool(gives) and all(kind == "Tensor" for kind in gives)


def _output_names(module: dict[str, Any], count: int) -> list[str]:
    """Names of the outputs, as the module that was exported gives them: keys, fields or places."""
    calls = [call for call in module["module_call_graph"] if call["fqn"] == "" and call["signature"] is not None]
    spec = json.loads(calls[0]["signature"]["out_spec"])[1] if calls else None
    fields = module.get("treespec_namedtuple_fields") or {}
    names = list(parts_of(_named(spec, fields))) if spec else []
    return names if len(names) == count else [str(place) for place in range(count)]


def _named(spec: dict[str, Any], fields: dict[str, Any]) -> object:
    """A structure as dictionaries, for its names."""
    if spec["type"] is None:
        return 0
    children = [_named(child, fields) for child in spec["children_spec"]]
    try:
        keys = json.loads(spec["context"])
    except (TypeError, ValueError):
        keys = spec["context"]
    if isinstance(keys, str) and keys in fields:
        keys = fields[keys]["field_names"]
    if isinstance(keys, list) and len(keys) == len(children):
        return {str(key): child for key, child in zip(keys, children, strict=True)}
    return dict(enumerate(children))
