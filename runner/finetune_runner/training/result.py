"""The result of a finished training, and its whole curve."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

from finetune_api.stages import TimeShares, TrainResult
from finetune_runner.training.adapter_file import ADAPTER_FILE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from finetune_runner.training.checkpoint import Checkpoint
    from finetune_runner.training.session import Session
    from finetune_runner.training.setup import Learner

HISTORY = "train/history.json"
SHOWN_SKIPPED, LONGEST_REASON = 3, 100

StoppedBy = Literal["completed", "earlyStopping", "plateau", "budget"]
STOPPED_BY: dict[str, StoppedBy] = {
    "completed": "completed",
    "earlyStopping": "earlyStopping",
    "plateau": "plateau",
    "budget": "budget",
}


def write_history(session: Session) -> None:
    """The whole curve: the kept checkpoint knows it only up to its own step."""
    session.context.fence.check()
    session.context.storage.write_bytes(
        f"{session.context.task.run_uri}/{HISTORY}",
        json.dumps([asdict(point) for point in session.state.history]).encode(),
    )


def train_result(
    session: Session,
    learner: Learner,
    kept: Checkpoint,
    *,
    duration_s: float,
    peak_bytes: int,
    lost_trackers: Sequence[str],
) -> TrainResult:
    """What the stage reports.

    Args:
        session: of the finished training.
        learner: what was trained.
        kept: the best checkpoint, proven.
        duration_s: of this attempt.
        peak_bytes: of the rank that used most.
        lost_trackers: problems of trackers, in words.
    """
    state, plan, pace = session.state, session.plan, session.pace
    adapter = kept.files[ADAPTER_FILE]
    return TrainResult(
        steps=state.step,
        total_steps=session.horizon.expected(state.step),
        best_step=kept.step,
        stopped_by=STOPPED_BY.get(state.ended_by, "completed"),
        train_loss=statistics.fmean(state.recent_losses[-last_tenth(session) :]),
        initial_validation_loss=state.initial_validation_loss or 0.0,
        best_validation_loss=state.best_validation_loss or 0.0,
        reward_accuracy=state.best_measures.get("rewardAccuracy"),
        reward_margin=state.best_measures.get("rewardMargin"),
        checkpoint_uri=kept.uri,
        checkpoint_digest=adapter["sha256"],
        trainable_parameters=learner.trainable_parameters,
        adapter_bytes=adapter["size"],
        peak_memory_bytes=peak_bytes,
        tokens_per_second=round(pace.tokens_per_second, 1),
        labelled_tokens_per_second=round(pace.labelled_tokens_per_second, 1),
        model_flops_utilization=_utilization(session),
        seconds=TimeShares(**{part: round(spent, 2) for part, spent in session.stopwatch.seconds.items()}),
        strategy=plan.strategy,
        micro_batch_size=plan.micro_batch_size,
        gradient_accumulation=plan.gradient_accumulation,
        gradient_checkpointing=plan.gradient_checkpointing,
        torch_compile=learner.compilation.active,
        torch_compile_reason=learner.compilation.reason,
        compilations=learner.compilation.graphs,
        probe=learner.probe.changes[:256],
        duration_seconds=round(duration_s, 1),
        resumed_from_step=session.resumed_from or 0,
        skipped_checkpoints=[skipped[:LONGEST_REASON] for skipped in state.skipped_checkpoints[:SHOWN_SKIPPED]],
        validation_metrics={name: round(value, 6) for name, value in state.best_measures.items()},
        lost_trackers=list(lost_trackers),
    )


def last_tenth(session: Session) -> int:
    """Steps whose losses make the training loss that is reported."""
    return max(1, session.plan.total_steps // 10)


def _utilization(session: Session) -> float | None:
    """Model FLOPs utilisation: useful operations over the peak of all GPUs; None on a CPU or an unknown GPU."""
    peak, per_token = session.plan.gpu_peak_tflops, session.plan.flops_per_token
    if session.device.type != "cuda" or not peak or not per_token:
        return None
    return round(session.pace.tokens_per_second * per_token / (peak * 1e12 * session.world.size), 4)
