"""Token buckets and remembered answers, by a clock of the test."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_operator.progress.limits import Bucket, Buckets, Rate
from finetune_operator.progress.reviews import (
    REMEMBERED_REFUSAL_S,
    REMEMBERED_S,
    Answers,
    Reviewed,
    digest,
)

RATE = Rate(per_s=0.5, burst=3)


def test_a_burst_and_then_the_rate() -> None:
    bucket = Bucket(RATE, 0.0)
    assert [bucket.take(0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert bucket.take(0.0) == 2.0
    assert bucket.take(1.0) == pytest.approx(1.0)
    assert bucket.take(2.0) == 0.0
    assert bucket.take(2.0) > 0


@given(st.lists(st.floats(0, 10), max_size=60))
def test_never_more_than_the_burst_and_the_rate_allow(waits: list[float]) -> None:
    bucket, now, taken = Bucket(RATE, 0.0), 0.0, 0
    for wait_s in waits:
        now += wait_s
        taken += bucket.take(now) == 0.0
    assert taken <= RATE.burst + RATE.per_s * now + 1e-6


def test_a_clock_that_stands_still_gives_nothing() -> None:
    bucket = Bucket(RATE, 10.0)
    for _ in range(3):
        bucket.take(10.0)
    assert bucket.take(5.0) > 0


def test_one_key_does_not_use_up_anothers_and_memory_is_bounded() -> None:
    buckets = Buckets(RATE, 10)
    while buckets.take("noisy", 0.0) == 0.0:
        pass
    assert buckets.take("quiet", 0.0) == 0.0
    for number in range(100):
        buckets.take(f"stranger-{number}", 0.0)
    assert len(buckets) == 10


GOOD, BAD = Reviewed(True, pod_uid="p"), Reviewed(False, reason="no")


@pytest.mark.parametrize(("answer", "kept_s"), [(GOOD, REMEMBERED_S), (BAD, REMEMBERED_REFUSAL_S)])
def test_answers_are_remembered_for_their_time(answer: Reviewed, kept_s: float) -> None:
    answers = Answers()
    answers.put("k", answer, 100.0)
    assert answers.get("k", 100.0 + kept_s - 0.1) == answer
    assert answers.get("k", 100.0 + kept_s) is None
    assert len(answers) == 0


def test_answers_are_bounded_and_the_oldest_go() -> None:
    answers = Answers(size=3)
    for number in range(5):
        answers.put(str(number), GOOD, 0.0)
    assert [answers.get(str(number), 1.0) for number in range(5)] == [None, None, GOOD, GOOD, GOOD]


def test_an_answer_is_for_one_token_and_one_audience() -> None:
    names = {digest("t", "a"), digest("t", "b"), digest("u", "a")}
    assert len(names) == 3
    assert all(name != "t" and len(name) == 64 for name in names)
