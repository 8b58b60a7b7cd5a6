"""How many processes train and what each holds: one module per strategy.

Each has `train(context) -> TrainResult`, which starts the processes, and `engine(setup) -> Engine`, which spreads the
model over them (base.py).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from finetune_api.stages import TrainResult

if TYPE_CHECKING:
    from finetune_runner.context import StageContext
    from finetune_runner.training.strategies.base import Engine, Setup


def _module(strategy: str) -> Any:
    return importlib.import_module(f"{__name__}.{strategy}")


def train(context: StageContext, strategy: str) -> TrainResult:
    """Train with the named strategy, a module of this package."""
    result: TrainResult = _module(strategy).train(context)
    return result


def new_engine(setup: Setup, strategy: str) -> Engine:
    """The model spread out as the named strategy does."""
    made: Engine = _module(strategy).engine(setup)
    return made
