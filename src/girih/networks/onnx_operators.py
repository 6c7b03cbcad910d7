"""The operators of ONNX that girih knows, as functions of tensors or of values of a graph.

Source:
    https://onnx.ai/onnx/operators, versions 7 to 25.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from girih.errors import UnsupportedLayerError

Operand = Any  # a tensor, or a value of the graph


def _sizes(x: Operand) -> tuple[int, ...]:
    """The sizes of a tensor, or of the example of a value."""
    return tuple((x.node.meta["example"] if isinstance(x, fx.Proxy) else x).shape)


def _refuse(text: str) -> NoReturn:
    raise UnsupportedLayerError(text)


def _ints(value: Operand) -> list[int]:
    """Whole numbers from an attribute, or from a constant of the file."""
    if isinstance(value, fx.Proxy):
        _refuse("sizes, axes and places must not depend on z")
    return [int(one) for one in (value.reshape(-1).tolist() if isinstance(value, Tensor) else value)]


def _number(value: Operand) -> float:
    if isinstance(value, fx.Proxy):
        _refuse("limits must not depend on z")
    return float(value)


def gemm(a: Operand, b: Operand, c: Operand = None, *, alpha: float = 1.0, beta: float = 1.0, transA: int = 0,
         transB: int = 0) -> Operand:  # fmt: skip
    """`alpha A B + beta C`."""
    if transA or isinstance(b, fx.Proxy):
        _refuse("A must be the features and B the weight, and A not transposed")
    weight = b if transB else b.T.contiguous()
    weight = weight if alpha == 1.0 else alpha * weight
    if c is None:
        return F.linear(a, weight)
    shift = c if beta == 1.0 else beta * c
    if shift.numel() == len(weight):
        return F.linear(a, weight, shift.reshape(-1))
    return F.linear(a, weight) + shift


def _padded(
    x: Operand, pads: Sequence[int], auto: str, window: Window, value: float = 0.0
) -> tuple[Operand, list[int]]:
    """What is left to the layer of pads that are the same on both sides; others are put on before it."""
    count = len(window.kernel)
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = _same(_sizes(x)[2:], window, auto == "SAME_UPPER")
    elif auto not in ("NOTSET", "VALID", ""):
        _refuse(f"auto_pad={auto}")
    pads = list(pads) or [0] * (2 * count)
    if pads[:count] == pads[count:]:
        return x, pads[:count]
    sides = [side for k in reversed(range(count)) for side in (pads[k], pads[count + k])]
    return F.pad(x, sides, value=value), [0] * count


class Window(NamedTuple):
    """A `Window` is what moves over lines or pictures, with a number for each dimension."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]

    @classmethod
    def of(cls, kernel: Sequence[int], strides: Sequence[int] | None, dilations: Sequence[int] | None) -> Window:
        """Fill in what was left out."""
        ones = [1] * len(kernel)
        return cls(list(kernel), list(strides or ones), list(dilations or ones))


def _same(sizes: Sequence[int], window: Window, upper: bool) -> list[int]:
    first, last = [], []
    for size, kernel, stride, dilation in zip(sizes, *window, strict=True):
        need = max((math.ceil(size / stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
        small, large = need // 2, need - need // 2
        first.append(small if upper else large)
        last.append(large if upper else small)
    return first + last


def conv(x: Operand, w: Tensor, b: Tensor | None = None, *, kernel_shape: Any = None, strides: Any = None,
         dilations: Any = None, pads: Sequence[int] = (), auto_pad: str = "NOTSET",
         group: int = 1) -> Operand:  # fmt: skip
    """A convolution over lines or pictures."""
    window = Window.of(kernel_shape or w.shape[2:], strides, dilations)
    x, padding = _padded(x, pads, auto_pad, window)
    function = {1: F.conv1d, 2: F.conv2d}[len(window.kernel)]
    return function(x, w, b, window.strides, padding, window.dilations, group)


def conv_transpose(x: Operand, w: Tensor, b: Tensor | None = None, *, kernel_shape: Any = None, strides: Any = None,
                   dilations: Any = None, pads: Sequence[int] = (), auto_pad: str = "NOTSET", group: int = 1,
                   output_padding: Any = None, output_shape: Any = None) -> Operand:  # fmt: skip
    """A transposed convolution; pads that differ on both sides are cut off after it."""
    window, count = Window.of(kernel_shape or w.shape[2:], strides, dilations), len(w.shape) - 2
    if output_shape or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        _refuse("output_shape and auto_pad of transposed convolutions; export pads instead")
    pads, more = list(pads) or [0] * (2 * count), list(output_padding or [0] * count)
    function = {1: F.conv_transpose1d, 2: F.conv_transpose2d}[count]
    if pads[:count] == pads[count:]:
        return function(x, w, b, window.strides, pads[:count], more, group, window.dilations)
    x = function(x, w, b, window.strides, [0] * count, more, group, window.dilations)
    for k, size in enumerate(_sizes(x)[2:]):
        x = x.narrow(k + 2, pads[k], size - pads[k] - pads[count + k])
    return x


def batch_normalization(x: Operand, scale: Tensor, b: Tensor, mean: Tensor, var: Tensor, *, epsilon: float = 1e-5,
                        momentum: float = 0.9, training_mode: int = 0, spatial: int = 1) -> Operand:  # fmt: skip
    """Batch normalisation by the running statistics."""
    if training_mode or not spatial:
        _refuse("training mode; export the module after net.eval()")
    return F.batch_norm(x, mean, var, scale, b, False, 0.0, epsilon)


def prelu(x: Operand, slope: Tensor) -> Operand:
    """A slope for negative values, one or one for each channel."""
    wanted, sizes = list(slope.shape), list(_sizes(x))
    channels = [1] * (len(sizes) - len(wanted)) + wanted
    if slope.numel() > 1 and channels != [1, sizes[1], *[1] * (len(sizes) - 2)]:
        _refuse("slopes of PRelu that are neither one nor one for each channel")
    return F.prelu(x, slope.reshape(-1))


def clip(x: Operand, low: Operand = None, high: Operand = None, *, min: float | None = None,
         max: float | None = None) -> Operand:  # fmt: skip
    """Values cut off at limits, which older files have as attributes."""
    low, high = min if low is None else _number(low), max if high is None else _number(high)
    if isinstance(x, Tensor):
        return x.clamp(low, high)
    return x if low is None and high is None else torch.clamp(x, low, high)


def shrink(x: Operand, *, lambd: float = 0.5, bias: float = 0.0) -> Operand:
    """Soft shrinkage; others jump."""
    return F.softshrink(x, lambd) if bias == lambd else _refuse("Shrink with bias other than lambd jumps")


def reshape(x: Operand, shape: Operand = None, *, allowzero: int = 0) -> Operand:
    """Other sizes: 0 keeps one, -1 takes the rest."""
    sizes, wanted = _sizes(x), _ints(shape)
    return x.reshape([sizes[k] if size == 0 and not allowzero else size for k, size in enumerate(wanted)])


def flatten(x: Operand, *, axis: int = 1) -> Operand:
    """Two dimensions, cut at an axis."""
    sizes = _sizes(x)
    return x.reshape([math.prod(sizes[:axis]), math.prod(sizes[axis:])])


def squeeze(x: Operand, axes: Operand = None) -> Operand:
    """Without dimensions of size 1."""
    sizes = _sizes(x)
    gone = range(len(sizes)) if axes is None else [axis % len(sizes) for axis in _ints(axes)]
    return x.reshape([size for k, size in enumerate(sizes) if k not in gone or size != 1])


def unsqueeze(x: Operand, axes: Operand = None) -> Operand:
    """With further dimensions of size 1."""
    places = _ints(axes)
    for place in sorted(place % (len(_sizes(x)) + len(places)) for place in places):
        x = x.unsqueeze(place)
    return x


def cut(
    x: Operand, starts: Operand = None, ends: Operand = None, axes: Operand = None, steps: Operand = None
) -> Operand:
    """A part of a tensor."""
    first, last = _ints(starts), _ints(ends)
    where = range(len(first)) if axes is None else _ints(axes)
    by = [1] * len(first) if steps is None else _ints(steps)
    for begin, end, axis, step in zip(first, last, where, by, strict=True):
        size = _sizes(x)[axis]
        places = list(range(size))[slice(begin, end if end >= -size else None if step < 0 else end, step)]
        x = torch.index_select(x, axis % len(_sizes(x)), torch.tensor(places, dtype=torch.int64))
    return x


def split(x: Operand, sizes: Operand = None, *, axis: int = 0, split: Any = None, num_outputs: int = 0) -> Any:
    """Parts of a tensor, as a list."""
    total = _sizes(x)[axis]
    given = sizes if sizes is not None else split
    step = -(-total // num_outputs) if num_outputs else 0
    parts = _ints(given) if given is not None else [min(step, total - k * step) for k in range(num_outputs)]
    return [x.narrow(axis, sum(parts[:k]), part) for k, part in enumerate(parts)] or _refuse("Split without sizes")


def gather(x: Operand, indices: Operand, *, axis: int = 0) -> Operand:
    """Entries along an axis."""
    if isinstance(indices, fx.Proxy):
        _refuse("places that depend on z")
    size, axis = _sizes(x)[axis], axis % len(_sizes(x))
    found = torch.index_select(x, axis, indices.reshape(-1) % size)
    return found.reshape([*_sizes(x)[:axis], *indices.shape, *_sizes(x)[axis + 1 :]])


def pad(x: Operand, pads: Operand = None, constant: Operand = None, axes: Operand = None, *, mode: str = "constant",
        value: float = 0.0) -> Operand:  # fmt: skip
    """A border of a constant, of mirrored or of repeated entries."""
    dims, given = len(_sizes(x)), _ints(pads)
    where = [axis % dims for axis in (range(dims) if axes is None else _ints(axes))]
    low, high = dict(zip(where, given, strict=False)), dict(zip(where, given[len(where) :], strict=True))
    first = min((axis for axis in where if low[axis] or high[axis]), default=dims)
    if first == dims:
        return x
    sides = [side for axis in reversed(range(first, dims)) for side in (low.get(axis, 0), high.get(axis, 0))]
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    number = value if constant is None else _number(constant)
    return F.pad(x, sides, modes[mode], number if mode == "constant" else None)


def resize(x: Operand, roi: Operand = None, scales: Operand = None, sizes: Operand = None, *, mode: str = "nearest",
           coordinate_transformation_mode: str = "half_pixel", nearest_mode: str = "round_prefer_floor",
           cubic_coeff_a: float = -0.75, exclude_outside: int = 0, extrapolation_value: float = 0.0,
           antialias: int = 0, keep_aspect_ratio_policy: str = "stretch", axes: Any = None) -> Operand:  # fmt: skip
    """Pictures of another size, by the nearest entries or linearly, as torch does it."""
    old = _sizes(x)
    scaled = [1.0] if scales is None or not scales.numel() else scales.tolist()
    new = _ints(sizes) if sizes is not None else [math.floor(n * by) for n, by in zip(old, scaled, strict=True)]
    even = sizes is not None or all(n * by == m for n, by, m in zip(old, scaled, new, strict=True))
    if tuple(new[:2]) != old[:2] or antialias or exclude_outside or axes or keep_aspect_ratio_policy != "stretch":
        _refuse("Resize that changes rows or channels, or has options that torch's interpolate has not")
    way = coordinate_transformation_mode
    whole = all(n % m == 0 for n, m in zip(new[2:], old[2:], strict=True))
    if mode == "nearest":
        floor = even and (way, nearest_mode) == ("asymmetric", "floor")
        if floor or (whole and way == "half_pixel" and nearest_mode.startswith("round")):
            return F.interpolate(x, size=new[2:], mode="nearest")
    elif (
        mode == "linear" and even and way in ("half_pixel", "pytorch_half_pixel", "align_corners") and min(new[2:]) > 1
    ):
        name = {3: "linear", 4: "bilinear"}[len(old)]
        return F.interpolate(x, size=new[2:], mode=name, align_corners=way == "align_corners")
    return _refuse(f"Resize with mode={mode}, {way}, {nearest_mode}")


def depth_to_space(x: Operand, *, blocksize: int, mode: str = "DCR") -> Operand:
    """Channels as pixels, in either order."""
    if mode == "CRD":
        return F.pixel_shuffle(x, blocksize)
    n, c, h, w = _sizes(x)
    x = x.reshape([n, blocksize, blocksize, c // blocksize**2, h, w]).permute([0, 3, 4, 1, 5, 2])
    return x.reshape([n, c // blocksize**2, h * blocksize, w * blocksize])


def max_pool(x: Operand, *, kernel_shape: Any, strides: Any = None, dilations: Any = None, pads: Sequence[int] = (),
             auto_pad: str = "NOTSET", ceil_mode: int = 0, storage_order: int = 0) -> Operand:  # fmt: skip
    """The largest entry of each window."""
    window = Window.of(kernel_shape, strides, dilations)
    x, padding = _padded(x, pads, auto_pad, window, -math.inf)
    function = {1: F.max_pool1d, 2: F.max_pool2d}[len(window.kernel)]
    return function(x, window.kernel, window.strides, padding, window.dilations, bool(ceil_mode))


def average_pool(x: Operand, *, kernel_shape: Any, strides: Any = None, pads: Sequence[int] = (),
                 auto_pad: str = "NOTSET", ceil_mode: int = 0, count_include_pad: int = 0,
                 dilations: Any = None) -> Operand:  # fmt: skip
    """The mean of each window."""
    window = Window.of(kernel_shape, strides, dilations)
    if auto_pad not in ("NOTSET", "VALID") or set(window.dilations) != {1}:
        _refuse("auto_pad or dilations of AveragePool")
    x, padding = _padded(x, pads, auto_pad, window)
    if any(pads) and not any(padding) and not count_include_pad:
        _refuse("pads of AveragePool that differ on both sides and are not counted")
    function = {1: F.avg_pool1d, 2: F.avg_pool2d}[len(window.kernel)]
    return function(x, window.kernel, window.strides, padding, bool(ceil_mode), bool(count_include_pad))


def larger(x: Operand, y: Operand) -> Operand:
    """The larger of two operands; `c + relu(x - c)` where one is a constant."""
    if isinstance(x, Tensor) == isinstance(y, Tensor):
        return torch.maximum(x, y)
    x, c = (y, x) if isinstance(x, Tensor) else (x, y)
    return c + torch.relu(x - c)


def smaller(x: Operand, y: Operand) -> Operand:
    """The smaller of two operands."""
    return -larger(-x, -y)


def _reduced(name: str) -> Callable[..., Operand]:
    def reduce(x: Operand, axes: Operand = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Operand:
        given = [] if axes is None else _ints(axes)
        if not given and noop_with_empty_axes:
            return x
        dims = len(_sizes(x))
        return getattr(x, name)([axis % dims for axis in given] or list(range(dims)), keepdim=bool(keepdims))

    return reduce


def _folded(function: Callable[..., Operand]) -> Callable[..., Operand]:
    """A function of two operands as one of any number."""

    def fold(first: Operand, *rest: Operand) -> Operand:
        for value in rest:
            first = function(first, value)
        return first

    return fold


def constant(**named: Any) -> Tensor:
    """A constant of the file."""
    ((kind, value),) = named.items()
    if kind.startswith("value_") or kind == "value":
        return value if isinstance(value, Tensor) else torch.tensor(value)
    return _refuse(f"a constant of the kind {kind}")


def _cast(x: Operand, *, to: int, saturate: int = 1, **more: Any) -> Operand:
    kinds = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64}
    kind = kinds.get(to, torch.bfloat16)
    if isinstance(x, Tensor):
        return x.to(kind)
    return x if kind.is_floating_point else _refuse("features as whole numbers, which jump")


def _divide(x: Operand, y: Operand) -> Operand:
    whole = all(isinstance(part, Tensor) and not part.is_floating_point() for part in (x, y))
    return torch.div(x, y, rounding_mode="trunc") if whole else torch.div(x, y)


def _filled(shape: Tensor, *, value: Tensor | None = None) -> Tensor:
    number = torch.zeros(1) if value is None else value
    return number.expand(_ints(shape)).clone()


def _hard_sigmoid(x: Operand, *, alpha: float = 0.2, beta: float = 0.5) -> Operand:
    return torch.clamp(x * alpha + beta, 0.0, 1.0)


def _expand(x: Operand, shape: Tensor) -> Operand:
    return x.expand(torch.broadcast_shapes(_sizes(x), tuple(_ints(shape))))


def _transpose(x: Operand, *, perm: Sequence[int] | None = None) -> Operand:
    return x.permute(list(perm) if perm else list(reversed(range(len(_sizes(x))))))


def _shape(x: Operand, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(_sizes(x)[start:end], dtype=torch.int64)


def _global_average(x: Operand) -> Operand:
    return x.mean(list(range(2, len(_sizes(x)))), keepdim=True)


OPERATORS: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Cast": _cast,
    "Clip": clip,
    "Concat": lambda *parts, axis: torch.cat(parts, axis),
    "Constant": constant,
    "ConstantOfShape": _filled,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "DepthToSpace": depth_to_space,
    "Div": _divide,
    "Dropout": lambda x, *_, **__: x,
    "Expand": _expand,
    "Flatten": flatten,
    "Gather": gather,
    "Gemm": gemm,
    "GlobalAveragePool": _global_average,
    "HardSigmoid": _hard_sigmoid,
    "Identity": lambda x: x,
    "LeakyRelu": lambda x, alpha=0.01: F.leaky_relu(x, alpha),
    "MatMul": torch.matmul,
    "Max": _folded(larger),
    "MaxPool": max_pool,
    "Min": _folded(smaller),
    "Mod": lambda x, y, fmod=0: torch.fmod(x, y) if fmod else torch.remainder(x, y),
    "Mul": torch.mul,
    "Neg": torch.neg,
    "PRelu": prelu,
    "Pad": pad,
    "ReduceMax": _reduced("amax"),
    "ReduceMean": _reduced("mean"),
    "ReduceMin": _reduced("amin"),
    "ReduceSum": _reduced("sum"),
    "Relu": torch.relu,
    "Reshape": reshape,
    "Resize": resize,
    "Shape": _shape,
    "Shrink": shrink,
    "Slice": cut,
    "Split": split,
    "Squeeze": squeeze,
    "Sub": torch.sub,
    "Sum": _folded(torch.add),
    "Tile": lambda x, repeats: x.repeat(_ints(repeats)),
    "Transpose": _transpose,
    "Unsqueeze": unsqueeze,
    # smooth: refused by these names, unless they are the head that is stopped before
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Softmax": lambda x, axis=-1: F.softmax(x, axis),
    "LogSoftmax": lambda x, axis=-1: F.log_softmax(x, axis),
    "Softplus": F.softplus,
    "Elu": lambda x, alpha=1.0: F.elu(x, alpha),
    "Exp": torch.exp,
    "Erf": torch.erf,
    "Sqrt": torch.sqrt,
}
