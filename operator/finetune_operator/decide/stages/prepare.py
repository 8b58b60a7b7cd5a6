"""prepare: data and model are checked on a CPU pod; then the plan is frozen."""

from __future__ import annotations

from typing import Literal

from finetune_api.adapterversion import AdapterVersion
from finetune_api.job.forecast import Forecast
from finetune_api.job.model import FETCHED_SCHEMES
from finetune_api.job.status import VersionStatus
from finetune_api.stages import Finding, ModelFacts, PrepareResult, TrainPlan
from finetune_operator.decide.draft import FINDINGS_LIMIT, Draft
from finetune_operator.decide.hashing import fingerprint
from finetune_operator.decide.release import incumbent_of, version_label
from finetune_operator.decide.stages.base import StageKind
from finetune_operator.decide.warm_start import wrong_base
from finetune_operator.planner.forecast import forecast, refusal
from finetune_operator.planner.plan import PlanError, make_plan
from finetune_operator.planner.recipe import few_steps_warning, recipe_warnings

_LARGE_MODEL_BYTES = 1_000_000_000
"""Below it the download is a matter of seconds."""


def _unchanged(draft: Draft, existing: AdapterVersion) -> None:
    spec = existing.spec
    draft.set(
        version=VersionStatus(number=spec.version, name=existing.metadata.name, uri=spec.uri, digest=spec.digest),
        verdict=spec.verdict,
        gates=spec.gates,
    )
    draft.finish(
        "Succeeded",
        "Unchanged",
        f"the same model, data and settings already made {version_label(existing)}; nothing was trained",
        f"Look at {existing.metadata.name}, or change the data or the spec to make another version.",
    )


def _warnings(draft: Draft, expected: Forecast, prepared: PrepareResult, plan: TrainPlan) -> list[Finding]:
    """What of forecast and settings a person should see before money is spent; none of it stops the run."""
    warning = ("tight:", "host memory:", "disk:", "compute.")
    messages = [note for note in expected.notes if note.startswith(warning)]
    if expected.fit == "Unknown" and draft.resolved.pool_spec.gpus_per_node:
        messages += expected.notes[:1]
    spec, rows = draft.observed.job.spec, prepared.rows.train + prepared.rows.replay
    unusual = recipe_warnings(spec, prepared.model) + few_steps_warning(spec, prepared.model, rows, plan)
    return [
        *(Finding(check="forecast", severity="warning", message=message[:512]) for message in messages),
        *(Finding(check="recipe", severity="warning", message=message[:512]) for message in unusual),
    ]


def _fetched_by_gpu_stages(draft: Draft, facts: ModelFacts) -> list[Finding]:
    """What it costs that the pool has no model cache: GPUs that wait for a download."""
    pool, source = draft.resolved.pool_spec, draft.observed.job.spec.model.source
    local = draft.observed.allow_file_sources  # without a cluster the state folder keeps the model
    if local or pool.model_cache is not None or not pool.gpus_per_node or not source.startswith(FETCHED_SCHEMES):
        return []
    size_bytes = facts.file_bytes or 2 * facts.parameters
    message = (
        f"GPUPool {draft.resolved.pool} has no modelCache: baseline, train and evaluate each fetch {source} "
        f"({size_bytes / 1e9:.1f} GB) again while their GPUs wait; ask the platform team to set "
        "spec.modelCache.claimName"
    )
    severity: Literal["info", "warning"] = "warning" if size_bytes >= _LARGE_MODEL_BYTES else "info"
    return [Finding(check="modelCache", severity=severity, message=message[:512])]


def _after(draft: Draft) -> None:
    prepared = draft.status.results.prepare
    if prepared is None:
        raise RuntimeError("prepare has no result")
    job = draft.observed.job
    wrong = wrong_base(draft.resolved.warm_start, prepared.model_digest)
    if wrong:
        draft.finish("Failed", "InvalidSpec", wrong, "Correct the spec and apply again.")
        return
    try:
        plan = make_plan(job.spec, draft.resolved, prepared, spent_cost=draft.status.cost or 0.0)
    except PlanError as error:
        draft.finish("Failed", "InvalidSpec", str(error), "Correct the spec and apply again.")
        return
    expected = forecast(job.spec, draft.resolved, prepared, plan)
    draft.set(
        forecast=expected,
        findings=[
            *_warnings(draft, expected, prepared, plan),
            *_fetched_by_gpu_stages(draft, prepared.model),
            *draft.status.findings,
        ][:FINDINGS_LIMIT],
    )
    if expected.fit == "DoesNotFit":
        message, remedy = refusal(job.spec, draft.resolved, prepared, plan)
        draft.finish("Failed", "DoesNotFit", message, f"{remedy[0].upper()}{remedy[1:]}.")
        return
    digest = fingerprint(job.spec, prepared, plan, draft.resolved.warm_start)
    incumbent = incumbent_of(draft.observed.adapter, draft.observed.versions)
    draft.set(plan=plan)
    draft.set_resolved(
        fingerprint=digest,
        incumbent=version_label(incumbent) if incumbent else "",
        incumbent_uri=incumbent.spec.uri if incumbent else "",
    )
    for version in draft.observed.versions:
        if version.spec.fingerprint == digest:
            _unchanged(draft, version)
            return


KIND = StageKind(name="prepare", phase="Preparing", needs_gpu=False, after=_after)
