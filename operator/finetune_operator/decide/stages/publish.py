"""publish: the files are in storage; the AdapterVersion is made from the run's results."""

from __future__ import annotations

from finetune_api.adapterversion import AdapterVersion, AdapterVersionSpec, VersionBase, VersionOrigin
from finetune_api.common import ObjectMeta
from finetune_api.job.status import VersionStatus
from finetune_operator.decide.draft import Draft
from finetune_operator.decide.release import version_name
from finetune_operator.decide.stages.base import StageKind

AUTHOR_ANNOTATION = "finetune.dev/requested-by"


def build_version(draft: Draft) -> AdapterVersion:
    """The AdapterVersion of a finished run: a function of its status, so that a retry makes the same one."""
    results = draft.status.results
    published, prepared, evaluated = results.publish, results.prepare, results.evaluate
    if published is None or prepared is None or evaluated is None or draft.status.verdict is None:
        raise RuntimeError("a version needs the results of prepare, evaluate and publish")
    job = draft.observed.job
    adapter = job.spec.output.adapter_ref.name
    finished = draft.newest.finished_at if draft.newest and draft.newest.finished_at else draft.now
    return AdapterVersion(
        metadata=ObjectMeta(
            name=version_name(adapter, published.version),
            namespace=job.metadata.namespace,
            labels={"finetune.dev/adapter": adapter, "finetune.dev/job": job.metadata.name},
        ),
        spec=AdapterVersionSpec(
            adapter=adapter,
            version=published.version,
            uri=published.uri,
            digest=published.digest,
            size_bytes=published.size_bytes,
            served_as=evaluated.served_as,
            base=VersionBase(source=job.spec.model.source, revision=prepared.revision, digest=prepared.model_digest),
            origin=VersionOrigin(
                job=job.metadata.name,
                uid=job.metadata.uid,
                run=draft.status.run,
                author=job.metadata.annotations.get(AUTHOR_ANNOTATION, ""),
            ),
            data_digest=prepared.data_digest,
            fingerprint=draft.resolved.fingerprint,
            parent=draft.resolved.incumbent,
            warm_started_from=draft.resolved.warm_start.version if draft.resolved.warm_start else "",
            metrics=evaluated.metrics,
            verdict=draft.status.verdict,
            gates=draft.status.gates,
            created_at=finished,
        ),
    )


def _after(draft: Draft) -> None:
    version = build_version(draft)
    draft.set(
        version=VersionStatus(
            number=version.spec.version,
            name=version.metadata.name,
            uri=version.spec.uri,
            digest=version.spec.digest,
        )
    )


KIND = StageKind(name="publish", phase="Publishing", needs_gpu=False, after=_after)
