"""Ctrl-C, crashes, two at once: nothing is lost and nothing runs twice."""

from __future__ import annotations

import json
import os
import signal

import pytest

from finetune_cli.local.supervisor import process_identity
from tests.cli.conftest import DEADLINE_S, JOB, Workspace, wait_for


def test_ctrl_c_suspends_and_the_same_command_resumes(workspace: Workspace) -> None:
    workspace.hold_stage("train")
    first = workspace.start("run", "job.yaml")
    workspace.wait_until_held("train")
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=DEADLINE_S)

    assert first.returncode == 130, err
    assert "Suspended" in out
    assert "same command again resumes" in out
    status = workspace.job()["status"]
    assert status["phase"] == "Suspended"
    report = json.loads((workspace.attempts("train")[0] / "termination.json").read_text())
    assert report["exitCode"] == 85

    workspace.hold.touch()
    again = workspace.cli("run", "job.yaml")
    assert again.returncode == 0, again.stderr
    stages = [(stage["name"], stage["attempt"]) for stage in workspace.job()["status"]["stages"]]
    assert ("prepare", 2) not in stages
    assert ("train", 2) in stages
    assert workspace.job()["status"]["run"] == 1


def test_second_ctrl_c_kills_a_stage_that_does_not_listen(workspace: Workspace) -> None:
    workspace.hold_stage("train", ignoreTerm=True)
    process = workspace.start("run", "job.yaml")
    runner = workspace.wait_until_held("train")
    process.send_signal(signal.SIGINT)
    wait_for(lambda: list(workspace.attempts("train")[0].glob("stop.json")), "the stop to be asked for")
    assert process_identity(runner) is not None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=DEADLINE_S)

    assert process.returncode == 130
    assert process_identity(runner) is None
    assert json.loads((workspace.attempts("train")[0] / "exit.json").read_text())["exitCode"] == 137
    assert workspace.job()["status"]["phase"] == "Suspended"


def test_stage_survives_a_killed_command_line_and_is_adopted(workspace: Workspace) -> None:
    workspace.hold_stage("train")
    first = workspace.start("run", "job.yaml")
    runner = workspace.wait_until_held("train")
    first.kill()
    first.communicate()
    assert process_identity(runner) is not None

    second = workspace.start("run", "job.yaml")
    wait_for(lambda: str(second.pid) in (workspace.state / "run.lock").read_text(), "the second command to take over")
    workspace.hold.touch()
    out, err = second.communicate(timeout=DEADLINE_S)

    assert second.returncode == 0, err
    assert [(stage["name"], stage["attempt"]) for stage in workspace.job()["status"]["stages"]] == [
        ("prepare", 1),
        ("baseline", 1),
        ("train", 1),
        ("evaluate", 1),
        ("publish", 1),
    ]
    assert "3/5 train done" in out


def test_stage_that_ended_while_nobody_watched_is_read_from_its_files(workspace: Workspace) -> None:
    workspace.hold_stage("train")
    first = workspace.start("run", "job.yaml")
    workspace.wait_until_held("train")
    first.kill()
    first.communicate()
    workspace.hold.touch()
    wait_for((workspace.attempts("train")[0] / "exit.json").exists, "the stage to end by itself")

    assert workspace.cli("run", "job.yaml").returncode == 0
    assert len(workspace.attempts("train")) == 1


def test_machine_that_was_switched_off_costs_one_attempt_that_does_not_count(workspace: Workspace) -> None:
    workspace.hold_stage("train")
    first = workspace.start("run", "job.yaml")
    runner = workspace.wait_until_held("train")
    first.kill()
    first.communicate()
    supervisor = json.loads((workspace.attempts("train")[0] / "supervisor.json").read_text())["pid"]
    os.kill(supervisor, signal.SIGKILL)
    os.kill(runner, signal.SIGKILL)
    wait_for(lambda: process_identity(runner) is None, "the stage to be gone")
    workspace.hold.touch()

    assert workspace.cli("run", "job.yaml").returncode == 0
    lost = [stage for stage in workspace.job()["status"]["stages"] if stage["state"] == "Failed"]
    assert [(stage["cause"], stage["countsAgainstRetries"]) for stage in lost] == [("NodeLost", False)]


def test_stage_killed_from_outside_is_tried_again(workspace: Workspace) -> None:
    workspace.hold_stage("train")
    process = workspace.start("run", "job.yaml")
    runner = workspace.wait_until_held("train")
    workspace.hold.touch()
    os.kill(runner, signal.SIGKILL)
    process.communicate(timeout=DEADLINE_S)

    # The stage may have seen the file first: then it simply succeeded.
    causes = {stage["cause"] for stage in workspace.job()["status"]["stages"] if stage["state"] == "Failed"}
    assert process.returncode == 0
    assert causes <= {"Killed"}


def test_second_run_on_the_same_state_is_refused(workspace: Workspace) -> None:
    workspace.hold_stage("train")
    first = workspace.start("run", "job.yaml")
    workspace.wait_until_held("train")
    second = workspace.cli("run", "job.yaml", "--name", "other")

    assert second.returncode == 2
    assert f"process {first.pid} is running a job there" in second.stderr
    assert "--state" in second.stderr


@pytest.mark.parametrize("verb", ["list", "status"])
def test_others_may_look_while_it_runs(workspace: Workspace, verb: str) -> None:
    workspace.hold_stage("train")
    workspace.start("run", "job.yaml")
    workspace.wait_until_held("train")
    result = workspace.cli(*([verb] if verb == "list" else [verb, "support-triage"]))

    assert result.returncode == 0
    assert "Training" in result.stdout


def test_edit_of_a_suspended_job_is_refused_in_the_words_of_the_api_server(workspace: Workspace) -> None:
    workspace.hold_stage("train")
    first = workspace.start("run", "job.yaml")
    workspace.wait_until_held("train")
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=DEADLINE_S)
    workspace.write(JOB.replace("2e-4", "3e-4"))
    result = workspace.cli("run", "job.yaml")

    assert result.returncode == 2
    assert "spec.training cannot change: spec is immutable while the job runs" in result.stderr
    assert "finetune cancel support-triage" in result.stderr
    assert workspace.job()["spec"]["training"]["learningRate"] == 2e-4


def test_cancel_ends_the_running_command_and_its_stage(workspace: Workspace) -> None:
    workspace.hold_stage("train")
    first = workspace.start("run", "job.yaml")
    runner = workspace.wait_until_held("train")
    result = workspace.cli("cancel", "support-triage")
    first.communicate(timeout=DEADLINE_S)

    assert result.returncode == 0
    assert "the command that runs it ends now" in result.stdout
    assert first.returncode == 1
    assert workspace.job()["status"]["phase"] == "Cancelled"
    assert process_identity(runner) is None

    workspace.hold.touch()
    assert workspace.cli("run", "job.yaml").returncode == 0
    assert workspace.job()["status"]["run"] == 2


def test_cancel_of_a_suspended_job_needs_no_other_command(workspace: Workspace) -> None:
    workspace.hold_stage("train")
    first = workspace.start("run", "job.yaml")
    workspace.wait_until_held("train")
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=DEADLINE_S)
    result = workspace.cli("cancel", "support-triage")

    assert (result.returncode, result.stdout.strip()) == (0, "support-triage: Cancelled")
    assert workspace.cli("cancel", "support-triage").returncode == 2
