"""The replica: one frozen base on the device, and the trainable tensors that hospitals take turns in.

All trainable tensors live in one flat buffer, so that changing from one hospital to the next is a single copy. Nothing
in it belongs to a hospital: what a hospital keeps is in its memory, on the host.

Legend: b windows, D slices of a window, H rows, W columns, C classes, R rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..aggregators.contract import Layout, Tensors
from .compiled import Backend, compiled
from .lora import set_rank
from .network import Network

Precision = Literal["fp32", "bf16", "fp64"]
Through = Callable[[Tensor, int, range], Tensor]

_RANK_DIM = {"lora_A": 0, "lora_B": 1}


class Replica:
    """A model with adapters, whose trainable tensors can be loaded and read by name.

    Args:
        model: The built model with its adapters attached, on the host.
        layout: What may train.
        device: Where it computes.
        precision: ``bf16`` runs the model under autocast; ``fp64`` turns everything into double precision.
        unused: Trainable names that no gradient reaches, as another replica of the same model and method found them
            (its ``unused``); None: a pass through the model finds them.
    """

    def __init__(
        self,
        model: Network,
        layout: Layout,
        *,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
        unused: frozenset[str] | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.precision = precision
        self.layout = layout
        self.dtype = torch.float64 if precision == "fp64" else torch.float32
        self.model = model.requires_grad_(False).to(self.device, self.dtype)
        self._named = dict(self.model.named_parameters())
        self._pristine: dict[str, Tensor] = {}
        self._prefix_hash: str | None = None
        self._sizes = [self._named[name].numel() for name in layout.names]
        self.values, self._flat = self._flatten()
        self._start = torch.empty_like(self._flat)
        on_host, cuda = self.device.type == "cpu", self.device.type == "cuda"
        self._staged = self._start if on_host else torch.empty_like(self._flat, device="cpu", pin_memory=cuda)
        self._origin: dict[str, tuple[Tensor, int]] = {}
        self.rank = self.max_rank
        self.prefix = model.frozen_stages(layout.names)
        self.compiled = False
        self._through: Through = model.through
        self._decode: Callable[[Tensor], Tensor] = model.decode
        self.unused = self._find_unused() if unused is None else unused

    @property
    def max_rank(self) -> int | None:
        """Rows of the largest A, None without pairs."""
        pairs = self.layout.pairs
        return self.values[pairs[0].A].shape[0] if pairs else None

    def _flatten(self) -> tuple[dict[str, nn.Parameter], Tensor]:
        """Makes every trainable parameter a view of one buffer."""
        parameters = {name: self._named[name] for name in self.layout.names}
        flat = torch.cat([parameter.detach().flatten() for parameter in parameters.values()])
        for parameter, part in zip(parameters.values(), flat.split(self._sizes), strict=True):
            parameter.data = part.view(parameter.shape)
            parameter.requires_grad_(True)
        return parameters, flat

    @torch.enable_grad()
    def _find_unused(self) -> frozenset[str]:
        """Trainable names that no gradient reaches (the IoU head). They count and travel and are never optimised."""
        size = self.model.image_size
        logits = self.logits(torch.zeros(1, 1, size, size))
        names = list(self.values)
        gradients = torch.autograd.grad(logits.float().sum(), [self.values[n] for n in names], allow_unused=True)
        return frozenset(name for name, gradient in zip(names, gradients, strict=True) if gradient is None)

    # --- tensors ---------------------------------------------------------------------------------------------------

    def load(self, tensors: Tensors) -> None:
        """Sets every trainable tensor. Factors of a lower rank are padded with zeros, which is exact.

        Raises:
            ValueError: a name is missing or unknown, or a shape does not fit.
        """
        rank = self.rank_of(tensors)
        if not self._holds(tensors):
            self._bring(tensors)
        self._flat.copy_(self._start)
        if rank is not None and rank != self.rank:
            set_rank(self.model, rank)
        self.rank = rank

    def _holds(self, tensors: Tensors) -> bool:
        """Whether these are the tensors that were brought last, unchanged: most hospitals are handed the same ones."""
        return bool(self._origin) and all(
            tensors[name] is value and value._version == version for name, (value, version) in self._origin.items()
        )

    def _bring(self, tensors: Tensors) -> None:
        """Puts tensors onto the device, padded, in one transfer."""
        padded = [self.widened(name, tensors[name]).to("cpu", self.dtype).flatten() for name in self.values]
        torch.cat(padded, out=self._staged)
        if self._staged is not self._start:
            self._start.copy_(self._staged)
        known = not any(value.is_inference() for value in tensors.values())  # those do not count what is written
        self._origin = {name: (tensors[name], tensors[name]._version) for name in self.values} if known else {}

    def read(self) -> dict[str, Tensor]:
        """The trainable tensors on the host, at the rank they were loaded with; a copy."""
        on_host = self._staged is self._start
        flat = self._flat.detach().clone() if on_host else self._staged.copy_(self._flat.detach()).clone()
        parts = zip(self.values.items(), flat.split(self._sizes), strict=True)
        whole = {name: part.view(value.shape) for (name, value), part in parts}
        return whole if self.rank == self.max_rank else self.cropped(whole)

    def cropped(self, tensors: Tensors) -> dict[str, Tensor]:
        """Host copies of tensors at full rank, cut to the present rank."""
        return {name: self.narrowed(name, value.detach().cpu()).contiguous() for name, value in tensors.items()}

    def padded(self, tensors: Tensors) -> dict[str, Tensor]:
        """Tensors by name, padded to full rank and placed on the device (for :meth:`features_at`)."""
        return {name: self.place(self.widened(name, value)) for name, value in tensors.items()}

    def place(self, value: Tensor) -> Tensor:
        """A tensor on the device, in the dtype of the trained tensors."""
        return value.to(self.device, self.dtype)

    def parameters(self, names: Iterable[str]) -> dict[str, nn.Parameter]:
        """The live tensors of those names, without the ones that no gradient ever reaches."""
        return {name: self.values[name] for name in names if name not in self.unused}

    def zero_grad(self) -> None:
        """Drops all gradients."""
        for value in self.values.values():
            value.grad = None

    def frozen_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every frozen weight that a pair is added to (a method may train the base of a pair as well)."""
        bases = (pair.base for pair in self.layout.pairs if pair.base not in self.values)
        return {name: tuple(self._named[name].shape) for name in bases}

    def set_base(self, base: Tensors) -> None:
        """Makes every frozen weight ``pristine + base[name]``; weights not in ``base`` become pristine again.

        Raises:
            ValueError: a name is no frozen weight, or a shape does not fit.
        """
        touched = self._pristine.keys() | base.keys()
        if touched and not self._prefix_weights().keys().isdisjoint(touched):
            self._prefix_hash = None
        for name in self._pristine.keys() - base.keys():
            self._named[name].data = self._pristine.pop(name)
        for name, change in base.items():
            weight = self._frozen(name, change)
            if name not in self._pristine:
                self._pristine[name] = weight.data  # the model may share it with others: it is put aside, not written
                weight.data = torch.empty_like(weight)
            pristine = self._pristine[name]
            torch.add(pristine, change.to(pristine), out=weight.data)

    @property
    def prefix_hash(self) -> str:
        """SHA-256 of all tensors that the frozen start (:meth:`begin`) depends on, as they are now."""
        if self._prefix_hash is None:
            digest = hashlib.sha256()
            buffers = {f"buffer {number}": value for number, value in enumerate(self.model.stage_buffers())}
            for name, weight in {**self._prefix_weights(), **buffers}.items():
                digest.update(f"{name}/{weight.dtype}/{tuple(weight.shape)}".encode())
                digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data)
            self._prefix_hash = digest.hexdigest()
        return self._prefix_hash

    def _prefix_weights(self) -> dict[str, nn.Parameter]:
        """The parameters of the frozen start by name."""
        stages = self.model.stage_parameters()[: self.prefix]
        within = {id(parameter) for stage in stages for parameter in stage}
        return {name: parameter for name, parameter in self._named.items() if id(parameter) in within}

    def _frozen(self, name: str, change: Tensor) -> nn.Parameter:
        weight = self._named.get(name)
        if weight is None or name in self.values:
            raise ValueError(f"base change {name!r}: expected the name of a frozen weight")
        if weight.shape != change.shape:
            raise ValueError(f"base change {name!r}: expected shape {tuple(weight.shape)}, got {tuple(change.shape)}")
        return weight

    def narrowed(self, name: str, value: Tensor) -> Tensor:
        """A view of a tensor at full rank, cut to the present rank."""
        return self.narrowed_to(self.rank, name, value)

    def narrowed_to(self, rank: int | None, name: str, value: Tensor) -> Tensor:
        """A view of a tensor at full rank, cut to a rank; None: there are no pairs."""
        dim = _RANK_DIM.get(self.layout.kind[name])
        return value if dim is None or rank is None else value.narrow(dim, 0, rank)

    def widened(self, name: str, value: Tensor) -> Tensor:
        """Zero-padding of a factor up to full rank. Raises ValueError for any other difference in shape."""
        shape = self.values[name].shape
        if value.shape == shape:
            return value
        dim = _RANK_DIM.get(self.layout.kind[name])
        fits = dim is not None and value.ndim == 2 and value.shape[1 - dim] == shape[1 - dim]
        if dim is None or not fits or value.shape[dim] > shape[dim]:
            raise ValueError(f"tensor {name!r}: expected shape {tuple(shape)}, got {tuple(value.shape)}")
        padded = value.new_zeros(shape)
        padded.narrow(dim, 0, value.shape[dim]).copy_(value)
        return padded

    def _check_names(self, tensors: Tensors) -> None:
        missing, unknown = sorted(self.values.keys() - tensors.keys()), sorted(tensors.keys() - self.values.keys())
        if missing or unknown:
            raise ValueError(
                f"expected a value for each of {len(self.values)} trainable tensors; missing {missing[:5]}"
                f" ({len(missing)} in all), unknown {unknown[:5]} ({len(unknown)} in all)"
            )

    def rank_of(self, tensors: Tensors) -> int | None:
        """The rank of a hospital's trainable tensors, None without pairs.

        Raises:
            ValueError: a name is missing or unknown, or the pairs have several ranks.
        """
        self._check_names(tensors)
        ranks = {tensors[pair.A].shape[0] for pair in self.layout.pairs}
        if len(ranks) > 1:
            raise ValueError(f"expected one rank for all pairs of a hospital, got {sorted(ranks)}")
        return ranks.pop() if ranks else None

    # --- the model -------------------------------------------------------------------------------------------------

    def compile(self, backend: Backend = "inductor") -> None:
        """Compiles the encoder and the decoder: on first use, once per shape, and again where training begins or ends.

        Nothing else that happens in a run compiles anything: tensors are loaded by copies into one buffer, the scale of
        a rank is a tensor, and batches are filled to one width (:meth:`width`). :meth:`features_at` and stacked
        hospitals (:mod:`.stack`) run as they are written.

        Args:
            backend: As in :func:`torch.compile`.
        """
        self.compiled = True
        self._through = compiled(self.model.through, backend)
        self._decode = compiled(self.model.decode, backend)

    def width(self, batch_size: int) -> int | None:
        """How many windows every batch must have, where a compiled model takes one shape only; None: any number."""
        return batch_size if self.compiled else None

    @property
    def mixes_slices(self) -> bool:
        """Whether the logits of a slice depend on the other slices of its window."""
        return self.model.mixes_slices

    def logits(self, images: Tensor) -> Tensor:
        """Windows (b, D, H, W) -> (b * D, C+1, h, w) mask logits, slice by slice; images (b, 1, 3, H, W) -> (b, C)."""
        return self.decode(self.encode(images))

    def encode(self, images: Tensor) -> Tensor:
        """(b, D, H, W) windows -> (b * D, width, g, g) image embeddings."""
        return self.proceed(self.begin(images), images.shape[1])

    @torch.no_grad()
    def begin(self, images: Tensor) -> Tensor:
        """(b, D, H, W) windows -> (b * D, ...): what the frozen start of the encoder makes of them, without gradient.

        The frozen start are the first ``prefix`` stages of the encoder, in which nothing may train. It is the same for
        every hospital and round, and may be kept (:mod:`.features`). Images (b, 1, 3, H, W) have three colours.
        """
        depth = images.shape[1]
        with self.autocast():
            flat = images.flatten(0, 1)  # (b * D, H, W) or (b, 3, H, W)
            return self._through(self.place(flat if flat.ndim == 4 else flat[:, None]), depth, range(self.prefix))

    def proceed(self, hidden: Tensor, depth: int) -> Tensor:
        """What :meth:`begin` gave for windows of ``depth`` slices -> (b * D, width, g, g) image embeddings."""
        with self.autocast():
            return self._through(hidden, depth, range(self.prefix, self.model.num_stages))

    def decode(self, embedding: Tensor) -> Tensor:
        """Image embeddings -> (b * D, C+1, h, w) mask logits."""
        with self.autocast():
            return self._decode(embedding)

    @torch.no_grad()
    def features_at(self, tensors: Tensors, hidden: Tensor, depth: int) -> Tensor:
        """Features of what :meth:`begin` gave, under other trainable tensors (at full rank, on the device)."""
        stages = range(self.prefix, self.model.num_stages)
        with self.autocast():
            embedding = Part(self.model, self.model.through).under(tensors, hidden, depth, stages)
        return self.model.pool(embedding)

    def autocast(self) -> AbstractContextManager[object]:
        """Autocast where the precision is bf16."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()


class Part(nn.Module):
    """A function of a network that can run with other tensors; a module, because functional_call runs ``forward``.

    Args:
        model: The network.
        run: One of its methods.
    """

    def __init__(self, model: Network, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model = model
        self.run = run

    def forward(self, *inputs: object) -> Tensor:
        """What the method gives."""
        return self.run(*inputs)

    def under(self, tensors: Tensors, *inputs: object) -> Tensor:
        """The same with other values of the network's tensors, by name. No tensor of it has two names."""
        below = {f"model.{name}": value for name, value in tensors.items()}
        outputs: Tensor = functional_call(self, below, inputs, tie_weights=False)
        return outputs
