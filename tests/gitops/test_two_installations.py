"""Two installations in one cluster: neither touches what the other works on, both say so, and one may take over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.harness.operator_process import OPERATOR_NAMESPACE, OperatorProcess, grant_lease
from tests.cluster.harness.runs import Runs
from tests.gitops.tools import read


@pytest.fixture
def second(operated: Runs) -> Iterator[OperatorProcess]:
    """Another installation, of this namespace, beside the one of the whole cluster."""
    grant_lease(operated.cluster, operated.namespace)
    process = OperatorProcess(operated.cluster, operated.namespace, name="second")
    operated.operators.append(process)
    yield process
    process.kill()


def managers(runs: Runs) -> set[str]:
    """Who has written the job's status."""
    job = read(runs.cluster, {"kind": "FineTuneJob", "metadata": {"name": "support", "namespace": runs.namespace}})
    return {entry["manager"] for entry in job["metadata"]["managedFields"] if entry.get("subresource") == "status"}


def test_an_installation_leaves_alone_what_another_works_on(operated: Runs, second: OperatorProcess) -> None:
    operated.apply()
    stage = operated.wait_stage("prepare")
    assert managers(operated) == {f"finetune-operator.{OPERATOR_NAMESPACE}"}
    second.start()
    second.leading()
    told = operated.wait(
        lambda: (text := second.readiness()) if "another installation" in text else "", "the second to say so"
    )
    foreign = f"FineTuneJob {operated.namespace}/support is worked on by another installation"
    [line] = [line for line in told.splitlines() if "another installation" in line]
    assert line.endswith("remove one of the two") or line.endswith("more)")
    assert f"(namespace {OPERATOR_NAMESPACE})" in line
    assert foreign in second.log_tail(100_000)
    assert second.get("readyz")[0] == 503
    # The first goes on to the end, and the second has written nothing.
    operated.succeed_from("prepare")
    assert [(item.name, item.attempt) for item in operated.status().stages][0] == (stage.name, stage.attempt)
    assert managers(operated) == {f"finetune-operator.{OPERATOR_NAMESPACE}"}
    assert len(operated.jobs()) == 5
    operated.delete()
    operated.cluster.kubectl("delete", "adapters,adapterversions", "--all", "-n", operated.namespace)
    operated.wait(lambda: second.readiness() == "ok\n", "the second to be ready once nothing is in dispute")


def test_a_new_installation_takes_over_from_one_that_is_gone(runs: Runs) -> None:
    """The first ends and lets its Lease go; another, elsewhere, continues its run where it stands."""
    other = f"{runs.namespace}-b"
    runs.cluster.kubectl("create", "namespace", other)
    grant_lease(runs.cluster, other)
    first = runs.operator()
    first.leading()
    runs.apply()
    runs.succeed("prepare")
    runs.begin("baseline")
    assert managers(runs) == {f"finetune-operator.{runs.namespace}"}
    second = OperatorProcess(runs.cluster, runs.namespace, name="successor", extra=("--lease-namespace", other))
    runs.operators.append(second)
    second.start()
    try:
        second.leading()
        runs.wait(lambda: "another installation" in second.readiness(), "the second to leave the first's run alone")
        assert first.stop() == 0
        [pod] = runs.pods(runs.status().stages[-1])
        runs.player.succeed(pod, runs.report(pod))
        runs.succeed_from("train")
        assert f"finetune-operator.{other}" in managers(runs)
        assert runs.status().run == 1
        runs.wait(lambda: second.readiness() == "ok\n", "the second to be ready")
    finally:
        second.kill()
        runs.cluster.kubectl("delete", "namespace", other, "--wait=false")
