"""The images on a real node: the kubelet finds them without an import, also after a restart."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kubernetes import client

from tests.cluster.harness import images
from tests.cluster.harness.node.cluster import NodeCluster
from tests.cluster.harness.node.node import Node
from tests.cluster.harness.node.requirements import missing_for_node
from tests.cluster.harness.pods import Pods
from tests.cluster.harness.waiting import wait_for

pytestmark = pytest.mark.timeout(1800)  # whoever comes first builds gigabytes
NAMES = {"operator": images.OPERATOR, "runner": images.RUNNER}


@pytest.fixture(scope="module")
def cluster() -> Iterator[NodeCluster]:
    if reason := missing_for_node() or images.missing():
        pytest.skip(reason)
    with NodeCluster() as cluster:
        core = client.CoreV1Api(cluster.api())
        default = "metadata.name=default"
        wait_for(
            lambda: core.list_namespaced_service_account("default", field_selector=default).items,
            30,
            "the default service account",
        )
        yield cluster


@pytest.fixture(scope="module")
def node(cluster: NodeCluster) -> Node:
    return cluster.add_node(image_targets=("operator", "runner"))


@pytest.mark.parametrize("target", ["operator", "runner"])
def test_a_pod_runs_the_image(cluster: NodeCluster, node: Node, target: str) -> None:
    pods = Pods(cluster, "default", NAMES[target], context=node.logs)
    pods.run(target, "--help")
    assert pods.ended(target).exit_code == 0
    assert f"usage: finetune-{target}" in pods.log(target)


def test_a_node_that_was_switched_off_still_has_them(cluster: NodeCluster, node: Node) -> None:
    """At its start the kubelet's plugin looks every image through, and forgets one that lacks a layer."""
    node.stop()
    node.start()
    pods = Pods(cluster, "default", images.RUNNER, context=node.logs)
    pods.run("again", "--help")
    assert pods.ended("again").exit_code == 0
