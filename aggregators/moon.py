"""MOON: a contrast between the features of three models (Li, He and Song, 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .contract import Download, Fit, LocalResult, LocalRule, Phase, ServerState, Setting, Streams, Tensors
from .fedavg import FedAvg
from .ranges import check_not_negative, check_positive


@dataclass(frozen=True, kw_only=True)
class Contrastive:
    """Draws features towards those of the model it was handed and away from those of the one it last sent."""

    mu: float
    temperature: float

    def phases(self, download: Download, memory: Tensors) -> Sequence[Phase]:
        """Plain training in a hospital's first round, in which there is nothing to be different from."""
        if not memory:
            return [Phase(train=download.train)]
        references = {"global": download.start, "previous": {**download.start, **memory}}
        return [Phase(train=download.train, references=references, contrast=self.contrast)]

    def contrast(self, features: Tensor, references: Mapping[str, Tensor], context: Tensors) -> Tensor:
        """The contrastive loss of features (B, D), averaged over the batch."""
        others = [references["global"], references["previous"]]
        cosines = torch.stack([_cosine(features, other) for other in others])  # (2, B)
        return -self.mu * torch.log_softmax(cosines / self.temperature, dim=0)[0].mean()

    def finish(self, download: Download, fits: Sequence[Fit], memory: Tensors) -> LocalResult:
        """Sends the tensors and remembers the model as it is."""
        sent = {name: fits[0].tensors[name] for name in download.returns}
        return LocalResult(tensors=sent, memory=fits[0].tensors)


def _cosine(left: Tensor, right: Tensor) -> Tensor:
    """Cosine similarities (B,) in float32 or better: autocast may hand over half precision."""
    dtype = torch.promote_types(left.dtype, torch.float32)
    return torch.cosine_similarity(left.to(dtype), right.to(dtype), dim=-1)


@dataclass(frozen=True, kw_only=True)
class Moon(FedAvg):
    """FedAvg with a contrastive term in the local loss, which keeps the features near those of the global model.

    ::

        F_k(theta) + mu mean_x ( - log  e^{cos(z, z_global) / T} / (e^{cos(z, z_global) / T} + e^{cos(z, z_prev) / T}) )

    Legend: z the features of image x under theta, z_global under the model that was broadcast, z_prev under the model
    that the hospital last sent; T temperature.

    The feature is the mean of SAM's image embedding over its grid. Only what comes before it can be drawn anywhere, so
    that MOON needs a method that trains some of the encoder. In a hospital's first round there is no previous model and
    it trains plainly, so that round 1 is FedAvg. A step costs three passes through the encoder instead of one.

    On low-rank pairs the term itself does not depend on the choice of the factors (the gauge), but the server averages
    factors, as FedAvg does, and needs hospitals of one rank.

    Traffic: per pair r (d_out + d_in) up and r (d_out + d_in) down, as FedAvg. The hospital remembers one model.

    Args:
        mu: Weight of the contrast, >= 0; 0 is FedAvg. The paper tunes it in 0.1, 1, 5, 10.
        temperature: T, > 0.

    Example:
        >>> Moon(temperature=0.0)
        Traceback (most recent call last):
        ...
        ValueError: temperature: expected a number above 0, got 0.0

    Source: Li, He and Song, "Model-Contrastive Federated Learning", arXiv 2103.16257, equations 3 and 4, and its
    released code (QinbinLi/MOON), whose default mu = 1 and first round without contrast these are.

    Differs from the paper in: no projection head; z is the pooled image embedding. After a pause, "previous" is the
    model of the hospital's last round, however long ago.
    """

    mu: float = 1.0
    temperature: float = 0.5

    def __post_init__(self) -> None:
        check_not_negative(mu=self.mu)
        check_positive(temperature=self.temperature)

    @property
    def rule(self) -> LocalRule:
        """Training with the contrast."""
        return Contrastive(mu=self.mu, temperature=self.temperature)

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        """Round 0: the initial values.

        Raises:
            ValueError: nothing of the encoder trains, or hospitals have different ranks.
        """
        parts = set(setting.layout.part.values())
        if "encoder" not in parts:
            raise ValueError(
                f"moon contrasts image embeddings: expected a method that trains some of the encoder, got one that "
                f"trains {', '.join(sorted(parts))} alone, for which the contrast is constant. Use a method with "
                "adapters in the encoder (lora, flap_sam), or fedprox to stay near the global model"
            )
        return super().init(setting, rng)
