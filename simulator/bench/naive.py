"""The naive engine: what the public release of FLAP-SAM does in a round.

::

    per hospital   copy the whole model, train the copy, write its full state to disk
    server         read all K states, average the dense tensors, and per pair form the dense products s B_k A_k,
                   average them and factor the mean again with a randomised SVD on the CPU; load the result

Written from a description of the release. Batches, loss, optimizer and steps are those of every other engine of the
bench, so that only the engine differs.

Legend: K hospitals, s scale of a pair, r rank.

Source: Asokan et al., arXiv 2407.21739, and its released code (BioMedIA-MBZUAI/FLAP-SAM).

Differs from the release in: hospitals are weighted by their examples, not by constants; the singular values are divided
by the scale, which is 1 there; the random sketch is seeded.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from ...aggregators.arithmetic import unfolded, weighted_mean
from ...aggregators.contract import ClientUpdate, Pair, Tensors
from ..runtime import Runtime
from .bare import descend
from .kernel import through_randomised
from .workload import Materials, Workload, materials

KNOWN = ("flap_sam", "fedavg")
"""Aggregators that the engine knows: products of pairs factored again, or the mean of every tensor."""


class Naive:
    """The global model on the device, and a folder for the states of the hospitals."""

    def __init__(self, made: Materials) -> None:
        self.made = made
        model, self.layout = made.model()
        self.model = model.requires_grad_(False).to(made.device, made.dtype)
        self.trained = {name: self.model.get_parameter(name).requires_grad_(True) for name in self.layout.names}
        self.folder = TemporaryDirectory(prefix="wardround-naive-")
        self.number = 0
        self.seconds = 0.0

    def round(self) -> float:
        """Trains every hospital on a copy of the model, and aggregates; the mean training loss."""
        self.number += 1
        losses = [
            loss for name in self.made.windows for loss in self._visit(name, self.made.batches(name, self.number))
        ]
        self._aggregate()
        return float(torch.stack(losses).double().mean())

    def idle(self) -> None:
        """Copies, writes, reads, aggregates and loads; then puts back what the model was."""
        before = {name: value.detach().clone() for name, value in self.trained.items()}
        for name in self.made.windows:
            self._visit(name, ())
        self._aggregate()
        self.model.load_state_dict(before, strict=False)

    def aggregation_s(self) -> float | None:
        """Seconds that reading, averaging, factoring and loading took in the last round, idle or not."""
        return self.seconds

    def facts(self) -> Mapping[str, str | float]:
        """None of its own."""
        return {}

    def close(self) -> None:
        """Removes the states."""
        self.folder.cleanup()

    def _visit(self, hospital: str, batches: Iterable[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """One hospital's part of a round: the losses of its steps, on the device."""
        local = copy.deepcopy(self.model)
        trained = [parameter for parameter in local.parameters() if parameter.requires_grad]
        losses = descend(self.made, local, trained, batches)
        torch.save(local.state_dict(), self._path(hospital))
        return losses

    def _aggregate(self) -> None:
        """Makes the global model of the states on disk."""
        begun = time.perf_counter()
        updates = [self._update(name) for name in self.made.windows]
        pairs = self.layout.pairs if self.made.workload.aggregator == "flap_sam" else ()
        factors = {name for pair in pairs for name in (pair.A, pair.B)}
        merged = weighted_mean(updates, [name for name in self.layout.names if name not in factors])
        self.model.load_state_dict({**merged, **self._factored(updates, pairs)}, strict=False)
        self.seconds = time.perf_counter() - begun

    def _update(self, hospital: str) -> ClientUpdate:
        """A hospital's full state, read from disk to the CPU."""
        state: Tensors = torch.load(self._path(hospital), map_location="cpu", weights_only=True)
        count = len(self.made.windows[hospital])
        steps = self.made.workload.steps
        return ClientUpdate(hospital=hospital, weight=count, num_examples=count, num_steps=steps, tensors=state)

    def _factored(self, updates: list[ClientUpdate], pairs: tuple[Pair, ...]) -> dict[str, Tensor]:
        """Both factors of every pair: ``B = U / s``, ``A = S V^T``."""
        if not pairs:
            return {}
        rank = len(self.trained[pairs[0].A])
        stacks = through_randomised(updates, pairs, rank, self.made.rng("naive", self.number))
        return {name: value for pair, (B, A) in stacks.items() for name, value in unfolded(B, A, pair).items()}

    def _path(self, hospital: str) -> Path:
        return Path(self.folder.name) / f"{hospital}.pth"


def prepare(workload: Workload, runtime: Runtime, device: torch.device) -> Naive:
    """The engine ``naive``. Raises ValueError for aggregators it does not know."""
    if workload.aggregator not in KNOWN:
        raise ValueError(f"aggregator: expected one of {KNOWN} with the naive engine, got {workload.aggregator!r}")
    return Naive(materials(workload, device))
