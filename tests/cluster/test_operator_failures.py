"""Every way a stage can fail gets its name, its hint and its policy from what Kubernetes shows of the pods."""

from __future__ import annotations

import pytest

from finetune_api.exit_codes import CAUSE_OF_EXIT_CODE, ExitCode
from finetune_api.job.status import StageStatus
from finetune_operator.decide.causes import registry
from tests.cluster.harness.runs import Runs

STAGES = ("prepare", "baseline", "train", "evaluate", "publish")
CODES = [code for code in ExitCode if code is not ExitCode.SUCCEEDED]


def reach(runs: Runs, stage: str) -> None:
    """Let everything before a stage end well."""
    for earlier in STAGES[: STAGES.index(stage)]:
        runs.succeed(earlier)


def test_exit_codes_with_a_report_become_their_causes(operated: Runs) -> None:
    names = {code: code.name.lower().replace("_", "-") for code in CODES}
    for name in names.values():
        operated.apply(name, compute={"maxRetries": 0})
    for code, name in names.items():
        status = operated.begin("prepare", name=name)
        [pod] = operated.pods(status)
        message = operated.report(
            pod,
            outcome="Failed",
            exitCode=int(code),
            cause=CAUSE_OF_EXIT_CODE[code],
            message=f"what {name} saw",
            hint="do this",
        )
        operated.player.fail(pod, int(code), None, message)
    for code, name in names.items():
        failed = operated.wait(lambda name=name: ended(operated, name), f"a failed attempt of {name}")
        cause = CAUSE_OF_EXIT_CODE[code]
        assert (failed.cause, failed.exit_code, failed.hint) == (cause, int(code), "do this")
        assert f"what {name} saw" in failed.message
        if registry()[cause].counts or registry()[cause].retry == "never":
            assert operated.wait_phase("Failed", name, reason=cause).next_step == "do this"


def ended(runs: Runs, name: str) -> StageStatus | None:
    """The first failed attempt of a job."""
    return next((stage for stage in runs.status(name).stages if stage.state == "Failed"), None)


def test_every_stage_fails_by_name_without_a_report(operated: Runs) -> None:
    signs = {
        "prepare": (137, "OOMKilled", "HostOutOfMemory"),
        "baseline": (91, None, "ModelUnusable"),
        "train": (88, None, "TrainingDiverged"),
        "evaluate": (137, "OOMKilled", "HostOutOfMemory"),
        "publish": (83, None, "AccessDenied"),
    }
    for stage in STAGES:
        operated.apply(stage, compute={"maxRetries": 0})
    for stage in STAGES:
        for name in STAGES[STAGES.index(stage) + 1 :]:
            operated.succeed(stage, name=name)
        code, reason, cause = signs[stage]
        operated.fail(stage, code, reason, name=stage)
        failed = operated.wait_phase("Failed", stage)
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


def test_a_full_volume_ends_the_run_by_name_whatever_the_container_says(operated: Runs) -> None:
    evictions = {"killed": (137, ""), "saved": (85, "Interrupted")}
    for name in evictions:
        operated.apply(name)
    for name, (code, cause) in evictions.items():
        [pod] = operated.pods(operated.begin("prepare", name=name))
        told = operated.report(pod, outcome="Failed", exitCode=code, cause=cause, message="saved") if cause else ""
        operated.player.evict(pod, 'Usage of EmptyDir volume "scratch" exceeds the limit "1Gi". ', code, told)
    for name in evictions:
        failed = operated.wait_phase("Failed", name, reason="DiskFull")
        assert 'EmptyDir volume "scratch" exceeds the limit "1Gi"' in failed.message
        assert "scratchSize" in failed.next_step


def test_an_image_without_a_runner_ends_the_run_by_name(operated: Runs) -> None:
    operated.apply()
    text = 'failed to create task: exec: "finetune-runner": executable file not found in $PATH'
    operated.fail("prepare", 128, "StartError", text)
    failed = operated.wait_phase("Failed", reason="ImageUnusable")
    assert "executable file not found" in failed.message
    assert "runner image" in failed.next_step


def test_a_stage_no_node_can_hold_is_named_within_a_minute(operated: Runs) -> None:
    pool = operated.namespace
    operated.cluster.kubectl(
        "patch", "gpupool", pool, "--type=merge", "-p", '{"spec": {"gpuPod": {"cpu": "4000", "memory": "32Gi"}}}'
    )
    operated.apply()
    operated.succeed("prepare")
    status = operated.wait_phase("Baseline", reason="Unschedulable")
    assert "Insufficient cpu" in status.message


def test_disruptions_cost_no_retry_and_the_stage_goes_on(operated: Runs) -> None:
    disruptions = {
        "PreemptionByScheduler": "Preempted",
        "EvictionByEvictionAPI": "Evicted",
        "DeletionByTaintManager": "NodeLost",
    }
    operated.apply(compute={"maxRetries": 0})
    reach(operated, "train")
    for attempt, (disruption, cause) in enumerate(disruptions.items(), start=1):
        status = operated.begin("train", attempt=attempt)
        [pod] = operated.pods(status)
        operated.player.disruption(pod, disruption, "the node is needed")
        operated.player.fail(pod, 143)
        operated.wait_stage("train", attempt=attempt + 1)
        ended = operated.status().stages[-2]
        assert (ended.cause, ended.counts_against_retries) == (cause, False)
    operated.succeed("train", attempt=len(disruptions) + 1)
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
