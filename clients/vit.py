"""A Vision Transformer as a classifier of C classes: patches and CLS token, blocks, last norm, a linear head on CLS.

The pieces and their tensor names are those of ``transformers`` (:class:`ViTModel` without its pooling layer); prompts
(:mod:`.prompts`) and other adapters are put in by methods (:mod:`.vit_methods`).

Legend: B images, H = W image size, P patch size, n = (H / P)^2 patches, D width, N = 1 + n tokens, T prompts of a
block, C classes.

Source: Dosovitskiy et al. 2020 (ViT), arXiv 2010.11929.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel
from transformers.models.vit.modeling_vit import ViTAttention

from ..aggregators.contract import Part, Streams, Tensors
from ..datasets.contract import Task
from . import vit_weights
from .grouped import per_image
from .lora import Matrices, Place
from .network import Draw, Network, filled, last_blocks, size_problems
from .prompts import Prompts

Colour = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class VitSize:
    """The dimensions of one ViT.

    Args:
        width: D.
        layers: Blocks.
        heads: Attention heads.
        mlp: Hidden width of the MLPs.
        patch: Side of a patch, in pixels.
    """

    width: int
    layers: int
    heads: int
    mlp: int
    patch: int = 16


SIZES: dict[str, VitSize] = {
    "ti16": VitSize(width=192, layers=12, heads=3, mlp=768),
    "s16": VitSize(width=384, layers=12, heads=6, mlp=1536),
    "b16": VitSize(width=768, layers=12, heads=12, mlp=3072),
    "l16": VitSize(width=1024, layers=24, heads=16, mlp=4096),
    "mini": VitSize(width=128, layers=6, heads=4, mlp=256, patch=8),
    "tiny": VitSize(width=32, layers=2, heads=2, mlp=64, patch=8),
}
"""ViT-Ti, -S, -B and -L with patches of 16 (DeiT has the first three too), ``mini`` for CPU experiments (64 px) and
``tiny`` for tests (32 px)."""


class VitNet(Network):
    """A ViT with a linear head: logits (B, C) of images. Frozen when built: a method decides what may train.

    Args:
        size: Dimensions.
        image_size: H = W in pixels, a multiple of the patch size.
        num_classes: C.
        mean: Of the pixels per colour, in [0, 1]; images come as they are and are normalised here.
        std: Their deviation per colour, above 0.

    Attributes:
        prompts: Learned tokens that stand between CLS and patches; None without them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: VitSize, image_size: int, num_classes: int, mean: Colour, std: Colour) -> None:
        super().__init__()
        self.size = size
        self.image_size = image_size
        self.vit = ViTModel(_config(size, image_size), add_pooling_layer=False)
        self.head = nn.Linear(size.width, num_classes)
        self.prompts: Prompts | None = None
        for name, colour in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(colour, device="cpu").view(-1, 1, 1), persistent=False)

    @property
    def num_stages(self) -> int:
        """Stages: patches with CLS and positions, every block, the last norm."""
        return len(self.vit.layers) + 2

    def stage(self, number: int, hidden: Tensor, depth: int) -> Tensor:
        """What one stage makes of what the one before it gave.

        Args:
            number: Which.
            hidden: (B, 3, H, W) or (B, 1, H, W) images in [0, 1] before stage 0, tokens (B, N, D) or with prompts that
                stay (B, N + T, D) before the others. The last stage gives CLS alone, (B, 1, D): nobody reads the rest.
            depth: Not looked at: every image stands alone.
        """
        if number == 0:
            return self._embed((hidden.expand(-1, 3, -1, -1) - self.mean) / self.std)
        if number == self.num_stages - 1:
            last: Tensor = self.vit.layernorm(hidden[:, :1])
            return last
        return self._block(number - 1, hidden)

    def _embed(self, images: Tensor) -> Tensor:
        """CLS and patches (B, N, D) with their positions, as :class:`ViTEmbeddings`; of one hospital or of several."""
        embeddings, number = self.vit.embeddings, len(images)
        patches: Tensor = embeddings.patch_embeddings.projection(images).flatten(2).mT  # (B, n, D)
        cls = per_image(embeddings.cls_token.flatten(0, -3), number)  # of (1, 1, D), or stacked (K, 1, 1, D)
        positions = per_image(embeddings.position_embeddings.flatten(0, -3), number)  # (1 or B, N, D)
        return torch.cat([cls.expand(number, -1, -1).to(patches.dtype), patches], dim=1) + positions

    def _block(self, number: int, tokens: Tensor) -> Tensor:
        """A block, with its prompts put in before it, and taken out after it where it has some of its own."""
        if self.prompts is not None:
            tokens = self.prompts.put_in(number, tokens)
        tokens = self.vit.layers[number](tokens)
        return tokens if self.prompts is None else self.prompts.take_out(tokens)

    def stage_parameters(self) -> list[list[nn.Parameter]]:
        """The parameters of every stage, in order; the first block has the prompts of all."""
        stages = [[*module.parameters()] for module in (self.vit.embeddings, *self.vit.layers, self.vit.layernorm)]
        if self.prompts is not None:
            stages[1] += self.prompts.parameters()
        return stages

    def parts(self) -> tuple[tuple[Part, tuple[nn.Module, ...]], ...]:
        """See :meth:`.Network.parts`; prompts and adapters belong to the encoder."""
        prompts = () if self.prompts is None else (self.prompts,)
        return (("encoder", (self.vit, *prompts)), ("head", (self.head,)))

    def attention(self) -> tuple[ViTAttention, ...]:
        """The attention layers, one per block, in model order."""
        return tuple(module for module in self.vit.layers.modules() if isinstance(module, ViTAttention))

    def places(self, matrices: Matrices, blocks: int | None = None) -> Iterator[Place]:
        """See :meth:`.Network.places`: every projection has a layer of its own."""
        layers = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
        for attention in last_blocks(self.attention(), blocks):
            for word in matrices:
                yield attention, layers[word], {"lora": None}

    def always_trained(self) -> tuple[nn.Module, ...]:
        """The head: it is a new one in every run."""
        return (self.head,)

    def per_class(self) -> tuple[nn.Module, ...]:
        """See :meth:`.Network.per_class`."""
        return (self.head,)

    def stage_buffers(self) -> list[Tensor]:
        """Mean and deviation of the pixels."""
        return [self.mean, self.std]

    def decode(self, embedding: Tensor) -> Tensor:
        """Logits (B, C) of tokens (B, 1 or N, D): a linear read-out of CLS."""
        logits: Tensor = self.head(embedding[:, 0])
        return logits

    def pool(self, embedding: Tensor) -> Tensor:
        """CLS (B, D) of tokens (B, 1 or N, D)."""
        return embedding[:, 0]


@dataclass(frozen=True, kw_only=True)
class Vit:
    """The model plug-in ``vit``.

    Args:
        size: ``ti16``, ``s16``, ``b16``, ``l16``, ``mini`` or ``tiny``.
        image_size: H = W in pixels, a multiple of the patch size (16; ``mini`` and ``tiny``: 8).
        weights: ``random``, the name of a packaged base (``vit-mini``), or the path of a Hugging Face directory (ViT or
            DeiT) or of a ``.safetensors`` file.
        mean: Of the pixels per colour, in [0, 1]; null: what the weights say, 0.5 where they say nothing.
        std: Their deviation per colour, above 0; null: likewise.
        pretrained_on: Names of the data sets that the weights have seen. A run whose data set has images in common with
            one of them is refused.
    """

    task: ClassVar[Task] = "classification"

    size: str = "mini"
    image_size: int = 64
    weights: str = "random"
    mean: Colour | None = None
    std: Colour | None = None
    pretrained_on: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = size_problems(self.size, self.image_size, {name: size.patch for name, size in SIZES.items()})
        if self.mean is not None and not all(0 <= value <= 1 for value in self.mean):
            problems.append(f"mean: expected three numbers in [0, 1], got {self.mean!r}")
        if self.std is not None and not all(value > 0 for value in self.std):
            problems.append(f"std: expected three numbers above 0, got {self.std!r}")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def patch(self) -> int:
        """Side of a patch, in pixels."""
        return SIZES[self.size].patch

    def untrained(self) -> Self:
        """The same model with random weights."""
        return replace(self, weights="random", pretrained_on=())

    def pretrained(self, num_classes: int) -> Tensors:
        """The tensors of the network that its weights give a value, by name, on the CPU, fp32; none for ``random``.

        Args:
            num_classes: C, >= 1; the head is always a new one.

        Raises:
            ValueError: the weights are absent, damaged or of another model.
        """
        if self.weights == "random":
            return {}
        return vit_weights.load(self.weights, self.build_meta(num_classes), SIZES)

    def build(self, num_classes: int, rng: Streams, pretrained: Tensors | None = None) -> VitNet:
        """The network with its weights, on the CPU, fp32, no parameter requiring a gradient.

        Args:
            num_classes: C, >= 1.
            rng: Streams of initial values; a tensor called ``name`` is drawn from ``rng(name)`` alone.
            pretrained: What :meth:`pretrained` gave, on any device: the network then holds these tensors themselves.
                None: they are read.

        Raises:
            ValueError: the weights are absent, damaged or of another model.
        """
        net = self.build_meta(num_classes)
        loaded = self.pretrained(num_classes) if pretrained is None else pretrained
        return filled(net, loaded, _initial_values(net, rng))

    def build_meta(self, num_classes: int) -> VitNet:
        """The same network on the meta device: shapes and names, no values."""
        if num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1, got {num_classes!r}")
        said_mean, said_std = vit_weights.normalisation(self.weights)
        with torch.device("meta"):
            net = VitNet(SIZES[self.size], self.image_size, num_classes, self.mean or said_mean, self.std or said_std)
        return net.requires_grad_(False).eval()

    def weights_hash(self) -> str:
        """SHA-256 of the weights file or files; ``random`` where there are none."""
        return "random" if self.weights == "random" else vit_weights.digest(self.weights)


def hugging_face_config(net: VitNet, classes: Sequence[str]) -> ViTConfig:
    """The config of the network in ``transformers``, with the names of its classes."""
    config = _config(net.size, net.image_size)
    config.id2label = dict(enumerate(classes))
    config.label2id = {name: number for number, name in enumerate(classes)}
    return config


def _config(size: VitSize, image_size: int) -> ViTConfig:
    config = ViTConfig(
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.mlp,
        image_size=image_size,
        patch_size=size.patch,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config._attn_implementation = "sdpa"
    return config


def _initial_values(net: VitNet, rng: Streams) -> Iterator[tuple[str, Draw]]:
    """Name and lazily drawn initial value of every tensor of the network's state."""
    for prefix, module in net.named_modules():
        for short, tensor in module.named_parameters(recurse=False):
            name = f"{prefix}.{short}"
            yield name, partial(_initial_value, module, short, tuple(tensor.shape), rng, name)


def _initial_value(module: nn.Module, short: str, shape: tuple[int, ...], rng: Streams, name: str) -> Tensor:
    """Norms 1 and 0, biases 0, everything else (weights, CLS, positions) normal with deviation 0.02."""
    if isinstance(module, nn.LayerNorm):
        return torch.ones(shape) if short == "weight" else torch.zeros(shape)
    if short == "bias":
        return torch.zeros(shape)
    return 0.02 * torch.randn(shape, generator=rng(name))
