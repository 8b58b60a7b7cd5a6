"""The time forecast against published speeds."""

from __future__ import annotations

import pytest

from finetune_operator.planner.gpus import known_gpus, observed_shares
from tests.decide.forecast.accuracy import PAGE
from tests.decide.forecast.speeds import by_use, median_error, share_inside, speeds

ALL = by_use(speeds())


@pytest.mark.parametrize("use", ["calibration", "blind"])
def test_most_published_speeds_are_within_their_range_and_its_middle_is_near(use: str) -> None:
    assert len(ALL[use]) >= 20
    assert share_inside(ALL[use]) >= 0.8
    assert median_error(ALL[use]) <= 0.2


def test_no_blind_run_takes_twice_or_half_as_long_as_the_middle_of_its_range() -> None:
    assert [speed.name for speed in ALL["blind"] if not -0.5 < speed.middle_error < 1.0] == []


def test_the_page_tells_these_figures() -> None:
    found, page = {use: ALL[use] for use in ("calibration", "blind")}, PAGE.read_text(encoding="utf-8")
    text = " ".join(page.split())
    assert f"Of {sum(map(len, found.values()))} published speeds" in text
    assert f"{len(found['calibration'])} are calibration" in text
    calibration, blind = (f"{median_error(found[use]):.0%}".replace("%", " %") for use in found)
    inside = f"{share_inside(found['blind']):.0%}".replace("%", " %")
    assert f"the middle off by {calibration} in the median" in text
    assert f"of the {len(found['blind'])} blind ones {inside} are within, and the middle is off by {blind}." in text


def test_no_gpu_is_credited_with_more_than_its_peak() -> None:
    for gpu in known_gpus():
        for method in ("lora", "qlora"):
            low, high = observed_shares(gpu.name, method)
            assert 0.2 < low <= high < 0.8, (gpu.name, method)
