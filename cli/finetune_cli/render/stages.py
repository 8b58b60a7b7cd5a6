"""One line per stage and per progress, in words. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_api.job.status import FineTuneJobStatus, StageStatus
from finetune_api.stages import STAGES, Progress, Stage, StageResults
from finetune_api.wording import counted


def number(value: float | None) -> str:
    """Three digits after the point, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s` or `2 h 05 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def size(count: float) -> str:
    """Bytes in the unit that fits."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def newest_attempt(status: FineTuneJobStatus, stage: Stage) -> StageStatus | None:
    """The newest attempt of a stage, if it was ever started."""
    return next((attempt for attempt in reversed(status.stages) if attempt.name == stage), None)


def stage_seconds(attempt: StageStatus | None) -> float | None:
    """How long an ended attempt took."""
    if attempt is None or attempt.started_at is None or attempt.finished_at is None:
        return None
    return (attempt.finished_at - attempt.started_at).total_seconds()


def parameters_text(count: int) -> str:
    """A model's size in four digits, in the unit that people say it in."""
    for unit, name in ((1_000_000_000, " B"), (1_000_000, " M"), (1_000, " k")):
        if count >= unit:
            return f"{count / unit:.4g}{name} parameters"
    return f"{count} parameters"


def _prepare(results: StageResults) -> str:
    prepared = results.prepare
    if prepared is None:
        return ""
    rows = prepared.rows
    parts = [f"{rows.train} train, {rows.validation} validation, {counted(rows.test, 'test row')}"]
    parts += [f"{rows.replay} replay"] if rows.replay else []
    parts += [f"{rows.dropped} dropped"] if rows.dropped else []
    model = f"{prepared.model.architecture}, {parameters_text(prepared.model.parameters)}"
    return f"{', '.join(parts)}; {model}"


def _baseline(results: StageResults) -> str:
    baseline = results.baseline
    if baseline is None:
        return ""
    values = baseline.baselines.get(baseline.best, baseline.base)
    told = ", ".join(f"{name} {value:.3f}" for name, value in list(values.items())[:3])
    return f"best is {baseline.best}: {told}" + (" (from an earlier run)" if baseline.cached else "")


def _train(results: StageResults) -> str:
    trained = results.train
    if trained is None:
        return ""
    ended = {
        "earlyStopping": ", stopped early",
        "budget": ", stopped by its budget",
        "plateau": ", ended at a plateau",
    }.get(trained.stopped_by, "")
    preferred = f", reward accuracy {trained.reward_accuracy:.3f}" if trained.reward_accuracy is not None else ""
    losses = f"validation loss {trained.initial_validation_loss:.3f} -> {trained.best_validation_loss:.3f}"
    steps = f"{trained.steps}/{counted(trained.total_steps, 'step')}{ended}"
    return f"{steps}; {losses}{preferred} at step {trained.best_step}; adapter {size(trained.adapter_bytes)}"


def _evaluate(results: StageResults) -> str:
    evaluated = results.evaluate
    if evaluated is None:
        return ""
    return f"{counted(evaluated.rows, 'test row')}, served as {evaluated.served_as}"


def _publish(results: StageResults) -> str:
    published = results.publish
    return f"v{published.version}, {size(published.size_bytes)}" if published is not None else ""


FACTS = {"prepare": _prepare, "baseline": _baseline, "train": _train, "evaluate": _evaluate, "publish": _publish}


def stage_facts(stage: Stage, results: StageResults) -> str:
    """What a finished stage found, in one line; empty while it has no result."""
    return FACTS[stage](results)


def stage_position(stage: Stage) -> str:
    """`3/5`."""
    return f"{STAGES.index(stage) + 1}/{len(STAGES)}"


def _rates(progress: Progress) -> Iterator[str]:
    """How fast training goes, where it is known."""
    if progress.seconds_per_step:
        slow = progress.seconds_per_step >= 1
        yield f"{progress.seconds_per_step:.1f} s/step" if slow else f"{1 / progress.seconds_per_step:.1f} steps/s"
    if progress.tokens_per_second:
        yield f"{progress.tokens_per_second:,.0f} tokens/s"


def progress_words(progress: Progress) -> str:
    """Step, time left, pace and losses of a running stage."""
    parts = [progress.phase] if progress.phase else []
    if progress.total_steps:
        parts.append(f"{progress.step}/{progress.total_steps}")
    if progress.eta_seconds is not None:
        parts.append(f"{duration(progress.eta_seconds)} left")
    parts += _rates(progress)
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.validation_loss is not None:
        parts.append(f"validation loss {progress.validation_loss:.3f}")
    parts += [f"{name} {value:.3f}" for name, value in list(progress.validation_metrics.items())[:1]]
    return "  ".join(parts)
