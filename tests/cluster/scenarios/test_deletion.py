"""Deleting a job at any moment leaves nothing but its releases; a name may be used again at once."""

from __future__ import annotations

import pytest

from finetune_api.stages import STAGES
from tests.cluster.harness.waiting import wait_for
from tests.cluster.scenarios.story import Scene

pytestmark = pytest.mark.usefixtures("operator")


def test_deletion_in_every_phase_leaves_nothing_but_releases(scene: Scene) -> None:
    stories = [scene.story(f"in-{stage}", adapter=f"of-{stage}") for stage in STAGES]
    for stage, story in zip(STAGES, stories, strict=True):
        story.play_to(stage)
        story.run(stage)
    finished = scene.story("finished", adapter="triage")
    finished.play_from("prepare")
    waiting = scene.story("waiting", adapter="of-nobody", compute={"pool": "missing"})
    waiting.wait_phase("Pending", reason="PoolNotFound")
    everybody = [*stories, finished, waiting]
    for story in everybody:
        story.delete()
    for story in everybody:
        story.wait_children_gone()
    assert scene.objects("finetunejobs") == {}
    assert scene.core.list_namespaced_service(scene.namespace).items == []
    assert list(scene.objects("adapterversions")) == ["triage-v1"]
    assert set(scene.objects("adapters")) == {"triage", *(f"of-{stage}" for stage in STAGES)}


def test_a_name_is_used_again_at_once(scene: Scene) -> None:
    first = scene.story()
    first.play_to("train")
    [old] = [first.run("train")]
    first.delete()
    second = scene.story()
    assert second.uid != first.uid
    status = second.play_from("prepare")
    assert (status["run"], status["reason"]) == (1, "AwaitingApproval")
    [version] = scene.objects("adapterversions").values()
    assert version["spec"]["origin"]["uid"] == second.uid
    wait_for(lambda: scene.player.finish_deletions(scene.namespace) == 0, 60, "the old pods to be gone")
    first.wait_children_gone()
    assert old.metadata.name not in {pod.metadata.name for pod in scene.player.pods(scene.namespace)}
    assert len(scene.jobs()) == len(STAGES)
    scene.assert_nothing_twice()


def test_children_go_after_their_time_and_the_job_stays(scene: Scene) -> None:
    story = scene.story(ttlSecondsAfterFinished=0)
    story.play_from("prepare")
    story.wait_children_gone()
    status = story.status()
    assert (status["phase"], status["run"], status["version"]["name"]) == ("Succeeded", 1, "triage-v1")
    assert len(status["stages"]) == len(STAGES)


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
        60,
        "the Job of run 1 to be gone",
    )
    assert story.finish()["reason"] == "AwaitingApproval"
