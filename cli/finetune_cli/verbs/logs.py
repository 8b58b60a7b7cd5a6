"""Show what the pods of a job say; by default rank 0 of the newest attempt.

With -f and without --stage and --attempt it goes on from one attempt and stage to the next until the run has ended.
When the pod is gone it says where the log went and what is left of it.
"""

from __future__ import annotations

import argparse
import sys

from finetune_api.stages import STAGES
from finetune_cli.errors import CliError, CliExit
from finetune_cli.options import add_cluster, checked_name

WORLD = "cluster"
EXAMPLES = """
examples:
  kubectl finetune logs support-triage
  kubectl finetune logs support-triage -f
  kubectl finetune logs support-triage --stage train --attempt 1
  kubectl finetune logs support-triage --previous --tail 50
  kubectl finetune logs support-triage --stage train --rank 1

exit codes:
  0    shown
  1    there is no log (yet, or any more); the message says why and what is left
  2    wrong usage, no such job or attempt, no access
  130  Ctrl-C
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("name", metavar="NAME", help="name of the job")
    parser.add_argument("--stage", choices=STAGES, help="stage (default: the newest)")
    parser.add_argument("--attempt", type=int, metavar="N", help="attempt of the stage, from 1 (default: the newest)")
    parser.add_argument("-p", "--previous", action="store_true", help="the attempt before the newest")
    parser.add_argument("--rank", type=int, default=0, metavar="N", help="pod of the gang, from 0 (default: 0)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on as lines are written")
    parser.add_argument("--tail", type=int, metavar="N", help="only the last N lines (default: all)")
    parser.add_argument("--timestamps", action="store_true", help="the time in front of each line")
    add_cluster(parser)


def run(args: argparse.Namespace) -> int:
    """Print or follow a log."""
    from finetune_cli.cluster.connection import connect
    from finetune_cli.cluster.logs import Wanted, follow_log, print_log

    if args.previous and args.attempt is not None:
        raise CliError("--previous and --attempt both name an attempt", "Use one of them.")
    if args.tail is not None and args.tail < 0:
        raise CliError("--tail: a number of lines is needed", "Write for example --tail 50.")
    wanted = Wanted(
        name=checked_name(args.name, "NAME"),
        stage=args.stage,
        attempt=args.attempt,
        rank=args.rank,
        previous=args.previous,
        tail=args.tail,
        timestamps=args.timestamps,
    )
    connection = connect(args)
    if not args.follow:
        return print_log(connection, wanted, sys.stdout.buffer)
    try:
        return follow_log(connection, wanted, sys.stdout.buffer, lambda text: print(text, file=sys.stderr, flush=True))
    except KeyboardInterrupt:
        return CliExit.SUSPENDED
