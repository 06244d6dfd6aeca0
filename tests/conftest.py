"""Small models are fast on one thread."""

import torch

torch.set_num_threads(1)  # on models this small, more threads only wait for each other
