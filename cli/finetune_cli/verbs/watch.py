"""Watch a job until its run has ended: a progress bar with losses, or one line per change.

Survives restarts of the API server. Ctrl-C ends the watching; the job goes on.
"""

from __future__ import annotations

import argparse

from finetune_cli.errors import FOLLOWING_EXIT_CODES_HELP
from finetune_cli.options import add_cluster, checked_name
from finetune_cli.render.summary import console_for

WORLD = "cluster"
EXAMPLES = f"""
examples:
  kubectl finetune watch support-triage
  kubectl finetune watch support-triage -n team-a -o json | jq -r .progress

{FOLLOWING_EXIT_CODES_HELP}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("name", metavar="NAME", help="name of the job")
    add_cluster(parser)
    parser.add_argument(
        "-o",
        "--output",
        choices=["table", "json"],
        default="table",
        help="json: the status after each change, one a line",
    )


def run(args: argparse.Namespace) -> int:
    """Watch one job."""
    from finetune_cli.cluster.connection import connect
    from finetune_cli.cluster.objects import fetch_job
    from finetune_cli.cluster.watching import watch_job

    connection = connect(args)
    name = checked_name(args.name, "NAME")
    fetch_job(connection, name)
    return watch_job(connection, name, console_for(), machine=args.output == "json")
