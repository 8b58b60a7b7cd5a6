"""Every way a stage can fail is named with its cause, evidence and hint, and answered by its policy."""

from __future__ import annotations

import json
from typing import Any

import pytest
from kubernetes import client

from finetune_api.exit_codes import CAUSE_OF_EXIT_CODE
from finetune_api.stages import STAGES
from tests.cluster.harness.waiting import wait_for
from tests.cluster.scenarios.story import Scene, Story

pytestmark = pytest.mark.usefixtures("operator")


def no_retries(scene: Scene, name: str, **compute: Any) -> Story:
    """A story whose first counted failure is the end."""
    return scene.story(name, adapter=f"of-{name}", compute={"maxRetries": 0} | compute)


def last(story: Story) -> dict[str, Any]:
    """The newest attempt once it has failed."""

    def failed(status: dict[str, Any]) -> dict[str, Any]:
        return next((entry for entry in reversed(status.get("stages", [])) if entry["state"] == "Failed"), {})

    return story.wait(failed, "a failed attempt")


def test_every_exit_code_becomes_its_cause(scene: Scene) -> None:
    stories = {code: no_retries(scene, f"code-{int(code)}") for code in CAUSE_OF_EXIT_CODE}
    for code, story in stories.items():
        story.fail("prepare", int(code), story.report_of_failure("prepare", int(code)))
    seen = {code: last(story) for code, story in stories.items()}
    assert {code: entry["cause"] for code, entry in seen.items()} == CAUSE_OF_EXIT_CODE
    for code, entry in seen.items():
        assert entry["exitCode"] == code
        assert (entry["message"], entry["evidence"], entry["hint"]) == ("what happened", "the line", "what to do")
    told = stories[next(iter(stories))].wait_phase("Failed")
    assert told["nextStep"] == "what to do"
    assert "prepare failed: what happened" in told["message"]


def test_every_stage_can_fail(scene: Scene) -> None:
    for stage in STAGES:
        story = no_retries(scene, f"in-{stage}")
        story.play_to(stage)
        story.fail(stage, 83, story.report_of_failure(stage, 83))
        status = story.wait_phase("Failed", reason="AccessDenied")
        assert [entry["state"] for entry in status["stages"]][-1] == "Failed"
        assert stage in status["message"]
    assert scene.objects("adapterversions") == {}


@pytest.mark.parametrize(
    ("exit_code", "reason", "message", "cause", "evidence"),
    [
        (137, "OOMKilled", "", "HostOutOfMemory", "OOMKilled"),
        (137, None, "", "Killed", "exit code 137"),
        (3, None, "Traceback: no module", "InternalError", "Traceback: no module"),
        (1, None, '{"stage": "prepare", "broken', "InternalError", "exit code 1"),
    ],
)
def test_a_pod_that_died_without_a_report_is_diagnosed(
    scene: Scene, exit_code: int, reason: str | None, message: str, cause: str, evidence: str
) -> None:
    story = no_retries(scene, "dead")
    story.fail("prepare", exit_code, message, reason)
    status = story.wait_phase("Failed", reason=cause)
    assert evidence in status["stages"][-1]["evidence"]
    assert status["nextStep"]


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("PreemptionByScheduler", "Preempted"),
        ("EvictionByEvictionAPI", "Evicted"),
        ("DeletionByTaintManager", "NodeLost"),
    ],
)
def test_a_disruption_is_no_fault_of_the_job(scene: Scene, reason: str, cause: str) -> None:
    story = no_retries(scene, "disrupted")
    story.play_to("train")
    pod = story.run("train")
    scene.player.disruption(pod, reason)
    scene.player.fail(pod, 143)
    failed = last(story)
    assert (failed["cause"], failed["countsAgainstRetries"]) == (cause, False)
    story.play("train", attempt=2)
    assert story.finish()["reason"] == "AwaitingApproval"
    scene.assert_nothing_twice()


def test_a_pod_deleted_by_somebody_is_tried_again(scene: Scene) -> None:
    story = scene.story()
    pod = story.run("prepare")
    scene.core.delete_namespaced_pod(pod.metadata.name, scene.namespace)
    wait_for(lambda: scene.player.finish_deletions(scene.namespace), 60, "the pod to be asked to end")
    assert last(story)["cause"] == "Killed"
    story.play("prepare", attempt=2)
    scene.assert_nothing_twice()


def test_a_job_deleted_by_somebody_is_tried_again(scene: Scene) -> None:
    story = scene.story()
    story.run("prepare")
    entry = story.wait(lambda status: status["stages"][-1] if status["phase"] == "Preparing" else None, "prepare")
    story.wait(lambda status: status["stages"][-1]["state"] == "Running", "a running prepare")
    scene.batch.delete_namespaced_job(entry["jobName"], scene.namespace, propagation_policy="Background")
    wait_for(
        lambda: scene.player.finish_deletions(scene.namespace) >= 0 and entry["jobName"] not in scene.jobs(),
        60,
        "the Job to be gone",
    )
    assert last(story)["cause"] in ("JobDeleted", "Killed")
    story.play("prepare", attempt=2)
    assert story.finish()["reason"] == "AwaitingApproval"


def test_a_lost_report_is_read_again_from_storage(scene: Scene) -> None:
    story = no_retries(scene, "lost")
    story.play("prepare")
    pod = story.run("baseline")
    scene.player.succeed(pod, "")
    assert last(story)["cause"] == "ReportLost"
    assert story.wait_attempt("baseline", 2)["mode"] == "recover"
    pod = story.run("baseline", attempt=2)
    assert json.loads(pod.metadata.annotations["finetune.dev/task"])["mode"] == "recover"
    assert "nvidia.com/gpu" not in (pod.spec.containers[0].resources.limits or {}), "reading a report needs no GPU"
    story.play("baseline", attempt=2)
    assert story.finish()["reason"] == "AwaitingApproval"
    scene.assert_nothing_twice()


def test_less_memory_is_asked_of_the_gpu_after_it_ran_out(scene: Scene) -> None:
    story = no_retries(scene, "large")
    story.play_to("train")
    before = story.status()["plan"]
    story.fail("train", 86, story.report_of_failure("train", 86))
    failed = last(story)
    assert (failed["cause"], failed["countsAgainstRetries"]) == ("GPUOutOfMemory", False)
    assert "next attempt" in failed["message"]
    story.wait_attempt("train", 2)
    after = story.status()["plan"]
    products = {plan["microBatchSize"] * plan["gradientAccumulation"] for plan in (before, after)}
    assert len(products) == 1, "the effective batch stays"
    assert after != before


def test_storage_that_is_away_is_waited_for(scene: Scene) -> None:
    story = scene.story()
    story.fail("prepare", 82, story.report_of_failure("prepare", 82))
    status = story.wait_phase("Preparing", reason="Retrying")
    assert status["stages"][-1]["retryAt"]
    assert "StorageUnavailable" in status["message"]


def test_retries_end(scene: Scene) -> None:
    story = scene.story(compute={"maxRetries": 1})
    for attempt in (1, 2):
        story.wait_attempt("prepare", attempt)
        story.fail("prepare", 137)
    status = story.wait_phase("Failed", reason="Killed")
    assert "after 2 attempts" in status["message"]
    assert "StageStarting" in scene.events(story.name)


@pytest.mark.parametrize(
    ("reason", "cause"), [("ImagePullBackOff", "ImagePull"), ("CreateContainerConfigError", "ContainerConfig")]
)
def test_a_container_that_cannot_start_is_named_while_it_waits(scene: Scene, reason: str, cause: str) -> None:
    story = scene.story()
    [pod] = story.pods_of("prepare")
    scene.player.waiting(pod, reason, "no such thing: xyz")
    status = story.wait_phase("Preparing", reason=cause)
    assert "no such thing: xyz" in status["message"]
    assert status["nextStep"]
    assert cause in scene.events(story.name)
    assert story.play_from("prepare")["reason"] == "AwaitingApproval"


def test_too_few_gpus_are_named_and_waited_for(scene: Scene) -> None:
    scarce = "example.com/scarce-gpu"
    scene.make_pool(f"{scene.pool}-scarce", resourceName=scarce)
    story = scene.story(compute={"pool": f"{scene.pool}-scarce"})
    story.play("prepare")
    story.wait_attempt("baseline")
    status = story.wait_phase("Baseline", reason="Unschedulable")
    assert f"Insufficient {scarce}" in status["message"]
    more = {"status": {kind: {scarce: "8"} for kind in ("capacity", "allocatable")}}
    client.CoreV1Api(scene.cluster.api()).patch_node_status("played", more)
    assert story.finish()["reason"] == "AwaitingApproval"
    scene.remove_pool(f"{scene.pool}-scarce")
