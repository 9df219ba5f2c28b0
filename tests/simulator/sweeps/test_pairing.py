"""What is said of runs that should have drawn the same and did not."""

from __future__ import annotations

from typing import Any

from wardround.simulator.sweeps.pairing import unpaired


def manifest(
    name: str, *, seed: int = 0, data: str = "d", weights: str = "w", **drawn: dict[str, Any]
) -> dict[str, Any]:
    """One of a run that drew ``{what: {where: (of, hashes)}}``."""
    numbers = {
        what: {where: {"of": of, "drawn": hashes} for where, (of, hashes) in places.items()}
        for what, places in drawn.items()
    }
    return {
        **{"experiment": "e", "id": name, "seed": seed, "data_hash": data, "weights_hash": weights},
        "common_numbers": numbers,
    }


def test_other_batches_are_told_with_run_and_hospital() -> None:
    first = manifest("a", batches={"h1": ("x", ["1", "2"]), "h2": ("x", ["3"])})
    other = manifest("b", batches={"h1": ("x", ["1", "9"]), "h2": ("x", ["3"])})
    assert unpaired([first, first, other]) == [
        "Seed 0: e/b drew other batches (h1) than e/a, although data and settings ask for the same; a part of their "
        "difference is chance. Were they made by different code?"
    ]


def test_many_are_one_sentence() -> None:
    runs = [manifest(str(n), cohorts={"": ("x", [str(n)])}, initial={"g": ("y", [str(n)])}) for n in range(6)]
    told = unpaired(runs)
    assert len(told) == 2
    assert told[0].startswith("Seed 0: e/1, e/2, e/3, 2 more drew other cohorts or drop-outs than e/0,")
    assert told[1].startswith("Seed 0: e/1, e/2, e/3, 2 more drew other initial values (g) than e/0,")


def test_what_was_drawn_for_something_else_is_not_compared() -> None:
    """Another seed, other data, other settings, other weights (for initial values only), a part of a longer list."""
    runs = [
        manifest("a", batches={"h": ("x", ["1", "2"])}, initial={"g": ("x", ["1", "2"])}),
        manifest("b", seed=1, batches={"h": ("x", ["3", "2"])}),
        manifest("c", data="e", batches={"h": ("x", ["4", "2"])}),
        manifest("d", batches={"h": ("y", ["5", "2"])}),
        manifest("e", weights="v", initial={"g": ("x", ["6"])}),
        manifest("f", batches={"h": ("x", ["1"])}, initial={"g": ("x", ["1", "2", "3"])}),
        {"experiment": "e", "id": "of an earlier version", "seed": 0, "data_hash": "d"},
    ]
    assert unpaired(runs) == []


def test_weights_of_another_file_are_no_reason_for_other_batches() -> None:
    runs = [manifest("a", batches={"h": ("x", ["1"])}), manifest("b", weights="v", batches={"h": ("x", ["2"])})]
    assert len(unpaired(runs)) == 1
