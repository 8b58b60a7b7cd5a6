"""GPUPool.status follows the nodes; jobs whose pool has none wait, and say so."""

from __future__ import annotations

import json
from typing import Any

import pytest
from kubernetes import client

from tests.cluster.harness.controlplane import ControlPlane
from tests.cluster.harness.runs import NODE_LABEL, Runs, pool_manifest


def pool(runs: Runs, name: str | None = None) -> dict[str, Any]:
    shown = runs.cluster.kubectl("get", "gpupool", name or runs.namespace, "-o", "json").stdout
    found: dict[str, Any] = json.loads(shown)
    return found


def wait_ready(runs: Runs, reason: str) -> dict[str, Any]:
    """Wait until the pool of the test is Ready or not for a reason; its status."""

    def reached() -> dict[str, Any] | None:
        made = pool(runs)
        status: dict[str, Any] = made.get("status", {})
        [ready] = status.get("conditions") or [{}]
        current = status.get("observedGeneration") == made["metadata"]["generation"]
        return status if current and ready.get("reason") == reason else None

    status: dict[str, Any] = runs.wait(reached, f"the pool to be {reason}")
    return status


def counts(status: dict[str, Any]) -> tuple[int, int, int, int]:
    return tuple(status[name] for name in ("matchingNodes", "readyNodes", "allocatableGpus", "largestNodeGpus"))  # type: ignore[return-value]


def message(status: dict[str, Any]) -> str:
    return str(status["conditions"][0]["message"])


def test_a_pool_follows_its_nodes(operated: Runs) -> None:
    runs, name = operated, operated.namespace
    assert counts(wait_ready(runs, "NodesFound")) == (1, 1, 8, 8)
    runs.player.add_node(f"{name}-2", gpus=4, labels={NODE_LABEL: name})
    try:
        runs.wait(lambda: counts(pool(runs)["status"]) == (2, 2, 12, 8), "the second node to be counted")
        runs.player.set_node_ready(name, ready=False)
        few = wait_ready(runs, "TooFewGPUs")
        assert counts(few) == (2, 1, 4, 4)
        assert "the largest of 1 ready nodes offers 4 nvidia.com/gpu" in message(few)
        runs.cluster.kubectl("cordon", f"{name}-2")
        assert "1 cordoned, 1 not Ready" in message(wait_ready(runs, "NoReadyNode"))
    finally:
        runs.player.remove_node(f"{name}-2")
    runs.player.set_node_ready(name, ready=True)
    assert counts(wait_ready(runs, "NodesFound")) == (1, 1, 8, 8)
    columns, values = runs.cluster.kubectl("get", "gpupool", name).stdout.splitlines()
    assert columns.split("  ")[0] == "NAME"
    assert "NODES READY" in columns
    assert values.split()[:4] == [name, "8", "8", "1"], "GPUs, per node, nodes ready"


def test_a_job_on_a_pool_that_matches_no_node_waits_and_starts_when_one_appears(operated: Runs) -> None:
    runs, name = operated, operated.namespace
    runs.cluster.apply(pool_manifest(name, nodeSelector={NODE_LABEL: f"{name}-late"}))
    assert "wait for an autoscaler or the platform team" in message(wait_ready(runs, "NoMatchingNode"))
    runs.apply()
    runs.succeed("prepare")
    told = runs.wait_phase("Baseline", reason="Unschedulable")
    waits = runs.wait(lambda: (s := runs.status()).message.startswith("pool") and s, "the pool's words on the job")
    assert f"pool {name}: no node matches {NODE_LABEL}={name}-late now" in waits.message
    assert "node(s) didn't match Pod's node affinity/selector" in waits.message
    assert "autoscaler" in waits.next_step
    assert told.stages[-1].attempt == 1
    runs.player.add_node(f"{name}-late", gpus=8, labels={NODE_LABEL: f"{name}-late"})
    try:
        wait_ready(runs, "NodesFound")
        assert runs.begin("baseline").attempt == 1
    finally:
        runs.player.remove_node(f"{name}-late")


def test_a_number_of_gpus_that_no_node_has_is_named(operated: Runs) -> None:
    runs, name = operated, operated.namespace
    runs.cluster.apply(pool_manifest(name, gpusPerNode=16))
    wait_ready(runs, "TooFewGPUs")
    runs.apply(compute={"gpusPerNode": 16})
    runs.succeed("prepare")
    told = runs.wait(lambda: "asked for on one node" in (s := runs.status()).message and s, "the number to be named")
    assert (told.phase, told.reason) == ("Baseline", "Unschedulable")
    assert f"the largest ready node of pool {name} offers 8 (pod" in told.message
    assert "Insufficient nvidia.com/gpu" in told.message
    assert "at most 8 (compute.gpusPerNode)" in told.next_step


def test_more_gpus_than_the_pool_says_are_refused_before_anything_starts(operated: Runs) -> None:
    """By the admission policy, which knows the pools of now; by the operator where the pool came after the job."""
    runs, name = operated, operated.namespace
    with pytest.raises(AssertionError, match=f"compute.gpusPerNode: 9 asked, nodes of GPUPool {name} have 8"):
        runs.apply(compute={"gpusPerNode": 9})
    runs.cluster.kubectl("delete", "gpupool", name)
    runs.wait(lambda: applied(runs), "the policy to have seen that the pool is gone")
    runs.wait_phase("Pending", reason="PoolNotFound")
    runs.cluster.apply(pool_manifest(name))
    refused = runs.wait_phase("Failed", reason="InvalidSpec")
    assert f"compute.gpusPerNode: 9 asked, nodes of pool {name} have 8" in refused.message
    assert runs.jobs() == []


def applied(runs: Runs) -> bool:
    """Apply a job of 9 GPUs per node; False while the API server refuses it."""
    try:
        runs.apply(compute={"gpusPerNode": 9})
    except AssertionError:
        return False
    return True


def test_heartbeats_of_nodes_write_nothing(operated: Runs) -> None:
    runs = operated
    if not isinstance(runs.cluster, ControlPlane):
        pytest.skip("needs the audit log")
    wait_ready(runs, "NodesFound")
    core = client.CoreV1Api(runs.cluster.api())
    before = status_writes(runs)
    for number in range(50):
        condition = {"type": "Ready", "status": "True", "reason": f"Heartbeat{number}"}
        core.patch_node_status(
            runs.namespace,
            {"status": {"conditions": [condition]}},
            _content_type="application/strategic-merge-patch+json",
        )
    # A change after the heartbeats is seen after them: by then all of them have been looked at.
    runs.player.set_node_ready(runs.namespace, ready=False)
    wait_ready(runs, "NoReadyNode")
    assert status_writes(runs) - before <= 2, "one for the end of readiness, one for its taint"


def status_writes(runs: Runs) -> int:
    assert isinstance(runs.cluster, ControlPlane)
    return sum(
        1
        for event in runs.cluster.audit_events()
        if event["verb"] == "patch"
        and (place := event.get("objectRef") or {}).get("resource") == "gpupools"
        and place.get("subresource") == "status"
        and place.get("name") == runs.namespace
    )
