"""Host memory that a pod needs for certain, and what would fit where it has less. Pure.

The forecast (disk.py) adds what libraries take and what is being read; that is an estimate, and only warned about.
What is certain is the base itself: where training cuts it into parts, one process of a pod holds it whole first.
"""

from __future__ import annotations

import math
from dataclasses import replace

from finetune_api.job.forecast import Forecast
from finetune_api.job.status import Resolved
from finetune_operator.planner.disk import quantity_bytes
from finetune_operator.planner.fit import Demand, fsdp_of, stage_memory, worst_fit
from finetune_operator.planner.memory.breakdown import GIB
from finetune_operator.planner.memory.sharding import shards
from finetune_operator.planner.memory.weights import weight_bytes


def whole_base_bytes(demand: Demand) -> float:
    """The base as training holds it in host memory before it is cut: 16 bit, 32 bit or quantised."""
    return weight_bytes(demand.shape, demand.quantisation)


def whole_bases(demand: Demand, processes: int) -> int:
    """Processes of a pod that hold it: one, but all for DoRA on a quantised base (runner, training/one_copy.py)."""
    return processes if demand.dora and demand.method == "qlora" else 1


def certain_bytes(demand: Demand, processes: int) -> float:
    """Host memory of a pod below which training cannot start; 0 where the base goes straight to the GPUs."""
    cuts = shards(demand.strategy, 2)[0] > 1
    return whole_bases(demand, processes) * whole_base_bytes(demand) if cuts else 0.0


def host_fits(demand: Demand, processes: int, limit_bytes: float) -> bool:
    """Whether a pod's memory holds what is needed for certain."""
    return certain_bytes(demand, processes) <= limit_bytes


def host_refusal(demand: Demand, processes: int, resolved: Resolved, expected: Forecast) -> tuple[str, str]:
    """Why a run that fits its GPUs is refused for want of host memory, and what would fit, the smallest change first.

    Args:
        demand: as planned.
        processes: of a pod.
        resolved: the pool.
        expected: the forecast of the run.
    """
    pool = resolved.pool_spec
    need = certain_bytes(demand, processes) / GIB
    holders = whole_bases(demand, processes)
    who = f"each of {holders} processes of a pod holds" if holders > 1 else "one process of a pod holds"
    message = (
        f"does not fit: {who} the whole base in host memory before it is cut into parts: {need:.1f} GiB; pods of pool "
        f"{resolved.pool} get gpuPod.memory {pool.gpu_pod.memory}"
    )
    enough = math.ceil(max(expected.host_memory_gib or 0.0, need))
    edit = _edit(demand, processes, resolved)
    raised = f"gpuPod.memory of the pool to {enough}Gi"
    return message, f"set {edit}, or raise {raised}" if edit else f"raise {raised}"


def _edit(demand: Demand, processes: int, resolved: Resolved) -> str | None:
    """The first edit of the job after which GPUs and pods have enough."""
    pool = resolved.pool_spec
    limit_bytes = quantity_bytes(pool.gpu_pod.memory)
    quantised = replace(demand, method="qlora", full_precision=False)
    if demand.strategy == fsdp_of("lora"):
        quantised = replace(quantised, strategy=fsdp_of("qlora"))
    edits = [("compute.strategy: ddp", replace(demand, strategy="ddp", offload="none"))]
    if demand.dora:
        edits.append(("method.useDora: false", replace(demand, dora=False)))
    if demand.method == "lora":
        edits.append(("method.type: qlora", quantised))
        edits.append(
            ("method.type: qlora and compute.strategy: ddp", replace(quantised, strategy="ddp", offload="none"))
        )
    for text, edited in edits:
        stages = stage_memory(edited, 1, merges=edited.serves_merged)
        if host_fits(edited, processes, limit_bytes) and worst_fit(stages, pool.gpu_memory_gib) == "Fits":
            return text
    return None
