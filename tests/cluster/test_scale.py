"""Many nodes: what the control plane, and whoever runs on it, has to live with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kubernetes import client

from tests.cluster.harness.controlplane import ControlPlane
from tests.cluster.harness.kwok import GPU, LABEL, Kwok, is_ready
from tests.cluster.harness.waiting import wait_for

DEADLINE_S = 180
NODES, PODS = 200, 100


@pytest.fixture(scope="module")
def large() -> Iterator[ControlPlane]:
    """A cluster of 200 nodes with 8 GPUs each."""
    with ControlPlane(node_lifecycle=True) as plane, Kwok(plane) as kwok:
        kwok.add_nodes(NODES, gpus=8)
        yield plane


def test_hundreds_of_gpu_nodes_are_ready(large: ControlPlane) -> None:
    nodes = client.CoreV1Api(large.api()).list_node().items
    assert len(nodes) == NODES
    assert all(is_ready(node) and node.status.allocatable[GPU] == "8" for node in nodes)


def test_a_job_of_a_hundred_pods_spreads_over_them_and_completes(large: ControlPlane) -> None:
    container = {"name": "main", "image": "localhost/any:1", "resources": {"limits": {GPU: "8"}}}
    template = {"spec": {"restartPolicy": "Never", "nodeSelector": {LABEL: "true"}, "containers": [container]}}
    spec = {"completions": PODS, "parallelism": PODS, "completionMode": "Indexed", "template": template}
    batch = client.BatchV1Api(large.api())
    batch.create_namespaced_job("default", {"metadata": {"name": "wide"}, "spec": spec})

    def complete() -> bool:
        return batch.read_namespaced_job("wide", "default").status.succeeded == PODS

    wait_for(complete, DEADLINE_S, f"{PODS} pods to complete")
    pods = client.CoreV1Api(large.api()).list_namespaced_pod("default").items
    assert {pod.status.phase for pod in pods} == {"Succeeded"}
    # A pod that has completed gives its GPUs back, so a node may serve twice; most do not have to.
    assert len({pod.spec.node_name for pod in pods}) > PODS / 2
