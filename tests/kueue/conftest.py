"""A cluster with Kueue for the session; one namespace with a queue of two GPUs per test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from kubernetes import client

from tests.cluster.conftest import cluster, installed, namespace, operated, operator, player, runs
from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.controlplane import ControlPlane
from tests.cluster.harness.kueue import Kueue, cluster_queue, local_queue, priority_class, resource_flavor
from tests.cluster.harness.runs import NODE_LABEL, Runs

__all__ = ["cluster", "installed", "namespace", "operated", "operator", "player", "runs"]

QUEUE = "gpus"
"""The LocalQueue of every test's namespace."""
QUOTA_GPUS = 2


@pytest.fixture(scope="session", autouse=True)
def kueue(cluster: Cluster) -> Iterator[Kueue | None]:
    """Kueue beside our own control plane; on a given cluster, the one that is installed there."""
    if isinstance(cluster, ControlPlane):
        with Kueue(cluster) as own:
            yield own
        return
    if cluster.kubectl("get", "crd", "workloads.kueue.x-k8s.io", check=False).returncode != 0:
        pytest.skip("the given cluster has no Kueue")
    yield None


@dataclass
class Queue:
    """A namespace's quota of GPUs and what waits for it."""

    runs: Runs
    name: str

    def workloads(self) -> list[dict[str, Any]]:
        """Kueue's Workloads in the namespace, oldest first."""
        custom = client.CustomObjectsApi(self.runs.cluster.api())
        listed = custom.list_namespaced_custom_object("kueue.x-k8s.io", "v1beta2", self.runs.namespace, "workloads")
        return sorted(listed["items"], key=lambda item: item["metadata"]["creationTimestamp"])

    def apply(self, name: str, gpus: int = QUOTA_GPUS, **compute: Any) -> None:
        """A FineTuneJob whose stages with GPUs go through the queue."""
        self.runs.apply(name, adapter=name, compute={"queue": QUEUE, "gpusPerNode": gpus} | compute)

    def hold(self, name: str, **compute: Any) -> None:
        """A FineTuneJob that runs its baseline, with all of the quota."""
        self.apply(name, **compute)
        self.runs.succeed("prepare", name=name)
        self.runs.begin("baseline", name=name)

    def release(self, name: str) -> None:
        """Cancel a job that runs, and wait until its pods have given their GPUs back."""
        running = self.runs.stage(name)
        assert running is not None
        self.runs.patch(name, cancel=True)
        self.runs.wait_gone(running.job_name)

    def patch(self, **spec: Any) -> None:
        """Change the ClusterQueue."""
        self.runs.cluster.apply(cluster_queue(self.name, self.name, **({"gpus": QUOTA_GPUS} | spec)))


def make_queue(runs: Runs) -> Queue:
    """A flavor for the test's node, a ClusterQueue that covers only GPUs, a LocalQueue, and two priorities."""
    name = runs.namespace
    runs.cluster.apply(
        [
            resource_flavor(name, {NODE_LABEL: name}),
            cluster_queue(name, name, QUOTA_GPUS),
            local_queue(QUEUE, name, name),
            priority_class("urgent", 1000),
            priority_class("patient", 10),
        ]
    )
    return Queue(runs, name)


@pytest.fixture
def queue(operated: Runs) -> Iterator[Queue]:
    """The queue of the test's namespace, whose jobs a running operator serves."""
    yield make_queue(operated)
    for kind in ("clusterqueue", "resourceflavor"):
        operated.cluster.kubectl("delete", kind, operated.namespace, "--wait=false")
