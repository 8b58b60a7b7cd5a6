"""Stage train: an adapter from train, steered by validation. It never reads test."""

from __future__ import annotations

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import Finding, StageResults, TrainResult
from finetune_runner.context import StageContext
from finetune_runner.errors import StageError
from finetune_runner.training.strategies import train


def run(context: StageContext) -> tuple[StageResults, list[Finding]]:
    """Train as planned.

    Raises:
        StageError: INTERRUPTED after a checkpoint was saved, TRAINING_DIVERGED naming the step, and what loading the
            model and storage raise.
    """
    if context.task.plan is None:
        raise StageError(ExitCode.INVALID_SPEC, "the train stage needs a plan", hint="run prepare and plan first")
    result = train(context, context.task.plan.strategy)
    return StageResults(train=result), _findings(result)


def _findings(result: TrainResult) -> list[Finding]:
    if result.best_validation_loss < result.initial_validation_loss:
        return []
    return [
        Finding(
            check="learning",
            severity="warning",
            message=f"validation loss never fell below its start ({result.initial_validation_loss:.4g}); the kept step "
            f"{result.best_step} has {result.best_validation_loss:.4g}. Check the data, or lower training.learningRate",
        )
    ]
