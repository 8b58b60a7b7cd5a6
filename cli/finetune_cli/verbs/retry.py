"""Run a finished job again without an edit: after a failure was mended, or its data changed.

The new run starts with fresh data checks. Where model, data and settings are unchanged since a published version, it
ends as Unchanged. Asks by an annotation (`finetune.dev/retry`), so that GitOps tools have nothing to set back.
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from finetune_cli.errors import CliExit
from finetune_cli.options import add_cluster, checked_name

WORLD = "cluster"
EXAMPLES = """
examples:
  kubectl finetune retry support-triage
  kubectl finetune retry support-triage -n team-a
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("name", metavar="NAME", help="name of the job")
    add_cluster(parser)


def run(args: argparse.Namespace) -> int:
    """Retry one job."""
    from finetune_cli.cluster.connection import connect
    from finetune_cli.cluster.edits import retry_job

    print(retry_job(connect(args), checked_name(args.name, "NAME"), datetime.now(UTC)))
    return CliExit.SUCCEEDED
