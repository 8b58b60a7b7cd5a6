"""Optimisers over the adapter, their schedule, and their state as safetensors (never a pickle of writable content)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_api.job.training import Optimizer, Training
from finetune_runner.training.horizon import Horizon
from finetune_runner.training.rates import rate_factor

if TYPE_CHECKING:
    import torch

State = dict[str, "torch.Tensor"]
"""State of one parameter by field. Numbers of Python travel as int64 and float64 scalars, which no optimiser uses."""


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """The adapter's parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _adamw_torch(parameters: list[Any], lr: float, decay: float) -> Any:
    import torch

    on_gpu = parameters[0].device.type == "cuda"
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, fused=on_gpu)


def _bitsandbytes(name: str, **options: Any) -> Callable[[list[Any], float, float], Any]:
    def make(parameters: list[Any], lr: float, decay: float) -> Any:
        import bitsandbytes

        return getattr(bitsandbytes.optim, name)(parameters, lr=lr, weight_decay=decay, **options)

    return make


def _adafactor(parameters: list[Any], lr: float, decay: float) -> Any:
    """With the given rate as it is: Adafactor's own schedule would ignore training.scheduler."""
    from transformers.optimization import Adafactor

    return Adafactor(
        parameters, lr=lr, weight_decay=decay, scale_parameter=False, relative_step=False, warmup_init=False
    )


OPTIMIZERS: dict[Optimizer, Callable[[list[Any], float, float], Any]] = {
    "adamw_torch_fused": _adamw_torch,
    "adamw_8bit": _bitsandbytes("AdamW8bit"),
    "paged_adamw_32bit": _bitsandbytes("PagedAdamW32bit"),
    "paged_adamw_8bit": _bitsandbytes("PagedAdamW8bit"),
    "lion": _bitsandbytes("Lion32bit"),
    "lion_8bit": _bitsandbytes("Lion8bit"),
    "paged_lion_8bit": _bitsandbytes("PagedLion8bit"),
    "adafactor": _adafactor,
}


def new_optimizer(model: Any, training: Training, horizon: Horizon, first_step: int) -> tuple[Any, Any]:
    """The job's optimiser over the adapter, and its schedule from `first_step` on.

    The rate is a function of the step and of where training ends, so the schedule needs no saved state.
    """
    import torch

    optimizer = OPTIMIZERS[training.optimizer](
        list(trainable(model).values()), training.learning_rate, training.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: rate_factor(training, first_step + done, horizon)
    )
    return optimizer, schedule


def parameter_state(optimizer: Any, parameter: Any) -> State:
    """Every tensor and number that the optimiser keeps for a parameter, in its own type, on the CPU."""
    import torch

    found: State = {}
    for field, value in optimizer.state[parameter].items():
        if isinstance(value, torch.Tensor):
            found[field] = value.detach().cpu().contiguous().clone()
        elif isinstance(value, int | float):
            found[field] = torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)
    return found


def restore_parameter_state(optimizer: Any, parameter: Any, state: Mapping[str, torch.Tensor]) -> None:
    """The inverse of `parameter_state`: 8-bit states stay 8-bit, paged ones go into memory that can be paged."""
    import torch

    fused = bool(optimizer.defaults.get("fused"))
    restored: dict[str, Any] = {}
    for field, tensor in state.items():
        if tensor.dim() == 0 and tensor.dtype in (torch.int64, torch.float64):
            restored[field] = tensor.item()
        elif tensor.dim() == 0 and not fused:
            restored[field] = tensor.clone()  # step counts of unfused optimisers stay on the CPU
        elif getattr(optimizer, "is_paged", False) and tensor.shape == parameter.shape:
            restored[field] = optimizer.get_state_buffer(parameter, dtype=tensor.dtype)
            restored[field].copy_(tensor)
        else:
            restored[field] = tensor.to(parameter.device)
    optimizer.state[parameter] = restored


def save_optimizer(optimizer: Any, model: Any, path: Path) -> None:
    """The state of every parameter, by the parameter's name."""
    from safetensors.torch import save_file

    # accelerate wraps the optimiser; the state is the inner one's.
    inner = getattr(optimizer, "optimizer", optimizer)
    tensors = {
        f"{name}.{field}": tensor
        for name, parameter in trainable(model).items()
        for field, tensor in parameter_state(inner, parameter).items()
    }
    save_file(tensors, str(path))


def load_optimizer(optimizer: Any, model: Any, path: Path) -> None:
    """The inverse of `save_optimizer`. Raises KeyError when the file is of another model."""
    from safetensors.torch import load_file

    states: dict[str, State] = {}
    for key, tensor in load_file(str(path)).items():
        name, _, field = key.rpartition(".")
        states.setdefault(name, {})[field] = tensor
    for name, parameter in trainable(model).items():
        restore_parameter_state(optimizer, parameter, states[name])
