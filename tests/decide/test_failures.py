"""Every way a stage can end, and what the operator makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from finetune_api.exit_codes import CAUSE_OF_EXIT_CODE, ExitCode
from finetune_operator.decide.causes import registry
from finetune_operator.decide.diagnosis import diagnose_failure
from finetune_operator.decide.types import PodState, StageRun
from tests.decide.world import START, TRAINED, World, job_dict


def test_every_cause_of_the_contract_has_a_module() -> None:
    assert set(CAUSE_OF_EXIT_CODE.values()) <= set(registry())


@pytest.mark.parametrize(
    ("code", "then"),
    [
        (ExitCode.INVALID_SPEC, "fails"),
        (ExitCode.INVALID_DATA, "fails"),
        (ExitCode.SOURCE_NOT_FOUND, "fails"),
        (ExitCode.ACCESS_DENIED, "fails"),
        (ExitCode.DISK_FULL, "fails"),
        (ExitCode.HOST_OUT_OF_MEMORY, "fails"),
        (ExitCode.TRAINING_DIVERGED, "fails"),
        (ExitCode.MODEL_UNUSABLE, "fails"),
        (ExitCode.INTERRUPTED, "again at once"),
        (ExitCode.FENCED, "again at once"),
        (ExitCode.GPU_OUT_OF_MEMORY, "again at once"),
        (ExitCode.STORAGE_UNAVAILABLE, "again later"),
        (ExitCode.HUNG, "again later"),
        (ExitCode.GPU_UNAVAILABLE, "again later"),
        (ExitCode.INTERNAL, "again later"),
    ],
)
def test_a_reported_failure(code: ExitCode, then: str) -> None:
    world = World()
    world.run_to("train")
    cause = CAUSE_OF_EXIT_CODE[code]
    report = world.report(
        outcome="Failed", exitCode=int(code), cause=cause, message="row 17 has no answer", evidence="line"
    )
    world.end(int(code), report)
    failed = next(stage for stage in world.status.stages if stage.state == "Failed")
    assert (failed.cause, failed.message.split(" (next")[0], failed.exit_code) == (
        cause,
        "row 17 has no answer",
        int(code),
    )
    assert failed.hint
    if then == "fails":
        assert (world.status.phase, world.status.reason) == ("Failed", cause)
        assert "row 17 has no answer" in world.status.message
    elif then == "again at once":
        assert [stage.attempt for stage in world.status.stages if stage.name == "train"] == [1, 2]
    else:
        assert world.status.reason == "Retrying"
        wake = world.decide().wake_at
        assert wake is not None
        assert wake > world.now
        world.now = wake
        world.settle()
        assert world.status.stages[-1].attempt == 2


@pytest.mark.parametrize(
    ("pod", "cause"),
    [
        ({"exit_code": 137, "reason": "OOMKilled"}, "HostOutOfMemory"),
        ({"exit_code": 137, "disruption": "PreemptionByScheduler"}, "Preempted"),
        ({"exit_code": 143, "disruption": "EvictionByEvictionAPI"}, "Evicted"),
        ({"exit_code": 137, "disruption": "DeletionByTaintManager"}, "NodeLost"),
        ({"exit_code": 137, "reason": "Error"}, "Killed"),
        ({"exit_code": 137, "reason": "Error", "terminating": True}, "PodDeleted"),
        ({"exit_code": 143, "terminating": True, "disruption": "EvictionByEvictionAPI"}, "Evicted"),
        ({"exit_code": 1, "reason": "Error", "message": "Traceback ... KeyError: 'x'"}, "InternalError"),
        *(
            ({"exit_code": code, "reason": reason, "evicted": message}, cause)
            # The kubelet's own words (pkg/kubelet/eviction/helpers.go); the container only says that it was killed.
            for code, reason in ((137, "Error"), (85, "Error"), (None, ""))
            for message, cause in (
                ('Usage of EmptyDir volume "scratch" exceeds the limit "200Gi". ', "DiskFull"),
                ('Container stage exceeded its local ephemeral storage limit "1Gi". ', "DiskFull"),
                ("Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ", "DiskFull"),
                (
                    "The node was low on resource: ephemeral-storage. Threshold quantity: 10Gi, available: 9Gi. "
                    "Container stage was using 50Gi, request is 0, has larger consumption of ephemeral-storage. ",
                    "Evicted",
                ),
                ("The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. ", "Evicted"),
                ("The node had condition: [DiskPressure]. ", "Evicted"),
            )
        ),
        ({"exit_code": 137, "disruption": "TerminationByKubelet", "evicted": "low on memory"}, "Evicted"),
        (
            {
                "exit_code": 128,
                "reason": "StartError",
                "message": 'failed to create task: exec: "finetune-runner": executable file not found in $PATH',
            },
            "ImageUnusable",
        ),
        ({"exit_code": 2, "message": '{"not": "a report"}'}, "InternalError"),
    ],
)
def test_a_pod_that_died_without_a_report_is_diagnosed_from_its_status(pod: dict[str, Any], cause: str) -> None:
    run = StageRun("job", "uid", "Failed", pods=(PodState("pod-0", phase="Failed", **pod),))
    diagnosis = diagnose_failure(run, "uid-1", 1)
    assert diagnosis.cause.name == cause
    assert diagnosis.evidence


def test_the_first_cause_wins_and_ranks_that_died_of_deletion_are_consequences() -> None:
    world = World()
    world.run_to("train")
    report = world.report(outcome="Failed", exitCode=88, cause="TrainingDiverged", message="loss is NaN at step 12")
    later = START.replace(hour=1)
    first = PodState("p0", 0, "Failed", 143, "Error", terminating=True, finished_at=START)
    second = PodState("p1", 1, "Failed", 88, "Error", report, finished_at=later)
    diagnosis = diagnose_failure(StageRun("job", "uid", "Failed", pods=(first, second)), "uid-1", 1)
    assert diagnosis.cause.name == "TrainingDiverged"


def test_a_report_of_another_run_is_not_believed() -> None:
    world = World()
    world.run_to("train")
    forged = world.report(outcome="Failed", exitCode=88, cause="TrainingDiverged", uid="somebody-else")
    pod = PodState("p0", 0, "Failed", 1, "Error", forged)
    assert diagnose_failure(StageRun("job", "uid", "Failed", pods=(pod,)), "uid-1", 1).cause.name == "InternalError"


def test_retries_end_and_those_that_do_not_count_do_not_use_them_up() -> None:
    world = World(job_dict(compute={"pool": "a100", "maxRetries": 1}))
    world.run_to("train")
    for _ in range(4):
        world.end(137, disruption="PreemptionByScheduler")
    assert world.status.phase == "Training"
    for _ in range(2):
        world.end(1, "boom")
        wake = world.decide().wake_at
        world.now = wake or world.now
        world.settle()
    assert (world.status.phase, world.status.reason) == ("Failed", "InternalError")


def test_a_lost_report_is_read_again_from_storage() -> None:
    world = World()
    world.run_to("train")
    world.end(0, "")
    assert world.status.stages[-1].mode == "recover"
    assert world.started[-1].gpus_per_node == 0
    world.succeed()
    assert world.status.stages[-1].name == "evaluate"


def test_a_report_that_cannot_be_recovered_is_tried_as_a_whole_attempt() -> None:
    world = World()
    world.run_to("train")
    world.end(0, "")
    world.end(0, "")
    wake = world.decide().wake_at
    assert wake is not None
    world.now = wake
    world.settle()
    assert [(stage.mode, stage.attempt) for stage in world.status.stages if stage.name == "train"] == [
        ("run", 1),
        ("recover", 2),
        ("run", 3),
    ]


@pytest.mark.parametrize(
    ("pod", "reason", "ends"),
    [
        ({"waiting_reason": "ImagePullBackOff", "waiting_message": "not found"}, "ImagePull", True),
        (
            {"waiting_reason": "CreateContainerConfigError", "waiting_message": 'secret "hf" not found'},
            "ContainerConfig",
            True,
        ),
        ({"unschedulable": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu"}, "Unschedulable", False),
        ({"unschedulable": '0/3 nodes are available: persistentvolumeclaim "m" not found.'}, "ClaimUnavailable", False),
    ],
)
def test_a_pod_that_does_not_start_is_named_at_once(pod: dict[str, str], reason: str, ends: bool) -> None:
    world = World()
    world.settle()
    world.set_run(pods=(PodState("pod-0", **pod),))
    world.settle()
    assert world.status.reason == reason
    assert world.status.next_step
    world.tick(3600)
    world.settle()
    assert (world.status.phase == "Failed") == ends


def test_a_gang_that_does_not_fit_is_released_and_retried() -> None:
    world = World(job_dict(compute={"pool": "a100", "nodes": 2, "gpusPerNode": 1}))
    world.run_to("train")
    pods = (PodState("p0", 0, "Running"), PodState("p1", 1, unschedulable="no node"))
    world.set_run(pods=pods)
    world.settle()
    world.tick(301)
    world.settle()
    assert world.active.state == "Terminating"
    wake = world.decide().wake_at
    world.remove_terminated()
    world.now = wake or world.now
    world.settle()
    assert world.status.stages[-1].attempt == 2
    assert world.status.phase == "Training"


def test_a_deleted_stage_job_is_started_again_under_another_name() -> None:
    world = World()
    world.run_to("train")
    world.run_pods()
    del world.runs[world.active.job_name]
    world.settle()
    assert world.status.stages[-1].attempt == 2
    assert world.active.state == "Pending"


def test_a_terminating_job_is_waited_for() -> None:
    world = World()
    world.run_to("train")
    world.run_pods()
    run = world.active
    world.runs[run.job_name] = replace(run, state="Terminating")
    decision = world.settle()
    assert decision.starts == ()
    assert world.status.reason == "Stopping"


def test_a_full_volume_is_no_interruption_although_the_process_saved_its_work() -> None:
    world = World()
    world.run_to("train")
    report = world.report(outcome="Failed", exitCode=85, cause="Interrupted", message="a checkpoint was saved")
    world.end(85, report, evicted='Usage of EmptyDir volume "scratch" exceeds the limit "1Gi". ')
    assert (world.status.phase, world.status.reason) == ("Failed", "DiskFull")
    assert "scratchSize" in world.status.next_step


def test_a_rank_that_the_kernel_killed_for_memory_is_no_internal_error() -> None:
    """Seen with ZeRO-3 on a real node: the launcher lives, and reports a rank that left nothing."""
    world = World(job_dict(compute={"pool": "a100", "nodes": 2, "gpusPerNode": 1}))
    world.run_to("train")
    said = world.report(outcome="Failed", exitCode=1, cause="InternalError", message="rank 1 was killed by SIGKILL")
    lost = PodState("pod-0", 0, "Failed", exit_code=1, message=said, finished_at=world.now)
    world.tick(6)
    killed = PodState("pod-1", 1, "Failed", exit_code=1, reason="OOMKilled", message=said, finished_at=world.now)
    world.set_run(state="Failed", pods=(lost, killed), finished_at=world.now)
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Failed", "HostOutOfMemory")
    assert "gpuPod" in world.status.next_step


@pytest.mark.parametrize(
    ("pod", "cause", "says"),
    [
        (
            {"unschedulable": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: not helpful."},
            "Unschedulable",
            "3 Insufficient nvidia.com/gpu",
        ),
        (
            {
                "waiting_reason": "ErrImagePull",
                "waiting_message": 'failed to resolve reference "r.example/x:1": not found',
            },
            "ImagePull",
            "not found",
        ),
        ({"waiting_reason": "ImagePullBackOff", "waiting_message": "Back-off pulling image"}, "ImagePull", "Back-off"),
        ({"waiting_reason": "InvalidImageName", "waiting_message": "couldn't parse image name"}, "ImagePull", "parse"),
        (
            {"waiting_reason": "ErrImageNeverPull", "waiting_message": "not present with pull policy"},
            "ImagePull",
            "policy",
        ),
        (
            {"waiting_reason": "CreateContainerConfigError", "waiting_message": 'secret "hf" not found'},
            "ContainerConfig",
            'secret "hf" not found',
        ),
        (
            {"unschedulable": '0/3 nodes are available: persistentvolumeclaim "models" not found. preemption: ...'},
            "ClaimUnavailable",
            'persistentvolumeclaim "models" not found',
        ),
        (
            {"unschedulable": "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims."},
            "ClaimUnavailable",
            "unbound",
        ),
        (
            {"unschedulable": "0/3 nodes are available: 3 node(s) didn't match PersistentVolume's node affinity."},
            "Unschedulable",
            "node affinity",
        ),
    ],
)
def test_what_a_pod_waits_for_is_named_while_it_waits(pod: dict[str, Any], cause: str, says: str) -> None:
    world = World()
    world.run_to("train")
    world.set_run(state="Pending", pods=(PodState("pod-0", phase="Pending", **pod),))
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Training", cause)
    assert says in world.status.message
    assert world.status.next_step
    warnings = [event for event in world.events if event.reason == cause]
    assert len(warnings) == 1, "told once, when it begins"


def test_a_job_that_waited_long_in_its_queue_has_its_full_time_to_start() -> None:
    world = World(job_dict(compute={"pool": "a100", "queue": "team-a"}))
    world.run_to("baseline")
    world.tick(3600)
    pulling = PodState("p0", phase="Pending", waiting_reason="ErrImagePull", waiting_message="timeout")
    world.set_run(state="Pending", pods=(pulling,), started_at=world.now)
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Baseline", "ImagePull")
    world.tick(601)
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Failed", "ImagePull")


def test_the_delay_grows_with_failures_of_the_same_cause_even_when_they_do_not_count() -> None:
    world = World(job_dict(compute={"pool": "a100", "nodes": 2, "gpusPerNode": 1}))
    world.run_to("train")
    delays_s = []
    for _ in range(5):
        bound = PodState("p0", 0, "Running", started_at=world.now)
        stuck = PodState("p1", 1, "Pending", unschedulable="0/2 nodes are available: 2 Insufficient nvidia.com/gpu.")
        world.set_run(state="Pending", pods=(bound, stuck))
        world.settle()
        world.tick(301)
        world.settle()
        assert world.active.state == "Terminating", "the half that runs gives its GPUs back"
        retry_at = world.status.stages[-1].retry_at
        assert retry_at is not None
        delays_s.append((retry_at - world.now).total_seconds())
        world.remove_terminated()
        world.now = retry_at
        world.settle()
    assert delays_s == sorted(delays_s)
    assert delays_s[-1] > 8 * delays_s[0]
    assert not any(stage.counts_against_retries for stage in world.status.stages if stage.state == "Failed")


def test_a_pod_whose_volumes_are_not_made_is_pointed_at_and_goes_on_when_they_are() -> None:
    world = World()
    world.run_to("train")
    world.set_run(pods=(PodState("pod-0", waiting_reason="ContainerCreating"),))
    world.settle()
    assert world.status.reason == "Starting"
    wake = world.decide().wake_at
    assert wake is not None
    world.now = wake
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Training", "StartsSlowly")
    assert "kubectl describe pod pod-0" in world.status.next_step
    assert world.decide().wake_at is None
    world.run_pods()
    assert world.status.reason == "Training"


@pytest.mark.parametrize(
    "change",
    [
        lambda train, report: train.update(energyKwh=3.2) or report.update(host={"name": "n1"}),
        lambda train, report: train["seconds"].update(communication=4.0),
        lambda train, report: report["findings"][0].update(runbook="https://example.com"),
        lambda train, report: [train.pop(name) for name in ("seconds", "validationMetrics", "lostTrackers", "probe")],
    ],
    ids=["newer", "newer, deeper", "newer finding", "older"],
)
def test_the_report_of_a_runner_of_another_version_counts(change: Any) -> None:
    """An operator that was upgraded or rolled back while the stage ran loses no training."""
    world = World()
    world.run_to("train")
    finding = {"check": "plateau", "severity": "info", "message": "it fell no further"}
    result = {**TRAINED, "seconds": {"compute": 3.0}, "validationMetrics": {}, "lostTrackers": [], "probe": ""}
    wire = json.loads(world.report(result, findings=[finding]))
    change(wire["result"]["train"], wire)
    world.end(message=json.dumps(wire))
    assert world.status.stages[-1].name == "evaluate"
    assert world.status.results.train is not None
    assert world.status.results.train.best_step == TRAINED["bestStep"]
