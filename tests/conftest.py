"""One thread for all tests: they are small, and faster for it on a shared machine."""

import torch

torch.set_num_threads(1)
