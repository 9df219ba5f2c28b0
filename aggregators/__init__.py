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

from .fedavg import FedAvg
from .flap_sam import FlapSam
from .local import Local

AGGREGATORS: dict[str, type] = {
    "fedavg": FedAvg,
    "fedit": FedAvg,
    "flap_sam": FlapSam,
    "local": Local,
}

__all__ = ["AGGREGATORS", "FedAvg", "FlapSam", "Local"]
