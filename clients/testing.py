"""The contracts of a method and of a loss, as suites that any of them can be put through.

Example:
    >>> from wardround.clients.methods import FlapSam
    >>> from wardround.clients.lora import LoRA
    >>> check_method(FlapSam(lora=LoRA(rank=2)))
    >>> from wardround.clients.losses import SegmentationLoss
    >>> check_loss(SegmentationLoss())
"""

from __future__ import annotations

import hashlib
import pickle
from typing import Any

import torch
from torch import Tensor

from ..aggregators.contract import Layout, Pair, Tensors
from ..datasets.door import check_frozen
from .contract import Method, Ranked, rank_of
from .losses import Loss
from .network import Model, Network
from .sam import Sam
from .vit import Vit

_MODELS: dict[str, Model] = {"sam": Sam(size="tiny", image_size=32), "vit": Vit(size="tiny", image_size=32)}
_CLASSES = 2


def check_method(method: Method) -> None:
    """Runs the contract suite of a method on a tiny network of every model it suits; needs a second or two.

    Checked: it is a frozen keyword-only dataclass; a second call of ``attach`` and the meta device give the same
    layout; every name is a parameter, once, with a part and a kind; base tensors keep names and values; pairs have
    matching shapes and the rank the method says; ``initialise`` depends on its streams alone and leaves nothing unset;
    with B = 0 and without prompts the logits are exactly the base's; every trainable tensor gets a gradient or lies in
    a module that a forward pass never touches; the slices of a window change each other exactly when the model says so,
    and never those of another window.

    Raises:
        AssertionError: says which rule is broken.
    """
    _check_plain(method)
    known = set(_MODELS)
    suits = getattr(method, "models", ())
    fits = bool(suits) and known.issuperset(suits)
    assert fits, f"models: expected names of models it suits, of {sorted(known)}, got {suits}"
    for name in suits:
        _check(method, _MODELS[name])


def check_loss(loss: Loss) -> None:
    """Runs the contract suite of a loss on logits and labels made for its task.

    Checked: it is a frozen keyword-only dataclass; it says what it is for; ``fitted`` and ``at`` give a loss and labels
    that fit; a call gives one finite number, the same every time, without the global random state; a gradient reaches
    the logits and is finite; labels count; after ``at`` it can be mapped over hospitals (``torch.func.vmap``).

    Raises:
        AssertionError: says which rule is broken.
    """
    _check_plain(loss)
    assert loss.task in ("segmentation", "classification"), f"task: expected what it is for, got {loss.task!r}"
    fitted = loss.fitted([5, 0, 7])
    assert type(fitted) is type(loss), f"fitted: expected a {type(loss).__name__}, got {fitted!r}"
    rng, images, shape = _streams("loss"), 4, (8, 8) if loss.task == "segmentation" else ()
    logits = torch.randn(2, images, 3, *(side // 2 for side in shape), generator=rng)  # (hospitals, B, C+1 or C, h, w)
    labels = torch.randint(3, (2, images, *shape), generator=rng)
    _check_number(fitted, logits[0], labels[0])
    _check_mapped(fitted, logits, labels)


def _check_number(loss: Loss, logits: Tensor, labels: Tensor) -> None:
    state = torch.random.get_rng_state()
    logits = logits.clone().requires_grad_(True)
    value, again = loss(logits, labels), loss(logits, labels)
    assert value.shape == (), f"call: expected one number, got a tensor of shape {tuple(value.shape)}"
    assert value.isfinite(), f"call: expected a finite number, got {value.item()}"
    assert torch.equal(value, again), "call: the same logits and labels give another number"
    assert torch.equal(state, torch.random.get_rng_state()), "call: the global random state was used"
    assert value.requires_grad, "call: no gradient reaches the logits"
    (gradient,) = torch.autograd.grad(value, logits)
    assert gradient.isfinite().all(), "call: expected a finite gradient, got NaN or infinity"
    assert gradient.any(), "call: expected a gradient that is not zero everywhere"
    assert not torch.equal(value, loss(logits, (labels + 1) % 3)), "call: other labels give the same number"


def _check_mapped(loss: Loss, logits: Tensor, labels: Tensor) -> None:
    ready = torch.stack([loss.at(own, scores) for own, scores in zip(labels, logits, strict=True)])
    alone = torch.stack([loss(scores, own) for own, scores in zip(labels, logits, strict=True)])
    assert ready[0].shape[1:] == logits[0].shape[2:], f"at: expected the size of the logits, got {tuple(ready.shape)}"
    mapped = torch.func.vmap(loss)(logits, ready)
    assert torch.allclose(mapped, alone, atol=1e-6), f"call: expected {alone} mapped over hospitals too, got {mapped}"


def _check_plain(plugin: Any) -> None:
    """Frozen, with keyword arguments, and the same on the other side of a pickle."""
    check_frozen(plugin)
    assert pickle.loads(pickle.dumps(plugin)) == plugin, "expected an equal object out of a pickle"


def _check(method: Method, plugin: Model) -> None:
    bare, (model, layout) = plugin.build(_CLASSES, _streams), _attached(method, plugin)
    _check_names(model, layout)
    _check_set(model, layout)
    _check_stable(method, plugin, model, layout)
    _check_base(bare, model)
    for pair in layout.pairs:
        _check_pair(pair, dict(model.named_parameters()))
    _check_rank(method, model, layout)
    _check_initial(method, plugin, model)
    _check_logits(bare, model, layout)
    _check_gradients(model, layout)
    _check_slices(model, layout)


def _attached(method: Method, plugin: Model) -> tuple[Network, Layout]:
    model = plugin.build(_CLASSES, _streams)
    layout = method.attach(model)
    method.initialise(model, _streams)
    return model, layout


def _streams(*keys: str | int) -> torch.Generator:
    words = "/".join(map(str, keys))
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(words.encode()).digest()[:7], "big"))


def _check_stable(method: Method, plugin: Model, model: Network, layout: Layout) -> None:
    meta = plugin.build_meta(_CLASSES)
    assert method.attach(meta) == layout, "attach: the layout on the meta device differs from the one on the host"
    shapes = {name: tensor.shape for name, tensor in meta.named_parameters()}
    real = {name: tensor.shape for name, tensor in model.named_parameters()}
    assert shapes == real, "attach: names or shapes on the meta device differ from those on the host"
    assert all(tensor.is_meta for tensor in meta.parameters()), "attach: a parameter was made off the meta device"
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    assert method.attach(model) == layout, "attach: a second call gives another layout"
    assert _same(before, dict(model.named_parameters())), "attach: a second call changes tensors"


def _check_names(model: Network, layout: Layout) -> None:
    parameters, names = dict(model.named_parameters()), layout.names
    assert names, "layout: nothing may train"
    assert len(set(names)) == len(names), "layout: a name occurs twice"
    assert set(names) <= parameters.keys(), f"layout: no parameters: {sorted(set(names) - parameters.keys())}"
    assert set(layout.part) == set(names), "layout.part: expected one entry per name"
    assert set(layout.kind) == set(names), "layout.kind: expected one entry per name"
    order = list(parameters)
    assert list(layout.dense) == sorted(layout.dense, key=order.index), "layout.dense: expected model order"
    for pair in layout.pairs:
        kinds = (layout.kind[pair.A], layout.kind[pair.B])
        assert kinds == ("lora_A", "lora_B"), f"layout.kind: expected lora_A and lora_B for {pair}, got {kinds}"


def _check_base(bare: Network, model: Network) -> None:
    tensors = model.state_dict()
    kept = {name: tensors.get(name) for name in bare.state_dict()}
    lost = [name for name, tensor in kept.items() if tensor is None]
    assert not lost, f"attach: base tensors lost their names: {lost}"
    assert _same(bare.state_dict(), {name: tensor for name, tensor in kept.items() if tensor is not None}), (
        "attach: base tensors changed their values"
    )
    assert not any(tensor.requires_grad for tensor in model.parameters()), "attach: requires_grad was touched"


def _check_pair(pair: Pair, parameters: dict[str, Tensor]) -> None:
    A, B, base = parameters[pair.A], parameters[pair.B], parameters[pair.base]
    first, last = pair.rows or (0, len(base))
    assert 0 <= first < last <= len(base), f"{pair}: rows outside the {len(base)} of the base weight"
    assert A.shape[1] == base.shape[1], f"{pair}: A has {A.shape[1]} columns, the base weight {base.shape[1]}"
    assert B.shape == (last - first, len(A)), f"{pair}: expected B of {(last - first, len(A))}, got {tuple(B.shape)}"


def _check_set(model: Network, layout: Layout) -> None:
    parameters = dict(model.named_parameters())
    unset = [name for name in layout.names if not parameters[name].isfinite().all()]
    assert not unset, f"initialise: tensors left unset: {unset}"


def _check_rank(method: Method, model: Network, layout: Layout) -> None:
    parameters = dict(model.named_parameters())
    ranks = {len(parameters[pair.A]) for pair in layout.pairs}
    own = rank_of(method)
    assert ranks <= {own}, f"pair_rank: expected the one rank of all pairs, which have {sorted(ranks)}, got {own}"
    if own is not None and isinstance(method, Ranked):
        assert rank_of(method.at_rank(own + 1)) == own + 1, "at_rank: the rank of the pairs is another"
        assert method.at_rank(own + 1).at_rank(own) == method, "at_rank: something else than the rank changed"


def _check_initial(method: Method, plugin: Model, model: Network) -> None:
    state = torch.random.get_rng_state()
    again, _ = _attached(method, plugin)
    assert _same(dict(model.named_parameters()), dict(again.named_parameters())), (
        "initialise: two calls give different values"
    )
    assert torch.equal(state, torch.random.get_rng_state()), "initialise: the global random state was used"


@torch.no_grad()
def _check_logits(bare: Network, model: Network, layout: Layout) -> None:
    parameters, images = dict(model.named_parameters()), _images(model)
    if "prompt" not in layout.kind.values() and all(not parameters[pair.B].any() for pair in layout.pairs):
        assert torch.equal(model(images), bare(images)), "with B = 0 the logits differ from the base's"


def _check_gradients(model: Network, layout: Layout) -> None:
    parameters = dict(model.named_parameters())
    trained = [parameters[name].requires_grad_(True) for name in layout.names]
    gradients = torch.autograd.grad(model(_images(model)).square().sum(), trained, allow_unused=True)
    without = {name for name, gradient in zip(layout.names, gradients, strict=True) if gradient is None}
    modules = {id(tensor) for module in model.unused() for tensor in module.parameters()}
    unused = {name for name in layout.names if id(parameters[name]) in modules}
    assert without == unused, f"no gradient reaches {sorted(without - unused)}; one reaches {sorted(unused - without)}"
    model.requires_grad_(False)


@torch.no_grad()
def _check_slices(model: Network, layout: Layout) -> None:
    """Two windows of three slices; one slice of the second is changed."""
    parameters = dict(model.named_parameters())
    for name in layout.names:  # as if trained: what starts at zero mixes nothing
        parameters[name].add_(0.1 * torch.randn(parameters[name].shape, generator=_streams("noise", name)))
    images = _images(model, 6)
    before = model(images, 3)
    images[4] = 1 - images[4]
    changed = [not torch.equal(left, right) for left, right in zip(before, model(images, 3), strict=True)]
    assert not any(changed[:3]), "a window changes the logits of another window"
    assert changed[4], "a slice does not change its own logits"
    assert (changed[3] or changed[5]) == model.mixes_slices, f"mixes_slices: expected {not model.mixes_slices}"


def _images(model: Network, number: int = 2) -> Tensor:
    return torch.rand(number, 1, model.image_size, model.image_size, generator=_streams("images"))


def _same(left: Tensors, right: Tensors) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
