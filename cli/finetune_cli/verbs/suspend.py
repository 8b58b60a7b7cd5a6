"""Suspend a job: its pods save a checkpoint and end, GPUs are free; `resume` goes on from there."""

from __future__ import annotations

import argparse

from finetune_cli.errors import CliExit
from finetune_cli.options import add_cluster, checked_name

WORLD = "cluster"
EXAMPLES = """
examples:
  kubectl finetune suspend support-triage
  kubectl finetune suspend support-triage -n team-a
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("name", metavar="NAME", help="name of the job")
    add_cluster(parser)


def run(args: argparse.Namespace) -> int:
    """Suspend one job."""
    from finetune_cli.cluster.connection import connect
    from finetune_cli.cluster.edits import suspend_job

    print(suspend_job(connect(args), checked_name(args.name, "NAME")))
    return CliExit.SUCCEEDED
