"""Wardround: federated parameter-efficient fine-tuning of vision foundation models, on one machine.

The names below are loaded when they are first used, so that ``import wardround`` costs nothing:

* ``wardround.run``: an experiment, from its first round or from where it stopped;
* ``wardround.Experiment``: everything that decides a run's result;
* ``wardround.__version__``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .simulator.config import Experiment as Experiment
    from .simulator.run import run as run

    __version__: str

__all__ = ["Experiment", "__version__", "run"]


def __getattr__(name: str) -> Any:
    if name == "Experiment":
        from .simulator.config import Experiment

        return Experiment
    if name == "run":
        from .simulator.run import run

        return run
    if name == "__version__":
        from importlib.metadata import version

        return version("wardround")
    raise AttributeError(f"module 'wardround' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
