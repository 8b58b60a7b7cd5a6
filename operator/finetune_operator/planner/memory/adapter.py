"""The adapter, its gradients and its optimiser states."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_api.job.training import Optimizer
from finetune_operator.planner.memory.dora import dora_parameters
from finetune_operator.planner.memory.optimizer import optimiser_bytes_per_parameter
from finetune_operator.planner.shape import ModelShape


def adapter_parameters(shape: ModelShape, rank: int, targets: Sequence[str], *, dora: bool = False) -> int:
    """Parameters of a LoRA: A and B beside each target (Hu et al. 2021): rank x (in + out)."""
    parameters = shape.layers * rank * sum(sum(shape.linears[name]) for name in targets)
    return parameters + (dora_parameters(shape, targets) if dora else 0)


def adapter_bytes(
    parameters: int,
    bytes_per_parameter: int,
    rank: int,
    optimizer: Optimizer = "adamw_torch_fused",
    *,
    state_bytes: int | None = None,
) -> dict[str, float]:
    """Bytes by component; `state_bytes` of a moment, where not the parameter's.

    fp32 adapters under autocast have a 16-bit copy beside them for the length of a step.
    """
    size = float(parameters * bytes_per_parameter)
    autocast = 2.0 * parameters if bytes_per_parameter == 4 else 0.0
    states = parameters * optimiser_bytes_per_parameter(optimizer, state_bytes or bytes_per_parameter, rank)
    return {"adapter": size + autocast, "gradients": size, "optimiser": states}
