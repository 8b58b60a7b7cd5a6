"""GPUPool.status: which nodes a pool has now, and what that means for its jobs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from finetune_api.common import Condition
from finetune_api.gpupool import GPUPool, GPUPoolSpec, GPUPoolStatus, Toleration
from finetune_api.wording import counted
from finetune_operator.decide.conditions import with_transition_times
from finetune_operator.decide.types import NodeState

READY = "Ready"
_SHORT = frozenset({"NoMatchingNode", "NoReadyNode"})


@dataclass(frozen=True)
class Shortage:
    """Why no node of a pool can hold a pod, in a sentence, and what to do."""

    message: str
    hint: str


def is_member(node_selector: Mapping[str, str], node: NodeState) -> bool:
    """Whether a pool's selector matches the node."""
    return all(node.labels.get(key) == value for key, value in node_selector.items())


def pool_status(pool: GPUPool, nodes: Iterable[NodeState], now: datetime) -> GPUPoolStatus:
    """The status of a pool. One without nodes is legitimate (an autoscaler makes them), so this never stops a job."""
    spec = pool.spec
    members = [node for node in nodes if is_member(spec.node_selector, node)]
    usable = [node for node in members if _why_unusable(spec, node) is None]
    gpus = [node.extended_resources.get(spec.resource_name, 0) for node in usable] if spec.gpus_per_node else []
    largest = max(gpus, default=0)
    if not members:
        labels = ", ".join(f"{key}={value}" for key, value in sorted(spec.node_selector.items()))
        reason = "NoMatchingNode"
        # Without a selector every node matches: then the cluster has none.
        what = f"no node matches {labels} now" if labels else "the cluster has no node now"
        message = f"{what}; jobs are accepted and wait for an autoscaler or the platform team"
    elif not usable:
        reason, message = "NoReadyNode", f"{_nodes(len(members))} but none takes pods: {_why_none(spec, members)}"
    elif largest < spec.gpus_per_node:
        reason = "TooFewGPUs"
        message = (
            f"gpusPerNode is {spec.gpus_per_node}, but the largest of {len(usable)} ready nodes offers {largest} "
            f"{spec.resource_name}; is its device plugin running?"
        )
    else:
        reason = "NodesFound"
        offered = f", {sum(gpus)} {spec.resource_name}" if spec.gpus_per_node else ""
        message = f"{_nodes(len(members))}, {len(usable)} ready{offered}"
    previous: Sequence[Condition] = pool.status.conditions if pool.status is not None else []
    truth = "True" if reason == "NodesFound" else "False"
    generation = pool.metadata.generation
    return GPUPoolStatus(
        observed_generation=generation,
        matching_nodes=len(members),
        ready_nodes=len(usable),
        allocatable_gpus=sum(gpus),
        largest_node_gpus=largest,
        conditions=with_transition_times([(READY, truth, reason, message)], previous, generation, now),
    )


def shortage(pool: GPUPool, gpus: int) -> Shortage | None:
    """Why no node of the pool can hold a pod with so many GPUs, as its status says; None when one could."""
    status = pool.status
    ready = next((c for c in status.conditions if c.type == READY), None) if status is not None else None
    if status is None or ready is None:
        return None
    name = pool.metadata.name
    if ready.reason in _SHORT:
        return Shortage(
            f"pool {name}: {ready.message}",
            "It starts when a node appears: wait for the autoscaler, ask the platform team, or use another pool.",
        )
    if gpus > status.largest_node_gpus:
        return Shortage(
            f"{gpus} {pool.spec.resource_name} are asked for on one node; the largest ready node of pool {name} offers "
            f"{status.largest_node_gpus}",
            f"Ask for at most {status.largest_node_gpus} (compute.gpusPerNode) and more compute.nodes, or use another "
            "pool."
            if status.largest_node_gpus
            else "Ask the platform team: the nodes offer no GPU, so their device plugin does not run.",
        )
    return None


def _nodes(count: int) -> str:
    return counted(count, "[node matches|nodes match]")


def _why_unusable(spec: GPUPoolSpec, node: NodeState) -> str | None:
    if not node.ready:
        return "not Ready"
    if node.cordoned:
        return "cordoned"
    for key, value, effect in node.taints:
        if not any(_tolerates(toleration, key, value, effect) for toleration in spec.tolerations):
            return f"with taint {key}, which the pool does not tolerate"
    return None


def _why_none(spec: GPUPoolSpec, members: Sequence[NodeState]) -> str:
    counts: dict[str, int] = {}
    for node in members:
        why = _why_unusable(spec, node) or ""
        counts[why] = counts.get(why, 0) + 1
    return ", ".join(f"{count} {why}" for why, count in sorted(counts.items()))


def _tolerates(toleration: Toleration, key: str, value: str, effect: str) -> bool:
    """As the scheduler judges it (k8s.io/component-helpers, MatchToleration)."""
    if toleration.effect not in (None, effect):
        return False
    if toleration.key not in (None, key):
        return False
    return toleration.operator == "Exists" or (toleration.value or "") == value
