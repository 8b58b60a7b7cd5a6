"""Every way a stage can fail gets its name, its hint and its policy from what Kubernetes shows of the pods."""

from __future__ import annotations

import pytest

from finetune_api.exit_codes import CAUSE_OF_EXIT_CODE, ExitCode
from finetune_operator.builders.names import job_name
from finetune_operator.decide.causes import registry
from tests.cluster.harness.runs import Runs, pool_manifest

STAGES = ("prepare", "baseline", "train", "evaluate", "publish")
CODES = [code for code in ExitCode if code is not ExitCode.SUCCEEDED]


def reach(runs: Runs, stage: str) -> None:
    """Let everything before a stage end well."""
    for earlier in STAGES[: STAGES.index(stage)]:
        runs.succeed(earlier)


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_an_exit_code_with_a_report_becomes_its_cause(operated: Runs, code: ExitCode) -> None:
    operated.apply(compute={"maxRetries": 0})
    status = operated.begin("prepare")
    [pod] = operated.pods(status)
    cause = CAUSE_OF_EXIT_CODE[code]
    message = operated.report(
        pod, outcome="Failed", exitCode=int(code), cause=cause, message=f"what {code.name} saw", hint="do this"
    )
    operated.player.fail(pod, int(code), None, message)
    failed = operated.wait(
        lambda: next((s for s in operated.status().stages if s.state == "Failed"), None), "a failed attempt"
    )
    assert (failed.cause, failed.exit_code) == (cause, int(code))
    assert f"what {code.name} saw" in failed.message
    assert failed.hint == "do this"
    if registry()[cause].counts or registry()[cause].retry == "never":
        final = operated.wait_phase("Failed", reason=cause)
        assert final.next_step == "do this"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("code", "reason", "cause"), [(81, None, "InvalidData"), (137, "OOMKilled", "HostOutOfMemory")], ids=["81", "oom"]
)
def test_every_stage_fails_by_name_without_a_report(
    operated: Runs, stage: str, code: int, reason: str | None, cause: str
) -> None:
    operated.apply(compute={"maxRetries": 0})
    reach(operated, stage)
    operated.fail(stage, code, reason)
    failed = operated.wait_phase("Failed")
    assert (failed.reason, failed.stages[-1].name, failed.stages[-1].cause) == (cause, stage, cause)
    assert failed.next_step
    assert operated.objects("adapterversions") == []


@pytest.mark.parametrize(("reason", "cause"), [("ImagePullBackOff", "ImagePull"), ("CreateContainerConfigError", None)])
def test_a_pod_that_cannot_start_is_named_while_it_waits(operated: Runs, reason: str, cause: str | None) -> None:
    operated.apply()
    stage = operated.wait_stage("prepare")
    [pod] = operated.pods(stage)
    operated.player.waiting(pod, reason, "this is what the kubelet says")
    waiting = operated.wait(
        lambda: (s := operated.status()).reason not in ("Starting", "Accepted") and s, "the reason to be shown"
    )
    assert waiting.reason in registry()
    assert cause is None or waiting.reason == cause
    assert "this is what the kubelet says" in waiting.message
    assert waiting.next_step
    operated.player.running(pod)
    recovered = operated.wait_stage("prepare", state="Running")
    assert recovered.cause == ""


def test_a_stage_no_node_can_hold_is_named_within_a_minute(operated: Runs) -> None:
    pool = operated.namespace
    operated.cluster.kubectl(
        "patch", "gpupool", pool, "--type=merge", "-p", '{"spec": {"gpuPod": {"cpu": "4000", "memory": "32Gi"}}}'
    )
    operated.apply()
    operated.succeed("prepare")
    status = operated.wait_phase("Baseline", reason="Unschedulable")
    assert "Insufficient cpu" in status.message


@pytest.mark.parametrize(
    ("disruption", "cause"),
    [
        ("PreemptionByScheduler", "Preempted"),
        ("EvictionByEvictionAPI", "Evicted"),
        ("DeletionByTaintManager", "NodeLost"),
    ],
)
def test_a_disruption_costs_no_retry_and_the_stage_goes_on(operated: Runs, disruption: str, cause: str) -> None:
    operated.apply(compute={"maxRetries": 0})
    reach(operated, "train")
    status = operated.begin("train")
    [pod] = operated.pods(status)
    operated.player.disruption(pod, disruption, "the node is needed")
    operated.player.fail(pod, 143)
    operated.succeed("train", attempt=2)
    first = next(s for s in operated.status().stages if (s.name, s.attempt) == ("train", 1))
    assert (first.cause, first.counts_against_retries) == (cause, False)
    assert operated.succeed_from("evaluate").phase == "Succeeded"


def test_a_lost_report_is_read_again_by_a_small_pod(operated: Runs) -> None:
    operated.apply()
    reach(operated, "train")
    status = operated.begin("train")
    [pod] = operated.pods(status)
    operated.player.succeed(pod, "")
    second = operated.wait_stage("train", attempt=2)
    assert second.mode == "recover"
    [small] = operated.pods(second)
    assert operated.task(small).mode == "recover"
    assert "nvidia.com/gpu" not in small.spec.containers[0].resources.limits
    operated.succeed("train", attempt=2)
    assert operated.succeed_from("evaluate").phase == "Succeeded"


def test_a_job_somebody_deletes_is_noticed_and_started_again(operated: Runs) -> None:
    operated.apply()
    stage = operated.begin("prepare")
    operated.cluster.kubectl("delete", "job", stage.job_name, "-n", operated.namespace, "--wait=false")
    operated.wait_gone(stage.job_name)
    operated.succeed("prepare", attempt=2)
    assert operated.status().stages[0].cause == "JobDeleted"


def test_a_gpu_out_of_memory_is_tried_again_more_gently(operated: Runs) -> None:
    operated.apply(compute={"maxRetries": 2})
    reach(operated, "train")
    plan = operated.status().plan
    operated.fail("train", 86)
    gentler = operated.wait(lambda: (p := operated.status().plan) != plan and p, "another plan")
    assert gentler.micro_batch_size * gentler.gradient_accumulation >= 1
    assert gentler != plan


def test_a_job_name_that_is_taken_is_told_and_never_adopted(operated: Runs) -> None:
    operated.cluster.kubectl("delete", "gpupool", operated.namespace)
    applied = operated.apply()
    operated.wait_phase("Pending", reason="PoolNotFound")
    name = job_name("support", applied.metadata.uid, 1, "prepare", 1)
    operated.cluster.kubectl("create", "job", name, "-n", operated.namespace, "--image=example.com/foreign")
    operated.cluster.apply(pool_manifest(operated.namespace))
    status = operated.wait(lambda: (s := operated.status()).reason == "NameTaken" and s, "the reason NameTaken")
    assert name in status.message
    operated.cluster.kubectl("delete", "job", name, "-n", operated.namespace)
    operated.wait(
        lambda: any(job.metadata.name == name and job.metadata.owner_references for job in operated.jobs()),
        "our own Job once the name is free",
    )
