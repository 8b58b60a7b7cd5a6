"""prepare: data and model are checked on a CPU pod; then the plan is frozen."""

from __future__ import annotations

from finetune_api.adapterversion import AdapterVersion
from finetune_api.job.status import VersionStatus
from finetune_operator.decide.draft import Draft
from finetune_operator.decide.hashing import fingerprint
from finetune_operator.decide.release import incumbent_of, version_label
from finetune_operator.decide.stages.base import StageKind
from finetune_operator.planner.plan import PlanError, make_plan


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


def _after(draft: Draft) -> None:
    prepared = draft.status.results.prepare
    if prepared is None:
        raise RuntimeError("prepare has no result")
    job = draft.observed.job
    try:
        plan = make_plan(job.spec, draft.resolved, prepared, spent_cost=draft.status.cost or 0.0)
    except PlanError as error:
        draft.finish("Failed", "InvalidSpec", str(error), "Correct the spec and apply again.")
        return
    digest = fingerprint(job.spec, prepared, plan)
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
