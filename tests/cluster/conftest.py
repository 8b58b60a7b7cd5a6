"""What the cluster tests share: one cluster and one S3 server per session, one namespace per test."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client

from tests.cluster.harness.cluster import Cluster, given_cluster
from tests.cluster.harness.controlplane import ControlPlane
from tests.cluster.harness.kubelet import PodPlayer
from tests.cluster.harness.operator_process import OperatorProcess, grant_lease
from tests.cluster.harness.policies import wait_for_policies
from tests.cluster.harness.runs import NODE_LABEL, Runs, pool_manifest
from tests.cluster.harness.s3 import S3Server
from tests.cluster.harness.waiting import wait_for


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster of ``KUBECONFIG_UNDER_TEST``, or a control plane of our own for the session."""
    with contextlib.ExitStack() as stack:
        yield stack.enter_context(given_cluster()) or stack.enter_context(ControlPlane(audit=True))


@pytest.fixture(scope="session")
def installed(cluster: Cluster) -> Cluster:
    """The cluster with what `manifests/base` installs: CRDs, roles, admission policies (no Deployment runs)."""
    install(cluster)
    return cluster


def install(cluster: Cluster) -> None:
    """Apply `manifests/base` and wait until our kinds are served and judged."""
    base = Path(__file__).parents[2] / "manifests" / "base"
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-k", base)
    plurals = ("finetunejobs", "gpupools", "adapters", "adapterversions")
    crds = [f"crd/{plural}.finetune.dev" for plural in plurals]
    cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", *crds)
    wait_for_policies(cluster)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """An S3 server for the session; tests take a bucket of their own with ``s3.make_bucket()``."""
    with S3Server() as server:
        yield server


@pytest.fixture(scope="session")
def player(cluster: Cluster) -> PodPlayer:
    """The hand that moves pods, for tests that run no code in them."""
    return PodPlayer(cluster)


@pytest.fixture
def namespace(cluster: Cluster, player: PodPlayer) -> Iterator[str]:
    """A fresh namespace with its default service account; deleted with all that is in it."""
    core = client.CoreV1Api(cluster.api())
    name = f"test-{secrets.token_hex(5)}"
    core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=name)))
    wait_for(
        lambda: core.list_namespaced_service_account(name, field_selector="metadata.name=default").items,
        30,
        f"the service account of namespace {name}",
        poll_s=0.02,
    )
    yield name
    core.delete_namespace(name)
    for pod in player.pods(name):  # no kubelet ends them, and the namespace would wait for them for ever
        player.lose(pod)


@pytest.fixture
def runs(installed: Cluster, namespace: str, player: PodPlayer) -> Iterator[Runs]:
    """A namespace ready for FineTuneJobs: Pod Security restricted, a node with 8 GPUs, a pool."""
    playing = make_runs(installed, namespace, player)
    yield playing
    playing.close()
    installed.kubectl("delete", "gpupool", namespace, "--ignore-not-found", "--wait=false")
    player.remove_node(namespace)


def make_runs(installed: Cluster, namespace: str, player: PodPlayer) -> Runs:
    """Make a namespace ready for FineTuneJobs."""
    installed.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    grant_lease(installed, namespace)
    player.add_node(namespace, gpus=8, labels={NODE_LABEL: namespace})
    installed.apply(pool_manifest(namespace))
    return Runs(installed, namespace, player)


@pytest.fixture(scope="module")
def operator(installed: Cluster) -> Iterator[OperatorProcess]:
    """One operator for the whole cluster and a whole module: starting one takes longer than most tests."""
    process = OperatorProcess(installed).started()
    yield process
    process.kill()


@pytest.fixture
def operated(operator: OperatorProcess, runs: Runs) -> Runs:
    """A namespace served by the module's operator."""
    operator.check()
    runs.operators.append(operator)
    return runs
