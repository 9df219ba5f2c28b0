"""The arithmetic that aggregators share: weighted means, and low-rank factors at another rank.

Legend: K hospitals, p_k normalised weight, s_k scale of a pair at the hospital's rank, R sum of the hospitals' ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .checks import AggregationError
from .contract import ClientUpdate, Layout, Pair, ServerState, Setting, Shape, Tensors


def normalised_weights(updates: Sequence[ClientUpdate]) -> list[float]:
    """``p_k = w_k / sum_j w_j`` over the given updates.

    Raises:
        AggregationError: the weights sum to 0.

    Example:
        >>> a = ClientUpdate(hospital="a", weight=1.0, num_examples=1, num_steps=1, tensors={})
        >>> b = ClientUpdate(hospital="b", weight=3.0, num_examples=3, num_steps=1, tensors={})
        >>> normalised_weights([a, b])
        [0.25, 0.75]
    """
    total = sum(update.weight for update in updates)
    if not total > 0:
        senders = [update.hospital for update in updates]
        raise AggregationError("weights", [f"expected a total weight above 0, got {total!r} from {senders}"])
    return [update.weight / total for update in updates]


def weighted_mean(updates: Sequence[ClientUpdate], names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Per tensor, the weighted mean over the hospitals that returned it.

    ``mean[name] = sum_{k: name in k} w_k theta_k[name] / sum_{k: name in k} w_k``

    Args:
        updates: Checked updates, sorted by hospital; they are summed in this order.
        names: Which tensors; None: all that anyone returned. A name nobody returned is left out.

    Returns:
        The means, in the dtype that was sent. Sums run in float64 (float32 where the device has no float64).

    Raises:
        AggregationError: a tensor has different shapes, or only hospitals of weight 0 returned it.
    """
    if names is None:
        names = dict.fromkeys(name for update in updates for name in update.tensors)
    senders = {name: [update for update in updates if name in update.tensors] for name in names}
    return {name: _mean(name, those) for name, those in senders.items() if those}


def _mean(name: str, updates: Sequence[ClientUpdate]) -> Tensor:
    shapes = {update.hospital: tuple(update.tensors[name].shape) for update in updates}
    if len(set(shapes.values())) > 1:
        raise AggregationError(f"mean of tensor {name!r}", [f"expected one shape from every hospital, got {shapes}"])
    try:
        weights = normalised_weights(updates)
    except AggregationError as error:
        raise AggregationError(f"mean of tensor {name!r}", [str(error)]) from error
    first = updates[0].tensors[name]
    total = torch.zeros(first.shape, dtype=accumulator(first), device=first.device)
    for update, weight in zip(updates, weights, strict=True):
        total.add_(update.tensors[name], alpha=weight)
    return total.to(first.dtype)


def uniform_mean(updates: Sequence[ClientUpdate]) -> dict[str, Tensor]:
    """Per tensor, the mean over the hospitals that returned it, whatever their weights."""
    return weighted_mean([replace(update, weight=1.0) for update in updates])


def half_squared_distance(values: Tensors, anchor: Tensors) -> Tensor:
    """``1/2 ||values - anchor||^2`` over the names of ``values``, a scalar that gradients flow through."""
    terms = [(value - anchor[name]).square().sum() for name, value in values.items()]
    return 0.5 * torch.stack(terms).sum() if terms else torch.zeros(())


def zeros_of(tensors: Tensors) -> dict[str, Tensor]:
    """A tensor of zeros in the place of each."""
    return {name: torch.zeros_like(value) for name, value in tensors.items()}


def prefixed(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    """The same tensors as ``prefix/name``: two sets of the same names fit into one mapping."""
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def accumulator(value: Tensor) -> torch.dtype:
    """The dtype in which tensors of this device are summed."""
    return torch.float32 if value.device.type == "mps" else torch.float64


def mean_update(updates: Sequence[ClientUpdate]) -> ClientUpdate:
    """The one update that stands for all of a round: what an aggregator with ``consumes = "sum"`` needs to see.

    Tensors, extra tensors and metrics are weighted means per name over the hospitals that sent it; the weight is the
    total weight, examples, steps and bytes are sums, and ``senders`` are their names.
    """
    extras = [replace(update, tensors=update.extra) for update in updates]
    metrics = [replace(update, tensors=_as_tensors(update.metrics)) for update in updates]
    return ClientUpdate(
        hospital="mean",
        weight=sum(update.weight for update in updates),
        num_examples=sum(update.num_examples for update in updates),
        num_steps=sum(update.num_steps for update in updates),
        tensors=weighted_mean(updates),
        extra=weighted_mean(extras),
        metrics={name: value.item() for name, value in weighted_mean(metrics).items()},
        bytes=sum(update.bytes for update in updates),
        senders=tuple(update.hospital for update in updates),
    )


def _as_tensors(metrics: Mapping[str, float]) -> dict[str, Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in metrics.items()}


def check_has_pairs(setting: Setting) -> None:
    """Raises ValueError when there are no low-rank pairs."""
    if not setting.layout.pairs:
        raise ValueError(
            "expected low-rank pairs, got a layout without any: set a method with LoRA (flap_sam, lora), or use fedavg"
        )


def check_equal_ranks(setting: Setting) -> None:
    """Raises ValueError when hospitals have different LoRA ranks: their factors have no element-wise mean."""
    ranks = {hospital.name: hospital.rank for hospital in setting.hospitals}
    if setting.layout.pairs and len(set(ranks.values())) > 1:
        raise ValueError(
            f"expected one LoRA rank for all hospitals, got {ranks}: factors of different ranks have no "
            "element-wise mean. Set equal ranks, or use flap_sam, which averages the products"
        )


def shapes_of(tensors: Tensors) -> dict[str, Shape]:
    """Name and shape of every tensor, as an announcement wants them."""
    return {name: tuple(value.shape) for name, value in tensors.items()}


def rank_of(tensors: Tensors, pair: Pair) -> int:
    """The rank at which the factors of a pair come."""
    return tensors[pair.A].shape[0]


def at_rank(tensors: Tensors, layout: Layout, rank: int | None) -> dict[str, Tensor]:
    """The same tensors with every factor cut to its first ``rank`` directions, or padded with zeros up to it.

    The scale of a pair may depend on the rank: see :func:`rescaled`.

    Args:
        tensors: Trainable tensors by name, dense ones included; factors A (r, d_in), B (d_out, r).
        layout: Which of them are factors.
        rank: The rank wanted; None: nothing changes.
    """
    result = dict(tensors)
    if rank is None:
        return result
    for pair in layout.pairs:
        for name, dim in ((pair.A, 0), (pair.B, 1)):
            if name in result:
                result[name] = resized(result[name], dim, rank)
    return result


def rescaled(tensors: Tensors, layout: Layout, rank: int | None) -> dict[str, Tensor]:
    """As :func:`at_rank`, with the scale of the new rank taken out of every B: the products of what is left stay."""
    result = at_rank(tensors, layout, rank)
    for pair in layout.pairs:
        before = rank_of(tensors, pair)
        if rank is not None and rank != before:
            result[pair.B] = result[pair.B] * (pair.scale(before) / pair.scale(rank))
    return result


def resized(value: Tensor, dim: int, size: int) -> Tensor:
    """The first ``size`` slices along a dimension, padded with zeros where there are fewer; contiguous.

    A tensor of that size is returned itself: what all hospitals are handed is then checked and brought to the device
    once.
    """
    if value.shape[dim] == size:
        return value
    if value.shape[dim] > size:
        return value.narrow(dim, 0, size).contiguous()
    shape = [*value.shape]
    shape[dim] = size - value.shape[dim]
    return torch.cat([value, value.new_zeros(shape)], dim)


def folded(tensors: Tensors, pair: Pair) -> tuple[Tensor, Tensor]:
    """``(s B, A)``: the factors with the scale of their rank folded into B, so that their product is the update."""
    return tensors[pair.B] * pair.scale(rank_of(tensors, pair)), tensors[pair.A]


def unfolded(B: Tensor, A: Tensor, pair: Pair) -> dict[str, Tensor]:
    """The factors by name as a hospital of this rank holds them: B is divided by the receiver's scale."""
    return {pair.A: A, pair.B: B / pair.scale(A.shape[0])}


def effective(tensors: Tensors, pair: Pair) -> Tensor:
    """``s B A`` (d_out, d_in), what the pair adds to its frozen weight. For tests and small layers: it is dense."""
    B, A = folded(tensors, pair)
    return B @ A


def stacked(terms: Sequence[Tensors], pair: Pair, weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Factors whose product is the sum ``sum_k p_k s_k B_k A_k`` of a pair: of updates, their ideal mean.

    Args:
        terms: Tensors with both factors of the pair, of any ranks r_k.
        pair: The pair.
        weights: p_k per term, of any sign and sum.

    Returns:
        ``[p_1 s_1 B_1 | ... | p_K s_K B_K]`` (d_out, R) and ``[A_1; ...; A_K]`` (R, d_in).
    """
    factors = [folded(tensors, pair) for tensors in terms]
    B = torch.cat([weight * B_k for weight, (B_k, _) in zip(weights, factors, strict=True)], dim=1)
    return B, torch.cat([A_k for _, A_k in factors], dim=0)


def difference(left: Tensors, right: Tensors, pair: Pair) -> tuple[Tensor, Tensor]:
    """Factors whose product is ``s B A - s' B' A'``: ``[B - B' | B']`` and ``[A; A - A']``, the scales in B.

    Differences come first, so that two pairs that are almost equal lose no digits, and of equal pairs nothing is left.
    Of two ranks the lower is padded with zeros.

    Args:
        left: Tensors with both factors of the pair.
        right: The same, of any rank.
        pair: The pair.
    """
    (B, A), (B_, A_) = folded(left, pair), folded(right, pair)
    rank = max(len(A), len(A_))
    (B, B_), (A, A_) = [resized(f, 1, rank) for f in (B, B_)], [resized(f, 0, rank) for f in (A, A_)]
    return torch.cat([B - B_, B_], dim=1), torch.cat([A, A - A_], dim=0)


def with_product(server: ServerState, base: Tensors, pair: Pair, product: Tensor) -> dict[str, Tensor]:
    """The base changes with a dense product added at the place of a pair.

    Args:
        server: Gives the shape of the frozen weight.
        base: Changes so far, by name of the frozen weight.
        pair: Says which weight and which rows.
        product: (d_out, d_in), the scale in it.

    Returns:
        ``base`` with ``base[pair.base][pair.slice] + product``, in float32 or better.

    Raises:
        AggregationError: the setting does not tell the shape of the frozen weight.
    """
    shape = server.setting.frozen.get(pair.base)
    if shape is None:
        raise AggregationError(f"base change {pair.base!r}", ["expected its shape in Setting.frozen, got none"])
    dtype = torch.promote_types(product.dtype, torch.float32)
    change = base[pair.base].clone() if pair.base in base else torch.zeros(shape, dtype=dtype, device=product.device)
    change[pair.slice] += product
    return {**base, pair.base: change}
