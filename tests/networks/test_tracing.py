"""What cannot be traced is refused with the name of the layer, its type and a remedy."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import girih
from girih.errors import ParameterError, UnsupportedLayerError
from girih.networks import Maxout


class Forward(nn.Module):
    """A module with two Linear layers, a tensor and the forward pass that it is given."""

    def __init__(self, forward) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(1, 4), nn.Linear(4, 2)
        self.shift = nn.Parameter(torch.zeros(4))
        self._forward = forward

    def forward(self, z):
        return self._forward(self, z)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(1, 4)

    def forward(self, z, y):
        return self.a(z)


def around(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(1, 4), layer, nn.Linear(4, 2))


def branch_on_value(module: Forward, z):
    return module.b(module.a(z)) if z.sum() > 0 else module.b(-module.a(z))


REFUSED = {
    "tanh": (around(nn.Tanh()), "layer '1' is Tanh, which is not supported; a smooth activation has no cells"),
    "gelu": (around(nn.GELU()), "layer '1' is GELU.*use a piecewise-linear one"),
    "batch norm": (around(nn.BatchNorm1d(4)), r"layer '1' is BatchNorm1d in training mode; call net.eval\(\) first"),
    "bicubic": (
        nn.Sequential(nn.Linear(1, 4), nn.Unflatten(1, (1, 2, 2)), nn.Upsample(4, mode="bicubic")),
        "layer '2'.*'bicubic'",
    ),
    "hardshrink": (around(nn.Hardshrink(0.5)), "layer '1' is Hardshrink jumps at 0.5.*use Softshrink"),
    "layer norm": (around(nn.LayerNorm(4)), "layer '1' is LayerNorm, which is not supported"),
    "product": (Forward(lambda m, z: m.b(m.a(z) * m.a(z))), "the call 'mul'.*multiplies two branches"),
    "rows": (Forward(lambda m, z: m.b(m.a(z).flip(0))), "the call 'flip'.*mixes the rows of a batch"),
    "batch size": (Forward(lambda m, z: m.b(m.a(z) * z.shape[0])), "differs from the module"),
    "long window": (nn.Sequential(nn.Linear(1, 200), Maxout(200)), "layer '1' over 200 features"),
    "other file": ("net.pth", "net.pth is not a .pt2 file, nor an .onnx one; write one with torch.export.save or"),
    "dropout": (around(nn.Dropout(0.1)), r"layer '1' is Dropout in training mode; call net.eval\(\) first"),
    "nested name": (nn.Sequential(nn.Linear(1, 4), nn.Sequential(nn.SiLU())), "layer '1.0' is SiLU"),
    "function": (Forward(lambda m, z: m.b(torch.sigmoid(m.a(z)))), "the call 'sigmoid'.*is not supported"),
    "method": (Forward(lambda m, z: m.b(m.a(z).tanh())), "the call 'tanh'.*is not supported"),
    "functional dropout": (Forward(lambda m, z: m.b(F.dropout(m.a(z)))), "the call 'dropout'.*is not supported"),
    "control flow": (Forward(branch_on_value), "Forward could not be traced.*a fixed chain of layers"),
    "two outputs": (Forward(lambda m, z: (m.a(z), z)), "returns 2 tensors"),
    "two inputs": (TwoInputs(), "takes more than one input"),
    "no Linear": (nn.Sequential(nn.ReLU()), "has no Linear layer"),
    "sizes": (nn.Sequential(nn.Linear(1, 4), nn.Linear(3, 2)), "layer '1' takes 3 features, but .* gives 4"),
    "not a module": (lambda z: z, "expected a torch.nn.Module, got function"),
}


@pytest.mark.parametrize(("net", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(net, message):
    with pytest.raises(UnsupportedLayerError, match=f"(?s){message}"):
        girih.trace(net)


def test_prelu_with_the_wrong_number_of_slopes():
    with pytest.raises(ParameterError, match="layer '1' has 3 slopes for 4 units"):
        girih.trace(around(nn.PReLU(3)))
