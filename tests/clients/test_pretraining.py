"""The pre-training of sam-mini: its images, its targets, a step, and the file that is shipped."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from wardround.clients import pretraining
from wardround.clients.pretraining import Recipe
from wardround.clients.sam import Sam, SamNet

TINY = Recipe(steps=2, size="tiny", image_size=32, batch_size=4, lr=1e-2, warmup_steps=1)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_images_are_a_function_of_the_generator() -> None:
    first, again, other = (pretraining.sample(3, 32, rng(seed)) for seed in (1, 1, 2))
    for name in ("image", "clean", "regions"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
        assert not torch.equal(getattr(first, name), getattr(other, name)), name


def test_every_image_spans_0_to_1_and_has_several_regions() -> None:
    batch = pretraining.sample(16, 32, rng())
    assert batch.image.shape == (16, 1, 32, 32)
    assert batch.image.dtype == torch.float32
    assert torch.equal(batch.image.amin((1, 2, 3)), torch.zeros(16))
    assert torch.equal(batch.image.amax((1, 2, 3)), torch.ones(16))
    assert batch.regions.min() >= 0
    assert batch.regions.max() < pretraining.REGIONS
    assert all(len(regions.unique()) >= 3 for regions in batch.regions)


def test_clean_is_flat_within_a_region_and_follows_the_image() -> None:
    batch = pretraining.sample(8, 32, rng())
    for image, clean, regions in zip(batch.image[:, 0], batch.clean, batch.regions, strict=True):
        for region in regions.unique():
            assert len(clean[regions == region].unique()) == 1
        assert torch.corrcoef(torch.stack([image.flatten(), clean.flatten()]))[0, 1] > 0.2


@pytest.mark.parametrize("shape", pretraining.SHAPES)
def test_shapes_fill_part_of_most_images(shape: pretraining.Shape) -> None:
    x, y = pretraining.warped_grid(32, 32, rng())
    share = shape(x, y, rng(1)).float().mean((1, 2))
    assert ((share > 0.005) & (share < 0.9)).float().mean() > 0.7


def test_blur_keeps_a_constant_and_spreads_a_point_by_its_sigma() -> None:
    """A point of mass 1 becomes a Gaussian with variance sigma^2 along rows, here 1; sigma 0 changes nothing."""
    point = torch.zeros(2, 17, 17)
    point[:, 8, 8] = 1
    spread = pretraining.blur(point, torch.tensor([0.0, 1.0]))
    offset = torch.arange(17.0) - 8
    torch.testing.assert_close(spread[0], point[0])
    torch.testing.assert_close((spread[1].sum(0) * offset**2).sum(), torch.tensor(1.0), atol=0.01, rtol=0)
    torch.testing.assert_close(
        pretraining.blur(torch.full((1, 9, 9), 0.3), torch.tensor([1.2])), torch.full((1, 9, 9), 0.3)
    )


def test_apart_compares_with_the_neighbour_at_the_offset() -> None:
    """Two regions, the left two columns and the rest; beyond the border lies no region.

    One to the right: column 1 looks at column 2 and column 3 outside. One down: the last row looks outside. One down
    and one to the left: the last row, column 0 (outside) and column 2 (looks at column 1).
    """
    regions = torch.tensor([[0, 0, 1, 1]]).expand(1, 4, 4)
    right, down, diagonal = (pretraining.apart(regions, *offset)[0] for offset in ((0, 1), (1, 0), (1, -1)))
    assert right.tolist() == [[0, 1, 0, 1]] * 4
    assert down.tolist() == [[0, 0, 0, 0]] * 3 + [[1, 1, 1, 1]]
    assert diagonal.tolist() == [[1, 0, 1, 0]] * 3 + [[1, 1, 1, 1]]


def test_loss_of_golden_values() -> None:
    """Flat off by 0.1 everywhere: 0.1^2 / 0.1 = 0.1. Position off by 0.2: 0.4. Logits 0: log 2 whatever the target."""
    target = torch.rand(2, pretraining.MAPS, 4, 4, generator=rng()).round()
    outputs = torch.zeros_like(target)
    outputs[:, 0] = target[:, 0] + 0.1
    outputs[:, 1 : 1 + pretraining.WAVES] = target[:, 1 : 1 + pretraining.WAVES] - 0.2
    torch.testing.assert_close(pretraining.loss(outputs, target), torch.tensor(0.5 + 0.693147))


def test_position_waves_are_cosines_along_x_and_y() -> None:
    """In the three columns of a 3 x 3 image: cos(0), cos(pi / 2), cos(pi), and once more with twice the angle."""
    slow_x, slow_y, fast_x, _ = pretraining.position_waves(3)
    torch.testing.assert_close(slow_x, torch.tensor([1.0, 0.5, 0.0]).expand(3, 3))
    torch.testing.assert_close(slow_y, slow_x.T)
    torch.testing.assert_close(fast_x, torch.tensor([1.0, 0.0, 1.0]).expand(3, 3))


def test_learning_rate_rises_then_falls_to_zero() -> None:
    """Peak 1: half of it in the first of two warm-up steps, and half of it half way down the cosine."""
    recipe = Recipe(steps=100, lr=1.0, warmup_steps=2)
    assert pretraining.learning_rate(recipe, 0) == 0.5
    assert pretraining.learning_rate(recipe, 50) == pytest.approx(0.5)
    assert pretraining.learning_rate(recipe, 99) < 0.001


def test_recipe_lists_every_bad_setting() -> None:
    with pytest.raises(ValueError, match=r"^steps: expected at least 1, got 0; lr: expected a number above 0, got -1$"):
        Recipe(steps=0, lr=-1)


def test_steps_lower_the_loss_of_decoder_and_readout() -> None:
    net = Sam(size="tiny", image_size=32).build(pretraining.MAPS - 1, lambda *name: rng())
    pupil = pretraining.Pupil(net, rng())
    optimizer = torch.optim.AdamW(pupil.parameters(), lr=3e-3)
    batch = pretraining.sample(4, 32, rng())
    before = [pretraining.loss(maps, pretraining.targets(batch)).item() for maps in pupil(batch.image)]
    for _ in range(20):
        pretraining.train_step(pupil, optimizer, batch)
    after = [pretraining.loss(maps, pretraining.targets(batch)).item() for maps in pupil(batch.image)]
    assert after[0] < 0.8 * before[0]
    assert after[1] < 0.8 * before[1]


def test_readout_shows_a_patch_from_its_own_place() -> None:
    """An embedding that changes at one place changes the read-out's 8 x 8 pixels there and nothing else."""
    net = Sam(size="tiny", image_size=32).build(pretraining.MAPS - 1, lambda *name: rng())
    pupil = pretraining.Pupil(net, rng())
    embedding = torch.zeros(1, 32, 4, 4)
    embedding[:, :, 1, 2] = 1
    net.encode = lambda images: embedding  # type: ignore[method-assign]  # only the read-out is looked at
    changed = pupil(torch.zeros(1, 1, 32, 32))[1][0].detach().abs().sum(0) > 0
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[8:16, 16:24] = True
    assert torch.equal(changed, expected)


def test_pretraining_is_reproducible_and_its_file_is_the_network_without_heads(tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    nets = [pretraining.pretrain(TINY, report=lambda line: None) for _ in range(2)]
    pretraining.save(nets[0], TINY, path)
    saved, about = load_file(path), json.loads(path.with_suffix(".json").read_text())
    assert about["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert about["recipe"]["steps"] == 2
    assert about["parameters"] == sum(tensor.numel() for tensor in saved.values())
    left_out = {name.split(".")[1] for name in nets[1].state_dict() if name not in saved}
    assert left_out == {"mask_tokens", "output_hypernetworks_mlps", "iou_prediction_head"}
    for name, tensor in saved.items():
        assert torch.equal(tensor, nets[1].state_dict()[name]), name


def test_the_shipped_base_is_what_its_json_says_and_fits_the_model() -> None:
    assets = Path(str(files("wardround.clients.assets")))
    weights = assets / "sam-mini.safetensors"
    about = json.loads((assets / "sam-mini.json").read_text())
    assert weights.stat().st_size <= 8_000_000
    assert about["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert about["recipe"] == {**about["recipe"], "size": "mini", "image_size": 64}
    saved = load_file(weights)
    net = Sam(size="mini", weights="sam-mini").build(2, lambda *name: rng())
    for name, tensor in net.state_dict().items():
        if not pretraining.is_head(name):
            assert torch.equal(tensor, saved[name]), name


def unexplained(net: SamNet) -> float:
    """Share of the variance that a linear read-out of the frozen embedding leaves, on images it was not fitted on.

    Per patch: its mean flat intensity and its share of borders, from the embedding of the patch (least squares with
    ridge 1e-3 on 48 images, scored on 48 others).
    """
    batch = pretraining.sample(96, 64, rng(7))
    truth = torch.stack([batch.clean, pretraining.apart(batch.regions, 0, 1)], dim=1)  # (B, 2, S, S)
    wanted = torch.nn.functional.avg_pool2d(truth, 8).permute(0, 2, 3, 1)  # (B, g, g, 2)
    with torch.no_grad():
        known = net.encode(batch.image).permute(0, 2, 3, 1)  # (B, g, g, D)
    (x, x_new), (y, y_new) = (part.flatten(1, 2).double().chunk(2) for part in (known, wanted))
    x, y, x_new, y_new = (part.flatten(0, 1) for part in (x, y, x_new, y_new))
    mean, centre = x.mean(0), y.mean(0)
    x, y = x - mean, y - centre
    solution = torch.linalg.solve(x.T @ x + 1e-3 * len(x) * torch.eye(x.shape[1]).double(), x.T @ y)
    left = (x_new - mean) @ solution + centre - y_new
    return float((left.square().mean(0) / y_new.var(0)).mean())


def test_the_shipped_base_has_learnt_its_task() -> None:
    trained, random = (Sam(weights=name).build(2, lambda *name: rng(3)) for name in ("sam-mini", "random"))
    assert unexplained(trained) < 0.8 * unexplained(random)
