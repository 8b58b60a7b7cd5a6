"""Two installations in one cluster: neither touches what the other works on, both say so, and one may take over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.harness.operator_process import OPERATOR_NAMESPACE, OperatorProcess, grant_lease
from tests.cluster.harness.runs import Runs
from tests.gitops.tools import status_managers


@pytest.fixture
def second(operated: Runs) -> Iterator[OperatorProcess]:
    """Another installation, of this namespace, beside the one of the whole cluster."""
    grant_lease(operated.cluster, operated.namespace)
    process = OperatorProcess(operated.cluster, operated.namespace, name="second")
    operated.operators.append(process)
    yield process
    process.kill()


def test_an_installation_leaves_alone_what_another_works_on(operated: Runs, second: OperatorProcess) -> None:
    operated.apply()
    stage = operated.wait_stage("prepare")
    assert status_managers(operated, "support") == {f"finetune-operator.{OPERATOR_NAMESPACE}"}
    second.start()
    second.leading()
    told = operated.wait(
        lambda: text if "another installation" in (text := second.readiness()) else "", "the second to say so"
    )
    foreign = f"FineTuneJob {operated.namespace}/support is worked on by another installation"
    [line] = [line for line in told.splitlines() if "another installation" in line]
    assert line.endswith(("remove one of the two", "more)"))
    assert f"(namespace {OPERATOR_NAMESPACE})" in line
    assert foreign in second.log_tail(100_000)
    assert second.get("readyz")[0] == 503
    # The first goes on to the end, and the second has written nothing.
    operated.succeed_from("prepare")
    assert operated.status().stages[0].job_name == stage.job_name
    assert status_managers(operated, "support") == {f"finetune-operator.{OPERATOR_NAMESPACE}"}
    assert len(operated.jobs()) == 5
    operated.delete()
    operated.cluster.kubectl("delete", "adapters,adapterversions", "--all", "-n", operated.namespace)
    operated.wait(lambda: second.readiness() == "ok\n", "the second to be ready once nothing is in dispute")
