"""Plain local training: the hospital's half of every algorithm that only differs at the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .contract import Download, Fit, LocalResult, Phase, Tensors


@dataclass(frozen=True, kw_only=True)
class PlainTraining:
    """One phase over what the download says may train; sends what it announced; remembers nothing."""

    def phases(self, download: Download, memory: Tensors) -> Sequence[Phase]:
        """One phase, from the download."""
        return [Phase(train=download.train)]

    def finish(self, download: Download, fits: Sequence[Fit], memory: Tensors) -> LocalResult:
        """The announced tensors as the phase left them."""
        return LocalResult(tensors={name: fits[-1].tensors[name] for name in download.returns})
