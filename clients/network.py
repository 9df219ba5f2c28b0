"""What a replica needs of a model: a start that may be frozen, stage by stage, and what makes the output.

::

    images --stage 0--> hidden --stages 1, 2, ...--> embedding --decode--> logits
                                                      '--pool--> features

Legend: B images, D width, C classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, Protocol, Self, TypeVar

from torch import Tensor, nn

from ..aggregators.contract import Part, Streams, Tensors
from ..datasets.contract import Task
from .lora import Matrices, Place

Block = TypeVar("Block")


class Network(nn.Module):
    """A model in stages; the base of :class:`~wardround.clients.sam.SamNet` and :class:`~wardround.clients.vit.VitNet`.

    Attributes:
        image_size: H = W in pixels.
    """

    image_size: int

    @property
    @abstractmethod
    def num_stages(self) -> int:
        """Stages from the image to the embedding."""

    @abstractmethod
    def stage(self, number: int, hidden: Tensor, depth: int) -> Tensor:
        """What one stage makes of what the one before it gave; images (B, 1 or 3, H, W) before stage 0."""

    @abstractmethod
    def stage_parameters(self) -> list[list[nn.Parameter]]:
        """The parameters of every stage, in order."""

    def stage_buffers(self) -> list[Tensor]:
        """Tensors beside the parameters that the first stage depends on."""
        return []

    @abstractmethod
    def decode(self, embedding: Tensor) -> Tensor:
        """The logits of an embedding."""

    @abstractmethod
    def pool(self, embedding: Tensor) -> Tensor:
        """One vector (B, D) per image, of an embedding."""

    @abstractmethod
    def parts(self) -> tuple[tuple[Part, tuple[nn.Module, ...]], ...]:
        """The modules of every part, which hold all parameters; of parts that share some, the last one has them."""

    @abstractmethod
    def attention(self) -> tuple[nn.Module, ...]:
        """What the method ``attention`` trains."""

    @abstractmethod
    def places(self, matrices: Matrices, blocks: int | None = None) -> Iterator[Place]:
        """The linear layers of every attention that LoRA may adapt, in model order.

        Args:
            matrices: Which projections.
            blocks: Only the last so many blocks of the encoder; None: all.

        Raises:
            ValueError: the encoder has fewer blocks.
        """

    def always_trained(self) -> tuple[nn.Module, ...]:
        """Modules that train whatever the method: a new head is of no use as it is."""
        return ()

    def per_class(self) -> tuple[nn.Module, ...]:
        """Modules with tensors for every class: what they have learned is worth nothing for other classes."""
        return ()

    @property
    def mixes_slices(self) -> bool:
        """Whether an image is seen in the light of the other slices of its window."""
        return False

    def unused(self) -> tuple[nn.Module, ...]:
        """Modules that a forward pass never touches; their parameters count and travel all the same."""
        return ()

    def forward(self, images: Tensor, depth: int = 1) -> Tensor:
        """Logits of images (B, 3, H, W) or (B, 1, H, W); the others: see :meth:`encode`."""
        return self.decode(self.encode(images, depth))

    def encode(self, images: Tensor, depth: int = 1) -> Tensor:
        """The embedding of images (B, 3, H, W); one channel is repeated to three.

        Args:
            images: B = windows * depth slices, window after window.
            depth: Slices of a window; for a model that does not mix them every image stands alone, whatever it is.
        """
        return self.through(images, depth, range(self.num_stages))

    def through(self, hidden: Tensor, depth: int, stages: range) -> Tensor:
        """What some stages, in order, make of what the stage before them gave.

        Args:
            hidden: Images before stage 0; what the stage before gave otherwise.
            depth: Slices of a window.
            stages: Which stages; none: ``hidden`` as it is.
        """
        for number in stages:
            hidden = self.stage(number, hidden, depth)
        return hidden

    def frozen_stages(self, trained: Collection[str]) -> int:
        """How many stages, from the first on, hold none of the parameters of these names."""
        named = {id(parameter) for name, parameter in self.named_parameters() if name in trained}
        trains = [any(id(parameter) in named for parameter in stage) for stage in self.stage_parameters()]
        return trains.index(True) if any(trains) else len(trains)

    def features(self, images: Tensor, depth: int = 1) -> Tensor:
        """The pooled embedding (B, D) of images."""
        return self.pool(self.encode(images, depth))


def last_blocks(blocks: Sequence[Block], number: int | None) -> Sequence[Block]:
    """The last so many of an encoder's blocks; None: all of them.

    Raises:
        ValueError: there are fewer.
    """
    if number is not None and number > len(blocks):
        raise ValueError(
            f"method.lora.blocks: expected at most the {len(blocks)} blocks of the model's encoder, got {number!r}"
        )
    return blocks[-number if number else 0 :]


N = TypeVar("N", bound=Network)

Draw = Callable[[], Tensor]
"""Draws the initial value of a tensor."""


def filled(net: N, loaded: Tensors, initial: Iterable[tuple[str, Draw]]) -> N:
    """A network off the meta device, frozen: tensors that were loaded as they are, the others at their initial values.

    Args:
        net: On the meta device.
        loaded: Values by name; the network then holds these tensors themselves.
        initial: Name and initial value of every tensor; drawn only where it is needed.
    """
    fresh = {name: draw() for name, draw in initial if name not in loaded}
    net.load_state_dict({**loaded, **fresh}, assign=True)
    return net.requires_grad_(False).eval()


def size_problems(size: str, image_size: int, patches: Mapping[str, int]) -> list[str]:
    """What is wrong with a model's settings ``size`` and ``image_size``.

    Args:
        size: Name of its dimensions.
        image_size: H = W in pixels.
        patches: Side of a patch for every name there is.
    """
    if size not in patches:
        return [f"size: expected one of {', '.join(patches)}, got {size!r}"]
    if image_size < 1 or image_size % patches[size]:
        return [f"image_size: expected a positive multiple of the patch size {patches[size]}, got {image_size!r}"]
    return []


class Model(Protocol):
    """A model plug-in: a frozen dataclass that builds a network."""

    task: ClassVar[Task]
    """What its networks do."""

    @property
    def size(self) -> str:
        """Name of its dimensions."""
        ...

    @property
    def image_size(self) -> int:
        """H = W in pixels."""
        ...

    @property
    def patch(self) -> int:
        """Side of a patch, in pixels."""
        ...

    @property
    def weights(self) -> str:
        """Name or path of its weights; ``random``: none."""
        ...

    @property
    def pretrained_on(self) -> tuple[str, ...]:
        """Names of the data sets that the weights have seen."""
        ...

    def untrained(self) -> Self:
        """The same model with random weights."""
        ...

    def pretrained(self, num_classes: int) -> Tensors:
        """The tensors that the weights give a value, by name, on the CPU, fp32; none for ``random``."""
        ...

    def build(self, num_classes: int, rng: Streams, pretrained: Tensors | None = None) -> Network:
        """The network with its weights, on the CPU, fp32, frozen."""
        ...

    def build_meta(self, num_classes: int) -> Network:
        """The same network on the meta device: shapes and names, no values."""
        ...

    def weights_hash(self) -> str:
        """SHA-256 of the weights; ``random`` where there are none."""
        ...
