"""Where the cases come from: one federation, one file; and how volumes become training windows.

``phantom`` makes its own volumes, ``msd`` reads any folder in the layout of the Medical Segmentation Decathlon.

To add a data set: one file with a frozen keyword-only dataclass that has the fields and methods of
:class:`~wardround.datasets.contract.Dataset`, one row in :data:`DATASETS`, one row in the contract test
(``tests/datasets/test_contract.py``). A class outside this package runs the same suite with
:func:`wardround.datasets.testing.check_dataset`. An augmentation is added in the same way to :data:`AUGMENTS`.
"""

from collections.abc import Mapping

from .augment import AUGMENTS
from .msd import Msd
from .phantom import Phantom

DATASETS: Mapping[str, type] = {"phantom": Phantom, "msd": Msd}

__all__ = ["AUGMENTS", "DATASETS"]
