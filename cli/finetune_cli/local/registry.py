"""The local registry of versions: decisions of people, and what each channel serves because of them."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from finetune_api.adapter import Adapter
from finetune_api.adapterversion import AdapterVersion, Decision
from finetune_api.base import whole_seconds
from finetune_cli.decision_rules import refuse_if_decided
from finetune_cli.errors import CliError
from finetune_cli.local.objects import ConflictError, ObjectStore
from finetune_cli.options import VersionName
from finetune_operator.decide.release import decide_release

MAXIMUM_TRIES = 10


def versions_of(store: ObjectStore, namespace: str, adapter: str) -> list[AdapterVersion]:
    """All versions of an Adapter, oldest first."""
    found = [version for version in store.list(AdapterVersion, namespace) if version.spec.adapter == adapter]
    return sorted(found, key=lambda version: version.spec.version)


def get_adapter(store: ObjectStore, namespace: str, name: str) -> Adapter:
    """The Adapter. Raises CliError naming those that exist."""
    adapter = store.get(Adapter, namespace, name)
    if adapter is None:
        there = ", ".join(item.metadata.name for item in store.list(Adapter, namespace)) or "none"
        raise CliError(f"there is no Adapter {name} in namespace {namespace}", f"There are: {there}.")
    return adapter


def get_version(store: ObjectStore, namespace: str, wanted: VersionName) -> AdapterVersion:
    """The AdapterVersion. Raises CliError naming those that exist."""
    get_adapter(store, namespace, wanted.adapter)
    versions = versions_of(store, namespace, wanted.adapter)
    for version in versions:
        if version.spec.version == wanted.number:
            return version
    there = ", ".join(f"v{version.spec.version}" for version in versions) or "none"
    raise CliError(
        f"there is no version {wanted}", f"There are: {there}. `finetune versions {wanted.adapter}` shows them."
    )


def refresh_adapter(store: ObjectStore, namespace: str, name: str, now: datetime) -> Adapter:
    """Recompute the status of an Adapter and of its versions; returns the Adapter as stored."""
    for _ in range(MAXIMUM_TRIES):
        adapter = get_adapter(store, namespace, name)
        versions = versions_of(store, namespace, name)
        status, by_name = decide_release(adapter, versions, whole_seconds(now))
        try:
            for version in versions:
                store.replace(version.model_copy(update={"status": by_name[version.metadata.name]}))
            return store.replace(adapter.model_copy(update={"status": status}))
        except ConflictError:
            continue
    raise ConflictError(f"Adapter {name} keeps being changed by somebody else")


def record_decision(
    store: ObjectStore,
    namespace: str,
    wanted: VersionName,
    decision: Literal["approve", "reject"],
    user: str,
    reason: str,
    now: datetime,
) -> tuple[AdapterVersion, Adapter]:
    """Add a person's decision. Returns version and Adapter with their new status.

    Raises CliError when the version does not exist, its gate failed, or it is decided already.
    """
    refresh_adapter(store, namespace, wanted.adapter, now)
    version = get_version(store, namespace, wanted)
    refuse_if_decided(version, get_adapter(store, namespace, wanted.adapter).spec.policy, wanted, user)
    entry = Decision(by=user, decision=decision, reason=reason, at=whole_seconds(now))
    spec = version.spec.model_copy(update={"decisions": [*version.spec.decisions, entry]})
    store.replace(version.model_copy(update={"spec": spec}))
    adapter = refresh_adapter(store, namespace, wanted.adapter, now)
    return get_version(store, namespace, wanted), adapter
