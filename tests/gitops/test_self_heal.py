"""A rollback meets a tool that puts back what Git says, again and again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cluster.harness.runs import Runs
from tests.gitops.tools import ARGO_CD, FLUX, Object, apply, diff, read

tools = pytest.mark.parametrize("tool", [ARGO_CD, FLUX], ids=["Argo CD", "Flux"])


def adapter(runs: Runs, wish: str = "latestApproved") -> Object:
    """The Adapter as Git has it."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "Adapter",
        "metadata": {"name": "triage", "namespace": runs.namespace},
        "spec": {"storage": {"uri": "s3://bucket/store"}, "channels": [{"name": "stable", "version": wish}]},
    }


def decide(runs: Runs, version: str, decision: str) -> None:
    """A person approves or rejects; decisions are not in Git."""
    patch = json.dumps({"spec": {"decisions": [{"by": "admin", "decision": decision, "reason": "seen in production"}]}})
    runs.cluster.kubectl("patch", "adpv", version, "-n", runs.namespace, "--type=merge", "-p", patch)


def stable(runs: Runs) -> str:
    """The version that the channel `stable` serves."""
    channels: list[dict[str, Any]] = runs.objects("adapters")[0].get("status", {}).get("channels", [])
    return next((channel.get("version", "") for channel in channels), "")


def serves(runs: Runs, version: str) -> None:
    """Wait until the channel serves a version and its digest."""
    runs.wait(lambda: stable(runs) == version, f"stable to serve {version or 'nothing'}")


def two_versions(runs: Runs, tool: tuple[str, ...]) -> Object:
    """Git has an Adapter on latestApproved; v1 and then v2 are released."""
    git = adapter(runs)
    apply(runs.cluster, git, *tool)
    runs.apply()
    runs.succeed_from("prepare")
    decide(runs, "triage-v1", "approve")
    serves(runs, "v1")
    runs.apply(training={"seed": 7})
    runs.wait(lambda: runs.status().run == 2, "run 2")
    runs.succeed_from("prepare", run=2)
    decide(runs, "triage-v2", "approve")
    serves(runs, "v2")
    return git


@tools
def test_a_rejected_version_stays_rejected_through_self_heal(operated: Runs, tool: tuple[str, ...]) -> None:
    """The recommended way back: one decision, nothing in Git changes, nothing for self-heal to undo."""
    git = two_versions(operated, tool)
    decide(operated, "triage-v2", "reject")
    serves(operated, "v1")
    assert diff(operated.cluster, git, *tool) == "", "the rollback is no difference to Git"
    before = read(operated.cluster, git)
    for _ in range(3):
        apply(operated.cluster, git, *tool)
    after = read(operated.cluster, git)
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    assert stable(operated) == "v1"
    operated.wait(lambda: operated.status().reason == "Rejected", "the job to say what became of its version")
    [rejected] = [item for item in operated.objects("adapterversions") if item["metadata"]["name"] == "triage-v2"]
    assert rejected["status"]["phase"] == "Rejected"
    assert "seen in production" in rejected["status"]["message"]
    decide(operated, "triage-v2", "approve")
    serves(operated, "v2")


@tools
def test_a_channel_patched_by_hand_is_put_back_by_self_heal(operated: Runs, tool: tuple[str, ...]) -> None:
    """Why a patch is no way back under GitOps: the wish is Git's, and the bad version is served again."""
    git = two_versions(operated, tool)
    pin = '{"spec": {"channels": [{"name": "stable", "version": "v1"}]}}'
    operated.cluster.kubectl("patch", "adapter", "triage", "-n", operated.namespace, "--type=merge", "-p", pin)
    serves(operated, "v1")
    assert diff(operated.cluster, git, *tool) != ""
    apply(operated.cluster, git, *tool)
    serves(operated, "v2")


def test_a_rollback_by_commit_is_a_pin_in_git(operated: Runs) -> None:
    two_versions(operated, ARGO_CD)
    pinned = adapter(operated, "v1")
    apply(operated.cluster, pinned, *ARGO_CD)
    serves(operated, "v1")
    decide(operated, "triage-v1", "reject")
    operated.wait(
        lambda: "not approved" in operated.objects("adapters")[0]["status"]["channels"][0].get("message", ""),
        "the pin to say that it cannot be met",
    )
    assert stable(operated) in ("", "v1")


def test_an_edit_of_a_running_job_is_refused_and_goes_in_once_it_has_finished(operated: Runs) -> None:
    """What a sync that comes too early shows, and that the tool's retry is enough."""
    runs = operated
    runs.apply()
    prepare = runs.begin("prepare")
    git = {name: value for name, value in read(runs.cluster, _job(runs)).items() if name != "status"}
    git["metadata"] = {"name": "support", "namespace": runs.namespace}
    git["spec"]["training"]["seed"] = 7
    said = apply(runs.cluster, git, *ARGO_CD, check=False)
    assert "spec.training cannot change: spec is immutable while the job runs; wait until it has finished" in said
    assert runs.status().run == 1
    [pod] = runs.pods(prepare)
    runs.player.succeed(pod, runs.report(pod))
    runs.succeed_from("baseline")
    apply(runs.cluster, git, *ARGO_CD)
    runs.wait(lambda: runs.status().run == 2, "run 2")


def test_pruning_a_job_leaves_its_releases_and_nothing_else(operated: Runs) -> None:
    two_versions(operated, ARGO_CD)
    operated.cluster.kubectl("delete", "ftj", "support", "-n", operated.namespace)
    operated.wait(lambda: not operated.jobs(), "the Jobs of the pruned FineTuneJob to be gone")
    assert {item["metadata"]["name"] for item in operated.objects("adapterversions")} == {"triage-v1", "triage-v2"}
    assert stable(operated) == "v2"


def test_a_decision_in_git_is_signed_by_the_account_that_applies_it(operated: Runs) -> None:
    """The pull request as the decision: a partial AdapterVersion, server-side, with the right to approve."""
    operated.apply()
    operated.succeed_from("prepare")
    account = f"system:serviceaccount:{operated.namespace}:sync"
    operated.cluster.kubectl(
        *("create", "rolebinding", "sync", "-n", operated.namespace, "--clusterrole=finetune-approver"),
        f"--user={account}",
    )
    git: Object = {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "AdapterVersion",
        "metadata": {"name": "triage-v1", "namespace": operated.namespace},
        "spec": {"decisions": [{"by": account, "decision": "approve", "reason": "merged"}]},
    }
    person = {**git, "spec": {"decisions": [{"by": "ada", "decision": "approve"}]}}
    as_account = {"user": account, "groups": ("system:authenticated",)}
    operated.wait(
        lambda: (
            "a decision carries the name of who makes it"
            in apply(operated.cluster, person, *ARGO_CD, check=False, **as_account)
        ),
        "the account to be refused somebody else's name",
    )
    apply(operated.cluster, git, *ARGO_CD, **as_account)
    serves(operated, "v1")
    before = read(operated.cluster, git)
    apply(operated.cluster, git, *ARGO_CD, **as_account)
    assert read(operated.cluster, git)["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    assert before["spec"]["decisions"] == git["spec"]["decisions"]


def _job(runs: Runs) -> Object:
    return {"kind": "FineTuneJob", "metadata": {"name": "support", "namespace": runs.namespace}}
