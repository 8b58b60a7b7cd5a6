"""List the jobs of the local registry."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from finetune_api.finetunejob import FineTuneJob
from finetune_cli.errors import CliExit
from finetune_cli.local.objects import ObjectStore
from finetune_cli.local.state import open_state
from finetune_cli.options import add_output, add_state, namespace_of
from finetune_cli.render.machine import print_machine
from finetune_cli.render.summary import console_for
from finetune_cli.render.tables import jobs_table

EXAMPLES = """
examples:
  finetune list
  finetune list -o json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    add_state(parser)
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """List jobs."""
    store = ObjectStore(open_state(args.state, create=False))
    jobs = store.list(FineTuneJob, namespace_of(args))
    if args.output != "table":
        print_machine({"items": [job.to_wire() for job in jobs]}, args.output)
    elif jobs:
        console_for().print(jobs_table(jobs, datetime.now(UTC)))
    else:
        print(f"no jobs in namespace {namespace_of(args)}")
    return CliExit.SUCCEEDED
