"""What happens inside a hospital: the model replica, its adapters, local training and evaluation.

A model is a frozen keyword-only dataclass with the methods of :class:`~wardround.clients.network.Model` (``sam.py``,
``vit.py``), a method one with ``attach`` and ``initialise`` (``methods.py``), a loss a function of logits and labels
(``losses.py``). To add one: its file, a row in a table, a row in the contract test
(``wardround.clients.testing.check_method``).
"""

from .class_losses import CrossEntropy, Focal
from .losses import Loss, SegmentationLoss
from .methods import METHODS
from .network import Model
from .sam import Sam
from .vit import Vit

MODELS: dict[str, type[Model]] = {"sam": Sam, "vit": Vit}

LOSSES: dict[str, type[Loss]] = {"segmentation": SegmentationLoss, "cross_entropy": CrossEntropy, "focal": Focal}

__all__ = ["LOSSES", "METHODS", "MODELS"]
