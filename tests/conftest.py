"""Makes `tiny` importable from every test directory, and small models fast."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)  # on models this small, more threads only wait for each other
