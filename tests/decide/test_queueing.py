"""What Kueue says of a Workload, as a reason, a sentence and a hint."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from finetune_operator.decide.types import PodState, QueueState
from tests.decide.world import World, job_dict, pool

# The sentences are Kueue 0.16.2's own, as its controllers write them into Workloads.
POD_SET = "couldn't assign flavors to pod set main: "
LACKING = "insufficient unused quota for nvidia.com/gpu in flavor {}, {} more needed"
PREEMPTED = (
    "Preempted to accommodate a workload (UID: b80e4c38, JobUID: e7f3b1af) due to prioritization in the ClusterQueue; "
    "preemptor path: /gpus; preemptee path: /gpus"
)


def queued(stage: str = "baseline", **compute: Any) -> World:
    """A run whose stage has been sent to queue team-a."""
    world = World(job_dict(compute={"pool": "a100", "queue": "team-a"} | compute), (pool(price={"gpuPerHour": 4.0}),))
    world.kueue = True
    world.run_to(stage)
    return world


def state(**changes: Any) -> QueueState:
    return QueueState(**({"name": "team-a", "position": 3} | changes))


@pytest.mark.parametrize(
    ("queue", "reason", "message"),
    [
        (
            state(reason="Pending", message=POD_SET + LACKING.format("a100-80", 2)),
            "WaitingForQuota",
            "position 3 in queue team-a; waits for 2 of nvidia.com/gpu in flavor a100-80: insufficient unused quota",
        ),
        (
            state(message=f"{POD_SET}{LACKING.format('a100', 2)}, {LACKING.format('h100', 1)}"),
            "WaitingForQuota",
            "position 3 in queue team-a; waits for 2 of nvidia.com/gpu in flavor a100 or 1 of nvidia.com/gpu in flavor "
            "h100: insufficient unused quota",
        ),
        (state(position=11), "WaitingForQuota", "behind 10 or more in queue team-a; waits for its turn"),
        (
            state(message="something that Kueue will say in some later version"),
            "WaitingForQuota",
            "position 3 in queue team-a; something that Kueue will say in some later version",
        ),
        (
            state(reason="Inadmissible", message="LocalQueue team-a doesn't exist"),
            "QueueNotFound",
            "position 3 in queue team-a; LocalQueue team-a doesn't exist",
        ),
        (state(message="ClusterQueue gpus doesn't exist"), "QueueNotFound", "ClusterQueue gpus doesn't exist"),
        (state(message="ClusterQueue gpus is stopped"), "QueueStopped", "ClusterQueue gpus is stopped"),
        (state(message="LocalQueue team-a is inactive"), "QueueStopped", "LocalQueue team-a is inactive"),
        (
            state(message="Workload namespace doesn't match ClusterQueue selector"),
            "QueueNotAllowed",
            "namespace doesn't match",
        ),
        (
            state(message=f"{POD_SET}resource cpu unavailable in ClusterQueue"),
            "QueueLacksResource",
            "position 3 in queue team-a; resource cpu unavailable in ClusterQueue",
        ),
        (
            state(
                message=f"{POD_SET}insufficient quota for nvidia.com/gpu in flavor a100, previously considered podsets "
                "requests (0) + current podset request (4) > maximum capacity (2)"
            ),
            "QuotaTooSmall",
            "maximum capacity (2)",
        ),
        (
            state(message=f"{POD_SET}flavor a100 doesn't match node affinity"),
            "FlavorMismatch",
            "flavor a100 doesn't match node affinity",
        ),
        (
            state(message=POD_SET + LACKING.format("a100", 2), evicted="Preempted", evicted_message=PREEMPTED),
            "Preempted",
            "position 3 in queue team-a; waits for 2 of nvidia.com/gpu in flavor a100: insufficient unused quota; "
            "preempted: prioritization in the ClusterQueue",
        ),
        (
            state(message=PREEMPTED, evicted="Preempted", evicted_message=PREEMPTED),
            "Preempted",
            "position 3 in queue team-a; waits for its turn; preempted: prioritization in the ClusterQueue",
        ),
        (state(evicted="ClusterQueueStopped", evicted_message="it is stopped"), "QueueStopped", "it is stopped"),
        (
            state(quota_reserved=True, position=0, pending_checks=("provision",)),
            "Admitted",
            "quota of queue team-a is reserved; admission checks: provision",
        ),
        (state(quota_reserved=True, position=0), "Admitted", "quota of queue team-a is reserved; pods start"),
        (
            state(active=False, position=0, evicted="Deactivated", evicted_message="requeued too often"),
            "QueueDeactivated",
            "taken out of queue team-a: requeued too often",
        ),
    ],
)
def test_what_a_job_waits_for(queue: QueueState, reason: str, message: str) -> None:
    world = queued()
    world.set_run(state="Queued", queue=queue)
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Queued", reason)
    assert message in world.status.message
    assert world.status.next_step or reason == "Admitted"
    assert world.status.stages[-1].state == "Queued"


def test_a_cluster_without_kueue_is_named_at_once() -> None:
    world = queued()
    world.kueue = False
    world.set_run(state="Queued")
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Queued", "KueueMissing")
    assert "compute.queue" in world.status.next_step


def test_kueue_that_does_not_take_a_job_is_named_after_a_while() -> None:
    world = queued(priorityClass="urgent")
    world.set_run(state="Queued")
    world.settle()
    assert world.status.reason == "Queued"
    wake = world.decide().wake_at
    assert wake is not None
    world.now = wake
    world.settle()
    assert world.status.reason == "NotTakenByKueue"
    assert "WorkloadPriorityClass urgent" in world.status.next_step
    assert world.decide().wake_at is None, "nothing to look at until something changes"


def test_a_stage_that_needs_no_queue_and_is_held_back_is_told_so() -> None:
    world = queued("prepare")
    world.set_run(state="Queued")
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Queued", "HeldBack")
    assert "manageJobsWithoutQueueName" in world.status.next_step


def test_time_in_a_queue_costs_nothing_and_counts_against_no_limit() -> None:
    world = queued("train", maxDuration="1h", maxRetries=0)
    world.set_run(state="Queued", queue=state())
    world.settle()
    world.tick(7200)
    world.run_pods()
    before = world.status.cost or 0.0
    world.tick(1800)
    world.settle()

    # Kueue takes the GPUs back: pods save their work for a minute and are gone.
    ending = PodState("p0", 0, "Running", terminating=True, started_at=world.now - timedelta(seconds=1800))
    world.set_run(state="Queued", pods=(ending,), queue=state(evicted="Preempted", evicted_message=PREEMPTED))
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Queued", "Preempted")
    assert world.status.message == "pods save a checkpoint and end: preempted: prioritization in the ClusterQueue"
    assert world.status.stages[-1].started_at is not None, "pods that end still cost"
    world.tick(60)
    world.set_run(pods=())
    world.settle()
    stage = world.status.stages[-1]
    assert (stage.state, stage.active_seconds, stage.started_at, stage.preemptions) == ("Queued", 1860, None, 1)
    world.settle()
    assert world.status.stages[-1].preemptions == 1, "counted once"

    world.tick(86400)
    world.settle()
    assert world.status.phase == "Queued", "a day in the queue is no deadline"
    world.run_pods()
    assert (world.status.phase, world.status.stages[-1].attempt) == ("Training", 1)
    world.succeed(seconds=600)
    assert world.status.stages[-1].name == "evaluate"
    assert (world.status.cost or 0.0) - before == pytest.approx((1860 + 600) / 3600 * 4.0, abs=0.01)


def test_the_deadline_adds_up_what_ran_before_and_after_a_preemption() -> None:
    world = queued("train", maxDuration="1h")
    earlier_s = world.status.active_seconds
    world.run_pods()
    world.tick(2400)
    world.set_run(state="Queued", pods=(), queue=state(evicted="Preempted"))
    world.settle()
    world.tick(7200)
    world.run_pods()
    wake = world.decide().wake_at
    assert wake is not None
    assert (wake - world.now).total_seconds() == 3600 - 2400 - earlier_s
    world.now = wake
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Failed", "DeadlineExceeded")


def test_a_preemption_that_nobody_saw_is_told_by_the_new_start() -> None:
    world = queued("train")
    world.run_pods()
    world.tick(4000)
    pods = (PodState("p0", 0, "Running", started_at=world.now),)
    world.set_run(state="Running", pods=pods, started_at=world.now, queue=QueueState("team-a", past_admitted_s=1200))
    world.settle()
    stage = world.status.stages[-1]
    assert (stage.preemptions, stage.active_seconds, stage.started_at) == (1, 1200, world.now)
    world.settle()
    assert world.status.stages[-1].preemptions == 1, "counted once"


def test_admitted_pods_that_find_no_node_are_named_as_anywhere() -> None:
    world = queued()
    world.set_run(state="Queued", queue=state())
    world.settle()
    stuck = PodState("p0", unschedulable="0/1 nodes are available: 1 node(s) had untolerated taint(s).")
    world.set_run(state="Pending", pods=(stuck,), queue=state(quota_reserved=True, position=0), started_at=world.now)
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Baseline", "Unschedulable")
    assert (world.status.stages[-1].state, world.status.stages[-1].cause) == ("Pending", "Unschedulable")


def test_a_user_may_suspend_what_waits() -> None:
    world = queued()
    world.set_run(state="Queued", queue=state())
    world.settle()
    world.job = world.job.model_copy(update={"spec": world.job.spec.model_copy(update={"suspend": True})})
    world.settle()
    assert world.active.state == "Terminating"
    world.remove_terminated()
    world.settle()
    assert world.status.phase == "Suspended"
