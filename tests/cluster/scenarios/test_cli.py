"""The command line as people run it: a process with a kubeconfig of limited rights, against the real API server."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.cluster.harness.waiting import wait_for
from tests.cluster.scenarios.command_line import (
    DEADLINE_S,
    PEOPLE,
    PROGRAM,
    People,
    job_yaml,
    operator,
    story_of,
    write,
)
from tests.cluster.scenarios.story import GROUP, VERSION, Scene

__all__ = ["operator"]

pytestmark = pytest.mark.usefixtures("operator")


def test_from_submit_to_an_approved_version(scene: Scene, people: People) -> None:
    file = write(people, job_yaml(scene))
    assert "created (dry run: nothing was changed)" in people.ok("ada", "submit", file, "--dry-run=server")
    assert scene.objects("finetunejobs") == {}
    created = people.ok("ada", "submit", file)
    assert "finetunejob.finetune.dev/support created" in created
    assert f"next     kubectl finetune watch support -n {scene.namespace}" in created
    assert "support unchanged" in people.ok("ada", "submit", file)
    story = story_of(scene)
    story.play_to("train")
    story.run("train")
    story.wait(lambda status: status["stages"][-1]["state"] == "Running", "train to run")

    # What `list` shows is what kubectl shows.
    shown = people.ok("vera", "list").splitlines()
    kubectl = scene.cluster.kubectl("get", "ftj", "-n", scene.namespace, user="vera", groups=PEOPLE).stdout.splitlines()
    assert shown[0].split() == kubectl[0].split()
    assert [cell for cell in shown[1].split() if cell != "-"][:2] == kubectl[1].split()[:2]
    assert people.ok("vera", "list", "-o", "name") == "finetunejob.finetune.dev/support\n"
    status = people.ok("vera", "status", "support")
    for expected in ("Summary", "● 3/5 train     Running", "Gates", "f1 >= baseline + 0.05", "Conditions", "Next step"):
        assert expected in status
    assert f"kubectl finetune logs support -n {scene.namespace} -f" in status

    story.end_well("train")
    story.play_from("evaluate")
    wait_for(lambda: scene.objects("adapterversions")["triage-v1"].get("status"), 60, "the version's status")
    status = people.ok("vera", "status", "support")
    assert f"kubectl finetune approve triage@v1 -n {scene.namespace}" in status
    assert "0.890" in status
    assert yaml.safe_load(people.ok("vera", "status", "support", "-o", "yaml"))["status"]["phase"] == "Succeeded"

    approved = people.ok("abe", "approve", "triage@v1", "--reason", "read the report")
    assert "triage@v1: Approved, approved by abe" in approved
    decision = scene.objects("adapterversions")["triage-v1"]["spec"]["decisions"][0]
    assert (decision["by"], decision["decision"], decision["reason"]) == ("abe", "approve", "read the report")
    assert "released" in people.ok("vera", "wait", "support", "--for", "released", "--timeout", "60s").lower()
    versions = people.ok("vera", "versions", "triage")
    assert "approve by abe" in versions
    assert "channel stable serves v1" in versions
    assert "already decided" in people.refused("abe", "approve", "triage@v1")
    events = people.ok("ada", "events", "support")
    for reason in ("RunStarted", "StageSucceeded", "AwaitingApproval", "Scheduled"):
        assert reason in events


def test_people_without_the_right_are_told_which_one_is_missing(scene: Scene, people: People) -> None:
    file = write(people, job_yaml(scene))
    refused = people.refused("vera", "submit", file)
    assert "vera may not patch finetunejobs.finetune.dev" in refused
    assert "--clusterrole=finetune-author --user=vera" in refused
    people.ok("ada", "submit", file)
    for verb in ("suspend", "cancel"):
        assert "vera may not patch" in people.refused("vera", verb, "support")
    assert scene.objects("finetunejobs")["support"]["spec"].get("suspend", False) is False
    story = story_of(scene)
    story.play_from("prepare")
    refused = people.refused("ada", "approve", "triage@v1")
    assert "ada may not patch adapterversions.finetune.dev" in refused
    assert "--clusterrole=finetune-approver" in refused

    # The right to write without the right to decide: the admission policy's own words.
    scene.cluster.kubectl(
        *("create", "role", "writer", "-n", scene.namespace, "--verb=get,list,patch,update"),
        "--resource=adapterversions.finetune.dev",
    )
    scene.cluster.kubectl("create", "rolebinding", "w", "-n", scene.namespace, "--role=writer", "--user=ada")

    def told_by_policy() -> bool:
        return "the verb approve on adapterversions is missing" in people.run("ada", "approve", "triage@v1").stderr

    wait_for(told_by_policy, 60, "the policy's words")
    assert scene.objects("adapterversions")["triage-v1"]["spec"].get("decisions", []) == []
    elsewhere = people.end(people.start("vera", "list", "-n", "kube-system"))
    assert (elsewhere.returncode, "vera may not list" in elsewhere.stderr) == (2, True)
    assert people.end(people.start("vera", "list", "-A")).returncode == 2


def test_four_eyes_and_two_approvals_are_told(scene: Scene, people: People) -> None:
    scene.custom.create_namespaced_custom_object(
        *(GROUP, VERSION, scene.namespace, "adapters"),
        {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "Adapter",
            "metadata": {"name": "triage"},
            "spec": {"storage": {"uri": "s3://bucket/store"}, "policy": {"approvals": {"required": 2}}},
        },
    )
    written = yaml.safe_load(job_yaml(scene))
    # What the component four-eyes records.
    written["metadata"]["annotations"] = {"finetune.dev/requested-by": "abe"}
    people.ok("ada", "submit", write(people, yaml.safe_dump(written)))
    story_of(scene).play_from("prepare")
    assert "your own approval does not count" in people.refused("abe", "approve", "triage@v1")
    first = people.ok("amy", "approve", "triage@v1")
    assert "PendingApproval" in first
    assert "approvals 1 of 2; four eyes: anybody but the author (abe)" in first
    assert "channel stable serves nothing: no version is approved yet" in first
    rejected = people.ok("abe", "reject", "triage@v1", "--reason", "wrong on refunds")
    assert "Rejected, rejected by abe: wrong on refunds" in rejected
    gone = people.refused("vera", "wait", "support", "--for", "released", "--timeout", "60s", code=1)
    assert "rejected by abe" in gone


def test_two_people_decide_at_once_and_neither_is_lost(scene: Scene, people: People) -> None:
    people.ok("ada", "submit", write(people, job_yaml(scene)))
    story_of(scene).play_from("prepare")
    scene.custom.patch_namespaced_custom_object(
        *(GROUP, VERSION, scene.namespace, "adapters", "triage"), {"spec": {"policy": {"approvals": {"required": 2}}}}
    )
    both = [people.start(user, "approve", "triage@v1", "-n", scene.namespace) for user in ("abe", "amy")]
    for process in both:
        assert people.end(process).returncode == 0
    decisions = scene.objects("adapterversions")["triage-v1"]["spec"]["decisions"]
    assert {entry["by"] for entry in decisions} == {"abe", "amy"}


def test_a_failed_gate_cannot_be_approved_nor_waited_for(scene: Scene, people: People) -> None:
    people.ok("ada", "submit", write(people, job_yaml(scene)))
    story = story_of(scene)
    story.play_to("evaluate")
    gates = len(story.status()["resolved"]["gates"])
    evidence = {"candidate": 0.5, "reference": 0.71, "low": -0.3, "high": -0.1, "rows": 200}
    story.play("evaluate", {"metrics": {"f1": 0.5}, "comparisons": [evidence] * gates})
    story.play("publish")
    story.wait_phase("Succeeded", reason="GateFailed")
    assert "gate failed: f1 >= baseline + 0.05" in people.refused("abe", "approve", "triage@v1")
    told = people.refused("vera", "wait", "support", "--for", "released", "--timeout", "60s", code=3)
    assert "a gate failed" in told
    people.ok("vera", "wait", "support", "--for", "complete", "--timeout", "60s")
    assert people.run("vera", "watch", "support").returncode == 3


def test_suspend_resume_cancel_and_retry(scene: Scene, people: People) -> None:
    people.ok("ada", "submit", write(people, job_yaml(scene)))
    story = story_of(scene)
    story.run("prepare")
    story.wait(lambda status: status["stages"][-1]["state"] == "Running", "prepare to run")
    assert "not suspended" in people.refused("ada", "resume", "support")
    assert "has not ended" in people.refused("ada", "retry", "support")
    assert "save a checkpoint" in people.ok("ada", "suspend", "support")
    story.wait_children_of_attempt_gone()
    story.wait_phase("Suspended")
    people.ok("vera", "wait", "support", "--for", "suspended", "--timeout", "30s")
    assert f"kubectl finetune resume support -n {scene.namespace}" in people.ok("vera", "status", "support")
    assert "goes on" in people.ok("ada", "resume", "support")
    story.wait_attempt("prepare", 2)
    assert "cancelled" in people.ok("ada", "cancel", "support")
    story.wait_children_of_attempt_gone()
    story.wait_phase("Cancelled")
    assert "nothing to cancel" in people.refused("ada", "cancel", "support")
    assert "has ended and is not Complete" in people.refused(
        "vera", "wait", "support", "--for", "complete", "--timeout", "60s", code=1
    )

    assert "run 2 is asked for" in people.ok("ada", "retry", "support")
    story.wait(lambda status: status["run"] == 2, "run 2")
    story.fail("prepare", 81)
    story.wait_phase("Failed")
    generation = story.object()["metadata"]["generation"]
    status = people.ok("vera", "status", "support")
    assert f"kubectl finetune retry support -n {scene.namespace}" in status
    assert "InvalidData" in status
    assert "exit code 81" in status
    people.ok("ada", "retry", "support")
    story.wait(lambda status: status["run"] == 3, "run 3")
    assert story.object()["metadata"]["generation"] == generation
    assert story.play_from("prepare")["phase"] == "Succeeded"
    assert story.status()["run"] == 3


def test_what_the_api_server_refuses_is_shown_as_our_own_validation_shows_it(scene: Scene, people: People) -> None:
    text = job_yaml(scene)
    file = write(people, text.replace("model:", "modle:"))
    told = people.refused("ada", "submit", file)
    assert "job.yaml:6: spec.modle" in told
    assert "did you mean model?" in told
    people.ok("ada", "submit", write(people, text))
    story_of(scene).wait_attempt("prepare")
    file = write(people, text + "  training: {epochs: 2}\n")
    told = people.refused("ada", "submit", file)
    line = (people.folder / file).read_text().splitlines().index("  training: {epochs: 2}") + 1
    assert f"job.yaml:{line}: spec.training is refused: spec.training cannot change" in told
    assert "fix: wait until it has finished, or set cancel: true first" in told
    told = people.refused("ada", "submit", write(people, text.replace("s3://team-a", "file:///data")))
    assert "spec.data.train[0].source is file:///data/train.jsonl: file:// works only without a cluster" in told


def test_errors_are_sentences_with_a_fix(scene: Scene, people: People) -> None:
    people.ok("ada", "submit", write(people, job_yaml(scene, "support-triage")))
    missing = people.refused("vera", "status", "suport-triage")
    assert "there is no FineTuneJob suport-triage" in missing
    assert "Did you mean support-triage?" in missing
    assert "Write complete, released" in people.refused("vera", "wait", "support-triage", "--for", "done")
    timed_out = people.run("vera", "wait", "support-triage", "--for", "complete", "--timeout", "1s")
    assert timed_out.returncode == 124
    cases = {
        "there is no kubeconfig": {"KUBECONFIG": "/nowhere/config"},
        "there is no context other": {"arguments": ("--context", "other")},
    }
    for expected, how in cases.items():
        arguments = how.get("arguments", ())
        environment = {name: value for name, value in how.items() if name == "KUBECONFIG"}
        result = people.run("vera", "list", *arguments, **environment)  # type: ignore[arg-type]
        assert result.returncode == 2
        assert expected in result.stderr


def test_an_api_server_that_is_not_there_or_does_not_know_us(scene: Scene, people: People, tmp_path: Path) -> None:
    config = yaml.safe_load(scene.cluster.kubeconfig("vera", PEOPLE).read_text())
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    gone = tmp_path / "gone.kubeconfig"
    gone.write_text(yaml.safe_dump(config))
    result = people.run("vera", "list", KUBECONFIG=str(gone))
    assert result.returncode == 1
    assert "the API server https://127.0.0.1:1 does not answer: " in result.stderr
    assert "refused" in result.stderr

    config = yaml.safe_load(scene.cluster.kubeconfig("vera", PEOPLE).read_text())
    config["users"][0]["user"] = {"token": "expired"}
    wrong = tmp_path / "wrong.kubeconfig"
    wrong.write_text(yaml.safe_dump(config))
    result = people.run("vera", "list", KUBECONFIG=str(wrong))
    assert result.returncode == 2
    assert "does not accept your credentials" in result.stderr

    wrong.write_text("clusters: [")
    result = people.run("vera", "list", KUBECONFIG=str(wrong))
    assert result.returncode == 2
    assert "cannot be used" in result.stderr


def test_completion_offers_verbs_and_names(scene: Scene, people: People) -> None:
    people.ok("ada", "submit", write(people, job_yaml(scene)))

    def complete(*words: str) -> list[str]:
        program = str(PROGRAM).replace("kubectl-finetune", "kubectl_complete-finetune")
        environment = os.environ | {"KUBECONFIG": str(scene.cluster.kubeconfig("vera", PEOPLE))}
        done = subprocess.run(
            [program, *words], env=environment, capture_output=True, text=True, check=True, timeout=DEADLINE_S
        )
        return done.stdout.splitlines()

    assert [line.split("\t")[0] for line in complete("sus")] == ["suspend", ":4"]
    assert complete("status", "-n", scene.namespace, "su") == ["support", ":4"]
    assert complete("status", "--context", "other", "su") == [":4"]
