"""AdamW over the adapter, its schedule, and its state as safetensors (never a pickle of writable content)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.job.training import Training
from finetune_runner.training.schedule import learning_rate_factor

if TYPE_CHECKING:
    import torch

MOMENTS = ("exp_avg", "exp_avg_sq")


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


def save_optimizer(optimizer: Any, model: Any, path: Path) -> None:
    """Both moments and the step count of every parameter, by the parameter's name."""
    import torch
    from safetensors.torch import save_file

    # accelerate wraps the optimiser; the state is the inner one's.
    states = getattr(optimizer, "optimizer", optimizer).state
    tensors = {}
    for name, parameter in trainable(model).items():
        state = states[parameter]
        tensors[f"{name}.step"] = torch.as_tensor(state["step"], dtype=torch.float32).cpu().reshape(1)
        for moment in MOMENTS:
            tensors[f"{name}.{moment}"] = state[moment].detach().cpu().contiguous()
    save_file(tensors, str(path))


def load_optimizer(optimizer: Any, model: Any, path: Path) -> None:
    """The inverse of `save_optimizer`. Raises KeyError when the file is of another model."""
    from safetensors.torch import load_file

    tensors = load_file(str(path))
    fused = bool(optimizer.defaults.get("fused"))
    for name, parameter in trainable(model).items():
        step = tensors[f"{name}.step"].reshape(())
        optimizer.state[parameter] = {
            "step": step.to(parameter.device) if fused else step,
            **{moment: tensors[f"{name}.{moment}"].to(parameter.device) for moment in MOMENTS},
        }
