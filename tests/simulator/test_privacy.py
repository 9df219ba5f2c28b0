"""Clipping, noise and the account: closed forms, two accountants, and what is refused."""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm as normal

from wardround.simulator.config import load_experiment
from wardround.simulator.experiments import PACKAGED, open_file
from wardround.simulator.privacy import (
    Account,
    AdaptiveClip,
    Privacy,
    bounded,
    denominator,
    joint_norm,
    with_noise,
)
from wardround.simulator.randomness import streams
from wardround.simulator.results import RunRecords
from wardround.simulator.run import run
from wardround.simulator.sampling import Cohort

POISSON = Cohort(sampling="poisson", rate=0.1)
FIXED = Cohort(sampling="fixed", size=10)


def private(z: float = 1.0, clip: float = 1.0, delta: float = 1e-5, **others: object) -> Privacy:
    return Privacy(noise_multiplier=z, clip_norm=clip, delta=delta, **others)


def account(privacy: Privacy, cohort: Cohort, num_hospitals: int = 100) -> Account:
    return Account(privacy=privacy, cohort=cohort, num_hospitals=num_hospitals)


def analytic_epsilon(sigma: float, delta: float) -> float:
    """Of one Gaussian mechanism of sensitivity 1: Balle and Wang (2018), Theorem 8, solved for epsilon."""

    def excess(epsilon: float) -> float:
        a, b = 1 / (2 * sigma), epsilon * sigma
        return normal.cdf(a - b) - math.exp(epsilon) * normal.cdf(-a - b) - delta

    return brentq(excess, 0, 100)


# ---- the account -----------------------------------------------------------------------------------------------------


def test_poisson_sampling_against_two_accountants() -> None:
    """With q = 0.1, z = 1, T = 100, delta = 1e-5. The libraries try other orders, so that they agree to 6e-4 only."""
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant
    from opacus.accountants import PRVAccountant, RDPAccountant

    rdp, pld = (account(private(accountant=name), POISSON).epsilon(100) for name in ("rdp", "pld"))
    event = PoissonSampledDpEvent(0.1, GaussianDpEvent(1.0))
    assert rdp == pytest.approx(RdpAccountant().compose(event, 100).get_epsilon(1e-5), rel=1e-12)
    assert rdp == pytest.approx(7.9039, abs=1e-4)
    assert pld == pytest.approx(7.0466, abs=1e-4)
    second, tight = RDPAccountant(), PRVAccountant()
    for accountant in (second, tight):
        accountant.history = [(1.0, 0.1, 100)]
    assert second.get_epsilon(delta=1e-5) == pytest.approx(7.8993, abs=1e-4)
    assert rdp == pytest.approx(second.get_epsilon(delta=1e-5), rel=1e-3)
    assert pld == pytest.approx(tight.get_epsilon(delta=1e-5), abs=0.02)  # PRV rounds upwards by its eps_error of 0.01


def test_full_participation_is_one_gaussian_of_less_noise() -> None:
    """T Gaussian rounds of multiplier z are one of multiplier z / sqrt(T): here 5 / 10."""
    epsilon = account(private(5.0), Cohort()).epsilon(100)
    assert epsilon == pytest.approx(analytic_epsilon(0.5, 1e-5), rel=1e-4)
    assert epsilon == pytest.approx(9.9973, abs=1e-4)
    assert account(private(5.0, accountant="rdp"), Cohort()).epsilon(100) == pytest.approx(10.7255, abs=1e-3)


def test_fixed_cohorts_pay_for_replacing_a_hospital() -> None:
    """The sum moves by 2 S, so that multiplier 2 here is the library's 1; and far from Poisson's 7.9 it is."""
    from dp_accounting import GaussianDpEvent, NeighboringRelation, SampledWithoutReplacementDpEvent
    from dp_accounting.rdp import RdpAccountant

    event = SampledWithoutReplacementDpEvent(100, 10, GaussianDpEvent(1.0))
    library = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE).compose(event, 100)
    epsilon = account(private(2.0, accountant="rdp"), FIXED).epsilon(100)
    assert epsilon == pytest.approx(library.get_epsilon(1e-5), rel=1e-12)
    assert epsilon == pytest.approx(14.0538, abs=1e-3)
    assert account(private(1.0, accountant="rdp"), FIXED).epsilon(100) > 80


def test_a_fixed_cohort_of_everybody_is_full_participation_at_twice_the_sensitivity() -> None:
    everybody = account(private(6.0, accountant="rdp"), Cohort(sampling="fixed", size=100))
    full = account(private(3.0, accountant="rdp"), Cohort())
    assert everybody.epsilon(10) == pytest.approx(full.epsilon(10), rel=1e-9)


def test_epsilon_grows_with_rounds_and_there_is_none_without_noise() -> None:
    values = [account(private(accountant="rdp"), POISSON).epsilon(rounds) for rounds in (1, 2, 10)]
    assert values == sorted(values)
    assert len(set(values)) == 3
    assert account(private(0.0), POISSON).epsilon(1) == math.inf


@pytest.mark.parametrize(
    ("cohort", "words"),
    [
        (Cohort(), "one of 100 answers or never does.*sampling full"),
        (POISSON, "one of 100 answers when drawn or never does.*poisson with rate 0.1"),
        (FIXED, "one of 100 is replaced by another.*fixed of 10"),
    ],
)
def test_the_guarantee_names_neighbours_and_sampling(cohort: Cohort, words: str) -> None:
    assert re.search(words, str(account(private(), cohort)))


# ---- clipping --------------------------------------------------------------------------------------------------------


def test_clipping_looks_at_all_tensors_together() -> None:
    """(3, 4) in two tensors is 5 long; each alone is not longer than 4."""
    step = {"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}
    assert joint_norm(step) == 5
    assert bounded(step, 4.0)["a"].item() == pytest.approx(2.4)
    assert bounded(step, 4.0)["b"].item() == pytest.approx(3.2)
    same = bounded(step, 5.0)
    assert [same[name].item() for name in "ab"] == [3.0, 4.0]


def test_a_step_of_zero_stays_zero() -> None:
    assert bounded({"a": torch.zeros(3)}, 1e-3)["a"].tolist() == [0, 0, 0]


def test_without_a_limit_nothing_changes() -> None:
    step = {"a": torch.randn(9, generator=torch.Generator().manual_seed(0))}
    assert torch.equal(bounded(step, math.inf)["a"].float(), step["a"])


def test_no_step_stays_longer_than_the_clip_norm() -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-6, 1.0, 1e6):
        step = {name: scale * torch.randn(50, generator=generator) for name in "abc"}
        assert joint_norm(bounded(step, 0.3)) <= 0.3 * (1 + 1e-12)


# ---- noise -----------------------------------------------------------------------------------------------------------


def test_the_noise_has_the_standard_deviation_it_should() -> None:
    """The deviation of 200,000 draws is known to 1 / sqrt(2 * 200,000), or 0.16 %."""
    mean = {name: torch.zeros(200_000, dtype=torch.float64) for name in "ab"}
    noisy = with_noise(mean, 0.7, streams(0, "test"))
    for value in noisy.values():
        assert value.std().item() == pytest.approx(0.7, rel=0.01)
        assert abs(value.mean().item()) < 4 * 0.7 / 200_000**0.5
    assert abs(torch.corrcoef(torch.stack([noisy["a"], noisy["b"]]))[0, 1].item()) < 0.01
    assert torch.equal(with_noise(mean, 0.7, streams(0, "test"))["a"], noisy["a"])
    assert torch.equal(with_noise(mean, 0.0, streams(0, "test"))["a"], mean["a"])


def test_denominators_are_public() -> None:
    assert denominator(Cohort(), 7) == 7
    assert denominator(Cohort(sampling="fixed", size=3), 7) == 3
    assert denominator(Cohort(sampling="poisson", rate=0.25), 6) == 1.5


# ---- the adaptive clip -----------------------------------------------------------------------------------------------


def test_the_clip_norm_follows_the_share_by_hand() -> None:
    """3 of 4 within: b = 1/2 + (3 - 1)/2/4 = 3/4, S = exp(-0.2 (3/4 - 1/2)); 1 of 4 within: b = 1/4, the other way."""
    privacy = private(0.0, adaptive=AdaptiveClip(quantile=0.5, rate=0.2))
    rng = streams(0, "test")
    assert privacy.next_clip_norm(1.0, 3, 1, 4.0, rng) == pytest.approx(math.exp(-0.05), rel=1e-12)
    assert privacy.next_clip_norm(1.0, 1, 3, 4.0, rng) == pytest.approx(math.exp(0.05), rel=1e-12)
    assert privacy.next_clip_norm(2.0, 0, 0, 4.0, rng) == 2.0  # nobody came: b is 1/2
    assert replace(privacy, adaptive=None).next_clip_norm(2.0, 0, 4, 4.0, rng) == 2.0


def test_the_clip_norm_finds_the_quantile() -> None:
    norms, privacy, rng = range(1, 101), private(0.0, adaptive=AdaptiveClip(quantile=0.8)), streams(0, "test")
    clip = 1.0
    for _ in range(300):
        within = sum(norm <= clip for norm in norms)
        clip = privacy.next_clip_norm(clip, within, 100 - within, 100.0, rng)
    assert clip == pytest.approx(80, abs=2)


def test_the_noisy_count_moves_the_clip_norm_by_its_noise() -> None:
    """The logarithm moves by -rate (b - quantile), and b has standard deviation sigma_b / m."""
    privacy = private(1.0, adaptive=AdaptiveClip(rate=1.0, count_noise=2.0))
    logs = [math.log(privacy.next_clip_norm(1.0, 2, 2, 4.0, streams(seed, "test"))) for seed in range(2000)]
    assert torch.tensor(logs).std().item() == pytest.approx(2.0 / 4.0, rel=0.06)


def test_steps_and_count_together_cost_what_the_multiplier_alone_would() -> None:
    """1 / z_step^2 + 1 / (2 sigma_b)^2 = 1 / z^2, and the account of both mechanisms is that of one."""
    from dp_accounting import ComposedDpEvent, GaussianDpEvent
    from dp_accounting.pld import PLDAccountant

    privacy = private(1.0, adaptive=AdaptiveClip(count_noise=0.8))
    z = privacy.step_multiplier(10.0)
    assert z**-2 + 1.6**-2 == pytest.approx(1.0, rel=1e-12)
    both = PLDAccountant().compose(ComposedDpEvent([GaussianDpEvent(z), GaussianDpEvent(1.6)]))
    assert both.get_epsilon(1e-5) == pytest.approx(account(privacy, Cohort()).epsilon(1), rel=1e-3)
    assert private(1.0, adaptive=AdaptiveClip()).step_multiplier(100.0) == pytest.approx((1 - 0.1**2) ** -0.5)
    assert private(1.0).step_multiplier(10.0) == 1.0


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"z": -1.0}, "noise_multiplier: expected a number of at least 0, got -1.0"),
        ({"clip": 0.0}, "clip_norm: expected a number above 0, got 0.0"),
        ({"clip": math.inf}, "clip_norm: expected a finite number where there is noise"),
        ({"delta": 1.0}, r"delta: expected a number in \(0, 1\), got 1.0"),
    ],
)
def test_numbers_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        private(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"quantile": 1.0}, "quantile"), ({"rate": 0.0}, "rate"), ({"count_noise": 0.0}, "count_noise")],
)
def test_adaptive_numbers_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}: expected a number"):
        AdaptiveClip(**settings)


@pytest.mark.parametrize(
    ("privacy", "cohort", "message"),
    [
        (private(delta=0.2), Cohort(), r"delta: expected less than 1 / 5 .*got 0.2"),
        (private(), Cohort(sampling="fixed", size=2), "accountant: expected 'rdp' with cohort.sampling 'fixed'"),
        (private(adaptive=AdaptiveClip()), Cohort(), "count_noise: expected more than 0.5 .*got 0.25.*Set it to 1.0"),
    ],
)
def test_what_has_no_account_is_refused(privacy: Privacy, cohort: Cohort, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        privacy.check(cohort, 5)


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ValueError, match=r"pip install 'wardround\[privacy\]'"):
        private().check(Cohort(), 5)


def test_the_guarantee_of_a_finished_run_is_in_its_summary_and_report(tmp_path: Path) -> None:
    """Two rounds of everybody with z = 2: the epsilon is that of the last round's row, the words name N and delta."""
    settings = ["aggregator=fedavg", "weights=uniform"]
    settings += ["stages.privacy={noise_multiplier: 2.0, clip_norm: 0.5, delta: 0.01}"]
    path = run(load_experiment("tiny", open_file(PACKAGED), settings), out=tmp_path, quiet=True, images=False).path
    statement = json.loads((path / "summary.json").read_text())["privacy"]
    epsilon = dict(RunRecords.load(path).series("privacy/epsilon")["server"])[2]
    assert statement.startswith(f"({epsilon:.4g}, 0.01)-differential privacy of a hospital: one of 3 answers or never")
    assert statement in (path / "report.html").read_text()
