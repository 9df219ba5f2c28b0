"""Several hospitals on one replica at the same time: they share every step, the frozen weights and the device.

The frozen layers see the images of all hospitals as one large batch. A layer that trains sees the weights of K
hospitals, stacked, and applies to every hospital's images its own (:mod:`.grouped`).

The tensors of up to K hospitals live in one buffer that is made once::

    load(K hospitals) -> leaf(names) -> split -> proceed, decode -> loss -> gradient of the leaf -> store -> read

Fewer than K can take a step: the first k, whenever the tensors handed in are those of k hospitals.

Legend: K hospitals, k of them in a step, b windows of each, D slices of a window, P numbers that a hospital may train,
R rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from transformers.models.vit.modeling_vit import ViTEmbeddings

from ..aggregators.contract import Tensors
from .grouped import GROUPED, make_grouped
from .lora import AdaptedLinear, Adapter, LoRA
from .lora_sb import Core
from .network import Network
from .prompts import Prompts
from .replica import Part, Replica

_OUR_OWN = (Adapter, AdaptedLinear, Core, Prompts, ViTEmbeddings, nn.Embedding)
"""Layers that look at their weights themselves, or whose tables the network looks up (SAM's tokens, ViT's CLS)."""


def stackable(model: Network, names: Iterable[str]) -> str | None:
    """Whether several hospitals can share a step: None, or why they cannot.

    Args:
        model: With its adapters.
        names: Of the parameters that may train.
    """
    untouched = {id(parameter) for module in model.unused() for parameter in module.parameters()}
    for name in names:
        owner = model.get_submodule(name.rpartition(".")[0])
        if id(model.get_parameter(name)) not in untouched and not _knows_both(owner):
            return f"{name!r} trains, and {type(owner).__name__} takes the tensors of one hospital only"
    return None


def _knows_both(layer: nn.Module) -> bool:
    if isinstance(layer, nn.ConvTranspose2d):
        return layer.stride == layer.kernel_size and not any(layer.padding) and layer.groups == 1
    if isinstance(layer, nn.Conv2d):
        return layer.stride == layer.kernel_size and layer.padding == (0, 0) and layer.groups == 1
    return isinstance(layer, _OUR_OWN) or type(layer) in {*GROUPED, *GROUPED.values()}


class Stack:
    """The trainable tensors of up to K hospitals, and the model of the replica with them.

    Args:
        replica: Has the frozen weights. Its layers become such as take stacked weights; what it computes stays.
        size: K, >= 1.

    Raises:
        ValueError: a tensor that may train sits in a layer that cannot be stacked.
    """

    def __init__(self, replica: Replica, size: int) -> None:
        reason = stackable(replica.model, replica.layout.names)
        if reason is not None:
            raise ValueError(f"expected a method whose hospitals can share a step: {reason}; use cohort: sequential")
        make_grouped(replica.model, replica.layout.names)
        self.replica = replica
        self.size = size
        self.ranks: tuple[int | None, ...] = ()
        self._sizes = {name: value.numel() for name, value in replica.values.items()}
        self._storage = torch.zeros(size, sum(self._sizes.values()), device=replica.device, dtype=replica.dtype)
        pinned = replica.device.type == "cuda"
        self._staged = torch.zeros(self._storage.shape, dtype=replica.dtype, pin_memory=pinned)
        self._views = self._shaped(list(self._sizes), self._storage)
        self._scales = _Scales(replica, size)
        self._through = Part(replica.model, replica.model.through)
        self._decode = Part(replica.model, replica.model.decode)

    @property
    def count(self) -> int:
        """Hospitals that are loaded."""
        return len(self.ranks)

    # --- tensors ---------------------------------------------------------------------------------------------------

    def load(self, hospitals: Sequence[Tensors]) -> None:
        """Sets every trainable tensor of one hospital after the other, padded with zeros to the replica's rank.

        Raises:
            ValueError: more hospitals than K, or none; a name is missing or unknown, or a shape does not fit.
        """
        if not 1 <= len(hospitals) <= self.size:
            raise ValueError(f"expected 1 to {self.size} hospitals in a stack, got {len(hospitals)}")
        self.ranks = tuple(self.replica.rank_of(tensors) for tensors in hospitals)
        for k, tensors in enumerate(hospitals):
            padded = [self.replica.widened(name, tensors[name]) for name in self._sizes]
            torch.cat([value.to("cpu", self._staged.dtype).flatten() for value in padded], out=self._staged[k])
        self._storage[: self.count].copy_(self._staged[: self.count])
        self._scales.set(self.ranks)

    def read(self) -> list[dict[str, Tensor]]:
        """The trainable tensors of every hospital on the host, each at its own rank; a copy."""
        host = self._staged[: self.count].copy_(self._storage[: self.count])
        rows = [row.clone() for row in host]  # no hospital's tensors keep the others' in memory
        return [self._cropped(k, row) for k, row in enumerate(rows)]

    def leaf(self, names: Iterable[str]) -> Tensor:
        """A flat copy (K, P of those names) that requires a gradient, without names that no gradient ever reaches."""
        parts = [self._views[name][: self.count].flatten(1) for name in self._used(names)]
        empty = self._storage[: self.count, :0]
        return torch.cat([empty, *parts], dim=1).requires_grad_(True)

    def split(self, names: Iterable[str], flat: Tensor) -> dict[str, Tensor]:
        """Views (k, *shape) by name of a flat tensor (k, P of those names), made by one differentiable split."""
        return self._shaped(self._used(names), flat)

    def store(self, names: Iterable[str], flat: Tensor) -> None:
        """Writes flat values (k, P of those names) into the first k rows of the storage."""
        parts = self.split(names, flat.detach())
        for name, value in parts.items():
            self._views[name][: len(flat)].copy_(value)

    def narrowed(self, k: int, name: str, value: Tensor) -> Tensor:
        """A view of a tensor at full rank, cut to the rank of hospital k."""
        return self.replica.narrowed_to(self.ranks[k], name, value)

    def _used(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name not in self.replica.unused]

    def _shaped(self, names: Sequence[str], flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([self._sizes[name] for name in names], dim=1)
        shapes = [self.replica.values[name].shape for name in names]
        return {name: part.unflatten(1, shape) for name, part, shape in zip(names, parts, shapes, strict=True)}

    def _cropped(self, k: int, row: Tensor) -> dict[str, Tensor]:
        full = self._shaped(list(self._sizes), row[None])
        return {name: self.narrowed(k, name, value[0]).contiguous() for name, value in full.items()}

    # --- the model -------------------------------------------------------------------------------------------------

    def proceed(self, hidden: Tensor, depth: int, tensors: Tensors) -> Tensor:
        """Image embeddings of k hospitals.

        Args:
            hidden: (k * b * D, ...): what :meth:`.Replica.begin` gave, hospital after hospital.
            depth: D.
            tensors: (k, *shape) values that stand in for those of the storage; none: all hospitals with their own.

        Returns:
            (k * b * D, width, g, g).
        """
        stages = range(self.replica.prefix, self.replica.model.num_stages)
        return self._call(self._through, tensors, hidden, depth, stages)

    def decode(self, embedding: Tensor, tensors: Tensors) -> Tensor:
        """Image embeddings (k * b * D, width, g, g) -> (k * b * D, C+1, h, w) mask logits; ``tensors`` as above."""
        return self._call(self._decode, tensors, embedding)

    @torch.no_grad()
    def features_at(self, tensors: Tensors, hidden: Tensor, depth: int) -> Tensor:
        """Features (k * b * D, width) of what :meth:`.Replica.begin` gave, under other trainable tensors."""
        return self.replica.model.pool(self.proceed(hidden, depth, tensors))

    def _call(self, part: Part, tensors: Tensors, *inputs: object) -> Tensor:
        k = len(next(iter(tensors.values()))) if tensors else self.count
        held = {name: self._views[name][:k] for name in self._used(self._sizes)}
        values = {**held, **self._scales.of_first(k), **tensors}
        with self.replica.autocast():
            return part.under(values, *inputs)


class _Scales:
    """The scale of every adapter per hospital, by the name of the adapter's buffer."""

    def __init__(self, replica: Replica, size: int) -> None:
        adapters = [(name, module) for name, module in replica.model.named_modules() if isinstance(module, Adapter)]
        self._settings: dict[str, LoRA] = {f"{name}.scale": module.settings for name, module in adapters}
        self._values = {
            settings: torch.zeros(size, device=replica.device, dtype=replica.dtype)
            for settings in self._settings.values()
        }

    def set(self, ranks: Sequence[int | None]) -> None:
        """Sets them to those of the hospitals' ranks."""
        for settings, values in self._values.items():
            scales = [settings.scale(rank) for rank in ranks if rank is not None]
            values[: len(ranks)].copy_(torch.tensor(scales, dtype=values.dtype))

    def of_first(self, k: int) -> dict[str, Tensor]:
        """(k,) by name, for the first k hospitals."""
        return {name: self._values[settings][:k] for name, settings in self._settings.items()}
