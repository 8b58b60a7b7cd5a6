"""The micro-batch, found before the run: the longest one forward and backward, a smaller one where memory is short."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import PROBE_EXHAUSTED, TrainPlan
from finetune_runner.errors import StageError
from finetune_runner.training import memory_saving
from finetune_runner.training.device import release_memory

if TYPE_CHECKING:
    from finetune_runner.training.distributed import World
    from finetune_runner.training.strategies.base import Engine

ADAM_BYTES_PER_PARAMETER = 8
"""Both moments in fp32, which the first step makes: held while the probe runs."""


@dataclass(frozen=True)
class Probe:
    """What the probe found: the plan that fits, and what it changed, in words (empty = nothing)."""

    plan: TrainPlan
    changes: str = ""


def gentler(plan: TrainPlan, *, may_recompute: bool = True) -> tuple[TrainPlan, str] | None:
    """The next rung, with the same examples per step: a smaller micro-batch, then recomputation; None at the end."""
    smaller = plan.with_smaller_micro_batch()
    if smaller is not None:
        return smaller, f"micro-batch {plan.micro_batch_size} -> {smaller.micro_batch_size}"
    if not plan.gradient_checkpointing and may_recompute:
        return plan.model_copy(update={"gradient_checkpointing": True}), "gradient checkpointing on"
    return None


def shortest_micro_batch(steps: Iterable[Sequence[int]], lengths: Sequence[int], size: int) -> list[int]:
    """The examples of the narrowest micro-batch of the run: the `size` shortest of a step, where they are shortest."""
    shortest = (sorted(step, key=lambda index: (-lengths[index], index))[-size:] for step in steps)
    return min(shortest, key=lambda part: lengths[part[0]])


def longest_micro_batch(steps: Iterable[Sequence[int]], lengths: Sequence[int], size: int) -> list[int]:
    """The examples of the largest micro-batch of the run: the `size` longest of the step where they are longest."""
    best = max(steps, key=lambda step: max(lengths[index] for index in step))
    return sorted(best, key=lambda index: (-lengths[index], index))[:size]


def find(
    engine: Engine,
    plan: TrainPlan,
    world: World,
    batch_of: Callable[[int], dict[str, torch.Tensor]],
) -> Probe:
    """The plan whose micro-batch fits, the first of the ladder.

    Nothing of the training changes: no update is made, gradients are forgotten, random numbers put back. All ranks try
    the same batch, so that they run out together.

    Args:
        engine: the model as it will train.
        plan: what was forecast.
        world: the ranks agree on each rung.
        batch_of: the largest micro-batch of a size, on the device.

    Raises:
        StageError: GPU_OUT_OF_MEMORY when no rung is left, or none that can be tried in this process.
    """
    changes: list[str] = []
    device = engine.setup.device
    may_recompute = engine.setup.training.gradient_checkpointing != "disabled"
    while True:
        failed = _fails(engine, batch_of(plan.micro_batch_size))
        # A rank that ran out half-way through an exchange says so at once: the others may be waiting for it in there.
        # Nothing can be tried in its process any more; the operator's ladder goes on.
        alone = failed and engine.backward_exchanges
        if not alone and not world.sum([float(failed)], device)[0]:
            return Probe(plan, "; ".join(changes))
        step = None if alone else gentler(plan, may_recompute=may_recompute)
        if step is None:
            raise StageError(
                ExitCode.GPU_OUT_OF_MEMORY,
                f"the longest batch does not fit on a GPU at micro-batch {plan.micro_batch_size} "
                f"{'with' if plan.gradient_checkpointing else 'without'} gradient checkpointing",
                "use method.type: qlora, compute.strategy: fsdp on several GPUs, a shorter training.maxLength, or "
                "a pool with larger GPUs",
                f"compute.strategy {plan.strategy} is tried once per attempt: the next ones try smaller batches"
                if alone
                else f"{PROBE_EXHAUSTED}: {'; '.join(changes) or 'as planned'}",
            )
        plan, change = step
        changes.append(change)
        memory_saving.apply(engine.model, plan)


def _fails(engine: Engine, batch: dict[str, torch.Tensor]) -> bool:
    """Whether a forward and backward pass of the batch runs out of memory."""
    try:
        with without_trace(engine):
            # As if more followed: ranks exchange nothing, so that one can fail alone. What exchanges in any case would
            # keep such a gradient where it cannot be forgotten.
            engine.backward(batch, 1.0, last=engine.backward_exchanges)
            return False
    except torch.OutOfMemoryError:
        return True


@contextlib.contextmanager
def without_trace(engine: Engine) -> Iterator[None]:
    """Passes in train mode with room set aside for the optimiser: gradients are forgotten, random numbers put back."""
    random_numbers = torch.get_rng_state()
    engine.model.train()
    try:
        missing = engine.missing_state_bytes(ADAM_BYTES_PER_PARAMETER)
        ballast = torch.empty(missing, dtype=torch.uint8, device=engine.setup.device)
        yield
        del ballast
    finally:
        engine.zero_gradients()
        torch.set_rng_state(random_numbers)
        release_memory(engine.setup.device)
