"""What the GPU stages cost: every stage holds its GPUs from start to end."""

from __future__ import annotations

from collections.abc import Mapping

from finetune_api.common import duration_s
from finetune_api.job.compute import Compute
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


def budget_notes(compute: Compute, seconds: Mapping[str, Range], costs: Range | None, currency: str) -> list[str]:
    """What is said of compute.maxCost and compute.maxDuration where not even the lower end of a forecast is within.

    Nothing is refused: training stops early enough to evaluate and publish what exists.
    """
    early = "training will stop early: raise it, or lower training.epochs"
    notes = []
    if compute.max_cost is not None and costs is not None and compute.max_cost < costs[0]:
        span = f"{costs[0]:.2f} to {costs[1]:.2f}"
        notes.append(f"compute.maxCost: {compute.max_cost:g} {currency} is below the forecast of {span}; {early}")
    low, high = (sum(times[end] for times in seconds.values()) / 3600 for end in (0, 1))
    if seconds and duration_s(compute.max_duration) < low * 3600:
        span = f"{low:.2g} to {high:.2g} hours"
        notes.append(f"compute.maxDuration: {compute.max_duration} is below the forecast of {span}; {early}")
    return notes
