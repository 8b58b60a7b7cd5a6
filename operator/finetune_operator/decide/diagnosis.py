"""Why did a stage end, or why does it not start? Pure: pods in, one typed outcome out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from finetune_api.exit_codes import CAUSE_OF_EXIT_CODE
from finetune_api.stages import StageReport, decode_report
from finetune_operator.decide.causes import registry
from finetune_operator.decide.causes.base import Cause
from finetune_operator.decide.types import PodState, StageRun

_FAR_FUTURE = datetime.max.replace(tzinfo=UTC)
OOM_KILLED = "OOMKilled"
"""Kubernetes' reason where the kernel killed any process of a container, not only the first."""
_KILLED = frozenset({85, 137, 143})


@dataclass(frozen=True)
class Diagnosis:
    """One typed cause with its evidence."""

    cause: Cause
    message: str
    evidence: str = ""
    hint: str = ""
    exit_code: int | None = None
    report: StageReport | None = field(default=None, repr=False)


def report_of(pod: PodState, uid: str, run: int) -> StageReport | None:
    """The report in a pod's termination message, when it is one and of this run."""
    if not pod.message.lstrip().startswith("{"):
        return None
    try:
        report = decode_report(pod.message)
    except ValueError:
        return None
    return report if (report.uid, report.run) == (uid, run) else None


def success_report(run: StageRun, uid: str, number: int) -> StageReport | None:
    """The report of a stage that ended well: the lowest index that sent one."""
    for pod in sorted(run.pods, key=lambda pod: pod.index):
        report = report_of(pod, uid, number)
        if report is not None and report.outcome == "Succeeded" and pod.exit_code == 0:
            return report
    return None


def _is_consequence(pod: PodState) -> bool:
    """Ranks that died of being deleted with their gang explain nothing."""
    explained = pod.reason == OOM_KILLED or pod.disruption or pod.evicted
    return pod.terminating and pod.exit_code in _KILLED and not explained


def _suspects(pods: Sequence[PodState]) -> list[PodState]:
    failed = [pod for pod in pods if pod.exit_code not in (None, 0) or pod.reason or pod.evicted or pod.disruption]

    def order(pod: PodState) -> tuple[bool, bool, datetime, int]:
        # The launcher of a rank that the kernel killed may end after the ranks that lost it as a peer.
        return _is_consequence(pod), pod.reason != OOM_KILLED, pod.finished_at or _FAR_FUTURE, pod.index

    return sorted(failed, key=order)


def _says_more(pod: PodState, report: StageReport) -> bool:
    """Whether the pod shows why: a process that was asked to end, or lost one of its own, knows only that.

    Neither a full volume nor memory that is too small is better the next time.
    """
    if report.cause == "InternalError":
        return pod.reason == OOM_KILLED
    return report.cause == "Interrupted" and bool(pod.evicted or pod.disruption)


def _contract_cause(exit_code: int | None) -> str:
    """What the runner's exit code says when its report was lost and Kubernetes shows nothing more precise."""
    known = {int(code): name for code, name in CAUSE_OF_EXIT_CODE.items()}
    return known.get(exit_code or 0, "InternalError")


def diagnose_failure(run: StageRun, uid: str, number: int) -> Diagnosis:
    """The first cause of a failed stage. Later deaths of the gang are consequences."""
    causes = registry()
    for pod in _suspects(run.pods):
        report = report_of(pod, uid, number)
        if report is not None and report.outcome == "Failed" and not _says_more(pod, report):
            cause = causes.get(report.cause, causes["InternalError"])
            return Diagnosis(
                cause=cause,
                message=report.message or cause.hint,
                evidence=report.evidence,
                hint=report.hint or cause.hint,
                exit_code=pod.exit_code,
                report=report,
            )
        for cause in causes.values():
            evidence = cause.sign(pod)
            if evidence is not None:
                if cause.name == "InternalError":
                    cause = causes[_contract_cause(pod.exit_code)]
                return Diagnosis(cause, message=evidence, evidence=evidence, hint=cause.hint, exit_code=pod.exit_code)
    killed = causes["JobDeleted"]
    return Diagnosis(killed, message="the Job failed and its pods are gone", hint=killed.hint)


def diagnose_waiting(run: StageRun) -> Diagnosis | None:
    """Why pods do not start, or None when nothing is wrong (yet)."""
    for pod in sorted(run.pods, key=lambda pod: pod.index):
        if pod.phase != "Pending":
            continue
        for cause in registry().values():
            if not (pod.waiting_reason or pod.unschedulable):
                break
            evidence = cause.sign(pod)
            if evidence is not None:
                return Diagnosis(cause, message=evidence, evidence=evidence, hint=cause.hint)
    return None
