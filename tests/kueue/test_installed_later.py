"""A cluster without Kueue, then one whose Kueue counts every resource, beside the Kueue of the other tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.conftest import install, make_runs
from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.controlplane import ControlPlane
from tests.cluster.harness.kubelet import PodPlayer
from tests.cluster.harness.kueue import GPU, Kueue
from tests.cluster.harness.runs import Runs
from tests.kueue.conftest import QUEUE, QUOTA_GPUS, Queue, make_queue

NAMESPACE = "team-a"


@pytest.fixture
def bare(cluster: Cluster) -> Iterator[Runs]:
    """A namespace in a control plane of its own, without Kueue."""
    if not isinstance(cluster, ControlPlane):
        pytest.skip("installs Kueue, which a given cluster has already")
    with ControlPlane() as plane:
        install(plane)
        plane.kubectl("create", "namespace", NAMESPACE)
        runs = make_runs(plane, NAMESPACE, PodPlayer(plane))
        yield runs
        runs.close()


def test_kueue_is_missing_then_installed_then_lacks_quota_for_the_cpu(bare: Runs) -> None:
    operator = bare.operator(extra=("--audit-seconds", "1"))
    bare.apply(compute={"queue": QUEUE, "gpusPerNode": QUOTA_GPUS})
    bare.succeed("prepare")
    missing = bare.wait_phase("Queued", reason="KueueMissing")
    assert f"compute.queue is {QUEUE}, but this cluster has no Kueue" in missing.message
    waiting = missing.stages[-1]
    assert isinstance(bare.cluster, ControlPlane)

    with Kueue(bare.cluster, excluded_prefixes=()) as kueue:
        bare.wait_phase("Queued", reason="QueueNotFound")
        queue = make_queue(bare)
        lacking = bare.wait_phase("Queued", reason="QueueLacksResource")
        assert lacking.message in {
            f"position 1 in queue {QUEUE}; resource {resource} unavailable in ClusterQueue"
            for resource in ("cpu", "memory")
        }
        assert "excludeResourcePrefixes" in lacking.next_step
        cover(queue)
        begun = bare.begin("baseline")
        assert (begun.attempt, begun.job_name) == (1, waiting.job_name)
        assert kueue.process.running
    # Kueue has gone away with its webhooks: the run goes on, and the operator with it.
    [pod] = bare.pods(begun)
    bare.player.succeed(pod, bare.report(pod))
    bare.wait_stage("train")
    assert operator.running


def cover(queue: Queue) -> None:
    """Give the ClusterQueue quota for what pods ask beside GPUs."""
    amounts = {GPU: QUOTA_GPUS, "cpu": "64", "memory": "512Gi"}
    resources = [{"name": name, "nominalQuota": amount} for name, amount in amounts.items()]
    group = {"coveredResources": list(amounts), "flavors": [{"name": queue.name, "resources": resources}]}
    queue.patch(resourceGroups=[group])
