"""Batches of an evaluation within the GPU's memory: what is too large is computed in halves, down to single rows.

An evaluation has a batch of its own, which nothing of training's makes smaller.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import EVALUATION_EXHAUSTED
from finetune_api.wording import counted
from finetune_runner.errors import StageError
from finetune_runner.evaluation.share import Batch
from finetune_runner.training.device import release_memory

if TYPE_CHECKING:
    import torch

Result = TypeVar("Result")
log = logging.getLogger(__name__)


class Fitting:
    """Computes batches one after the other; what ran out of memory is not tried again at that size.

    Args:
        what: in words, for example `validation`.
        device: of the model.
        splits: whether a batch may be computed in parts. Not where all processes compute each forward pass together:
            one that runs out of memory in it leaves the others waiting.
    """

    def __init__(self, what: str, device: torch.device, *, splits: bool) -> None:
        self._what = what
        self._device = device
        self._splits = splits
        self._most_rows: int | None = None

    def parts(self, batch: Batch, compute: Callable[[Batch], Result]) -> Iterator[tuple[Batch, Result]]:
        """The batch in as few parts as fit, each with what `compute` makes of it.

        Raises:
            StageError: GPU_OUT_OF_MEMORY when a single row is too large, or parts are not allowed.
        """
        waiting = list(_cut(batch, self._most_rows or len(batch)))
        while waiting:
            part = waiting.pop(0)
            result, evidence = _attempt(compute, part)
            if result is not None:
                yield part, result
                continue
            release_memory(self._device)
            if not self._splits or len(part) == 1:
                raise self._exhausted(len(part), evidence)
            self._most_rows = len(part) // 2
            log.warning("%s: %d rows do not fit on the GPU; %d at a time now", self._what, len(part), self._most_rows)
            waiting = [smaller for larger in (part, *waiting) for smaller in _cut(larger, self._most_rows)]

    def _exhausted(self, rows: int, evidence: str) -> StageError:
        return StageError(
            ExitCode.GPU_OUT_OF_MEMORY,
            f"{self._what} does not fit on a GPU: {counted(rows, 'row')} at a time ran out of memory",
            "training's batch does not change that: lower training.maxLength or evaluation.maxNewTokens, use "
            "method.type: qlora, or a pool with larger GPUs",
            f"{EVALUATION_EXHAUSTED}: {evidence}"[:500],
        )


def _attempt(compute: Callable[[Batch], Result], part: Batch) -> tuple[Result | None, str]:
    """What came of it, or None and why. The error is gone on return, and with it the tensors of its frames."""
    import torch

    try:
        return compute(part), ""
    except torch.OutOfMemoryError as error:
        return None, str(error)


def _cut(batch: Batch, rows: int) -> Iterator[Batch]:
    for start in range(0, len(batch), rows):
        yield batch[start : start + rows]
