"""What the GPU stages cost: every stage holds its GPUs from start to end."""

from __future__ import annotations

from collections.abc import Mapping

from finetune_operator.planner.gpus import Range


def stage_gpus(stage: str, nodes: int, gpus_per_node: int) -> int:
    """GPUs that a stage holds: train runs on all nodes, the others on one."""
    return gpus_per_node * (nodes if stage == "train" else 1)


def cost(seconds: Mapping[str, Range], nodes: int, gpus_per_node: int, price_per_hour: float) -> Range:
    """Cost of all GPU stages, without failed attempts, in the price's currency."""
    low, high = (
        sum(times[end] / 3600 * stage_gpus(stage, nodes, gpus_per_node) for stage, times in seconds.items())
        for end in (0, 1)
    )
    return low * price_per_hour, high * price_per_hour
