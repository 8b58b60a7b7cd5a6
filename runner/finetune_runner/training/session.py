"""What the parts of one training share: the task, the place among the ranks, and how far training has come."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import TrainPlan
from finetune_runner.errors import StageError
from finetune_runner.tracking import Tracking, open_tracking
from finetune_runner.training.checkpoint import CheckpointStore, TrainingState
from finetune_runner.training.device import pick_device
from finetune_runner.training.distributed import World
from finetune_runner.training.horizon import Horizon
from finetune_runner.training.pace import Pace
from finetune_runner.training.rates import decay_steps
from finetune_runner.training.timing import Stopwatch
from finetune_runner.training.watchdog import Watchdog

if TYPE_CHECKING:
    from finetune_runner.context import StageContext


@dataclass(frozen=True)
class Saved:
    """The newest checkpoint. Of the same step only the manifest is written again."""

    step: int
    files: dict[str, dict[str, Any]]


class Session:
    """One training in one process. `on_hang` ends the process when no step ends any more.

    Raises StageError (INVALID_SPEC) when the task has no plan.
    """

    def __init__(self, context: StageContext, world: World, on_hang: Callable[[StageError], None]) -> None:
        if context.task.plan is None:
            raise StageError(ExitCode.INVALID_SPEC, "the train stage needs a plan")
        self.context = context
        self.world = world
        self.plan: TrainPlan = context.task.plan
        """As it runs: the probe may choose a smaller micro-batch."""
        self.training = context.task.training
        self.device = pick_device(self.plan)
        self.folder = context.scratch / f"train-{world.rank}"
        self.store = CheckpointStore(context)
        self.state = TrainingState()
        self.saved: Saved | None = None
        self.saved_at_s = time.monotonic()
        """When the newest checkpoint was complete, or when this attempt began."""
        self.resumed_from: int | None = None
        """Not known before the checkpoints are looked at."""
        planned = self.plan.total_steps
        self.horizon = Horizon(planned, self.plan.extend_to, decay_steps(self.training, planned))
        self.stopwatch = Stopwatch()
        self.pace = Pace()
        self.watchdog = Watchdog(on_hang)
        self.tracking = open_tracking(context) if world.main else Tracking([])

    @property
    def precision(self) -> str:
        """What a loss of the plan is rounded to: 4-bit weights are computed with in bf16."""
        return "bf16" if self.plan.method == "qlora" else self.plan.precision
