"""Our networks as models of transformers and in the names of the official release: the same numbers, the same names."""

import pytest
import torch

from wardround.clients.hugging_face import sam_model, vit_classifier
from wardround.clients.sam import SIZES, Sam
from wardround.clients.sam_weights import official_name, our_names
from wardround.clients.vit import Vit
from wardround.simulator.randomness import generator, streams


def images(size: int) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=generator(0, "images"))


@torch.no_grad()
def test_the_classifier_gives_our_logits_of_normalised_pixels() -> None:
    ours = Vit(size="tiny", image_size=32, mean=(0.1, 0.5, 0.7), std=(0.5, 1.0, 0.25)).build(3, streams(0, "init"))
    theirs = vit_classifier(ours, ours.state_dict(), ("a", "b", "c"))
    pixels = images(32)
    normalised = (pixels - ours.mean) / ours.std
    torch.testing.assert_close(theirs(normalised).logits, ours(pixels), rtol=1e-5, atol=1e-5)
    assert theirs.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert theirs.config.num_labels == 3


@torch.no_grad()
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_both_calls_of_sam_give_our_maps(classes: int) -> None:
    ours = Sam(size="tiny", image_size=32, upscaler="sam").build(classes, streams(0, "init"))
    theirs, pixels = sam_model(ours, ours.state_dict()), images(32)
    maps = [theirs(pixel_values=pixels, multimask_output=more).pred_masks[:, 0] for more in (False, True)]
    torch.testing.assert_close(torch.cat(maps, dim=1), ours(pixels), rtol=1e-5, atol=1e-5)


def test_the_tensors_are_copies() -> None:
    ours = Vit(size="tiny", image_size=32).build(2, streams(0, "init"))
    before = ours.head.weight.clone()
    with torch.no_grad():
        vit_classifier(ours, ours.state_dict(), ("a", "b")).classifier.weight.zero_()
    assert torch.equal(ours.head.weight, before)


def test_further_upscaling_stages_are_nobody_elses() -> None:
    ours = Sam(size="tiny", image_size=32).build(2, streams(0, "init"))
    with pytest.raises(ValueError, match=r"expected model\.upscaler: sam, .* got full: run again .* --format peft"):
        sam_model(ours, ours.state_dict())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("classes", [1, 12])
def test_official_names_and_ours_are_inverse(size: str, classes: int) -> None:
    plug_in = Sam(size=size, image_size=SIZES[size].patch * 4, upscaler="sam")
    names = list(plug_in.build_meta(classes).state_dict())
    official = [official_name(name) for name in names]
    assert len(set(official)) == len(names)
    assert not [name for name in official if name.startswith("vision_encoder.")]
    assert list(our_names(official).values()) == names
