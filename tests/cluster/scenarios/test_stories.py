"""What a person sees of a job and does to it, and what single accidents do."""

from __future__ import annotations

import json
import shlex
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from finetune_api.stages import STAGES, StageTask
from tests.cluster.harness.waiting import wait_for
from tests.cluster.scenarios.story import DEADLINE_S, Scene, Story

pytestmark = pytest.mark.usefixtures("operator")


def last_failure(story: Story) -> dict[str, Any]:
    """The newest failed attempt, once there is one."""

    def failed(status: dict[str, Any]) -> dict[str, Any]:
        return next((entry for entry in reversed(status.get("stages", [])) if entry["state"] == "Failed"), {})

    return story.wait(failed, "a failed attempt")


def test_kubectl_get_tells_the_story(scene: Scene) -> None:
    story = scene.story()
    story.play_to("train")
    story.run("train")
    story.wait_phase("Training")
    shown = scene.cluster.kubectl("get", "ftj", "-n", scene.namespace).stdout.splitlines()
    assert shown[0].split() == ["NAME", "PHASE", "PROGRESS", "VERSION", "VERDICT", "METRIC", "AGE"]
    assert shown[1].split()[:5] == ["support", "Training", "3/5", "train", "f1"]
    story.play_from("train")
    shown = scene.cluster.kubectl("get", "ftj", "-n", scene.namespace).stdout.splitlines()
    assert shown[1].split()[:-1] == ["support", "Succeeded", "5/5", "triage-v1", "Passed", "f1", "0.71->0.89"]
    wide = scene.cluster.kubectl("get", "ftj", "-n", scene.namespace, "-o", "wide").stdout.splitlines()
    assert "s3://models/llama" in wide[1]

    # The hint is a command that works as it stands, once the name is filled in.
    scene.cluster.kubectl(
        "create", "rolebinding", "ada", "-n", scene.namespace, "--clusterrole=finetune-approver", "--user=ada"
    )
    typed = shlex.split(story.status()["nextStep"].replace("YOUR-USER-NAME", "ada"))
    wait_for(
        lambda: (
            scene.cluster.kubectl(*typed[1:], user="ada", groups=("system:authenticated",), check=False).returncode == 0
        ),
        30,
        "the approval to be accepted",
    )
    decided = scene.objects("adapterversions")["triage-v1"]["spec"]["decisions"]
    assert [(d["by"], d["decision"]) for d in decided] == [("ada", "approve")]


def test_a_pod_is_told_all_it_needs_and_no_more(scene: Scene) -> None:
    story = scene.story(model={"source": "s3://models/llama", "secretRef": {"name": "hub"}})
    [pod] = story.pods_of("prepare")
    task = StageTask.from_wire(json.loads(pod.metadata.annotations["finetune.dev/task"]))
    assert (task.job.uid, task.job.run, task.stage, task.attempt) == (story.uid, 1, "prepare", 1)
    assert pod.spec.automount_service_account_token is False
    assert [volume.secret.secret_name for volume in pod.spec.volumes if volume.secret] == ["hub"]
    assert "nvidia.com/gpu" not in (pod.spec.containers[0].resources.limits or {}), "no GPU before the plan"


def test_a_pod_deleted_by_somebody_is_tried_again(scene: Scene) -> None:
    story = scene.story()
    pod = story.run("prepare")
    scene.core.delete_namespaced_pod(pod.metadata.name, scene.namespace)
    wait_for(lambda: scene.player.finish_deletions(scene.namespace), DEADLINE_S, "the pod to be asked to end")
    assert last_failure(story)["cause"] == "PodDeleted"
    story.play("prepare", attempt=2)
    scene.assert_nothing_twice()


def test_a_pod_whose_node_never_answers_does_not_hold_the_run(scene: Scene) -> None:
    story = scene.story()
    pod = story.run("prepare")
    # As the taint manager does it when a node stays NotReady; nobody plays the kubelet of that node any more.
    scene.core.delete_namespaced_pod(pod.metadata.name, scene.namespace, grace_period_seconds=1)
    story.wait(lambda status: status["stages"][-1]["attempt"] == 2, "the next attempt", deadline_s=150)
    assert story.status()["stages"][-2]["cause"] == "NodeLost"

    def gone() -> bool:
        return pod.metadata.name not in [left.metadata.name for left in scene.player.pods(scene.namespace)]

    wait_for(gone, DEADLINE_S, "the lost pod to be removed")
    story.play_from("prepare")
    scene.assert_nothing_twice()


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


def test_a_new_run_removes_the_children_of_the_one_before(scene: Scene) -> None:
    story = scene.story()
    story.fail("prepare", 81, story.report_of_failure("prepare", 81))
    story.wait_phase("Failed", reason="InvalidData")
    [before] = scene.jobs()
    story.edit(training={"seed": 7})
    story.wait(lambda status: status["run"] == 2, "run 2")
    story.play("prepare")
    wait_for(
        lambda: scene.player.finish_deletions(scene.namespace) >= 0 and before not in scene.jobs(),
        DEADLINE_S,
        "the Job of run 1 to be gone",
    )
    assert story.finish()["reason"] == "AwaitingApproval"


def test_suspended_in_every_stage_and_resumed(scene: Scene) -> None:
    def suspend_and_resume(stage: str) -> dict[str, Any]:
        story = scene.story(f"in-{stage}", adapter=f"of-{stage}")
        story.play_to(stage)
        story.run(stage)
        story.edit(suspend=True)
        story.wait_children_of_attempt_gone()
        stopped = story.wait_phase("Suspended")
        assert stopped["stages"][-1]["state"] == "Stopped"
        story.edit(suspend=False)
        story.play(stage, attempt=2)
        return story.finish()

    with ThreadPoolExecutor(len(STAGES)) as pool:
        ends = dict(zip(STAGES, pool.map(suspend_and_resume, STAGES), strict=True))
    for stage, status in ends.items():
        assert status["reason"] == "AwaitingApproval"
        states = [entry["state"] for entry in status["stages"] if entry["name"] == stage]
        assert states == ["Stopped", "Succeeded"], f"in {stage}"
    assert set(scene.objects("adapterversions")) == {f"of-{stage}-v1" for stage in STAGES}
    scene.assert_nothing_twice()
