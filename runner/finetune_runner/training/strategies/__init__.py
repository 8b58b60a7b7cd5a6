"""How many processes train: one module per strategy, each with `train(context) -> TrainResult`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from finetune_api.stages import TrainResult

if TYPE_CHECKING:
    from finetune_runner.context import StageContext


def train(context: StageContext, strategy: str) -> TrainResult:
    """Train with the named strategy, a module of this package."""
    result: TrainResult = importlib.import_module(f"{__name__}.{strategy}").train(context)
    return result
