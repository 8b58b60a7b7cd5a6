"""Hang detection: how long a step may take, and that a hang is told once."""

from __future__ import annotations

import threading
import time

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError
from finetune_runner.training.watchdog import Patience, Watchdog


@pytest.mark.parametrize(
    ("steps_s", "now_s", "hung"),
    [
        ([], 599, False),
        ([], 601, True),
        ([1, 1, 1], 3 + 599, False),
        ([1, 1, 1], 3 + 601, True),
        ([60, 60, 60], 180 + 1199, False),
        ([60, 60, 60], 180 + 1201, True),
    ],
    ids=["first step", "first step hangs", "short steps", "short steps hang", "long steps", "long steps hang"],
)
def test_ten_minutes_or_twenty_medians(steps_s: list[float], now_s: float, hung: bool) -> None:
    patience = Patience(last_beat_s=0.0)
    moment = 0.0
    for step_s in steps_s:
        moment += step_s
        patience.beat(moment)
    assert patience.hung(now_s) is hung


def test_a_validation_keeps_the_dog_quiet_and_counts_as_no_step() -> None:
    patience = Patience(last_beat_s=0.0)
    patience.alive(500.0)
    assert not patience.hung(1000.0)
    assert not patience.steps_s


def test_what_went_before_the_watch_is_no_hang() -> None:
    dog = Watchdog(lambda error: None)
    dog._patience.last_beat_s -= 10_000  # a set-up of almost three hours
    with dog:
        assert not dog._patience.hung(time.monotonic())


def test_a_hang_is_told_with_its_exit_code() -> None:
    told: list[StageError] = []
    heard = threading.Event()

    def on_hang(error: StageError) -> None:
        told.append(error)
        heard.set()

    with Watchdog(on_hang, smallest_limit_s=0.0, look_every_s=0.01):
        assert heard.wait(timeout=30)
    assert [error.exit_code for error in told] == [ExitCode.HUNG]
