"""A model of two parameters and a loss with noise."""

import numpy as np
import torch
from torch import nn

from girih.training import fit_gradient

X = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64)[:, None]


def line():
    model = nn.Linear(1, 1, dtype=torch.float64)
    with torch.no_grad():
        model.weight.fill_(0.5)
        model.bias.fill_(-1.0)
    return model


def noisy(model, x):
    """A loss that draws from torch's generator."""
    return (model(x) - 3.0 * x - torch.randn_like(x)).square()


def fit(model, loss=noisy, **options):
    return fit_gradient(model, X, loss=loss, **{"lr": 0.01, "max_epochs": 30, "progress": False, **options})


def weights(model):
    return [value.clone() for value in model.state_dict().values()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def check_same_history(first, second):
    assert first.keys() == second.keys()
    for name in first.keys() - {"seconds"}:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
