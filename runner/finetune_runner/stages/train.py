"""Stage train: an adapter from train, steered by validation. It never reads test."""

from __future__ import annotations

import json

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import Finding, StageResults, TrainResult
from finetune_runner.context import StageContext
from finetune_runner.errors import StageError
from finetune_runner.storage import join
from finetune_runner.training.signals import Curve, findings
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
    # Only the first pod of a gang has claimed an epoch, and reports.
    return StageResults(train=result), _findings(context, result) if context.fence.epoch else []


def _findings(context: StageContext, result: TrainResult) -> list[Finding]:
    """What the curves say, what was not resumed from, and which trackers were lost."""
    history = json.loads(context.storage.read_bytes(join(context.task.run_uri, "train/history.json")))
    lost = [
        Finding(
            check="tracking",
            severity="warning",
            message=f"{problem}. Training is not concerned; check spec.tracking",
        )
        for problem in result.lost_trackers
    ]
    return [
        *findings(Curve.of(history, result)),
        *_skipped_checkpoints(result),
        *_smaller_micro_batch(context, result),
        *_eager(context, result),
        *lost,
    ]


def _skipped_checkpoints(result: TrainResult) -> list[Finding]:
    """Checkpoints that were there and could not be used: their steps were done again, or the next best was kept."""
    if not result.skipped_checkpoints:
        return []
    return [
        Finding(
            check="checkpoints",
            severity="warning",
            message=f"training did not use {'; '.join(result.skipped_checkpoints)}. It went on from an older "
            "checkpoint, and the result is whole; check what else writes to the run's folder",
        )
    ]


def _smaller_micro_batch(context: StageContext, result: TrainResult) -> list[Finding]:
    """A micro-batch that the spec asks for and memory did not hold."""
    asked = context.task.spec.training.micro_batch_size
    if asked is None or result.micro_batch_size == asked:
        return []
    return [
        Finding(
            check="microBatchSize",
            severity="info",
            message=f"training.microBatchSize: {asked} did not fit on the GPU; trained with {result.micro_batch_size}, "
            "the same examples per step and the same result. Set it, or leave the field out, to save the attempt",
        )
    ]


def _eager(context: StageContext, result: TrainResult) -> list[Finding]:
    """Blocks that were to be compiled and were not."""
    plan = context.task.plan
    if plan is None or not plan.torch_compile or result.torch_compile:
        return []
    message = f"training ran without torch.compile, with the same result: {result.torch_compile_reason}"
    return [Finding(check="torchCompile", severity="info", message=message[:512])]
