"""Kueue takes GPUs away and gives them back: the same Job goes on, and nothing is held against the run."""

from __future__ import annotations

from kubernetes import client

from finetune_api.job.status import StageStatus
from tests.cluster.harness.controlplane import ControlPlane
from tests.cluster.harness.runs import Runs
from tests.kueue.conftest import QUEUE, Queue, make_queue


def kubernetes_job(runs: Runs, name: str) -> client.V1Job:
    return next(job for job in runs.jobs() if job.metadata.name == name)


def assert_jobs_are_never_changed(runs: Runs) -> None:
    """The operator makes and deletes Jobs; `suspend` is Kueue's to write."""
    if not isinstance(runs.cluster, ControlPlane):
        return  # a given cluster has no audit log here
    verbs = {
        event["verb"]
        for event in runs.cluster.audit_events()
        if event["user"]["username"].endswith(":finetune-operator")
        and (place := event.get("objectRef") or {}).get("resource") in ("jobs", "workloads")
        and place.get("namespace") == runs.namespace
    }
    assert "create" in verbs
    assert verbs <= {"create", "delete", "get"}


def preempt(queue: Queue, name: str, stage: str) -> StageStatus:
    """An urgent job takes the GPUs of a running stage; the stage's status before."""
    runs = queue.runs
    running = runs.wait_stage(stage, name=name, state="Running")
    queue.apply("urgent", priorityClass="urgent")
    runs.succeed("prepare", name="urgent")
    return running


def test_a_preempted_job_says_so_and_the_same_job_resumes(queue: Queue) -> None:
    runs = queue.runs
    queue.hold("patient", priorityClass="patient", maxRetries=0)
    [pod] = runs.pods(runs.stage("patient"))
    runs.player.succeed(pod, runs.report(pod))
    train = runs.begin("train", name="patient")
    before = kubernetes_job(runs, train.job_name)

    running = preempt(queue, "patient", "train")
    saving = runs.wait_phase("Queued", "patient", reason="Preempted")
    assert saving.message.startswith("pods save a checkpoint and end: preempted: ")
    assert saving.stages[-1].started_at == running.started_at, "pods that end still cost"
    runs.pods_being_deleted(train, 1)
    runs.end_pods(85)
    runs.begin("baseline", name="urgent")
    waiting = runs.wait(
        lambda: "waits for 2 of" in (s := runs.status("patient")).message and s, "what the preempted job waits for"
    )
    assert (waiting.phase, waiting.reason) == ("Queued", "Preempted")
    assert waiting.message == (
        f"position 1 in queue {QUEUE}; waits for 2 of nvidia.com/gpu in flavor {queue.name}: "
        "insufficient unused quota; preempted: prioritization in the ClusterQueue"
    )
    assert "resumes from its last checkpoint" in waiting.next_step
    stage = waiting.stages[-1]
    assert (stage.name, stage.attempt, stage.state) == ("train", 1, "Queued")
    assert (stage.preemptions, stage.started_at) == (1, None)
    suspended = kubernetes_job(runs, train.job_name)
    assert (suspended.metadata.uid, suspended.spec.suspend) == (before.metadata.uid, True)
    assert not suspended.status.failed, "a pod that was taken away is no failure of its Job"

    queue.release("urgent")
    resumed = runs.begin("train", name="patient")
    assert (resumed.attempt, resumed.job_name, resumed.preemptions) == (1, train.job_name, 1)
    assert kubernetes_job(runs, train.job_name).metadata.uid == before.metadata.uid
    [pod] = runs.pods(resumed)
    runs.player.succeed(pod, runs.report(pod))
    final = runs.succeed_from("evaluate", name="patient")
    assert [(s.name, s.attempt, s.state) for s in final.stages] == [
        (name, 1, "Succeeded") for name in ("prepare", "baseline", "train", "evaluate", "publish")
    ]
    assert any("preempted: prioritization" in note for reason, note in runs.events("patient") if reason == "Queued")
    assert_jobs_are_never_changed(runs)


def test_a_preempted_gang_ends_as_a_whole_and_resumes(queue: Queue) -> None:
    runs = queue.runs
    queue.hold("gang", gpus=1, nodes=2, priorityClass="patient", maxRetries=0)
    [pod] = runs.pods(runs.stage("gang"))
    runs.player.succeed(pod, runs.report(pod))
    train = runs.begin("train", name="gang", count=2)
    uid = kubernetes_job(runs, train.job_name).metadata.uid
    preempt(queue, "gang", "train")
    runs.wait_phase("Queued", "gang", reason="Preempted")
    # One rank ends well before the other, with an exit code that would otherwise be a failure.
    first, second = runs.pods_being_deleted(train, 2)
    runs.player.finish_deletion(first, 1)
    runs.player.finish_deletion(second, 137)
    runs.wait_stage("train", name="gang", state="Queued")
    runs.begin("baseline", name="urgent")
    queue.release("urgent")
    runs.begin("train", name="gang", count=2)
    status = runs.status("gang").stages[-1]
    assert (status.attempt, status.preemptions, status.cause) == (1, 1, "")
    assert kubernetes_job(runs, train.job_name).metadata.uid == uid


def test_preempted_and_resumed_while_no_operator_runs(runs: Runs) -> None:
    queue = make_queue(runs)
    operator = runs.operator()
    queue.hold("patient", maxRetries=0)
    held = runs.stage("patient")
    assert held is not None
    assert held.started_at is not None
    operator.stop()
    queue.patch(stopPolicy="HoldAndDrain")
    runs.wait(lambda: kubernetes_job(runs, held.job_name).spec.suspend, "Kueue to take the GPUs back")
    runs.pods_being_deleted(held, 1)
    runs.end_pods(85)
    queue.patch(stopPolicy="None")
    runs.wait(lambda: not kubernetes_job(runs, held.job_name).spec.suspend, "Kueue to give the GPUs again")
    for pod in runs.player.bound_pods(runs.namespace, held.job_name):
        runs.player.running(pod)
    runs.operator()
    again = runs.wait(lambda: (s := runs.stage("patient")) and s.preemptions == 1 and s, "the preemption to be noticed")
    assert (again.attempt, again.job_name, again.state) == (1, held.job_name, "Running")
    assert again.started_at > held.started_at
    assert again.active_seconds > 0, "Kueue knows how long it was admitted before"
