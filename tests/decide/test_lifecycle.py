"""Suspend, cancel, deadline, TTL, cost."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from finetune_operator.decide.types import Decision
from tests.decide.world import World, job_dict, pool

STAGES = ["prepare", "baseline", "train", "evaluate", "publish"]


def patch_spec(world: World, **changes: object) -> Decision:
    world.edit(**changes)
    return world.settle()


@pytest.mark.parametrize("stage", STAGES)
def test_suspend_stops_the_pods_and_resume_starts_a_new_attempt(stage: str) -> None:
    world = World()
    world.run_to(stage)
    world.run_pods()
    patch_spec(world, suspend=True)
    assert world.active.state == "Terminating"
    assert world.status.phase != "Suspended"
    world.remove_terminated()
    world.settle()
    assert world.status.phase == "Suspended"
    assert world.status.stages[-1].state == "Stopped"
    patch_spec(world, suspend=False)
    assert (world.status.stages[-1].name, world.status.stages[-1].attempt) == (stage, 2)
    world.run_to_end()
    assert world.status.phase == "Succeeded"
    assert world.status.run == 1


def test_a_job_created_suspended_starts_nothing() -> None:
    world = World(job_dict(suspend=True))
    world.settle()
    assert world.status.phase == "Suspended"
    assert world.started == []


def test_a_result_that_arrived_before_the_suspension_is_kept() -> None:
    world = World()
    world.run_to("train")
    world.run_pods()
    world.end(message=world.report(world.results()["train"]), settle=False)
    patch_spec(world, suspend=True)
    assert world.status.results.train is not None
    assert world.status.phase == "Suspended"


@pytest.mark.parametrize("stage", STAGES)
def test_cancel_ends_the_run_and_publishes_nothing(stage: str) -> None:
    world = World()
    world.run_to(stage)
    world.run_pods()
    patch_spec(world, cancel=True)
    world.remove_terminated()
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Cancelled", "Cancelled")
    assert world.versions == []
    failed = next(c for c in world.status.conditions if c.type == "Failed")
    assert (failed.status, failed.reason) == ("True", "Cancelled")


def test_taking_cancel_back_starts_another_run() -> None:
    world = World()
    world.run_to("train")
    patch_spec(world, cancel=True)
    world.remove_terminated()
    world.settle()
    patch_spec(world, cancel=False)
    assert world.status.run == 2
    assert world.status.stages[-1].name == "prepare"


def ask_for_a_retry(world: World, value: str) -> None:
    """What `kubectl finetune retry` does: an annotation, so the generation of the spec stays."""
    annotations = world.job.metadata.annotations | {"finetune.dev/retry": value}
    metadata = world.job.metadata.model_copy(update={"annotations": annotations})
    world.job = world.job.model_copy(update={"metadata": metadata})


def fail_run(world: World) -> None:
    world.settle()
    world.end(exit_code=81)


@pytest.mark.parametrize("end", [fail_run, World.run_to_end])
def test_a_retry_of_a_finished_job_is_another_run_and_only_one(end: Callable[[World], None]) -> None:
    world = World()
    end(world)
    assert world.status.phase in ("Succeeded", "Failed")
    ask_for_a_retry(world, "2026-01-02T10:00:00Z")
    world.settle()
    assert (world.status.run, world.status.stages[-1].name) == (2, "prepare")
    assert [summary.run for summary in world.status.history] == [1]
    end(world)
    world.settle()
    assert world.status.run == 2


@pytest.mark.parametrize("finish", [True, False])
def test_a_retry_asked_for_before_the_end_is_answered_by_the_open_run(finish: bool) -> None:
    world = World(job_dict())
    ask_for_a_retry(world, "from a backup")
    world.settle()
    ask_for_a_retry(world, "impatient")
    if finish:
        world.run_to_end()
    world.settle()
    assert world.status.run == 1
    assert world.status.handled_retry == "impatient"


def test_no_retry_is_started_while_cancel_stands() -> None:
    world = World()
    fail_run(world)
    patch_spec(world, cancel=True)
    ask_for_a_retry(world, "1")
    world.settle()
    assert world.status.run == 1


def test_taking_the_annotation_away_starts_nothing() -> None:
    world = World()
    fail_run(world)
    ask_for_a_retry(world, "1")
    world.settle()
    fail_run(world)
    ask_for_a_retry(world, "")
    world.settle()
    assert world.status.run == 2


def test_a_finished_run_stays_what_it_is_when_cancel_is_set() -> None:
    world = World()
    world.run_to_end()
    patch_spec(world, cancel=True)
    assert world.status.phase == "Succeeded"


def test_the_deadline_counts_only_time_with_pods_running() -> None:
    world = World(job_dict(compute={"pool": "a100", "maxDuration": "1h"}))
    world.settle()
    world.tick(7200)
    world.settle()
    assert world.status.phase == "Preparing"
    world.run_pods()
    world.tick(3599)
    decision = world.settle()
    assert world.status.phase == "Preparing"
    assert decision.wake_at is not None
    world.now = decision.wake_at
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Failed", "DeadlineExceeded")
    assert world.active.state == "Terminating"


def test_children_go_after_the_ttl_and_the_job_stays() -> None:
    world = World(job_dict(ttlSecondsAfterFinished=600))
    world.run_to_end()
    assert all(run.state != "Terminating" for run in world.runs.values())
    decision = world.decide()
    assert decision.wake_at is not None
    world.now = decision.wake_at
    world.settle()
    assert {run.state for run in world.runs.values()} == {"Terminating"}
    assert world.status.phase == "Succeeded"


def test_cost_counts_gpu_time_of_pods_only() -> None:
    priced = pool(price={"gpuPerHour": 4.0})
    world = World(job_dict(compute={"pool": "a100", "gpusPerNode": 2, "maxCost": 100}), (priced,))
    world.run_to("train")
    assert world.status.cost == pytest.approx(60 / 3600 * 2 * 4.0, abs=1e-3)
    plan = world.status.plan
    assert plan is not None
    assert plan.time_budget_seconds == pytest.approx(0.7 * 100 / (2 * 4.0) * 3600, rel=0.01)


def test_deletion_is_left_to_the_garbage_collector() -> None:
    world = World()
    world.run_to("train")
    metadata = world.job.metadata.model_copy(update={"deletion_timestamp": world.now})
    world.job = world.job.model_copy(update={"metadata": metadata})
    decision = world.decide()
    assert (decision.starts, decision.stops, decision.version) == ((), (), None)
    assert decision.status == world.status


def test_every_transition_has_an_event() -> None:
    world = World()
    world.run_to_end()
    reasons = [event.reason for event in world.events]
    assert reasons.count("StageStarting") == 5
    assert reasons.count("StageSucceeded") == 5
    assert reasons[-1] == "AwaitingApproval"
    assert "RunStarted" in reasons
