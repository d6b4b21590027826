"""One thread for all tests of the ladder."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread():
    """Products this small only wait for a second thread."""
    torch.set_num_threads(1)
