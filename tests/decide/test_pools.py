"""The state of a pool from the nodes there are, and what a job that waits for it is told."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from finetune_api.gpupool import GPUPool
from finetune_operator.decide.pools import pool_status
from finetune_operator.decide.types import NodeState, PodState
from tests.decide.world import START, World, job_dict, pool

LABELS = {"gpu": "a100"}
GPU_TAINT = ("nvidia.com/gpu", "present", "NoSchedule")
NODE = NodeState("n1", LABELS, (GPU_TAINT,), {"nvidia.com/gpu": 8}, ready=True)
ABSENT = {"key": "nvidia.com/gpu", "value": "absent"}
OTHER_EFFECT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoExecute"}


def a100(**spec: Any) -> GPUPool:
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists"}]
    return pool(**({"nodeSelector": LABELS, "tolerations": tolerations} | spec))


def with_gpus(count: int, name: str = "n1") -> NodeState:
    return replace(NODE, name=name, extended_resources={"nvidia.com/gpu": count} if count else {})


@pytest.mark.parametrize(
    ("spec", "nodes", "reason", "message", "counts"),
    [
        (
            {},
            [NODE, replace(NODE, name="n2")],
            "NodesFound",
            "2 nodes match, 2 ready, 16 nvidia.com/gpu",
            (2, 2, 16, 8),
        ),
        (
            {},
            [replace(NODE, labels={"gpu": "h100"})],
            "NoMatchingNode",
            "no node matches gpu=a100 now; jobs are accepted and wait for an autoscaler or the platform team",
            (0, 0, 0, 0),
        ),
        ({"nodeSelector": {}}, [], "NoMatchingNode", "the cluster has no node now; jobs", (0, 0, 0, 0)),
        (
            {},
            [replace(NODE, ready=False), replace(NODE, cordoned=True), replace(NODE, cordoned=True)],
            "NoReadyNode",
            "3 nodes match but none takes pods: 2 cordoned, 1 not Ready",
            (3, 0, 0, 0),
        ),
        (
            {"tolerations": []},
            [NODE],
            "NoReadyNode",
            "1 node matches but none takes pods: 1 with taint nvidia.com/gpu, which the pool does not tolerate",
            (1, 0, 0, 0),
        ),
        ({"tolerations": [ABSENT]}, [NODE], "NoReadyNode", "with taint nvidia.com/gpu", (1, 0, 0, 0)),
        ({"tolerations": [OTHER_EFFECT]}, [NODE], "NoReadyNode", "with taint nvidia.com/gpu", (1, 0, 0, 0)),
        ({"tolerations": [{"operator": "Exists"}]}, [NODE], "NodesFound", "1 node matches, 1 ready, 8", (1, 1, 8, 8)),
        (
            {},
            [with_gpus(4), with_gpus(0, "n2")],
            "TooFewGPUs",
            "gpusPerNode is 8, but the largest of 2 ready nodes offers 4 nvidia.com/gpu; is its device plugin running?",
            (2, 2, 4, 4),
        ),
        ({"resourceName": "amd.com/gpu"}, [NODE], "TooFewGPUs", "offers 0 amd.com/gpu", (1, 1, 0, 0)),
        (
            {"gpusPerNode": 0, "gpuMemoryGib": 0},
            [with_gpus(0)],
            "NodesFound",
            "1 node matches, 1 ready",
            (1, 1, 0, 0),
        ),
    ],
)
def test_status_of_a_pool(
    spec: dict[str, Any], nodes: list[NodeState], reason: str, message: str, counts: tuple[int, ...]
) -> None:
    status = pool_status(a100(**spec), nodes, START)
    [ready] = status.conditions
    assert (ready.type, ready.reason) == ("Ready", reason)
    assert ready.status == ("True" if reason == "NodesFound" else "False")
    assert message in ready.message
    found = (status.matching_nodes, status.ready_nodes, status.allocatable_gpus, status.largest_node_gpus)
    assert found == counts


def test_the_time_of_a_transition_is_kept_until_the_next() -> None:
    made = a100()
    before = made.model_copy(update={"status": pool_status(made, [NODE], START)})
    later = START + timedelta(hours=1)
    assert pool_status(before, [NODE], later) == before.status, "nothing to write"
    [lost] = pool_status(before, [], later).conditions
    assert lost.last_transition_time == later


def waiting_for(nodes: list[NodeState], gpus: int = 4, stage: str = "train") -> World:
    """A job whose stage no node takes."""
    made = a100()
    made = made.model_copy(update={"status": pool_status(made, nodes, START)})
    world = World(job_dict(compute={"pool": "a100", "gpusPerNode": gpus}), (made,))
    world.run_to(stage)
    world.set_run(pods=(PodState("p0", unschedulable="0/5 nodes are available: 5 Insufficient nvidia.com/gpu."),))
    world.settle()
    return world


@pytest.mark.parametrize(
    ("nodes", "message", "hint"),
    [
        ([], "pool a100: no node matches gpu=a100 now; jobs are accepted and wait for", "autoscaler"),
        (
            [replace(NODE, ready=False)],
            "pool a100: 1 node matches but none takes pods: 1 not Ready",
            "starts when a node appears",
        ),
        (
            [with_gpus(2)],
            "4 nvidia.com/gpu are asked for on one node; the largest ready node of pool a100 offers 2",
            "Ask for at most 2 (compute.gpusPerNode)",
        ),
        ([with_gpus(0)], "the largest ready node of pool a100 offers 0", "their device plugin does not run"),
        ([NODE], "pod p0: 0/5 nodes are available: 5 Insufficient nvidia.com/gpu.", "Wait until there is room"),
    ],
)
def test_a_job_that_no_node_takes_is_told_what_the_pool_lacks(nodes: list[NodeState], message: str, hint: str) -> None:
    status = waiting_for(nodes).status
    assert (status.phase, status.reason) == ("Training", "Unschedulable")
    assert message in status.message
    assert "5 Insufficient nvidia.com/gpu" in status.message, "the scheduler's own words stay"
    assert hint in status.next_step


def test_a_pool_without_nodes_stops_no_job_and_no_stage_on_the_cpu() -> None:
    world = waiting_for([], stage="prepare")
    assert "pool a100" not in world.status.message, "prepare runs on any node"
    world.tick(86400)
    world.settle()
    assert world.status.phase == "Preparing"
