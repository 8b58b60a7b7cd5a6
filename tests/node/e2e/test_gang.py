"""Scale: two pods of a gang learn what one pod learns."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from finetune_operator.views import INDEX_ANNOTATION
from tests.cluster.harness.waiting import wait_for
from tests.node.e2e.tenant import POLL_S, RUN_DEADLINE_S, TEST_TIMEOUT_S, Tenant

pytestmark = pytest.mark.timeout(TEST_TIMEOUT_S)


def curve(tenant: Tenant, name: str) -> list[dict[str, Any]]:
    """The loss curve that a job's training left in storage."""
    points: list[dict[str, Any]] = json.loads(tenant.read(f"{tenant.run_prefix(name)}/train/history.json"))
    return points


def printed(points: list[dict[str, Any]]) -> list[tuple[int, str, str]]:
    """A curve to the digits people see."""
    return [(point["step"], f"{point['validation_loss']:.3f}", f"{point['train_loss'] or 0:.3f}") for point in points]


GANGS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {"strategy": "fsdp"},
}
"""What a job asks for, by the strategy that its plan gets."""
PUBLISHED = "ddp"
"""The gang that goes on to the end; the others are stopped when they have trained."""


def test_gangs_have_the_losses_of_one_pod_although_ranks_were_deleted_on_the_way(tenant: Tenant) -> None:
    pool = tenant.make_pool(gpuPod={"cpu": "100m", "memory": "2Gi"})
    shapes = {"alone": {"nodes": 1}} | {name: {"nodes": 2, **asked} for name, asked in GANGS.items()}
    for name, compute in shapes.items():
        tenant.apply_job(
            *(name, pool),
            training={"epochs": 2, "globalBatchSize": 8, "validationSamples": 0},
            method={"dropout": 0},
            compute=compute,
            output={"adapterRef": {"name": name}},
        )
    with ThreadPoolExecutor() as pool:
        stopped = [pool.submit(stop_when_trained, tenant, name) for name in shapes if name != PUBLISHED]
        steps = delete_a_rank_of_each(tenant, *GANGS)
        for stop in stopped:
            stop.result()
    ends = {name: tenant.wait_end(name) for name in shapes}
    assert ends[PUBLISHED]["phase"] == "Succeeded", tenant.told(PUBLISHED)
    for name, end in ends.items():
        assert end["results"]["train"]["strategy"] == end["plan"]["strategy"] == {"alone": "single"}.get(name, name)
    curves = {name: printed(curve(tenant, name)) for name in shapes}
    assert curves == dict.fromkeys(shapes, curves["alone"])
    losses = ("initialValidationLoss", "bestValidationLoss", "trainLoss")
    results = {name: [f"{end['results']['train'][loss]:.4f}" for loss in losses] for name, end in ends.items()}
    print(json.dumps(results))
    assert results == dict.fromkeys(shapes, results["alone"])
    for name, step in steps.items():
        first, second = (entry for entry in ends[name]["stages"] if entry["name"] == "train")
        assert first["cause"] in ("Interrupted", "PodDeleted"), first
        assert not first["countsAgainstRetries"]
        assert second["resumedFromStep"] >= step


def stop_when_trained(tenant: Tenant, name: str) -> None:
    """Cancel a job at the end of its training: nothing that follows is looked at."""
    tenant.wait_status(name, lambda status: status.get("results", {}).get("train"), "the end of training")
    tenant.kubectl("patch", "ftj", name, "--type=merge", "-p", json.dumps({"spec": {"cancel": True}}))


def delete_a_rank_of_each(tenant: Tenant, *names: str) -> dict[str, int]:
    """Delete a pod of each gang as soon as there is a checkpoint; the checkpoints' steps."""
    steps: dict[str, int] = {}

    def delete() -> bool:
        for name in set(names) - set(steps):
            if saved := tenant.checkpoint_steps(name):
                pods = tenant.pods(name, "train")
                assert all(pod.spec.subdomain for pod in pods), "the pods of a gang have names"
                ranks = {pod.metadata.annotations[INDEX_ANNOTATION]: pod for pod in pods}
                assert sorted(ranks) == ["0", "1"]
                tenant.core.delete_namespaced_pod(ranks["1"].metadata.name, tenant.namespace)
                steps[name] = saved[-1]
        return len(steps) == len(names)

    wait_for(
        *(delete, RUN_DEADLINE_S, "a checkpoint of each gang"),
        poll_s=POLL_S,
        context=lambda: "\n".join(map(tenant.told, names)),
    )
    return steps
