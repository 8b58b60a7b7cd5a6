"""The log of one attempt: its Job, the pod of the rank, the lines; and the next attempt's when following."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from finetune_api.finetunejob import FineTuneJob
from finetune_api.job.status import StageStatus
from finetune_cli.cluster.api import JSON
from finetune_cli.cluster.attempts import CONTAINER, choose_attempt, choose_pod, what_is_left, why_waiting
from finetune_cli.cluster.connection import Connection
from finetune_cli.cluster.follow import Patience, follow
from finetune_cli.cluster.objects import fetch_job, read_as
from finetune_cli.cluster.refusals import Refusal, explain
from finetune_cli.cluster.resources import FINETUNE_JOBS, JOBS, PODS
from finetune_cli.cluster.waiting import is_over
from finetune_cli.errors import CliError, CliExit
from finetune_operator.views import controller_uid

LOOK_EVERY_S = 2
SILENCE_S = 300.0
"""A log that says nothing for so long is asked for again: the connection may be half open."""
JOB_NAME_LABEL = "batch.kubernetes.io/job-name"


@dataclass(frozen=True)
class Wanted:
    """Which log, and how much of it."""

    name: str
    stage: str | None = None
    attempt: int | None = None
    rank: int = 0
    previous: bool = False
    tail: int | None = None
    timestamps: bool = False

    @property
    def newest(self) -> bool:
        """Whether no attempt is named: following then goes from one attempt to the next."""
        return self.attempt is None and not self.previous and self.stage is None


@dataclass(frozen=True)
class Found:
    """The attempt and what of it is in the cluster."""

    attempt: StageStatus
    job: JSON | None
    pods: list[JSON]
    pod: JSON | None

    @property
    def has_log(self) -> bool:
        """Whether a container has started."""
        statuses = (self.pod or {}).get("status", {}).get("containerStatuses") or []
        state = next((item.get("state") or {} for item in statuses if item.get("name") == CONTAINER), {})
        return "running" in state or "terminated" in state


def find(connection: Connection, job: FineTuneJob, wanted: Wanted) -> Found:
    """The Job of the attempt by its name in status, its pods by their owner's uid."""
    attempt = choose_attempt(job, wanted.stage, wanted.attempt, previous=wanted.previous)
    nodes = job.spec.compute.nodes if attempt.name == "train" else 1
    if not 0 <= wanted.rank < nodes:
        raise CliError(f"--rank: {attempt.name} has no rank {wanted.rank}", f"Ranks: 0 to {nodes - 1}.")
    try:
        made: JSON | None = connection.api.get(JOBS, connection.namespace, attempt.job_name)
    except Refusal as refusal:
        if refusal.code != 404:
            raise explain(
                refusal, "get", JOBS, connection.namespace, attempt.job_name, connection.api.server
            ) from refusal
        made = None
    # A Job of the same name that is somebody else's is not the attempt's.
    if made is None or controller_uid(made) != job.metadata.uid:
        return Found(attempt, None, [], None)
    with connection.asking("list", PODS):
        pods = connection.api.list(PODS, connection.namespace, labels=f"{JOB_NAME_LABEL}={attempt.job_name}")["items"]
    return Found(attempt, made, pods, choose_pod(made, pods, wanted.rank))


def nothing_to_read(connection: Connection, job: FineTuneJob, found: Found) -> CliError:
    """Why there is no log, and what there is instead."""
    attempt = found.attempt
    where = f"{attempt.name} attempt {attempt.attempt}"
    if found.job is None and attempt.state == "Pending":
        return CliError(f"{where} is about to be created", "Try again, or follow with -f.", CliExit.FAILED)
    if found.pod is None and attempt.state not in ("Pending", "Queued"):
        first, *rest = what_is_left(job, attempt)
        return CliError(
            "\n".join([first, *rest]),
            f"`{connection.command('status', job.metadata.name)}` has the rest.",
            CliExit.FAILED,
        )
    why = why_waiting(found.job, found.pods) if found.job is not None else "its Job does not exist yet"
    return CliError(f"{where} has no log yet: {why}", "", CliExit.FAILED)


def _split(line: bytes) -> tuple[bytes, bytes]:
    """The time that the kubelet put in front, and the line."""
    moment, space, text = line.partition(b" ")
    return (moment, text) if space else (b"", line)


def _lines(connection: Connection, found: Found, wanted: Wanted, *, follow_it: bool) -> Iterator[bytes]:
    """Lines of a pod, each once, over breaks of the connection while following."""
    assert found.pod is not None  # noqa: S101 - callers look at has_log
    path = PODS.path(connection.namespace, found.pod["metadata"]["name"], "log")
    query = {"container": CONTAINER, "timestamps": "true"}
    if wanted.tail is not None:
        query["tailLines"] = str(wanted.tail)
    if follow_it:
        query["follow"] = "true"
    last = already = b""
    patience = Patience(lambda text: print(text, file=sys.stderr))
    while True:
        try:
            for line in connection.api.log_lines(path, query, SILENCE_S):
                patience.fine()
                moment, text = _split(line)
                if moment and moment <= already:
                    continue
                last = moment or last
                yield line if wanted.timestamps else text
            return
        except Refusal as refusal:
            if not follow_it or refusal.code == 404:
                raise
            patience.trouble(refusal)
            if last:
                # The kubelet writes times of one width, so that they compare as text; it cuts to whole seconds.
                already = last
                query["sinceTime"] = last.decode()
                query.pop("tailLines", None)


def _copy(connection: Connection, found: Found, wanted: Wanted, out: BinaryIO, *, follow_it: bool) -> None:
    name = found.pod["metadata"]["name"] if found.pod is not None else ""
    try:
        for line in _lines(connection, found, wanted, follow_it=follow_it):
            out.write(line)
            out.flush()
    except Refusal as refusal:
        if refusal.code in (404, 400) and follow_it:
            return
        raise explain(refusal, "get", PODS, connection.namespace, f"{name}/log", connection.api.server) from refusal


def print_log(connection: Connection, wanted: Wanted, out: BinaryIO) -> int:
    """The log as far as it is written. Raises CliError saying where it went, or why there is none yet."""
    job, _ = fetch_job(connection, wanted.name)
    found = find(connection, job, wanted)
    if not found.has_log:
        raise nothing_to_read(connection, job, found)
    _copy(connection, found, wanted, out, follow_it=False)
    return CliExit.SUCCEEDED


def follow_log(connection: Connection, wanted: Wanted, out: BinaryIO, say: Callable[[str], None]) -> int:
    """The log as it is written; without a named attempt on to the next attempt, until the run has ended.

    `say` is told what is not part of the log: whose it is, and why none comes.
    """
    shown: set[str] = set()
    told = ""
    for wire in follow(connection, FINETUNE_JOBS, wanted.name, say, LOOK_EVERY_S):
        job = read_as(FineTuneJob, wire)
        over = is_over(job)
        if job.status is not None and job.status.stages:
            found = find(connection, job, wanted)
            key = found.attempt.job_name
            if found.has_log and key not in shown:
                shown.add(key)
                pod = found.pod["metadata"]["name"] if found.pod is not None else ""
                say(f"==> {found.attempt.name} attempt {found.attempt.attempt}, rank {wanted.rank}, pod {pod}")
                _copy(connection, found, wanted, out, follow_it=True)
                if not wanted.newest:
                    return CliExit.SUCCEEDED
            elif key not in shown:
                error = nothing_to_read(connection, job, found)
                if over or (found.pod is None and found.attempt.state not in ("Pending", "Queued", "Running")):
                    if not wanted.newest or over:
                        raise error
                elif error.message != told:
                    told = error.message
                    say(told)
        if over:
            return CliExit.SUCCEEDED
    return CliExit.SUCCEEDED
