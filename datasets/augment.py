"""Augmentation of training windows: what is drawn and how it is applied are two functions.

Parameters are drawn on the CPU for a whole epoch, one row per window in window order, so that what a window gets
depends on neither its batch nor the device. They are applied to a batch in one call on any device, the same draw for
all slices of a window, and for all three colours of an image with a class. Quarter turns, flips, rotation, shear, scale
and translation become one affine map: an image is resampled once.

To add a transformation: draw its columns in ``sample`` *after* the others (so that theirs do not shift), and compose
it into the affine map, or give :class:`AugmentParameters` a field and :func:`apply` a line. To add one of those that
FLAP-SAM draws two of: add it to :data:`OPERATIONS`, give it a range in ``FlapSamAugment._amounts``, and compose it into
the affine map (``_operation_map``) or add it to :data:`INTENSITY`.

Source: FLAP-SAM (arXiv 2407.21739) and, for what the paper leaves open, its released code (datasets/dataset.py).

Legend: n windows of an epoch, b windows of a batch, D slices, H = W pixels, M variants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, pad

from .contract import Streams
from .windows import put


@dataclass(frozen=True, kw_only=True)
class AugmentParameters:
    """What was drawn; one row per window, on the CPU.

    Args:
        affine: (n, 2, 3) float32 map from output to input position, in (column, row) order, origin at the image centre,
            1 at its border.
        gamma: (n,) float32 exponent of the intensities; 1 leaves them alone.
        erased: (n, 4) float32 rectangle to erase: height and width as parts of the image's side, and top and left as
            parts of the room that is left there. Height 0: nothing is erased.
        noise: (n,) int64 seed of what fills the rectangle.
        operations: (n, 2) int64 numbers into :data:`OPERATIONS`, in the order in which they apply.
        amounts: (n, 2) float32, how much of each.
    """

    affine: Tensor
    gamma: Tensor
    erased: Tensor
    noise: Tensor
    operations: Tensor
    amounts: Tensor

    @staticmethod
    def neutral(n: int) -> AugmentParameters:
        """Rows that change nothing."""
        return AugmentParameters(
            affine=torch.eye(2, 3).repeat(n, 1, 1),
            gamma=torch.ones(n),
            erased=torch.zeros(n, 4),
            noise=torch.zeros(n, dtype=torch.int64),
            operations=torch.full((n, 2), OPERATIONS.index("identity")),
            amounts=torch.ones(n, 2),
        )

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.gamma)

    def select(self, index: Tensor) -> AugmentParameters:
        """The rows of the windows ``index`` (b,), for one batch."""
        return AugmentParameters(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


class Augmentation(Protocol):
    """A plug-in of the table :data:`AUGMENTS`."""

    @property
    def variants(self) -> int:
        """How many fixed forms a window has, >= 1; 0: a fresh one every epoch."""
        ...

    def sample(self, n_windows: int, rng: torch.Generator) -> AugmentParameters:
        """One row of parameters per window, on the CPU."""
        ...


OPERATIONS = (
    "shear_x",
    "shear_y",
    "scale",
    "translate_x",
    "translate_y",
    "posterize",
    "contrast",
    "brightness",
    "sharpness",
    "identity",
)
"""What FLAP-SAM draws two of; the released code counts both axes, which makes ten."""


@dataclass(frozen=True, kw_only=True)
class NoAugment:
    """Windows as they are."""

    @property
    def variants(self) -> int:
        """A window has one form, its own."""
        return 1

    def sample(self, n_windows: int, rng: torch.Generator) -> AugmentParameters:
        """Neutral parameters; draws nothing."""
        return AugmentParameters.neutral(n_windows)


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Quarter turn + flip, rotation, scaling and gamma, each drawn independently with its probability.

    Args:
        rot90_flip_p: Probability of a quarter turn (0-3 times) followed by a flip of rows or columns, as in SAMed.
        rotation_p: Probability of a rotation.
        rotation_degrees: Its angle is uniform in [-rotation_degrees, rotation_degrees).
        scale_p: Probability of scaling.
        scale: Range of the factor; above 1 enlarges.
        gamma_p: Probability of a gamma curve.
        gamma: Range of the exponent.
        variants: Fixed forms per window, one of which is drawn each epoch; 0: a fresh form every epoch.
    """

    rot90_flip_p: float = 0.5
    rotation_p: float = 0.5
    rotation_degrees: float = 15.0
    scale_p: float = 0.5
    scale: tuple[float, float] = (0.8, 1.2)
    gamma_p: float = 0.5
    gamma: tuple[float, float] = (0.5, 3.5)
    variants: int = 0

    def __post_init__(self) -> None:
        problems = _wrong_probabilities(self, "rot90_flip_p", "rotation_p", "scale_p", "gamma_p")
        if not 0 <= self.rotation_degrees <= 180:
            problems.append(f"rotation_degrees: expected 0 to 180, got {self.rotation_degrees!r}")
        problems += _not_positive(self, "scale", "gamma")
        problems += _wrong_variants(self.variants)
        if problems:
            raise ValueError("; ".join(problems))

    def sample(self, n_windows: int, rng: torch.Generator) -> AugmentParameters:
        """Draws one row per window: quarter turn and flip, rotation, scale, gamma.

        The image is first turned and flipped, then rotated, then scaled. ``affine`` goes from output to input, so that
        it is the product of the inverse maps in this order.
        """
        turn_flip = _turn_flip(torch.rand(n_windows, 3, generator=rng), self.rot90_flip_p)
        degrees = _maybe(n_windows, self.rotation_p, (-self.rotation_degrees, self.rotation_degrees), 0.0, rng)
        scale = _maybe(n_windows, self.scale_p, self.scale, 1.0, rng)
        gamma = _maybe(n_windows, self.gamma_p, self.gamma, 1.0, rng)
        affine = pad(turn_flip @ _rotation(degrees) / scale.view(-1, 1, 1), (0, 1))  # nothing is translated
        return replace(AugmentParameters.neutral(n_windows), affine=affine, gamma=gamma)


@dataclass(frozen=True, kw_only=True)
class FlapSamAugment:
    """FLAP-SAM's complete list: four transformations, each with its probability, then two of ten operations.

    First quarter turn + flip, rotation, gamma and erasing; then two of shear_x, shear_y, scale, translate_x,
    translate_y, posterize, contrast, brightness, sharpness and identity, drawn uniformly, with amounts uniform in
    their ranges. Paper: the list and most ranges. Released code, where the paper says nothing: the range of the
    contrast, that both axes count among the operations drawn from, that two operations differ, that the gamma curve is
    ``x ** (1 / gamma)`` (mostly brighter, where ``standard`` is mostly darker), and the erased rectangle: filled with
    uniform noise, the same for all slices (torchvision's default is 0), with label 0 underneath.

    Differs from the released code in: one bilinear resampling of the image for all geometry together, before gamma
    and erasing (there nearest for the rotation, then bilinear per operation, in the order drawn), so that the erased
    rectangle stays upright, contrast and sharpness see the moved image, and nothing is blurred twice; real instead of
    whole degrees; scaling about the centre instead of a corner; no rounding to 8 bits but by posterize.

    Args:
        rot90_flip_p: Probability of a quarter turn (0-3 times) followed by a flip of rows or columns.
        rotation_p: Probability of a rotation.
        rotation_degrees: Its angle is uniform in [-rotation_degrees, rotation_degrees).
        gamma_p: Probability of a gamma curve.
        gamma: Range of gamma; the exponent is 1 / gamma.
        erase_p: Probability of erasing a rectangle.
        erase_area: Range of its area, as a part of the image.
        erase_aspect: Range of its width / height.
        shear: Pixels per row (``shear_x``) or column (``shear_y``), uniform in [-shear, shear).
        scale: Range of the factor; above 1 enlarges.
        translate: Part of the image's side, uniform in [-translate, translate).
        posterize_bits: Range of the bits that are kept of 8, both ends included.
        contrast: Range of the factor; 0 is the slice's mean, 1 the slice.
        brightness: Range of the factor; 0 is black, 1 the slice.
        sharpness: Range of the factor; 0 is a blurred slice, 1 the slice.
        distinct: Whether the two operations always differ.
        variants: Fixed forms per window, one of which is drawn each epoch; 0: a fresh form every epoch.
    """

    rot90_flip_p: float = 0.5
    rotation_p: float = 0.5
    rotation_degrees: float = 15.0
    gamma_p: float = 0.5
    gamma: tuple[float, float] = (0.5, 3.5)
    erase_p: float = 0.5
    erase_area: tuple[float, float] = (0.02, 0.05)
    erase_aspect: tuple[float, float] = (0.3, 3.3)
    shear: float = 0.3
    scale: tuple[float, float] = (0.8, 1.2)
    translate: float = 0.2
    posterize_bits: tuple[int, int] = (4, 8)
    contrast: tuple[float, float] = (0.7, 1.3)
    brightness: tuple[float, float] = (0.7, 1.3)
    sharpness: tuple[float, float] = (0.1, 1.9)
    distinct: bool = True
    variants: int = 0

    def __post_init__(self) -> None:
        problems = _wrong_probabilities(self, "rot90_flip_p", "rotation_p", "gamma_p", "erase_p")
        for name, limit in (("rotation_degrees", 180), ("shear", 1), ("translate", 1)):
            if not 0 <= getattr(self, name) <= limit:
                problems.append(f"{name}: expected 0 to {limit}, got {getattr(self, name)!r}")
        unordered = _not_positive(self, "gamma", "erase_area", "erase_aspect", "scale")
        if not unordered and self.erase_area[1] * max(self.erase_aspect[1], 1 / self.erase_aspect[0]) > 1:
            problems.append(
                f"erase_area: expected rectangles that fit into the image at every erase_aspect of "
                f"{self.erase_aspect!r}, got {self.erase_area!r}"
            )
        problems += unordered
        for name in ("contrast", "brightness", "sharpness"):
            low, high = getattr(self, name)
            if not 0 <= low <= high < math.inf:
                problems.append(f"{name}: expected two numbers of at least 0, the smaller first, got {(low, high)!r}")
        if not 1 <= self.posterize_bits[0] <= self.posterize_bits[1] <= 8:
            problems.append(
                f"posterize_bits: expected two numbers of 1 to 8, the smaller first, got {self.posterize_bits!r}"
            )
        problems += _wrong_variants(self.variants)
        if problems:
            raise ValueError("; ".join(problems))

    def sample(self, n_windows: int, rng: torch.Generator) -> AugmentParameters:
        """Draws one row of 18 numbers per window, row after row: further windows do not change the first ones."""
        draws = torch.rand(n_windows, 18, generator=rng)
        turn, rotation, gamma, erase, choice, amount = draws.split([3, 2, 2, 7, 2, 2], dim=1)
        degrees = _if(rotation, self.rotation_p, (-self.rotation_degrees, self.rotation_degrees), 0.0)
        operations = _two_of(len(OPERATIONS), choice, self.distinct)
        amounts = self._amounts(operations, amount)
        first, second = (_operation_map(operations[:, step], amounts[:, step]) for step in (0, 1))
        turned = pad(_turn_flip(turn, self.rot90_flip_p) @ _rotation(degrees), (0, 1))
        return AugmentParameters(
            affine=turned @ first @ second,
            gamma=1 / _if(gamma, self.gamma_p, self.gamma, 1.0),
            erased=self._rectangle(erase),
            noise=(erase[:, 5:].double() * 2**24).long() @ torch.tensor([2**24, 1]),  # 48 bits
            operations=operations,
            amounts=amounts,
        )

    def _rectangle(self, uniform: Tensor) -> Tensor:
        """(n, 4) height, width, top and left of what is erased; height 0 where nothing is."""
        coin, area, aspect, top, left = uniform[:, :5].unbind(1)
        area, aspect = _between(self.erase_area, area), _between(self.erase_aspect, aspect)
        height = torch.where(coin < self.erase_p, (area / aspect).sqrt(), 0.0)
        return torch.stack([height, (area * aspect).sqrt(), top, left], dim=1)

    def _amounts(self, operations: Tensor, uniform: Tensor) -> Tensor:
        """(n, 2) amounts, uniform in the range of each operation; bits are whole."""
        shift, bits = (-self.translate, self.translate), (self.posterize_bits[0], self.posterize_bits[1] + 1)
        shear, none = (-self.shear, self.shear), (1.0, 1.0)
        ranges: dict[str, tuple[float, float]] = {
            "shear_x": shear,
            "shear_y": shear,
            "scale": self.scale,
            "translate_x": shift,
            "translate_y": shift,
            "posterize": bits,
            "contrast": self.contrast,
            "brightness": self.brightness,
            "sharpness": self.sharpness,
            "identity": none,
        }
        bounds = torch.tensor([ranges[name] for name in OPERATIONS], dtype=torch.float32)
        low, high = bounds[operations].unbind(2)
        amounts = low + (high - low) * uniform
        whole = amounts.floor().clamp(max=self.posterize_bits[1])
        return torch.where(operations == OPERATIONS.index("posterize"), whole, amounts)


@dataclass(frozen=True, kw_only=True)
class Flips:
    """Mirror images and a quarter turn, for images that have no upper side: of skin, of tissue.

    Pixels move and keep their values, to rounding. With all three probabilities at 0.5, the eight ways to lay a square
    on itself are equally likely.

    Args:
        horizontal_p: Probability that left and right are exchanged.
        vertical_p: Probability that top and bottom are exchanged.
        turn_p: Probability of a counter-clockwise quarter turn after that.
        variants: Fixed forms per image, one of which is drawn each epoch; 0: a fresh form every epoch.
    """

    horizontal_p: float = 0.5
    vertical_p: float = 0.5
    turn_p: float = 0.5
    variants: int = 0

    def __post_init__(self) -> None:
        problems = _wrong_probabilities(self, "horizontal_p", "vertical_p", "turn_p")
        problems += _wrong_variants(self.variants)
        if problems:
            raise ValueError("; ".join(problems))

    def sample(self, n_windows: int, rng: torch.Generator) -> AugmentParameters:
        """Draws one row of 3 numbers per image: horizontal, vertical, turn."""
        draws = torch.rand(n_windows, 3, generator=rng)
        drawn = draws < torch.tensor([self.horizontal_p, self.vertical_p, self.turn_p])
        flips = torch.diag_embed(torch.where(drawn[:, :2], -1.0, 1.0))  # (n, 2, 2): x -> -x, y -> -y
        turn = torch.where(drawn[:, 2].view(-1, 1, 1), torch.tensor([[0.0, -1.0], [1.0, 0.0]]), torch.eye(2))
        return replace(AugmentParameters.neutral(n_windows), affine=pad(flips @ turn, (0, 1)))


def _wrong_probabilities(augment: object, *names: str) -> list[str]:
    return [
        f"{name}: expected a probability between 0 and 1, got {getattr(augment, name)!r}"
        for name in names
        if not 0 <= getattr(augment, name) <= 1
    ]


def _not_positive(augment: object, *names: str) -> list[str]:
    problems = []
    for name in names:
        low, high = getattr(augment, name)
        if not 0 < low <= high < math.inf:
            problems.append(f"{name}: expected two positive numbers, the smaller first, got {(low, high)!r}")
    return problems


def _wrong_variants(variants: int) -> list[str]:
    return [] if variants >= 0 else [f"variants: expected 0 (fresh every epoch) or more, got {variants!r}"]


def _maybe(n: int, p: float, bounds: tuple[float, float], neutral: float, rng: torch.Generator) -> Tensor:
    """(n,) values uniform in ``bounds`` with probability ``p``, else ``neutral``."""
    return _if(torch.rand(n, 2, generator=rng), p, bounds, neutral)


def _if(uniform: Tensor, p: float, bounds: tuple[float, float], neutral: float) -> Tensor:
    """(n,) values in ``bounds`` where the coin of ``uniform`` (n, 2) falls below ``p``, else ``neutral``."""
    coin, where = uniform.unbind(1)
    return torch.where(coin < p, _between(bounds, where), neutral)


def _between(bounds: tuple[float, float], uniform: Tensor) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * uniform


def _two_of(count: int, uniform: Tensor, distinct: bool) -> Tensor:
    """(n, 2) ordered pairs of numbers below ``count``, all equally likely, without equal ones where ``distinct``."""
    first = (uniform[:, 0] * count).long().clamp(max=count - 1)
    others = count - 1 if distinct else count
    second = (uniform[:, 1] * others).long().clamp(max=others - 1)
    return torch.stack([first, (first + 1 + second) % count], dim=1)


def _rotation(degrees: Tensor) -> Tensor:
    """(n, 2, 2) maps from output to input for a counter-clockwise rotation (as displayed, rows downwards)."""
    cos, sin = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
    return torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)


def _turn_flip(uniform: Tensor, p: float) -> Tensor:
    """(n, 2, 2) exact maps from output to input: k counter-clockwise quarter turns, then a flip of rows or columns."""
    coin, turn, axis = uniform.unbind(1)
    quarter = torch.tensor([[1.0, 0, 0, 1], [0, -1, 1, 0], [-1, 0, 0, -1], [0, 1, -1, 0]]).view(4, 2, 2)
    flip = torch.tensor([[1.0, 0, 0, -1], [-1, 0, 0, 1]]).view(2, 2, 2)  # rows: y -> -y, columns: x -> -x
    both = quarter[(turn * 4).long().clamp(max=3)] @ flip[(axis * 2).long().clamp(max=1)]
    return torch.where((coin < p).view(-1, 1, 1), both, torch.eye(2))


def _operation_map(operation: Tensor, amount: Tensor) -> Tensor:
    """(n, 3, 3) homogeneous maps from output to input, the identity for operations that are not geometric."""

    def drawn(name: str, neutral: float) -> Tensor:
        return torch.where(operation == OPERATIONS.index(name), amount, neutral)

    zoom = 1 / drawn("scale", 1.0)
    zero, one = torch.zeros_like(amount), torch.ones_like(amount)
    x = [zoom, drawn("shear_x", 0.0), -2 * drawn("translate_x", 0.0)]  # the side is 2 long: from -1 to 1
    y = [drawn("shear_y", 0.0), zoom, -2 * drawn("translate_y", 0.0)]
    return torch.stack([*x, *y, zero, zero, one], dim=1).view(-1, 3, 3)


def fixed_variants(augment: Augmentation, n_windows: int, lasting: Streams) -> tuple[AugmentParameters, ...]:
    """The M fixed forms of every window; empty when forms are fresh every epoch.

    Variant m depends on the stream ``augment``, m alone: more variants, other rounds and a resumed run leave it as it
    is.

    Args:
        augment: What is drawn.
        n_windows: Windows of the hospital.
        lasting: Streams of the hospital that are the same in every round; keys used: ``augment`` with m.
    """
    return tuple(augment.sample(n_windows, lasting("augment", m)) for m in range(augment.variants))


def choose(num_variants: int, n_windows: int, rng: torch.Generator) -> Tensor:
    """(n,) the number of a variant for every window, all equally likely."""
    return torch.randint(num_variants, (n_windows,), generator=rng)


def of_variants(variants: Sequence[AugmentParameters], chosen: Tensor) -> AugmentParameters:
    """For every window the parameters of the variant that was chosen (n,)."""
    windows = torch.arange(len(chosen))
    names = [field.name for field in fields(AugmentParameters)]
    stacked = {name: torch.stack([getattr(variant, name) for variant in variants]) for name in names}
    return AugmentParameters(**{name: values[chosen, windows] for name, values in stacked.items()})


def apply(images: Tensor, labels: Tensor, parameters: AugmentParameters) -> tuple[Tensor, Tensor]:
    """Applies the draws to a batch; windows for which nothing was drawn come out bit-identical.

    First the affine map (images are sampled bilinearly with zeros outside, labels take the nearest pixel, 0 outside),
    then gamma, the erased rectangle (noise in the image, 0 in the labels) and the intensity operations in their order.
    Each touches only the windows that drew it, all of them at once. Which these are is known on the CPU, so that
    nothing waits for the device. Where nothing was drawn, the tensors that came in are returned.

    The colours of an image with a class are treated as the slices of a window are: one draw for all, the erased
    rectangle is grey. Only the mean of the contrast is one for the three, that of their luma, as in PIL. The class
    stays.

    Args:
        images: (b, D, H, H) floating point in [0, 1], H >= 3; or (b, 1, 3, H, H).
        labels: (b, D, H, H) uint8; or (b, 1) classes.
        parameters: b rows, on the CPU.

    Returns:
        Images and labels of the same shapes and dtypes.
    """
    _check_batch(images, labels, parameters)
    if _neutral(parameters):
        return images, labels
    if images.ndim == 5:
        colours = images.flatten(1, 2).clone()  # (b, 3, H, H)
        _alter(colours, None, parameters, COLOUR_INTENSITY)
        return colours.view(images.shape), labels
    images, labels = images.clone(), labels.clone()
    _alter(images, labels, parameters, INTENSITY)
    return images, labels


def _check_batch(images: Tensor, labels: Tensor, parameters: AugmentParameters) -> None:
    """Raises ValueError where shapes do not fit together."""
    if images.shape[-1] != images.shape[-2] or len(parameters) != len(images):
        raise ValueError(
            f"augment: expected square images and as many parameter rows as images, "
            f"got images {tuple(images.shape)} and {len(parameters)} rows"
        )
    if images.ndim == 5 and (images.shape[1:3] != (1, 3) or labels.shape != (len(images), 1)):
        raise ValueError(
            f"augment: expected images (b, 1, 3, H, H) with classes (b, 1), "
            f"got {tuple(images.shape)} with {tuple(labels.shape)}"
        )


def _alter(images: Tensor, labels: Tensor | None, parameters: AugmentParameters, intensity: Intensity) -> None:
    """Applies the draws in place; ``labels``: None where there is nothing to move with the images."""
    _move(images, labels, parameters.affine)
    _change(images, parameters.gamma != 1, parameters.gamma, torch.pow)
    _erase(images, labels, parameters)
    for operations, amounts in zip(parameters.operations.unbind(1), parameters.amounts.unbind(1), strict=True):
        for name, operation in intensity.items():
            _change(images, operations == OPERATIONS.index(name), amounts, operation)


def _neutral(parameters: AugmentParameters) -> bool:
    """Whether no row changes anything."""
    intensity = torch.tensor([name in INTENSITY for name in OPERATIONS])
    drawn = [
        _moved(parameters.affine),
        parameters.gamma != 1,
        parameters.erased[:, 0] != 0,
        intensity[parameters.operations].any(1),
    ]
    return not torch.stack(drawn).any()


def _moved(affine: Tensor) -> Tensor:
    """(b,) which maps (b, 2, 3) are not the identity."""
    return (affine != torch.eye(2, 3)).any(2).any(1)


def _change(images: Tensor, drawn: Tensor, amounts: Tensor, operation: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Replaces the windows where ``drawn`` (b,) by ``operation(images, amounts)``."""
    rows = drawn.nonzero().flatten()
    if len(rows) == 0:
        return
    there = put(rows, images.device)
    amount = put(amounts[rows].to(images.dtype), images.device).view(-1, 1, 1, 1)
    images.index_copy_(0, there, operation(images.index_select(0, there), amount))


def _move(images: Tensor, labels: Tensor | None, affine: Tensor) -> None:
    """Resamples the windows whose map (b, 2, 3) is not the identity."""
    rows = _moved(affine).nonzero().flatten()
    if len(rows) == 0:
        return
    there, maps = put(rows, images.device), put(affine[rows].to(images.dtype), images.device)
    chosen = images.index_select(0, there)
    grid = affine_grid(maps, list(chosen.shape), align_corners=False)  # (rows, H, H, 2)
    warped = grid_sample(chosen, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    images.index_copy_(0, there, warped)
    if labels is not None:
        masks = labels.index_select(0, there).to(images.dtype)
        nearest = grid_sample(masks, grid, mode="nearest", padding_mode="zeros", align_corners=False)
        labels.index_copy_(0, there, nearest.to(labels.dtype))


def _erase(images: Tensor, labels: Tensor | None, parameters: AugmentParameters) -> None:
    """Fills each rectangle with noise in [0, 1), the same for all slices, and its labels with 0.

    What fills them is drawn on the CPU, window by window, and written into all windows at once.
    """
    rows = parameters.erased[:, 0].nonzero().flatten().tolist()
    if not rows:
        return
    boxes, noises = zip(*(_rectangle_of(parameters, row, images.shape[-1]) for row in rows), strict=True)
    windows = torch.repeat_interleave(torch.tensor(rows), torch.tensor([len(box) for box in boxes]))
    window, pixel = put(torch.stack([windows, torch.cat(boxes)]), images.device).unbind()
    noise = put(torch.cat(noises).to(images.dtype), images.device)
    images.flatten(2)[window, :, pixel] = noise[:, None]  # (p, D) values of the p pixels, in every slice
    if labels is not None:
        labels.flatten(2)[window, :, pixel] = labels.new_zeros(())


def _rectangle_of(parameters: AugmentParameters, row: int, side: int) -> tuple[Tensor, Tensor]:
    """The pixels that a window loses, as (p,) numbers row * side + column, and the noise that takes their place."""
    part_high, part_wide, part_top, part_left = parameters.erased[row].tolist()
    height, width = int(part_high * side), int(part_wide * side)
    top, left = int(part_top * (side - height + 1)), int(part_left * (side - width + 1))
    generator = torch.Generator().manual_seed(int(parameters.noise[row]))
    pixels = torch.arange(top, top + height)[:, None] * side + torch.arange(left, left + width)
    return pixels.flatten(), torch.rand(height, width, generator=generator).flatten()


# Ours rather than kornia's: there brightness adds, contrast is a brightness or takes its mean over all channels (which
# are slices here), sharpness is a convolution, and 8 bits leave the image as it is.
def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """``floor(255 x / s) s / 255`` with ``s = 2 ** (8 - bits)``: the upper bits of the 8-bit value, as in PIL."""
    step = torch.exp2(8 - bits).round()  # exact on every device
    return (images * 255 / step).floor() * step / 255


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """``m + factor (x - m)`` in [0, 1] with the mean m of each slice, as in PIL, which rounds m to 8 bits."""
    mean = images.mean(dim=(2, 3), keepdim=True)
    return (mean + factor * (images - mean)).clamp(0, 1)


def colour_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """``m + factor (x - m)`` in [0, 1] with the mean m of 0.299 red + 0.587 green + 0.114 blue, as in PIL.

    Args:
        images: (b, 3, H, H).
        factor: (b, 1, 1, 1).
    """
    red, green, blue = images.mean(dim=(2, 3)).unbind(1)
    mean = (0.299 * red + 0.587 * green + 0.114 * blue).view(-1, 1, 1, 1)
    return (mean + factor * (images - mean)).clamp(0, 1)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """``factor x`` in [0, 1], as in PIL."""
    return (factor * images).clamp(0, 1)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """``s + factor (x - s)`` in [0, 1], as in PIL; s: 5/13 pixel + 1/13 of each neighbour, the border as is."""
    centre = images[..., 1:-1, 1:-1]
    # A sum, not a convolution: on a GPU that would run in TF32 and lose bits.
    smooth = (9 * avg_pool2d(images, 3, stride=1) + 4 * centre) / 13
    sharper = images.clone()
    sharper[..., 1:-1, 1:-1] = (smooth + factor * (centre - smooth)).clamp(0, 1)
    return sharper


Intensity = Mapping[str, Callable[[Tensor, Tensor], Tensor]]
"""What :data:`OPERATIONS` do to intensities, by name."""

INTENSITY: Intensity = {
    "posterize": posterize,
    "contrast": contrast,
    "brightness": brightness,
    "sharpness": sharpness,
}
COLOUR_INTENSITY: Intensity = {**INTENSITY, "contrast": colour_contrast}

AUGMENTS: Mapping[str, type] = {
    "flap_sam": FlapSamAugment,
    "standard": Augment,
    "flips": Flips,
    "none": NoAugment,
}
