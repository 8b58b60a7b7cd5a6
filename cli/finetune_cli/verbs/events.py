"""List what happened to a job: Events of the job, its pods, its queue entries and its version."""

from __future__ import annotations

import argparse
import sys

from rich.text import Text

from finetune_cli.errors import CliExit
from finetune_cli.options import add_cluster, add_output, checked_name
from finetune_cli.render.machine import print_machine
from finetune_cli.render.summary import console_for
from finetune_cli.render.tables import event_line

WORLD = "cluster"
EXAMPLES = """
examples:
  kubectl finetune events support-triage
  kubectl finetune events support-triage -f
  kubectl finetune events support-triage -o json

Kubernetes keeps Events for an hour unless the cluster says otherwise; `status` keeps what matters for good.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("name", metavar="NAME", help="name of the job")
    parser.add_argument("-f", "--follow", action="store_true", help="go on as things happen, until Ctrl-C")
    add_cluster(parser)
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """List, and with -f follow, Events."""
    from finetune_cli.cluster.connection import connect
    from finetune_cli.cluster.events import follow_events, read_events
    from finetune_cli.cluster.objects import fetch_job

    connection = connect(args)
    job, _ = fetch_job(connection, checked_name(args.name, "NAME"))
    found, version = read_events(connection, job)
    if args.output != "table":
        items = [
            {"at": f"{e.at:%Y-%m-%dT%H:%M:%SZ}", "type": e.type, "reason": e.reason, "about": e.about, "note": e.note}
            for e in found
        ]
        print_machine({"items": items}, args.output)
        return CliExit.SUCCEEDED
    console = console_for()

    def show(line: Text) -> None:
        console.print(line, soft_wrap=True)

    for event in found:
        show(event_line(event))
    if not found and not args.follow:
        print(f"no Events of {args.name} are kept any more; `{connection.command('status', args.name)}` has its state")
    if not args.follow:
        return CliExit.SUCCEEDED
    try:
        for event in follow_events(connection, job, version, set(found), lambda text: print(text, file=sys.stderr)):
            show(event_line(event))
    except KeyboardInterrupt:
        return CliExit.SUSPENDED
    return CliExit.SUCCEEDED
