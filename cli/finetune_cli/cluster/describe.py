"""A FineTuneJob of a cluster with everything that `status` shows of it."""

from __future__ import annotations

from datetime import datetime

from finetune_api.finetunejob import FineTuneJob
from finetune_cli.cluster.api import JSON
from finetune_cli.cluster.connection import Connection
from finetune_cli.cluster.objects import live_progress, read_as, version_of_job
from finetune_cli.render.costs import costs_of
from finetune_cli.render.next_steps import next_steps
from finetune_cli.render.status import StatusView


def describe_job(connection: Connection, wire: JSON, now: datetime) -> StatusView:
    """Read a job as it came over the wire, and its version when it has one."""
    job = read_as(FineTuneJob, wire)
    live = live_progress(wire)
    version = version_of_job(connection, job)
    return StatusView(job, now, live, version, costs_of(job, live, now), next_steps(job, version, connection.command))
