"""Gradient checkpointing: activations are recomputed instead of kept, where the plan says that memory needs it."""

from __future__ import annotations

from typing import Any

from finetune_api.stages import TrainPlan


def apply(model: Any, plan: TrainPlan) -> None:
    """Switch it on or off on a PEFT model."""
    if not plan.gradient_checkpointing:
        return
    # ZeRO-3 frees weights between forward and recomputation, whose shapes the other kind compares (trl#2514).
    reentrant = plan.strategy == "deepspeed" and plan.zero_stage == 3
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        # Otherwise no input of a block asks for a gradient, and nothing is trained (transformers#42489).
        model.enable_input_require_grads()
