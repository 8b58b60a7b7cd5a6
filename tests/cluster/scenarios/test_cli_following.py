"""The command line as people run it: watching a run and reading its logs, also while the API server restarts."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from tests.cluster.harness.controlplane import ControlPlane
from tests.cluster.harness.log_server import LogServer
from tests.cluster.scenarios.command_line import (
    DEADLINE_S,
    People,
    job_yaml,
    lines_of,
    operator,
    story_of,
    write,
)
from tests.cluster.scenarios.story import Scene

__all__ = ["operator"]

pytestmark = pytest.mark.usefixtures("operator")


def test_watch_ends_with_the_run_and_survives_the_api_server(scene: Scene, people: People) -> None:
    if not isinstance(scene.cluster, ControlPlane):
        pytest.skip("needs an API server that may be restarted")
    people.ok("ada", "submit", write(people, job_yaml(scene)))
    story = story_of(scene)
    watch = people.start("vera", "watch", "support", "-n", scene.namespace)
    line = lines_of(watch)
    story.run("prepare")
    line(r"^1/5 prepare started$")
    scene.cluster.restart_apiserver()
    story.end_well("prepare")
    line(r"^1/5 prepare done .*800 train, 100 validation, 200 test rows")
    story.play_from("baseline")
    line(r"^5/5 publish done")
    line(r"AwaitingApproval")
    line(rf"kubectl finetune approve triage@v1 -n {scene.namespace}")
    assert watch.wait(DEADLINE_S) == 0
    assert watch.stderr.read() == ""


def test_ctrl_c_ends_the_watching_and_not_the_job(scene: Scene, people: People) -> None:
    people.ok("ada", "submit", write(people, job_yaml(scene)))
    story = story_of(scene)
    watch = people.start("vera", "watch", "support", "-n", scene.namespace)
    story.run("prepare")
    lines_of(watch)(r"prepare started")
    watch.send_signal(signal.SIGINT)
    assert watch.wait(DEADLINE_S) == 130
    assert "support goes on" in watch.stderr.read()
    assert story.status()["phase"] == "Preparing"


def test_submit_and_watch_shows_live_progress(scene: Scene, people: People) -> None:
    file = write(people, job_yaml(scene))
    process = people.start("ada", "submit", file, "--watch", "-n", scene.namespace)
    line = lines_of(process)
    line("support created")
    story = story_of(scene)
    story.play("prepare")
    line(r"^1/5 prepare done")
    story.fail("baseline", 81)
    line(r"^warning: InvalidData: baseline attempt 1")
    line(r"^Failed: InvalidData")
    assert process.wait(DEADLINE_S) == 1


def test_logs_say_why_there_are_none(scene: Scene, people: People) -> None:
    text = job_yaml(scene, compute={"pool": scene.pool, "nodes": 1}, ttlSecondsAfterFinished=0)
    people.ok("ada", "submit", write(people, text))
    story = story_of(scene)
    story.wait_attempt("prepare")
    pod = story.pods_of("prepare")[0]
    scene.player.waiting(pod, "ImagePullBackOff", 'Back-off pulling image "runner:test"')
    story.wait(lambda status: status.get("reason") == "ImagePull", "the cause")
    told = people.refused("ada", "logs", "support", code=1)
    assert "prepare attempt 1 has no log yet: ImagePull" in told
    assert "runner:test" in told
    assert "no rank 3" in people.refused("ada", "logs", "support", "--rank", "3")
    assert "has not started train" in people.refused("ada", "logs", "support", "--stage", "train", code=1)
    assert "no attempt 4" in people.refused("ada", "logs", "support", "--attempt", "4")

    story.run("prepare")
    scene.player.fail(story.pods_of_now()[0], 81, None, story.report_of_failure("prepare", 81))
    story.wait_phase("Failed")
    story.wait_children_gone()
    told = people.refused("ada", "logs", "support", code=1)
    assert "the log of prepare attempt 1 went with its pod" in told
    assert "exit code 81" in told
    assert "evidence  the line" in told
    uid = story.object()["metadata"]["uid"]
    assert f"s3://bucket/store/{scene.namespace}/triage/runs/{uid}/1/prepare/report.json" in told


def test_json_lines_of_a_watch_are_statuses(scene: Scene, people: People) -> None:
    people.ok("ada", "submit", write(people, job_yaml(scene)))
    story = story_of(scene)
    watch = people.start("vera", "watch", "support", "-o", "json", "-n", scene.namespace)
    story.fail("prepare", 81)
    story.wait_phase("Failed")
    result = people.end(watch)
    assert result.returncode == 1
    phases = [json.loads(line)["phase"] for line in result.stdout.splitlines()]
    assert phases[-1] == "Failed"


def test_logs_are_those_of_the_attempt_and_go_on_with_the_next_stage(
    scene: Scene, people: People, node: str, tmp_path: Path
) -> None:
    if not isinstance(scene.cluster, ControlPlane):
        pytest.skip("serves logs for nodes that are made by hand")
    people.ok("ada", "submit", write(people, job_yaml(scene)))
    story = story_of(scene)
    with LogServer(scene.cluster, tmp_path) as kubelet:
        kubelet.attach(node)
        pod = story.run("prepare").metadata.name
        kubelet.write(pod, "reading rows", "1451 rows", "ein Umlaut: ü")
        assert people.ok("vera", "logs", "support") == "reading rows\n1451 rows\nein Umlaut: ü\n"
        assert people.ok("vera", "logs", "support", "--stage", "prepare", "--tail", "1") == "ein Umlaut: ü\n"
        assert re.match(r"\d{4}-.*Z reading rows\n", people.ok("vera", "logs", "support", "--timestamps"))

        following = people.start("vera", "logs", "support", "-f", "-n", scene.namespace)
        out, err = lines_of(following), lines_of(following, "stderr")
        err(rf"==> prepare attempt 1, rank 0, pod {pod}")
        out("1451 rows")
        kubelet.write(pod, "written later")
        out("written later")
        scene.cluster.restart_apiserver()
        kubelet.write(pod, "after the restart")
        out("after the restart")
        kubelet.end(pod)
        story.end_well("prepare")
        baseline = story.run("baseline").metadata.name
        kubelet.write(baseline, "measuring")
        err(rf"==> baseline attempt 1, rank 0, pod {baseline}")
        out("measuring")
        assert out.count("1451 rows") == out.count("written later") == 1
        kubelet.end(baseline)
        scene.player.fail(story.pods_of_now()[0], 81, None, story.report_of_failure("baseline", 81))
        assert following.wait(DEADLINE_S) == 0
