"""torch.compile, one transformer block at a time: equal blocks share what was compiled once, of any length.

Everything is compiled before step 1, with the shortest and the longest micro-batch of the run, and must have the loss
and the gradient of the blocks as they are. From then on nothing is compiled: what would have to be compiled anew runs
as it is. So a compiler that fails costs the run nothing, and no step waits for one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import unwrap
from typing import TYPE_CHECKING, Any

import torch

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError
from finetune_runner.training import attention
from finetune_runner.training.compilers import lacks, refuse_lack
from finetune_runner.training.probe import without_trace
from finetune_runner.training.reference import TOLERANCE
from finetune_runner.training.strategies.fsdp import blocks
from finetune_runner.training.trainer import backward

if TYPE_CHECKING:
    from finetune_runner.training.objectives.base import Batch
    from finetune_runner.training.session import Session
    from finetune_runner.training.strategies.base import Engine

log = logging.getLogger(__name__)

BACKEND: str | Callable[..., Any] = "inductor"
GRADIENT_TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}
"""Relative norm of the difference. In fp32 1.4e-6 was measured (CPU); in bf16 it is our choice."""


@dataclass(frozen=True)
class Compilation:
    """Whether compiled blocks train, why or why not, and how many graphs were compiled."""

    active: bool
    reason: str
    graphs: int = 0

    def in_force(self) -> contextlib.AbstractContextManager[Any]:
        """While it lasts nothing is compiled any more."""
        return torch.compiler.set_stance("eager_on_recompile") if self.active else contextlib.nullcontext()


class Blocks:
    """The transformer blocks of a model, which compute as they are or compiled. Names of tensors stay."""

    def __init__(self, model: Any) -> None:
        self._blocks = [block for _, _, block in blocks(model)]

    def compile(self) -> None:
        """Compile them while they train; each at its next call. Raises TypeError when there is nothing to compile."""
        if not self._blocks or any("forward" in vars(block) for block in self._blocks):
            raise TypeError("the model has no blocks, or something else stands in for their forward pass")
        torch.compiler.reset()  # of another training in this process
        kinds = {type(block) for block in self._blocks}
        compiled = {kind: torch.compile(unwrap(kind.forward), backend=BACKEND, dynamic=True) for kind in kinds}
        for block in self._blocks:
            block.forward = _while_training(block, partial(compiled[type(block)], block))

    def restore(self) -> None:
        """Let them compute as they are again."""
        for block in self._blocks:
            vars(block).pop("forward", None)
        torch.compiler.reset()


def _while_training(block: Any, compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Validations and answers are not compiled: they would need graphs of their own.

    Recomputation stays outside of what is compiled, as torch.utils.checkpoint does it: what is kept stays what was
    forecast, and dropout is drawn again as it was, which within a graph depends on the compiler.
    """
    eager = block.forward

    def forward(*arguments: Any, **options: Any) -> Any:
        if not block.training or not torch.is_grad_enabled():
            return eager(*arguments, **options)
        if getattr(block, "gradient_checkpointing", False):
            return block._gradient_checkpointing_func(partial(compiled, **options), *arguments)
        return compiled(*arguments, **options)

    return forward


@dataclass(frozen=True)
class _Pass:
    """What came of a forward and backward pass."""

    loss: float
    gradient: Mapping[str, torch.Tensor]
    took_s: float


def _pass(engine: Engine, batch: Batch) -> _Pass:
    """With the same random numbers each time. The gradient's way to the host waits for the GPU."""
    torch.manual_seed(0)
    began = time.monotonic()
    loss = float(backward(engine, batch, 1.0, last=False))
    gradient = {name: p.grad.cpu() for name, p in engine.parameters().items() if p.grad is not None}
    took_s = time.monotonic() - began
    engine.zero_gradients()
    return _Pass(loss, gradient, took_s)


def difference(eager: _Pass, compiled: _Pass, precision: str) -> str:
    """In which they differ by more than rounding, in words; empty = in nothing."""
    allowed = TOLERANCE[precision]
    if not math.isclose(eager.loss, compiled.loss, rel_tol=allowed, abs_tol=allowed):
        return f"the loss of a batch is {compiled.loss:.6g} compiled and {eager.loss:.6g} as it is"
    if eager.gradient.keys() != compiled.gradient.keys():
        return "compiled blocks give other parameters a gradient"
    off = math.hypot(*(float((eager.gradient[name] - of).norm()) for name, of in compiled.gradient.items()))
    norm = math.hypot(*(float(of.norm()) for of in eager.gradient.values()))
    if not off <= GRADIENT_TOLERANCE[precision] * norm:  # not a number either
        return f"the gradient of a batch is off by {off / max(norm, 1e-30):.2g} of its norm when compiled"
    return ""


def compile_blocks(session: Session, engine: Engine, batches: Callable[[], Sequence[Batch]]) -> Compilation:
    """Compile as the plan says, and prove it; blocks stay as they are where that fails. All ranks call it.

    Args:
        session: of the training.
        engine: the model, spread out, with the micro-batch that was found to fit.
        batches: makes the shortest and the longest micro-batch of the run, on the device.

    Raises:
        StageError: INVALID_SPEC where training.torchCompile is enabled and it cannot be done.
    """
    plan, enabled = session.plan, session.training.torch_compile == "enabled"
    if not plan.torch_compile:
        return Compilation(False, plan.torch_compile_reason)
    gpus = 0 if session.device.type == "cpu" else plan.gpus_per_node
    if enabled:
        refuse_lack(gpus)
    elif lacking := lacks(gpus):
        return Compilation(False, f"the runner image has no {lacking}; finetune-runner-compile has (docs/images.md)")
    with session.stopwatch.measure("compilation"):
        found = _proven(session, engine, batches())
    if enabled and not found.active:
        raise StageError(
            ExitCode.INVALID_SPEC,
            f"training.torchCompile: {found.reason}",
            hint="set training.torchCompile: auto, which trains without where it fails",
        )
    log.info("torch.compile: %s", found.reason)
    return found


def _proven(session: Session, engine: Engine, batches: Sequence[Batch]) -> Compilation:
    from torch._dynamo.utils import counters

    own, problem, gains = Blocks(engine.model), "", (0.0, 0.0)
    before = counters["stats"]["unique_graphs"]
    with without_trace(engine):
        eager = [_pass(engine, batch) for batch in batches]
        try:
            compiled = compiled_passes(engine, own, batches)
            problem = next(filter(None, map(partial(difference, precision=session.precision), eager, compiled)), "")
            gains = (eager[-1].took_s, compiled[-1].took_s)
        except Exception as error:  # whatever a compiler raises: it is told, and training goes on without
            log.warning("torch.compile failed", exc_info=True)
            engine.zero_gradients()
            problem = f"it failed: {type(error).__name__}: {' '.join(str(error).split())}"
    graphs = counters["stats"]["unique_graphs"] - before
    if not problem and not graphs:
        problem = "nothing was compiled (TORCHDYNAMO_DISABLE?)"
    failed, eager_s, compiled_s = session.world.sum([float(bool(problem)), *gains], session.device)
    speed = (
        f"the longest batch takes {compiled_s / session.world.size:.3g} s, {eager_s / session.world.size:.3g} without"
    )
    if failed:
        problem = problem or "it failed in another process"
    elif session.training.torch_compile == "auto" and compiled_s >= eager_s:
        problem = f"no gain: {speed}"
    if problem:
        own.restore()
        return Compilation(False, problem[:512], graphs)
    return Compilation(True, f"{session.plan.torch_compile_reason}; {speed}"[:512], graphs)


def compiled_passes(engine: Engine, own: Blocks, batches: Sequence[Batch]) -> list[_Pass]:
    """The batches once to compile, once more as in training."""
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor

    if engine.setup.plan.attention == "flash":
        attention.keep_out_of_graphs()
    # Dropout draws what it draws without; compilers are not started by the dozen; DDP's buckets do not cut a block.
    settings = inductor.patch(fallback_random=True, compile_threads=1), dynamo.patch(optimize_ddp=False)
    with settings[0], settings[1]:
        own.compile()
        for batch in batches:
            _pass(engine, batch)
        with Compilation(True, "").in_force():
            return [_pass(engine, batch) for batch in batches]
