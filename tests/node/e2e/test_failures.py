"""What goes wrong on a real node is named in the status, with its evidence and what to do."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from kubernetes import client

from tests.cluster.harness.waiting import wait_for
from tests.node.e2e.tenant import RUN_DEADLINE_S, TEST_TIMEOUT_S, Tenant

pytestmark = pytest.mark.timeout(TEST_TIMEOUT_S)
NAMED_WITHIN_S = 60
"""From when the cluster shows that something went wrong until the status says what and what to do."""


@dataclass(frozen=True)
class Mishap:
    """Something wrong with a pool or a job, and what the status has to say."""

    cause: str
    evidence: str
    hint: str
    pool: dict[str, Any]
    job: Callable[[str], dict[str, Any]] = lambda bucket: {}


MISHAPS = {
    "host-memory": Mishap(
        cause="HostOutOfMemory",
        evidence="OOMKilled",
        hint="more memory per pod",
        pool={"cpuPod": {"cpu": "100m", "memory": "48Mi"}},
    ),
    "wrong-image": Mishap(
        cause="ImagePull",
        evidence="ErrImageNeverPull",
        hint="correct the image of the GPUPool",
        pool={"image": "localhost/no-such-image:1"},
    ),
    "wrong-bucket": Mishap(
        cause="SourceNotFound",
        evidence="no-such-bucket",
        hint="",
        pool={},
        job=lambda bucket: {"data": {"train": [{"source": "s3://no-such-bucket/train.jsonl"}]}},
    ),
    "too-many-gpus": Mishap(
        cause="Unschedulable",
        evidence="nvidia.com/gpu",
        hint="compute.gpusPerNode",
        pool={"gpusPerNode": 16, "gpuMemoryGib": 80},
        job=lambda bucket: {"compute": {"gpusPerNode": 16}, "training": {"globalBatchSize": 16}},
    ),
    "full-volume": Mishap(
        cause="DiskFull",
        evidence="",
        hint="scratchSize",
        pool={"scratchSize": "8Mi"},
        job=lambda bucket: {"data": {"train": [{"source": f"s3://{bucket}/data/large.jsonl"}]}},
    ),
}


def large_rows() -> list[dict[str, Any]]:
    """24 MB of different rows: reading them takes prepare longer than the kubelet takes to measure a volume."""
    chance = random.Random(0)
    texts = (" ".join(f"{chance.randrange(16**6):06x}" for _ in range(1100)) for _ in range(3000))
    answers = [{"role": "assistant", "content": json.dumps({"category": name})} for name in ("billing", "access")]
    return [{"messages": [{"role": "user", "content": text}, answers[number % 2]]} for number, text in enumerate(texts)]


def gone_wrong(pod: client.V1Pod) -> bool:
    """Whether the cluster shows that a pod failed or cannot start."""
    states = [item.state for item in pod.status.container_statuses or []]
    failed = [state.terminated for state in states if state.terminated and state.terminated.exit_code]
    reasons = {state.waiting.reason for state in states if state.waiting} - {None, "ContainerCreating"}
    refused = [item for item in pod.status.conditions or [] if item.reason == "Unschedulable"]
    return bool(failed or reasons or refused or pod.status.phase == "Failed")


@pytest.mark.parametrize("name", MISHAPS)
def test_the_cause_and_what_to_do_are_in_the_status(tenant: Tenant, name: str) -> None:
    mishap = MISHAPS[name]
    if name == "full-volume":
        tenant.put_rows("data/large.jsonl", large_rows())
    pool = tenant.make_pool(name, **mishap.pool)
    tenant.apply_job(name, pool, **mishap.job(tenant.bucket))

    def named(status: dict[str, Any]) -> dict[str, Any] | None:
        return next((entry for entry in status.get("stages", []) if entry.get("cause") == mishap.cause), None)

    wait_for(
        lambda: any(map(gone_wrong, tenant.pods(name))),
        RUN_DEADLINE_S,
        f"a pod of {name} that goes wrong",
        context=lambda: tenant.told(name),
    )
    happened = time.monotonic()
    entry = tenant.wait_status(name, named, f"cause {mishap.cause}", deadline_s=NAMED_WITHIN_S)
    print(f"{name}: {mishap.cause} was in the status {time.monotonic() - happened:.1f} s after it happened")
    assert entry is not None
    assert mishap.evidence in entry["message"] + entry.get("evidence", "")
    assert mishap.hint in entry["hint"]
    status = tenant.status(name)
    assert status["reason"] in (mishap.cause, "Retrying"), "people read it without looking at attempts"
