"""The command line as people run it: a process with a kubeconfig of limited rights, against the real API server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.controlplane import ControlPlane
from tests.cluster.harness.log_server import LogServer
from tests.cluster.harness.operator_process import OperatorProcess
from tests.cluster.harness.waiting import wait_for
from tests.cluster.scenarios.story import GROUP, VERSION, Scene, Story

pytestmark = pytest.mark.usefixtures("operator")

PROGRAM = Path(sys.executable).with_name("kubectl-finetune")
PEOPLE = ("system:authenticated",)
ROLES = {"ada": "edit", "vera": "view", "abe": "finetune-approver", "amy": "finetune-approver"}
"""Who the tests are: an author, a viewer, two approvers. Nobody has a right in another namespace."""
DEADLINE_S = 90
Result = subprocess.CompletedProcess[str]


class People:
    """Runs the command line as one person or another."""

    def __init__(self, scene: Scene, folder: Path) -> None:
        self.scene = scene
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []

    def start(self, user: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        kubeconfig = self.scene.cluster.kubeconfig(user, PEOPLE)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FINETUNE_", "KUBE"))}
        process = subprocess.Popen(
            [str(PROGRAM), *arguments],
            cwd=self.folder,
            env=inherited | {"KUBECONFIG": str(kubeconfig), "PYTHONUNBUFFERED": "1"} | environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.started.append(process)
        return process

    def run(self, user: str, *arguments: str, **environment: str) -> Result:
        """In the scene's namespace."""
        return self.end(self.start(user, *arguments, "-n", self.scene.namespace, **environment))

    def end(self, process: subprocess.Popen[str]) -> Result:
        out, err = process.communicate(timeout=DEADLINE_S)
        for text in (out, err):
            assert "Traceback" not in text
            assert "internal error" not in text
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def ok(self, user: str, *arguments: str) -> str:
        result = self.run(user, *arguments)
        assert result.returncode == 0, result.stderr or result.stdout
        return result.stdout

    def refused(self, user: str, *arguments: str, code: int = 2) -> str:
        result = self.run(user, *arguments)
        assert result.returncode == code, result.stdout + result.stderr
        return result.stderr


@pytest.fixture(scope="module")
def operator(installed: Cluster) -> Iterator[OperatorProcess]:
    """Keeps leading while the API server is restarted."""
    process = OperatorProcess(installed, name="operator-cli", extra=("--lease-seconds", "60"))
    yield process.started().leading()
    process.stop()


@pytest.fixture
def people(scene: Scene, tmp_path: Path) -> Iterator[People]:
    for user, role in ROLES.items():
        scene.cluster.kubectl(
            *("create", "rolebinding", user, "-n", scene.namespace, f"--clusterrole={role}", f"--user={user}")
        )
    made = People(scene, tmp_path)

    def effective() -> bool:
        check = ("auth", "can-i", "list", "finetunejobs.finetune.dev", "-n", scene.namespace)
        return all(
            scene.cluster.kubectl(*check, user=user, groups=PEOPLE, check=False).returncode == 0 for user in ROLES
        )

    wait_for(effective, 60, "the roles to be in force")
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def job_yaml(scene: Scene, name: str = "support", **spec: Any) -> str:
    """A small job as its author writes it."""
    manifest = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "FineTuneJob",
        "metadata": {"name": name},
        "spec": {
            "model": {"source": "s3://models/llama"},
            "data": {"train": [{"source": "s3://team-a/train.jsonl"}]},
            "compute": {"pool": scene.pool},
            "evaluation": {
                "task": {"type": "classification"},
                "metrics": [{"name": "f1"}],
                "gates": [{"metric": "f1", "over": "baseline", "minimumGain": 0.05}],
            },
            "output": {"adapterRef": {"name": "triage"}},
            **spec,
        },
    }
    return yaml.safe_dump(manifest, sort_keys=False)


def write(people: People, text: str) -> str:
    (people.folder / "job.yaml").write_text(text)
    return "job.yaml"


def story_of(scene: Scene, name: str = "support") -> Story:
    """The story of a job that somebody submitted."""
    return Story(scene, name, scene.objects("finetunejobs")[name]["metadata"]["uid"], "triage", "")


class Lines:
    """Waits for a line that matches; reads in a thread, so that a silent process cannot hold the test."""

    def __init__(self, process: subprocess.Popen[str], stream: str) -> None:
        self._process = process
        self._seen: list[str] = []
        pipe = getattr(process, stream)
        threading.Thread(target=lambda: self._seen.extend(iter(pipe.readline, "")), daemon=True).start()

    def __call__(self, pattern: str) -> str:
        def found() -> str:
            return next((line for line in self._seen if re.search(pattern, line)), "")

        def context() -> str:
            return f"exit code {self._process.poll()}: {''.join(self._seen)}"

        return wait_for(found, DEADLINE_S, f"a line {pattern!r}", context=context)

    def count(self, text: str) -> int:
        return sum(text in line for line in self._seen)


def lines_of(process: subprocess.Popen[str], stream: str = "stdout") -> Lines:
    """What a process writes from now on."""
    return Lines(process, stream)


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
