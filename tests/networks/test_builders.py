import pytest
import torch
from torch import nn

import girih
from girih.errors import ParameterError
from girih.networks import Abs


@pytest.mark.parametrize(("activation", "layer"), [("relu", nn.ReLU), ("leaky_relu", nn.LeakyReLU), ("abs", Abs)])
def test_mlp_has_an_activation_between_affine_layers(activation, layer):
    net = girih.mlp([1, 4, 3, 2], activation=activation)
    assert [type(part) for part in net] == [nn.Linear, layer, nn.Linear, layer, nn.Linear]
    assert [part.weight.shape for part in net[::2]] == [(4, 1), (3, 4), (2, 3)]
    assert {p.dtype for p in net.parameters()} == {torch.float64}


def test_negative_slope_is_used():
    assert girih.mlp([1, 2, 2], negative_slope=-0.3)[1].negative_slope == -0.3


def test_without_a_seed_torch_decides():
    torch.manual_seed(0)
    first, other = (girih.mlp([1, 5, 2]) for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(girih.mlp([1, 5, 2])[0].weight, first[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)


def test_seed_fixes_the_weights_and_leaves_the_global_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first, second, other = (girih.mlp([1, 5, 2], seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first[0].weight, other[0].weight)


@pytest.mark.parametrize("sizes", [[1], [], [1, 0, 2], [-1, 2]])
def test_bad_sizes_are_refused(sizes):
    with pytest.raises(ParameterError, match="sizes must be at least two widths"):
        girih.mlp(sizes)


def test_unknown_activation_and_infinite_slope_are_refused():
    with pytest.raises(ParameterError, match=r"activation must be one of relu, leaky_relu, abs; got 'tanh'"):
        girih.mlp([1, 2], activation="tanh")
    with pytest.raises(ParameterError, match="negative_slope must be a finite number"):
        girih.mlp([1, 2, 2], negative_slope=float("nan"))
