"""A FineTuneJob goes from `kubectl apply` to an AdapterVersion that waits for approval."""

from __future__ import annotations

import json

import pytest

from finetune_api.stages import STAGES, StageTask
from tests.cluster.scenarios.story import Scene

pytestmark = pytest.mark.usefixtures("operator")


def test_from_apply_to_a_version(scene: Scene) -> None:
    story = scene.story()
    status = story.play_from("prepare")
    assert (status["phase"], status["reason"], status["verdict"]) == ("Succeeded", "AwaitingApproval", "Passed")
    assert [(stage["name"], stage["attempt"], stage["state"]) for stage in status["stages"]] == [
        (name, 1, "Succeeded") for name in STAGES
    ]
    assert list(scene.objects("adapters")) == ["triage"]
    [version] = scene.objects("adapterversions").values()
    assert version["metadata"]["name"] == status["version"]["name"] == "triage-v1"
    origin = version["spec"]["origin"]
    assert (origin["job"], origin["uid"], origin["run"]) == ("support", story.uid, 1)
    assert "ownerReferences" not in version["metadata"], "a version outlives its job"
    scene.assert_nothing_twice()


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
    assert "kubectl finetune approve triage@v1" in story.status()["nextStep"]


def test_every_transition_is_an_event(scene: Scene) -> None:
    story = scene.story()
    story.play_from("prepare")
    reasons = scene.events(story.name)
    assert reasons.count("StageStarting") == reasons.count("StageSucceeded") == len(STAGES)
    assert reasons.count("RunStarted") == reasons.count("AwaitingApproval") == 1


def test_a_gang_trains_on_two_nodes_and_meets_through_a_service(scene: Scene) -> None:
    story = scene.story(compute={"nodes": 2, "gpusPerNode": 4})
    story.play_to("train")
    pods = story.pods_of("train")
    assert [pod.spec.containers[0].resources.limits["nvidia.com/gpu"] for pod in pods] == ["4", "4"]
    service = scene.core.read_namespaced_service(story.status()["stages"][-1]["jobName"], scene.namespace)
    assert (service.spec.cluster_ip, service.spec.publish_not_ready_addresses) == ("None", True)
    assert story.play_from("train")["reason"] == "AwaitingApproval"
    assert len(story.pods_of_now()) == 1, "publish runs alone"
    scene.assert_nothing_twice()


def test_a_pod_is_told_all_it_needs_and_no_more(scene: Scene) -> None:
    story = scene.story(model={"source": "s3://models/llama", "secretRef": {"name": "hub"}})
    [pod] = story.pods_of("prepare")
    task = StageTask.from_wire(json.loads(pod.metadata.annotations["finetune.dev/task"]))
    assert (task.job.uid, task.job.run, task.stage, task.attempt) == (story.uid, 1, "prepare", 1)
    assert pod.spec.automount_service_account_token is False
    assert [volume.secret.secret_name for volume in pod.spec.volumes if volume.secret] == ["hub"]
    assert "nvidia.com/gpu" not in (pod.spec.containers[0].resources.limits or {}), "no GPU before the plan"
