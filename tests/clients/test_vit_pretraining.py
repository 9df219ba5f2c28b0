"""The pre-training of vit-mini and vit-mini-derm: images, targets, a few steps, and the files that are shipped."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from wardround.clients import pretraining, vit_pretraining, weight_files
from wardround.clients.pretraining import SHAPES, Recipe
from wardround.clients.vit import Vit, VitNet
from wardround.clients.vit_pretraining import PHANTOM, PHANTOMS, SYNTHETIC, TEXTURES, Sample
from wardround.datasets.image_phantom import ImagePhantom

TINY = Recipe(steps=2, size="tiny", image_size=32, batch_size=4, lr=1e-2, warmup_steps=1)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_net(seed: int = 0) -> VitNet:
    stream = rng(seed)
    return Vit(size="tiny", image_size=32).build(1, lambda *name: stream)


def test_images_are_a_function_of_the_generator() -> None:
    first, again, other = (vit_pretraining.sample(5, 32, rng(seed)) for seed in (1, 1, 2))
    for field in fields(Sample):
        assert torch.equal(getattr(first, field.name), getattr(again, field.name)), field.name
        assert not torch.equal(getattr(first, field.name), getattr(other, field.name)), field.name


def test_images_are_coloured_and_in_range() -> None:
    batch = vit_pretraining.sample(16, 32, rng())
    assert batch.image.shape == batch.clean.shape == (16, 3, 32, 32)
    assert batch.image.min() >= 0
    assert batch.image.max() <= 1
    assert (batch.image.std((2, 3)) > 0.01).all()
    assert (batch.image[:, 0] - batch.image[:, 2]).abs().mean() > 0.05


def test_a_region_has_one_colour_and_one_texture() -> None:
    batch = vit_pretraining.sample(8, 32, rng())
    for clean, regions, textures in zip(batch.clean, batch.regions, batch.textures, strict=True):
        for region in regions.unique():
            assert clean[:, regions == region].unique(dim=1).shape[1] == 1
            assert len(textures[regions == region].unique()) == 1


def test_layers_are_the_shapes_that_they_are_said_to_be() -> None:
    """With one layer and the same numbers, each image's mask is the shape's own drawing for the images that have it."""
    regions, kinds = pretraining.paint(8, 32, 1, 1, rng())
    stream = rng()
    x, y = pretraining.warped_grid(8, 32, stream)
    pretraining.voronoi(x, y, 1, stream)
    for part, kind in zip(torch.randperm(8, generator=stream).tensor_split(4), range(4), strict=True):
        assert torch.equal(SHAPES[kind](x[part], y[part], stream), regions[part] == 1)
        assert (kinds[part] == kind).all()


def test_only_shapes_that_are_seen_count() -> None:
    """Layer 0 (shape 2) has a quarter of the first image and one pixel of 100 of the second, layer 1 (shape 0) half."""
    regions = torch.zeros(2, 10, 10, dtype=torch.long)
    regions[0, :5, :5] = 1
    regions[1, 0, 0] = 1
    regions[:, 5:] = 2
    seen = vit_pretraining.visible_shapes(regions, 1, torch.tensor([[2, 0], [2, 0]]))
    assert seen.tolist() == [[True, False, True, False], [True, False, False, False]]


@pytest.mark.parametrize("texture", TEXTURES[1:], ids=lambda texture: texture.__name__)
def test_textures_vary_about_between_minus_one_and_one(texture: vit_pretraining.Texture) -> None:
    x, y = pretraining.warped_grid(16, 64, rng())
    pattern = texture(x, y, rng(1))
    assert pattern.shape == (16, 64, 64)
    assert (pattern.std((1, 2)) > 0.2).all()
    assert pattern.abs().quantile(0.9) < 1.3
    assert not torch.equal(pattern[0], pattern[1])


def sample_of(textures: Tensor, image: Tensor) -> Sample:
    shapes = torch.zeros(len(image), len(SHAPES), dtype=torch.bool)
    return Sample(image=image, clean=image, regions=textures, textures=textures, shapes=shapes)


def test_shares_of_an_image_and_of_its_patches() -> None:
    """Textures 1 and 4 on the left and right half: half each of the image, all of a patch of their side."""
    textures = torch.tensor([1] * 8 + [4] * 8).expand(1, 16, 16)
    batch = sample_of(textures, torch.full((1, 3, 16, 16), 0.25))
    shares, _ = vit_pretraining.image_targets(batch)
    patches, numbers = vit_pretraining.patch_targets(batch, 8)
    assert shares[0].tolist() == [0, 0.5, 0, 0, 0.5, 0, 0, 0, 0, 0]
    assert patches[0].argmax(1).tolist() == [1, 4, 1, 4]  # row by row
    assert torch.equal(numbers[..., :3], torch.full((1, 4, 3), 0.5))  # twice the colour


def test_structure_tells_strength_and_direction_of_edges() -> None:
    """Brightness x / 10 has slope 0.1 along x, inside: log(0.01 + 0.001) / 2, then (1, 0) * 0.01 / 0.011.

    The same along y gives (-1, 0), along the diagonal (slopes 0.1 and 0.1, 0.02 in all) (0, 1); nothing gives 0.
    """
    line = torch.arange(24) / 10
    ramps = torch.stack([line.expand(24, 24), line[:, None].expand(24, 24), line + line[:, None], torch.zeros(24, 24)])
    middle = vit_pretraining.structure(ramps[:, None].expand(-1, 3, -1, -1), 8)[:, 4]
    log = torch.tensor([0.011, 0.011, 0.021, 0.001]).log() / 2
    one, two = 0.01 / 0.011, 0.02 / 0.021
    expected = torch.stack([log, torch.tensor([one, -one, 0, 0]), torch.tensor([0, 0, two, 0])], dim=1)
    torch.testing.assert_close(middle, expected, atol=1e-5, rtol=1e-4)


def test_loss_of_golden_values() -> None:
    """Logits 0: log 10 for the shares of image and patches, log 2 for shapes; numbers off by 0.1: 2 * 0.01."""
    batch = vit_pretraining.sample(4, 32, rng())
    _, numbers = vit_pretraining.patch_targets(batch, 8)
    patches = torch.cat([torch.zeros(4, 16, len(TEXTURES)), numbers + 0.1], dim=-1)
    outputs = (torch.zeros(4, len(TEXTURES) + len(SHAPES)), patches)
    expected = torch.tensor(2 * 2.302585 + 0.693147 + 0.02)
    torch.testing.assert_close(vit_pretraining.loss(outputs, batch, 8), expected)


def test_principal_components_whiten() -> None:
    """Patches times the components: variance lambda / (lambda + 0.003) each, nothing between two of them."""
    images = 2 * vit_pretraining.sample(32, 32, rng()).image
    components = vit_pretraining.principal_components(images, 4)
    patches = torch.nn.functional.unfold(images, 4, stride=4).mT.flatten(0, 1)
    covariance = ((patches - patches.mean(0)) @ components.T).double().T.cov()
    strongest = covariance[:10, :10]
    torch.testing.assert_close(strongest, torch.eye(10, dtype=torch.float64), atol=0.1, rtol=0)
    assert (covariance - covariance.diag().diag()).abs().max() < 1e-3


def test_prepared_tokens_have_unit_variance() -> None:
    images = vit_pretraining.sample(32, 32, rng()).image
    net = vit_pretraining.prepare(tiny_net(), images)
    tokens = net.vit.embeddings.patch_embeddings.projection((images - 0.5) / 0.5)
    assert (tokens[:, :8].std((0, 2, 3)) - 1).abs().max() < 0.1
    assert net.vit.layers[0].mlp.fc1.weight.std() == pytest.approx(32**-0.5, rel=0.1)


def test_readouts_see_cls_and_patches_of_the_last_norm() -> None:
    net = tiny_net()
    pupil = vit_pretraining.Pupil(net, rng())
    images = torch.rand(2, 3, 32, 32, generator=rng(1))
    tokens = net.vit((images - 0.5) / 0.5).last_hidden_state
    image, patches = pupil(images)
    torch.testing.assert_close(image, pupil.image(tokens[:, 0]))
    torch.testing.assert_close(patches, pupil.patches(tokens[:, 1:]))


def test_steps_lower_the_loss() -> None:
    batch = vit_pretraining.sample(4, 32, rng())
    pupil = vit_pretraining.Pupil(vit_pretraining.prepare(tiny_net(), batch.image), rng())
    values: list[float] = []

    def step_loss() -> Tensor:
        value = vit_pretraining.loss(pupil(batch.image), batch, 8)
        values.append(value.item())
        return value

    readouts = [*pupil.image.parameters(), *pupil.patches.parameters()]
    recipe = replace(TINY, steps=30, lr=3e-3)
    vit_pretraining.train([*pupil.net.vit.parameters()], readouts, step_loss, recipe, print)
    assert values[-1] < 0.6 * values[0]


def test_turning_keeps_the_pixels_and_turns_all_images_alike() -> None:
    images = torch.arange(2 * 3 * 16).view(2, 3, 4, 4)
    stream = rng()
    turned = [vit_pretraining.turned(images, stream) for _ in range(60)]
    assert len({tuple(image.flatten().tolist()) for image in turned}) == 8
    assert all(torch.equal(image[1] - image[0], torch.full((3, 4, 4), 48)) for image in turned)


def test_pretraining_is_reproducible_and_its_file_is_the_network_in_half_precision(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.safetensors" for number in range(2)]
    for path in paths:
        vit_pretraining.make(None, TINY, path, report=lambda line: None)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    about = json.loads(paths[0].with_suffix(".json").read_text())
    assert about["sha256"] == hashlib.sha256(paths[0].read_bytes()).hexdigest()
    assert (about["recipe"]["steps"], about["pretrained_on"], about["image_mean"]) == (2, [], [0.5] * 3)
    saved = load_file(paths[0])
    assert {tensor.dtype for tensor in saved.values()} == {torch.float16}
    again = vit_pretraining.pretrain(TINY, report=lambda line: None).vit.state_dict()
    assert {name: tensor.tolist() for name, tensor in saved.items()} == {
        f"vit.{name}": tensor.half().tolist() for name, tensor in again.items()
    }


def test_training_further_starts_from_the_base_and_says_what_it_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a learning rate of almost nothing it is the base still; its JSON names base, federation and seed."""
    monkeypatch.setattr(vit_pretraining, "PHANTOM", ImagePhantom(hospitals=1, train_images=8, size=32, seed=9))
    base, further = tmp_path / "base.safetensors", tmp_path / "further.safetensors"
    vit_pretraining.make(None, TINY, base, report=lambda line: None)
    vit_pretraining.make(str(base), replace(TINY, lr=1e-9), further, report=lambda line: None)
    before, after = load_file(base), load_file(further)
    assert all((before[name] - after[name]).abs().max() < 1e-3 for name in before)
    about = json.loads(further.with_suffix(".json").read_text())
    assert about["start"]["sha256"] == hashlib.sha256(base.read_bytes()).hexdigest()
    assert about["image_phantom"]["seed"] == 9
    assert about["pretrained_on"] == ["other: image_phantom of seed 9"]


def test_phantoms_for_pretraining_are_the_training_side_in_order() -> None:
    phantom = ImagePhantom(hospitals=2, train_images=6, test_images=4, size=16, classes=2, seed=3)
    images, targets = vit_pretraining.pictures(phantom)
    assert images.shape == (12, 3, 16, 16)
    assert images.dtype == torch.uint8
    assert set(targets.tolist()) == {0, 1}


@pytest.mark.parametrize(("name", "recipe"), [("vit-mini", SYNTHETIC), ("vit-mini-derm", PHANTOMS)])
def test_the_shipped_files_are_of_the_recipes_here(name: str, recipe: Recipe) -> None:
    about = weight_files.about(name)
    assert Recipe(**about["recipe"]) == recipe
    assert about["parameters"] == sum(tensor.numel() for tensor in Vit().build_meta(1).vit.state_dict().values())


def test_the_shipped_derm_base_is_vit_mini_trained_on_the_federation_here() -> None:
    about = weight_files.about("vit-mini-derm")
    assert about["start"] == {"weights": "vit-mini", "sha256": weight_files.about("vit-mini")["sha256"]}
    assert ImagePhantom(**about["image_phantom"]) == PHANTOM


def unexplained(net: VitNet) -> float:
    """Share of the variance of the patches' edges that a linear read-out of frozen tokens leaves, on new images.

    Least squares with ridge 1e-2 on the patches of 48 images, scored on those of 48 others.
    """
    batch = vit_pretraining.sample(96, 64, rng(7))
    wanted = vit_pretraining.structure(batch.image, 8).flatten(0, 1).double()
    with torch.no_grad():
        hidden = net.through(batch.image, 1, range(net.num_stages - 1))
        known = net.vit.layernorm(hidden)[:, 1:].flatten(0, 1).double()
    (x, x_new), (y, y_new) = known.chunk(2), wanted.chunk(2)
    mean, deviation, centre = x.mean(0), x.std(0), y.mean(0)
    x, x_new = (x - mean) / deviation, (x_new - mean) / deviation
    solution = torch.linalg.solve(x.T @ x + 1e-2 * len(x) * torch.eye(x.shape[1]).double(), x.T @ (y - centre))
    return float((x_new @ solution + centre - y_new).square().mean() / y_new.var(0).mean())


def test_the_shipped_base_has_learnt_its_task() -> None:
    trained, random = (unexplained(Vit(weights=name).build(2, lambda *name: rng(3))) for name in ("vit-mini", "random"))
    assert trained < 0.8 * random
