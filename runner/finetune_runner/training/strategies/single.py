"""single: this process trains."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING

from finetune_api.stages import TrainResult
from finetune_runner.context import Environment
from finetune_runner.errors import StageError
from finetune_runner.reporting import failure, write_termination_message
from finetune_runner.training.distributed import World
from finetune_runner.training.eager_imports import import_unseen

if TYPE_CHECKING:
    from finetune_runner.context import StageContext
    from finetune_runner.training.strategies.base import Engine, Setup


def train(context: StageContext) -> TrainResult:
    """Train in this process."""
    import_unseen("finetune_runner.training.run")
    from finetune_runner.training.run import run

    return run(context, World(), end_process(context))


def engine(setup: Setup) -> Engine:
    """The model as it is."""
    from finetune_runner.training.strategies.base import Engine

    return Engine(setup)


def end_process(context: StageContext) -> Callable[[StageError], None]:
    """A function that reports a hang and ends the process. Storage is not asked: it may be what hangs."""

    def end(error: StageError) -> None:
        environment = Environment.of(os.environ, tempfile.gettempdir())
        write_termination_message(environment.termination_log, failure("train", context.task, error))
        os._exit(int(error.exit_code))

    return end
