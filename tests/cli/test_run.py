from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.cli.conftest import JOB, Workspace


def test_first_run_ends_with_a_version_that_waits_for_approval(workspace: Workspace) -> None:
    result = workspace.cli("run", "job.yaml")

    assert result.returncode == 0, result.stderr
    for expected in (
        "5/5 publish done",
        "METRIC",
        "+0.500 (+0.450 to +0.550)",
        "f1 > baseline",
        "duplicates: rows were there twice; kept once (3 rows)",
        "support-triage-v1  file://",
        "finetune approve support-triage@v1",
        "four eyes are not asked for",
    ):
        assert expected in result.stdout
    assert "Traceback" not in result.stderr
    job = workspace.job()
    assert job["status"]["phase"] == "Succeeded"
    assert (job["metadata"]["generation"], len(job["metadata"]["uid"])) == (1, 36)
    assert job["metadata"]["annotations"]["finetune.dev/requested-by"] == "ada"
    assert job["spec"]["data"]["train"][0]["source"] == f"file://{workspace.folder}/tickets.jsonl"


def test_json_goes_to_stdout_and_progress_to_stderr(workspace: Workspace) -> None:
    result = workspace.cli("run", "job.yaml", "-o", "json")

    assert json.loads(result.stdout)["status"]["version"]["number"] == 1
    assert "3/5 train done" in result.stderr


def test_yaml_output_reads_back(workspace: Workspace) -> None:
    result = workspace.cli("run", "job.yaml", "-o", "yaml")

    assert YAML(typ="safe").load(result.stdout)["status"]["phase"] == "Succeeded"


def test_run_again_without_a_change_is_unchanged(workspace: Workspace) -> None:
    workspace.cli("run", "job.yaml")
    again = workspace.cli("run", "job.yaml")

    assert again.returncode == 0
    assert "Unchanged" in again.stdout
    status = workspace.job()["status"]
    assert (status["run"], status["version"]["number"]) == (2, 1)
    assert len(workspace.attempts("train")) == 1
    assert workspace.job()["metadata"]["generation"] == 1


def test_edited_yaml_makes_the_next_version(workspace: Workspace) -> None:
    workspace.cli("run", "job.yaml")
    workspace.write(JOB.replace("2e-4", "3e-4"))
    workspace.cli("run", "job.yaml")

    job = workspace.job()
    assert (job["status"]["run"], job["status"]["version"]["number"]) == (2, 2)
    assert job["metadata"]["generation"] == 2
    assert [summary["version"] for summary in job["status"]["history"]] == ["support-triage-v1"]


def test_changed_data_make_the_next_version(workspace: Workspace) -> None:
    workspace.cli("run", "job.yaml")
    with (workspace.folder / "tickets.jsonl").open("a") as file:
        file.write('{"prompt": "one more", "completion": "account"}\n')
    workspace.cli("run", "job.yaml")

    assert workspace.job()["status"]["version"]["number"] == 2


def test_overrides_replace_data_model_storage_and_name(workspace: Workspace) -> None:
    other = workspace.folder / "mine.jsonl"
    other.write_text('{"prompt": "a", "completion": "b"}\n')
    (workspace.folder / "other-base").mkdir()
    result = workspace.cli(
        "run", "job.yaml", "--data", "mine.jsonl", "--model", "other-base", "--storage", "store", "--name", "mine"
    )

    assert result.returncode == 0, result.stderr
    spec = workspace.job("mine")["spec"]
    assert spec["data"]["train"][0]["source"] == f"file://{other}"
    assert spec["model"]["source"] == f"file://{workspace.folder}/other-base"
    assert (workspace.folder / "store/default/support-triage/versions/v1/manifest.json").exists()
    prepared = workspace.job("mine")["status"]["results"]["prepare"]
    assert prepared["dataDigest"] == hashlib.sha256(other.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("verdict", "exit_code", "said"),
    [("Failed", 3, "may not be released"), ("Inconclusive", 4, "test rows would decide")],
)
def test_gates_decide_the_exit_code(workspace: Workspace, verdict: str, exit_code: int, said: str) -> None:
    workspace.plan(evaluate={"verdict": verdict})
    result = workspace.cli("run", "job.yaml")

    assert result.returncode == exit_code
    assert said in result.stdout


def test_failure_tells_cause_message_evidence_hint_and_log(workspace: Workspace) -> None:
    fail = {
        "exit_code": 81,
        "cause": "InvalidData",
        "message": "tickets.jsonl line 7 has no answer",
        "hint": "give it an answer",
        "evidence": '{"prompt": "x"}',
    }
    workspace.plan(prepare={"fail": fail})
    result = workspace.cli("run", "job.yaml")

    assert result.returncode == 1
    for expected in ("InvalidData", "line 7 has no answer", "give it an answer", '{"prompt": "x"}', "exit code 81"):
        assert expected in result.stdout
    log = next(line.split()[-1] for line in result.stdout.splitlines() if line.strip().startswith("log "))
    assert "prepare attempt 1 started" in Path(log).read_text()


def test_failed_job_runs_again_with_the_same_command(workspace: Workspace) -> None:
    workspace.plan(prepare={"fail": {"exit_code": 81, "cause": "InvalidData", "message": "bad"}})
    assert workspace.cli("run", "job.yaml").returncode == 1
    workspace.plan()
    assert workspace.cli("run", "job.yaml").returncode == 0
    assert workspace.job()["status"]["run"] == 2


def test_storage_that_never_answers_ends_the_command_and_the_same_command_tries_again(workspace: Workspace) -> None:
    fail = {"exit_code": 82, "cause": "StorageUnavailable", "message": "bucket b at http://s3:1 does not answer"}
    workspace.plan(prepare={"fail": fail})
    result = workspace.cli("run", "job.yaml")

    assert result.returncode == 1
    assert "bucket b at http://s3:1 does not answer" in result.stdout
    assert "the same command tries again" in result.stdout
    workspace.plan()
    assert workspace.cli("run", "job.yaml").returncode == 0
    assert workspace.job()["status"]["run"] == 1


def test_lost_report_is_read_again_from_storage(workspace: Workspace) -> None:
    workspace.plan(prepare={"say": "what?", "exitCode": 0})
    result = workspace.cli("run", "job.yaml")

    assert result.returncode == 0, result.stdout
    modes = [(stage["name"], stage["mode"]) for stage in workspace.job()["status"]["stages"]]
    assert modes[:2] == [("prepare", "run"), ("prepare", "recover")]


def test_yaml_of_a_cluster_runs_here_and_says_what_is_not_used(workspace: Workspace) -> None:
    text = JOB.replace(
        "  training:", "  serviceAccountName: runner\n  compute: {pool: a100-80, queue: team-a}\n  training:"
    )
    workspace.write(text)
    result = workspace.cli("run", "job.yaml")

    assert result.returncode == 0, result.stderr
    assert "compute.pool a100-80 is this machine" in result.stdout
    assert "compute.queue team-a is not waited for" in result.stdout
    assert "serviceAccountName is not used" in result.stdout


def test_more_gpus_than_there_are_is_refused(workspace: Workspace) -> None:
    workspace.environment["CUDA_VISIBLE_DEVICES"] = ""
    workspace.write(JOB.replace("  training:", "  compute: {gpusPerNode: 8}\n  training:"))
    result = workspace.cli("run", "job.yaml")

    assert result.returncode == 2
    assert "gpusPerNode: 8 asked" in result.stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (JOB.replace("learningRate", "learningrate"), "job.yaml:9: spec.training.learningrate"),
        (JOB.replace("file://base", "file://nowhere"), "there is no"),
        ("a: [", "is not valid YAML"),
        (JOB + "---" + JOB, "2 FineTuneJobs"),
    ],
)
def test_bad_yaml_is_exit_code_2_and_starts_nothing(workspace: Workspace, text: str, said: str) -> None:
    workspace.write(text)
    result = workspace.cli("run", "job.yaml")

    assert result.returncode == 2
    assert said in result.stderr
    assert not workspace.state.exists()
    assert "Traceback" not in result.stderr


def test_path_with_white_space_is_refused_with_the_fix(workspace: Workspace) -> None:
    (workspace.folder / "my tickets.jsonl").write_text("{}\n")
    result = workspace.cli("run", "job.yaml", "--data", "my tickets.jsonl")

    assert result.returncode == 2
    assert "white space" in result.stderr


def test_runner_that_cannot_be_started_is_named(workspace: Workspace) -> None:
    workspace.environment["FINETUNE_RUNNER_COMMAND"] = "/nowhere/runner"
    workspace.write(JOB.replace("  training:", "  compute: {maxRetries: 0}\n  training:"))
    result = workspace.cli("run", "job.yaml")

    assert result.returncode == 1
    assert "exit code 127" in result.stdout
    log = next(line.split()[-1] for line in result.stdout.splitlines() if line.strip().startswith("log "))
    assert "cannot start /nowhere/runner" in Path(log).read_text()


def test_state_of_another_version_is_refused_with_its_file(workspace: Workspace) -> None:
    workspace.cli("run", "job.yaml")
    file = workspace.state / "objects/finetunejob/default/support-triage.json"
    file.write_text(json.dumps(workspace.job() | {"fromTheFuture": 1}))
    result = workspace.cli("run", "job.yaml")

    assert result.returncode == 2
    assert str(file) in result.stderr
