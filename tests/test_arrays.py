import pytest
import torch

from girih._arrays import as_rows, as_tensor
from girih.errors import ShapeError


def test_a_tensor_that_asks_for_gradients_keeps_them():
    value = torch.ones(2, requires_grad=True)
    as_tensor(value, "x").sum().backward()
    assert torch.equal(value.grad, torch.ones(2))


def test_a_single_row_or_column_is_promoted():
    assert as_rows([1.0, 2.0, 3.0], "x", 3, "D").shape == (1, 3)
    assert as_rows([1.0, 2.0, 3.0], "x", 1, "D").shape == (3, 1)
    with pytest.raises(ShapeError, match=r"x must be a table of shape \(N, 2\); got 1 dimension\(s\), shape \(3,\)"):
        as_rows([1.0, 2.0, 3.0], "x", 2, "D")


def test_ragged_lists_are_refused():
    with pytest.raises(ShapeError, match="x must be an array of numbers; could not convert it"):
        as_rows([[1.0, 2.0], [3.0]], "x", 2, "D")
