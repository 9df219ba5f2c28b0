import pytest
import torch

from wardround.clients.optimizers import SGD, AdamW, Schedule


def test_warm_up_then_polynomial_decay_by_hand() -> None:
    """lr0 = 1, warm-up 4, horizon 2 epochs of 5 steps, power 2.

    Steps 0..3: 1/4, 2/4, 3/4, 1. Step 4: (1 - 0/10)^2 = 1. Step 9: (1 - 5/10)^2 = 0.25. Step 14 and later: 0.
    """
    schedule = Schedule(warmup_steps=4, horizon_epochs=2, power=2)
    lrs = [schedule.lr(1.0, step, 5) for step in (0, 1, 2, 3, 4, 9, 14, 20)]
    assert lrs == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.25, 0.0, 0.0])


def test_the_released_codes_schedule() -> None:
    """FLAP-SAM: warm-up 250, power 7, 200 epochs; at 10 steps an epoch, step 1250 is half of the horizon: 2^-7."""
    assert Schedule().lr(8e-4, 1250, 10) == pytest.approx(8e-4 / 128)


def test_a_horizon_in_steps_does_not_depend_on_the_length_of_an_epoch() -> None:
    schedule = Schedule(warmup_steps=4, horizon_epochs=None, horizon_steps=10, power=2)
    assert [schedule.lr(1.0, 9, per_epoch) for per_epoch in (1, 50)] == pytest.approx([0.25, 0.25])


def test_no_horizon_is_constant_after_the_warm_up() -> None:
    assert Schedule(warmup_steps=0, horizon_epochs=None).lr(0.1, 10_000, 3) == 0.1


def test_the_built_optimizers_do_what_their_equations_say() -> None:
    """SGD on g = 1: v = 1, 1.5; theta = 1 - 0.1 - 0.15. AdamW's first step on g = 1: theta (1 - lr wd) - lr."""
    theta = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    sgd = SGD(lr=0.1, momentum=0.5).build([theta])
    for _ in range(2):
        theta.grad = torch.ones_like(theta)
        sgd.step()
    assert theta.item() == pytest.approx(0.75)
    theta = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    adamw = AdamW(lr=0.1, weight_decay=0.5).build([theta])
    theta.grad = torch.ones_like(theta)
    adamw.step()
    assert theta.item() == pytest.approx(1 - 0.05 - 0.1, abs=1e-8)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AdamW(lr=0.0), "lr: expected a number above 0, got 0.0"),
        (lambda: AdamW(betas=(0.9, 1.0)), "betas: expected two numbers"),
        (lambda: AdamW(weight_decay=float("nan")), "weight_decay: expected"),
        (lambda: SGD(momentum=1.0), "momentum: expected"),
        (lambda: SGD(lr=-1.0, momentum=1.0), "lr: expected a number above 0, got -1.0; momentum: expected"),
        (lambda: Schedule(horizon_epochs=0), "horizon_epochs: expected"),
        (lambda: Schedule(horizon_steps=5), "horizon_steps: expected null or horizon_epochs: null, got both"),
    ],
)
def test_settings_out_of_range_are_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
