"""Replicas that die or stall at the worst moment: the next leader ends the run the same way, nothing happens twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from kubernetes import client

from finetune_api.stages import STAGES
from tests.cluster.harness.controlplane import ControlPlane
from tests.cluster.harness.operator_process import OPERATOR_NAMESPACE, SERVICE_ACCOUNT, OperatorProcess
from tests.cluster.harness.waiting import wait_for
from tests.cluster.scenarios.story import WRITES, Scene, Story

Replica = Callable[..., OperatorProcess]
LOST_LEASE_EXIT_CODE = 75
OTHER_USER = f"system:serviceaccount:{OPERATOR_NAMESPACE}:finetune-operator-other"


@pytest.fixture
def other_user(scene: Scene) -> str:
    """A second user with the operator's rights, so that the audit log tells two replicas apart."""
    role = {"apiGroup": "rbac.authorization.k8s.io", "name": "finetune-operator", "kind": "ClusterRole"}
    subjects = [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": OTHER_USER}]
    everywhere: dict[str, Any] = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "finetune-operator-other"},
        "roleRef": role,
        "subjects": subjects,
    }
    cluster_scoped = everywhere | {
        "metadata": {"name": "finetune-operator-other-cluster"},
        "roleRef": role | {"name": "finetune-operator-cluster"},
    }
    lease = everywhere | {
        "kind": "RoleBinding",
        "metadata": {"name": "finetune-operator-other", "namespace": OPERATOR_NAMESPACE},
        "roleRef": role | {"kind": "Role", "name": "finetune-operator-leader"},
    }
    scene.cluster.apply([everywhere, cluster_scoped, lease])
    return OTHER_USER


def test_a_stopped_leader_that_wakes_up_writes_nothing(scene: Scene, replica: Replica, other_user: str) -> None:
    cluster = scene.cluster
    if not isinstance(cluster, ControlPlane):
        pytest.skip("needs the audit log")
    first = replica(user=other_user).started().leading()
    second = replica().started()
    story = scene.story()
    story.play_to("train")
    story.run("train")
    first.pause()
    # Both will see the end of this pod: the second now, the first when it wakes up.
    story.end_well("train")
    second.leading()
    story.wait_attempt("evaluate")
    before = sum(1 for event in cluster.audit_events(other_user) if writes_objects(event))
    first.resume()
    wait_for(
        lambda: not first.running or not first.leads(), 30, "the first to leave or to follow", context=first.log_tail
    )
    assert story.finish()["reason"] == "AwaitingApproval"
    after = sum(1 for event in cluster.audit_events(other_user) if writes_objects(event))
    assert after == before, "the first wrote after its lease was over"
    if not first.running:
        assert first.wait() == LOST_LEASE_EXIT_CODE
    assert {event["user"]["username"] for event in scene.requests()} == {SERVICE_ACCOUNT}
    scene.assert_nothing_twice()


def writes_objects(event: dict[str, Any]) -> bool:
    """Whether an audited request changes anything but a Lease."""
    return event["verb"] in WRITES and event.get("objectRef", {}).get("resource") != "leases"


def ends_once(story: Story) -> None:
    """The run ends with a version, one attempt per stage."""
    status = story.finish()
    assert (status["phase"], status["reason"]) == ("Succeeded", "AwaitingApproval")
    assert [(stage["name"], stage["attempt"]) for stage in status["stages"]] == [(name, 1) for name in STAGES]


def test_killed_between_the_announcement_and_the_job(scene: Scene, replica: Replica) -> None:
    operator = replica().started().leading()
    none = client.V1ResourceQuota(
        metadata=client.V1ObjectMeta(name="no-jobs"), spec=client.V1ResourceQuotaSpec(hard={"count/jobs.batch": "0"})
    )
    scene.core.create_namespaced_resource_quota(scene.namespace, none)
    story = scene.story()
    status = story.wait(
        lambda seen: seen if "exceeded quota" in seen.get("message", "") else None, "the refusal in the status"
    )
    assert [stage["state"] for stage in status["stages"]] == ["Pending"]
    assert scene.jobs() == {}
    operator.kill()
    scene.core.delete_namespaced_resource_quota("no-jobs", scene.namespace)
    replica().started().leading()
    ends_once(story)
    scene.assert_nothing_twice()
