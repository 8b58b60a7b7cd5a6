"""Adapters, their versions, approvals and channels."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cluster.harness.waiting import wait_for
from tests.cluster.scenarios.story import GROUP, VERSION, Scene

pytestmark = pytest.mark.usefixtures("operator")
PEOPLE = ("system:authenticated",)


def decide(scene: Scene, version: str, user: str, decision: str = "approve") -> None:
    """A person with the role of an approver decides."""
    scene.cluster.kubectl(
        *("create", "rolebinding", f"approver-{user}", "-n", scene.namespace),
        *("--clusterrole=finetune-approver", f"--user={user}"),
    )
    patch = json.dumps({"spec": {"decisions": [{"by": user, "decision": decision}]}})
    command = ("patch", "adapterversion", version, "-n", scene.namespace, "--type=merge", "-p", patch)
    wait_for(
        lambda: scene.cluster.kubectl(*command, user=user, groups=PEOPLE, check=False).returncode == 0,
        30,
        f"{user} to be allowed to {decision}",
        context=lambda: scene.cluster.kubectl(*command, user=user, groups=PEOPLE, check=False).stderr,
    )


def status_of(scene: Scene, plural: str, name: str) -> dict[str, Any]:
    """The status of an Adapter or AdapterVersion."""
    status: dict[str, Any] = scene.objects(plural)[name].get("status", {})
    return status


def wait_version(scene: Scene, name: str, phase: str) -> dict[str, Any]:
    """Wait for a version's phase; its status then."""

    def reached() -> dict[str, Any]:
        status = status_of(scene, "adapterversions", name)
        return status if status.get("phase") == phase else {}

    return wait_for(reached, 60, f"{name} to be {phase}", context=lambda: str(scene.objects("adapterversions")))


def channels(scene: Scene) -> dict[str, str]:
    """What each channel of the Adapter serves."""
    listed = status_of(scene, "adapters", "triage").get("channels", [])
    return {channel["name"]: channel.get("version", "") for channel in listed}


def test_a_version_is_served_once_a_person_approves_and_a_rollback_is_one_edit(scene: Scene) -> None:
    story = scene.story()
    story.play_from("prepare")
    assert "waits for approval" in wait_version(scene, "triage-v1", "PendingApproval")["message"]
    scene.custom.patch_namespaced_custom_object(
        *(GROUP, VERSION, scene.namespace, "adapters", "triage"),
        {"spec": {"channels": [{"name": "stable", "version": "latestApproved"}]}},
    )
    wait_for(lambda: channels(scene) == {"stable": ""}, 60, "the channel to be empty")
    decide(scene, "triage-v1", "ada")
    approved = wait_version(scene, "triage-v1", "Approved")
    assert "ada" in approved["message"]
    wait_for(lambda: channels(scene) == {"stable": "v1"}, 60, "the channel to serve v1")
    wait_for(lambda: story.status_condition("Released") == "True", 60, "the job to be Released")

    story.edit(training={"seed": 7})
    story.wait(lambda status: status["run"] == 2, "run 2")
    story.play_from("prepare")
    assert status_of(scene, "adapters", "triage")["channels"][0]["version"] == "v1"
    decide(scene, "triage-v2", "grace")
    wait_for(lambda: channels(scene) == {"stable": "v2"}, 60, "the channel to serve v2")
    scene.custom.patch_namespaced_custom_object(
        *(GROUP, VERSION, scene.namespace, "adapters", "triage"),
        {"spec": {"channels": [{"name": "stable", "version": "v1"}]}},
    )
    wait_for(lambda: channels(scene) == {"stable": "v1"}, 60, "the channel to be back at v1")
    assert "ChannelMoved" in scene.events("triage")


def test_a_failed_gate_publishes_a_version_that_cannot_be_approved(scene: Scene) -> None:
    story = scene.story()
    story.play_to("evaluate")
    gates = len(story.status()["resolved"]["gates"])
    evidence = {
        "candidate": 0.5,
        "reference": 0.71,
        "referenceName": "prompted",
        "low": -0.3,
        "high": -0.1,
        "rows": 200,
    }
    story.play("evaluate", {"metrics": {"f1": 0.5}, "comparisons": [evidence] * gates})
    story.play("publish")
    status = story.wait_phase("Succeeded", reason="GateFailed")
    assert status["verdict"] == "Failed"
    wait_version(scene, "triage-v1", "GateFailed")
    decide(scene, "triage-v1", "ada")
    wait_for(
        lambda: status_of(scene, "adapterversions", "triage-v1").get("observedGeneration") == 2,
        60,
        "the decision to be looked at",
    )
    assert status_of(scene, "adapterversions", "triage-v1")["phase"] == "GateFailed"
