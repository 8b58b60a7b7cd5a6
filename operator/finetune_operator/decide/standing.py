"""What became of a finished run's version: served, approved, turned down, or still waiting for a person. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.adapterversion import AdapterVersion
from finetune_operator.decide.draft import Draft


@dataclass(frozen=True)
class Standing:
    """The Released condition of a job, and what its status says about it."""

    released: bool
    reason: str
    message: str


UNDECIDED = Standing(released=False, reason="NotYet", message="")


def _version(draft: Draft) -> AdapterVersion | None:
    name = draft.status.version.name if draft.status.version is not None else ""
    return next((version for version in draft.observed.versions if version.metadata.name == name), None)


def _channels(draft: Draft) -> list[str]:
    adapter, version = draft.observed.adapter, draft.status.version
    if adapter is None or adapter.status is None or version is None:
        return []
    served = (f"v{version.number}", version.digest)
    return [channel.name for channel in adapter.status.channels if (channel.version, channel.digest) == served]


def standing(draft: Draft) -> Standing:
    """Where the run's version stands, from the Adapter's channels and from the version's own phase."""
    status = draft.status
    channels = _channels(draft)
    if channels:
        return Standing(released=True, reason="Serving", message=f"served by {', '.join(channels)}")
    if not draft.finished:
        return UNDECIDED
    version = _version(draft)
    phase = version.status.phase if version is not None and version.status is not None else ""
    told = version.status.message if version is not None and version.status is not None else ""
    if phase == "Approved":
        return Standing(released=False, reason="NotServed", message="approved; every channel serves another version")
    if phase == "Rejected":
        return Standing(released=False, reason="Rejected", message=told)
    if phase == "GateFailed":
        return Standing(released=False, reason="GateFailed", message=status.message)
    if phase == "PendingApproval" and status.reason == "Unchanged":
        return Standing(released=False, reason="AwaitingApproval", message=told)
    return Standing(released=False, reason=status.reason, message=status.message)
