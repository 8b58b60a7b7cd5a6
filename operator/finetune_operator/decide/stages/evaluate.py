"""evaluate: numbers from the pod, verdict from here."""

from __future__ import annotations

from finetune_operator.decide.draft import Draft
from finetune_operator.decide.gates import judge, overall
from finetune_operator.decide.stages.base import StageKind
from finetune_operator.planner.forecast import with_stage_measurement


def _after(draft: Draft) -> None:
    result = draft.status.results.evaluate
    if result is None:
        raise RuntimeError("evaluate has no result")
    status = draft.status
    measured = with_stage_measurement(
        status.forecast, status.plan, "evaluate", result.peak_memory_bytes, result.duration_seconds
    )
    measured = with_stage_measurement(measured, status.plan, "merge", result.merged_peak_memory_bytes, 0.0)
    draft.set(forecast=measured)
    gates = judge(draft.resolved.gates, result.comparisons)
    primary = draft.observed.job.spec.evaluation.metrics[0].name
    tuned = result.metrics.get(primary)
    baseline = draft.status.results.baseline
    before = baseline.baselines.get(baseline.best, baseline.base).get(primary) if baseline else None
    changes: dict[str, object] = {"gates": gates, "verdict": overall(gates)}
    if tuned is not None:
        changes["metric"] = f"{primary} {before:.2f}->{tuned:.2f}" if before is not None else f"{primary} {tuned:.2f}"
    draft.set(**changes)


KIND = StageKind(name="evaluate", phase="Evaluating", needs_gpu=True, after=_after)
