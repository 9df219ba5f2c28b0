"""Pre-trains the packaged base ``sam-mini`` on random synthetic images.

    python -m wardround.clients.pretraining --out sam-mini.safetensors --steps 1500 --seed 0

**Images.** Voronoi cells, with polygons, pen strokes, level sets of noise and parallel bars painted over them, on a
smoothly bent grid. Every region has a grey value and a texture of its own; shading, blur and noise follow. There is no
anatomy in them and nothing of the phantoms (``datasets/phantom.py``): the base knows edges, textures and places.

**Task.** From the noisy image, show for each pixel

* the flat grey value of its region (denoising, over texture and noise),
* where it lies (organs have their places),
* whether the pixel at each of ten offsets lies in another region (borders, near and far).

The maps come out of the mask decoder, so that its transformer and upscaler learn with the encoder, and a second time
out of a linear read-out of the embedding (:class:`Pupil`), so that the encoder learns on a short way too. The read-out,
mask tokens, hypernetworks and the IoU head are not shipped.

The file is a stand-alone tool: it makes its one generator from ``--seed`` itself, because ``clients/`` imports nothing
from ``simulator/``, whose streams belong to runs. The result depends on seed, number of threads, kind of CPU and torch
version.

**Cost.** 0.2 s of CPU time per step of 16 images: five minutes of one core for the shipped 1500 steps.

**Checked** on the real MR volumes of Task04_Hippocampus, pooled (40 of 199 unseen): FLAP-SAM with rank 8, AdamW at 8e-4
and batches of 16 reaches the mean Dice of anterior and posterior below (seeds 0, 1, 2 of split and training). Leaving
out the pre-trained upscaler was worse on the one seed tried (an earlier base: 0.750 instead of 0.768).

======  ===================  ===================
step    random               sam-mini
======  ===================  ===================
100     0.056 0.099 0.152    0.517 0.483 0.528
170     0.383 0.414 0.312    0.677 0.641 0.692
300     0.608 0.674 0.639    0.742 0.722 0.764
500     0.665 0.719 0.734    0.755 0.748 0.782
======  ===================  ===================

Source: borders to far neighbours as in Lee et al. 2017 (arXiv 1706.00120); the rest is our own.

Legend: B images, S = side of an image, R regions, n shapes, D width of the embedding, g side of its grid.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from .sam import Sam, SamNet
from .sam_weights import HEADS

CELLS = 5
"""Voronoi cells of an image."""

LAYERS = 6
"""Shapes painted over them."""

REGIONS = CELLS + LAYERS
"""R, regions of an image."""

OFFSETS = ((0, 1), (1, 0), (0, 3), (3, 0), (2, 2), (2, -2), (0, 8), (8, 0), (6, 6), (6, -6))
"""Rows down and columns right of the partners that a pixel is compared with."""

WAVES = 4
"""Maps that show where a pixel lies."""

MAPS = 1 + WAVES + len(OFFSETS)
"""Mask maps of the network in pre-training."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a pre-training.

    Args:
        steps: Optimizer steps, >= 1.
        seed: Seeds weights and images.
        size: The SAM to train, a name in ``SIZES``.
        image_size: Side of the images in pixels.
        batch_size: Images per step, >= 1.
        lr: Peak learning rate of AdamW, > 0.
        warmup_steps: Steps of linear warm-up, >= 1.
        weight_decay: Decoupled weight decay, >= 0.
        threads: CPU threads; the last digits of a result depend on it.
    """

    steps: int = 1500
    seed: int = 0
    size: str = "mini"
    image_size: int = 64
    batch_size: int = 16
    lr: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    threads: int = 1

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("steps", "batch_size", "warmup_steps", "threads")}
        problems = [f"{name}: expected at least 1, got {value!r}" for name, value in counts.items() if value < 1]
        if not self.lr > 0:
            problems.append(f"lr: expected a number above 0, got {self.lr!r}")
        if not self.weight_decay >= 0:
            problems.append(f"weight_decay: expected a number of at least 0, got {self.weight_decay!r}")
        if problems:
            raise ValueError("; ".join(problems))


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A batch of images and what lies behind them.

    Args:
        image: (B, 1, S, S) what the network sees, each image spanning [0, 1].
        clean: (B, S, S) the grey value of each pixel's region, on the scale of the image.
        regions: (B, S, S) integers in [0, REGIONS).
    """

    image: Tensor
    clean: Tensor
    regions: Tensor


def uniform(shape: tuple[int, ...], low: float, high: float, rng: torch.Generator) -> Tensor:
    """Uniform numbers in [low, high)."""
    return torch.rand(shape, generator=rng) * (high - low) + low


def smooth_noise(batch: int, cells: int, size: int, rng: torch.Generator) -> Tensor:
    """Gaussian noise on a coarse grid, bicubically enlarged: (B, size, size), about zero mean and unit variance."""
    coarse = torch.randn(batch, 1, cells, cells, generator=rng)
    if cells == size:
        return coarse[:, 0]
    return F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)[:, 0]


def warped_grid(batch: int, size: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Coordinates (B, S, S) of the pixels in about [0, 1], bent by a smooth random displacement of random strength."""
    line = torch.linspace(0, 1, size)
    y, x = torch.meshgrid(line, line, indexing="ij")
    strength = uniform((batch, 1, 1), 0, 0.08, rng) * (torch.rand(batch, 1, 1, generator=rng) < 0.7)
    cells = int(torch.randint(3, 7, (), generator=rng))
    return (
        x + strength * smooth_noise(batch, cells, size, rng),
        y + strength * smooth_noise(batch, cells, size, rng),
    )


def voronoi(x: Tensor, y: Tensor, cells: int, rng: torch.Generator) -> Tensor:
    """Index (B, S, S) of the nearest of ``cells`` random points."""
    regions, closest = torch.zeros_like(x, dtype=torch.long), torch.full_like(x, torch.inf)
    for cell in range(cells):
        px, py = torch.rand(2, len(x), 1, 1, generator=rng)
        distance = (x - px).square_() + (y - py).square_()
        regions = torch.where(distance < closest, cell, regions)
        closest = torch.minimum(closest, distance)
    return regions


def polygons(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    """Convex polygons: the intersection of five half-planes around a random centre; (B, S, S) bool."""
    n = len(x)
    cx, cy = uniform((2, n, 1, 1), 0.1, 0.9, rng)
    inside = torch.ones_like(x, dtype=torch.bool)
    for side in range(5):
        angle = (side + uniform((n, 1, 1), 0, 1, rng)) * (2 * math.pi / 5)
        reach = uniform((n, 1, 1), 0.06, 0.35, rng)
        inside &= (x - cx) * angle.cos() + (y - cy) * angle.sin() < reach
    return inside


def strokes(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    """Pen strokes: everything close to a random line of three pieces; (B, S, S) bool."""
    n = len(x)
    width = uniform((n, 1, 1), 0.015, 0.07, rng)
    ax, ay = uniform((2, n, 1, 1), 0, 1, rng)
    near = torch.zeros_like(x, dtype=torch.bool)
    for _ in range(3):
        dx, dy = uniform((2, n, 1, 1), -0.5, 0.5, rng)
        along = (((x - ax) * dx + (y - ay) * dy) / (dx**2 + dy**2 + 1e-6)).clamp_(0, 1)
        near |= (x - ax - along * dx).square_() + (y - ay - along * dy).square_() < width**2
        ax, ay = ax + dx, ay + dy
    return near


def blobs(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    """Level sets of smooth noise; (B, S, S) bool."""
    cells = int(torch.randint(4, 9, (), generator=rng))
    return smooth_noise(len(x), cells, x.shape[-1], rng) > uniform((len(x), 1, 1), 0.4, 1.4, rng)


def bars(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    """A few parallel bars on one side of a random line; (B, S, S) bool."""
    n = len(x)
    angle, phase, tilt = uniform((3, n, 1, 1), 0, 2 * math.pi, rng)
    wave = torch.sin((x * angle.cos() + y * angle.sin()) * uniform((n, 1, 1), 12, 40, rng) + phase)
    side = (x - 0.5) * tilt.cos() + (y - 0.5) * tilt.sin() > uniform((n, 1, 1), 0, 0.35, rng)
    inside: Tensor = (wave > uniform((n, 1, 1), -0.2, 0.6, rng)) & side
    return inside


Shape = Callable[[Tensor, Tensor, torch.Generator], Tensor]

SHAPES: tuple[Shape, ...] = (polygons, strokes, blobs, bars)
"""What is painted over the cells: functions of the bent coordinates x, y (n, S, S) that give masks (n, S, S)."""


def region_map(batch: int, size: int, rng: torch.Generator) -> Tensor:
    """Voronoi cells with random shapes painted over them: (B, S, S) integers in [0, REGIONS)."""
    return paint(batch, size, CELLS, LAYERS, rng)[0]


def paint(batch: int, size: int, cells: int, layers: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Voronoi cells with random shapes painted over them.

    Args:
        batch: B.
        size: S.
        cells: Voronoi cells of an image.
        layers: Shapes painted over them.
        rng: Draws everything.

    Returns:
        Regions (B, S, S), integers in [0, cells + layers): the cells come first. And which of SHAPES each layer is,
        (B, layers).
    """
    x, y = warped_grid(batch, size, rng)
    regions = voronoi(x, y, cells, rng)
    slots = torch.randperm(batch * layers, generator=rng)  # which layer of which image each shape becomes
    parts = [part // layers for part in slots.tensor_split(len(SHAPES))]
    masks = torch.cat([shape(x[part], y[part], rng) for shape, part in zip(SHAPES, parts, strict=True)])
    kinds = torch.arange(len(SHAPES)).repeat_interleave(torch.tensor([len(part) for part in parts]))
    order = slots.argsort().unflatten(0, (batch, layers))
    for index in range(layers):
        regions = torch.where(masks[order[:, index]], cells + index, regions)
    return regions, kinds[order]


def lookup(table: Tensor, regions: Tensor) -> Tensor:
    """``table[b, regions[b, i, j]]``: (B, R) values as a map (B, S, S)."""
    return table.gather(1, regions.flatten(1)).view(regions.shape)


def texture(regions: Tensor, rng: torch.Generator) -> Tensor:
    """Each region's own pattern: a grating plus noise of three sizes, with random weights; (B, S, S)."""
    batch, size, _ = regions.shape
    line = torch.arange(size, dtype=torch.float32)
    table = (batch, REGIONS)
    angle, phase = uniform((2, *table), 0, 2 * math.pi, rng)
    rate = 2 * math.pi / uniform(table, 2.5, 12, rng)
    across = lookup(rate * angle.cos(), regions) * line + lookup(rate * angle.sin(), regions) * line[:, None]
    strength = uniform(table, 0, 0.15, rng) * (torch.rand(table, generator=rng) < 0.35)
    pattern = lookup(strength, regions) * torch.sin(across + lookup(phase, regions))
    for cells in (size, size // 2, size // 4):
        strength = uniform(table, 0, 0.12, rng) * (torch.rand(table, generator=rng) < 0.6)
        pattern += lookup(strength, regions) * smooth_noise(batch, cells, size, rng)
    return pattern


def blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with one sigma (pixels) per image; image (B, S, S), sigma (B,)."""
    offset = torch.arange(-4.0, 5.0)
    kernel = torch.exp(-0.5 * (offset / sigma[:, None].clamp(min=0.05)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True))[:, None]  # (B, 1, 9)
    rows = F.conv2d(F.pad(image[None], (4, 4, 0, 0), mode="replicate"), kernel[:, :, None], groups=len(image))
    return F.conv2d(F.pad(rows, (0, 0, 4, 4), mode="replicate"), kernel[..., None], groups=len(image))[0]


def min_max(image: Tensor, reference: Tensor | None = None) -> Tensor:
    """Scales each image so that its reference (itself) spans [0, 1]."""
    reference = image if reference is None else reference
    low, high = reference.amin((1, 2), keepdim=True), reference.amax((1, 2), keepdim=True)
    return (image - low) / (high - low).clamp(min=1e-6)


def sample(batch: int, size: int, rng: torch.Generator) -> Sample:
    """Draws a batch of images with their flat intensities and regions."""
    regions = region_map(batch, size, rng)
    flat = lookup(torch.rand(batch, REGIONS, generator=rng), regions)
    shading = uniform((batch, 1, 1), 0, 0.15, rng) * smooth_noise(batch, 3, size, rng)
    seen = blur(flat + texture(regions, rng) + shading, uniform((batch,), 0, 1.5, rng))
    seen += uniform((batch, 1, 1), 0, 0.12, rng) * torch.randn(seen.shape, generator=rng)
    return Sample(image=min_max(seen)[:, None], clean=min_max(flat, seen), regions=regions)


def apart(regions: Tensor, down: int, right: int) -> Tensor:
    """1 where the pixel ``down`` rows below and ``right`` columns to the right lies in another region or outside."""
    size = regions.shape[-1]
    padded = F.pad(regions, (abs(right),) * 2 + (down,) * 2, value=-1)
    there = padded[:, 2 * down :, abs(right) + right :][:, :size, :size]
    return (there != regions).float()


def position_waves(size: int) -> Tensor:
    """``(1 + cos(pi k z)) / 2`` for k = 1, 2 and z = x, y in [0, 1]: (WAVES, S, S)."""
    line = torch.linspace(0, 1, size)
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([(1 + torch.cos(math.pi * k * z)) / 2 for k in (1, 2) for z in (x, y)])


def targets(batch: Sample) -> Tensor:
    """What each mask map has to show: flat intensities, position, then one map per offset.

    Returns:
        (B, MAPS, S, S) in [0, 1] (the flat intensities go slightly beyond).
    """
    waves = position_waves(batch.clean.shape[-1]).expand(len(batch.clean), -1, -1, -1)
    borders = torch.stack([apart(batch.regions, *offset) for offset in OFFSETS], dim=1)
    return torch.cat([batch.clean[:, None], waves, borders], dim=1)


def loss(outputs: Tensor, target: Tensor) -> Tensor:
    """``(MSE(flat) + MSE(position)) / 0.1 + BCE(apart)``, each a mean over pixels and maps.

    Args:
        outputs: (B, MAPS, S, S) mask maps: flat intensity and position themselves, then logits.
        target: (B, MAPS, S, S) from :func:`targets`.

    Returns:
        A scalar.
    """
    parts = (1, WAVES, len(OFFSETS))
    (flat, waves, logits), (flat_to, waves_to, apart_to) = outputs.split(parts, 1), target.split(parts, 1)
    regression = F.mse_loss(flat, flat_to) + F.mse_loss(waves, waves_to)
    return regression / 0.1 + F.binary_cross_entropy_with_logits(logits, apart_to)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then half a cosine down to zero at the last step."""
    warm = min(1.0, (step + 1) / recipe.warmup_steps)
    return recipe.lr * warm * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


class Pupil(nn.Module):
    """A SAM and a linear read-out of its image embedding, which is thrown away after the pre-training.

    The read-out has to show the same maps as the mask decoder, each patch from its own place of the embedding. It gives
    the encoder a short way to learn, and makes what the encoder knows linearly readable.

    Args:
        net: A SAM with MAPS mask maps at image resolution.
        rng: Draws the read-out's weights.
    """

    def __init__(self, net: SamNet, rng: torch.Generator) -> None:
        super().__init__()
        self.net = net.requires_grad_(True)
        self.patch = net.size.patch
        width = MAPS * self.patch**2
        self.readout = nn.utils.skip_init(nn.Conv2d, net.size.neck, width, kernel_size=1)  # draws no global numbers
        self.readout.weight.data = 0.02 * torch.randn(self.readout.weight.shape, generator=rng)
        nn.init.zeros_(self.readout.bias)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (B, MAPS, S, S) of the mask decoder and of the read-out."""
        embedding = self.net.encode(images)  # (B, D, g, g)
        return self.net.decode(embedding), F.pixel_shuffle(self.readout(embedding), self.patch)


def train_step(pupil: Pupil, optimizer: torch.optim.Optimizer, batch: Sample) -> float:
    """One step on the sum of both losses; returns the mask decoder's loss before it."""
    target = targets(batch)
    decoded, read = (loss(outputs, target) for outputs in pupil(batch.image))
    optimizer.zero_grad()
    (decoded + read).backward()
    torch.nn.utils.clip_grad_norm_([p for p in pupil.parameters() if p.grad is not None], 1.0)
    optimizer.step()
    return decoded.item()


def pretrain(recipe: Recipe, report: Callable[[str], None] = print) -> SamNet:
    """Trains a randomly initialised SAM by the recipe.

    Args:
        recipe: The settings.
        report: Is given a line of text every 100 steps.

    Returns:
        The trained network, with MAPS mask maps.
    """
    rng = torch.Generator().manual_seed(recipe.seed)
    pupil = Pupil(Sam(size=recipe.size, image_size=recipe.image_size).build(MAPS - 1, lambda *name: rng), rng)
    optimizer = torch.optim.AdamW(
        pupil.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True
    )
    total, start = 0.0, time.perf_counter()
    for step in range(recipe.steps):
        optimizer.param_groups[0]["lr"] = learning_rate(recipe, step)
        total += train_step(pupil, optimizer, sample(recipe.batch_size, recipe.image_size, rng))
        if (step + 1) % 100 == 0:
            report(f"step {step + 1:6d}  loss {total / 100:.4f}  {time.perf_counter() - start:6.0f} s")
            total = 0.0
    return pupil.net


def save(net: SamNet, recipe: Recipe, path: Path) -> None:
    """Writes the network without its heads as safetensors, and a JSON of the same name with hash and recipe.

    Mask tokens, hypernetworks and the IoU head start anew in every model that is built on the base.
    """
    tensors = {name: tensor.contiguous() for name, tensor in net.state_dict().items() if not is_head(name)}
    content = to_bytes(tensors)
    path.write_bytes(content)  # with the user's default permissions, which safetensors' own writer does not give
    about = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "recipe": asdict(recipe),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "torch": torch.__version__,
    }
    path.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n")


def is_head(name: str) -> bool:
    """Whether a tensor belongs to the parts that are specific to the maps of the pre-training."""
    return name.startswith(HEADS)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Pre-train sam-mini on random synthetic images.")
    parser.add_argument("--out", type=Path, default=Path("sam-mini.safetensors"), help="the weights file to write")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="optimizer steps (default %(default)s)")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=Recipe.threads, help="CPU threads (default %(default)s)")
    options = parser.parse_args(arguments)
    recipe = Recipe(steps=options.steps, seed=options.seed, threads=options.threads)
    torch.set_num_threads(recipe.threads)
    save(pretrain(recipe, report=lambda line: print(line, flush=True)), recipe, options.out)


if __name__ == "__main__":
    main()
