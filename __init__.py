"""Wardround: federated parameter-efficient fine-tuning of vision foundation models, on one machine.

The names below are loaded when they are first used, so that ``import wardround`` costs nothing:

* ``wardround.run``: runs an experiment, from its first round or from where it stopped, and gives its ``Run``;
* ``wardround.Run``: a run that is there, with its rows, its state, its model;
* ``wardround.runs``: all runs below a folder;
* ``wardround.Experiment``: everything that decides a run's result;
* ``wardround.load_experiment``: builds one, from a name, settings, and changes;
* ``wardround.base_network``: the network that an exported PEFT adapter belongs to;
* ``wardround.__version__``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .simulator.api import Run as Run
    from .simulator.api import load_experiment as load_experiment
    from .simulator.api import run as run
    from .simulator.api import runs as runs
    from .simulator.config import Experiment as Experiment
    from .simulator.exports.peft import base_network as base_network

    __version__: str

__all__ = ["Experiment", "Run", "__version__", "base_network", "load_experiment", "run", "runs"]

_WHERE = {
    "Experiment": "config",
    "Run": "api",
    "base_network": "exports.peft",
    "load_experiment": "api",
    "run": "api",
    "runs": "api",
}
"""The module of the simulator that holds a name."""


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f".simulator.{_WHERE[name]}", __name__), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("wardround")
    raise AttributeError(f"module 'wardround' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
