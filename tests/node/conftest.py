"""What the node tests share: one cluster with a real node per session, one namespace per test."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client

from tests.cluster.harness import images
from tests.cluster.harness.binaries import binary
from tests.cluster.harness.cluster import UNDER_TEST, Cluster, given_cluster
from tests.cluster.harness.node.cluster import NodeCluster
from tests.cluster.harness.node.node import Node
from tests.cluster.harness.node.requirements import missing_for_node
from tests.cluster.harness.oci import write_image
from tests.cluster.harness.pods import Pods
from tests.cluster.harness.s3 import S3Server
from tests.cluster.harness.waiting import wait_for

PROBE_IMAGE = "localhost/probe:1"
HOST_ADDRESS = "FINETUNE_TEST_HOST_ADDRESS"


@pytest.fixture(scope="session")
def node_cluster() -> Iterator[NodeCluster]:
    """A control plane with one node of 8 GPUs that has our images; skips where there can be none of our own."""
    if UNDER_TEST in os.environ:
        pytest.skip("a given cluster's nodes are not ours to break")
    if reason := missing_for_node() or images.missing():
        pytest.skip(reason)
    with NodeCluster(audit=True, node_grace_s=30) as cluster:
        cluster.add_node("node-0", gpus=8, image_targets=("operator", "runner"))
        yield cluster


@pytest.fixture(scope="session")
def node(node_cluster: NodeCluster) -> Node:
    """The node that is always there."""
    return node_cluster.nodes["node-0"]


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster whose nodes run pods: the one of ``KUBECONFIG_UNDER_TEST``, or ours; images are its owner's matter."""
    with given_cluster() as given:
        yield given or request.getfixturevalue("node_cluster")


@pytest.fixture(scope="session")
def host_address(cluster: Cluster) -> str:
    """The address at which pods reach servers of this machine."""
    if isinstance(cluster, NodeCluster):
        return cluster.host_address
    if HOST_ADDRESS not in os.environ:
        pytest.skip(f"needs {HOST_ADDRESS}: the address at which the given cluster's pods reach this machine")
    return os.environ[HOST_ADDRESS]


@pytest.fixture(scope="session")
def s3_for_pods(host_address: str) -> Iterator[S3Server]:
    """An S3 server outside the cluster, reachable from its pods."""
    with S3Server(host=host_address) as server:
        yield server


@pytest.fixture(scope="session")
def probe_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of one static program that does and sees what pods do and see."""
    archive = tmp_path_factory.mktemp("images") / "probe.tar"
    return write_image(archive, PROBE_IMAGE, {"/probe": binary("pause", "probe")}, ["/probe"])


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A fresh namespace under Pod Security `restricted`; deleted with all that is in it."""
    core = client.CoreV1Api(cluster.api())
    name = f"test-{secrets.token_hex(5)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=name, labels=labels)))
    wait_for(
        lambda: core.list_namespaced_service_account(name, field_selector="metadata.name=default").items,
        30,
        f"the service account of namespace {name}",
        poll_s=0.02,
    )
    yield name
    core.delete_namespace(name)


@pytest.fixture
def pods(node_cluster: NodeCluster, node: Node, probe_archive: Path, namespace: str) -> Pods:
    """Makes pods of the probe image in the test's namespace, and reads how they end."""
    node.import_image(probe_archive)
    return Pods(node_cluster, namespace, PROBE_IMAGE, context=node.logs)
