"""An installation that is gone leaves its runs to the next, wherever that one is."""

from __future__ import annotations

from tests.cluster.harness.operator_process import OperatorProcess, grant_lease
from tests.cluster.harness.runs import Runs
from tests.gitops.tools import status_managers


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
    assert status_managers(runs, "support") == {f"finetune-operator.{runs.namespace}"}
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
        assert f"finetune-operator.{other}" in status_managers(runs, "support")
        assert runs.status().run == 1
        runs.wait(lambda: second.readiness() == "ok\n", "the second to be ready")
    finally:
        second.kill()
        runs.cluster.kubectl("delete", "namespace", other, "--wait=false")
