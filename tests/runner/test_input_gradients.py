"""Whose input gradients stay until the backward pass ends: FSDP1's hooks on frozen units, by kind of checkpointing.

The forecast counts them for trainers that checkpoint the other way (planner/memory/sharding.py).
"""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.autograd.graph import register_multi_grad_hook
from torch.utils.checkpoint import checkpoint

from finetune_api.stages import Strategy, TrainPlan
from finetune_runner.training.memory_saving import apply

BLOCKS = 6


def _alive_after_backward(*, reentrant: bool, hooked: bool) -> int:
    """Inputs of blocks that are still held when the gradient has reached the first block."""
    weight, hooks, seen = torch.randn(8, 8), [], []

    def block(inputs: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            if hooked:
                # As FSDP does for a unit without trainable weights (_register_post_backward_reshard_only_hook).
                hooks.append(register_multi_grad_hook([inputs], lambda gradients: None))
            seen.append(weakref.ref(inputs))
        return torch.tanh(inputs @ weight)

    alive = []
    values = first = torch.randn(4, 8, requires_grad=True)
    first.register_hook(lambda gradient: alive.append(sum(reference() is not None for reference in seen)))
    for _ in range(BLOCKS):
        values = checkpoint(block, values, use_reentrant=reentrant)
    total = values.sum()
    del values
    total.backward()
    return alive[0]


def test_only_reentrant_checkpointing_around_hooked_units_keeps_every_input() -> None:
    kept = _alive_after_backward(reentrant=True, hooked=True)
    assert kept >= BLOCKS
    assert _alive_after_backward(reentrant=False, hooked=True) < BLOCKS / 2
    assert _alive_after_backward(reentrant=True, hooked=False) < BLOCKS / 2


class _Model:
    asked: dict[str, Any]

    def gradient_checkpointing_enable(self, asked: dict[str, Any]) -> None:
        self.asked = asked

    def enable_input_require_grads(self) -> None:
        """Of ZeRO-3 only."""


@pytest.mark.parametrize(("strategy", "reentrant"), [("fsdp", False), ("ddp", False), ("deepspeed", True)])
def test_the_runners_fsdp_does_not_checkpoint_so(strategy: Strategy, reentrant: bool) -> None:
    model = _Model()
    plan = TrainPlan(
        method="qlora",
        strategy=strategy,
        nodes=1,
        gpus_per_node=2,
        total_steps=1,
        micro_batch_size=1,
        gradient_accumulation=1,
        eval_steps=1,
        gradient_checkpointing=True,
    )
    apply(model, plan)
    assert model.asked == {"use_reentrant": reentrant}
