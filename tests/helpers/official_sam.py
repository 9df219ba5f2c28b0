"""The package segment-anything without its own ``__init__``, which needs torchvision for drawing."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest


@contextmanager
def official_sam() -> Iterator[ModuleType]:
    """``segment_anything`` with its modules and its registry, for as long as it is held."""
    found = importlib.util.find_spec("segment_anything")
    if found is None:
        pytest.skip("segment-anything is not installed")
    package = ModuleType("segment_anything")
    package.__spec__ = importlib.machinery.ModuleSpec("segment_anything", None, is_package=True)
    package.__path__ = list(found.submodule_search_locations or ())
    sys.modules["segment_anything"] = package
    package.sam_model_registry = importlib.import_module("segment_anything.build_sam").sam_model_registry  # type: ignore[attr-defined]
    try:
        yield package
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "segment_anything"]:
            del sys.modules[name]
