"""Format ``sam-pth``: the merged SAM as a ``.pth`` in the names of facebookresearch/segment-anything."""

from __future__ import annotations

from pathlib import Path

import torch

from ...clients.hugging_face import check_official, copied
from ...clients.merged import merged_state
from ...clients.sam import SIZES, SamNet
from ...clients.sam_weights import official_name
from ..trained import Trained
from .contract import Recipe
from .preparation import preparation

FILE = "sam.pth"
"""The name of the file."""

REGISTRY = {"vit-b": "vit_b", "vit-l": "vit_l", "vit-h": "vit_h"}
"""Our sizes by their names in ``sam_model_registry``, which builds them for 1024 px and 3 classes."""

REGISTRY_BUILD = """\
import torch
from segment_anything import sam_model_registry

sam = sam_model_registry["{name}"](checkpoint="sam.pth")
"""

OWN_BUILD = """\
from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

sam = Sam(
    image_encoder=ImageEncoderViT(
        img_size={side},
        patch_size={size.patch},
        embed_dim={size.width},
        depth={size.layers},
        num_heads={size.heads},
        out_chans={size.neck},
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size={size.window},
        global_attn_indexes={size.global_layers},
    ),
    prompt_encoder=PromptEncoder(
        embed_dim={size.neck},
        image_embedding_size=({grid}, {grid}),
        input_image_size=({side}, {side}),
        mask_in_chans=16,
    ),
    mask_decoder=MaskDecoder(
        transformer_dim={size.neck},
        transformer=TwoWayTransformer(
            depth=2, embedding_dim={size.neck}, num_heads={size.decoder_heads}, mlp_dim={size.decoder_mlp}
        ),
        num_multimask_outputs={classes},
        iou_head_hidden_dim={size.neck},
    ),
)
sam.load_state_dict(torch.load("sam.pth", weights_only=True))
sam.eval()
"""

ASK = """\
pixels = torch.rand(1, 3, {side}, {side})  # yours: a slice in [0, 1], the same in all three channels
with torch.no_grad():
    sparse, dense = sam.prompt_encoder(points=None, boxes=None, masks=None)
    logits, _ = sam.mask_decoder.predict_masks(
        sam.image_encoder(pixels), sam.prompt_encoder.get_dense_pe(), sparse, dense
    )  # (1, {maps}, {logits}, {logits})
labels = torch.nn.functional.interpolate(logits.softmax(1), ({side}, {side}), mode="bilinear").argmax(1)
"""


def export_sam_pth(trained: Trained, folder: Path) -> Recipe:
    """Writes the merged SAM as ``sam.pth``; see :class:`.contract.Format`."""
    network = trained.replica.model
    if not isinstance(network, SamNet):
        raise ValueError("expected a SAM, got a ViT; export it with --format hf")
    check_official(network)
    state = merged_state(network)
    torch.save({official_name(name): copied(value) for name, value in state.items()}, folder / FILE)
    notes = (
        *preparation(trained),
        "Ask `predict_masks`, which returns all maps; `Sam.forward` and `SamPredictor` prepare images as SAM does, and"
        " return background or the classes, not both. The package needs torchvision.",
    )
    return Recipe(library="segment-anything", code=_code(network, len(trained.classes)), notes=notes)


def _code(network: SamNet, classes: int) -> str:
    """Python that builds the ``Sam`` for the file and asks it."""
    side = network.image_size
    word = next((name for name, size in SIZES.items() if size == network.size), None)
    if word in REGISTRY and side == 1024 and classes == 3:
        built = REGISTRY_BUILD.format(name=REGISTRY[word])
    else:
        built = OWN_BUILD.format(size=network.size, side=side, grid=network.grid, classes=classes)
    return f"{built}\n{ASK.format(side=side, maps=classes + 1, logits=network.logit_size)}"
