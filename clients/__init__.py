"""What happens inside a hospital: the model replica, its adapters, local training and evaluation.

A model is a frozen keyword-only dataclass with ``build``, ``build_meta`` and ``weights_hash`` (see ``sam.py``), a
method one with ``attach`` and ``initialise`` (see ``methods.py``). To add one: its file, a row in a table, a row in the
contract test (``wardround.clients.testing.check_method``).
"""

from .methods import METHODS
from .sam import Sam

MODELS: dict[str, type[Sam]] = {"sam": Sam}

__all__ = ["MODELS", "METHODS"]
