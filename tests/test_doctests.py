"""Every example in a docstring of the package runs and prints what it says."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
FOLDERS = ("aggregators", "clients", "datasets", "simulator")


def module_names() -> list[str]:
    """All modules of the package; the repository's other folders (tests, docs) are none of it."""
    names = ["wardround"]
    for folder in FOLDERS:
        package = importlib.import_module(f"wardround.{folder}")
        names.append(package.__name__)
        names += [info.name for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    return names


@pytest.mark.parametrize("name", module_names())
def test_examples(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=OPTIONS)
    assert failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [
        example for name in module_names() for example in finder.find(importlib.import_module(name)) if example.examples
    ]
    assert len(found) >= 4
