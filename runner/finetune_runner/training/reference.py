"""Before step 1 of a sharded run: the loss of a batch is compared with what the whole model says about it.

A sharded 4-bit base may compute a wrong forward pass without an error (bitsandbytes#1945): then nothing may be trained.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError
from finetune_runner.training.encoded_rows import await_paths
from finetune_runner.training.guards import refuse_no_number
from finetune_runner.training.strategies.fsdp import blocks

if TYPE_CHECKING:
    from finetune_runner.training.distributed import World
    from finetune_runner.training.objectives.base import Objective

TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
"""Relative. In bf16 another order of sums moves a loss by up to a hundredth (measured 3e-3 with NF4 on two ranks)."""


@contextlib.contextmanager
def streamed(model: Any, device: torch.device) -> Iterator[None]:
    """A model in host memory as if it were on a GPU: one block at a time is there while it computes."""
    if device.type != "cuda":
        yield
        return
    found = [block for _, _, block in blocks(model)]
    inside = {id(p) for block in found for p in block.parameters()}
    outside = [module for module in model.modules() if not list(module.children())]
    outside = [module for module in outside if not any(id(p) in inside for p in module.parameters())]
    handles = []
    for block in found:
        handles.append(block.register_forward_pre_hook(lambda module, _: module.to(device) and None))
        handles.append(block.register_forward_hook(lambda module, _, __: module.to("cpu") and None))
    try:
        for module in outside:
            module.to(device)
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in outside:
            module.to("cpu")


def whole_model_loss(model: Any, objective: Objective, index: int, device: torch.device) -> float:
    """Mean loss of one training example by the model before it is spread out. Raises as `refuse_no_number`."""
    model.eval()
    batch = {name: tensor.to(device) for name, tensor in objective.collate([index], packed=False).items()}
    with torch.no_grad(), streamed(model, device):
        loss = float(objective.loss(model, batch)) / max(1, objective.counts[index])
    refuse_no_number(loss)
    return loss


def told_by_reader(folder: Path, world: World, ask: Callable[[], float]) -> float:
    """What `ask` returns in the process that has the whole model, in all processes of its node.

    It travels as a file: reading a large model takes longer than the ranks would wait for one another in a collective.
    """
    told = folder / "reference-loss"
    if world.local_rank == 0:
        unfinished = told.with_suffix(".unfinished")
        unfinished.write_text(repr(ask()), encoding="ascii")
        unfinished.rename(told)
    await_paths([told], lambda: None)
    return float(told.read_text(encoding="ascii"))


def require_equal(sharded: float, whole: float, precision: str, strategy: str) -> None:
    """Raises StageError with both numbers when they differ by more than rounding."""
    if math.isclose(sharded, whole, rel_tol=TOLERANCE[precision], abs_tol=TOLERANCE[precision]):
        return
    raise StageError(
        ExitCode.INTERNAL,
        f"the model computes something else when sharded: the first example's loss is {sharded:.6g} with strategy "
        f"{strategy} and {whole:.6g} on the whole model; nothing was trained",
        hint="use compute.strategy: ddp, or method.type: lora; this combination of versions must not be trained with",
        evidence=f"relative difference {abs(sharded - whole) / max(abs(whole), 1e-12):.3g}, "
        f"allowed {TOLERANCE[precision]:g} in {precision}",
    )
