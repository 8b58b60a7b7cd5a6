"""The adapter, its gradients and its optimiser states."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_operator.planner.shape import ModelShape

ADAM_MOMENTS = 2


def adapter_parameters(shape: ModelShape, rank: int, targets: Sequence[str]) -> int:
    """Parameters of a LoRA: A and B beside each target (Hu et al. 2021): rank x (in + out)."""
    return shape.layers * rank * sum(sum(shape.linears[name]) for name in targets)


def adapter_bytes(parameters: int, bytes_per_parameter: int) -> dict[str, float]:
    """Bytes by component: AdamW keeps two moments in the parameter's own precision.

    fp32 adapters under autocast have a 16-bit copy beside them for the length of a step.
    """
    size = float(parameters * bytes_per_parameter)
    autocast = 2.0 * parameters if bytes_per_parameter == 4 else 0.0
    return {"adapter": size + autocast, "gradients": size, "optimiser": ADAM_MOMENTS * size}
