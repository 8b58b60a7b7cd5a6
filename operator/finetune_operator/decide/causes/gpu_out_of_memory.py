"""The GPU's memory did not hold the step. The next attempt keeps the effective batch and needs less memory.

The ladder: half the micro-batch, gradient checkpointing, shards where the job can have them, and at its end a pool with
more memory, which is the user's to choose because it costs more. Baseline and evaluate have their own: one copy of the
model over more of the pod's GPUs.
"""

from __future__ import annotations

from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.stages import PROBE_EXHAUSTED, TrainPlan
from finetune_operator.decide.causes.base import Cause
from finetune_operator.planner.strategy import cuts_optimizer, cuts_weights


def _gentler(plan: TrainPlan, spec: FineTuneJobSpec, evidence: str) -> tuple[TrainPlan, str] | None:
    if evidence.startswith(PROBE_EXHAUSTED):
        tried = {
            "micro_batch_size": 1,
            "gradient_accumulation": plan.micro_batch_size * plan.gradient_accumulation,
            "gradient_checkpointing": True,
        }
        plan = plan.model_copy(update=tried)
    if plan.micro_batch_size > 1 and plan.micro_batch_size % 2 == 0:
        halved = {
            "micro_batch_size": plan.micro_batch_size // 2,
            "gradient_accumulation": plan.gradient_accumulation * 2,
        }
        return plan.model_copy(update=halved), f"micro-batch {plan.micro_batch_size} -> {plan.micro_batch_size // 2}"
    if not plan.gradient_checkpointing:
        return plan.model_copy(update={"gradient_checkpointing": True}), "gradient checkpointing on"
    if not cuts_weights(spec.method, plan.method):
        return None
    asked_whole = spec.compute.strategy == "ddp"
    if plan.strategy == "ddp" and not asked_whole and cuts_optimizer(spec.training.optimizer, "fsdp", plan.method):
        return plan.model_copy(update={"strategy": "fsdp"}), "strategy ddp -> fsdp"
    if plan.strategy == "deepspeed" and plan.zero_stage == 2:
        return plan.model_copy(update={"zero_stage": 3}), "ZeRO stage 2 -> 3"
    return None


def _spread_further(plan: TrainPlan, spec: FineTuneJobSpec) -> tuple[TrainPlan, str] | None:
    """One copy of the model over the next larger share of the pod's GPUs. vLLM spreads over all of them already."""
    if spec.evaluation.engine != "transformers":
        return None
    counts = range(plan.judging_gpus + 1, plan.gpus_per_node + 1)
    more = next((gpus for gpus in counts if plan.gpus_per_node % gpus == 0), None)
    if more is None:
        return None
    told = f"one copy of the model over {plan.judging_gpus} -> {more} GPUs"
    return plan.model_copy(update={"judging_gpus": more}), told


CAUSE = Cause(
    name="GPUOutOfMemory",
    retry="soon",
    counts=False,
    adjust=_gentler,
    adjust_judging=_spread_further,
    hint="Nothing gentler is left: use a pool with larger GPUs (compute.pool), more of them (compute.gpusPerNode), "
    "method.type: qlora, or a shorter training.maxLength.",
    hint_without_training="Micro-batch and strategy do not change what answering needs: use a pool with larger GPUs "
    "(compute.pool), more of them in a pod (compute.gpusPerNode), method.type: qlora, or a shorter training.maxLength "
    "or evaluation.maxNewTokens.",
)
