"""AdamW over the adapter, and its schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_api.job.training import Training
from finetune_runner.training.schedule import learning_rate_factor

if TYPE_CHECKING:
    import torch


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """The adapter's parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def new_optimizer(model: Any, training: Training, total_steps: int, first_step: int) -> tuple[Any, Any]:
    """AdamW without weight decay (Dettmers et al. 2023) and the schedule from `first_step` on.

    The rate is a function of the step, so the schedule needs no saved state.
    """
    import torch

    parameters = list(trainable(model).values())
    optimizer = torch.optim.AdamW(
        parameters, lr=training.learning_rate, weight_decay=0.0, fused=parameters[0].device.type == "cuda"
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: learning_rate_factor(first_step + done, total_steps, training.warmup_ratio)
    )
    return optimizer, schedule
