"""Learning rates over steps, where training ends, and which evaluation is the best: tables."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.job.training import OPEN_ENDED, Scheduler, Training
from finetune_runner.training.best import Selection
from finetune_runner.training.horizon import Horizon, still_falls
from finetune_runner.training.rates import COURSES, decay_steps, rate_factor


def training(scheduler: str, warmup: float = 0.1, **more: Any) -> Training:
    return Training.from_wire({"scheduler": scheduler, "warmupRatio": warmup, **more})


@pytest.mark.parametrize(
    ("scheduler", "step", "warmup", "factor"),
    [
        ("cosine", 0, 0.1, 0.1),
        ("cosine", 9, 0.1, 1.0),
        ("cosine", 10, 0.1, 1.0),
        ("cosine", 55, 0.1, 0.5),
        ("cosine", 100, 0.1, 0.0),
        ("cosine", 0, 0.0, 1.0),
        ("cosineWithMinLr", 55, 0.1, 0.55),
        ("cosineWithMinLr", 100, 0.1, 0.1),
        ("linear", 4, 0.1, 0.5),
        ("linear", 55, 0.1, 0.5),
        ("linear", 100, 0.1, 0.0),
        ("constant", 0, 0.1, 1.0),
        ("constant", 99, 0.1, 1.0),
        ("constantWithWarmup", 0, 0.1, 0.1),
        ("constantWithWarmup", 99, 0.1, 1.0),
        ("wsd", 0, 0.1, 0.1),
        ("wsd", 79, 0.1, 1.0),
        ("wsd", 80, 0.1, 1.0),
        ("wsd", 85, 0.1, 0.5),
        ("wsd", 100, 0.1, 0.0),
    ],
)
def test_the_course_of_each_schedule(scheduler: str, step: int, warmup: float, factor: float) -> None:
    asked = training(scheduler, warmup)
    horizon = Horizon(100, None, decay_steps(asked, 100))
    assert rate_factor(asked, step, horizon) == pytest.approx(factor, abs=1e-9)


def test_every_schedule_of_the_contract_has_a_course() -> None:
    assert set(COURSES) == set(get_args(Scheduler))


@given(
    scheduler=st.sampled_from(get_args(Scheduler)),
    planned=st.integers(1, 300),
    warmup=st.floats(0, 0.5),
    step=st.integers(0, 299),
)
def test_a_rate_is_a_positive_share_of_the_peak(scheduler: str, planned: int, warmup: float, step: int) -> None:
    asked = training(scheduler, warmup)
    horizon = Horizon(planned, None, decay_steps(asked, planned))
    assert 0 < rate_factor(asked, min(step, planned - 1), horizon) <= 1


@pytest.mark.parametrize("scheduler", OPEN_ENDED)
def test_the_rate_at_the_decision_is_the_same_whichever_way_it_goes(scheduler: str) -> None:
    """The schedule has made the next step's rate before the evaluation decides."""
    asked = training(scheduler)
    decay = decay_steps(asked, 100)
    rates = []
    for end in (None, 100, 150):
        horizon = Horizon(100, 200, decay, end)
        rates.append(rate_factor(asked, 100 - decay, horizon))
    assert rates == [1.0, 1.0, 1.0]


FALLING, FLAT = [3.0, 2.0, 1.5, 1.2], [3.0, 1.0, 1.1, 1.05]


@pytest.mark.parametrize(
    ("losses", "delta", "falls"),
    [
        ([3.0], 0.0, True),
        (FALLING, 0.0, True),
        (FLAT, 0.0, False),
        ([3.0, 2.0, 1.0, 1.1], 0.0, True),  # one noisy evaluation ends nothing
        ([3.0, 2.0, 1.0, 1.1, 1.0], 0.0, False),
        ([3.0, 2.0, 1.95, 1.94], 0.1, False),
        ([3.0, 2.0, 1.95, 1.89], 0.1, True),
    ],
)
def test_whether_a_loss_still_falls(losses: list[float], delta: float, falls: bool) -> None:
    assert still_falls(losses, delta) is falls


@pytest.mark.parametrize(
    ("decay", "falls_until", "end", "plateau"),
    [
        (0, 0, 500, False),  # no longer falling at the planned end: it ends there
        (0, 649, 650, True),
        (0, 9999, 1000, False),
        (100, 0, 500, False),
        (100, 649, 750, True),
        (100, 9999, 1000, False),
    ],
)
def test_training_goes_on_while_the_loss_falls(decay: int, falls_until: int, end: int, plateau: bool) -> None:
    horizon = Horizon(500, 1000, decay)
    evaluated = []
    for step in range(1, 1001):
        if step % 50 == 0 or horizon.decides_at(step):
            evaluated.append(step)
            horizon.observe(step, falls=step <= falls_until)
        if step == horizon.end:
            break
    assert (step, horizon.end, horizon.at_plateau) == (end, end, plateau)
    assert 500 - decay in evaluated


def test_without_extension_the_end_is_the_planned_one_whatever_is_observed() -> None:
    horizon = Horizon(500)
    horizon.observe(400, falls=True)
    assert (horizon.end, horizon.most, horizon.expected(400), horizon.decides_at(500)) == (500, 500, 500, False)


@pytest.mark.parametrize(("step", "expected"), [(0, 500), (499, 500), (500, 1000), (800, 1000)])
def test_an_open_end_is_never_behind_the_step(step: int, expected: int) -> None:
    assert Horizon(500, 1000, 100).expected(step) == expected


def test_a_decided_end_is_not_decided_again_after_a_resume() -> None:
    horizon = Horizon(500, 1000, 100, end=750)
    horizon.observe(700, falls=True)
    assert (horizon.end, horizon.most) == (750, 750)


@pytest.mark.parametrize(
    ("best_by", "new", "best", "better"),
    [
        ("validationLoss", (1.0, {}), (None, {}), True),
        ("validationLoss", (0.9, {}), (1.0, {}), True),
        ("validationLoss", (1.0, {}), (1.0, {}), False),
        ("rewardAccuracy", (1.2, {"rewardAccuracy": 0.9}), (1.0, {"rewardAccuracy": 0.8}), True),
        ("rewardAccuracy", (0.1, {"rewardAccuracy": 0.7}), (1.0, {"rewardAccuracy": 0.8}), False),
        ("rewardAccuracy", (0.9, {"rewardAccuracy": 0.8}), (1.0, {"rewardAccuracy": 0.8}), True),
    ],
)
def test_which_evaluation_is_the_best(best_by: Any, new: Any, best: Any, better: bool) -> None:
    assert Selection(best_by).better(*new, *best) is better
