"""method.warmStartFrom: which published adapter training starts from, frozen when the job is accepted. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.adapterversion import AdapterVersion
from finetune_api.common import Storage
from finetune_api.stages import WarmStartVersion


@dataclass(frozen=True)
class Unusable:
    """Why training cannot start from it. A missing version may still be published."""

    message: str
    missing: bool = False


def warm_start_version(
    name: str, version: AdapterVersion | None, namespace: str, storage: Storage
) -> WarmStartVersion | Unusable:
    """The version as a task needs it. What is inside (rank, targets) the runner compares, from the manifest."""
    field = "method.warmStartFrom.version"
    if version is None:
        return Unusable(f"{field}: there is no AdapterVersion {name} in namespace {namespace}", missing=True)
    spec = version.spec
    if spec.served_as != "adapter":
        return Unusable(
            f"{field}: {name} is served merged and holds no adapter to go on from; name a version that is served as "
            "adapter"
        )
    root = f"{storage.uri.rstrip('/')}/{namespace}/"
    if not spec.uri.startswith(root):
        return Unusable(
            f"{field}: {name} lies at {spec.uri}, outside of this job's storage {root}; use an Adapter in the same "
            "storage"
        )
    return WarmStartVersion(version=name, uri=spec.uri, digest=spec.digest, base_digest=spec.base.digest)


def wrong_base(start: WarmStartVersion | None, model_digest: str) -> str:
    """What is wrong when the job's base is not the one that the version was made on; empty when nothing is."""
    if start is None or start.base_digest == model_digest:
        return ""
    return (
        f"method.warmStartFrom.version: {start.version} was made on another base model (sha256 "
        f"{start.base_digest[:12]}, model.source is {model_digest[:12]}); name that base in model.source and "
        "model.revision, or leave warmStartFrom out"
    )
