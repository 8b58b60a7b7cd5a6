"""Live progress in the status: what the column says, when it is worth a write, and that it never decides anything."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.finetunejob import FineTuneJob
from finetune_api.job.status import FineTuneJobStatus
from finetune_api.stages import Progress
from finetune_operator.decide import decide
from finetune_operator.decide.live import HEARTBEAT_S, QUIET_S, STALE_S, write_at
from tests.decide.world import START, World


def training() -> World:
    world = World()
    world.run_to("train")
    world.run_pods()
    return world


def live(world: World, **changes: object) -> Progress:
    said = Progress(
        stage="train", attempt=1, phase="training", step=42, total_steps=100, percent=42.0, eta_seconds=720.0, loss=1.5
    )
    return said.model_copy(update={"updated_at": world.now} | changes)


def told(world: World, progress: Progress) -> None:
    """Another replica has written this progress into the status."""
    status = world.status.model_copy(update={"live": progress})
    world.job = FineTuneJob.from_wire(world.job.to_wire() | {"status": status.to_wire()})


@pytest.mark.parametrize(
    ("eta_seconds", "text"),
    [
        (720.0, "3/5 train 42% 12m left"),
        (20.0, "3/5 train 42% <1m left"),
        (3660.0, "3/5 train 42% 1h01m left"),
        (7_200.0, "3/5 train 42% 2h00m left"),
        (200_000.0, "3/5 train 42% 2d7h left"),
        (None, "3/5 train 42%"),
    ],
)
def test_percent_and_time_left(eta_seconds: float | None, text: str) -> None:
    world = training()
    told(world, live(world, eta_seconds=eta_seconds))
    world.settle()
    assert world.status.progress == text
    assert world.status.live is not None


@pytest.mark.parametrize(
    ("minutes", "text"),
    [
        (4, "3/5 train 42% 12m left"),
        (5, "3/5 train 42% (no news for 5m)"),
        (9, "3/5 train 42% (no news for 5m)"),
        (10, "3/5 train 42% (no news for 10m)"),
        (75, "3/5 train 42% (no news for 40m)"),
        (80, "3/5 train 42% (no news for 1h20m)"),
        (23 * 60, "3/5 train 42% (no news for 21h20m)"),
    ],
)
def test_silence_is_told(minutes: int, text: str) -> None:
    world = training()
    told(world, live(world))
    world.tick(minutes * 60)
    world.settle()
    assert world.status.progress == text
    assert world.status.phase == "Training", "missing progress never fails a run"


def test_a_day_of_silence_costs_few_writes_and_then_news_are_told_at_once() -> None:
    world = training()
    told(world, live(world))
    writes = 0
    end = world.now + timedelta(hours=23)
    while True:
        decision = world.settle()
        assert decision.wake_at is not None
        if decision.wake_at > end:
            break
        world.now = decision.wake_at
        writes += world.decide().status != world.status
    assert writes == 9, "5, 10, 20 ... 1,280 minutes"
    told(world, live(world, percent=50.0))
    world.settle()
    assert world.status.progress == "3/5 train 50% 12m left"


def test_progress_goes_with_its_attempt() -> None:
    world = training()
    told(world, live(world))
    world.settle()
    assert world.status.live is not None
    world.end(exit_code=137, seconds=5, settle=False, reason="Evicted")
    world.settle()
    assert world.status.live is None
    assert "%" not in world.status.progress


@pytest.mark.parametrize("changes", [{"stage": "evaluate"}, {"attempt": 2}])
def test_progress_of_another_attempt_is_dropped(changes: dict[str, object]) -> None:
    world = training()
    told(world, live(world, **changes))
    world.settle()
    assert world.status.live is None
    assert world.status.progress == "3/5 train"


def test_a_run_ends_without_progress_and_the_next_begins_without() -> None:
    world = training()
    told(world, live(world))
    world.run_to_end()
    assert (world.status.phase, world.status.live, world.status.progress) == ("Succeeded", None, "5/5")
    world.edit(training={"seed": 7})
    world.settle()
    assert (world.status.run, world.status.live) == (2, None)


def test_what_the_executor_hears_itself_is_taken_when_it_is_newer() -> None:
    world = training()
    told(world, live(world))
    heard = live(world, percent=60.0, updated_at=world.now + timedelta(seconds=1))
    world.tick(2)
    assert decide(replace(world.observed(), progress=heard), world.now).status.live == heard
    older = live(world, percent=10.0, updated_at=START)
    decided = decide(replace(world.observed(), progress=older), world.now).status.live
    assert decided is not None
    assert decided.percent == 42.0


NEWS = [
    ({}, HEARTBEAT_S, "nothing to see: only to tell it from silence"),
    ({"loss": 1.4, "step": 43}, HEARTBEAT_S, "a loss alone is not worth a write"),
    ({"eta_seconds": 700.0}, HEARTBEAT_S, "a few seconds of the time left"),
    ({"percent": 42.4}, HEARTBEAT_S, "less than a percent"),
    ({"percent": 43.0}, QUIET_S, "a percent"),
    ({"eta_seconds": 1400.0}, QUIET_S, "twice the time left"),
    ({"eta_seconds": None}, QUIET_S, "no time left any more"),
    ({"phase": "validating"}, QUIET_S, "another phase"),
    ({"validation_loss": 0.9}, QUIET_S, "a new validation"),
]


@pytest.mark.parametrize(("changes", "after_s", "why"), NEWS, ids=[case[2] for case in NEWS])
def test_when_news_are_written(changes: dict[str, object], after_s: int, why: str) -> None:
    world = training()
    before = live(world)
    due = write_at(before, live(world, **changes))
    assert due == world.now + timedelta(seconds=after_s), why


def test_the_first_news_are_written_at_once() -> None:
    world = training()
    assert write_at(None, live(world)) is None
    assert write_at(live(world, attempt=2), live(world)) is None


@given(st.floats(0, 100), st.floats(0, 1e12), st.integers(0, 10**7))
def test_the_column_always_fits(percent: float, eta_seconds: float, silent_s: int) -> None:
    world = WORLD
    told(
        world, live(world, percent=percent, eta_seconds=eta_seconds, updated_at=world.now - timedelta(seconds=silent_s))
    )
    decided = world.decide().status
    assert len(decided.progress) <= 64
    assert FineTuneJobStatus.from_wire(decided.to_wire()) == decided
    assert (silent_s >= STALE_S) == ("no news" in decided.progress)


WORLD = training()


def test_where_training_resumed_is_told_at_once() -> None:
    world = training()
    loading = live(world, resumed_from_step=None)
    assert write_at(loading, live(world, resumed_from_step=106)) is None
    assert write_at(live(world, resumed_from_step=106), live(world, resumed_from_step=106, percent=99.0)) is not None
