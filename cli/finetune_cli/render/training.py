"""What training was told and what it measured, and each stage's forecast beside its measurement. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from finetune_api.job.forecast import Forecast, StageForecast
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.job.status import FineTuneJobStatus
from finetune_api.stages import TIME_PARTS, TimeShares, TrainPlan, TrainResult
from finetune_cli.render.stages import duration


def _settings(spec: FineTuneJobSpec, plan: TrainPlan) -> str:
    training = spec.training
    rate = training.learning_rate if plan.learning_rate is None else plan.learning_rate
    if rate is None:
        return ""
    warmup = "" if training.scheduler == "constant" else f", {training.warmup_ratio:.0%} warm-up"
    epochs = f", {plan.epochs:g} epoch{'s' * (plan.epochs != 1)}" if plan.epochs is not None else ""
    return f"{rate:g} at most, {training.scheduler}{warmup}{epochs}, {training.optimizer}"


def _way(trained: TrainResult) -> str:
    if not trained.micro_batch_size:
        return ""
    recomputed = "activations recomputed" if trained.gradient_checkpointing else "activations kept"
    compiled = ", blocks compiled" if trained.torch_compile else ""
    probe = f"; the probe said: {trained.probe}" if trained.probe else ""
    return (
        f"{trained.strategy}, micro-batch {trained.micro_batch_size} x {trained.gradient_accumulation}, "
        f"{recomputed}{compiled}{probe}"
    )


def _speed(trained: TrainResult) -> str:
    if not trained.tokens_per_second:
        return ""
    loss = f" ({trained.labelled_tokens_per_second:,.0f} with a loss)" if trained.labelled_tokens_per_second else ""
    mfu = trained.model_flops_utilization
    used = f", MFU {mfu:.1%}" if mfu is not None else ""
    return f"{trained.tokens_per_second:,.0f} tokens/s{loss}{used}"


def time_parts(seconds: TimeShares) -> str:
    """`forward and backward 82 % (1 min 12 s), evaluation 9 % (8 s), ...`, largest first; empty when none was taken."""
    spent = {words: float(getattr(seconds, field)) for field, words in TIME_PARTS.items()}
    total = sum(spent.values())
    if not total:
        return ""
    ordered = sorted(((words, share) for words, share in spent.items() if share), key=lambda part: -part[1])
    return ", ".join(f"{words} {share / total:.0%} ({duration(share)})" for words, share in ordered)


def training_facts(spec: FineTuneJobSpec, status: FineTuneJobStatus) -> list[tuple[str, str]]:
    """Name and words of each fact; empty words where nothing is known."""
    plan, trained = status.plan, status.results.train
    if plan is None:
        return []
    facts = [("learning rate", _settings(spec, plan))]
    if trained is not None:
        facts += [("way", _way(trained)), ("speed", _speed(trained)), ("time", time_parts(trained.seconds))]
    return facts


def _span(stage: StageForecast) -> str:
    if stage.seconds_low is None or stage.seconds_high is None:
        return "-"
    return f"{duration(stage.seconds_low)} to {duration(stage.seconds_high)}"


def _off(measured: float | None, forecast: float) -> str:
    """How far the forecast was off, signed as in docs/forecast.md: negative is too low."""
    return f"{forecast / measured - 1:+.0%}" if measured else "-"


def forecast_table(known: Forecast) -> Iterator[Table]:
    """A row per GPU stage: memory that PyTorch reserves, and time; forecast, measured, and how far off."""
    if not known.stages:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("STAGE", "RESERVED, FORECAST", "MEASURED", "OFF BY", "TIME, FORECAST", "MEASURED"):
        table.add_column(title, overflow="fold")
    for stage in known.stages:
        peak, took = stage.measured_gpu_memory_gib, stage.measured_seconds
        table.add_row(
            stage.stage,
            f"{stage.reserved_gpu_memory_gib:.1f} GiB",
            "-" if peak is None else f"{peak:.1f} GiB",
            Text(_off(peak, stage.reserved_gpu_memory_gib)),
            _span(stage),
            "-" if took is None else duration(took),
        )
    yield table
