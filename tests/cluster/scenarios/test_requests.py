"""What the operator asks of the API server: few writes, and no reads. Its rights: tests/manifests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from finetune_api.stages import STAGES
from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.controlplane import ControlPlane
from tests.cluster.harness.waiting import wait_for
from tests.cluster.scenarios.story import WRITES, Scene

pytestmark = pytest.mark.usefixtures("operator")
WRITES_PER_STAGE = 4


@pytest.fixture(scope="module")
def audited(cluster: Cluster) -> ControlPlane:
    """The cluster, when it keeps an audit log."""
    if not isinstance(cluster, ControlPlane):
        pytest.skip("needs the audit log")
    return cluster


def is_about_objects(event: dict[str, Any]) -> bool:
    """Not a Lease, not an Event."""
    return event["objectRef"]["resource"] not in ("leases", "events")


def test_a_job_costs_few_requests(scene: Scene, audited: ControlPlane, record_property: Callable[..., None]) -> None:
    def served() -> Counter[tuple[str, str]]:
        counts: Counter[tuple[str, str]] = Counter()
        for item in audited.apiserver_metrics():
            name = "/".join(part for part in (item.resource, item.subresource) if part)
            counts[item.verb, name] += item.count
        return counts

    before = served()
    story = scene.story()
    story.play_from("prepare")
    wait_for(lambda: scene.objects("adapterversions")["triage-v1"].get("status"), 60, "the status of the version")
    wait_for(lambda: scene.objects("adapters")["triage"]["status"].get("versions") == 1, 60, "the Adapter to count it")
    by_metrics = served() - before
    events = [event for event in scene.requests() if is_about_objects(event)]
    writes = Counter(
        (event["verb"], "/".join(filter(None, (event["objectRef"]["resource"], event["objectRef"].get("subresource")))))
        for event in events
        if event["verb"] in WRITES
    )
    record_property("writes of one job", dict(writes))
    # The stages' own: the status of the job, and its Jobs.
    of_stages = writes["patch", "finetunejobs/status"] + writes["create", "jobs"]
    assert writes["create", "jobs"] == by_metrics["POST", "jobs"] == len(STAGES)
    assert by_metrics["PATCH", "finetunejobs/status"] == writes["patch", "finetunejobs/status"]
    assert of_stages <= WRITES_PER_STAGE * len(STAGES), writes
    # And once per run: the Adapter, the version, their statuses.
    assert sum(writes.values()) - of_stages <= 6, writes
    reads = [event["requestURI"] for event in events if event["verb"] in ("get", "list")]
    assert not reads, "nothing is read in the hot path"
