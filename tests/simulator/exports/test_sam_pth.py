"""The official names at the official sizes: what the registry of segment-anything loads as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from official_sam import official_sam

from wardround.clients.hugging_face import copied
from wardround.clients.sam import Sam
from wardround.clients.sam_weights import official_name
from wardround.simulator.exports.sam_pth import REGISTRY, _code
from wardround.simulator.randomness import generator, streams


@pytest.mark.parametrize("size", REGISTRY)
def test_three_classes_at_1024_px_have_the_tensors_of_the_registry(size: str) -> None:
    """On the meta device: names and shapes, no values."""
    ours = Sam(size=size, image_size=1024, upscaler="sam").build_meta(3)
    with official_sam() as package, torch.device("meta"):
        theirs = package.sam_model_registry[REGISTRY[size]]()
    shapes = {official_name(name): value.shape for name, value in ours.state_dict().items()}
    assert shapes == {name: value.shape for name, value in theirs.state_dict().items()}
    assert f'sam_model_registry["{REGISTRY[size]}"](checkpoint="sam.pth")' in _code(ours, 3)


@pytest.mark.parametrize(("side", "classes"), [(512, 3), (1024, 2)])
def test_other_models_are_built_piece_by_piece(side: int, classes: int) -> None:
    ours = Sam(size="vit-b", image_size=side, upscaler="sam").build_meta(classes)
    code = _code(ours, classes)
    assert "sam_model_registry" not in code
    built = code.partition("sam.load_state_dict")[0]
    variables: dict[str, torch.nn.Module] = {}
    with official_sam(), torch.device("meta"):
        exec(built, variables)
    shapes = {official_name(name): value.shape for name, value in ours.state_dict().items()}
    assert shapes == {name: value.shape for name, value in variables["sam"].state_dict().items()}


@pytest.mark.slow
@torch.no_grad()
def test_the_registry_loads_a_vit_b_and_gives_our_logits(tmp_path: Path) -> None:
    ours = Sam(size="vit-b", image_size=1024, upscaler="sam").build(3, streams(0, "init"))
    torch.save({official_name(name): copied(value) for name, value in ours.state_dict().items()}, tmp_path / "sam.pth")
    with official_sam() as package:
        sam = package.sam_model_registry["vit_b"](checkpoint=str(tmp_path / "sam.pth"))
    pixels = torch.rand(1, 3, 1024, 1024, generator=generator(0, "images"))
    sparse, dense = sam.prompt_encoder(points=None, boxes=None, masks=None)
    embedding = sam.image_encoder(pixels)
    logits, _ = sam.mask_decoder.predict_masks(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense)
    torch.testing.assert_close(logits, ours(pixels), rtol=1e-5, atol=1e-5)
