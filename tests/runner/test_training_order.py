"""The order of examples, the schedule, early stopping and divergence: pure functions."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.job.training import Training
from finetune_runner.errors import StageError
from finetune_runner.training.checkpoint import TrainingState
from finetune_runner.training.divergence import DivergenceGuard
from finetune_runner.training.order import epoch_indices, example_stream, micro_batches
from finetune_runner.training.schedule import DivergenceWatch, EarlyStop

IDS = [f"row-{number}" for number in range(40)]


def test_an_epoch_holds_every_row_once_and_another_epoch_has_another_order() -> None:
    first, second = (epoch_indices(IDS, [1.0] * 40, seed=7, epoch=epoch) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(40))
    assert list(first) != list(second)
    assert list(first) == list(epoch_indices(IDS, [1.0] * 40, seed=7, epoch=0))


@pytest.mark.parametrize(("weight", "epochs", "uses"), [(2.0, 3, 6), (0.5, 4, 2), (0.25, 8, 2), (1.5, 4, 6)])
def test_weight_says_how_often_a_row_is_used(weight: float, epochs: int, uses: int) -> None:
    seen: Counter[int] = Counter()
    for epoch in range(epochs):
        seen.update(epoch_indices(IDS, [weight] * 40, seed=1, epoch=epoch).tolist())
    assert set(seen.values()) == {uses}
    assert len(seen) == 40


def test_half_the_rows_of_weight_one_half_come_in_the_first_epoch() -> None:
    assert 10 <= len(epoch_indices(IDS, [0.5] * 40, seed=1, epoch=0)) <= 30


def test_the_stream_is_a_prefix_of_a_longer_one() -> None:
    short, long = (example_stream(IDS, [1.0] * 40, 3, examples) for examples in (50, 130))
    assert list(long[:50]) == list(short)


def test_rows_without_weight_are_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        example_stream([], [], 3, 10)


@given(
    st.lists(st.integers(1, 500), min_size=24, max_size=24), st.sampled_from([(1, 1), (2, 1), (3, 2), (2, 4), (1, 8)])
)
def test_micro_batches_share_out_a_step_exactly(lengths: list[int], shape: tuple[int, int]) -> None:
    accumulation, world = shape
    parts = [micro_batches(range(24), lengths, accumulation, world, rank) for rank in range(world)]
    assert sorted(index for rank in parts for batch in rank for index in batch) == list(range(24))
    assert {len(batch) for rank in parts for batch in rank} == {24 // (accumulation * world)}


def test_the_examples_of_a_step_do_not_depend_on_how_they_are_shared_out() -> None:
    lengths = [(index * 7) % 13 + 1 for index in range(16)]
    alone = micro_batches(range(16), lengths, 1, 1, 0)
    shared = [micro_batches(range(16), lengths, 2, 2, rank) for rank in (0, 1)]
    assert sorted(alone[0]) == sorted(index for rank in shared for batch in rank for index in batch)


@pytest.mark.parametrize(
    ("patience", "minimum_delta", "losses", "stops_at"),
    [
        (2, 0.0, [3.0, 2.0, 2.1, 2.2], 3),
        (2, 0.0, [3.0, 2.0, 2.1, 1.9, 2.0], None),
        (1, 0.1, [3.0, 2.95], 1),
        (0, 0.0, [1.0, 2.0, 3.0, 4.0], None),
        (1, 0.0, [1.0, 1.0], 1),
    ],
)  # fmt: skip
def test_early_stopping_counts_evaluations(
    patience: int, minimum_delta: float, losses: list[float], stops_at: int | None
) -> None:
    stop = EarlyStop(patience, minimum_delta)
    stopped = next((index for index, loss in enumerate(losses) if stop.observe(loss, loss)), None)
    assert stopped == stops_at


@pytest.mark.parametrize(
    ("minimum_delta", "badness_and_loss", "stops_at"),
    [
        (0.0, [(0.0, 3.0), (0.0, 2.5), (0.0, 2.0), (0.0, 1.5)], None),
        (0.0, [(0.0, 3.0), (0.0, 3.0), (0.0, 3.1)], 2),
        (0.0, [(-0.5, 2.0), (-0.4, 1.0), (-0.4, 0.5)], 2),
        (0.1, [(0.0, 3.0), (0.0, 2.95), (0.0, 2.92)], 2),
        (0.0, [(0.0, 2.0), (-0.5, 2.5), (-0.5, 2.4), (-0.5, 2.45), (-0.5, 2.3)], None),
    ],
    ids=[
        "ties while the loss falls",
        "ties",
        "a worse metric at a lower loss",
        "not by enough",
        "after a better metric",
    ],
)
def test_between_equal_metrics_the_loss_is_the_improvement(
    minimum_delta: float, badness_and_loss: list[tuple[float, float]], stops_at: int | None
) -> None:
    stop = EarlyStop(2, minimum_delta)
    assert next((index for index, seen in enumerate(badness_and_loss) if stop.observe(*seen)), None) == stops_at


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_names_its_step(loss: float) -> None:
    watch = DivergenceWatch(warmup_steps=10)
    assert watch.observe(1, 2.0) == ""
    assert "step 2" in watch.observe(2, loss)


def test_a_loss_far_above_its_start_after_warm_up_is_divergence() -> None:
    watch = DivergenceWatch(warmup_steps=2, lowest=2.0)
    assert [watch.observe(step, 9.0) for step in (1, 2, 3, 4, 5, 6)] == [""] * 6
    assert "step 7" in watch.observe(7, 9.0)


def test_one_spike_is_no_divergence() -> None:
    watch = DivergenceWatch(warmup_steps=0, lowest=2.0)
    assert not any(watch.observe(step, 9.0 if step % 4 == 0 else 2.0) for step in range(1, 40))


@given(
    losses=st.lists(st.floats(0.1, 30), min_size=6, max_size=40),
    stops=st.sets(st.integers(1, 39)),
    warmup=st.integers(0, 5),
)
def test_a_watch_over_divergence_goes_on_where_an_attempt_ended(
    losses: list[float], stops: set[int], warmup: int
) -> None:
    def told(stops: set[int]) -> tuple[str, float | None]:
        state = TrainingState()
        training, plan = Training(learning_rate=1e-3, warmup_ratio=warmup / 10), SimpleNamespace(total_steps=10)
        session: Any = SimpleNamespace(state=state, training=training, plan=plan)
        guard = DivergenceGuard(session)
        for step, loss in enumerate(losses, start=1):
            state.recent_losses = [*state.recent_losses, loss][-6:]
            try:
                guard.observe(step, loss)
            except StageError as error:
                return error.message, state.lowest_train_loss
            if step in stops:
                session.state = state = TrainingState(**json.loads(json.dumps(asdict(state))))
                guard = DivergenceGuard(session)
        return "", state.lowest_train_loss

    assert told(stops) == told(set())
