"""Merging: products of low-rank factors go into the frozen weights, and hospitals have to hear of it.

What FLoRA, FedEx-LoRA and FedMomentum share. The server keeps the changes of all frozen weights
(``ServerState.base``, fp32 or better), so that a merge is one sum. What it costs to tell a hospital depends on what the
hospital has, which is counted here in merges: one in every round that had an update.

* It has all but the last one (it sent an update in the round of the last merge): the factors of the last merge, or the
  dense change of those rows where that is smaller.
* It lacks more: the dense change of those rows, which never grows. The factors of all missed merges would be smaller
  after few of them; they are not kept.

A hospital has what it trained from, once its update arrived. One that dropped out on the way counts as having missed
the round, whatever it received; so does one whose update a robust rule (``weights: robust``) rejected, because nothing
of it comes before the aggregator. What is charged to these two is more than they would need. One that never took part
has the pristine weights, the same as before round 1.

For this a hospital keeps the change of its adapted rows, (d_out, d_in) per pair, beside the pristine weights.

Server's memory: ``merges``, how many there were, ``merges/<hospital>``, how many of them the hospital has (int64), and
the factors of the last one under the names of the pair's factors, ``merged/<A>`` (q, d_in) and ``merged/<B>``
(d_out, q), where they are smaller than the dense change.

Legend: q rank of the product that is merged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .arithmetic import with_product
from .contract import ClientUpdate, HospitalInfo, Pair, ServerState, Setting
from .products import Stack


def check_bases_are_frozen(setting: Setting) -> None:
    """Raises ValueError when the weight that a pair is added to is trained as well: then nothing can be merged into it.

    Hospitals would send the weight back, and its mean would overwrite what was merged.
    """
    trained = [pair.base for pair in setting.layout.pairs if pair.base not in setting.frozen]
    if trained:
        shown = ", ".join(repr(name) for name in dict.fromkeys(trained))
        raise ValueError(
            f"expected a frozen weight below every low-rank pair to merge products into, but {shown} is trained "
            "itself. Use a method that freezes it, or flap_sam, which merges nothing"
        )


def merged(server: ServerState, updates: Sequence[ClientUpdate], products: Mapping[Pair, Stack]) -> ServerState:
    """The state with a product added to the frozen weight of every pair, and what :func:`changes_for` needs to know.

    Round and tensors stay as they are.

    Args:
        server: The state that the hospitals trained from.
        updates: Who did, and whose update arrived.
        products: Factors (d_out, q) and (q, d_in) of what is merged, scales and weights in them.
    """
    base, merges = dict(server.base), _merges(server)
    memory = {name: value for name, value in server.memory.items() if name.startswith("merges/")}
    memory |= {f"merges/{update.hospital}": torch.tensor(merges) for update in updates}
    memory["merges"] = torch.tensor(merges + 1)
    for pair, (B, A) in products.items():
        dtype = torch.promote_types(B.dtype, torch.float32)
        B, A = B.to(dtype), A.to(dtype)
        base = with_product(server, base, pair, B @ A)
        if B.numel() + A.numel() < B.shape[0] * A.shape[1]:
            memory |= {f"merged/{pair.B}": B.contiguous(), f"merged/{pair.A}": A.contiguous()}
    return replace(server, base=base, memory=memory)


def changes_for(server: ServerState, hospital: HospitalInfo) -> dict[str, Tensor]:
    """The tensors that bring a hospital's frozen weights up to date, for ``Download.sent``."""
    missing = _merges(server) - int(server.memory.get(f"merges/{hospital.name}", 0))
    sent: dict[str, Tensor] = {}
    for pair in server.setting.layout.pairs if missing else ():
        last = {name: server.memory[name] for name in (f"merged/{pair.B}", f"merged/{pair.A}") if name in server.memory}
        sent |= last if last and missing == 1 else {f"base/{pair.B}": server.base[pair.base][pair.slice]}
    return sent


def _merges(server: ServerState) -> int:
    """How many there were. Not the number of the round: to some rounds nobody comes (Poisson sampling)."""
    return int(server.memory.get("merges", 0))
