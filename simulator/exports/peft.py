"""Format ``peft``: the adapters as a directory that PEFT loads, and the base they belong to.

::

    adapter_config.json, adapter_model.safetensors    what PEFT reads (:mod:`~wardround.clients.peft_files`)
    base/                                             the network that PEFT wraps, before training

What PEFT wraps is a network of plain ``transformers`` where there is one (ViT; SAM with SAM's own upscaler), and one of
our own otherwise; :func:`base_network` builds it in any case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors.torch import save
from torch import nn

from ...aggregators.contract import Tensors
from ...clients import METHODS, MODELS
from ...clients.hugging_face import copied, sam_model, vit_classifier
from ...clients.merged import check_mergeable, low_rank_changes, plain_state
from ...clients.network import Model, Network
from ...clients.peft_files import PeftAdapter, peft_adapter, write_adapter
from ...clients.sam import SamNet
from ...clients.vit import VitNet
from ...clients.weight_files import read_safetensors
from ..assembly import build_replica
from ..builder import build, called
from ..files import write_bytes
from ..randomness import streams
from ..trained import Trained
from .contract import Recipe
from .hf import write_hf
from .origin import BASE, read_origin
from .preparation import preparation

WEIGHTS = "model.safetensors"
"""File of a base that is a network of our own."""

HEADS = {"head": "classifier"}
"""What modules of a ViT are called in ``transformers``, where their name is another than ours."""

PLAIN_LOADING = """\
import torch
from peft import PeftModel
from transformers import {name}

base = {name}.from_pretrained("base")
model = PeftModel.from_pretrained(base, ".").eval()
"""

BUILT_LOADING = """\
import torch
from peft import PeftModel

import wardround

base = wardround.base_network("."){hint}
model = PeftModel.from_pretrained(base, ".").eval()
"""

VIT_USE = """\
pixels = torch.rand(1, 3, {size}, {size})  # yours: an image in [0, 1]
mean, std = torch.tensor({mean}).view(3, 1, 1), torch.tensor({std}).view(3, 1, 1)
with torch.no_grad():
    logits = model(pixel_values=(pixels - mean) / std).logits  # (1, {classes})
"""

SAM_USE = """\
pixels = torch.rand(1, 3, {size}, {size})  # yours: a slice in [0, 1], the same in all three channels
with torch.no_grad():
    embedding = model.get_image_embeddings(pixels)
    background = model(image_embeddings=embedding, multimask_output=False).pred_masks[:, 0]
    structures = model(image_embeddings=embedding, multimask_output=True).pred_masks[:, 0]
logits = torch.cat([background, structures], dim=1)  # (1, {maps}, {logits}, {logits})
"""

OWN_USE = """\
pixels = torch.rand(1, 1, {size}, {size})  # yours: a slice in [0, 1]
with torch.no_grad():
    logits = model(pixels)  # (1, {maps}, {logits}, {logits})
"""


@dataclass(frozen=True, kw_only=True)
class _Named:
    """The model plug-in that a ``wardround.json`` names."""

    model: Annotated[Model, MODELS]


def write_peft(trained: Trained, folder: Path, *, base: bool) -> Recipe:
    """Writes the adapters as PEFT has them; see :class:`.contract.Format`.

    Dense tensors that train and frozen weights that the server changed are in ``modules_to_save``. Where such a weight
    has an adapter as well, the adapter is merged into it.
    """
    network = trained.replica.model
    _check(trained)
    if not base and trained.experiment.start_from is not None:
        raise ValueError(
            f"expected an export with its base: this run started from {str(trained.experiment.start_from)!r} and has "
            "no weights file of its own; leave out --no-base"
        )
    layout = trained.replica.layout
    dense = (name for name in layout.dense if layout.kind[name] != "core")
    adapter = peft_adapter(network, {*dense, *trained.checkpoint.server.base})
    wrapped = _wrapped_class(network)
    write_adapter(adapter, folder, wrapped, HEADS if isinstance(network, VitNet) else {})
    if base:
        _write_base(trained, folder / BASE)
    return Recipe(library="peft", code=_code(trained, wrapped, base), notes=_notes(trained, adapter), tags=("lora",))


def _check(trained: Trained) -> None:
    """Raises ValueError where the model has nothing that PEFT's LoRA can hold."""
    network, model = trained.replica.model, trained.experiment.model
    if not isinstance(network, SamNet | VitNet):
        raise ValueError(f"expected the model sam or vit, got {type(model).__name__}")
    try:
        check_mergeable(network)
    except ValueError as error:
        raise ValueError(f"{error}, which no format can hold") from error
    if not low_rank_changes(network):
        raise ValueError(
            "expected low-rank changes of linear layers (a method with LoRA or LoRA-SB), got the method "
            f"{_method(trained)}, which has none; {_other_formats(network)}"
        )


def _method(trained: Trained) -> str:
    """The name of the run's method; of one that is not in the table, its class."""
    return called(METHODS, type(trained.experiment.method))


def _other_formats(network: Network) -> str:
    """Where the whole model can go."""
    if _is_own(network):
        return "with model.upscaler: sam the formats hf and sam-pth hold the whole model"
    return (
        f"use {'--format hf' if isinstance(network, VitNet) else '--format hf or sam-pth'}, which holds the whole model"
    )


def _is_own(network: Network) -> bool:
    """Whether ``transformers`` has no such network."""
    return isinstance(network, SamNet) and len(network.mask_decoder.upscale_more) > 0


def _wrapped_class(network: Network) -> type[nn.Module]:
    """The class of the network that PEFT wraps."""
    from transformers import SamModel, ViTForImageClassification

    if _is_own(network):
        return type(network)
    return ViTForImageClassification if isinstance(network, VitNet) else SamModel


# --- the base ---------------------------------------------------------------------------------------------------------


def _write_base(trained: Trained, folder: Path) -> None:
    """Writes the base as the run began with it."""
    experiment, classes, hospitals = trained.experiment, trained.classes, tuple(trained.hospitals)
    network = build_replica(experiment, len(classes), torch.device("cpu"), hospitals, classes=classes).model
    state = plain_state(network)
    folder.mkdir()
    if _is_own(network):
        content = save({name: copied(value) for name, value in state.items()}, metadata={"format": "pt"})
        write_bytes(folder / WEIGHTS, content)
    else:
        write_hf(state, experiment.model, classes, folder)


def base_network(folder: Path | str, *, weights: str | None = None) -> nn.Module:
    """The network that PEFT wraps: ``PeftModel.from_pretrained(base_network(folder), folder)``.

    It is read from the folder ``base`` of the export. An export without one says what its base is: it is built again,
    from the run's seed and weights.

    Args:
        folder: What ``wardround export --format peft`` wrote.
        weights: Where the weights of the base are now, if there is no folder ``base``; None: under the name that the
            export says.

    Returns:
        ``ViTForImageClassification`` or ``SamModel`` of ``transformers``; for SAM with our upscaler a
        :class:`~wardround.clients.sam.SamNet`, which gives logits (B, C + 1, H, W) of images (B, 1, H, W) in [0, 1].
        On the CPU, fp32.

    Raises:
        ValueError: this is no such folder; the weights are not here or are other ones; ``weights`` and a folder
            ``base``; or no folder ``base``, where the run started from another one.
    """
    folder = Path(folder)
    origin = read_origin(folder)
    model, classes = _model(folder, origin), origin["classes"]
    if (folder / BASE).is_dir():
        if weights is not None:
            raise ValueError(
                f"{folder}: weights: expected none, as the folder {BASE} holds the base, got {weights!r}; leave it out"
            )
        return _read_base(folder / BASE, model, len(classes))
    if origin["started_from"] is not None:
        raise ValueError(
            f"{folder}: expected the folder {BASE}, as the run started from another one and no weights file holds what "
            "that had learned; export the run again"
        )
    if weights is not None:
        model = replace(model, weights=weights)  # type: ignore[type-var]  # plug-ins are dataclasses
    if model.weights_hash() != origin["weights_hash"]:
        raise ValueError(
            f"{folder}: expected the weights {origin['model'].get('weights')!r} of the run, but {model.weights!r} are "
            "other ones; name the file with weights=, or export with the base"
        )
    network = model.build(len(classes), streams(origin["seed"], "init"))
    return _wrapped(network, network.state_dict(), classes)


def _model(folder: Path, origin: Mapping[str, Any]) -> Model:
    try:
        return build(_Named, {"model": origin["model"]}).model
    except ValueError as error:
        raise ValueError(f"{folder}: wardround.json: {error}") from error


def _read_base(folder: Path, model: Model, num_classes: int) -> nn.Module:
    """The network in a folder ``base``."""
    network = model.build_meta(num_classes)
    if _is_own(network):
        network.load_state_dict(read_safetensors(folder / WEIGHTS), assign=True)
        return network
    wrapped: Any = _wrapped_class(network)
    read: nn.Module = wrapped.from_pretrained(folder)
    return read


def _wrapped(network: Network, state: Tensors, classes: Sequence[str]) -> nn.Module:
    """A network without adapters as PEFT is to wrap it."""
    if isinstance(network, VitNet):
        return vit_classifier(network, state, classes)
    assert isinstance(network, SamNet)
    return network if _is_own(network) else sam_model(network, state)


# --- what the card says -----------------------------------------------------------------------------------------------


def _code(trained: Trained, wrapped: type[nn.Module], base: bool) -> str:
    """Python that loads base and adapter, and computes logits."""
    if base and not _is_own(trained.replica.model):
        loading = PLAIN_LOADING.format(name=wrapped.__name__)
    else:
        loading = BUILT_LOADING.format(hint="" if base else '  # weights="PATH", where they are another file here')
    return loading + _use(trained)


def _use(trained: Trained) -> str:
    network, classes = trained.replica.model, len(trained.classes)
    if isinstance(network, VitNet):
        mean, std = network.mean.flatten().tolist(), network.std.flatten().tolist()
        return VIT_USE.format(size=network.image_size, classes=classes, mean=_written(mean), std=_written(std))
    assert isinstance(network, SamNet)
    use = OWN_USE if _is_own(network) else SAM_USE
    return use.format(size=network.image_size, maps=classes + 1, logits=network.logit_size)


def _written(numbers: Sequence[float]) -> list[float]:
    """fp32 numbers in as many digits as they have."""
    return [float(f"{number:.8g}") for number in numbers]


def _notes(trained: Trained, adapter: PeftAdapter) -> tuple[str, ...]:
    network = trained.replica.model
    merged = {one.weight for one in low_rank_changes(network)} - {one.weight for one in adapter.changes}
    notes = ["The scale of the adapters is in `lora_B`: alpha is the rank, so that PEFT's own scale is 1."]
    if merged:
        notes.append(
            f"{len(merged)} layers changed beside their adapters, which are merged into them: they are in "
            "`modules_to_save`, whole."
        )
    if not adapter.changes:
        notes.append("No layer is left that has an adapter of its own, so `target_modules` is PEFT's word for none.")
    if isinstance(network, VitNet):
        side = network.image_size
        pixels = f"Images are resized to {side} x {side} pixels, bilinearly with antialiasing and without keeping the"
        return (*notes, f"{pixels} aspect, divided by 255, and normalised as the code has it.")
    return (*notes, *preparation(trained))
