"""The end of a run that published: the AdapterVersion exists, then the job is done, and its version decided. Pure."""

from __future__ import annotations

from finetune_api.adapterversion import AdapterVersion
from finetune_operator.decide.draft import Draft
from finetune_operator.decide.lifecycle import new_adapter
from finetune_operator.decide.stages.publish import build_version
from finetune_operator.decide.standing import standing


def _ours(draft: Draft, version: AdapterVersion) -> bool:
    origin = version.spec.origin
    return (origin.uid, origin.run) == (draft.uid, draft.status.run)


def _how_to_approve(draft: Draft, label: str) -> str:
    """The command to type: decisions are a field of the AdapterVersion, signed by the API server's admission."""
    if draft.observed.allow_file_sources:
        return f"finetune approve {label}"
    name = draft.status.version.name if draft.status.version else ""
    decision = '{"spec":{"decisions":[{"by":"YOUR-USER-NAME","decision":"approve"}]}}'
    return (
        f"kubectl patch adapterversion {name} -n {draft.observed.job.metadata.namespace} --type=merge -p '{decision}'"
    )


def _ending(draft: Draft) -> tuple[str, str, str]:
    """Reason, message and next step of a run that published, by its verdict."""
    number = draft.status.version.number if draft.status.version else 0
    label = f"{draft.observed.job.spec.output.adapter_ref.name}@v{number}"
    verdict = draft.status.verdict
    told = "; ".join(f"{gate.gate} ({gate.message})" for gate in draft.status.gates if gate.verdict == verdict)
    if verdict == "Failed":
        return (
            "GateFailed",
            f"{label} is published but may not be released: {told}",
            "Look at the report; change data or settings and apply again.",
        )
    if verdict == "Inconclusive":
        return (
            "Inconclusive",
            f"{label} waits for a person; open: {told}",
            f"Add test rows, or look at the report and decide: {_how_to_approve(draft, label)}",
        )
    return (
        "AwaitingApproval",
        f"{label} passed every gate and waits for approval",
        _how_to_approve(draft, label),
    )


def complete(draft: Draft) -> None:
    """Create the AdapterVersion; once it is seen, finish."""
    if draft.finished or draft.status.results.publish is None or draft.status.version is None:
        return
    if not any(_ours(draft, version) for version in draft.observed.versions):
        if draft.observed.adapter is None:
            draft.adapter = new_adapter(draft)
        draft.version = build_version(draft)
        draft.set(phase="Publishing", reason="Recording", message=f"recording {draft.status.version.name}")
        return
    draft.finish("Succeeded", *_ending(draft))


def follow_version(draft: Draft) -> None:
    """A published run's status goes on telling what became of its version: nobody may be told to approve it twice."""
    status = draft.status
    if status.phase != "Succeeded" or status.version is None or status.results.publish is None:
        return
    stands = standing(draft)
    label = f"{draft.observed.job.spec.output.adapter_ref.name}@v{status.version.number}"
    reason, message, next_step = _ending(draft)
    if stands.released:
        reason, message, next_step = "Released", f"{label} is {stands.message}", ""
    elif stands.reason == "NotServed":
        reason, message, next_step = "Approved", f"{label} is {stands.message}", ""
    elif stands.reason == "Rejected":
        reason, message = "Rejected", f"{label} was {stands.message}"
        next_step = "Change data or settings and apply again."
    draft.set(reason=reason, message=message[:1024], next_step=next_step[:512])
