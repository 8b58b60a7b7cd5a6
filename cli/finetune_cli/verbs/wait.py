"""Wait until a job is complete, released, failed, or has a condition.

Ends early, with the reason, when that can never come: the run failed, a gate failed, a person rejected the version.
"""

from __future__ import annotations

import argparse
import re
import sys
import time

from finetune_api.common import DURATION, duration_s
from finetune_api.finetunejob import FineTuneJob
from finetune_cli.errors import CliError, CliExit
from finetune_cli.options import add_cluster, checked_name

LOOK_EVERY_S = 5

WORLD = "cluster"
EXAMPLES = """
examples:
  kubectl finetune wait support-triage --for complete --timeout 4h
  kubectl finetune wait support-triage --for released
  kubectl finetune wait support-triage --for condition=Planned --timeout 10m

exit codes:
  0    it is so
  1    it can never be so: the run failed, was cancelled or deleted, published nothing, or was rejected
  2    wrong usage, no such job, no access
  3    it can never be so: a gate failed
  124  --timeout has passed
  130  Ctrl-C: only the waiting ended
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("name", metavar="NAME", help="name of the job")
    parser.add_argument(
        "--for",
        dest="goal",
        required=True,
        metavar="WHAT",
        help="complete, released, failed, suspended, or condition=TYPE[=True|False|Unknown]",
    )
    parser.add_argument("--timeout", default="24h", metavar="DURATION", help="for example 90s, 1h30m (default: 24h)")
    add_cluster(parser)


def _seconds(text: str) -> int:
    if not text or not re.fullmatch(DURATION, text):
        raise CliError(f"--timeout: {text!r} is no duration", "Write for example 90s, 10m or 1h30m.")
    return duration_s(text)


def run(args: argparse.Namespace) -> int:
    """Wait for one job."""
    from finetune_cli.cluster.connection import connect
    from finetune_cli.cluster.follow import PATIENCE_S, follow
    from finetune_cli.cluster.objects import fetch_job, read_as, version_of_job
    from finetune_cli.cluster.resources import FINETUNE_JOBS
    from finetune_cli.cluster.waiting import is_over, judge_wait, parse_goal

    goal, timeout_s = parse_goal(args.goal), _seconds(args.timeout)
    deadline = time.monotonic() + timeout_s
    connection = connect(args)
    name = checked_name(args.name, "NAME")
    fetch_job(connection, name)
    told = ""
    every_s = max(1, min(LOOK_EVERY_S, timeout_s))

    def trouble(text: str) -> None:
        print(text, file=sys.stderr)

    for wire in follow(connection, FINETUNE_JOBS, name, trouble, every_s, min(PATIENCE_S, timeout_s)):
        job = read_as(FineTuneJob, wire)
        outcome = judge_wait(goal, job, version_of_job(connection, job) if is_over(job) else None)
        if outcome.state == "met":
            print(outcome.message)
            return CliExit.SUCCEEDED
        if outcome.state == "never":
            raise CliError(outcome.message, f"`{connection.command('status', name)}` says what to do.", outcome.code)
        if outcome.message != told:
            told = outcome.message
            print(f"waiting: {told}", file=sys.stderr, flush=True)
        if time.monotonic() >= deadline:
            break
    raise CliError(
        f"{name} is not {goal} after {args.timeout}: {told}", "Wait longer with --timeout.", CliExit.TIMED_OUT
    )
