"""Two spaces in which a server can take its step: the factors as they are, or the products of the low-rank pairs.

An algorithm written for plain vectors, ``theta <- theta + step``, has to be told what theta is when some of the model
is ``s B A``. It offers ``on``:

``factors``
    theta is every trainable tensor, A and B among them. Cheap; what comes out depends on which factors the hospitals
    chose for the same product (the gauge), and hospitals need one rank.
``product``
    theta is the product ``s B A`` of every pair and every dense tensor. Independent of the gauge, any ranks; the result
    of a step is cut to the server's rank again, which is the best approximation and no longer exact.

Coordinates are tensors by name: names of trainable tensors, and ``product/`` with the name of B for a pair.

Legend: K hospitals, theta the server's tensors, theta_k those of hospital k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from .arithmetic import (
    accumulator,
    difference,
    effective,
    half_squared_distance,
    normalised_weights,
    stacked,
    weighted_mean,
)
from .contract import ClientUpdate, Layout, Pair, ServerState, Streams, Tensors
from .lowrank import gram, product_inner, svd_of_matrix
from .products import decomposed, factors

On = Literal["factors", "product"]


def check_on(on: str) -> None:
    """Raises ValueError when a space is none of the two."""
    if on not in get_args(On):
        raise ValueError(f"on: expected 'factors' or 'product', got {on!r}")


def coordinates(on: On, layout: Layout, tensors: Tensors) -> dict[str, Tensor]:
    """The coordinates of theta in a space; products are dense (d_out, d_in).

    Args:
        on: The space.
        layout: What the tensors are.
        tensors: All trainable tensors by name.
    """
    if on == "factors":
        return {name: tensors[name] for name in layout.names}
    products = {_name(pair): effective(tensors, pair) for pair in layout.pairs}
    return {**products, **{name: tensors[name] for name in layout.dense}}


def mean_coordinates(on: On, layout: Layout, updates: Sequence[ClientUpdate]) -> dict[str, Tensor]:
    """``sum_k p_k theta_k`` in a space; products are dense."""
    if on == "factors":
        return weighted_mean(updates, layout.names)
    means: dict[str, Tensor] = {}
    for update, weight in zip(updates, normalised_weights(updates), strict=True):
        for name, value in coordinates(on, layout, update.tensors).items():
            share = value.to(accumulator(value)) * weight
            means[name] = means[name] + share if name in means else share
    own = coordinates(on, layout, updates[0].tensors)
    return {name: value.to(own[name]) for name, value in means.items()}


def from_coordinates(on: On, server: ServerState, values: Tensors, rng: Streams) -> dict[str, Tensor]:
    """The trainable tensors of a theta, in the server's dtypes; products are cut to the server's rank.

    Args:
        on: The space.
        server: Says rank and dtypes.
        values: Coordinates, as :func:`coordinates` names them.
        rng: Draws directions where a product has fewer than the rank.
    """
    layout = server.setting.layout
    if on == "factors":
        return {name: values[name].to(server.tensors[name]) for name in layout.names}
    products = {pair: svd_of_matrix(values[_name(pair)]) for pair in layout.pairs}
    dense = {name: values[name].to(server.tensors[name]) for name in layout.dense}
    return {**dense, **factors(server, products, "right", rng)}


def combination(
    on: On, server: ServerState, updates: Sequence[ClientUpdate], weights: Sequence[float], rng: Streams
) -> dict[str, Tensor]:
    """``theta + sum_k w_k (theta_k - theta)`` in a space; no product is formed.

    With weights that sum to 1 the server's own theta drops out: it is their mean.

    Args:
        on: The space.
        server: theta.
        updates: theta_k, all trainable tensors of each; of any ranks on the product.
        weights: w_k as they are, of any sign and sum.
        rng: Draws directions where a product has fewer than the rank.
    """
    layout, own = server.setting.layout, 1.0 - sum(weights)
    terms = [server.tensors, *(update.tensors for update in updates)]
    shares = [0.0 if abs(own) < 1e-12 else own, *weights]
    names = layout.names if on == "factors" else layout.dense
    summed = {name: _sum([term[name] for term in terms], shares) for name in names}
    if on == "factors":
        return summed
    used, weighing = zip(*((term, share) for term, share in zip(terms, shares, strict=True) if share), strict=True)
    stacks = {pair: stacked(used, pair, weighing) for pair in layout.pairs}
    return {**summed, **factors(server, decomposed(stacks), "right", rng)}


def half_squared_distance_of_products(layout: Layout, values: Tensors, anchor: Tensors) -> Tensor:
    """``1/2 ||values - anchor||^2`` on the product, a scalar that gradients flow through; no product is formed.

    Args:
        layout: What the tensors are.
        values: Some of the trainable tensors; a factor that is missing in a pair is that of the anchor.
        anchor: All trainable tensors.
    """
    dense = half_squared_distance({name: values[name] for name in layout.dense if name in values}, anchor)
    pairs = [pair for pair in layout.pairs if pair.A in values or pair.B in values]
    return sum((0.5 * _product_distance(pair, {**anchor, **values}, anchor) for pair in pairs), start=dense)


def _product_distance(pair: Pair, left: Tensors, right: Tensors) -> Tensor:
    """``||B A - B' A'||^2`` through Gram blocks."""
    B, A = difference(left, right, pair)
    return product_inner(B, A, B, A)


def gram_of_steps(on: On, server: ServerState, updates: Sequence[ClientUpdate]) -> Tensor:
    """All inner products ``<theta_i - theta, theta_j - theta>`` in a space, (K, K), float64, on the CPU.

    Norms of the hospitals' steps, distances between them and cosines all follow from it.

    Args:
        on: The space; ``product`` takes Gram blocks and forms no product.
        server: theta.
        updates: theta_k, all trainable tensors of each.
    """
    layout = server.setting.layout
    total = torch.zeros(len(updates), len(updates), dtype=torch.float64)
    for name in layout.names if on == "factors" else layout.dense:
        steps = torch.stack([(u.tensors[name].double() - server.tensors[name].double()).flatten() for u in updates])
        total += (steps @ steps.mT).cpu()
    if on == "product":
        for pair in layout.pairs:
            total += _pair_gram_of_steps(pair, server, updates).cpu()
    return total


def _pair_gram_of_steps(pair: Pair, server: ServerState, updates: Sequence[ClientUpdate]) -> Tensor:
    steps = [difference(update.tensors, server.tensors, pair) for update in updates]
    return gram([B for B, _ in steps], [A for _, A in steps])


def _sum(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    total = torch.zeros(values[0].shape, dtype=accumulator(values[0]), device=values[0].device)
    for value, share in zip(values, shares, strict=True):
        total.add_(value, alpha=share)
    return total.to(values[0].dtype)


def _name(pair: Pair) -> str:
    return f"product/{pair.B}"
