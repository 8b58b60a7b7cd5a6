"""Projections in memory: newest wins, owners by uid only, and what a list says that the watch did not."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator.decide.types import Key
from finetune_operator.store import Store, number
from finetune_operator.views import is_settled, job_view, pod_view, stage_run


def body(name: str, uid: str, version: int = 1, owner: str = "", **rest: Any) -> dict[str, Any]:
    owners = [{"uid": owner, "controller": True, "kind": "x", "name": "y"}] if owner else []
    metadata = {"name": name, "namespace": "ns", "uid": uid, "resourceVersion": str(version), "ownerReferences": owners}
    return {"metadata": metadata, **rest}


def job(name: str = "job", uid: str = "job-1", version: int = 1, owner: str = "ftj", **rest: Any) -> dict[str, Any]:
    return body(name, uid, version, owner, **({"spec": {"completions": 1}, "status": {}} | rest))


def pod(name: str, uid: str, owner: str = "job-1", labels: dict[str, str] | None = None, **status: Any) -> Any:
    made = body(name, uid, 1, owner, status=status)
    made["metadata"]["labels"] = labels or {}
    return made


def test_an_older_version_never_replaces_a_newer_one() -> None:
    store = Store()
    store.jobs.put(job(version=7, status={"conditions": [{"type": "Complete", "status": "True"}]}))
    store.jobs.put(job(version=5))
    entry = store.jobs.get(Key("ns", "job"))
    assert entry is not None
    assert (entry.version, entry.value.outcome) == (7, "Succeeded")


def test_a_version_that_is_no_number_counts_as_new() -> None:
    store = Store()
    store.jobs.put(job(version=7))
    odd = job()
    odd["metadata"]["resourceVersion"] = "abc"
    store.jobs.put(odd)
    entry = store.jobs.get(Key("ns", "job"))
    assert entry is not None
    assert entry.version == 0
    assert number("12") == 12


def test_the_deletion_of_a_predecessor_does_not_touch_its_successor() -> None:
    store = Store()
    store.jobs.put(job(uid="old", version=1))
    store.jobs.put(job(uid="new", version=2))
    store.jobs.remove(Key("ns", "job"), "old")
    assert store.jobs.find("old") is None
    assert store.jobs.find("new") is not None
    store.jobs.remove(Key("ns", "job"), "new")
    assert len(store.jobs) == 0


def test_a_pod_belongs_along_the_chain_of_uids_whatever_its_labels_say() -> None:
    store = Store()
    store.finetune_jobs.put(body("support", "ftj", spec={}))
    store.jobs.put(job())
    liar = pod("liar", "p2", owner="somebody", labels={"finetune.dev/job": "support", "finetune.dev/job-uid": "ftj"})
    assert store.owner_of_pod(pod("real", "p1")) == Key("ns", "support")
    assert store.owner_of_pod(liar) is None
    store.pods.put(pod("real", "p1"))
    store.pods.put(liar)
    assert [entry.uid for entry in store.pods.owned_by("job-1")] == ["p1"]


def ended_pod(name: str, uid: str, owner: str = "job-1", version: int = 1) -> dict[str, Any]:
    made: dict[str, Any] = pod(name, uid, owner, phase="Failed")
    made["metadata"]["resourceVersion"] = str(version)
    return made


def test_how_a_pod_ended_is_known_after_it_is_gone_until_its_job_goes() -> None:
    store = Store()
    store.jobs.put(job())
    store.pods.put(pod("a", "pod-1", phase="Running"))
    store.pods.gone(ended_pod("a", "pod-1", version=2))
    assert store.pods.get(Key("ns", "a")) is None
    assert store.pods.find("pod-1") is None, "a pod that is gone sends no progress"
    assert [(entry.uid, entry.value.state.phase) for entry in store.pods.owned_by("job-1")] == [("pod-1", "Failed")]
    assert store.pods.missing_from({}, 99) == []
    store.jobs.gone(job())
    assert store.pods.owned_by("job-1") == []


@pytest.mark.parametrize(
    ("last", "job_known"),
    [(pod("a", "pod-1", phase="Running"), True), (ended_pod("a", "pod-1"), False)],
    ids=["no end to remember", "no job to remember it for"],
)
def test_other_pods_that_are_gone_are_forgotten(last: dict[str, Any], job_known: bool) -> None:
    store = Store()
    if job_known:
        store.jobs.put(job())
    store.pods.put(pod("a", "pod-1", phase="Running"))
    store.pods.gone(last)
    assert store.pods.owned_by("job-1") == []


def test_remembered_ends_go_with_everything_else() -> None:
    store = Store()
    store.jobs.put(job())
    store.pods.gone(ended_pod("a", "pod-1"))
    store.clear()
    store.jobs.put(job())
    assert store.pods.owned_by("job-1") == []


def test_an_owner_that_is_not_the_controller_does_not_count() -> None:
    store = Store()
    made = job(owner="ftj")
    made["metadata"]["ownerReferences"][0]["controller"] = False
    store.jobs.put(made)
    assert store.jobs.owned_by("ftj") == []


def test_what_a_newer_list_lacks_is_gone_and_what_it_has_is_not() -> None:
    store = Store()
    store.jobs.put(job("a", "a", version=3))
    store.jobs.put(job("b", "b", version=9))
    store.jobs.put(job("c", "c", version=3))
    missing = store.jobs.missing_from({"c": 3}, list_version=5)
    assert [entry.uid for entry in missing] == ["a"], "b is newer than the list"


def test_a_watch_is_behind_where_a_list_knows_more() -> None:
    store = Store()
    store.jobs.put(job("a", "a", version=3))
    store.jobs.put(job("b", "b", version=3))
    assert store.jobs.behind({"a": 3, "b": 4, "c": 1}) == ["b", "c"]


@pytest.mark.parametrize(
    ("changes", "pods", "state"),
    [
        ({}, [], "Pending"),
        ({}, [{"phase": "Pending"}], "Pending"),
        ({}, [{"phase": "Running"}], "Running"),
        ({}, [{"phase": "Running"}, {"phase": "Pending"}], "Pending"),
        ({"status": {"conditions": [{"type": "Complete", "status": "True"}]}}, [], "Succeeded"),
        ({"status": {"conditions": [{"type": "Failed", "status": "True"}]}}, [], "Failed"),
        ({"status": {"conditions": [{"type": "FailureTarget", "status": "True"}]}}, [{"phase": "Failed"}], "Running"),
        ({"spec": {"suspend": True}}, [], "Queued"),
    ],
)
def test_state_of_a_run(changes: dict[str, Any], pods: list[dict[str, Any]], state: str) -> None:
    views = [pod_view(pod(f"p{index}", f"p{index}", **status)) for index, status in enumerate(pods)]
    assert stage_run(job_view(job() | changes), views).state == state


def test_a_deleted_job_terminates_whatever_else_it_is() -> None:
    made = job(status={"conditions": [{"type": "Failed", "status": "True"}]})
    made["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert stage_run(job_view(made), []).state == "Terminating"


def test_an_end_is_settled_once_all_ends_it_counts_were_seen() -> None:
    ended = job_view(job(status={"conditions": [{"type": "Complete", "status": "True"}], "succeeded": 2}))
    done, running = pod_view(pod("a", "a", phase="Succeeded")), pod_view(pod("b", "b", phase="Running"))
    assert not is_settled(ended, [done, running])
    assert is_settled(ended, [done, done])
    assert is_settled(job_view(job(status={"active": 2})), [running])


def test_a_pod_is_reduced_to_what_diagnosis_needs() -> None:
    terminated = {
        "exitCode": 137,
        "reason": "OOMKilled",
        "message": "{}",
        "startedAt": "2026-01-01T00:00:00Z",
        "finishedAt": "2026-01-01T00:01:00Z",
    }
    status = {
        "phase": "Failed",
        "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"},
            {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"},
        ],
        "containerStatuses": [{"state": {"terminated": terminated}}],
    }
    made = pod("p", "p", **status)
    made["metadata"]["annotations"] = {"batch.kubernetes.io/job-completion-index": "3"}
    made["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    state = pod_view(made).state
    assert (state.index, state.phase, state.exit_code, state.reason) == (3, "Failed", 137, "OOMKilled")
    assert (state.unschedulable, state.disruption, state.terminating) == ("0/3 nodes", "PreemptionByScheduler", True)
    assert state.started_at is not None
    assert state.finished_at is not None
    assert (state.finished_at - state.started_at).total_seconds() == 60


def test_an_evicted_pod_speaks_through_its_own_reason() -> None:
    killed = {"state": {"terminated": {"exitCode": 137, "reason": "Error"}}}
    evicted = {"phase": "Failed", "reason": "Evicted", "message": "the node ran low on memory"}
    for containers in ([], [killed]):
        state = pod_view(pod("p", "p", containerStatuses=containers, **evicted)).state
        assert state.evicted == "the node ran low on memory", "whatever the container says of its end"


def deleted(name: str, at: str, tracked: bool) -> dict[str, Any]:
    """A pod whose deletion was asked for 30 s before `at`."""
    made = pod(name, name, phase="Running")
    made["metadata"] |= {"deletionTimestamp": at, "deletionGracePeriodSeconds": 30}
    made["metadata"]["finalizers"] = ["batch.kubernetes.io/job-tracking"] if tracked else []
    return made


def through_a_queue(**rest: Any) -> dict[str, Any]:
    made = job(**rest)
    made["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "team-a"}
    return made


def test_pods_that_a_queue_took_back_are_none_of_the_job_that_goes_on() -> None:
    """A Job lets go of its pods before it deletes them for its queue; their ends are not counted."""
    goes_on = {"startTime": "2026-01-01T01:00:01Z"}
    new = pod("new", "new", phase="Running")
    new["metadata"]["creationTimestamp"] = "2026-01-01T01:00:00Z"  # startTime may be a second after the first pods
    old = deleted("old", "2026-01-01T01:00:00Z", tracked=False)
    old["status"]["phase"] = "Failed"
    lost = deleted("lost", "2026-01-01T01:00:31Z", tracked=True)
    ended = deleted("ended", "2026-01-01T01:10:00Z", tracked=False)
    views = [pod_view(body) for body in (old, new, lost, ended)]

    run = stage_run(job_view(through_a_queue(status=goes_on)), views)
    assert ([state.name for state in run.pods], run.state) == (["ended", "lost", "new"], "Running")
    waits = through_a_queue(spec={"completions": 1, "suspend": True})
    assert len(stage_run(job_view(waits), views).pods) == 4, "while it waits, pods that end still cost"
    unstarted = stage_run(job_view(through_a_queue()), views[:1])
    assert (unstarted.pods, unstarted.state) == ((), "Pending")
    assert len(stage_run(job_view(job(status=goes_on)), views).pods) == 4, "without a queue a Job runs once"
