"""The GPU's memory did not hold the step. The next attempt keeps the effective batch and needs less memory."""

from __future__ import annotations

from finetune_api.stages import TrainPlan
from finetune_operator.decide.causes.base import Cause


def _gentler(plan: TrainPlan) -> tuple[TrainPlan, str] | None:
    if plan.micro_batch_size > 1 and plan.micro_batch_size % 2 == 0:
        halved = {
            "micro_batch_size": plan.micro_batch_size // 2,
            "gradient_accumulation": plan.gradient_accumulation * 2,
        }
        return plan.model_copy(update=halved), f"micro-batch {plan.micro_batch_size} -> {plan.micro_batch_size // 2}"
    if not plan.gradient_checkpointing:
        return plan.model_copy(update={"gradient_checkpointing": True}), "gradient checkpointing on"
    return None


CAUSE = Cause(
    name="GPUOutOfMemory",
    retry="soon",
    counts=False,
    adjust=_gentler,
    hint="Use method.type: qlora, a shorter training.maxLength, or a pool with larger GPUs.",
)
