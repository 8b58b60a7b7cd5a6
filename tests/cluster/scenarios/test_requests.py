"""What the operator asks of the API server: few writes, no reads, and only what it has the right to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.stages import STAGES
from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.controlplane import ControlPlane
from tests.cluster.harness.operator_process import SERVICE_ACCOUNT, OperatorProcess
from tests.cluster.harness.progress import pod_token
from tests.cluster.harness.waiting import wait_for
from tests.cluster.scenarios.story import WRITES, Scene

pytestmark = pytest.mark.usefixtures("operator")
BASE = Path(__file__).parents[3] / "manifests" / "base"
WRITES_PER_STAGE = 4
IMPLIED = frozenset({"finetunejobs/finalizers"})
"""Asked for by admission (OwnerReferencesPermissionEnforcement) where it is on; no request uses them."""


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


def permissions() -> set[tuple[str, str, str]]:
    """(group, resource, verb) of everything the manifests allow the operator."""
    documents = yaml.safe_load_all((BASE / "rbac.yaml").read_text())
    roles = [document for document in documents if document["kind"] in ("ClusterRole", "Role")]
    return {
        (group, resource, verb)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def used(cluster: ControlPlane) -> Iterator[tuple[str, str, str]]:
    """(group, resource, verb) of every request of the operator to an object."""
    for event in cluster.audit_events(SERVICE_ACCOUNT):
        reference = event.get("objectRef")
        if reference is not None and event["stage"] == "ResponseComplete":
            name = "/".join(filter(None, (reference["resource"], reference.get("subresource"))))
            yield reference.get("apiGroup", ""), name, event["verb"]


def test_the_operator_has_the_rights_it_uses_and_no_others(
    scene: Scene, audited: ControlPlane, operator: OperatorProcess
) -> None:
    gang = scene.story("gang", compute={"nodes": 2, "gpusPerNode": 2}, ttlSecondsAfterFinished=0)
    token = pod_token(audited, gang.run("prepare"), gang.uid)
    assert operator.progress is not None
    endpoint = operator.progress
    said = {"stage": "prepare", "attempt": 1, "percent": 50}
    wait_for(
        lambda: endpoint.push(scene.namespace, "gang", token, said).status == 202, 30, "a push to be accepted", poll_s=2
    )
    gang.wait(lambda status: "50%" in status["progress"], "the progress that was pushed")
    gang.play_from("prepare")
    gang.wait_children_gone()
    refused = [event["requestURI"] for event in scene.requests() if event["responseStatus"]["code"] in (401, 403)]
    assert refused == []
    allowed = {item for item in permissions() if item[1] not in IMPLIED}
    asked = set(used(audited))
    unused = {item for item in allowed - asked if item[2] != "watch" or (item[0], item[1], "list") not in asked}
    assert unused <= RARE, f"allowed and never used: {sorted(unused - RARE)}"
    assert asked <= allowed | {("authorization.k8s.io", "selfsubjectaccessreviews", "create")}


RARE = frozenset(
    {
        # Only after a conflict, when an answer was lost.
        ("finetune.dev", "finetunejobs", "get"),
        ("finetune.dev", "adapters", "get"),
        ("finetune.dev", "adapterversions", "get"),
        ("batch", "jobs", "get"),
        # Only when a node does not come back.
        ("", "pods", "delete"),
    }
)
"""Rights that a story without accidents does not need."""
