"""The end of a run that published: the AdapterVersion exists, then the job is done. Pure."""

from __future__ import annotations

from finetune_api.adapterversion import AdapterVersion
from finetune_operator.decide.draft import Draft
from finetune_operator.decide.lifecycle import new_adapter
from finetune_operator.decide.stages.publish import build_version


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
    label = f"{draft.observed.job.spec.output.adapter_ref.name}@v{draft.status.version.number}"
    verdict = draft.status.verdict
    told = "; ".join(f"{gate.gate} ({gate.message})" for gate in draft.status.gates if gate.verdict == verdict)
    if verdict == "Failed":
        draft.finish(
            "Succeeded",
            "GateFailed",
            f"{label} is published but may not be released: {told}",
            "Look at the report; change data or settings and apply again.",
        )
    elif verdict == "Inconclusive":
        draft.finish(
            "Succeeded",
            "Inconclusive",
            f"{label} waits for a person; open: {told}",
            f"Add test rows, or look at the report and decide: {_how_to_approve(draft, label)}",
        )
    else:
        draft.finish(
            "Succeeded",
            "AwaitingApproval",
            f"{label} passed every gate and waits for approval",
            _how_to_approve(draft, label),
        )
