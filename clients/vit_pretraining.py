"""Pre-trains the packaged bases ``vit-mini`` (random synthetic images) and ``vit-mini-derm`` (phantoms, from it on).

    python -m wardround.clients.vit_pretraining --out vit-mini.safetensors --seed 0
    python -m wardround.clients.vit_pretraining --phantoms-from vit-mini --out vit-mini-derm.safetensors --seed 0

**Images of vit-mini.** The regions of ``sam-mini``'s images (:mod:`.pretraining`: Voronoi cells with polygons, strokes,
level sets and bars painted over them), in colours, each filled with one of ten textures; then shading, blur and noise.
Nothing of the image phantoms (``datasets/image_phantom.py``) is in them: no lesions, no skin, no cameras.

**Task of vit-mini.** CLS tells the share of every texture and which shapes can be seen; every patch tells the shares of
the textures in it, its mean colour without texture, and strength and direction of its edges. Both through linear
read-outs (:class:`Pupil`) that are not shipped. Patches learn on a short way, and CLS from them.

**vit-mini-derm** is the in-domain base: ``vit-mini``, all of it trained further to tell the seven kinds of lesion of a
phantom federation (:data:`PHANTOM`), all hospitals' pictures together, turned and mirrored. Its lesions and cameras are
those of seed 9001, which no experiment has; its JSON says so under ``image_phantom``, and ``pretrained_on`` has the
word for an entry. A run on phantoms of that seed would be tested on what its base has seen.

The file is a stand-alone tool: it makes its one generator from ``--seed`` itself, because ``clients/`` imports nothing
from ``simulator/``, whose streams belong to runs. The result depends on seed, number of threads, kind of CPU and torch
version. Weights are kept in fp16 and are fp32 again when they are read.

**Cost.** 0.3 s of CPU time per step of 32 synthetic images, 0.23 s of 32 phantoms, beside other programs: four minutes
of one core for ``vit-mini`` (800 steps), a minute and a half more for ``vit-mini-derm`` (400 steps).

**Checked** on new synthetic images: a linear read-out of CLS leaves 0.69 of the variance of the textures' shares with
``vit-mini``, all of it with random weights (2000 images, 400 of them unseen). The base is far from having learnt all.
And on an image phantom of seed 77 (4 hospitals, 5 classes, medium; 800 training pictures pooled, 400 to test, AdamW,
batches of 32, half a cosine), accuracy with one seed of weights and order, 0.05 being two standard errors:

=====================================  ======  ========  =============
trained                                random  vit-mini  vit-mini-derm
=====================================  ======  ========  =============
logistic regression on CLS (C = 0.1)   0.40    0.51      0.65
q, v and head, 5 epochs at 1e-3        0.36    0.55      0.67
all, 5 epochs at 5e-4                  0.38    0.55      0.65
all, 10 epochs at 1e-3                 0.40    0.58      not tried
=====================================  ======  ========  =============

Legend: B images, S = side of an image, P = side of a patch, n patches, R regions, L layers, F textures, D width.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ..datasets.image_phantom import ImagePhantom, camera_of, make_picture, slots_of
from . import vit_weights
from .pretraining import SHAPES, Recipe, blur, learning_rate, lookup, paint, smooth_noise, uniform, warped_grid
from .vit import Vit, VitNet

GROUPS = 4
"""Parts of a batch; the images of one part have equally many regions."""

READOUT_RATE = 5
"""Learning rate of what is thrown away afterwards, as a multiple of the network's."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A batch of images and what lies behind them.

    Args:
        image: (B, 3, S, S) in [0, 1], what the network sees.
        clean: (B, 3, S, S) the colour of each pixel's region, without texture.
        regions: (B, S, S) integers.
        textures: (B, S, S) which of TEXTURES each pixel has.
        shapes: (B, len(SHAPES)) bool, which shapes can be seen.
    """

    image: Tensor
    clean: Tensor
    regions: Tensor
    textures: Tensor
    shapes: Tensor


def wave(x: Tensor, y: Tensor, angle: Tensor, cycles: Tensor, rng: torch.Generator) -> Tensor:
    """Phase (B, S, S) of a plane wave with ``cycles`` periods over the image."""
    phase = uniform((len(x), 1, 1), 0, 2 * math.pi, rng)
    return 2 * math.pi * cycles * (x * angle.cos() + y * angle.sin()) + phase


def flat(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    """Nothing."""
    return torch.zeros_like(x)


def two_waves(x: Tensor, y: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sines of two waves that cross at an angle of 60 to 90 degrees, equally fine."""
    n = len(x)
    angle, cycles = uniform((n, 1, 1), 0, math.pi, rng), uniform((n, 1, 1), 4, 12, rng)
    other = angle + uniform((n, 1, 1), math.pi / 3, math.pi / 2, rng)
    return wave(x, y, angle, cycles, rng).sin(), wave(x, y, other, cycles, rng).sin()


def stripes(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    """Parallel stripes."""
    angle, cycles = uniform((len(x), 1, 1), 0, math.pi, rng), uniform((len(x), 1, 1), 4, 16, rng)
    return wave(x, y, angle, cycles, rng).sin()


def lattice(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    """Two families of lines that cross."""
    return 2 * torch.maximum(*two_waves(x, y, rng)).clamp(min=0) ** 3 - 1


def dots(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    """Dots in rows."""
    first, second = two_waves(x, y, rng)
    return torch.tanh(3 * (first + second - 0.8))


def cells(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    """Borders of small Voronoi cells."""
    nearest, second = torch.full_like(x, torch.inf), torch.full_like(x, torch.inf)
    for _ in range(int(torch.randint(15, 50, (), generator=rng))):
        px, py = torch.rand(2, len(x), 1, 1, generator=rng)
        distance = ((x - px).square_() + (y - py).square_()).sqrt_()
        second = torch.minimum(second, torch.maximum(nearest, distance))
        nearest = torch.minimum(nearest, distance)
    return 1 - 2 * torch.tanh(25 * (second - nearest))


def noise(x: Tensor, fewest: int, most: int, rng: torch.Generator) -> Tensor:
    """Smooth noise of a random fineness."""
    return smooth_noise(len(x), int(torch.randint(fewest, most, (), generator=rng)), x.shape[-1], rng)


def worms(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    """Thin winding lines."""
    return 1 - 2 * torch.tanh(2.5 * noise(x, 7, 14, rng).abs())


def patches(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    """Irregular patches."""
    return torch.tanh(3 * noise(x, 5, 14, rng))


def grain(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    """Fine grain."""
    return 0.6 * noise(x, x.shape[-1] // 2, x.shape[-1] + 1, rng)


def polar(x: Tensor, y: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Distance and direction from a random place."""
    cx, cy = uniform((2, len(x), 1, 1), 0.2, 0.8, rng)
    return ((x - cx).square() + (y - cy).square()).sqrt(), torch.atan2(y - cy, x - cx)


def rings(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    """Rings around a place."""
    distance, _ = polar(x, y, rng)
    return torch.sin(2 * math.pi * uniform((len(x), 1, 1), 4, 12, rng) * distance)


def rays(x: Tensor, y: Tensor, rng: torch.Generator) -> Tensor:
    """Rays from a place."""
    _, direction = polar(x, y, rng)
    number = torch.randint(5, 17, (len(x), 1, 1), generator=rng)
    return torch.sin(number * direction + uniform((len(x), 1, 1), 0, 2 * math.pi, rng))


Texture = Callable[[Tensor, Tensor, torch.Generator], Tensor]

TEXTURES: tuple[Texture, ...] = (flat, stripes, lattice, dots, cells, worms, patches, grain, rings, rays)
"""What regions are filled with: functions of bent coordinates x, y (B, S, S) that give patterns (B, S, S), about
between -1 and 1."""


def colours(table: Tensor, regions: Tensor) -> Tensor:
    """``table[b, regions[b, i, j]]``: (B, R, 3) colours as an image (B, 3, S, S)."""
    return torch.stack([lookup(channel, regions) for channel in table.unbind(-1)], dim=1)


def random_textures(regions: Tensor, number: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pattern (B, S, S) of each pixel and which of TEXTURES it is of; a texture looks alike throughout an image."""
    batch, size, _ = regions.shape
    x, y = warped_grid(batch, size, rng)
    table = torch.randint(len(TEXTURES), (batch, number), generator=rng)
    textures, patterns = lookup(table, regions), torch.zeros(regions.shape)
    for index, texture in enumerate(TEXTURES):
        have = (table == index).any(1)  # the images that have it
        pattern = texture(x[have], y[have], rng)
        patterns[have] = torch.where(textures[have] == index, pattern, patterns[have])
    return patterns, textures


def random_colours(batch: int, number: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Colour of every region and of its texture's crests relative to it, (B, R, 3) each.

    The regions of an image have colours around a common one, close to it or far from it. Textures change brightness
    more than colour, as those of most things do.
    """
    common, spread = uniform((batch, 1, 3), 0.15, 0.85, rng), uniform((batch, 1, 1), 0.1, 0.8, rng)
    clean = (common + spread * uniform((batch, number, 3), -0.5, 0.5, rng)).clamp(0.02, 0.98)
    crests = F.normalize(1 + 0.6 * torch.randn(batch, number, 3, generator=rng), dim=-1)
    sign = 1 - 2 * torch.randint(2, (batch, number, 1), generator=rng)
    return clean, sign * uniform((batch, number, 1), 0.15, 0.5, rng) * crests


def visible_shapes(regions: Tensor, cells: int, kinds: Tensor) -> Tensor:
    """Which of SHAPES (B, len(SHAPES)) cover at least 2 % of an image, kinds (B, L) being those of its layers."""
    layers = range(cells, cells + kinds.shape[1])
    seen = torch.stack([(regions == layer).float().mean((1, 2)) >= 0.02 for layer in layers], dim=1)  # (B, L)
    return torch.zeros(len(kinds), len(SHAPES)).scatter_add_(1, kinds, seen.float()) > 0


def group(batch: int, size: int, rng: torch.Generator) -> Sample:
    """Images that have equally many regions."""
    cells, layers = (int(torch.randint(1, 3, (), generator=rng)) for _ in range(2))
    regions, kinds = paint(batch, size, cells, layers, rng)
    pattern, textures = random_textures(regions, cells + layers, rng)
    clean, crests = (colours(table, regions) for table in random_colours(batch, cells + layers, rng))
    shading = uniform((batch, 1, 1), 0, 0.1, rng) * smooth_noise(batch, 3, size, rng)
    seen = (clean + crests * pattern[:, None] + shading[:, None]).flatten(0, 1)  # (3 B, S, S)
    seen = blur(seen, uniform((batch,), 0, 1, rng).repeat_interleave(3)).view_as(clean)
    seen += uniform((batch, 1, 1, 1), 0, 0.03, rng) * torch.randn(seen.shape, generator=rng)
    shapes = visible_shapes(regions, cells, kinds)
    return Sample(image=seen.clamp(0, 1), clean=clean, regions=regions, textures=textures, shapes=shapes)


def sample(batch: int, size: int, rng: torch.Generator) -> Sample:
    """Draws a batch of images, in GROUPS of equally many regions."""
    parts = [group(len(part), size, rng) for part in torch.arange(batch).tensor_split(GROUPS) if len(part)]
    return Sample(**{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Sample)})


def patchwise(maps: Tensor, patch: int) -> Tensor:
    """Means over patches: (B, C, S, S) to (B, n, C)."""
    return F.avg_pool2d(maps.float(), patch).flatten(2).transpose(1, 2)


def image_targets(batch: Sample) -> tuple[Tensor, Tensor]:
    """What CLS has to tell: shares of the textures (B, F), and which shapes can be seen (B, len(SHAPES))."""
    shares = F.one_hot(batch.textures, len(TEXTURES)).float().mean((1, 2))
    return shares, batch.shapes.float()


def structure(image: Tensor, patch: int) -> Tensor:
    """How strong the edges of each patch are and which way they run: ``(log(t) / 2, (xx - yy) / t, 2 xy / t)``.

    xx, xy, yy: means over the patch of the products of the brightness's slopes along x and y; t = xx + yy + 0.001.

    Args:
        image: (B, 3, S, S) in [0, 1].
        patch: Side of a patch in pixels.

    Returns:
        (B, n, 3).

    Source: the structure tensor of Bigün and Granlund 1987.
    """
    brightness = F.pad(image.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    along_x = (brightness[..., 1:-1, 2:] - brightness[..., 1:-1, :-2]) / 2
    along_y = (brightness[..., 2:, 1:-1] - brightness[..., :-2, 1:-1]) / 2
    products = torch.cat([along_x**2, along_x * along_y, along_y**2], dim=1)
    xx, xy, yy = patchwise(products, patch).unbind(-1)
    total = xx + yy + 1e-3
    return torch.stack([total.log() / 2, (xx - yy) / total, 2 * xy / total], dim=-1)


def patch_targets(batch: Sample, patch: int) -> tuple[Tensor, Tensor]:
    """What patches have to tell: shares of the textures (B, n, F); mean colour without texture and edges (B, n, 6)."""
    textures = F.one_hot(batch.textures, len(TEXTURES)).permute(0, 3, 1, 2)
    colour = 2 * patchwise(batch.clean, patch)
    return patchwise(textures, patch), torch.cat([colour, structure(batch.image, patch)], dim=-1)


def loss(outputs: tuple[Tensor, Tensor], batch: Sample, patch: int) -> Tensor:
    """``CE(shares) + BCE(shapes) + CE(patch shares) + 2 MSE(patch colour and edges)``, each a mean over what is told.

    Args:
        outputs: (B, F + len(SHAPES)) of CLS and (B, n, F + 6) of the patches: logits of shares, then the others.
        batch: What they are to tell.
        patch: Side of a patch in pixels.

    Returns:
        A scalar.
    """
    number = len(TEXTURES)
    (shares, shapes), (textures, numbers) = image_targets(batch), patch_targets(batch, patch)
    image, patches = outputs[0], outputs[1].flatten(0, 1)
    of_image = F.cross_entropy(image[:, :number], shares)
    of_image += F.binary_cross_entropy_with_logits(image[:, number:], shapes)
    of_patches = F.cross_entropy(patches[:, :number], textures.flatten(0, 1))
    return of_image + of_patches + 2 * F.mse_loss(patches[:, number:], numbers.flatten(0, 1))


def prepare(net: VitNet, images: Tensor) -> VitNet:
    """Makes the initial weights of a network such that it learns at once, in place.

    Linear layers get deviation ``inputs^-0.5`` and positions 0.2: a narrow network that starts at 0.02 stands still for
    hundreds of steps. The patch embedding whitens: token ``k`` of a patch is its ``k``-th principal component, of
    variance 1 over the images; else the mean colour would drown every texture.

    Args:
        net: The network, newly built.
        images: (B, 3, S, S) in [0, 1].

    Source: whitening as the first layer, as in Jordan 2024, arXiv 2404.00498.
    """
    for module in net.vit.modules():
        if isinstance(module, nn.Linear):
            module.weight.data *= module.in_features**-0.5 / 0.02
    net.vit.embeddings.position_embeddings.data *= 10
    weight = net.vit.embeddings.patch_embeddings.projection.weight
    rows = principal_components((images - net.mean) / net.std, net.size.patch)[: len(weight)]
    weight.data[: len(rows)] = rows.view(len(rows), *weight.shape[1:])
    return net


def principal_components(images: Tensor, patch: int) -> Tensor:
    """``v_k / sqrt(lambda_k + 0.003)``, (3 P^2, 3 P^2), the strongest first, of the patches of images (B, 3, S, S)."""
    patches = F.unfold(images, patch, stride=patch).mT.flatten(0, 1).double()  # (B n, 3 P^2)
    centred = patches - patches.mean(0)
    strength, directions = torch.linalg.eigh(centred.T @ centred / len(centred))  # in columns, the weakest first
    components: Tensor = (directions / (strength.clamp(min=0) + 0.003).sqrt()).T.flip(0).float()
    return components


class Pupil(nn.Module):
    """A ViT and two linear read-outs, of CLS and of the patches, which are thrown away after the pre-training.

    Args:
        net: The ViT.
        rng: Draws the read-outs' weights.
    """

    def __init__(self, net: VitNet, rng: torch.Generator) -> None:
        super().__init__()
        self.net = net.requires_grad_(True)
        self.image = linear(net.size.width, len(TEXTURES) + len(SHAPES), rng)
        self.patches = linear(net.size.width, len(TEXTURES) + 6, rng)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Read-outs of CLS (B, F + len(SHAPES)) and of the patches (B, n, F + 6)."""
        hidden = self.net.through(images, 1, range(self.net.num_stages - 1))
        tokens = self.net.vit.layernorm(hidden)  # (B, N, D); the network's own last stage gives CLS alone
        image: Tensor = self.image(tokens[:, 0])
        patches: Tensor = self.patches(tokens[:, 1:])
        return image, patches


def linear(inputs: int, outputs: int, rng: torch.Generator) -> nn.Linear:
    """A linear layer that draws no global numbers."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)
    layer.weight.data = 0.02 * torch.randn(outputs, inputs, generator=rng)
    nn.init.zeros_(layer.bias)
    return layer


Step = Callable[[], Tensor]
"""Draws a batch and gives its loss."""


def train(
    body: Sequence[nn.Parameter],
    readouts: Sequence[nn.Parameter],
    step_loss: Step,
    recipe: Recipe,
    report: Callable[[str], None],
) -> None:
    """AdamW with clipped gradients by a recipe; what is thrown away afterwards learns READOUT_RATE times as fast."""
    groups = [{"params": [*body]}, {"params": [*readouts]}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), weight_decay=recipe.weight_decay, fused=True)
    total, start = 0.0, time.process_time()
    for step in range(recipe.steps):
        for group, rate in zip(optimizer.param_groups, (1, READOUT_RATE), strict=True):
            group["lr"] = rate * learning_rate(recipe, step)
        value = step_loss()
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_([p for p in (*body, *readouts) if p.grad is not None], 1.0)
        optimizer.step()
        total += value.item()
        if (step + 1) % 50 == 0:
            report(f"step {step + 1:6d}  loss {total / 50:.4f}  {time.process_time() - start:6.0f} s of CPU")
            total = 0.0


def pretrain(recipe: Recipe, report: Callable[[str], None] = print) -> VitNet:
    """Trains a randomly initialised ViT on random synthetic images.

    Args:
        recipe: The settings.
        report: Is given a line of text every 50 steps.
    """
    rng = torch.Generator().manual_seed(recipe.seed)
    net = Vit(size=recipe.size, image_size=recipe.image_size).build(1, lambda *name: rng)
    pupil = Pupil(prepare(net, sample(128, recipe.image_size, rng).image), rng)

    def step_loss() -> Tensor:
        batch = sample(recipe.batch_size, recipe.image_size, rng)
        return loss(pupil(batch.image), batch, net.size.patch)

    readouts = [*pupil.image.parameters(), *pupil.patches.parameters()]
    train([*net.vit.parameters()], readouts, step_loss, recipe, report)
    return net


def pictures(phantom: ImagePhantom) -> tuple[Tensor, Tensor]:
    """The training pictures of a federation, (N, 3, S, S) uint8, and their classes (N,)."""
    slots = [slot for slot in slots_of(phantom) if slot.side == "train"]
    cameras = [camera_of(phantom, hospital) for hospital in range(phantom.hospitals)]
    images = np.stack([make_picture(phantom, cameras[slot.hospital], slot) for slot in slots])
    targets = torch.tensor([phantom.names.index(slot.kind) for slot in slots])
    return torch.from_numpy(images).permute(0, 3, 1, 2), targets


def turned(images: Tensor, rng: torch.Generator) -> Tensor:
    """The images (B, 3, S, S), all turned by the same of 4 angles and mirrored or not."""
    quarters, mirrored = (int(torch.randint(number, (), generator=rng)) for number in (4, 2))
    images = images.rot90(quarters, (2, 3))
    return images.flip(3) if mirrored else images


def train_on_phantoms(
    weights: str, phantom: ImagePhantom, recipe: Recipe, report: Callable[[str], None] = print
) -> VitNet:
    """Trains a base further: to tell the classes of pictures of lesions, all hospitals' together.

    Args:
        weights: The base: a name or a path.
        phantom: The federation, of no experiment.
        recipe: The settings.
        report: Is given a line of text every 50 steps.
    """
    rng = torch.Generator().manual_seed(recipe.seed)
    model = Vit(size=recipe.size, image_size=recipe.image_size, weights=weights)
    net = model.build(phantom.classes, lambda *name: rng).requires_grad_(True)
    images, targets = pictures(phantom)

    def step_loss() -> Tensor:
        index = torch.randint(len(images), (recipe.batch_size,), generator=rng)
        return F.cross_entropy(net(turned(images[index], rng).float() / 255), targets[index])

    train([*net.vit.parameters()], [*net.head.parameters()], step_loss, recipe, report)
    return net


def save(net: VitNet, recipe: Recipe, path: Path, more: Mapping[str, object]) -> None:
    """Writes the network without its head as fp16 safetensors, and a JSON of the same name with hash and recipe.

    fp16 halves the file; the weights are fp32 again when they are read.

    Args:
        net: What was trained.
        recipe: How.
        path: The weights file.
        more: What else the JSON says.
    """
    tensors = {n: t.detach().half().contiguous() for n, t in net.state_dict().items() if not n.startswith("head.")}
    content = to_bytes(tensors)
    path.write_bytes(content)  # with the user's default permissions, which safetensors' own writer does not give
    about = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "image_mean": net.mean.flatten().tolist(),
        "image_std": net.std.flatten().tolist(),
        **more,
        "recipe": asdict(recipe),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "torch": torch.__version__,
    }
    path.with_suffix(".json").write_text(json.dumps(about, indent=2) + "\n")


SYNTHETIC = Recipe(steps=800, batch_size=32, lr=1e-3, warmup_steps=50)
"""How ``vit-mini`` was trained."""

PHANTOMS = Recipe(steps=400, batch_size=32, lr=5e-4, warmup_steps=50)
"""How ``vit-mini-derm`` was trained, from ``vit-mini`` on."""

PHANTOM = ImagePhantom(hospitals=20, train_images=250, test_images=1, classes=7, skew=0.0, seed=9001)
"""What ``vit-mini-derm`` was trained on. No experiment has this seed."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Pre-train vit-mini or vit-mini-derm.")
    parser.add_argument("--out", type=Path, default=Path("vit-mini.safetensors"), help="the weights file to write")
    parser.add_argument(
        "--phantoms-from", metavar="WEIGHTS", help="train this base further on phantoms (vit-mini-derm)"
    )
    parser.add_argument("--steps", type=int, help="optimizer steps (default: of the shipped file)")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default %(default)s)")
    options = parser.parse_args(arguments)
    shipped = SYNTHETIC if options.phantoms_from is None else PHANTOMS
    recipe = replace(shipped, seed=options.seed, threads=options.threads, steps=options.steps or shipped.steps)
    torch.set_num_threads(recipe.threads)
    make(options.phantoms_from, recipe, options.out, report=lambda line: print(line, flush=True))


def make(start: str | None, recipe: Recipe, out: Path, report: Callable[[str], None] = print) -> None:
    """Trains a base and writes its two files.

    Args:
        start: None: a new network, on synthetic images. Else the weights to train further on :data:`PHANTOM`.
        recipe: The settings.
        out: The weights file.
        report: Is given a line of text every 50 steps.
    """
    if start is None:
        save(pretrain(recipe, report), recipe, out, {"pretrained_on": []})
        return
    seen = {
        "pretrained_on": [f"other: image_phantom of seed {PHANTOM.seed}"],
        "image_phantom": asdict(PHANTOM),
        "start": {"weights": start if start in vit_weights.PACKAGED else "a file", "sha256": vit_weights.digest(start)},
    }
    save(train_on_phantoms(start, PHANTOM, recipe, report), recipe, out, seen)


if __name__ == "__main__":
    main()
