"""The contract suite: what every aggregator must do, checked on a toy federation in a second.

    >>> from wardround.aggregators import FedAvg
    >>> check_aggregator(FedAvg(), Claims(identity="exact"))

An algorithm differs from another in what it claims (:class:`Claims`); the suite checks what is claimed. It needs
nothing but torch and safetensors, so that an aggregator outside the package can run it in its own tests.
"""

from __future__ import annotations

import dataclasses
import math
import pickle
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import torch
from safetensors.torch import load, save
from torch import Tensor

from .arithmetic import at_rank, mean_update, shapes_of
from .checks import check_updates
from .contract import Aggregated, Aggregator, ClientUpdate, Download, HospitalInfo, ServerState, Tensors
from .toy import Memories, Round, World, initial_state, make_world, run_round, streams

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest difference between two models, relative to their largest entry, that counts as equal."""


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What an aggregator promises; one row of the contract test.

    Args:
        identity: What comes out when all hospitals send the same: ``exact``: these tensors; ``effective``: tensors of
            the same effect (products of pairs, base changes, dense tensors); ``none``: something else, for ``reason``.
        reason: Why there is no identity.
        weights: ``used``: the result depends on the ratios of the weights; ``uniform``: not on the weights at all. The
            aggregator's ``uses_weights`` says the same.
        min_hospitals: Updates it needs at least; with fewer it raises ValueError.
        gauge: ``invariant``: replacing ``(B, A)`` by ``(B G, G^-1 A)`` at any hospital changes nothing; ``not``: it
            does; None: nothing is claimed.
        ranks: ``mixed``: hospitals may have different LoRA ranks; ``equal``: ``init`` refuses them.
        optimizer: Name of the local optimizer the setting shows.
        groups: Groups of tensors of the toy federation that a schedule draws (:mod:`.scheduled`); empty: none.
    """

    identity: Literal["exact", "effective", "none"] = "effective"
    reason: str = ""
    weights: Literal["used", "uniform"] = "used"
    min_hospitals: int = 1
    gauge: Literal["invariant", "not"] | None = None
    ranks: Literal["equal", "mixed"] = "equal"
    optimizer: str = "sgd"
    groups: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if (self.identity == "none") != bool(self.reason):
            raise ValueError(f"reason: expected one exactly when identity is 'none', got {self.reason!r}")
        if self.min_hospitals < 1:
            raise ValueError(f"min_hospitals: expected at least 1, got {self.min_hospitals!r}")


def check_aggregator(aggregator: Aggregator, claims: Claims | None = None) -> None:
    """Runs every check of the suite on an aggregator.

    Args:
        aggregator: The algorithm, with its hyper-parameters.
        claims: What it promises; None: the defaults of :class:`Claims`.

    Raises:
        AssertionError: lists every check that failed, by name, with what was expected and what came.
    """
    if isinstance(aggregator, type):
        raise AssertionError(f"expected an object, such as {aggregator.__name__}(), got the class")
    bench = Bench(aggregator=aggregator, claims=claims if claims is not None else Claims())
    failures = [failure for check in CHECKS if (failure := _failure(check, bench))]
    if failures:
        raise AssertionError("\n  ".join([f"{aggregator!r} breaks the contract in {len(failures)} checks:", *failures]))


def _failure(check: Callable[[Bench], None], bench: Bench) -> str | None:
    try:
        check(bench)
    except Exception as error:  # whatever an algorithm raises inside a check is a finding about it
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        return f"{check.__name__}: {kind}{error}"
    return None


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The aggregator under test and the worlds it is tested in."""

    aggregator: Aggregator
    claims: Claims

    @cached_property
    def world(self) -> World:
        """A world with enough hospitals for the algorithm, all of rank 2, in float64."""
        return self.another_world([2] * max(3, self.claims.min_hospitals))

    def another_world(self, ranks: Sequence[int], dtype: torch.dtype = torch.float64) -> World:
        """A world of these ranks."""
        return make_world(ranks, dtype, self.claims.optimizer, self.claims.groups)

    @cached_property
    def last(self) -> Round:
        """The second round in the world, shared by the checks that only look at it."""
        return self.run(self.world, 2)

    def run(self, world: World, rounds: int) -> Round:
        """Runs some rounds with everybody; returns the last."""
        last = run_round(self.aggregator, world, initial_state(self.aggregator, world))
        for _ in range(rounds - 1):
            last = run_round(self.aggregator, world, last.after, last.memories)
        return last

    def aggregate(self, server: ServerState, updates: Iterable[ClientUpdate]) -> ServerState:
        """The state after these updates, with the streams of the round."""
        keys = ("aggregate", server.round + 1)
        return self.aggregator.aggregate(server, list(updates), partial(streams, *keys)).server

    def model(self, world: World, server: ServerState) -> dict[str, Tensor]:
        """What a site never seen would get, as effective weights."""
        return world.model(self.aggregator.deploy(server, None, {}), server.base)


# --- the checks, in reading order -------------------------------------------------------------------------------------


def is_a_plain_value(bench: Bench) -> None:
    """A frozen dataclass that can be pickled, and says what it consumes."""
    aggregator = bench.aggregator
    _expect(dataclasses.is_dataclass(aggregator), "expected a dataclass")
    _expect(type(aggregator).__dataclass_params__.frozen, "expected a frozen dataclass")  # type: ignore[attr-defined]  # is one, checked above
    fields = dataclasses.fields(aggregator)  # type: ignore[arg-type]  # a dataclass, checked above
    positional = [field.name for field in fields if field.init and not field.kw_only]
    _expect(not positional, f"expected keyword-only fields, these are not: {positional}")
    _expect(pickle.loads(pickle.dumps(aggregator)) == aggregator, "expected an equal object back from pickle")
    _expect(
        aggregator.consumes in ("sum", "updates"), f"consumes: expected 'sum' or 'updates', got {aggregator.consumes!r}"
    )


def starts_in_round_0(bench: Bench) -> None:
    """The first state keeps the setting, has counted no round and deploys."""
    world = bench.world
    server = initial_state(bench.aggregator, world)
    _expect(server.setting is world.setting, "init: expected the setting it was given in the state")
    _expect(server.round == 0, f"init: expected round 0, got {server.round!r}")
    _expect_deployable(bench, world, server, {})


def returns_what_the_contract_says(bench: Bench) -> None:
    """Types, the number of the round, finite diagnostics, and complete models after two rounds."""
    world, last = bench.world, bench.last
    for download in last.downloads.values():
        _expect(isinstance(download, Download), f"broadcast: expected a Download, got {download!r}")
    _expect(isinstance(last.aggregated, Aggregated), f"aggregate: expected an Aggregated, got {last.aggregated!r}")
    _expect(last.after.round == 2, f"aggregate: expected round 2 after two rounds, got {last.after.round!r}")
    _expect(last.after.setting is world.setting, "aggregate: expected the setting to stay in the state")
    for name, value in last.aggregated.diagnostics.items():
        _expect(math.isfinite(value), f"diagnostic {name!r}: expected a finite number, got {value!r}")
    _expect_deployable(bench, world, last.after, last.memories)


def leaves_its_inputs_alone(bench: Bench) -> None:
    """Nothing mutates its arguments, on either side of the wall."""
    world, aggregator = bench.world, bench.aggregator
    rng = partial(streams, "purity")
    _untouched(aggregator.init, world.setting, rng)
    last = bench.run(world, 2)
    for hospital in world.setting.hospitals:
        memory, download = last.memories[hospital.name], last.downloads[hospital.name]
        _untouched(aggregator.broadcast, last.after, hospital)
        _untouched(aggregator.deploy, last.after, hospital, memory)
        _untouched(aggregator.rule.phases, download, memory)
    _untouched(aggregator.aggregate, last.before, list(last.updates), rng)
    _untouched(lambda server: run_round(aggregator, world, server, last.memories), last.after)


def draws_only_from_its_streams(bench: Bench) -> None:
    """The same arguments give the same bits, and no global generator moves."""
    last = bench.last
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    first, second = (bench.aggregate(last.before, last.updates) for _ in range(2))
    _expect(_same(_saved(first), _saved(second)), "expected the same bits from the same arguments")
    _expect(torch.equal(torch_state, torch.get_rng_state()), "expected torch's global generator to stay untouched")
    _expect(python_state == random.getstate(), "expected Python's global generator to stay untouched")


def does_not_depend_on_the_order(bench: Bench) -> None:
    """Another order of hospitals gives the same model."""
    world, last = bench.world, bench.last
    turned = bench.aggregate(last.before, last.updates[::-1])
    _expect_equal(bench.model(world, turned), bench.model(world, last.after), "updates in reverse order")


def uses_weights_as_claimed(bench: Bench) -> None:
    """Only ratios of weights matter; whether they matter is claimed, and said by ``uses_weights``."""
    world, last, says = bench.world, bench.last, bench.aggregator.uses_weights
    claimed = bench.claims.weights == "used"
    _expect(says is claimed, f"uses_weights: expected {claimed} as claimed by weights, got {says!r}")
    scaled = bench.aggregate(last.before, [replace(update, weight=7 * update.weight) for update in last.updates])
    _expect_equal(bench.model(world, scaled), bench.model(world, last.after), "all weights times 7")
    models = [
        bench.model(world, bench.aggregate(last.before, _reweighted(last.updates, power))) for power in (0.0, 3.0)
    ]
    if bench.claims.weights == "uniform":
        _expect_equal(models[1], models[0], "other weights, which are claimed not to matter")
    else:
        _expect_different(models[1], models[0], "weights are claimed to be used, but the ratio of the weights")


def keeps_what_all_agree_on(bench: Bench) -> None:
    """When every hospital sends the same, that is the result, as far as is claimed; so it is with one hospital."""
    if bench.claims.identity == "none":
        return
    world, last = bench.world, bench.last
    one = last.updates[0]
    download = last.downloads[one.hospital]
    numbers = sorted({max(3, bench.claims.min_hospitals), bench.claims.min_hospitals})
    for number in numbers:
        same = [replace(one, hospital=f"hospital-{k:02d}", weight=float(k + 1)) for k in range(number)]
        after = bench.aggregate(last.before, same)
        where = f"{number} hospitals that send the same"
        _expect_equal(
            _touched(world, bench.model(world, after), one.tensors),
            _touched(world, world.model({**download.start, **one.tensors}, last.before.base), one.tensors),
            where,
        )
        if bench.claims.identity == "exact":
            deployed = bench.aggregator.deploy(after, None, {})
            _expect_equal({name: deployed[name] for name in one.tensors}, one.tensors, where)


def stays_where_nobody_trains(bench: Bench) -> None:
    """From the first state, a round without a step changes no effective weight."""
    if bench.claims.identity == "none":
        return
    world = bench.world
    last = run_round(bench.aggregator, world, initial_state(bench.aggregator, world), epochs=0)
    _expect_equal(bench.model(world, last.after), bench.model(world, last.before), "a round in which nobody trains")


def survives_a_checkpoint(bench: Bench) -> None:
    """State and memories go through a file and the next round gives the same bits."""
    world, last = bench.world, bench.last
    loaded = {name: _through_file(memory) for name, memory in last.memories.items()}
    direct = run_round(bench.aggregator, world, last.after, last.memories)
    resumed = run_round(bench.aggregator, world, _restored(bench, world, last.after), loaded)
    _expect(_same(_saved(direct.after), _saved(resumed.after)), "expected the same server state after a resume")
    _expect(_same(direct.memories, resumed.memories), "expected the same hospital memories after a resume")


def announces_what_it_gets(bench: Bench) -> None:
    """What the rule sends is what the server announced; a NaN in any tensor is blamed on hospital and tensor."""
    last = run_round(bench.aggregator, bench.world, initial_state(bench.aggregator, bench.world))
    for update in last.updates:
        for name, value in update.tensors.items():
            broken = replace(update, tensors={**update.tensors, name: torch.full_like(value, math.nan)})
            others = [broken if other is update else other for other in last.updates]
            message = _error(lambda others=others: check_updates(1, last.downloads, others))  # type: ignore[misc]  # mypy cannot infer a lambda with a default
            found = update.hospital in message and name in message
            _expect(
                found, f"NaN in {name!r} of {update.hospital!r}: expected an error that names both, got {message!r}"
            )


def needs_no_more_than_a_mean(bench: Bench) -> None:
    """With ``consumes = "sum"``, one weighted mean gives what the updates give."""
    if bench.aggregator.consumes != "sum":
        return
    world, last = bench.world, bench.last
    from_mean = bench.aggregate(last.before, [mean_update(last.updates)])
    _expect_equal(
        bench.model(world, from_mean), bench.model(world, last.after), "consumes is 'sum', but the mean alone"
    )


def takes_part_of_the_hospitals(bench: Bench) -> None:
    """Cohorts may change from round to round; too few updates are refused."""
    world, size = bench.world, bench.claims.min_hospitals
    names = [hospital.name for hospital in world.setting.hospitals]
    first = run_round(bench.aggregator, world, initial_state(bench.aggregator, world), cohort=names[:size])
    second = run_round(bench.aggregator, world, first.after, first.memories, cohort=names[-size:])
    third = run_round(bench.aggregator, world, second.after, second.memories, cohort=names)
    _expect_deployable(bench, world, third.after, third.memories)
    if size > 1:
        message = _error(lambda: bench.aggregate(third.before, third.updates[: size - 1]))
        _expect(bool(message), f"expected ValueError from {size - 1} updates, fewer than min_hospitals = {size}")


def serves_a_site_never_seen(bench: Bench) -> None:
    """A hospital that was not there at the start gets a whole model."""
    world, last = bench.world, bench.last
    newcomer = HospitalInfo(name="hospital-99", num_examples=7, rank=world.setting.rank)
    for hospital in (None, newcomer):
        _expect_model(world, bench.aggregator.deploy(last.after, hospital, {}), world.setting.rank)


def keeps_dtypes(bench: Bench) -> None:
    """A float32 federation stays one."""
    world = bench.another_world([2] * max(3, bench.claims.min_hospitals), torch.float32)
    last = bench.run(world, 2)
    for name, value in bench.aggregator.deploy(last.after, None, {}).items():
        _expect(value.dtype == torch.float32, f"{name!r}: expected torch.float32, got {value.dtype}")


def handles_ranks_as_claimed(bench: Bench) -> None:
    """Hospitals of different LoRA ranks are served at their rank, or refused before round 1."""
    world = bench.another_world([1, 2, 3] + [3] * (bench.claims.min_hospitals - 3))
    if bench.claims.ranks == "equal":
        message = _error(lambda: initial_state(bench.aggregator, world))
        _expect("rank" in message, f"init: expected ValueError about the ranks 1, 2, 3, got {message!r}")
        return
    last = bench.run(world, 3)
    _expect_deployable(bench, world, last.after, last.memories)


def moves_with_the_gauge_as_claimed(bench: Bench) -> None:
    """Whether other factors of the same products give another model is claimed."""
    world, last = bench.world, bench.last
    moved = [_regauged(world, update) for update in last.updates]
    if bench.claims.gauge is None or all(_same(a.tensors, b.tensors) for a, b in zip(moved, last.updates, strict=True)):
        return
    models = bench.model(world, bench.aggregate(last.before, moved)), bench.model(world, last.after)
    if bench.claims.gauge == "invariant":
        _expect_equal(*models, "other factors of the same products")
    else:
        _expect_different(*models, "gauge is claimed to matter, but the choice of the factors")


def learns(bench: Bench) -> None:
    """The loss of the deployed models goes down on the toy problem."""
    world = bench.world
    last = bench.run(world, 3)
    begin = _mean_loss(bench, world, initial_state(bench.aggregator, world), {})
    end = _mean_loss(bench, world, last.after, last.memories)
    _expect(end < begin, f"expected a lower mean loss after 3 rounds, got {end:.6g} from {begin:.6g}")


CHECKS: tuple[Callable[[Bench], None], ...] = (
    is_a_plain_value,
    starts_in_round_0,
    returns_what_the_contract_says,
    leaves_its_inputs_alone,
    draws_only_from_its_streams,
    does_not_depend_on_the_order,
    uses_weights_as_claimed,
    keeps_what_all_agree_on,
    stays_where_nobody_trains,
    survives_a_checkpoint,
    announces_what_it_gets,
    needs_no_more_than_a_mean,
    takes_part_of_the_hospitals,
    serves_a_site_never_seen,
    keeps_dtypes,
    handles_ranks_as_claimed,
    moves_with_the_gauge_as_claimed,
    learns,
)

# --- what the checks are made of --------------------------------------------------------------------------------------


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _error(action: Callable[[], object]) -> str:
    """The message of the ValueError that an action raises, empty when it raises none."""
    try:
        action()
    except ValueError as error:
        return str(error) or repr(error)
    return ""


def _difference(got: Tensors, expected: Tensors) -> tuple[float, str]:
    """The largest difference relative to the largest entry, and the tensor it is in."""
    _expect(got.keys() == expected.keys(), f"expected the names {sorted(expected)}, got {sorted(got)}")
    differences = [(0.0, "")]
    for name, value in expected.items():
        scale = max(float(value.abs().max()), 1e-12)
        largest = float((got[name] - value).abs().max())
        differences.append((largest / scale if math.isfinite(largest) else math.inf, name))
    return max(differences)


def _expect_equal(got: Tensors, expected: Tensors, what: str) -> None:
    difference, name = _difference(got, expected)
    limit = max((TOLERANCE[value.dtype] for value in expected.values()), default=0.0)
    _expect(
        difference <= limit, f"{what}: expected the same, got a relative difference of {difference:.2g} in {name!r}"
    )


def _expect_different(got: Tensors, expected: Tensors, what: str) -> None:
    difference, _ = _difference(got, expected)
    _expect(difference > 1e-6, f"{what} changes nothing")


def _expect_deployable(bench: Bench, world: World, server: ServerState, memories: Memories) -> None:
    for hospital in world.setting.hospitals:
        deployed = bench.aggregator.deploy(server, hospital, memories.get(hospital.name, {}))
        _expect_model(world, deployed, hospital.rank)


def _expect_model(world: World, deployed: Tensors, rank: int | None) -> None:
    """Every trainable name, at one rank, finite."""
    wanted = shapes_of(at_rank(world.setting.trainable, world.setting.layout, rank))
    _expect(shapes_of(deployed) == wanted, f"deploy: expected {wanted}, got {shapes_of(deployed)}")
    bad = [name for name, value in deployed.items() if not torch.isfinite(value).all()]
    _expect(not bad, f"deploy: expected finite values, got NaN or infinity in {bad}")


def _reweighted(updates: Sequence[ClientUpdate], power: float) -> list[ClientUpdate]:
    return [replace(update, weight=float(number**power)) for number, update in enumerate(updates, start=1)]


def _touched(world: World, model: Tensors, sent: Tensors) -> dict[str, Tensor]:
    """The part of the effective weights that what was sent has a say in."""
    bases = {pair.base for pair in world.setting.layout.pairs if pair.A in sent or pair.B in sent}
    return {name: value for name, value in model.items() if name in bases or name in sent}


def _regauged(world: World, update: ClientUpdate) -> ClientUpdate:
    """``(B G, G^-1 A)`` for every pair of which both factors were sent."""
    tensors = dict(update.tensors)
    for pair in world.setting.layout.pairs:
        if pair.A in tensors and pair.B in tensors:
            rank = tensors[pair.A].shape[0]
            noise = torch.randn(rank, rank, generator=streams("gauge", update.hospital, pair.A), dtype=torch.float64)
            G = (torch.linalg.qr(noise).Q * torch.linspace(0.5, 2.0, rank, dtype=torch.float64)).to(tensors[pair.A])
            tensors[pair.B] = tensors[pair.B] @ G
            tensors[pair.A] = torch.linalg.solve(G, tensors[pair.A])
    return replace(update, tensors=tensors)


def _mean_loss(bench: Bench, world: World, server: ServerState, memories: Memories) -> float:
    losses = [
        world.loss(h.name, bench.aggregator.deploy(server, h, memories.get(h.name, {})), server.base).item()
        for h in world.setting.hospitals
    ]
    return sum(losses) / len(losses)


def _saved(server: ServerState) -> dict[str, Any]:
    """The fields of a state that go into a checkpoint."""
    return {name: getattr(server, name) for name in ("round", "tensors", "base", "memory")}


def _through_file(tensors: Tensors) -> dict[str, Tensor]:
    """Tensors as they come back from a safetensors file."""
    return load(save({name: value.detach().clone().contiguous() for name, value in tensors.items()}))


def _restored(bench: Bench, world: World, server: ServerState) -> ServerState:
    """A state as a resumed run has it: a fresh first state with the saved fields put in."""
    return replace(
        initial_state(bench.aggregator, world),
        round=server.round,
        tensors=_through_file(server.tensors),
        base=_through_file(server.base),
        memory=_through_file(server.memory),
    )


def _untouched(function: Callable[..., object], *arguments: object) -> None:
    before = _copied(arguments)
    function(*arguments)
    name = getattr(function, "__name__", repr(function))
    _expect(_same(before, _copied(arguments)), f"{name}: expected its arguments unchanged, but one was written to")


def _copied(value: Any) -> Any:
    """A deep copy made of plain containers and cloned tensors."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _copied(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    return value


def _same(a: Any, b: Any) -> bool:
    """Whether two nested values are equal bit for bit."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


__all__ = ["CHECKS", "Claims", "check_aggregator"]
