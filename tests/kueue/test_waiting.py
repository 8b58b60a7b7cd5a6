"""A job in a queue says what it waits for, and starts when it may."""

from __future__ import annotations

import pytest

from finetune_operator.builders.names import QUEUE_LABEL
from tests.cluster.harness.kueue import local_queue
from tests.kueue.conftest import QUEUE, Queue


def test_a_job_waits_for_quota_by_name_and_starts_when_it_frees(queue: Queue) -> None:
    runs = queue.runs
    queue.hold("first")
    for name in ("second", "third"):
        queue.apply(name)
        runs.succeed("prepare", name=name)
        runs.wait_phase("Queued", name, reason="WaitingForQuota")
    flavor = f"2 of nvidia.com/gpu in flavor {queue.name}: insufficient unused quota"
    waits = runs.wait(
        lambda: (s := runs.status("second")).message.endswith("quota") and s, "the second to say what it waits for"
    )
    assert waits.message == f"position 1 in queue {QUEUE}; waits for {flavor}"
    assert "Nothing to do" in waits.next_step
    third = runs.wait(lambda: (s := runs.status("third")).message.startswith("position 2") and s, "the third's place")
    assert (third.phase, third.reason) == ("Queued", "WaitingForQuota")
    assert third.stages[-1].started_at is None

    queue.release("first")
    runs.begin("baseline", name="second")
    moved = runs.wait(
        lambda: (s := runs.status("third")).message.startswith("position 1") and s, "the third to move up"
    )
    assert moved.reason == "WaitingForQuota"
    assert [(stage.name, stage.attempt) for stage in runs.status("second").stages] == [("prepare", 1), ("baseline", 1)]


def test_stages_on_the_cpu_do_not_queue_for_gpus(queue: Queue) -> None:
    runs = queue.runs
    queue.hold("busy")
    queue.apply("support")
    status = runs.begin("prepare")
    assert status.state == "Running", "prepare runs although all GPUs of the queue are taken"
    labels = {job.metadata.name: job.metadata.labels for job in runs.jobs()}
    assert QUEUE_LABEL not in labels[status.job_name]
    owners = {item["metadata"]["ownerReferences"][0]["name"] for item in queue.workloads()}
    assert owners == {runs.status("busy").stages[-1].job_name}


def test_a_queue_that_does_not_exist_is_named_and_taken_when_it_appears(queue: Queue) -> None:
    runs = queue.runs
    queue.apply("support", queue="later")
    runs.succeed("prepare")
    missing = runs.wait_phase("Queued", reason="QueueNotFound")
    assert missing.message == "position 1 in queue later; LocalQueue later doesn't exist"
    assert "compute.queue" in missing.next_step
    runs.cluster.apply(local_queue("later", runs.namespace, queue.name))
    runs.begin("baseline")


def test_a_queue_that_is_stopped_is_named_and_goes_on_when_it_is_started(queue: Queue) -> None:
    runs = queue.runs
    queue.patch(stopPolicy="Hold")
    queue.apply("support")
    runs.succeed("prepare")
    stopped = runs.wait_phase("Queued", reason="QueueStopped")
    assert f"ClusterQueue {queue.name} is" in stopped.message
    assert "platform team" in stopped.next_step
    queue.patch(stopPolicy="None")
    runs.begin("baseline")


@pytest.mark.parametrize("gpus", [4])
def test_a_job_that_the_queue_can_never_hold_is_told_so(queue: Queue, gpus: int) -> None:
    runs = queue.runs
    queue.apply("support", gpus=gpus)
    runs.succeed("prepare")
    told = runs.wait_phase("Queued", reason="QuotaTooSmall")
    assert "maximum capacity" in told.message
    assert "fewer GPUs" in told.next_step
    queue.patch(gpus=gpus)
    runs.begin("baseline")


def test_a_namespace_the_queue_does_not_serve_is_told_so(queue: Queue) -> None:
    runs = queue.runs
    queue.patch(namespace_selector={"matchLabels": {"team": "other"}})
    queue.apply("support")
    runs.succeed("prepare")
    told = runs.wait_phase("Queued", reason="QueueNotAllowed")
    assert "namespaceSelector" in told.next_step
    runs.cluster.kubectl("label", "namespace", runs.namespace, "team=other")
    runs.begin("baseline")


def test_a_priority_class_that_does_not_exist_is_suspected(queue: Queue) -> None:
    runs = queue.runs
    queue.apply("support", priorityClass="none-such")
    runs.succeed("prepare")
    told = runs.wait_phase("Queued", reason="NotTakenByKueue")
    assert "WorkloadPriorityClass none-such" in told.next_step
    assert queue.workloads() == []
