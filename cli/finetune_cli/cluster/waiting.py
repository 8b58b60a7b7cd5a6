"""What `wait --for` waits for, and when it can never come. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune_api.adapterversion import AdapterVersion
from finetune_api.finetunejob import FineTuneJob
from finetune_api.job.status import FINISHED_PHASES, FineTuneJobStatus
from finetune_cli.errors import CliError, CliExit

GOALS = ("complete", "released", "failed", "suspended")
CONDITION = "condition="


@dataclass(frozen=True)
class Outcome:
    """How things stand. `met` and `never` end the wait; `message` says why."""

    state: Literal["met", "never", "waiting"]
    message: str
    code: CliExit = CliExit.SUCCEEDED


@dataclass(frozen=True)
class Goal:
    """A condition of the FineTuneJob and the status it must have."""

    condition: str
    status: str = "True"

    def __str__(self) -> str:
        """For people."""
        return self.condition if self.status == "True" else f"{self.condition}={self.status}"


def parse_goal(text: str) -> Goal:
    """`complete`, `released`, `failed`, `suspended`, `condition=TYPE` or `condition=TYPE=STATUS`.

    Raises CliError naming the forms.
    """
    if text.lower() in GOALS:
        return Goal(text.capitalize())
    if text.startswith(CONDITION):
        kind, _, status = text.removeprefix(CONDITION).partition("=")
        wanted = status.capitalize() or "True"
        if kind and wanted in ("True", "False", "Unknown"):
            return Goal(kind, wanted)
    raise CliError(
        f"--for: {text!r} is nothing to wait for",
        f"Write {', '.join(GOALS)}, or condition=TYPE[=True|False|Unknown], for example condition=Planned.",
    )


def _holds(status: FineTuneJobStatus, goal: Goal) -> bool:
    return any(item.type.lower() == goal.condition.lower() and item.status == goal.status for item in status.conditions)


def _released(job: FineTuneJob, status: FineTuneJobStatus, version: AdapterVersion | None) -> Outcome:
    """A run that has succeeded and whose version no channel serves (yet)."""
    if status.version is None:
        return Outcome("never", f"the run published no version: {status.message}", CliExit.FAILED)
    label = f"{job.spec.output.adapter_ref.name}@v{status.version.number}"
    state = version.status if version is not None else None
    phase = state.phase if state is not None else ""
    if status.verdict == "Failed" or phase == "GateFailed":
        return Outcome("never", f"{label} will not be released, a gate failed: {status.message}", CliExit.GATES_FAILED)
    if phase == "Rejected" and state is not None:
        return Outcome("never", f"{label} will not be released: {state.message}", CliExit.FAILED)
    if phase == "Approved":
        return Outcome("waiting", f"{label} is approved, and no channel serves it: channels name another version")
    return Outcome(
        "waiting", f"{label} {state.message if state is not None and state.message else 'waits for approval'}"
    )


def is_over(job: FineTuneJob) -> bool:
    """Whether the run has ended and nothing asks for another: what is seen now is the last word."""
    status = job.status
    if status is None or status.phase not in FINISHED_PHASES:
        return False
    asked = job.retry not in ("", status.handled_retry) or (status.phase == "Cancelled" and not job.spec.cancel)
    return not asked and status.observed_generation >= job.metadata.generation


def judge_wait(goal: Goal, job: FineTuneJob, version: AdapterVersion | None) -> Outcome:
    """Whether the goal is reached, can still be, or never will be without a new run."""
    status = job.status
    if status is None or status.observed_generation < job.metadata.generation:
        return Outcome("waiting", "the operator has not looked at this spec yet")
    asked_again = status.phase in FINISHED_PHASES and not is_over(job)
    if asked_again:
        return Outcome("waiting", f"run {status.run} has ended and another was asked for")
    if _holds(status, goal):
        return Outcome("met", f"{job.metadata.name}: {goal} ({status.phase}: {status.reason})")
    standing = f"{status.phase}: {status.reason}" + (f", {status.message}" if status.message else "")
    if not is_over(job):
        return Outcome("waiting", standing)
    if goal == Goal("Released") and status.phase == "Succeeded":
        return _released(job, status, version)
    return Outcome("never", f"{job.metadata.name} has ended and is not {goal}: {standing}", CliExit.FAILED)
