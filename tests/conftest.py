import gc
import os

import torch

os.environ.setdefault("MPLBACKEND", "Agg")
torch.set_num_threads(1)  # the problems are small: threads would only wait for each other


def pytest_collection_finish():
    """Modules and tests stay to the end: the garbage collector need not look at them again and again."""
    gc.freeze()
