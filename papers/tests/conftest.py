import os

import torch

os.environ.setdefault("MPLBACKEND", "Agg")
torch.set_num_threads(1)  # the problems are small: threads would only wait for each other
