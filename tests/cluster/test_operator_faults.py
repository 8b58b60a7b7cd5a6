"""The operator is killed, doubled, stopped and cut off; the run ends the same, and nothing happens twice."""

from __future__ import annotations

import json
import signal
from collections import Counter

import pytest

from finetune_operator.builders.names import job_name
from finetune_operator.leader import LOST_LEASE_EXIT_CODE
from tests.cluster.harness.controlplane import ControlPlane
from tests.cluster.harness.operator_process import OperatorProcess
from tests.cluster.harness.policies import wait_for_policies
from tests.cluster.harness.runs import Runs, pool_manifest

STAGES = ("prepare", "baseline", "train", "evaluate", "publish")


def assert_happened_once(runs: Runs, uid: str) -> None:
    """One Job per stage, one version, one Event per transition."""
    assert sorted(job.metadata.name for job in runs.jobs()) == sorted(job_name("support", uid, 1, s, 1) for s in STAGES)
    assert [item["metadata"]["name"] for item in runs.objects("adapterversions")] == ["triage-v1"]
    told = Counter(runs.events())
    assert max(count for (reason, _), count in told.items() if reason.startswith("Stage")) == 1


@pytest.mark.parametrize("moment", ["pending", "running", "ended"])
def test_an_operator_killed_in_every_stage_changes_nothing(runs: Runs, moment: str) -> None:
    operator = runs.operator()
    uid = runs.apply().metadata.uid
    for stage in STAGES:
        [pod] = runs.pods(runs.wait_stage(stage))
        if moment == "pending":
            operator.kill()
        runs.player.running(pod)
        if moment != "pending":
            runs.wait_stage(stage, state="Running")
        if moment == "running":
            operator.kill()
        runs.player.succeed(pod, runs.report(pod))
        if moment == "ended":
            operator.kill()
        operator = runs.operator()
    final = runs.wait_phase("Succeeded")
    assert [(s.name, s.attempt, s.state) for s in final.stages] == [(name, 1, "Succeeded") for name in STAGES]
    assert_happened_once(runs, uid)


def test_of_two_operators_one_acts_and_the_other_takes_over(runs: Runs) -> None:
    first = runs.operator()
    runs.wait(first.leads, "the first operator to lead")
    second = runs.operator()
    uid = runs.apply().metadata.uid
    runs.succeed("prepare")
    assert not second.leads()
    first.kill()
    runs.wait(second.leads, "the second operator to take over")
    runs.succeed_from("baseline")
    assert_happened_once(runs, uid)


def test_an_operator_asked_to_stop_hands_over_at_once(runs: Runs) -> None:
    first = runs.operator(extra=("--lease-seconds", "600"))
    runs.wait(first.leads, "the first operator to lead")
    second = runs.operator(extra=("--lease-seconds", "3"))
    first.signal(signal.SIGTERM)
    assert first.wait(30) == 0, first.log_tail()
    runs.wait(second.leads, "the second operator to take over long before the lease runs out")


def test_a_stopped_leader_that_wakes_up_writes_nothing_and_leaves(runs: Runs) -> None:
    first = runs.operator()
    runs.wait(first.leads, "the first operator to lead")
    uid = runs.apply().metadata.uid
    runs.begin("prepare")
    first.signal(signal.SIGSTOP)
    second = runs.operator()
    runs.wait(second.leads, "the second operator to take over")
    [pod] = runs.pods(runs.wait_stage("prepare"))
    runs.player.succeed(pod, runs.report(pod))
    runs.wait_stage("baseline")
    before = written_by(first, runs)
    first.signal(signal.SIGCONT)
    assert first.wait(30) == LOST_LEASE_EXIT_CODE, first.log_tail()
    assert written_by(first, runs) == before
    runs.succeed_from("baseline")
    assert_happened_once(runs, uid)


def written_by(operator: OperatorProcess, runs: Runs) -> int:
    """Writes in the namespace from this process: Events carry its name, every transition has one."""
    line = next(line for line in operator.log.read_text().splitlines() if '"identity"' in line)
    identity = line.split('"identity": "')[1].split('"')[0]
    shown = runs.cluster.kubectl("get", "events.events.k8s.io", "-n", runs.namespace, "-o", "yaml").stdout
    return shown.count(identity)


def test_missing_rights_are_named_and_their_return_is_noticed(runs: Runs) -> None:
    rules = runs.cluster.kubectl("get", "clusterrole", "finetune-operator", "-o", "json").stdout
    operator = OperatorProcess(runs.cluster, runs.namespace)
    runs.operators.append(operator)
    runs.cluster.kubectl("delete", "clusterrole", "finetune-operator")
    try:
        operator.start()
        said = runs.wait(lambda: told(operator), "the operator to say what is missing")
        assert ".finetune.dev: " in said, "which kind cannot be read"
        assert "RBAC" in said
    finally:
        runs.cluster.apply(without_history(rules))
    runs.wait(lambda: operator.get("readyz")[0] == 200, "the operator to be ready again")
    runs.apply()
    runs.wait_stage("prepare")


def test_rights_lost_while_running_are_survived(runs: Runs) -> None:
    operator = runs.operator()
    runs.apply()
    runs.begin("prepare")
    rules = runs.cluster.kubectl("get", "clusterrole", "finetune-operator", "-o", "json").stdout
    runs.cluster.kubectl("delete", "clusterrole", "finetune-operator")
    [pod] = runs.pods(runs.wait_stage("prepare"))
    runs.player.succeed(pod, runs.report(pod))
    runs.wait(lambda: "Forbidden" in operator.log.read_text(), "a refused write")
    runs.cluster.apply(without_history(rules))
    runs.succeed_from("baseline")


def test_a_missing_crd_is_named_and_its_return_is_noticed(runs: Runs) -> None:
    operator = runs.operator(extra=("--audit-seconds", "1"))
    shown = runs.cluster.kubectl("get", "crd", "gpupools.finetune.dev", "-o", "json").stdout
    runs.cluster.kubectl("delete", "crd", "gpupools.finetune.dev")
    try:
        said = runs.wait(lambda: told(operator), "the operator to say what is missing")
        assert "gpupools.finetune.dev does not exist; apply the CRDs" in said
    finally:
        runs.cluster.apply(without_history(shown))
        runs.cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", "crd/gpupools.finetune.dev")
        wait_for_policies(runs.cluster)
    runs.wait(lambda: operator.get("readyz")[0] == 200, "the operator to be ready again")
    runs.cluster.apply(pool_manifest(runs.namespace))
    runs.apply()
    runs.wait_stage("prepare")


def test_a_restart_of_the_api_server_is_survived(runs: Runs) -> None:
    if not isinstance(runs.cluster, ControlPlane):
        pytest.skip("a given cluster is not restarted")
    operator = runs.operator(extra=("--lease-seconds", "60"))
    uid = runs.apply().metadata.uid
    [pod] = runs.pods(runs.begin("prepare"))
    runs.cluster.restart_apiserver()
    runs.player.succeed(pod, runs.report(pod))
    runs.succeed_from("baseline")
    assert operator.check()
    assert_happened_once(runs, uid)


def test_a_job_name_that_is_taken_is_told_and_never_adopted(runs: Runs) -> None:
    operator = runs.operator()
    runs.cluster.kubectl("delete", "gpupool", runs.namespace)
    applied = runs.apply()
    runs.wait_phase("Pending", reason="PoolNotFound")
    name = job_name("support", applied.metadata.uid, 1, "prepare", 1)
    runs.cluster.kubectl("create", "job", name, "-n", runs.namespace, "--image=example.com/foreign")
    runs.cluster.apply(pool_manifest(runs.namespace))
    status = runs.wait(lambda: (s := runs.status()).reason == "NameTaken" and s, "the reason NameTaken")
    assert name in status.message
    scraped = operator.get("metrics")[1]
    assert f'finetune_jobs{{phase="{status.phase}"}} 1.0' in scraped, "what was written is counted, whatever came after"
    runs.cluster.kubectl("delete", "job", name, "-n", runs.namespace)
    runs.wait(
        lambda: any(job.metadata.name == name and job.metadata.owner_references for job in runs.jobs()),
        "our own Job once the name is free",
    )


def told(operator: OperatorProcess) -> str:
    """Why the operator is not ready; nothing while it does not answer or has not looked yet."""
    operator.check()
    try:
        status, text = operator.get("readyz")
    except OSError:
        return ""
    return text if status == 503 and "not started yet" not in text else ""


def without_history(text: str) -> str:
    """An object as it can be applied again."""
    body = json.loads(text)
    body["metadata"] = {"name": body["metadata"]["name"]}
    body.pop("status", None)
    return json.dumps(body)
