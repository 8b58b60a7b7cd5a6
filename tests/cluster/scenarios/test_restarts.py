"""The operator dies at any moment; whoever starts next ends every run the same way, and nothing happens twice."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from kubernetes import client

from finetune_api.stages import STAGES
from tests.cluster.harness.controlplane import ControlPlane
from tests.cluster.harness.operator_process import OperatorProcess
from tests.cluster.scenarios.story import Scene, Story

Replica = Callable[[], OperatorProcess]


def ends_once(story: Story) -> None:
    """The run ends with a version, one attempt per stage."""
    status = story.finish()
    assert (status["phase"], status["reason"]) == ("Succeeded", "AwaitingApproval")
    assert [(stage["name"], stage["attempt"]) for stage in status["stages"]] == [(name, 1) for name in STAGES]


def test_killed_in_every_phase(scene: Scene, replica: Replica) -> None:
    operator = replica().started().leading()
    stories = {stage: scene.story(f"in-{stage}", adapter=f"of-{stage}") for stage in STAGES}
    for stage, story in stories.items():
        story.play_to(stage)
        story.run(stage)
    finished = scene.story("finished", adapter="of-finished")
    finished.play_from("prepare")
    operator.kill()
    for stage, story in stories.items():
        story.end_well(stage)
    stories["nothing"] = scene.story("in-nothing", adapter="of-nothing")
    replica().started().leading()
    for story in stories.values():
        ends_once(story)
    assert finished.status()["run"] == 1
    assert len(scene.objects("adapterversions")) == len(stories) + 1
    scene.assert_nothing_twice()


@pytest.mark.parametrize("stage", ["prepare", "train"])
def test_killed_as_soon_as_a_stage_is_announced(scene: Scene, replica: Replica, stage: str) -> None:
    operator = replica().started().leading()
    story = scene.story()
    story.play_to(stage)
    operator.kill()
    replica().started().leading()
    ends_once(story)
    assert list(scene.objects("adapterversions")) == ["triage-v1"]
    scene.assert_nothing_twice()


def test_killed_between_the_announcement_and_the_job(scene: Scene, replica: Replica) -> None:
    operator = replica().started().leading()
    none = client.V1ResourceQuota(
        metadata=client.V1ObjectMeta(name="no-jobs"), spec=client.V1ResourceQuotaSpec(hard={"count/jobs.batch": "0"})
    )
    scene.core.create_namespaced_resource_quota(scene.namespace, none)
    story = scene.story()
    status = story.wait(
        lambda seen: seen if "exceeded quota" in seen.get("message", "") else None, "the refusal in the status"
    )
    assert [stage["state"] for stage in status["stages"]] == ["Pending"]
    assert scene.jobs() == {}
    operator.kill()
    scene.core.delete_namespaced_resource_quota("no-jobs", scene.namespace)
    replica().started().leading()
    ends_once(story)
    scene.assert_nothing_twice()


def test_the_api_server_restarts_in_the_middle(scene: Scene, replica: Replica) -> None:
    if not isinstance(scene.cluster, ControlPlane):
        pytest.skip("a given cluster is not restarted")
    operator = replica().started().leading()
    story = scene.story()
    story.play_to("train")
    story.run("train")
    scene.cluster.restart_apiserver()
    story.end_well("train")
    if not operator.running:  # it gave the lease up, as it must when it cannot renew; Kubernetes starts it again
        assert operator.wait() == 75
        replica().started().leading()
    ends_once(story)
    scene.assert_nothing_twice()
