import pytest

from wardround.simulator.randomness import streams
from wardround.simulator.sampling import Cohort, draw, drop

NAMES = [f"hospital-{number}" for number in range(10)]


def rounds(cohort: Cohort, names: list[str], count: int = 400) -> list[tuple[str, ...]]:
    return [draw(cohort, names, streams(0, "cohort", number)) for number in range(count)]


def test_full_is_everyone_sorted() -> None:
    assert draw(Cohort(), list(reversed(NAMES)), streams(0, "cohort", 1)) == tuple(NAMES)


def test_fixed_draws_the_size_and_everyone_in_turn() -> None:
    cohorts = rounds(Cohort(sampling="fixed", size=3), NAMES)
    assert {len(cohort) for cohort in cohorts} == {3}
    for name in NAMES:  # 400 rounds x 3/10: mean 120, standard deviation 9.2
        assert 80 < sum(name in cohort for cohort in cohorts) < 160


def test_poisson_draws_each_on_its_own_and_sometimes_nobody() -> None:
    cohorts = rounds(Cohort(sampling="poisson", rate=0.1), NAMES)
    assert () in cohorts  # 0.9^10 = 0.35 of the rounds
    assert 0.25 < sum(not cohort for cohort in cohorts) / 400 < 0.45


def test_a_hospital_more_changes_nothing_for_the_others_under_poisson() -> None:
    cohort = Cohort(sampling="poisson", rate=0.5)
    for before, after in zip(rounds(cohort, NAMES), rounds(cohort, [*NAMES, "zz"]), strict=True):
        assert set(before) == set(after) - {"zz"}


def test_dropping_leaves_someone_unless_sampling_is_poisson() -> None:
    full, poisson = Cohort(drop_rate=0.9), Cohort(sampling="poisson", rate=1.0, drop_rate=0.9)
    left = [len(NAMES[:3]) - len(drop(full, NAMES[:3], streams(0, "drop", r))) for r in range(200)]
    assert min(left) == 1
    assert any(len(drop(poisson, NAMES[:3], streams(0, "drop", r))) == 3 for r in range(200))


def test_nobody_drops_at_rate_zero() -> None:
    assert drop(Cohort(), NAMES, streams(0, "drop", 1)) == frozenset()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling": "fixed"}, "size: expected a number exactly with"),
        ({"size": 3}, "size: expected a number exactly with"),
        ({"sampling": "fixed", "size": 0}, "size: expected at least 1"),
        ({"sampling": "poisson"}, "rate: expected a number exactly with"),
        ({"sampling": "poisson", "rate": 1.5}, r"rate: expected a number in \(0, 1\]"),
        ({"drop_rate": 1.0}, r"drop_rate: expected a number in \[0, 1\), got 1.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cohort(**settings)


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cohort.size: expected at most 2 .* got 3"):
        Cohort(sampling="fixed", size=3).check(2)
