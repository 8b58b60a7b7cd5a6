"""Who is woken by a change: a heartbeat wakes nobody, and a queue only those whose place changed."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_operator.api import NODES, PODS, workloads
from finetune_operator.decide.types import Key
from finetune_operator.reconcile import Item
from finetune_operator.store import Store
from finetune_operator.watch import Source, Watches

POOL = Item("pool", Key("", "a100"))


class Woken:
    """Watches, and the keys they have enqueued since last asked."""

    def __init__(self) -> None:
        self.store = Store()
        self._items: list[Item] = []
        self.watches = Watches(self.store, self._items.append)
        self.watches.use_kueue("v1beta2")

    def source(self, resource: Any) -> Source:
        return next(source for source in self.watches.sources if source.resource == resource)

    def tell(self, resource: Any, body: dict[str, Any], kind: str | None = "MODIFIED") -> list[Item]:
        """An object is indexed, then its event handled, as kopf does; who is woken."""
        if kind != "DELETED":
            self.source(resource).table.put(body)
        self.watches.changed(self.source(resource), kind, body)
        woken = sorted(set(self._items))
        self._items.clear()
        return woken


def named(name: str, version: int = 1, owner: str = "", namespace: str = "", **rest: Any) -> dict[str, Any]:
    owners = [{"uid": owner, "controller": True}] if owner else []
    metadata = {"name": name, "uid": f"uid-{name}", "resourceVersion": str(version), "ownerReferences": owners}
    return {"metadata": metadata | ({"namespace": namespace} if namespace else {}), **rest}


def node(version: int = 1, heartbeat: str = "1", gpus: str = "8", **labels: str) -> dict[str, Any]:
    ready = {"type": "Ready", "status": "True", "lastHeartbeatTime": heartbeat}
    allocatable = {"cpu": "64", "memory": "512Gi", "nvidia.com/gpu": gpus, "hugepages-1Gi": "0"}
    made = named("n1", version, status={"conditions": [ready], "allocatable": allocatable, "images": ["x"] * 50})
    made["metadata"]["labels"] = {"gpu": "a100"} | labels
    return made


@pytest.fixture
def woken() -> Woken:
    made = Woken()
    made.store.pools.put(named("a100", spec={"nodeSelector": {"gpu": "a100"}}))
    made.store.pools.put(named("h100", spec={"nodeSelector": {"gpu": "h100"}}))
    return made


def test_a_node_wakes_the_pools_it_is_in_and_its_heartbeat_nobody(woken: Woken) -> None:
    assert woken.tell(NODES, node()) == [POOL]
    assert woken.tell(NODES, node(2, heartbeat="2")) == []
    assert woken.tell(NODES, node(3, heartbeat="3", gpus="7")) == [POOL]
    assert woken.tell(NODES, node(4, gpus="7", gpu="h100")) == [POOL, Item("pool", Key("", "h100"))], (
        "left one, joined one"
    )
    assert woken.tell(NODES, node(4, gpus="7", gpu="h100"), "DELETED") == [Item("pool", Key("", "h100"))]
    assert len(woken.store.nodes) == 0


def test_what_is_kept_of_a_node(woken: Woken) -> None:
    made = node()
    made["spec"] = {
        "unschedulable": True,
        "taints": [
            {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"},
            {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"},
            {"key": "soft", "effect": "PreferNoSchedule"},
        ],
    }
    woken.tell(NODES, made)
    [entry] = woken.store.nodes
    assert entry.value.extended_resources == {"nvidia.com/gpu": 8}
    assert entry.value.taints == (("nvidia.com/gpu", "present", "NoSchedule"),)
    assert (entry.value.ready, entry.value.cordoned) == (True, True)


def test_a_missed_deletion_of_a_node_wakes_its_pools(woken: Woken) -> None:
    woken.tell(NODES, node())
    [entry] = woken.store.nodes
    assert woken.watches.concerned(woken.source(NODES), entry) == [POOL]


def test_a_pool_wakes_jobs_that_wait_for_it_and_no_other(woken: Woken) -> None:
    stages = {
        "waits": [{"state": "Pending"}],
        "runs": [{"state": "Running"}],
        "elsewhere": [{"state": "Pending"}],
        "new": [],
    }
    for name, attempts in stages.items():
        resolved = {"resolved": {"pool": "h100" if name == "elsewhere" else "a100"}} if attempts else {}
        woken.store.finetune_jobs.put(named(name, namespace="ns", status={"stages": attempts, **resolved}))
    source = next(source for source in woken.watches.sources if source.resource.plural == "gpupools")
    items = source.concerns(named("a100"))
    assert sorted(items) == [Item("job", Key("ns", "new")), Item("job", Key("ns", "waits")), POOL]


def workload(name: str, version: int = 1, reserved: bool = False, message: str = "", **spec: Any) -> dict[str, Any]:
    condition = {"type": "QuotaReserved", "status": str(reserved), "reason": "Pending", "message": message}
    made = named(name, version, owner=f"uid-job-{name}", namespace="ns", status={"conditions": [condition]})
    made["metadata"]["creationTimestamp"] = f"2026-01-01T00:00:{ord(name) - ord('a'):02d}Z"
    return made | {"spec": {"queueName": "gpus", "priority": 0} | spec}


@pytest.fixture
def queued(woken: Woken) -> Woken:
    """Jobs a, b and c, in this order in queue gpus."""
    for name in "abc":
        woken.store.finetune_jobs.put(named(name, namespace="ns"))
        woken.store.jobs.put(named(f"job-{name}", owner=f"uid-{name}", namespace="ns", spec={"suspend": True}))
        woken.tell(workloads("v1beta2"), workload(name))
    return woken


def jobs(*names: str) -> list[Item]:
    return [Item("job", Key("ns", name)) for name in names]


def positions(woken: Woken) -> list[int]:
    return [state.position if (state := woken.store.workloads.state_of(f"uid-job-{name}")) else -1 for name in "abc"]


def test_kueues_words_about_one_job_wake_this_one_only(queued: Woken) -> None:
    assert queued.tell(workloads("v1beta2"), workload("b", 2, message="2 more needed")) == jobs("b")


def test_a_job_that_leaves_its_queue_wakes_those_that_wait_there(queued: Woken) -> None:
    assert positions(queued) == [1, 2, 3]
    assert queued.tell(workloads("v1beta2"), workload("a", 2, reserved=True)) == jobs("a", "b", "c")
    assert positions(queued) == [0, 1, 2]
    assert queued.tell(workloads("v1beta2"), workload("b"), "DELETED") == jobs("b", "c")
    assert positions(queued) == [0, -1, 1]


def test_priority_goes_before_age_and_other_queues_do_not_count(queued: Woken) -> None:
    queued.tell(workloads("v1beta2"), workload("c", 2, priority=5))
    assert positions(queued) == [2, 3, 1]
    queued.tell(workloads("v1beta2"), workload("a", 2, queueName="other"))
    assert positions(queued) == [1, 2, 1]
    queued.tell(workloads("v1beta2"), workload("c", 3, priority=5, active=False))
    assert positions(queued) == [1, 1, 0]


def test_workloads_of_others_are_in_front_too(queued: Woken) -> None:
    foreign = workload("a", 7, priority=9)
    foreign["metadata"] |= {"name": "foreign", "uid": "foreign", "ownerReferences": []}
    queued.tell(workloads("v1beta2"), foreign)
    assert positions(queued) == [2, 3, 4]


def test_a_change_in_a_long_queue_wakes_only_those_whose_place_is_shown(woken: Woken) -> None:
    names = "abcdefghijklmnopqrst"
    for name in names:
        woken.store.finetune_jobs.put(named(name, namespace="ns"))
        woken.store.jobs.put(named(f"job-{name}", owner=f"uid-{name}", namespace="ns", spec={"suspend": True}))
        woken.tell(workloads("v1beta2"), workload(name))
    assert woken.tell(workloads("v1beta2"), workload("t", 2, message="more needed", priority=1)) == jobs(
        *names[:11], "t"
    )
    assert woken.tell(workloads("v1beta2"), workload("a", 2, reserved=True)) == jobs(*names[:11], "t")


def test_forgetting_leaves_nothing(queued: Woken) -> None:
    queued.watches.forget()
    assert positions(queued) == [-1, -1, -1]
    assert queued.store.workloads.first_in("ns", "gpus", 9) == []


def test_without_kueue_its_workloads_are_not_watched(woken: Woken) -> None:
    woken.watches.use_kueue("")
    assert not woken.store.kueue
    assert {source.resource.group for source in woken.watches.sources} == {"finetune.dev", "batch", ""}
    assert woken.source(PODS).selector, "of pods, only our own"
