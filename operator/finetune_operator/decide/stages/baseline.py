"""baseline: what the untuned model can do on test, and whether tuning is worth it."""

from __future__ import annotations

from finetune_api.job.evaluation import Gate
from finetune_api.stages import BaselineResult
from finetune_operator.decide.draft import Draft
from finetune_operator.decide.stages.base import StageKind
from finetune_operator.planner.forecast import with_stage_measurement


def _suffices(result: BaselineResult, gates: list[Gate]) -> bool:
    absolute = [gate for gate in gates if gate.over is None]
    metrics = result.baselines.get(result.best, {})

    def passes(gate: Gate) -> bool:
        value = metrics.get(gate.metric)
        if value is None:
            return False
        return value >= gate.minimum if gate.minimum is not None else value <= (gate.maximum or 0.0)

    return bool(absolute) and all(passes(gate) for gate in absolute)


def _after(draft: Draft) -> None:
    result = draft.status.results.baseline
    if result is None:
        raise RuntimeError("baseline has no result")
    status = draft.status
    peak, seconds = result.peak_memory_bytes, result.duration_seconds
    draft.set(forecast=with_stage_measurement(status.forecast, status.plan, "baseline", peak, seconds))
    evaluation = draft.observed.job.spec.evaluation
    primary = evaluation.metrics[0].name
    value = result.baselines.get(result.best, result.base).get(primary)
    if value is not None:
        draft.set(metric=f"{primary} {value:.2f}")
    if evaluation.stop_when_baseline_suffices and _suffices(result, draft.resolved.gates):
        shown = f"{value:.3f}" if value is not None else "unknown"
        draft.finish(
            "Succeeded",
            "BaselineSuffices",
            f"the {result.best} baseline reaches {primary} {shown} and passes every gate that does not compare; "
            "nothing was trained",
            "Use the base model with this prompt, or set evaluation.stopWhenBaselineSuffices: false to train anyway.",
        )


KIND = StageKind(name="baseline", phase="Baseline", needs_gpu=True, after=_after)
