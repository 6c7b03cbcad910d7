"""Layers and networks of girih's own: activations that torch does not ship, and the steps of a trace as a module."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from girih._options import whole
from girih.networks.affine_maps import Convolution, LinearMap
from girih.networks.trace_steps import AffineStep, KinkStep, Step


class Abs(nn.Module):
    """The absolute value as a layer, `h -> |h|`.

    Example:
        >>> import torch
        >>> from girih.networks import Abs
        >>> Abs()(torch.tensor([-2.0, 3.0]))
        tensor([2., 3.])
    """

    def forward(self, h: Tensor) -> Tensor:
        """Apply the absolute value to each entry."""
        return h.abs()


class Maxout(nn.Module):
    """The maximum of each group of consecutive features, `(..., m k) -> (..., m)` for k pieces.

    Args:
        pieces: k, the number of features in a group.

    Example:
        >>> import torch
        >>> from girih.networks import Maxout
        >>> Maxout(2)(torch.tensor([[1.0, 3.0, -2.0, -5.0]]))
        tensor([[ 3., -2.]])
    """

    def __init__(self, pieces: int) -> None:
        super().__init__()
        self.pieces = whole(pieces, "pieces")

    def forward(self, h: Tensor) -> Tensor:
        """Take the maximum of each group."""
        result: Tensor = h.unflatten(-1, (-1, self.pieces)).amax(-1)
        return result


class StepLayer(nn.Module):
    """One step of a trace as a layer, which owns the tensors that the step reads.

    You meet it in networks that `girih.load` gives back; its inputs are in the shapes that the step takes.
    """

    step: Step

    @property
    def takes(self) -> int | None:
        """The number of features of its first input, where the step tells it."""
        step = self.step
        if isinstance(step, AffineStep):
            return math.prod(step.shapes[0])
        return step.size if isinstance(step, KinkStep) else None

    def own(self, name: str, tensor: Tensor) -> None:
        """Hold a tensor under a name: a parameter, or a buffer."""
        if isinstance(tensor, nn.Parameter):
            self.register_parameter(name, tensor)
        else:
            self.register_buffer(name, tensor)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weight and the bias of a linear map or a convolution anew, as torch's own layers draw theirs."""
        step = self.step
        if not isinstance(step, AffineStep) or not isinstance(step.operator, LinearMap | Convolution):
            return
        weight, bias = (self._parameters.get(name) for name in ("weight", "shift"))
        if weight is None or weight.ndim < 2:
            return
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5.0))
        if bias is not None:
            bound = 1.0 / math.sqrt(weight[0].numel())
            nn.init.uniform_(bias, -bound, bound)

    def forward(self, *values: Tensor) -> Tensor:
        """The step, in the type of numbers of its inputs."""
        step, rows, kind = self.step, len(values[0]), values[0].dtype
        found = step.values(*(value.flatten(1) for value in values)).to(kind)
        return found.reshape(rows, *step.shape) if isinstance(step, AffineStep) else found

    def extra_repr(self) -> str:
        """Shown by `print(net)`."""
        return f"{self.step.kind}, {self.step.size} features"


class StepNetwork(nn.Module):
    """The steps of a trace as a module, from z `(N, S)` to x `(N, ...)`.

    It can be trained, saved and traced again, to the same steps.

    Args:
        steps: of the trace; the first is the latent.
        layers: of the steps after it.
        output: the index of the step that is the output.
        shape: of one output.
    """

    def __init__(self, steps: Sequence[Step], layers: Sequence[nn.Module], output: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.latent_dim, self.output, self.shape = steps[0].size, output, shape
        self.inputs = tuple(step.inputs for step in steps[1:])
        self.shapes = tuple(
            step.shapes if isinstance(step, AffineStep) else ((steps[step.inputs[0]].size,),) for step in steps[1:]
        )
        self._given = ((steps[0].size,), *(s.shape if isinstance(s, AffineStep) else (s.size,) for s in steps[1:]))

    def forward(self, z: Tensor) -> Tensor:
        """The output of the last step, in the shape of one output."""
        values = [z]
        for layer, inputs, shapes in zip(self.layers, self.inputs, self.shapes, strict=True):
            taken = [
                values[i] if self._given[i] == shape else values[i].reshape(-1, *shape)
                for i, shape in zip(inputs, shapes, strict=True)
            ]
            values.append(layer(*taken))
        found = values[self.output]
        return found if self._given[self.output] == self.shape else found.reshape(-1, *self.shape)
