"""Format ``hf``: the merged model as a directory of ``transformers``.

A ViT becomes a ``ViTForImageClassification`` with its class names and an image processor, a SAM a ``SamModel``, whose
masks 1..C come with ``multimask_output=True`` and background, mask 0, with ``False``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...aggregators.contract import Tensors
from ...clients.hugging_face import sam_model, save, vit_classifier
from ...clients.merged import merged_state
from ...clients.network import Model
from ...clients.sam import Sam, SamNet
from ...clients.vit import Vit, VitNet
from ..files import write_json
from ..trained import Trained
from .contract import Recipe
from .preparation import preparation

BILINEAR = 2
"""Pillow's number of bilinear resampling, as image processors have it."""

VIT_CODE = """\
import torch
from PIL import Image
from transformers import AutoImageProcessor, ViTForImageClassification

processor = AutoImageProcessor.from_pretrained(".")
model = ViTForImageClassification.from_pretrained(".").eval()
image = Image.new("RGB", ({size}, {size}))  # yours: Image.open(FILE).convert("RGB")
with torch.no_grad():
    logits = model(**processor(image, return_tensors="pt")).logits  # (1, {classes})
for number, probability in enumerate(logits.softmax(-1)[0].tolist()):
    print(model.config.id2label[number], round(probability, 3))
"""

SAM_CODE = """\
import torch
from transformers import SamModel

model = SamModel.from_pretrained(".").eval()
pixels = torch.rand(1, 3, {size}, {size})  # yours: a slice in [0, 1], the same in all three channels
with torch.no_grad():
    embedding = model.get_image_embeddings(pixels)
    background = model(image_embeddings=embedding, multimask_output=False).pred_masks[:, 0]
    structures = model(image_embeddings=embedding, multimask_output=True).pred_masks[:, 0]
logits = torch.cat([background, structures], dim=1)  # (1, {maps}, {logits}, {logits})
labels = torch.nn.functional.interpolate(logits.softmax(1), ({size}, {size}), mode="bilinear").argmax(1)
"""


def export_hf(trained: Trained, folder: Path) -> Recipe:
    """Writes the merged model as a directory of ``transformers``; see :class:`.contract.Format`."""
    network = trained.replica.model
    write_hf(merged_state(network), trained.experiment.model, trained.classes, folder)
    if isinstance(network, VitNet):
        code = VIT_CODE.format(size=network.image_size, classes=len(trained.classes))
    else:
        assert isinstance(network, SamNet)  # write_hf knows no third kind
        code = SAM_CODE.format(size=network.image_size, logits=network.logit_size, maps=len(trained.classes) + 1)
    return Recipe(library="transformers", code=code, notes=preparation(trained))


def write_hf(state: Tensors, model: Model, classes: Sequence[str], folder: Path) -> None:
    """Writes a network without adapters as a directory that ``transformers`` loads.

    Args:
        state: All its tensors in our names, merged ones or those of the base.
        model: The model plug-in that the network was built by.
        classes: Names of the C classes.
        folder: An empty folder.

    Raises:
        ValueError: ``transformers`` has no such model.
    """
    network = model.build_meta(len(classes))
    if isinstance(model, Vit) and isinstance(network, VitNet):
        save(vit_classifier(network, state, classes), folder)
        write_json(folder / "preprocessor_config.json", _processor(network))
    elif isinstance(model, Sam) and isinstance(network, SamNet):
        save(sam_model(network, state), folder)
    else:
        raise ValueError(f"expected the model sam or vit, got {type(model).__name__}")


def _processor(network: VitNet) -> dict[str, object]:
    """The settings of an image processor that prepares images as ours are prepared."""
    side = network.image_size
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": network.mean.flatten().tolist(),
        "image_std": network.std.flatten().tolist(),
    }
