"""Scale: two pods of a gang learn what one pod learns."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune_operator.views import INDEX_ANNOTATION
from tests.node.e2e.tenant import TEST_TIMEOUT_S, Tenant

pytestmark = pytest.mark.timeout(TEST_TIMEOUT_S)


def curve(tenant: Tenant, name: str) -> list[dict[str, Any]]:
    """The loss curve that a job's training left in storage."""
    points: list[dict[str, Any]] = json.loads(tenant.read(f"{tenant.run_prefix(name)}/train/history.json"))
    return points


def printed(points: list[dict[str, Any]]) -> list[tuple[int, str, str]]:
    """A curve to the digits people see."""
    return [(point["step"], f"{point['validation_loss']:.3f}", f"{point['train_loss'] or 0:.3f}") for point in points]


def test_a_gang_has_the_losses_of_one_pod_although_a_rank_was_deleted_on_the_way(tenant: Tenant) -> None:
    pool = tenant.make_pool()
    training = {"epochs": 1, "globalBatchSize": 8}
    for name, nodes in (("alone", 1), ("gang", 2)):
        tenant.apply_job(
            *(name, pool),
            training=training,
            method={"dropout": 0},
            compute={"nodes": nodes},
            output={"adapterRef": {"name": name}},
        )
    gang = tenant.running_pod("gang", "train")
    assert gang.spec.subdomain, "the pods of a gang have names"
    ranks = {pod.metadata.annotations[INDEX_ANNOTATION]: pod for pod in tenant.pods("gang", "train")}
    assert sorted(ranks) == ["0", "1"]
    step = tenant.wait_checkpoint("gang")
    tenant.core.delete_namespaced_pod(ranks["1"].metadata.name, tenant.namespace)
    alone, both = (tenant.wait_end(name) for name in ("alone", "gang"))
    assert (alone["phase"], both["phase"]) == ("Succeeded", "Succeeded"), tenant.told("gang")
    assert (alone["plan"]["strategy"], both["plan"]["strategy"]) == ("single", "ddp")
    assert printed(curve(tenant, "gang")) == printed(curve(tenant, "alone"))
    losses = ("initialValidationLoss", "bestValidationLoss", "trainLoss")
    single, double = (status["results"]["train"] for status in (alone, both))
    assert [f"{double[loss]:.4f}" for loss in losses] == [f"{single[loss]:.4f}" for loss in losses]
    first, second = (entry for entry in both["stages"] if entry["name"] == "train")
    assert first["cause"] in ("Interrupted", "PodDeleted"), first
    assert not first["countsAgainstRetries"]
    assert second["resumedFromStep"] >= step
