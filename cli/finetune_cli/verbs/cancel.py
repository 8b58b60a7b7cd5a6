"""End a job of the local registry for good: its processes stop, nothing is published.

Its file can be run again afterwards; that is the next run.
"""

from __future__ import annotations

import argparse
import asyncio

from rich.console import Console

from finetune_api.job.status import FINISHED_PHASES
from finetune_cli.errors import CliError, CliExit
from finetune_cli.local.apply import edit_job, with_spec
from finetune_cli.local.objects import ObjectStore
from finetune_cli.local.state import RunLockedError, open_state, run_lock
from finetune_cli.options import add_state, checked_name, namespace_of
from finetune_cli.render.progress import PlainView
from finetune_cli.verbs.run import drive_job
from finetune_operator.decide.types import Key

EXAMPLES = """
examples:
  finetune cancel support-triage
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("name", metavar="NAME", help="name of the job")
    add_state(parser)


def run(args: argparse.Namespace) -> int:
    """Cancel one job: through the command that runs it, or here when none does."""
    state = open_state(args.state, create=False)
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
