"""What the server does with the updates of the hospitals: one algorithm, one file, both halves of it.

To add one: a file with a frozen keyword-only dataclass that has the methods of
:class:`~wardround.aggregators.contract.Aggregator`, a row in :data:`AGGREGATORS`, and a row in the contract test. Plain
local training is there to be reused (:mod:`~wardround.aggregators.plain`), as are weighted means and low-rank factors
(:mod:`~wardround.aggregators.arithmetic`, :mod:`~wardround.aggregators.lowrank`). To see one at work without a model,
run it on the toy federation (:mod:`~wardround.aggregators.toy`).

An aggregator outside the package needs no row: ``aggregator: {class: "mypackage.mine:MyAggregator"}``, and
:func:`wardround.aggregators.testing.check_aggregator` runs the contract suite on it.
"""

from __future__ import annotations

from .bulyan import Bulyan
from .centred_clipping import CentredClipping
from .ditto import Ditto
from .fedadagrad import FedAdagrad
from .fedadam import FedAdam
from .fedavg import FedAvg
from .fedavgm import FedAvgM
from .fedbn import FedBn
from .feddyn import FedDyn
from .fedex_lora import FedExLora
from .fedmomentum import FedMomentum
from .fednova import FedNova
from .fedper import FedPer
from .fedprox import FedProx
from .fedrep import FedRep
from .fedrot_lora import FedRotLora
from .fedrpca import FedRpca
from .fedsa_lora import FedSaLora
from .fedsvd import FedSvd
from .fedyogi import FedYogi
from .ffa_lora import FfaLora
from .flap_sam import FlapSam
from .flexlora import FlexLora
from .flora import Flora
from .flora_na import FloraNa
from .florist import Florist
from .geometric_median import GeometricMedian
from .hetlora import HetLora
from .krum import Krum, MultiKrum
from .local import Local
from .lora_fair import LoraFair
from .lora_fair_ridge import LoraFairRidge
from .median import Median
from .moon import Moon
from .padded_fedavg import PaddedFedAvg
from .qfedavg import QFedAvg
from .raflora import RaFlora
from .rolora import RoLora
from .scaffold import Scaffold
from .trimmed_mean import TrimmedMean

AGGREGATORS: dict[str, type] = {
    "fedavg": FedAvg,
    "fedit": FedAvg,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedadagrad": FedAdagrad,
    "fedprox": FedProx,
    "fednova": FedNova,
    "qfedavg": QFedAvg,
    "padded_fedavg": PaddedFedAvg,
    "hetlora": HetLora,
    "ffa_lora": FfaLora,
    "rolora": RoLora,
    "fedsa_lora": FedSaLora,
    "lora_fair": LoraFair,
    "lora_fair_ridge": LoraFairRidge,
    "flora_na": FloraNa,
    "fedrot_lora": FedRotLora,
    "fedrpca": FedRpca,
    "flap_sam": FlapSam,
    "flexlora": FlexLora,
    "raflora": RaFlora,
    "florist": Florist,
    "fedsvd": FedSvd,
    "flora": Flora,
    "fedex_lora": FedExLora,
    "fedmomentum": FedMomentum,
    "scaffold": Scaffold,
    "feddyn": FedDyn,
    "moon": Moon,
    "ditto": Ditto,
    "fedper": FedPer,
    "fedrep": FedRep,
    "fedbn": FedBn,
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "krum": Krum,
    "multi_krum": MultiKrum,
    "bulyan": Bulyan,
    "geometric_median": GeometricMedian,
    "centred_clipping": CentredClipping,
    "local": Local,
}

__all__ = [
    "AGGREGATORS",
    "FedAvg",
    "FedAvgM",
    "FedAdam",
    "FedYogi",
    "FedAdagrad",
    "FedProx",
    "FedNova",
    "QFedAvg",
    "PaddedFedAvg",
    "HetLora",
    "FfaLora",
    "RoLora",
    "FedSaLora",
    "FlapSam",
    "FlexLora",
    "RaFlora",
    "Florist",
    "FedSvd",
    "Flora",
    "FedExLora",
    "FedMomentum",
    "Scaffold",
    "FedDyn",
    "Moon",
    "Ditto",
    "FedPer",
    "FedRep",
    "FedBn",
    "Median",
    "TrimmedMean",
    "Krum",
    "MultiKrum",
    "Bulyan",
    "GeometricMedian",
    "CentredClipping",
    "Local",
    "LoraFair",
    "LoraFairRidge",
    "FloraNa",
    "FedRotLora",
    "FedRpca",
]
