"""The GPU's memory did not hold the step. The next attempt keeps the effective batch and needs less memory.

The ladder: a smaller micro-batch, gradient checkpointing, shards where the job can have them, and at its end a pool
with more memory, which is the user's to choose because it costs more. What the spec rules out by name is left out, and
named at the end. Only the micro-batch goes down whatever the spec says: it changes nothing of what is learned, and a
finding tells it. Baseline and evaluate have their own: one copy of the model over more of the pod's GPUs.
"""

from __future__ import annotations

from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.stages import EVALUATION_EXHAUSTED, PROBE_EXHAUSTED, TrainPlan
from finetune_operator.decide.causes.base import Cause
from finetune_operator.planner.strategy import cuts_optimizer, cuts_weights


def _gentler(plan: TrainPlan, spec: FineTuneJobSpec, evidence: str) -> tuple[TrainPlan, str] | None:
    if evidence.startswith(EVALUATION_EXHAUSTED):
        return _sharded(plan, spec)
    may_recompute = spec.training.gradient_checkpointing != "disabled"
    if evidence.startswith(PROBE_EXHAUSTED):
        tried = {
            "micro_batch_size": 1,
            "gradient_accumulation": plan.micro_batch_size * plan.gradient_accumulation,
            "gradient_checkpointing": plan.gradient_checkpointing or may_recompute,
        }
        plan = plan.model_copy(update=tried)
    smaller = plan.with_smaller_micro_batch()
    if smaller is not None:
        return smaller, f"micro-batch {plan.micro_batch_size} -> {smaller.micro_batch_size}"
    if not plan.gradient_checkpointing and may_recompute:
        return plan.model_copy(update={"gradient_checkpointing": True}), "gradient checkpointing on"
    return _sharded(plan, spec)


def _sharded(plan: TrainPlan, spec: FineTuneJobSpec) -> tuple[TrainPlan, str] | None:
    """Weights in parts, which gives room to steps and evaluations alike."""
    by_name = spec.compute.strategy == "ddp" or spec.training.torch_compile == "enabled"
    if plan.strategy != "ddp" or by_name or not _cuts(plan, spec):
        return None
    eager = {"torch_compile": False, "torch_compile_reason": "blocks in parts are not compiled"}
    return plan.model_copy(update={"strategy": "fsdp", **eager}), "strategy ddp -> fsdp"


def _cuts(plan: TrainPlan, spec: FineTuneJobSpec) -> bool:
    """Whether fsdp can train the job."""
    return cuts_weights(spec.method, plan.method) and cuts_optimizer(spec.training.optimizer, "fsdp", plan.method)


def _held(plan: TrainPlan, spec: FineTuneJobSpec) -> str:
    """The fields whose value rules out a rung that would have been left."""
    held = []
    if not plan.gradient_checkpointing and spec.training.gradient_checkpointing == "disabled":
        held.append("training.gradientCheckpointing: disabled keeps every activation (auto recomputes them)")
    if plan.strategy == "deepspeed" and plan.zero_stage == 2 and cuts_weights(spec.method, plan.method):
        held.append("compute.deepspeed.stage: 2 keeps the weights whole on every GPU (3 cuts them)")
    if plan.strategy == "ddp" and spec.compute.strategy == "ddp" and _cuts(plan, spec):
        held.append("compute.strategy: ddp keeps the weights whole on every GPU (auto or fsdp cuts them)")
    if plan.strategy == "ddp" and spec.training.torch_compile == "enabled" and _cuts(plan, spec):
        held.append("training.torchCompile: enabled keeps the weights whole on every GPU (auto lets fsdp cut them)")
    return f"The spec rules out what would need less memory: {'; '.join(held)}." if held else ""


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
    held=_held,
    adjust_judging=_spread_further,
    hint="Nothing gentler is left: use a pool with larger GPUs (compute.pool), more of them (compute.gpusPerNode), "
    "method.type: qlora, or a shorter training.maxLength.",
    hint_without_training="Micro-batch and strategy do not change what answering needs: use a pool with larger GPUs "
    "(compute.pool), more of them in a pod (compute.gpusPerNode), method.type: qlora, or a shorter training.maxLength "
    "or evaluation.maxNewTokens.",
)
