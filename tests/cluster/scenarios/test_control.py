"""What a person does to a job that runs: suspend, resume, cancel, edit."""

from __future__ import annotations

import pytest
from kubernetes.client.exceptions import ApiException

from tests.cluster.scenarios.story import Scene

pytestmark = pytest.mark.usefixtures("operator")


@pytest.mark.parametrize("stage", ["prepare", "train", "publish"])
def test_suspend_stops_the_pods_and_resume_starts_a_new_attempt(scene: Scene, stage: str) -> None:
    story = scene.story()
    story.play_to(stage)
    story.run(stage)
    story.edit(suspend=True)
    story.wait_children_of_attempt_gone()
    status = story.wait_phase("Suspended")
    assert status["stages"][-1]["state"] == "Stopped"
    story.edit(suspend=False)
    story.play(stage, attempt=2)
    status = story.finish()
    assert status["reason"] == "AwaitingApproval"
    assert [entry["state"] for entry in status["stages"] if entry["name"] == stage] == ["Stopped", "Succeeded"]
    assert list(scene.objects("adapterversions")) == ["triage-v1"]
    scene.assert_nothing_twice()


@pytest.mark.parametrize("stage", ["prepare", "train", "publish"])
def test_cancel_ends_the_run_and_publishes_nothing(scene: Scene, stage: str) -> None:
    story = scene.story()
    story.play_to(stage)
    story.run(stage)
    story.edit(cancel=True)
    story.wait_children_of_attempt_gone()
    status = story.wait_phase("Cancelled")
    assert status["stages"][-1]["state"] == "Stopped"
    assert scene.objects("adapterversions") == {}
    story.edit(cancel=False)
    assert story.wait(lambda seen: seen if seen["run"] == 2 else None, "run 2")["run"] == 2
    assert story.play_from("prepare")["reason"] == "AwaitingApproval"
    scene.assert_nothing_twice()


def test_an_edit_while_running_is_refused_with_the_fix(scene: Scene) -> None:
    story = scene.story()
    story.run("prepare")
    story.wait_phase("Preparing")
    with pytest.raises(ApiException, match=r"spec\.training cannot change: spec is immutable while the job runs"):
        story.edit(training={"seed": 7})
    story.edit(ttlSecondsAfterFinished=60)
    assert story.object()["spec"]["ttlSecondsAfterFinished"] == 60


def test_an_edit_after_the_end_makes_the_next_version(scene: Scene) -> None:
    story = scene.story()
    story.play_from("prepare")
    story.edit(training={"seed": 7})
    story.wait(lambda status: status["run"] == 2, "run 2")
    status = story.play_from("prepare")
    assert (status["run"], status["version"]["name"], status["reason"]) == (2, "triage-v2", "AwaitingApproval")
    assert [(run["run"], run["version"]) for run in status["history"]] == [(1, "triage-v1")]
    versions = scene.objects("adapterversions")
    assert {name: version["spec"]["origin"]["run"] for name, version in versions.items()} == {
        "triage-v1": 1,
        "triage-v2": 2,
    }
    scene.assert_nothing_twice()


def test_the_same_inputs_again_train_nothing(scene: Scene) -> None:
    scene.story("first", data_digest="same").play_from("prepare")
    second = scene.story("second", data_digest="same")
    second.play("prepare")
    status = second.wait_phase("Succeeded", reason="Unchanged")
    assert status["version"]["name"] == "triage-v1"
    assert [stage["name"] for stage in status["stages"]] == ["prepare"]
