"""What a trained network hands on to another one: weights as they are, and adapters that go on training.

::

    W[rows] + s B A  ->  both have the adapter:  A[:r] = A,  B[:, :r] = (s / s') B,  B[:, r:] = 0
                         only the donor has it:  W[rows] = W[rows] + s B A

so that the new network computes what the donor computed, to rounding, where nothing has to begin anew. An adapter is
the same one where it changes the same rows of the same weight; a larger one than ours is merged. What makes the output
of classes is taken where the classes are the same, by name and in order, and begins anew otherwise: a map of kidneys is
no start for one of hearts, and as many rows say nothing about what they stand for. Prompts, bottlenecks and slice
adapters are no change of a weight: they are taken as they are or not at all.

Everything here is pure but :func:`begin`, which writes adapters of a network that nobody shares yet.

Legend: r rank of the donor, R rank of the new network, s and s' their scales, d_in and d_out width of input and of the
adapted rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..aggregators.contract import Pair, Tensors
from .lora import AdaptedLinear, Adapter, pairs
from .lora_sb import Core
from .merged import UNMERGEABLE, LowRankChange, changed, factors, low_rank_changes, plain_state
from .network import Network
from .weight_files import listed, misshapen

Place = tuple[str, tuple[int, int]]
"""A weight, and the first and last + 1 of its rows."""


@dataclass(frozen=True, kw_only=True)
class Cores:
    """``W[rows] += s B R A`` of LoRA-SB.

    Args:
        A: (r, d_in).
        B: (d_out, r).
        R: (r, r).
        scale: s.
    """

    A: Tensor
    B: Tensor
    R: Tensor
    scale: float


@dataclass(frozen=True, kw_only=True)
class Donor:
    """A trained network, taken apart.

    Args:
        weights: Tensors of the network without adapters, by name.
        whole: Whether these are all; otherwise the others are those of the base that the new network has.
        factors: Low-rank changes of weights, and of tables of prompts.
        cores: LoRA-SB, by place.
        layers: Tensors of prompts, bottlenecks and slice adapters, by name, but for low-rank factors.
        kinds: Class of each of these modules, by its name.
        classes: Names of the classes; None: nobody knows them, and heads are taken where their shapes fit.
    """

    weights: Tensors
    whole: bool = True
    factors: tuple[LowRankChange, ...] = ()
    cores: Mapping[Place, Cores] = field(default_factory=dict)
    layers: Tensors = field(default_factory=dict)
    kinds: Mapping[str, type[nn.Module]] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What becomes of a donor in a network.

    Args:
        taken: Factors that go on in a pair of the network.
        cores: Places where LoRA-SB goes on.
        merged: Factors that go into a weight.
        anew: Names of tensors that begin anew although the donor has such ones.
    """

    taken: tuple[tuple[Pair, LowRankChange], ...]
    cores: tuple[Place, ...]
    merged: tuple[LowRankChange, ...]
    anew: tuple[str, ...]

    def names(self) -> dict[str, list[str]]:
        """The plan for people: adapters that go on (by weight and rows), weights that were merged into, what is new."""
        on = [*((one.weight, one.rows) for _, one in self.taken), *self.cores]
        off = [(one.weight, one.rows) for one in self.merged]
        return {
            "taken": [f"{weight}[{first}:{last}]" for weight, (first, last) in on],
            "merged": [f"{weight}[{first}:{last}]" for weight, (first, last) in off],
            "anew": list(self.anew),
        }


# ---- the donor -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def taken_apart(network: Network, classes: Sequence[str]) -> Donor:
    """A network with what is loaded into it, as another one may take it over; tensors are not copied.

    Args:
        network: With its adapters, at the rank they were loaded with.
        classes: Names of the classes of its output.
    """
    kinds = {name: type(module) for name, module in network.named_modules()}
    special = {name: kind for name, kind in kinds.items() if any(issubclass(kind, one) for one in UNMERGEABLE)}
    layers = tuple(f"{name}." for name in special)
    dense, cores = plain_state(network), dict(_cores(network))
    changes = [one for one in low_rank_changes(network) if (one.weight, one.rows) not in cores]
    return Donor(
        weights={name: value for name, value in dense.items() if not name.startswith(layers)},
        factors=(*changes, *_tables(network)),
        cores=cores,
        layers={name: value for name, value in dense.items() if name.startswith(layers)},
        kinds=special,
        classes=tuple(classes),
    )


def _tables(network: Network) -> Iterator[LowRankChange]:
    """Low-rank changes of tables of prompts, which are no weights of a layer."""
    for pair in pairs(network):
        if not isinstance(network.get_submodule(pair.base.rpartition(".")[0]), AdaptedLinear):
            A, B, scale = factors(_adapter(network, pair))
            name, rows = pair.A.rpartition(".")[0], _rows(network, pair)
            yield LowRankChange(adapter=name, weight=pair.base, rows=rows, A=A, B=B, scale=scale)


def _cores(network: Network) -> Iterator[tuple[Place, Cores]]:
    for place, core in _core_modules(network):
        yield place, Cores(A=core.A.detach(), B=core.B.detach(), R=core.R.detach(), scale=core.scale)


def _core_modules(network: Network) -> Iterator[tuple[Place, Core]]:
    """LoRA-SB of a network by place."""
    for prefix, layer in network.named_modules():
        if isinstance(layer, AdaptedLinear):
            for name, rows in layer.rows.items():
                core = layer.get_submodule(name)
                if isinstance(core, Core):
                    yield (f"{prefix}.weight", rows), core


def _adapter(network: Network, pair: Pair) -> Adapter:
    """The module that a pair's factors live in."""
    adapter = network.get_submodule(pair.A.rpartition(".")[0])
    assert isinstance(adapter, Adapter)
    return adapter


def _rows(network: Network, pair: Pair) -> tuple[int, int]:
    """The rows of a pair, written out."""
    return pair.rows or (0, len(network.get_parameter(pair.base)))


# ---- what becomes of it ----------------------------------------------------------------------------------------------


def plan(donor: Donor, network: Network, bare: Network, classes: Sequence[str] | None) -> Plan:
    """What a network takes over of a donor; of values it matters only that they are finite.

    Args:
        donor: What is there.
        network: The new network with its adapters, on any device, the meta device too.
        bare: The same without adapters.
        classes: Names of its classes; None: nobody knows them.

    Raises:
        ValueError: tensors are missing or misshapen, or the donor has adapters that no weight can stand for and that
            the network does not have.
    """
    anew = _anew(donor, bare, classes)
    _check_weights(donor, bare, anew)
    _check_layers(donor, network)
    cores = {place: core for place, core in _core_modules(network) if _same_core(donor.cores.get(place), core)}
    others = [_as_change(place, core) for place, core in donor.cores.items() if place not in cores]
    ours = {(pair.base, _rows(network, pair)): pair for pair in pairs(network)}
    taken: list[tuple[Pair, LowRankChange]] = []
    merged: list[LowRankChange] = []
    for change in (*donor.factors, *others):
        pair = ours.get((change.weight, change.rows))
        if pair is not None and len(change.A) <= len(_adapter(network, pair).A):
            taken.append((ours.pop((change.weight, change.rows)), change))
        else:
            merged.append(change)
    _check_merged(merged, bare)
    return Plan(taken=tuple(taken), cores=tuple(cores), merged=tuple(merged), anew=anew)


def _anew(donor: Donor, bare: Network, classes: Sequence[str] | None) -> tuple[str, ...]:
    """Names of all tensors of the classes, where they are other classes; none otherwise."""
    ours = {id(tensor) for module in bare.per_class() for tensor in module.parameters()}
    shapes = {name: value.shape for name, value in bare.named_parameters() if id(value) in ours}
    theirs = {name: donor.weights[name].shape for name in shapes if name in donor.weights}
    if not theirs:  # nothing to take
        return ()
    others = donor.classes is not None and classes is not None and tuple(classes) != donor.classes
    needed = shapes if donor.whole else {name: shapes[name] for name in theirs}
    return tuple(shapes) if others or theirs != needed else ()


def _check_weights(donor: Donor, bare: Network, anew: Sequence[str]) -> None:
    """Raises ValueError with all tensors that the network needs, or cannot take."""
    wanted = {name: tuple(value.shape) for name, value in bare.state_dict().items() if name not in anew}
    given = {name: value for name, value in donor.weights.items() if name in wanted}
    outside = _class_prefixes(bare)
    problems = (
        *listed("missing", (name for name in wanted if donor.whole and name not in given)),
        *listed("unexpected", (n for n in donor.weights if n not in wanted and not n.startswith(outside))),
        *listed("wrong shape", misshapen(given, wanted)),
        *listed("not finite", (name for name, value in given.items() if not value.isfinite().all())),
    )
    if problems:
        raise ValueError(f"expected the tensors of this model; {'; '.join(problems)}")


def _class_prefixes(bare: Network) -> tuple[str, ...]:
    """Beginnings of the names of tensors that there are more or less of with another number of classes."""
    modules = {id(module) for module in bare.per_class()}
    return tuple(f"{name}." for name, module in bare.named_modules() if id(module) in modules)


def _check_layers(donor: Donor, network: Network) -> None:
    """Raises ValueError where prompts, bottlenecks or slice adapters of the donor have no place in the network."""
    there = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    modules = dict(network.named_modules())
    for name, kind in donor.kinds.items():
        tensors = {one: value for one, value in donor.layers.items() if one.startswith(f"{name}.")}
        fits = all(there.get(one) == tuple(value.shape) for one, value in tensors.items())
        if type(modules.get(name)) is not kind or not fits:
            why = next(text for base, text in UNMERGEABLE.items() if issubclass(kind, base))
            raise ValueError(
                f"method: expected the method and the sizes of the model that it starts from, which has {why}: no "
                f"weight can stand for them; got one without {name!r} of this kind and size"
            )


def _same_core(theirs: Cores | None, ours: Core) -> bool:
    """Whether LoRA-SB goes on as it is: equal widths, rank and scale."""
    if theirs is None:
        return False
    shapes = [value.shape for value in (ours.A, ours.B, ours.R)]
    return shapes == [value.shape for value in (theirs.A, theirs.B, theirs.R)] and theirs.scale == ours.scale


def _as_change(place: Place, core: Cores) -> LowRankChange:
    """LoRA-SB as ``s (B R) A``."""
    weight, rows = place
    return LowRankChange(adapter="", weight=weight, rows=rows, A=core.A, B=core.B @ core.R, scale=core.scale)


def _check_merged(merged: Sequence[LowRankChange], bare: Network) -> None:
    """Raises ValueError where what is to be merged is no change of a weight that fits."""
    shapes = {name: tuple(value.shape) for name, value in bare.named_parameters()}
    for one in merged:
        shape = shapes.get(one.weight)
        if shape is None:
            raise ValueError(
                f"method: expected pairs of rank {len(one.A)} or more on {one.weight!r}, as the model that it starts "
                "from has low-rank prompts: no weight can stand for them"
            )
        first, last = one.rows
        if len(shape) != 2 or not 0 <= first < last <= shape[0] or (last - first, shape[1]) != _product_shape(one):
            raise ValueError(f"{one.weight!r}: expected a change of {shape}, got {_product_shape(one)}")


def _product_shape(change: LowRankChange) -> tuple[int, int]:
    return change.B.shape[0], change.A.shape[1]


# ---- into the network ------------------------------------------------------------------------------------------------


@torch.no_grad()
def weights_for(donor: Donor, plan: Plan, base: Tensors) -> dict[str, Tensor]:
    """The tensors that a network without adapters begins with.

    Sums in float64, rounded to the type of the weight.

    Args:
        donor: What is there.
        plan: What is taken of it.
        base: What stands where the donor has nothing, and where things begin anew; all names of the network.
    """
    weights = {name: base[name] if name in plan.anew else donor.weights.get(name, base[name]) for name in base}
    return changed(weights, plan.merged)


@torch.no_grad()
def begin(network: Network, donor: Donor, plan: Plan) -> None:
    """Sets the adapters of a network, which are initialised already, to what it takes over of them.

    Args:
        network: Built with :func:`weights_for`; its adapters are written in place.
        donor: What is there.
        plan: What is taken of it.
    """
    for pair, change in plan.taken:
        _set(_adapter(network, pair), change)
    for place, core in _core_modules(network):
        if place in plan.cores:
            for name in ("A", "B", "R"):
                getattr(core, name).copy_(getattr(donor.cores[place], name))
    state = network.state_dict()
    for name, value in donor.layers.items():
        state[name].copy_(value)


def _set(adapter: Adapter, change: LowRankChange) -> None:
    """Rows of A and columns of B; the other rows of A stay, the other columns of B are zero."""
    rank, full = len(change.A), adapter.A.shape[0]
    ratio = change.scale / adapter.settings.scale(full)
    adapter.A[:rank].copy_(change.A)
    adapter.B.zero_()
    adapter.B[:, :rank].copy_(change.B if ratio == 1 else ratio * change.B.double())
