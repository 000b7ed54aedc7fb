"""Shared settings: two threads, a fixed seed per test."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _settled():
    torch.manual_seed(0)
    torch.set_num_threads(2)
