"""What every test starts from: no network, two threads at most, fixed seeds."""

import os
import random

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import torch

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", min(2, os.cpu_count() or 1))))


@pytest.fixture(autouse=True)
def seeds():
    """Each test draws the same numbers, alone or in company."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - for code under test that draws from the global state
    torch.manual_seed(0)
