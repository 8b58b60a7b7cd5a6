"""Real training in a real queue: a job waits for quota, gives it to a more urgent one, and resumes as the same Job.

The last of the folder: the Kueue of these tests goes, and leaves kinds behind that nobody converts any more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.kueue import API_VERSION, Kueue, local_queue, priority_class, resource_flavor
from tests.cluster.harness.node.cluster import NodeCluster
from tests.node.e2e.tenant import TEST_TIMEOUT_S, Tenant

pytestmark = pytest.mark.timeout(TEST_TIMEOUT_S)
QUEUE, LOW, URGENT = "team", "low", "urgent"


@pytest.fixture(scope="module")
def kueue(installed_node: Cluster) -> Iterator[Kueue]:
    """Kueue beside our own control plane; processors need quota here, as the GPUs are none."""
    if not isinstance(installed_node, NodeCluster):
        pytest.skip("Kueue of a given cluster has quotas of its own")
    with Kueue(installed_node, excluded_prefixes=("memory",)) as running:
        installed_node.apply([priority_class(LOW, 10), priority_class(URGENT, 1000)])
        yield running


@pytest.fixture
def queue(tenant: Tenant, kueue: Kueue) -> str:
    """A LocalQueue with room for one pod that runs the model; the pool of its jobs."""
    pool = tenant.make_pool()
    resources = [{"name": "cpu", "nominalQuota": "100m"}]
    flavors = [{"name": tenant.namespace, "resources": resources}]
    cluster_queue = {
        "apiVersion": API_VERSION,
        "kind": "ClusterQueue",
        "metadata": {"name": tenant.namespace},
        "spec": {
            "namespaceSelector": {},
            "preemption": {"withinClusterQueue": "LowerPriority"},
            "resourceGroups": [{"coveredResources": ["cpu"], "flavors": flavors}],
        },
    }
    tenant.cluster.apply(
        [resource_flavor(tenant.namespace), cluster_queue, local_queue(QUEUE, tenant.namespace, tenant.namespace)]
    )
    return pool


def apply(tenant: Tenant, name: str, pool: str, priority: str, **training: Any) -> None:
    """A job in the queue, with an Adapter of its own."""
    tenant.apply_job(
        *(name, pool),
        compute={"queue": QUEUE, "priorityClass": priority},
        training=training,
        output={"adapterRef": {"name": name}},
    )


def queued(reason: str, names: str) -> Any:
    """A condition on a status: it stands in the queue for this reason, and Kueue has said what is short."""

    def holds(status: dict[str, Any]) -> str:
        waits = (status.get("phase"), status.get("reason")) == ("Queued", reason)
        message = str(status.get("message", ""))
        return message if waits and names in message else ""

    return holds


def test_a_job_waits_for_quota_gives_way_to_an_urgent_one_and_resumes(tenant: Tenant, queue: str) -> None:
    long = {"epochs": 100, "maxSteps": 2400, "evalSteps": 100, "earlyStopping": {"patience": 0}}
    apply(tenant, "patient", queue, LOW, **long)
    step = tenant.wait_checkpoint("patient")

    apply(tenant, "waiting", queue, LOW, epochs=1)
    message = tenant.wait_status("waiting", queued("WaitingForQuota", "cpu"), "the queue, for want of cpu")
    assert message is not None
    assert "position 1" in message
    assert [entry["state"] for entry in tenant.attempts("waiting", "prepare")] == ["Succeeded"], "prepare never queues"
    tenant.kubectl("patch", "ftj", "waiting", "--type=merge", "-p", json.dumps({"spec": {"cancel": True}}))

    apply(tenant, "urgent", queue, URGENT, epochs=1)
    tenant.wait_status("patient", lambda status: status.get("phase") == "Queued", "that it gave way")
    urgent = tenant.wait_end("urgent")
    assert urgent["phase"] == "Succeeded", tenant.told("urgent")
    patient = tenant.wait_end("patient")
    assert patient["phase"] == "Succeeded", tenant.told("patient")
    [train] = [entry for entry in patient["stages"] if entry["name"] == "train"]
    assert (train["attempt"], train["state"]) == (1, "Succeeded"), "the same Job, and no retry"
    assert train["preemptions"] >= 1
    assert patient["results"]["train"]["resumedFromStep"] >= step
