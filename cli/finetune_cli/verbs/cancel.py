"""End a job for good: its pods or processes stop, nothing is published.

Its file can be run again afterwards; that is the next run.
"""

from __future__ import annotations

import argparse
import asyncio

from finetune_api.job.status import FINISHED_PHASES
from finetune_cli.errors import CliError, CliExit
from finetune_cli.options import add_world, checked_name, namespace_of, state_of, wants_cluster

WORLD = "both"
EXAMPLES = """
examples:
  kubectl finetune cancel support-triage
  finetune cancel support-triage
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("name", metavar="NAME", help="name of the job")
    add_world(parser)


def run(args: argparse.Namespace) -> int:
    """Cancel one job."""
    if not wants_cluster(args):
        return _in_registry(args)
    from finetune_cli.cluster.connection import connect
    from finetune_cli.cluster.edits import cancel_job

    print(cancel_job(connect(args), checked_name(args.name, "NAME")))
    return CliExit.SUCCEEDED


def _in_registry(args: argparse.Namespace) -> int:
    """Through the command that runs it, or here when none does."""
    from rich.console import Console

    from finetune_cli.local.apply import edit_job, with_spec
    from finetune_cli.local.objects import ObjectStore
    from finetune_cli.local.state import RunLockedError, open_state, run_lock
    from finetune_cli.render.progress import PlainView
    from finetune_cli.verbs.run import drive_job
    from finetune_operator.decide.types import Key

    state = open_state(state_of(args), create=False)
    key = Key(namespace_of(args), checked_name(args.name, "NAME"))
    store = ObjectStore(state)
    job = edit_job(store, key, lambda job: job)
    if job.status is not None and job.status.phase in FINISHED_PHASES:
        raise CliError(f"{key.name} is {job.status.phase} already", "There is nothing to cancel.")
    edit_job(store, key, lambda job: with_spec(job, cancel=True))
    try:
        with run_lock(state), PlainView(Console(quiet=True)) as view:
            ended = asyncio.run(drive_job(state, key, view))
    except RunLockedError:
        print(f"{key.name}: cancelled; the command that runs it ends now")
        return CliExit.SUCCEEDED
    print(f"{key.name}: {ended.status.phase if ended.status else 'unknown'}")
    return CliExit.SUCCEEDED
