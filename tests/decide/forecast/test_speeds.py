"""The time forecast against published speeds."""

from __future__ import annotations

import pytest

from finetune_operator.planner.gpus import known_gpus, observed_shares
from tests.decide.forecast.speeds import by_use, median_error, share_inside, speeds

ALL = by_use(speeds())


@pytest.mark.parametrize("use", ["calibration", "blind"])
def test_most_published_speeds_are_within_their_range_and_its_middle_is_near(use: str) -> None:
    assert len(ALL[use]) >= 20
    assert share_inside(ALL[use]) >= 0.8
    assert median_error(ALL[use]) <= 0.2


def test_no_blind_run_takes_twice_or_half_as_long_as_the_middle_of_its_range() -> None:
    assert [speed.name for speed in ALL["blind"] if not -0.5 < speed.middle_error < 1.0] == []


def test_no_gpu_is_credited_with_more_than_its_peak() -> None:
    for gpu in known_gpus():
        for method in ("lora", "qlora"):
            low, high = observed_shares(gpu.name, method)
            assert 0.2 < low <= high < 0.8, (gpu.name, method)
