"""Where the cases come from: one data set, one file; and how volumes become training windows.

``phantom`` makes its own volumes in the layout of one of the others. ``fed_kits19``, ``fed_ixi`` and ``prostate`` are
the federations of FLAP-SAM, ``synapse`` is SAMed's data, ``msd`` reads any task of the Medical Segmentation Decathlon
and ``volumes`` any list of NIfTI files. Of images with a class each, ``medmnist`` reads MedMNIST, ``ham10000`` and
``fed_isic2019`` are federations of skin lesions, and ``images`` reads any folder.

To add a data set: one file with a frozen keyword-only dataclass that has the methods of
:class:`~wardround.datasets.contract.Dataset`, one row in :data:`DATASETS`, one row in the contract test
(``tests/datasets/test_contract.py``). A class outside this package runs the same suite with
:func:`wardround.datasets.testing.check_dataset`. Partitions (:data:`PARTITIONS`) and augmentations (:data:`AUGMENTS`)
are added in the same way.
"""

from collections.abc import Mapping

from .augment import AUGMENTS
from .fed_isic2019 import FedIsic2019
from .fed_ixi import FedIxi
from .fed_kits19 import FedKits19
from .ham10000 import Ham10000
from .image_folder import ImageFolder
from .image_phantom import ImagePhantom
from .medmnist import MedMnist
from .msd import Msd
from .partition import PARTITIONS
from .phantom import Phantom
from .prostate import Prostate
from .synapse import Synapse
from .volumes import Volumes

DATASETS: Mapping[str, type] = {
    "phantom": Phantom,
    "fed_kits19": FedKits19,
    "fed_ixi": FedIxi,
    "prostate": Prostate,
    "msd": Msd,
    "synapse": Synapse,
    "volumes": Volumes,
    "image_phantom": ImagePhantom,
    "images": ImageFolder,
    "medmnist": MedMnist,
    "ham10000": Ham10000,
    "fed_isic2019": FedIsic2019,
}

__all__ = ["AUGMENTS", "DATASETS", "PARTITIONS"]
