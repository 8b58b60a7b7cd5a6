"""Optimisers over the adapter, their schedule, and the state they keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

    Raises:
        ValueError: the settings do not say the rate; `StageTask.training` does.
    """
    import torch

    peak = training.learning_rate
    if peak is None:
        raise ValueError("the settings of training are not resolved: they have no learning rate")
    optimizer = OPTIMIZERS[training.optimizer](list(trainable(model).values()), peak, training.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: rate_factor(training, first_step + done, horizon)
    )
    return optimizer, schedule


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _to_device_of(parameter: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(parameter.device)


def parameter_state(optimizer: Any, parameter: Any, whole: Callable[[torch.Tensor], torch.Tensor] = _as_it_is) -> State:
    """Every tensor and number that the optimiser keeps for a parameter, in its own type, on the CPU.

    Args:
        optimizer: of any kind.
        parameter: one that it has updated.
        whole: puts the parts of a sharded tensor together.
    """
    import torch

    found: State = {}
    for field, value in optimizer.state[parameter].items():
        if isinstance(value, torch.Tensor):
            found[field] = whole(value.detach()).cpu().contiguous().clone()
        elif isinstance(value, int | float):
            found[field] = torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)
    return found


def restore_parameter_state(
    optimizer: Any,
    parameter: Any,
    state: Mapping[str, torch.Tensor],
    part: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = _to_device_of,
) -> None:
    """The inverse of `parameter_state`: 8-bit states stay 8-bit, paged ones go into memory that can be paged.

    Args:
        optimizer: of the same kind.
        parameter: the same one.
        state: as `parameter_state` returned it.
        part: (parameter, whole tensor) -> what this process keeps of it, on the parameter's device.
    """
    import torch

    fused = bool(optimizer.defaults.get("fused"))
    restored: dict[str, Any] = {}
    for field, tensor in state.items():
        if tensor.dim() == 0 and tensor.dtype in (torch.int64, torch.float64):
            restored[field] = tensor.item()
        elif tensor.dim() == 0:
            # Step counts of unfused optimisers stay on the CPU.
            restored[field] = tensor.to(parameter.device if fused else "cpu", copy=True)
        elif getattr(optimizer, "is_paged", False) and tensor.shape == parameter.shape:
            restored[field] = optimizer.get_state_buffer(parameter, dtype=tensor.dtype)
            restored[field].copy_(tensor)
        elif tensor.shape == parameter.shape:
            restored[field] = part(parameter, tensor)
        else:
            restored[field] = tensor.to(parameter.device)
    optimizer.state[parameter] = restored
