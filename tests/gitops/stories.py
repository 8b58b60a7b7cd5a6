"""Objects in every state that matters to a GitOps tool; their statuses are those that `decide` decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from finetune_api.adapter import Adapter
from finetune_api.adapterversion import AdapterVersion
from finetune_api.crd import UNSEEN
from finetune_api.gpupool import GPUPool
from finetune_operator.decide.pools import pool_status
from finetune_operator.decide.release import decide_release
from finetune_operator.decide.types import NodeState, PodState, QueueState
from tests.decide.world import BASELINE, START, World, evaluated, job_dict, pool

Object = dict[str, Any]
STAGES = ("prepare", "baseline", "train", "evaluate", "publish")


def follow(world: World) -> None:
    """What the operator does when an Adapter or a version changes: their statuses, then the job's."""
    assert world.adapter is not None
    status, by_name = decide_release(world.adapter, world.versions, world.now)
    world.adapter = Adapter.from_wire(world.adapter.to_wire() | {"status": status.to_wire()})
    world.versions = [
        AdapterVersion.from_wire(version.to_wire() | {"status": by_name[version.metadata.name].to_wire()})
        for version in world.versions
    ]
    world.settle()


def decide_version(world: World, decision: str, number: int = 1) -> None:
    """A person decides about a version."""
    for index, version in enumerate(world.versions):
        if version.spec.version == number:
            wire = version.to_wire()
            wire["spec"]["decisions"] = [{"by": "ada", "decision": decision, "reason": "read the report"}]
            world.versions[index] = AdapterVersion.from_wire(wire)
    follow(world)


def set_channel(world: World, wish: str) -> None:
    """The owner of the Adapter edits its channel."""
    assert world.adapter is not None
    wire = world.adapter.to_wire()
    wire["spec"]["channels"] = [{"name": "stable", "version": wish}]
    world.adapter = Adapter.from_wire(wire)
    follow(world)


def running(stage: str) -> World:
    world = World()
    world.run_to(stage)
    world.run_pods()
    return world


def finished(low: float = 0.06, high: float = 0.3) -> World:
    world = World()
    world.run_to("evaluate")
    world.succeed(evaluated(low, high, 1))
    world.succeed()
    follow(world)
    return world


def without_pool() -> World:
    world = World(pools=())
    world.settle()
    return world


def refused() -> World:
    world = World(job_dict(compute={"pool": "a100", "gpusPerNode": 16}))
    world.settle()
    return world


def queued() -> World:
    world = World(job_dict(compute={"pool": "a100", "queue": "team-a"}))
    world.run_to("train")
    world.set_run(state="Queued", queue=QueueState("team-a", position=3, message="waits for 2 of a100-80"))
    world.settle()
    return world


def unschedulable() -> World:
    world = World()
    world.run_to("train")
    world.set_run(pods=(PodState("pod-0", unschedulable="0/4 nodes are available"),))
    world.settle()
    return world


def retrying() -> World:
    world = running("train")
    world.end(exit_code=82)
    return world


def failed() -> World:
    world = running("train")
    world.end(exit_code=88)
    assert world.status.phase == "Failed"
    return world


def stopped(**spec: Any) -> World:
    world = running("train")
    world.edit(**spec)
    world.settle()
    return world


def stopped_for_good(**spec: Any) -> World:
    world = stopped(**spec)
    world.remove_terminated()
    world.settle()
    return world


def suffices() -> World:
    evaluation = job_dict()["spec"]["evaluation"] | {
        "gates": [{"metric": "f1", "minimum": 0.7}],
        "stopWhenBaselineSuffices": True,
    }
    world = World(job_dict(evaluation=evaluation))
    world.run_to("baseline")
    world.succeed(BASELINE)
    return world


def unchanged() -> World:
    """The same inputs once more, from a second job: nothing is trained."""
    world = finished()
    again = World(job_dict() | {"metadata": job_dict()["metadata"] | {"name": "again", "uid": "uid-2"}})
    again.adapter, again.versions = world.adapter, world.versions
    again.settle()
    again.succeed()
    assert again.status.reason == "Unchanged"
    return again


def approved() -> World:
    world = finished()
    decide_version(world, "approve")
    return world


def pinned_elsewhere() -> World:
    """Version 1 is approved and served, then version 2 replaces it: the job of version 1 has nothing to wait for."""
    world = approved()
    second = world.versions[0].to_wire()
    second["metadata"]["name"] = "triage-v2"
    second["spec"] |= {"version": 2, "digest": "f" * 64, "uri": "s3://bucket/store/v2"}
    world.versions.append(AdapterVersion.from_wire(second))
    follow(world)
    return world


def rejected() -> World:
    world = finished()
    decide_version(world, "reject")
    return world


def rejected_after_release() -> World:
    world = approved()
    decide_version(world, "reject")
    return world


def edited() -> World:
    world = approved()
    world.edit(training={"seed": 7})
    return world


def job(world: World) -> Object:
    """The job as the API server shows it."""
    wire = world.job.to_wire()
    wire["metadata"].pop("labels", None)
    return wire


def deleting(world: World) -> Object:
    wire = job(world)
    wire["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return wire


def unseen(kind: str) -> Object:
    """A new object as the API server shows it before the operator has looked."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": "new", "namespace": "team-a", "generation": 1},
        "spec": {},
        "status": {"observedGeneration": UNSEEN},
    }


def versions(world: World, number: int = 1) -> Object:
    """The AdapterVersion of a world, with the generation that its status is about."""
    return world.versions[number - 1].to_wire()


def adapters(world: World) -> Object:
    """The Adapter of a world."""
    assert world.adapter is not None
    return world.adapter.to_wire()


def fresh_adapter() -> World:
    world = World()
    world.run_to("prepare")
    follow(world)
    return world


def pinned(wish: str) -> World:
    world = approved()
    set_channel(world, wish)
    return world


def gpu_node(name: str, *, ready: bool = True, gpus: int = 8) -> NodeState:
    """A node that the pool's selector matches."""
    return NodeState(name, {"accelerator": "a100"}, extended_resources={"nvidia.com/gpu": gpus}, ready=ready)


def pools(*nodes: NodeState, counted: bool = True, edited: bool = False) -> Object:
    """A GPUPool with the status that its nodes give it; edited since, or not counted where no operator counts."""
    made = pool(nodeSelector={"accelerator": "a100"}).to_wire()
    made["metadata"]["generation"] = 1
    if counted:
        made["status"] = pool_status(GPUPool.from_wire(made), nodes, START).to_wire()
    if edited:
        made["metadata"]["generation"] = 2
    return made


STORIES: list[tuple[str, Callable[[], Object], str, str]] = [
    # what has happened, object, health in Argo CD, status in kstatus
    ("job, not seen yet", lambda: unseen("FineTuneJob"), "Progressing", "InProgress"),
    ("job, its pool does not exist", lambda: job(without_pool()), "Degraded", "Failed"),
    ("job, refused for good", lambda: job(refused()), "Degraded", "Failed"),
    *(
        (f"job, {stage} runs", lambda stage=stage: job(running(stage)), "Progressing", "InProgress")  # type: ignore[misc]
        for stage in STAGES
    ),
    ("job, queued", lambda: job(queued()), "Progressing", "InProgress"),
    ("job, no node has room", lambda: job(unschedulable()), "Progressing", "InProgress"),
    ("job, tried again later", lambda: job(retrying()), "Progressing", "InProgress"),
    ("job, failed", lambda: job(failed()), "Degraded", "Failed"),
    ("job, being suspended", lambda: job(stopped(suspend=True)), "Progressing", "InProgress"),
    ("job, suspended", lambda: job(stopped_for_good(suspend=True)), "Suspended", "Current"),
    ("job, being cancelled", lambda: job(stopped(cancel=True)), "Progressing", "InProgress"),
    ("job, cancelled", lambda: job(stopped_for_good(cancel=True)), "Suspended", "Current"),
    ("job, waits for approval", lambda: job(finished()), "Suspended", "Current"),
    ("job, a gate is inconclusive", lambda: job(finished(0.0, 0.3)), "Suspended", "Current"),
    ("job, a gate failed", lambda: job(finished(-0.1, 0.04)), "Degraded", "Current"),
    ("job, released", lambda: job(approved()), "Healthy", "Current"),
    ("job, approved and replaced since", lambda: job(pinned_elsewhere()), "Healthy", "Current"),
    ("job, its version rejected", lambda: job(rejected()), "Degraded", "Current"),
    ("job, its version taken back", lambda: job(rejected_after_release()), "Degraded", "Current"),
    ("job, unchanged, its version waits", lambda: job(unchanged()), "Suspended", "Current"),
    ("job, the baseline suffices", lambda: job(suffices()), "Healthy", "Current"),
    ("job, edited after its end", lambda: job(edited()), "Progressing", "InProgress"),
    ("job, being deleted", lambda: deleting(approved()), "Progressing", "Terminating"),
    ("version, not seen yet", lambda: unseen("AdapterVersion"), "Progressing", "InProgress"),
    ("version, waits for approval", lambda: versions(finished()), "Suspended", "Current"),
    ("version, served", lambda: versions(approved()), "Healthy", "Current"),
    ("version, approved and replaced since", lambda: versions(pinned_elsewhere()), "Healthy", "Current"),
    ("version, rejected", lambda: versions(rejected()), "Degraded", "Current"),
    ("version, a gate failed", lambda: versions(finished(-0.1, 0.04)), "Degraded", "Current"),
    ("adapter, not seen yet", lambda: unseen("Adapter"), "Progressing", "InProgress"),
    ("adapter, no version yet", lambda: adapters(fresh_adapter()), "Healthy", "Current"),
    ("adapter, nothing approved yet", lambda: adapters(finished()), "Healthy", "Current"),
    ("adapter, served", lambda: adapters(approved()), "Healthy", "Current"),
    ("adapter, pinned to what is approved", lambda: adapters(pinned("v1")), "Healthy", "Current"),
    ("adapter, pinned to what does not exist", lambda: adapters(pinned("v9")), "Degraded", "Failed"),
    ("pool, its nodes not counted", lambda: pools(counted=False), "Healthy", "Current"),
    ("pool, has nodes", lambda: pools(gpu_node("a"), gpu_node("b")), "Healthy", "Current"),
    ("pool, no node yet", pools, "Progressing", "InProgress"),
    ("pool, its node restarts", lambda: pools(gpu_node("a", ready=False)), "Progressing", "InProgress"),
    ("pool, its nodes offer too few GPUs", lambda: pools(gpu_node("a", gpus=4)), "Degraded", "InProgress"),
    ("pool, edited", lambda: pools(gpu_node("a"), edited=True), "Progressing", "InProgress"),
]
