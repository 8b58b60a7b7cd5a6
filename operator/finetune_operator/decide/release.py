"""Which version may be served, and which one each channel serves. Pure; the same for cluster and local registry."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from finetune_api.adapter import Adapter, AdapterStatus, Channel, ChannelStatus, Policy
from finetune_api.adapterversion import AdapterVersion, AdapterVersionStatus, VersionPhase
from finetune_api.common import Condition
from finetune_operator.decide.conditions import Wanted, with_transition_times

LATEST = "latestApproved"


def version_label(version: AdapterVersion) -> str:
    """`v3`."""
    return f"v{version.spec.version}"


def version_name(adapter: str, number: int) -> str:
    """Name of the AdapterVersion object."""
    return f"{adapter}-v{number}"


def release_phase(version: AdapterVersion, policy: Policy) -> tuple[VersionPhase, str]:
    """Where a version stands under a policy, and why."""
    spec = version.spec
    if spec.verdict == "Failed":
        failed = next((gate.gate for gate in spec.gates if gate.verdict == "Failed"), "a gate")
        return "GateFailed", f"gate failed: {failed}"
    rejected = [decision for decision in spec.decisions if decision.decision == "reject"]
    if rejected:
        reason = f": {rejected[0].reason}" if rejected[0].reason else ""
        return "Rejected", f"rejected by {rejected[0].by}{reason}"[:512]
    author = spec.origin.author if policy.approvals.four_eyes else ""
    approvers = sorted({d.by for d in spec.decisions if d.decision == "approve" and (not author or d.by != author)})
    missing = policy.approvals.required - len(approvers)
    if missing <= 0:
        return "Approved", f"approved by {', '.join(approvers)}"[:512]
    if policy.release == "automatic" and spec.verdict == "Passed":
        return "Approved", "approved by policy: release automatic"
    doubt = "; a gate is inconclusive, look at the report first" if spec.verdict == "Inconclusive" else ""
    people = "person" if missing == 1 else "people"
    if not policy.approvals.four_eyes:
        whom = ""
    elif author:
        whom = f" other than the author ({author})"
    else:
        whom = " (who asked for the job is not recorded, so their own approval counts too)"
    return "PendingApproval", f"waits for approval by {missing} {people}{whom}{doubt}"[:512]


def _effective(
    channel: Channel,
    before: ChannelStatus | None,
    versions: Sequence[AdapterVersion],
    phases: dict[str, tuple[VersionPhase, str]],
    now: datetime,
) -> ChannelStatus:
    approved = [version for version in versions if phases[version.metadata.name][0] == "Approved"]
    message = ""
    if channel.version == LATEST:
        chosen = max(approved, key=lambda version: version.spec.version, default=None)
        if chosen is None:
            message = "no version is approved yet"
    else:
        wished = next((version for version in versions if version_label(version) == channel.version), None)
        chosen = wished if wished in approved else None
        if wished is None:
            message = f"{channel.version} does not exist"
        elif chosen is None:
            message = f"{channel.version} is not approved: {phases[wished.metadata.name][1]}"
        if chosen is None and before is not None and before.version:
            # A wish that cannot be met must not take down what is being served.
            kept = next((version for version in approved if version_label(version) == before.version), None)
            if kept is not None:
                return before.model_copy(update={"message": f"{message}; still serving {before.version}"})
    if chosen is None:
        return ChannelStatus(name=channel.name, message=message)
    label = version_label(chosen)
    same = before is not None and before.version == label and before.digest == chosen.spec.digest
    since = before.since if same and before is not None and before.since is not None else now
    return ChannelStatus(name=channel.name, version=label, uri=chosen.spec.uri, digest=chosen.spec.digest, since=since)


def _version_conditions(phase: VersionPhase, message: str, channels: list[str]) -> list[Wanted]:
    approved = "True" if phase == "Approved" else "False"
    released = "True" if channels else "False"
    return [
        ("Approved", approved, phase, message),
        ("Released", released, "Serving" if channels else phase, ", ".join(channels)),
        ("Ready", "True", "Published", message),
    ]


def _adapter_conditions(wishes: Sequence[Channel], channels: Sequence[ChannelStatus]) -> list[Wanted]:
    """Served: every channel serves something. Ready and Stalled as kstatus reads them.

    An Adapter whose `latestApproved` has nothing to serve yet is Ready: it must not hold up the sync that is to bring
    the job of its first version. A fixed version that cannot be served waits for a person.
    """
    unserved = [channel for channel in channels if not channel.version]
    unmet = [state for wish, state in zip(wishes, channels, strict=True) if state.message and wish.version != LATEST]
    told = "; ".join(
        f"{channel.name}: {channel.message}" if channel.message else f"{channel.name} serves {channel.version}"
        for channel in channels
    )[:1024]
    reason = "ChannelNotServed" if unmet else "NothingApproved" if unserved else "ChannelsServed"
    return [
        ("Ready", "False" if unmet else "True", reason, told),
        ("Stalled", "True" if unmet else "False", reason, told if unmet else ""),
        ("Served", "False" if unserved else "True", reason, told),
    ]


def decide_release(
    adapter: Adapter, versions: Sequence[AdapterVersion], now: datetime
) -> tuple[AdapterStatus, dict[str, AdapterVersionStatus]]:
    """Status of the Adapter and, by name, of each of its versions."""
    phases = {version.metadata.name: release_phase(version, adapter.spec.policy) for version in versions}
    previous = {channel.name: channel for channel in (adapter.status.channels if adapter.status else [])}
    channels = [
        _effective(channel, previous.get(channel.name), versions, phases, now) for channel in adapter.spec.channels
    ]
    newest = max(versions, key=lambda version: version.spec.version, default=None)
    conditions: list[Condition] = with_transition_times(
        _adapter_conditions(adapter.spec.channels, channels),
        adapter.status.conditions if adapter.status else [],
        adapter.metadata.generation,
        now,
    )
    adapter_status = AdapterStatus(
        observed_generation=adapter.metadata.generation,
        versions=len(versions),
        latest_version=version_label(newest) if newest else "",
        channels=channels,
        conditions=conditions,
    )
    statuses = {}
    for version in versions:
        phase, message = phases[version.metadata.name]
        serving = [channel.name for channel in channels if channel.version == version_label(version)]
        statuses[version.metadata.name] = AdapterVersionStatus(
            observed_generation=version.metadata.generation,
            phase=phase,
            message=message,
            channels=serving,
            conditions=with_transition_times(
                _version_conditions(phase, message, serving),
                version.status.conditions if version.status else [],
                version.metadata.generation,
                now,
            ),
        )
    return adapter_status, statuses


def incumbent_of(adapter: Adapter | None, versions: Sequence[AdapterVersion]) -> AdapterVersion | None:
    """What a new version would replace: the one its first channel serves, else the newest that was not turned down."""
    if adapter is not None and adapter.status is not None and adapter.status.channels:
        served = adapter.status.channels[0].version
        for version in versions:
            if served and version_label(version) == served:
                return version
    policy = adapter.spec.policy if adapter is not None else Policy()
    standing = [v for v in versions if release_phase(v, policy)[0] in ("PendingApproval", "Approved")]
    return max(standing, key=lambda version: version.spec.version, default=None)
