import os

import pytest
import torch

from girih_papers import registry

os.environ.setdefault("MPLBACKEND", "Agg")
torch.set_num_threads(1)  # the problems are small: threads would only wait for each other


@pytest.fixture(scope="module")
def result(request, tmp_path_factory):
    """The folder and the result of a smoke run of the module's `REPRODUCTION`, with its `CHANGES` if it has any."""
    name, changes = request.module.REPRODUCTION, getattr(request.module, "CHANGES", None)
    folder = tmp_path_factory.mktemp(name)
    return folder, registry.run(name, folder, quick=True, progress=False, changes=changes)
