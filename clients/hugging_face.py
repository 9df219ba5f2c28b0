"""Our networks as models of ``transformers``: its ``SamModel`` and its ``ViTForImageClassification``, equal in logits.

The way back is that of :mod:`.sam_weights` and :mod:`.vit_weights`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from transformers import PreTrainedModel, SamModel, ViTForImageClassification
from transformers.utils import logging

from ..aggregators.contract import Tensors
from . import sam, vit
from .sam_weights import MATRIX, MATRIX_IN_HUGGING_FACE

_HEAD = "head."

Model = TypeVar("Model", bound=torch.nn.Module)


def vit_classifier(net: vit.VitNet, state: Tensors, classes: Sequence[str]) -> ViTForImageClassification:
    """A ViT of ours as one of ``transformers``. Its pixels are normalised already: ``(x - mean) / std``.

    Args:
        net: The network, on any device, the meta device too; only its dimensions are read.
        state: Its tensors by name, without adapters; they are copied, as fp32.
        classes: Names of the C classes, in the order of the logits.
    """
    with torch.device("meta"):
        model = ViTForImageClassification(vit.hugging_face_config(net, classes))
    renamed = {name.replace(_HEAD, "classifier.") if name.startswith(_HEAD) else name: state[name] for name in state}
    return _filled(model, renamed)


def sam_model(net: sam.SamNet, state: Tensors) -> SamModel:
    """A SAM of ours as one of ``transformers``, which keeps the positional matrix under two names.

    Its masks 1..C are those of ``multimask_output=True``, background is the one of ``multimask_output=False``.

    Args:
        net: The network, on any device, the meta device too; only its dimensions are read.
        state: Its tensors by name, without adapters; they are copied, as fp32.

    Raises:
        ValueError: the network has further upscaling stages, or its blocks are not SAM's.
    """
    check_official(net)
    with torch.device("meta"):
        model = SamModel(sam.hugging_face_config(net))
    return _filled(model, {**state, MATRIX_IN_HUGGING_FACE: state[MATRIX]})


def check_official(net: sam.SamNet) -> None:
    """Raises ValueError where a network is none that other programs call SAM."""
    if len(net.mask_decoder.upscale_more):
        raise ValueError(
            "expected model.upscaler: sam, as nobody else's SAM has further upscaling stages, got full: run"
            " again with that setting, or export --format peft, whose base may have them"
        )


def save(model: PreTrainedModel, folder: Path) -> None:
    """``save_pretrained`` without its progress bar, which is over before one sees it."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # theirs
    try:
        model.save_pretrained(folder)
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    for file in folder.glob("*.safetensors"):
        file.chmod((folder / "config.json").stat().st_mode)  # safetensors lets only the owner read


def _filled(model: Model, state: Tensors) -> Model:
    """The model with copies of these tensors, ready to be asked."""
    model.load_state_dict({name: copied(value) for name, value in state.items()}, assign=True)
    return model.eval()


def copied(value: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU, fp32 and contiguous, as files have it."""
    return value.detach().to("cpu", torch.float32, copy=True).contiguous()
