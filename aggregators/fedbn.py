"""FedBN: normalisation stays at the hospital (Li et al., 2021)."""

from __future__ import annotations

from dataclasses import dataclass

from .contract import Layout, ServerState, Setting, Streams
from .personal import PersonalMean


@dataclass(frozen=True, kw_only=True)
class FedBn(PersonalMean):
    """FedAvg over everything but the normalisation layers, which every hospital has for itself.

    ::

        (theta_k, norm_k) <- train F_k from (theta, norm_k),    theta <- sum_k p_k theta_k

    Scale and shift of a normalisation follow the statistics of the images (scanner, protocol), which is what hospitals
    differ in. SAM has layer norm, which keeps no running statistics: what stays are its gamma and beta, and only where
    the method trains them. ``lora`` trains none; methods that train no more of the decoder than its head
    (``attention_code``, ``partial_decoder``, ``flap_sam``) train those of the upscaler alone; the others
    (``full``, ``decoder``, ``lora_decoder``, ``samed``, ``ma_sam``) train more. Of a ViT, ``full`` trains both and
    ``bias`` the beta.

    All hospitals start from the same normalisation. A site never seen gets these initial values, those of the
    pretrained model where there is one: layer norm has no statistics that could be calibrated on images alone.

    On low-rank pairs the server averages factors, as FedAvg does: the result depends on the choice of the factors (the
    gauge), and hospitals need one rank.

    Traffic: per pair r (d_out + d_in) up and r (d_out + d_in) down, as FedAvg; nothing for the norms.

    Source: Li et al., "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization", arXiv 2102.07623,
    Algorithm 1.

    Differs from the paper in: layer norm instead of batch norm, hence no running statistics.
    """

    def personal(self, layout: Layout) -> tuple[str, ...]:
        """Scale and shift of the normalisation layers."""
        return tuple(name for name in layout.names if layout.kind[name] == "norm")

    def init(self, setting: Setting, rng: Streams) -> ServerState:
        """Round 0: the initial values.

        Raises:
            ValueError: no normalisation trains or nothing else does, or hospitals have different ranks.
        """
        _check_norms(self.personal(setting.layout), setting.layout)
        return super().init(setting, rng)


def _check_norms(norms: tuple[str, ...], layout: Layout) -> None:
    if not norms:
        raise ValueError(
            "expected trainable normalisation layers to keep at the hospitals, got a method that trains none: use one "
            "that does (full, decoder, lora_decoder, samed, ma_sam; flap_sam has those of the upscaler; for a ViT "
            "full, or bias for the shifts alone), or fedavg"
        )
    if set(norms) == set(layout.names):
        raise ValueError(
            "expected something to share, got a layout of normalisation layers alone, so that nothing would travel: "
            "train more, or use the aggregator local"
        )
