"""Training outlives the machines under it: an upgrade does not touch it; lost pods and nodes cost steps, no result."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client

from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.node.cluster import NodeCluster
from tests.cluster.harness.operator_process import OPERATOR_NAMESPACE, SERVICE_ACCOUNT
from tests.cluster.harness.waiting import wait_for
from tests.node.e2e.tenant import RUN_DEADLINE_S, TEST_TIMEOUT_S, Tenant

pytestmark = pytest.mark.timeout(TEST_TIMEOUT_S)
REFERENCE, DISTURBED = "reference", "disturbed"
STEPS = 2400
SPARE = "spare"


def apply(tenant: Tenant, name: str) -> None:
    """A training that is long enough to be disturbed; the same for every name."""
    tenant.apply_job(
        *(name, f"{tenant.namespace}-cpu"),
        training={
            "epochs": 100,
            "maxSteps": STEPS,
            "evalSteps": 100,
            "validationSamples": 0,
            "earlyStopping": {"patience": 0},
        },
        output={"adapterRef": {"name": name}},
    )


def operator_pods(cluster: NodeCluster) -> dict[str, str]:
    """Names and uids of the operator's pods that are ready."""
    core = client.CoreV1Api(cluster.api())
    pods = core.list_namespaced_pod(OPERATOR_NAMESPACE, label_selector="app.kubernetes.io/name=finetune-operator").items
    ready = [
        pod
        for pod in pods
        if pod.metadata.deletion_timestamp is None
        and any(item.type == "Ready" and item.status == "True" for item in pod.status.conditions or [])
    ]
    return {pod.metadata.name: pod.metadata.uid for pod in ready}


@pytest.fixture(scope="module")
def own_nodes(installed_node: Cluster) -> NodeCluster:
    """The cluster, when its machines are ours to break, with a second node that is cordoned."""
    if not isinstance(installed_node, NodeCluster):
        pytest.skip("a given cluster's nodes and API server are not ours to break")
    spare = installed_node.add_node(SPARE, gpus=8, image_targets=("operator", "runner"))
    installed_node.kubectl("cordon", spare.name)
    return installed_node


@pytest.fixture(scope="module")
def team(make_tenant: Any) -> Iterator[Tenant]:
    """One tenant for the whole module: the second test compares with what the first one made."""
    with make_tenant() as tenant:
        tenant.make_pool()
        yield tenant


@pytest.fixture(scope="module")
def reference(team: Tenant, own_nodes: NodeCluster) -> dict[str, Any]:
    """The status of a job whose operator was replaced and whose API server was restarted while it trained."""
    before = operator_pods(own_nodes)
    assert before, "the operator is ready before it is replaced"
    apply(team, REFERENCE)
    team.wait_checkpoint(REFERENCE)
    own_nodes.kubectl("rollout", "restart", "deployment/finetune-operator", "-n", OPERATOR_NAMESPACE)
    own_nodes.kubectl(
        *("rollout", "status", "deployment/finetune-operator", "-n", OPERATOR_NAMESPACE, "--timeout=180s"),
        timeout_s=200,
    )
    assert not set(before.values()) & set(operator_pods(own_nodes).values())
    own_nodes.restart_apiserver()
    return team.wait_end(REFERENCE)


def test_an_upgrade_and_a_restarted_api_server_lose_nothing_and_do_nothing_twice(
    reference: dict[str, Any], team: Tenant, own_nodes: NodeCluster
) -> None:
    assert reference["phase"] == "Succeeded", team.told(REFERENCE)
    assert {(entry["name"], entry["attempt"]) for entry in reference["stages"]} == {
        (stage, 1) for stage in ("prepare", "baseline", "train", "evaluate", "publish")
    }
    created = Counter(
        event["objectRef"]["name"]
        for event in own_nodes.audit_events(user=SERVICE_ACCOUNT)
        if event["verb"] == "create"
        and event["objectRef"]["resource"] in ("jobs", "adapterversions")
        and event["objectRef"].get("namespace") == team.namespace
        and event["responseStatus"]["code"] == 201
    )
    assert sorted(created.values()) == [1] * 6, created


def evict(tenant: Tenant, pod: client.V1Pod) -> None:
    """Through the eviction API, as the cluster's maintenance does it."""
    eviction = client.V1Eviction(metadata=client.V1ObjectMeta(name=pod.metadata.name, namespace=tenant.namespace))
    tenant.core.create_namespaced_pod_eviction(pod.metadata.name, tenant.namespace, eviction)


def test_a_training_that_is_evicted_deleted_drained_and_robbed_of_its_node_ends_with_the_same_adapter(
    reference: dict[str, Any], team: Tenant, own_nodes: NodeCluster
) -> None:
    spare = own_nodes.nodes[SPARE]
    apply(team, DISTURBED)
    seen: set[str] = set()

    def next_pod() -> client.V1Pod:
        pod = team.running_pod(DISTURBED, "train", not_uids=frozenset(seen))
        seen.add(pod.metadata.uid)
        return pod

    pod = next_pod()
    step = team.wait_checkpoint(DISTURBED)
    # Lost steps are counted from what was heard.
    heard = team.wait_status(DISTURBED, lambda status: status["stages"][-1].get("lastStep"), "attempt 1 to be heard")
    assert heard
    evict(team, pod)

    pod = next_pod()
    resumed = team.wait_status(
        DISTURBED, lambda status: status["stages"][-1].get("resumedFromStep"), "attempt 2 to say where it resumed"
    )
    assert resumed is not None
    assert resumed >= step
    assert "Resumed" in team.kubectl("get", "events")
    step = team.wait_checkpoint(DISTURBED, beyond=resumed)
    team.core.delete_namespaced_pod(pod.metadata.name, team.namespace)

    pod = next_pod()
    step = team.wait_checkpoint(DISTURBED, beyond=step)
    node = own_nodes.nodes[pod.spec.node_name]
    node.restart_kubelet()
    step = team.wait_checkpoint(DISTURBED, beyond=step)
    assert [running.metadata.uid for running in team.pods(DISTURBED, "train") if running.status.phase == "Running"] == [
        pod.metadata.uid
    ], "a restarted kubelet finds its pods"

    # Everything goes to the spare node, and that one is lost.
    own_nodes.kubectl("uncordon", spare.name)
    for other in own_nodes.nodes.values():
        if other is not spare:
            own_nodes.kubectl(
                *("drain", other.name, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=240s"),
                timeout_s=260,
            )
    pod = next_pod()
    assert pod.spec.node_name == spare.name
    step = team.wait_checkpoint(DISTURBED, beyond=step)
    for other in own_nodes.nodes.values():
        if other is not spare:
            own_nodes.kubectl("uncordon", other.name)
    spare.stop()
    own_nodes.kubectl("delete", "node", spare.name)

    next_pod()
    status = team.wait_end(DISTURBED)
    assert status["phase"] == "Succeeded", team.told(DISTURBED)
    attempts = [entry for entry in status["stages"] if entry["name"] == "train"]
    assert len(attempts) == len(seen)
    assert not any(entry["countsAgainstRetries"] for entry in attempts if entry["state"] == "Failed"), attempts
    # An attempt that ends seconds after its start may not have been heard; the second and the last were.
    told = [entry for entry in attempts[1:] if "resumedFromStep" in entry]
    assert {2, len(attempts)} <= {entry["attempt"] for entry in told}, attempts
    assert all(entry["resumedFromStep"] > 0 and entry["lostSteps"] >= 0 for entry in told), attempts
    assert status["results"]["train"]["checkpointDigest"] == reference["results"]["train"]["checkpointDigest"]
    assert status["results"]["train"]["resumedFromStep"] >= step
    wait_for(
        lambda: len(operator_pods(own_nodes)) == 2,
        RUN_DEADLINE_S,
        "both replicas of the operator to be back",
        context=lambda: own_nodes.kubectl("get", "pods", "-A", "-o", "wide").stdout,
    )
    print(json.dumps([{key: entry.get(key) for key in ("attempt", "cause", "lastStep", "resumedFromStep", "lostSteps")}
                      for entry in attempts]))  # fmt: skip
