"""What one step of a server did, measured per layer: the quantities that aggregators of low-rank updates argue about.

A layer is a low-rank pair, or all dense tensors of one part of the model; where a schedule draws groups of tensors, of
one part and group. The instruments look at the updates as the
aggregator got them and at the model before and after. Behind differential privacy or a secure sum that is one mean, of
which drift and cosine say nothing.

Everything goes through Gram blocks and QR of the stacked factors; a dense (d_out, d_in) matrix is formed only where the
aggregator itself changed a frozen weight.

Legend: K hospitals, p_k normalised weight, ``W_k = s_k B_k A_k`` the product a hospital ends with, ``x_k`` its step
from the product it was handed, ``W`` the server's product before and ``W'`` after the step (with the change of the
frozen weight in it), ``M = sum_k p_k W_k`` the ideal mean. On dense tensors W_k is the tensor itself.

========================  ==============================================================================================
ideal_distance            ``||W' - M|| / ||M||`` (Frobenius): how far the aggregate is from the mean of the products
energy_kept               ``sum_{i <= r} sigma_i^2 / sum_i sigma_i^2`` of M: what the best pair of rank r could keep
effective_rank            ``exp(-sum_i q_i ln q_i)``, ``q_i = sigma_i / sum_j sigma_j``: directions M really has
gauge_imbalance           ``||B^T B - A A^T|| / (||B^T B|| + ||A A^T||)`` of the new pair: 0 balanced, 1 one factor is 0
hospital_step             ``sqrt(sum_k p_k ||x_k||^2)``: how far a hospital walks
drift                     ``sqrt(sum_k p_k ||x_k - mean x||^2 / sum_k p_k ||x_k||^2)``: 0 all step alike, 1 steps cancel
cosine                    mean cosine between the steps of two hospitals
server_step               ``||W' - W||``
========================  ==============================================================================================

Effective rank: Roy and Vetterli, "The effective rank", EUSIPCO 2007.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .arithmetic import difference, folded, normalised_weights, rank_of, stacked
from .contract import Aggregator, ClientUpdate, Download, Layout, Pair, ServerState, Tensors
from .lowrank import LowRankSvd, gram
from .products import Stack, decomposed

_MEANS = ("energy_kept", "effective_rank", "gauge_imbalance")
"""What the whole model has as a mean over its layers; all else is that of one long vector, or a mean of cosines."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The instruments of one layer. What does not apply (energy of a dense tensor, a cosine of one hospital) is None.

    Args:
        name: The frozen weight of a pair, with its rows; or ``encoder (dense)``, ``encoder (dense, group 3)``.
        ideal_norm: ``||M||``.
        missed: ``||W' - M||``.
        ideal_distance: See the table of the module, as all that follow; None where M is zero and W' is not.
        spectrum: The first singular values of M, descending.
    """

    name: str
    ideal_norm: float
    missed: float
    ideal_distance: float | None
    hospital_step: float
    drift: float | None
    cosine: float | None
    server_step: float
    energy_kept: float | None = None
    effective_rank: float | None = None
    gauge_imbalance: float | None = None
    spectrum: tuple[float, ...] = field(default=())


def measure(
    aggregator: Aggregator,
    before: ServerState,
    downloads: Mapping[str, Download],
    updates: Sequence[ClientUpdate],
    after: ServerState,
    *,
    spectrum: int = 8,
) -> tuple[Layer, ...]:
    """The instruments of one server step, layer by layer, in model order.

    Measured is the model of a site never seen (``deploy(..., None, ...)``), which is the global one where there is one.
    A pair of which a factor stays at the hospitals is left out, as is every tensor that nobody sends.

    Args:
        aggregator: The algorithm; it is only asked what it deploys.
        before: The state before the step.
        downloads: What each sender was handed: gives the factors that did not train.
        updates: What the aggregator got.
        after: The state after the step.
        spectrum: Singular values to keep per layer.
    """
    if not updates or not sum(update.weight for update in updates) > 0:
        return ()
    old, new = (aggregator.deploy(state, None, {}) for state in (before, after))
    layout = before.setting.layout
    terms = [_Sent(update=u, start=downloads[u.hospital].start) for u in updates]
    products = [
        _Product(pair=pair, old=old, new=new, sent=sent, base=_base_change(before, after, pair))
        for pair in layout.pairs
        if (sent := [term for term in terms if _sends(term, downloads, pair)])
    ]
    means = decomposed({product.pair: product.mean_stack for product in products})
    pairs = [_pair_layer(product, means[product.pair], spectrum) for product in products]
    return (*pairs, *_dense_layers(layout, old, new, terms))


def overall(layers: Sequence[Layer]) -> dict[str, float]:
    """One number per instrument for the whole model; one that no layer has is left out.

    Steps and drift are those of one long vector of all layers. The distance is that of the pairs as one long vector, or
    of the dense tensors where there are no pairs: beside the norms of whole dense tensors that of a pair would vanish.
    Energy, effective rank, gauge imbalance and cosine are plain means over the layers that have them.
    """
    if not layers:
        return {}
    compared = [layer for layer in layers if layer.energy_kept is not None] or layers
    ideal = math.sqrt(sum(layer.ideal_norm**2 for layer in compared))
    missed = math.sqrt(sum(layer.missed**2 for layer in compared))
    squares = sum(layer.hospital_step**2 for layer in layers)
    spread = sum(((layer.drift or 0.0) * layer.hospital_step) ** 2 for layer in layers)
    numbers: dict[str, float | None] = {
        "ideal_distance": _relative(missed, ideal),
        **{name: _mean(getattr(layer, name) for layer in layers) for name in _MEANS},
        "hospital_step": math.sqrt(squares),
        "drift": math.sqrt(spread / squares) if squares > 0 else None,
        "cosine": _mean(layer.cosine for layer in layers),
        "server_step": math.sqrt(sum(layer.server_step**2 for layer in layers)),
    }
    return {name: value for name, value in numbers.items() if value is not None}


# --- pairs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Sent:
    """An update, and what its hospital was handed."""

    update: ClientUpdate
    start: Tensors

    @property
    def tensors(self) -> Tensors:
        """The model the hospital ended with: what did not train is what it was handed."""
        return {**self.start, **self.update.tensors}


@dataclass(frozen=True, kw_only=True)
class _Product:
    """A pair before and after the step and at the hospitals that trained it."""

    pair: Pair
    old: Tensors
    new: Tensors
    sent: Sequence[_Sent]
    base: Tensor | None

    @property
    def weights(self) -> list[float]:
        return normalised_weights([sent.update for sent in self.sent])

    @property
    def mean_stack(self) -> Stack:
        """Factors of M."""
        return stacked([sent.tensors for sent in self.sent], self.pair, self.weights)


def _sends(term: _Sent, downloads: Mapping[str, Download], pair: Pair) -> bool:
    """Whether a hospital sent what it trained of a pair, and trained any of it."""
    trained = {pair.A, pair.B} & set(downloads[term.update.hospital].train)
    return bool(trained) and trained <= term.update.tensors.keys()


def _pair_layer(product: _Product, mean: LowRankSvd, spectrum: int) -> Layer:
    pair, tensors = product.pair, [sent.tensors for sent in product.sent]
    new = [product.new, *tensors], [1.0, *(-weight for weight in product.weights)]
    step = [product.new, product.old], [1.0, -1.0]
    missed, moved = (_norm(pair, *terms, product.base) for terms in (new, step))
    energy, kept = float(mean.energy()), float(mean.energy(rank_of(product.new, pair)))
    return replace(
        _layer(_pair_name(pair), math.sqrt(energy), missed, _steps_gram(product), product.weights, moved),
        energy_kept=kept / energy if energy > 0 else 1.0,
        effective_rank=_effective_rank(mean.S),
        gauge_imbalance=_gauge_imbalance(product.new, pair),
        spectrum=tuple(mean.S[:spectrum].double().tolist()),
    )


def _steps_gram(product: _Product) -> Tensor:
    """Inner products of the hospitals' steps, (K, K), float64; exactly 0 for one that did not move."""
    pair = product.pair
    steps = [difference(_doubled(sent.tensors, pair), _doubled(sent.start, pair), pair) for sent in product.sent]
    return gram([B for B, _ in steps], [A for _, A in steps]).cpu()


def _layer(
    name: str, ideal: float, missed: float, steps: Tensor, weights: Sequence[float], server_step: float
) -> Layer:
    """What pairs and dense tensors have in common, from the Gram matrix of the hospitals' steps."""
    p = torch.tensor(weights, dtype=torch.float64)
    walked = float(p @ steps.diagonal().clamp_min(0.0))
    spread = max(walked - float(p @ steps @ p), 0.0)  # sum p_k ||x_k - mean||^2 = sum p_k ||x_k||^2 - ||mean||^2
    return Layer(
        name=name,
        ideal_norm=ideal,
        missed=missed,
        ideal_distance=_relative(missed, ideal),
        hospital_step=math.sqrt(walked),
        drift=math.sqrt(spread / walked) if walked > 0 else None,
        cosine=_mean_cosine(steps),
        server_step=server_step,
    )


def _relative(missed: float, ideal: float) -> float | None:
    if ideal > 0:
        return missed / ideal
    return None if missed > 0 else 0.0


def _doubled(tensors: Tensors, pair: Pair) -> Tensors:
    return {name: tensors[name].double() for name in (pair.A, pair.B)}


def _norm(pair: Pair, terms: Sequence[Tensors], shares: Sequence[float], base: Tensor | None) -> float:
    """``||base + sum_k share_k B_k A_k||``, by QR of the factors: a difference of squares would lose digits."""
    B, A = stacked([_doubled(tensors, pair) for tensors in terms], pair, shares)
    if base is not None or 2 * B.shape[1] > min(B.shape[0], A.shape[1]):
        return float((B @ A + (0.0 if base is None else base.double())).norm())
    R_B, R_A = (torch.linalg.qr(factor, mode="r").R for factor in (B, A.mT))
    return float((R_B @ R_A.mT).norm())


def _base_change(before: ServerState, after: ServerState, pair: Pair) -> Tensor | None:
    """How the frozen weight changed in the rows of a pair, None where it did not."""
    old, new = before.base.get(pair.base), after.base.get(pair.base)
    if new is None or old is new:
        return None
    return new[pair.slice] if old is None else new[pair.slice] - old[pair.slice]


def _effective_rank(S: Tensor) -> float:
    total = S.double().sum()
    if not total > 0:
        return 0.0
    q = S.double() / total
    return math.exp(-float(torch.xlogy(q, q).sum()))


def _gauge_imbalance(tensors: Tensors, pair: Pair) -> float:
    B, A = (factor.double() for factor in folded(tensors, pair))
    left, right = B.mT @ B, A @ A.mT
    total = float(left.norm() + right.norm())
    return float((left - right).norm()) / total if total > 0 else 0.0


def _pair_name(pair: Pair) -> str:
    return pair.base if pair.rows is None else f"{pair.base}[{pair.rows[0]}:{pair.rows[1]}]"


# --- dense tensors ----------------------------------------------------------------------------------------------------


def _dense_layers(layout: Layout, old: Tensors, new: Tensors, terms: Sequence[_Sent]) -> Iterable[Layer]:
    """One layer per part of the model: its dense tensors as one vector, of those hospitals that sent all of them."""
    sent = {name for term in terms for name in term.update.tensors}
    drawn = {name: f", group {number}" for number, group in enumerate(layout.groups, start=1) for name in group}
    parts: dict[str, list[str]] = {}
    for name in layout.dense:
        if name in sent:
            parts.setdefault(f"{layout.part[name]} (dense{drawn.get(name, '')})", []).append(name)
    for layer, names in parts.items():
        senders = [term for term in terms if all(name in term.update.tensors for name in names)]
        if senders and sum(term.update.weight for term in senders) > 0:
            yield _dense_layer(layer, names, old, new, senders)


def _dense_layer(name: str, names: Sequence[str], old: Tensors, new: Tensors, senders: Sequence[_Sent]) -> Layer:
    weights = normalised_weights([term.update for term in senders])
    vectors = torch.stack([_vector(term.tensors, names) for term in senders])  # (K, n)
    before, after = _vector(old, names), _vector(new, names)
    mean = torch.tensor(weights, dtype=torch.float64).to(vectors) @ vectors
    steps = vectors - torch.stack([_vector(term.start, names) for term in senders])
    ideal, missed, moved = mean.norm(), (after - mean).norm(), (after - before).norm()
    return _layer(name, float(ideal), float(missed), (steps @ steps.mT).cpu(), weights, float(moved))


def _vector(tensors: Tensors, names: Sequence[str]) -> Tensor:
    return torch.cat([tensors[name].double().flatten() for name in names])


def _mean_cosine(steps: Tensor) -> float | None:
    """Mean off-diagonal cosine from a Gram matrix; hospitals that did not move have none."""
    norms = steps.diagonal().clamp_min(0.0).sqrt()
    moved = norms > 0
    if int(moved.sum()) < 2:
        return None
    unit = (steps[moved][:, moved] / norms[moved]) / norms[moved, None]
    K = len(unit)
    return float((unit.sum() - unit.diagonal().sum()) / (K * (K - 1)))


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
