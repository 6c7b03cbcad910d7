import gc
import os

import numpy as np
import pytest
import torch

os.environ.setdefault("MPLBACKEND", "Agg")
torch.set_num_threads(1)  # the problems are small: threads would only wait for each other


def pytest_collection_finish():
    """Modules and tests stay to the end: the garbage collector need not look at them again and again."""
    gc.freeze()


@pytest.fixture(autouse=True)
def the_same_draws():
    """Weights that a test does not seed are the same in every run and every order: one that fails, fails again."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
