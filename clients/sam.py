"""SAM as a promptless segmenter of C classes: image encoder, frozen prompt encoder, mask decoder with C + 1 maps.

The pieces and their tensor names are those of ``transformers``; what is our own is the way they are put together: all
C + 1 mask maps are returned (token 0 is background), the upscaler may reach image resolution, and the decoder runs
without prompts, from the embedding that says "no mask".

Legend: B images, H = W image size, P patch size, g = H / P, D width of neck and decoder, N = C + 2 tokens, C foreground
classes, h = w size of the logits. ``depth`` is the number of slices of a window, for encoders that mix them.

Source: Kirillov et al. 2023 (SAM); arXiv 2407.21739 (FLAP-SAM: C + 1 maps, 16x upscaler, no prompts).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from transformers import SamConfig, SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig
from transformers.models.sam.modeling_sam import (
    SamAttention,
    SamFeedForward,
    SamLayerNorm,
    SamMaskDecoder,
    SamPromptEncoder,
    SamVisionAttention,
    SamVisionEncoder,
    SamVisionSdpaAttention,
)

from ..aggregators.contract import Part, Streams, Tensors
from ..datasets.contract import Task
from . import sam_weights
from .grouped import per_image, together
from .lora import Matrices, Place
from .network import Draw, Network, filled, last_blocks, size_problems
from .slice_adapter import SliceLayer

Upscaler = Literal["full", "sam"]


@dataclass(frozen=True, kw_only=True)
class SamSize:
    """The dimensions of one SAM.

    Args:
        width: Width of the image encoder.
        layers: Its number of blocks.
        heads: Its attention heads.
        global_layers: Blocks whose attention sees the whole grid; the others see windows.
        window: Side of an attention window, in patches.
        patch: Side of a patch, in pixels; a power of two.
        neck: D, the width of neck and mask decoder.
        decoder_heads: Attention heads of the mask decoder.
        decoder_mlp: Hidden width of the mask decoder's MLPs.
    """

    width: int
    layers: int
    heads: int
    global_layers: tuple[int, ...]
    window: int = 14
    patch: int = 16
    neck: int = 256
    decoder_heads: int = 8
    decoder_mlp: int = 2048


SIZES: dict[str, SamSize] = {
    "vit-b": SamSize(width=768, layers=12, heads=12, global_layers=(2, 5, 8, 11)),
    "vit-l": SamSize(width=1024, layers=24, heads=16, global_layers=(5, 11, 17, 23)),
    "vit-h": SamSize(width=1280, layers=32, heads=16, global_layers=(7, 15, 23, 31)),
    # At 64 px the grid is 8 x 8: the windows hold all of it, and larger images keep their cost.
    "mini": SamSize(
        width=128,
        layers=4,
        heads=4,
        global_layers=(1, 3),
        window=8,
        patch=8,
        neck=128,
        decoder_heads=4,
        decoder_mlp=512,
    ),
    "tiny": SamSize(
        width=32, layers=2, heads=2, global_layers=(1,), window=2, patch=8, neck=32, decoder_heads=2, decoder_mlp=32
    ),
}
"""SAM's three sizes, ``mini`` for CPU experiments (64 px) and ``tiny`` for tests (32 px)."""


class EncoderAttention(SamVisionSdpaAttention):
    """The encoder's attention with position tables that have their final size.

    ``transformers`` interpolates the tables and makes their index on the host in every forward pass. Ours are resized
    once, when weights are loaded, and the index is made on the device.
    """

    def get_rel_pos(self, q_size: int, k_size: int, rel_pos: Tensor) -> Tensor:
        """Rows of the (2 q_size - 1, head width) table per query and key position: (q_size, k_size, head width)."""
        position = torch.arange(q_size, device=rel_pos.device)
        return rel_pos[position[:, None] - position[None, :] + (k_size - 1)]


class PositionalEncoding(nn.Module):
    """Random Fourier features of a position: ``[sin(2 pi p G), cos(2 pi p G)]``, p in [-1, 1]^2, G a fixed Gaussian."""

    positional_embedding: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("positional_embedding", torch.zeros(2, width // 2))

    def grid(self, side: int) -> Tensor:
        """The encoding of the centres of a side x side grid, (1, width, side, side)."""
        gauss = self.positional_embedding
        centre = (torch.arange(side, device=gauss.device, dtype=gauss.dtype) + 0.5) / side * 2 - 1  # (g,)
        # Products instead of a matmul, which autocast would round: phases of 20 need more digits than bf16 has.
        phase = 2 * math.pi * (centre[None, :, None] * gauss[0] + centre[:, None, None] * gauss[1])  # (g, g, width / 2)
        return torch.cat([phase.sin(), phase.cos()], dim=-1).permute(2, 0, 1)[None]


class PromptEncoder(SamPromptEncoder):
    """SAM's prompt encoder, of which only the "no mask" embedding and the grid's encoding are used."""

    shared_embedding: PositionalEncoding  # type: ignore[assignment]  # the fixed matrix is a buffer here

    def __init__(self, config: SamConfig) -> None:
        super().__init__(config)
        self.shared_embedding = PositionalEncoding(self.hidden_size)


class UpscaleStage(nn.Module):
    """A further doubling after SAM's two: layer norm, GELU, transposed convolution with kernel 2 and stride 2."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.layer_norm = SamLayerNorm(width_in, data_format="channels_first")  # type: ignore[no-untyped-call]  # theirs
        self.conv = nn.ConvTranspose2d(width_in, width_out, kernel_size=2, stride=2)

    def forward(self, features: Tensor) -> Tensor:
        """(B, width_in, h, w) to (B, width_out, 2h, 2w)."""
        doubled: Tensor = self.conv(nn.functional.gelu(self.layer_norm(features)))
        return doubled


class MaskDecoder(SamMaskDecoder):
    """SAM's mask decoder that returns all C + 1 maps, with ``stages`` doublings in its upscaler.

    Stage k has ``D / 2^(k + 1)`` output channels (ViT-B: 64, 32, 16, 8): the first two are SAM's own. Layer norm and
    GELU follow every stage but the last, which has GELU alone. The hypernetworks end in the last stage's width.
    """

    def __init__(self, config: SamMaskDecoderConfig, stages: int) -> None:
        super().__init__(config)
        width, maps = config.hidden_size, config.num_multimask_outputs + 1
        channels = [width // 2 ** (stage + 2) for stage in range(stages)]
        self.upscale_more = nn.ModuleList(UpscaleStage(*pair) for pair in pairwise(channels[1:]))
        self.output_hypernetworks_mlps = nn.ModuleList(
            SamFeedForward(width, width, channels[-1], 3) for _ in range(maps)
        )

    def forward(self, embedding: Tensor, position: Tensor) -> Tensor:  # type: ignore[override]  # promptless by design
        """Logits of all maps.

        Args:
            embedding: (B, D, g, g) image embedding, the "no mask" embedding added.
            position: (1, D, g, g) encoding of the grid.

        Returns:
            (B, C + 1, h, w).
        """
        tokens = together([self.iou_token.weight, self.mask_tokens.weight])  # (N, D), or stacked (K, N, D)
        tokens = per_image(tokens.unflatten(-2, (1, -1)), len(embedding))
        tokens = tokens.expand(len(embedding), 1, -1, -1)  # (B, 1, N, D): one "prompt" per image
        tokens, image = self.transformer(tokens, embedding, position, None)  # (B, 1, N, D), (B, 1, g*g, D)
        features = self.upscale(image[:, 0].transpose(1, 2).reshape(embedding.shape))  # (B, c, h, w)
        mlps = zip(self.output_hypernetworks_mlps, tokens[:, 0, 1:].unbind(1), strict=True)
        weights = torch.stack([mlp(token) for mlp, token in mlps], dim=1)  # (B, C + 1, c)
        logits = weights @ features.flatten(2)  # (B, C + 1, h * w)
        return logits.reshape(*logits.shape[:2], *features.shape[2:])

    def upscale(self, image: Tensor) -> Tensor:
        """(B, D, g, g) to (B, c, h, w)."""
        features = self.activation(self.upscale_layer_norm(self.upscale_conv1(image)))
        features = self.upscale_conv2(features)
        for stage in self.upscale_more:
            features = stage(features)
        out: Tensor = self.activation(features)
        return out

    def upscaler(self) -> tuple[nn.Module, ...]:
        """The modules of the upscaler."""
        return (self.upscale_conv1, self.upscale_layer_norm, self.upscale_conv2, self.upscale_more)

    def head(self) -> tuple[nn.Module, ...]:
        """What makes the output: upscaler, hypernetworks, mask tokens."""
        return (*self.upscaler(), self.output_hypernetworks_mlps, self.mask_tokens)


class SamNet(Network):
    """SAM without prompts: logits (B, C + 1, h, w) of images. Frozen when built: a method decides what may train.

    Args:
        size: Dimensions.
        image_size: H = W in pixels, a multiple of the patch size.
        num_classes: C, foreground classes.
        upscaler: ``full``: logits at image resolution; ``sam``: four times the embedding's.
    """

    def __init__(self, size: SamSize, image_size: int, num_classes: int, upscaler: Upscaler) -> None:
        super().__init__()
        self.size = size
        self.image_size = image_size
        self.grid = image_size // size.patch
        stages = int(math.log2(size.patch)) if upscaler == "full" else 2
        self.logit_size = self.grid * 2**stages
        vision = _vision_config(size, image_size)
        self.vision_encoder = SamVisionEncoder(vision)
        for layer in self.vision_encoder.layers:
            layer.attn = EncoderAttention(vision, layer.window_size)  # type: ignore[no-untyped-call]  # theirs
        self.prompt_encoder = PromptEncoder(_prompt_config(size, image_size))
        self.mask_decoder = MaskDecoder(_decoder_config(size, num_classes), stages)

    @property
    def mixes_slices(self) -> bool:
        """Whether an image is segmented in the light of the other slices of its window."""
        return any(isinstance(layer, SliceLayer) for layer in self.vision_encoder.layers)

    @property
    def num_stages(self) -> int:
        """Stages of the image encoder: patches with their positions, every block, neck."""
        return len(self.vision_encoder.layers) + 2

    def stage(self, number: int, hidden: Tensor, depth: int) -> Tensor:
        """What one stage of the encoder makes of what the one before it gave.

        Args:
            number: Which.
            hidden: (B, 3, H, W) or (B, 1, H, W) images before stage 0, (B, g, g, width) before the others; the last
                gives the embedding (B, D, g, g).
            depth: Slices of a window.
        """
        encoder = self.vision_encoder
        if number == 0:
            patches: Tensor = encoder.patch_embed(hidden.expand(-1, 3, -1, -1)) + encoder.pos_embed
            return patches  # (B, g, g, width)
        module = encoder.neck if number == self.num_stages - 1 else encoder.layers[number - 1]
        out: Tensor = module(hidden, depth) if isinstance(module, SliceLayer) else module(hidden)
        return out

    def stage_parameters(self) -> list[list[nn.Parameter]]:
        """The parameters of every stage of the encoder, in order."""
        encoder = self.vision_encoder
        first = [encoder.pos_embed, *encoder.patch_embed.parameters()]
        return [first, *([*module.parameters()] for module in (*encoder.layers, encoder.neck))]

    def decode(self, embedding: Tensor) -> Tensor:
        """Logits (B, C + 1, h, w) of an embedding (B, D, g, g)."""
        prompts = self.prompt_encoder
        no_mask = prompts.no_mask_embed.weight.reshape(-1, embedding.shape[1], 1, 1)  # (1 or K, D, 1, 1)
        no_mask = per_image(no_mask, len(embedding))
        logits: Tensor = self.mask_decoder(embedding + no_mask, prompts.shared_embedding.grid(self.grid))
        return logits

    def pool(self, embedding: Tensor) -> Tensor:
        """The mean (B, D) of an embedding (B, D, g, g) over the grid."""
        return embedding.mean(dim=(2, 3))

    def parts(self) -> tuple[tuple[Part, tuple[nn.Module, ...]], ...]:
        """See :meth:`.Network.parts`; the head lies within the decoder."""
        return (
            ("encoder", (self.vision_encoder,)),
            ("prompt_encoder", (self.prompt_encoder,)),
            ("decoder", (self.mask_decoder,)),
            ("head", self.mask_decoder.head()),
        )

    def encoder_attention(self) -> list[SamVisionAttention]:
        """The attention modules of the image encoder, one per block, in model order."""
        return [module for module in self.vision_encoder.modules() if isinstance(module, SamVisionAttention)]

    def decoder_attention(self) -> list[SamAttention]:
        """The attention modules of the mask decoder (7 in SAM), in model order."""
        return [module for module in self.mask_decoder.modules() if isinstance(module, SamAttention)]

    def attention(self) -> tuple[nn.Module, ...]:
        """The encoder's attention (qkv, proj, relative positions) and the whole transformer of the decoder."""
        return (*self.encoder_attention(), self.mask_decoder.transformer)

    def places(self, matrices: Matrices, blocks: int | None = None) -> Iterator[Place]:
        """See :meth:`.Network.places`; those of the decoder are there whatever ``blocks`` is."""
        yield from self.encoder_places(matrices, blocks)
        yield from self.decoder_places(matrices)

    def encoder_places(self, matrices: Matrices, blocks: int | None = None) -> Iterator[Place]:
        """Rows of the encoder's fused projections [q | k | v], and its output projections."""
        for attention in last_blocks(self.encoder_attention(), blocks):
            width = attention.qkv.in_features
            spans = {word: (n * width, (n + 1) * width) for n, word in enumerate("qkv")}
            yield attention, "qkv", {f"lora_{word}": spans[word] for word in matrices if word in spans}
            if "o" in matrices:
                yield attention, "proj", {"lora": None}

    def decoder_places(self, matrices: Matrices) -> Iterator[Place]:
        """The decoder's projections, which have a layer each."""
        layers = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}
        for attention in self.decoder_attention():
            for word in matrices:
                yield attention, layers[word], {"lora": None}

    def per_class(self) -> tuple[nn.Module, ...]:
        """Mask tokens, hypernetworks and the IoU head, whose last layer has an output for every map."""
        decoder = self.mask_decoder
        return (decoder.mask_tokens, decoder.output_hypernetworks_mlps, decoder.iou_prediction_head)

    def unused(self) -> tuple[nn.Module, ...]:
        """Modules that a promptless forward pass never touches; their parameters count and travel all the same."""
        prompts = self.prompt_encoder
        return (
            self.mask_decoder.iou_prediction_head,
            prompts.mask_embed,
            prompts.point_embed,
            prompts.not_a_point_embed,
        )


@dataclass(frozen=True, kw_only=True)
class Sam:
    """The model plug-in ``sam``.

    Args:
        size: ``vit-b``, ``vit-l``, ``vit-h``, ``mini`` or ``tiny``.
        image_size: H = W in pixels, a multiple of the patch size (16; ``mini`` and ``tiny``: 8).
        upscaler: ``full``: logits at image resolution (FLAP-SAM's 16x); ``sam``: SAM's own 4x.
        weights: ``random``, ``sam-mini`` (packaged), or the path of an official ``.pth``, of a Hugging Face directory,
            or of a ``.safetensors`` file.
        heads: Mask tokens, hypernetworks and IoU head: ``new`` ones, or those of the ``checkpoint``.
        pretrained_on: Names of the data sets that the weights have seen. A run whose data set has images in common with
            one of them is refused.
    """

    task: ClassVar[Task] = "segmentation"

    size: str = "mini"
    image_size: int = 64
    upscaler: Upscaler = "full"
    weights: str = "random"
    heads: Literal["new", "checkpoint"] = "new"
    pretrained_on: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = size_problems(self.size, self.image_size, {name: size.patch for name, size in SIZES.items()})
        if self.upscaler not in ("full", "sam"):
            problems.append(f"upscaler: expected 'full' or 'sam', got {self.upscaler!r}")
        if self.heads not in ("new", "checkpoint"):
            problems.append(f"heads: expected 'new' or 'checkpoint', got {self.heads!r}")
        elif self.heads == "checkpoint" and self.weights == "random":
            problems.append("heads: expected 'new', as random weights have no checkpoint, got 'checkpoint'")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def patch(self) -> int:
        """Side of a patch, in pixels."""
        return SIZES[self.size].patch

    def untrained(self) -> Self:
        """The same model with random weights."""
        return replace(self, weights="random", heads="new", pretrained_on=())

    def pretrained(self, num_classes: int) -> Tensors:
        """The tensors of the network that its weights give a value, by name, on the CPU, fp32; none for ``random``.

        Args:
            num_classes: C, foreground classes, >= 1.

        Raises:
            ValueError: the weights are absent, damaged or of another model.
        """
        if self.weights == "random":
            return {}
        return sam_weights.load(self.weights, self.build_meta(num_classes), self.heads, SIZES)

    def build(self, num_classes: int, rng: Streams, pretrained: Tensors | None = None) -> SamNet:
        """The network with its weights, on the CPU, fp32, no parameter requiring a gradient.

        Args:
            num_classes: C, foreground classes, >= 1.
            rng: Streams of initial values; a tensor called ``name`` is drawn from ``rng(name)`` alone.
            pretrained: What :meth:`pretrained` gave, on any device: the network then holds these tensors themselves.
                None: they are read.

        Raises:
            ValueError: the weights are absent, damaged or of another model.
        """
        net = self.build_meta(num_classes)
        loaded = self.pretrained(num_classes) if pretrained is None else pretrained
        return filled(net, loaded, _initial_values(net, rng))

    def build_meta(self, num_classes: int) -> SamNet:
        """The same network on the meta device: shapes and names, no values."""
        if num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1, got {num_classes!r}")
        with torch.device("meta"):
            net = SamNet(SIZES[self.size], self.image_size, num_classes, self.upscaler)
        return net.requires_grad_(False).eval()

    def weights_hash(self) -> str:
        """SHA-256 of the weights file or files; ``random`` where there are none."""
        return "random" if self.weights == "random" else sam_weights.digest(self.weights)


def _vision_config(size: SamSize, image_size: int) -> SamVisionConfig:
    config = SamVisionConfig(
        hidden_size=size.width,
        output_channels=size.neck,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        image_size=image_size,
        patch_size=size.patch,
        window_size=size.window,
        global_attn_indexes=list(size.global_layers),
        num_pos_feats=size.neck // 2,
    )
    config._attn_implementation = "sdpa"
    return config


def _prompt_config(size: SamSize, image_size: int) -> SamConfig:
    prompts = SamPromptEncoderConfig(hidden_size=size.neck, image_size=image_size, patch_size=size.patch)
    return SamConfig(vision_config=_vision_config(size, image_size), prompt_encoder_config=prompts)


def hugging_face_config(net: SamNet) -> SamConfig:
    """The config of the network in ``transformers``, whose ``SamModel`` has SAM's two upscaling stages and no more."""
    config = _prompt_config(net.size, net.image_size)
    config.mask_decoder_config = _decoder_config(net.size, net.mask_decoder.mask_tokens.num_embeddings - 1)
    return config


def _decoder_config(size: SamSize, num_classes: int) -> SamMaskDecoderConfig:
    config = SamMaskDecoderConfig(
        hidden_size=size.neck,
        mlp_dim=size.decoder_mlp,
        num_attention_heads=size.decoder_heads,
        num_multimask_outputs=num_classes,
        iou_head_hidden_dim=size.neck,
        layer_norm_eps=1e-5,  # as in the official two-way transformer; the default of transformers is 1e-6
    )
    config._attn_implementation = "sdpa"
    return config


def _initial_values(net: SamNet, rng: Streams) -> Iterator[tuple[str, Draw]]:
    """Name and lazily drawn initial value of every tensor of the network's state."""
    in_encoder = set(net.vision_encoder.modules())
    for prefix, module in net.named_modules():
        for short, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            name = f"{prefix}.{short}"
            initial = _encoder_value if module in in_encoder else _decoder_value
            yield name, partial(initial, module, short, tuple(tensor.shape), rng, name)


def _encoder_value(module: nn.Module, short: str, shape: tuple[int, ...], rng: Streams, name: str) -> Tensor:
    """Norms 1 and 0, biases 0, everything else (weights, position tables) normal with deviation 0.02."""
    if isinstance(module, nn.LayerNorm):
        return torch.ones(shape) if short == "weight" else torch.zeros(shape)
    if short == "bias":
        return torch.zeros(shape)
    return 0.02 * torch.randn(shape, generator=rng(name))


def _decoder_value(module: nn.Module, short: str, shape: tuple[int, ...], rng: Streams, name: str) -> Tensor:
    """Norms 1 and 0, embeddings and positional matrix N(0, 1), the rest uniform within 1 / sqrt(fan in)."""
    if isinstance(module, nn.LayerNorm):
        return torch.ones(shape) if short == "weight" else torch.zeros(shape)
    if isinstance(module, nn.Embedding | PositionalEncoding):
        return torch.randn(shape, generator=rng(name))
    assert isinstance(module.weight, Tensor)
    fan_in = module.weight[0].numel()  # as torch counts it, for transposed convolutions too
    return (2 * torch.rand(shape, generator=rng(name)) - 1) / math.sqrt(fan_in)
