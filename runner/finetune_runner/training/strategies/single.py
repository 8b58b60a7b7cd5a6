"""single: this process trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_api.stages import TrainResult
from finetune_runner.training.distributed import World

if TYPE_CHECKING:
    from finetune_runner.context import StageContext


def train(context: StageContext) -> TrainResult:
    """Train in this process."""
    from finetune_runner.training.run import TrainingRun

    return TrainingRun(context, World()).run()
