"""What the tests on a CUDA device share."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch


@pytest.fixture(autouse=True)
def _empty_cache() -> None:
    """Every test begins with what it makes itself."""
    gc.collect()
    torch.cuda.empty_cache()


@contextmanager
def _no_waiting() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def no_waiting() -> AbstractContextManager[None]:
    """A block in which an operation that makes the host wait for the device is an error."""
    return _no_waiting()
