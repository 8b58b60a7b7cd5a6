from __future__ import annotations

import json

import pytest

from tests.cli.conftest import JOB, Workspace


def test_approve_then_the_channel_serves_it(workspace: Workspace) -> None:
    workspace.cli("run", "job.yaml")
    result = workspace.cli("approve", "support-triage@v1", "--reason", "looked at 50", "--as", "grace")

    assert result.returncode == 0, result.stderr
    assert "support-triage@v1: Approved, approved by grace" in result.stdout
    assert "channel stable serves v1" in result.stdout
    assert "four eyes are not asked for in a local registry" in result.stdout
    listed = json.loads(workspace.cli("versions", "support-triage", "-o", "json").stdout)
    decisions = listed["items"][0]["spec"]["decisions"]
    assert [(item["by"], item["decision"], item["reason"]) for item in decisions] == [
        ("grace", "approve", "looked at 50")
    ]
    assert listed["adapter"]["status"]["channels"][0]["digest"] == listed["items"][0]["spec"]["digest"]

    for again, said in (("grace", "already decided"), ("linus", "already approved")):
        refused = workspace.cli("approve", "support-triage@v1", "--as", again)
        assert refused.returncode == 2
        assert said in refused.stderr


def test_reject_leaves_the_channel_empty(workspace: Workspace) -> None:
    workspace.cli("run", "job.yaml")
    result = workspace.cli("reject", "support-triage@v1", "--reason", "wrong on refunds")

    assert result.returncode == 0
    assert "Rejected, rejected by ada: wrong on refunds" in result.stdout
    assert "channel stable serves nothing" in result.stdout


def test_version_whose_gate_failed_cannot_be_approved(workspace: Workspace) -> None:
    workspace.plan(evaluate={"verdict": "Failed"})
    workspace.cli("run", "job.yaml")
    result = workspace.cli("approve", "support-triage@v1")

    assert result.returncode == 2
    assert "gate failed: f1 > baseline" in result.stderr


def test_second_version_is_compared_with_the_approved_one(workspace: Workspace) -> None:
    workspace.cli("run", "job.yaml")
    workspace.cli("approve", "support-triage@v1")
    workspace.write(JOB.replace("2e-4", "3e-4"))
    workspace.cli("run", "job.yaml")
    shown = workspace.cli("versions", "support-triage").stdout

    assert workspace.job()["status"]["resolved"]["incumbent"] == "v1"
    assert "PendingApproval" in shown
    assert "channel stable serves v1" in shown
    listed = workspace.cli("list").stdout
    assert "f1 0.40->0.90" in listed
    assert "support-triage-v2" in listed
    status = workspace.cli("status", "support-triage").stdout
    assert "3/5 train     Succeeded" in status
    assert "finetune approve support-triage@v2" in status


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["approve", "support-triage@v1"], "no local registry"),
        (["approve", "support-triage"], "ADAPTER@VERSION"),
        (["approve", "../../x@v1"], "ADAPTER@VERSION"),
        (["status", "../x"], "no local registry"),
        (["lst"], "finetune list"),
        (["try", "support-triage@v1", " "], "TEXT is empty"),
    ],
)
def test_what_cannot_be_done_is_exit_code_2_with_the_fix(workspace: Workspace, arguments: list[str], said: str) -> None:
    result = workspace.cli(*arguments)

    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_unknown_version_and_adapter_name_those_that_exist(workspace: Workspace) -> None:
    workspace.cli("run", "job.yaml")

    assert "There are: v1." in workspace.cli("approve", "support-triage@v7").stderr
    assert "There are: support-triage." in workspace.cli("versions", "other").stderr
