"""A job of a cluster as it goes: until its run has ended, whatever happens to the connection meanwhile."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime

from rich.console import Console

from finetune_api.finetunejob import FineTuneJob
from finetune_api.job.status import FineTuneJobStatus
from finetune_cli.cluster.connection import Connection
from finetune_cli.cluster.describe import describe_job
from finetune_cli.cluster.follow import follow
from finetune_cli.cluster.objects import live_progress, read_as, version_of_job
from finetune_cli.cluster.resources import FINETUNE_JOBS
from finetune_cli.cluster.waiting import is_over
from finetune_cli.errors import CliExit
from finetune_cli.render.next_steps import next_steps
from finetune_cli.render.progress import PlainView, RunView, run_view
from finetune_cli.render.summary import exit_code, print_summary
from finetune_operator.decide.present import transition_events

LOOK_EVERY_S = 10
TOLD_REASONS = frozenset({"RunStarted", "Queued", "Suspended"})
"""Events that are no warnings and that no line about a stage tells."""


def _show_changes(view: RunView, before: FineTuneJobStatus, after: FineTuneJobStatus) -> None:
    for event in transition_events(before, after):
        if event.type == "Warning":
            view.event(event)
        elif event.reason in TOLD_REASONS:
            view.note(f"{event.reason}: {event.message}")


def left_alone(connection: Connection, name: str) -> int:
    """Say that Ctrl-C ended the watching and nothing else."""
    print(
        f"\nstopped watching; {name} goes on. {connection.command('watch', name)} watches again, "
        f"{connection.command('suspend', name)} or {connection.command('cancel', name)} stops it.",
        file=sys.stderr,
    )
    return CliExit.SUSPENDED


def watch_job(
    connection: Connection, name: str, console: Console, *, quiet: bool = False, machine: bool = False
) -> int:
    """Show a run until it has ended; the exit code tells how. Ctrl-C leaves the job running.

    `machine` prints one JSON object per change instead, `quiet` only the end.
    """
    silent = quiet or machine
    try:
        with PlainView(Console(quiet=True)) if silent else run_view(console, name) as view:
            job = _follow_to_the_end(connection, name, view, machine=machine)
    except KeyboardInterrupt:
        return left_alone(connection, name)
    if not machine:
        version = version_of_job(connection, job)
        print_summary(console, job, version, next_steps(job, version, connection.command), None)
    return exit_code(job.status)


def _follow_to_the_end(connection: Connection, name: str, view: RunView, *, machine: bool) -> FineTuneJob:
    before: FineTuneJobStatus | None = None
    for wire in follow(connection, FINETUNE_JOBS, name, view.note):
        job = read_as(FineTuneJob, wire)
        status = job.status or FineTuneJobStatus()
        if machine and status != before:
            print(json.dumps({"name": name, **status.to_wire()}, ensure_ascii=False), flush=True)
        # What had happened before anybody looked is told by the stages' lines.
        _show_changes(view, before if before is not None else status, status)
        before = status
        view.update(status, live_progress(wire))
        if is_over(job):
            return job
    raise RuntimeError("following ends with an error or not at all")


def show_as_it_goes(connection: Connection, name: str, console: Console) -> int:
    """The sections of `status` after each change, until the run has ended; Ctrl-C ends only the watching."""
    shown = None
    try:
        for wire in follow(connection, FINETUNE_JOBS, name, lambda text: print(text, file=sys.stderr), LOOK_EVERY_S):
            if console.is_terminal:
                console.clear()
            elif shown == wire:
                continue
            elif shown is not None:
                console.print()
            shown = wire
            view = describe_job(connection, wire, datetime.now(UTC))
            console.print(view)
            if is_over(view.job):
                return exit_code(view.job.status)
    except KeyboardInterrupt:
        return left_alone(connection, name)
    return CliExit.SUCCEEDED
