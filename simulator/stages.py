"""The stages between update and aggregator, in this order: attack, clip, compress, secure sum, noise.

All of them act on a hospital's *step*: what it sends minus what it was handed::

    step_k = theta_k - start_k                        attack -> clip -> compress, hospital by hospital
    mean   = sum_k a_k step_k / sum_k a_k             secure sum -> noise, over the hospitals
    theta  = start + mean                             one update, called "mean"

Attack and compression alone leave one update per hospital, ``start_k + step_k``, and any aggregator takes it. Secure
summation and differential privacy leave one update in all, and only aggregators whose ``consumes`` is ``"sum"`` can
work with that. Without a stage the updates pass as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, cast

import torch
from torch import Tensor

from ..aggregators.arithmetic import accumulator, mean_update
from ..aggregators.checks import check_updates
from ..aggregators.contract import (
    Aggregator,
    ClientUpdate,
    Download,
    Fit,
    LocalResult,
    LocalRule,
    ServerState,
    Streams,
    Tensors,
)
from ..aggregators.scheduled import Scheduled, name_of
from ..clients.hospital import Memory
from .attacks import ATTACKS, Attack, check_attackers
from .compression import COMPRESSIONS, Compression, with_feedback
from .privacy import Account, Privacy, bounded, denominator, joint_norm, with_noise
from .sampling import Cohort
from .secure_sum import SecureSum, flattened, masked, to_grid, to_grid_inwards, unflattened, unmasked_sum

if TYPE_CHECKING:
    from .federation import Federated

MEAN = "mean"
"""Name of the one update that stands for all."""


@dataclass(frozen=True, kw_only=True)
class Stages:
    """What happens to an update between a hospital and the aggregator, in the order of the fields but for privacy.

    Args:
        attack: Hospitals that send something else than they trained, or train on something else.
        compression: How a step is made smaller on its way to the server, with what was lost added to the next one.
        secure_sum: The server sees the sum of the steps only.
        privacy: Steps are clipped (before compression) and their mean gets noise (after everything).
    """

    attack: Annotated[Attack | None, ATTACKS] = None
    compression: Annotated[Compression | None, COMPRESSIONS] = None
    secure_sum: SecureSum | None = None
    privacy: Privacy | None = None

    @property
    def summing(self) -> str | None:
        """The key of the stage that leaves a mean only, None when there is none."""
        if self.privacy is not None:
            return "stages.privacy"
        return "stages.secure_sum" if self.secure_sum is not None else None


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """What the stages of a round may look at.

    Args:
        number: The round.
        stages: The stages.
        cohort: How hospitals are drawn.
        weights: Weight of every hospital of the federation.
        downloads: What each hospital of the round was handed, those that dropped out included.
        common: What any hospital is handed: the start of the mean, also when nobody was drawn.
        memories: Memory of every hospital after it trained: the feedback is still that of its last round.
        state: What the stages kept from the round before.
        rng: Gives the streams of the experiment below a purpose and keys.
    """

    number: int
    stages: Stages
    cohort: Cohort
    weights: Mapping[str, float]
    downloads: Mapping[str, Download]
    common: Download
    memories: Mapping[str, Memory]
    state: Tensors
    rng: Callable[..., Streams]

    def streams(self, stage: str, *keys: str) -> Streams:
        """Streams of a stage in this round."""
        return self.rng(stage, self.number, *keys)

    @property
    def clip_norm(self) -> float:
        """S of this round; infinite without privacy."""
        privacy = self.stages.privacy
        if privacy is None:
            return math.inf
        return self.state["clip_norm"].item() if "clip_norm" in self.state else privacy.clip_norm

    @property
    def denominator(self) -> float:
        """m, what a private sum is divided by."""
        return denominator(self.cohort, len(self.weights))


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """What came out at the server's end.

    Args:
        updates: What the aggregator sees: one per hospital that answered, or one in all.
        downloads: What the senders of these updates were handed, by their names.
        bytes_up: Bytes per hospital that sent any.
        bytes_down: Bytes that every hospital got beside the model.
        feedback: What compression kept back, per hospital.
        state: What the stages keep for the next round.
        metrics: What there is to say about the round.
    """

    updates: list[ClientUpdate]
    downloads: Mapping[str, Download]
    bytes_up: Mapping[str, int]
    bytes_down: int = 0
    feedback: Mapping[str, Tensors] = field(default_factory=dict)
    state: Tensors = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sent:
    """Steps on their way: by hospital, with the bytes of each and what compression kept back."""

    steps: Mapping[str, Tensors]
    bytes: Mapping[str, int]
    feedback: Mapping[str, Tensors] = field(default_factory=dict)


def cross(at: Crossing, updates: Sequence[ClientUpdate]) -> Arrived:
    """Sends the updates of a round through all stages.

    Args:
        at: The round and its stages.
        updates: What the hospitals that did not drop out want to send, checked and sorted by name.

    Raises:
        ValueError: what was sent cannot be summed, or too few answered.
    """
    sent = {update.hospital: update for update in updates}
    if at.stages == Stages():
        sizes = {name: update.bytes for name, update in sent.items()}
        return Arrived(updates=list(updates), downloads=at.downloads, bytes_up=sizes)
    honest = {name: step_of(update, at.downloads[name]) for name, update in sent.items()}
    attacked = _attack(at, honest)
    packed = _compress(at, _clip(at, attacked), sent)
    if at.stages.summing is None:
        return _one_by_one(at, sent, honest, packed)
    return _as_one(at, sent, attacked, packed)


def step_of(update: ClientUpdate, download: Download) -> dict[str, Tensor]:
    """What a hospital sends minus what it was handed, in fp32 or better.

    Raises:
        ValueError: a tensor has no start, so that there is no step.
    """
    missing = sorted(set(update.tensors) - set(download.start))
    if missing:
        raise ValueError(f"hospital {update.hospital!r}: stages act on steps, but {missing} came without a start")
    return {name: value.to(_wide(value)) - download.start[name] for name, value in update.tensors.items()}


def _wide(value: Tensor) -> torch.dtype:
    """The dtype of a step: that of the tensor, fp32 at least."""
    return torch.promote_types(value.dtype, torch.float32)


# ---- hospital by hospital --------------------------------------------------------------------------------------------


def _attack(at: Crossing, steps: Mapping[str, Tensors]) -> Mapping[str, Tensors]:
    """The steps with those of the attackers replaced."""
    if at.stages.attack is None:
        return steps
    attackers = {name: step for name, step in steps.items() if name in at.stages.attack.hospitals}
    return {**steps, **at.stages.attack.corrupt(attackers, at.streams("attack"))}


def _clip(at: Crossing, steps: Mapping[str, Tensors]) -> Mapping[str, Tensors]:
    """The steps, none longer than the clip norm."""
    return {name: _bounded(at, step) for name, step in steps.items()}


def _bounded(at: Crossing, step: Tensors) -> Tensors:
    return step if at.stages.privacy is None else bounded(step, at.clip_norm)


def _compress(at: Crossing, steps: Mapping[str, Tensors], sent: Mapping[str, ClientUpdate]) -> Sent:
    """The steps as the server decodes them. Under privacy they are clipped again: a decoded step may be longer."""
    compression = at.stages.compression
    if compression is None:
        return Sent(steps=steps, bytes={name: update.bytes for name, update in sent.items()})
    decoded, sizes, feedback = {}, {}, {}
    for name, step in steps.items():
        wide = {tensor: value.to(_wide(sent[name].tensors[tensor])) for tensor, value in step.items()}
        before, rng = at.memories[name].feedback, at.streams("compress", name)
        compressed, feedback[name] = with_feedback(compression, wide, before, rng, partial(_bounded, at))
        decoded[name] = compressed.tensors
        sizes[name] = compressed.bytes + _bytes_beside(sent[name])
    return Sent(steps=decoded, bytes=sizes, feedback=feedback)


def _bytes_beside(update: ClientUpdate) -> int:
    """Bytes of what is no trained tensor: no stage makes it smaller."""
    return update.bytes - sum(value.nbytes for value in update.tensors.values())


def _one_by_one(at: Crossing, sent: Mapping[str, ClientUpdate], honest: Mapping[str, Tensors], packed: Sent) -> Arrived:
    """One update per hospital; what no stage touched stays bit for bit."""
    updates = []
    for name, update in sent.items():
        changed = {key: step for key, step in packed.steps[name].items() if step is not honest[name][key]}
        tensors = {**update.tensors, **_moved(at.downloads[name].start, changed, update.tensors)}
        updates.append(replace(update, tensors=tensors, bytes=packed.bytes[name]))
    downloads = {name: at.downloads[name] for name in sent}
    check_updates(at.number, downloads, updates, allow_empty=at.cohort.sampling == "poisson")
    return Arrived(updates=updates, downloads=at.downloads, bytes_up=packed.bytes, feedback=packed.feedback)


def _moved(start: Tensors, step: Tensors, like: Tensors) -> dict[str, Tensor]:
    """``start + step`` in the dtypes of ``like``."""
    moved = {}
    for name, value in step.items():
        wide = accumulator(start[name])
        moved[name] = (start[name].to(wide) + value.to(wide)).to(like[name].dtype)
    return moved


# ---- over the hospitals ----------------------------------------------------------------------------------------------


def _as_one(at: Crossing, sent: Mapping[str, ClientUpdate], attacked: Mapping[str, Tensors], packed: Sent) -> Arrived:
    """One update that stands for all; none when nobody was drawn and there is no noise to add."""
    if not at.downloads and at.stages.privacy is None:
        return Arrived(updates=[], downloads={}, bytes_up={})
    for name, update in sent.items():
        _check_covered(at.stages, at.cohort, name, update.metrics, at.memories[name].tensors)
    check_common(at.stages, at.common, at.downloads)
    shares = _shares(at.weights, packed.steps)
    total = _plain_total if at.stages.secure_sum is None or not at.downloads else _secure_total
    divisor = sum(shares.values()) if at.stages.privacy is None else at.denominator
    mean = {name: value / divisor for name, value in total(at, packed.steps, shares).items()}
    noise = _noise(at, mean, [joint_norm(step) for step in attacked.values()])
    update = _mean_update(at, sent, noise.tensors)
    downloads = {MEAN: at.common}
    check_updates(at.number, downloads, [update])
    return Arrived(
        updates=[update],
        downloads=downloads,
        bytes_up=_bytes_up(at, sent, packed),
        bytes_down=at.stages.secure_sum.bytes_down(len(at.downloads)) if at.stages.secure_sum is not None else 0,
        feedback=packed.feedback,
        state=noise.state,
        metrics=noise.metrics | _cut_share(at, packed.steps),
    )


def _shares(weights: Mapping[str, float], steps: Mapping[str, Tensors]) -> dict[str, float]:
    """``a_k``: the weight of every hospital that answered, as a share of the largest of the federation."""
    largest = max(weights.values())
    return {name: weights[name] / largest for name in steps}


def _plain_total(at: Crossing, steps: Mapping[str, Tensors], shares: Mapping[str, float]) -> dict[str, Tensor]:
    """``sum_k a_k step_k``, in order of names; zeros when nobody answered."""
    total = {}
    for name in at.common.returns:
        start = at.common.start[name]
        total[name] = torch.zeros(start.shape, dtype=accumulator(start), device=start.device)
        for hospital, step in steps.items():
            total[name].add_(step[name], alpha=shares[hospital])
    return total


def _secure_total(at: Crossing, steps: Mapping[str, Tensors], shares: Mapping[str, float]) -> dict[str, Tensor]:
    """``sum_k a_k step_k`` as it comes out of quantisation, masks and their removal."""
    secure, masks = cast(SecureSum, at.stages.secure_sum), at.streams("masks")
    cohort = sorted(at.downloads)
    uploads = {}
    for hospital, step in steps.items():
        vector = flattened(step, at.common.returns).clamp(-secure.clip, secure.clip)
        words = _words(at, secure, hospital, vector * shares[hospital])
        uploads[hospital] = masked(secure, words, hospital, cohort, masks)
    words = unmasked_sum(secure, uploads, cohort, masks)
    return unflattened(words.double() * secure.spacing, at.common.returns)


def _words(at: Crossing, secure: SecureSum, hospital: str, vector: Tensor) -> Tensor:
    if at.stages.privacy is not None:
        return to_grid_inwards(secure, vector)
    return to_grid(secure, vector, at.streams("rounding", hospital))


def _cut_share(at: Crossing, steps: Mapping[str, Tensors]) -> dict[str, float]:
    """The share of all coordinates that quantisation cut: where it is not small, its range is."""
    secure = at.stages.secure_sum
    if secure is None or not steps:
        return {}
    values = [value for step in steps.values() for value in step.values()]
    cut = sum(int((value.abs() > secure.clip).sum()) for value in values)
    return {"secure_sum/cut": cut / sum(value.numel() for value in values)}


@dataclass(frozen=True, kw_only=True)
class _Noisy:
    """A mean step with noise, what the stages remember, and what there is to say."""

    tensors: Tensors
    state: Tensors = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


def _noise(at: Crossing, mean: Tensors, norms: Sequence[float]) -> _Noisy:
    """Adds the noise of the round, moves the clip norm, and keeps the account."""
    privacy, m = at.stages.privacy, at.denominator
    if privacy is None:
        return _Noisy(tensors=mean)
    rng = at.streams("privacy")
    std = privacy.step_multiplier(m) * at.clip_norm / m if privacy.noise_multiplier else 0.0
    within = sum(norm <= at.clip_norm for norm in norms)
    state = {}
    if privacy.adaptive is not None:
        following = privacy.next_clip_norm(at.clip_norm, within, len(norms) - within, m, rng)
        state = {"clip_norm": torch.tensor(following, dtype=torch.float64)}
    metrics = {"privacy/clip_norm": at.clip_norm, "privacy/noise_std": std, "privacy/delta": privacy.delta}
    if norms:
        metrics["privacy/clipped"] = 1 - within / len(norms)
    epsilon = Account(privacy=privacy, cohort=at.cohort, num_hospitals=len(at.weights)).epsilon(at.number)
    if math.isfinite(epsilon):
        metrics["privacy/epsilon"] = epsilon
    return _Noisy(tensors=with_noise(mean, std, rng), state=state, metrics=metrics)


def _mean_update(at: Crossing, sent: Mapping[str, ClientUpdate], mean: Tensors) -> ClientUpdate:
    """``start + mean``; what a rule reports is averaged too. Under privacy no number beside it depends on who came.

    Who answered the server knows in any case. It decides what a hospital is sent again, and no step.
    """
    tensors = _moved(at.common.start, mean, like=at.common.start)
    if at.stages.privacy is not None:
        known = ClientUpdate(hospital=MEAN, weight=at.denominator, num_examples=0, num_steps=0, tensors=tensors)
        return replace(known, senders=tuple(sent))
    bare = [replace(update, tensors={}, extra={}) for update in sent.values()]
    return replace(mean_update(bare), hospital=MEAN, tensors=tensors)


def _bytes_up(at: Crossing, sent: Mapping[str, ClientUpdate], packed: Sent) -> Mapping[str, int]:
    """Bytes of the last stage that a hospital's message goes through, and of the numbers beside it."""
    secure, n = at.stages.secure_sum, len(at.downloads)
    if secure is None:
        return packed.bytes
    coordinates = sum(math.prod(shape) for shape in at.common.returns.values())
    beside = {name: _bytes_beside(update) for name, update in sent.items()}
    return {
        name: secure.bytes_up(coordinates, n, answered=name in beside) + beside.get(name, 0) for name in at.downloads
    }


# ---- what cannot work ------------------------------------------------------------------------------------------------


def check_stages(federated: Federated, server: ServerState) -> None:
    """Checks before round 1 that the stages of a run can work.

    Args:
        federated: The run.
        server: The state before round 1, for what it would broadcast.

    Raises:
        ValueError: says what is needed, and what to do instead.
    """
    stages, cohort, names = federated.stages, federated.cohort, sorted(federated.hospitals)
    if stages.attack is not None:
        check_attackers(stages.attack, names)
    if stages.summing is None:
        return
    _check_draws(stages, federated.aggregator)
    _check_consumes(stages, federated.aggregator)
    if federated.rule is not None:
        raise ValueError(
            f"{stages.summing}: weights 'robust' look at the update of every hospital, which the server does not see. "
            "Use weights 'uniform'"
        )
    downloads = {name: federated.aggregator.broadcast(server, federated.hospitals[name].info) for name in names}
    check_common(stages, downloads[names[0]], downloads)
    if stages.privacy is not None:
        _check_uniform(federated.weights)
        stages.privacy.check(cohort, len(names))
        _check_history(federated)
        result = without_training(federated.aggregator.rule, server, downloads[names[0]])
        _check_covered(stages, cohort, names[0], result.metrics, result.memory)
    if stages.secure_sum is not None:
        stages.secure_sum.check(len(names) if cohort.size is None else cohort.size)


def check_common(stages: Stages, common: Download, downloads: Mapping[str, Download]) -> None:
    """Raises ValueError when hospitals send other things than steps from one start, or nothing at all."""
    for name, download in downloads.items():
        if download.returns_extra:
            raise ValueError(
                f"{stages.summing}: expected hospitals to send trained tensors only, but they also send "
                f"{sorted(download.returns_extra)[:3]} (control variates, for example), which are neither clipped nor "
                "masked. Use an aggregator without them, such as fedavg or fedprox"
            )
        if not download.returns:
            raise ValueError(f"{stages.summing}: hospital {name!r} sends nothing: there is nothing to protect")
        if dict(download.returns) != dict(common.returns):
            raise ValueError(
                f"{stages.summing}: expected the same tensors and shapes from every hospital, but {name!r} sends others"
            )
        for tensor in common.returns:
            if tensor not in download.start or tensor not in common.start:
                raise ValueError(f"{stages.summing}: expected a start of {tensor!r}, which hospital {name!r} sends")
            if not _equal(download.start[tensor], common.start[tensor]):
                raise ValueError(
                    f"{stages.summing}: expected one start for all hospitals, but that of {tensor!r} is another at "
                    f"{name!r}: steps from different points have no common mean"
                )


def _equal(left: Tensor, right: Tensor) -> bool:
    return left is right or torch.equal(left, right)


def _check_draws(stages: Stages, aggregator: Aggregator) -> None:
    if isinstance(aggregator, Scheduled) and aggregator.draw == "per_client":
        raise ValueError(
            f"{stages.summing}: expected the same tensors from every hospital, but with draw 'per_client' each trains "
            "a group of its own: where nobody else drew it, a sum is the update of one hospital, and how many there "
            "are to hide among is another number for every group and round. Use 'draw: shared'"
        )


def _check_consumes(stages: Stages, aggregator: Aggregator) -> None:
    if aggregator.consumes != "sum":
        raise ValueError(
            f"{stages.summing}: the server sees nothing but one mean of the steps, and {name_of(aggregator)} "
            "needs the update of every hospital. Use an aggregator that needs the mean only (its `consumes` is 'sum'), "
            "such as fedavg, ffa_lora or fedsvd"
        )


def _check_uniform(weights: Mapping[str, float]) -> None:
    if any(weight != 1 for weight in weights.values()):
        raise ValueError(
            f"stages.privacy: expected 'weights: uniform', got the weights {dict(weights)}: a hospital of a larger "
            "weight moves the mean by more than the noise hides, and numbers of examples are private themselves"
        )


def _forgets(stages: Stages, cohort: Cohort) -> bool:
    """Whether the account takes what a hospital sends to depend on the download alone."""
    return stages.privacy is not None and stages.privacy.noise_multiplier > 0 and cohort.sampling == "fixed"


def _check_history(federated: Federated) -> None:
    """Raises ValueError where training or compression depend on a hospital's earlier rounds, and must not."""
    if not _forgets(federated.stages, federated.cohort):
        return
    training, compression = federated.workplace.training, federated.stages.compression
    schedule, wanted = training.schedule, []
    if schedule.warmup_steps or schedule.horizon_epochs is not None or schedule.horizon_steps is not None:
        wanted.append("training.schedule: {warmup_steps: 0, horizon_epochs: null, horizon_steps: null}")
    if training.moments == "keep":
        wanted.append("training.moments: reset")
    if compression is not None and compression.error_feedback:
        wanted.append("stages.compression.error_feedback: false")
    if wanted:
        raise ValueError(
            "stages.privacy: with cohort.sampling 'fixed' there is an account only where what a hospital sends does "
            f"not depend on the rounds it was in before. Set {', '.join(wanted)}; or use poisson or full cohorts"
        )


def without_training(rule: LocalRule, server: ServerState, download: Download) -> LocalResult:
    """What a rule makes of steps that move nothing: what it reports and remembers is known before anybody trains."""
    tensors, fits = {**server.setting.trainable, **download.start}, []
    for phase in rule.phases(download, {}):
        tensors = {**tensors, **(phase.start or {})}
        gradient = {name: torch.zeros_like(tensors[name]) for name in phase.train}
        fits.append(Fit(tensors=tensors, learning_rates=(1.0,), mean_loss=1.0, mean_gradient=gradient, loss_before=1.0))
    return rule.finish(download, fits, {})


def _check_covered(
    stages: Stages, cohort: Cohort, name: str, reported: Collection[str], remembered: Collection[str]
) -> None:
    """Raises ValueError when a rule reports or remembers what the account of the run does not cover."""
    if stages.privacy is not None and reported:
        raise ValueError(
            f"stages.privacy: hospital {name!r} reports {sorted(reported)} to the server, which clipping and noise do "
            "not cover. Use an aggregator without reports, such as fedavg"
        )
    if _forgets(stages, cohort) and remembered:
        raise ValueError(
            f"stages.privacy: hospital {name!r} remembers {sorted(remembered)[:3]}, but with cohort.sampling 'fixed' "
            "there is an account only where what it sends does not depend on the rounds it was in before. Use poisson "
            "or full cohorts, or an aggregator whose hospitals remember nothing, such as fedavg"
        )
