"""Apply a YAML: problems with line and fix as `validate` shows them, then what the API server says.

Applies on the server, so that it can be repeated, and leaves fields that others own alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from finetune_cli.errors import FOLLOWING_EXIT_CODES_HELP, CliError, CliExit
from finetune_cli.jobfile import read_text
from finetune_cli.options import add_cluster, add_output
from finetune_cli.render.machine import print_machine, print_object
from finetune_cli.render.summary import console_for

WORLD = "cluster"
EXAMPLES = f"""
examples:
  kubectl finetune submit finetunejob.yaml
  kubectl finetune submit finetunejob.yaml -n team-a --watch
  kubectl finetune submit finetunejob.yaml --dry-run=server
  cat finetunejob.yaml | kubectl finetune submit -

{FOLLOWING_EXIT_CODES_HELP.replace("exit codes:", "exit codes (those of the run only with --watch and --wait):")}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="YAML of a FineTuneJob (or GPUPool, Adapter); - is stdin"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--watch", action="store_true", help="then watch the run until it has ended")
    how.add_argument("--wait", action="store_true", help="then wait until the run has ended and show how")
    how.add_argument(
        "--dry-run",
        nargs="?",
        const="server",
        choices=["server"],
        help="let the API server judge it, and change nothing",
    )
    parser.add_argument("--force-conflicts", action="store_true", help="take over fields that another manager owns")
    add_cluster(parser)
    add_output(parser, "name")


def run(args: argparse.Namespace) -> int:
    """Apply a file."""
    from finetune_cli.cluster.connection import connect
    from finetune_cli.cluster.resources import FINETUNE_JOBS
    from finetune_cli.cluster.submit import apply_file
    from finetune_cli.cluster.watching import watch_job

    stdin = str(args.file) == "-"
    text = sys.stdin.read() if stdin else read_text(args.file)
    connection = connect(args)
    applied = []
    for item in apply_file(
        connection,
        Path("<stdin>") if stdin else args.file,
        text,
        given=args.namespace is not None,
        dry_run=args.dry_run is not None,
        force=args.force_conflicts,
    ):
        applied.append(item)
        if args.output == "name":
            print_object(item.wire, "name", item.resource.full_name)
        elif args.output == "table":
            suffix = " (dry run: nothing was changed)" if args.dry_run is not None else ""
            print(f"{item.resource.full_name.replace('s.', '.', 1)}/{item.name} {item.change}{suffix}", flush=True)
    if args.output in ("json", "yaml"):
        print_machine({"items": [item.wire for item in applied]}, args.output)
    jobs = [item for item in applied if item.resource == FINETUNE_JOBS]
    if args.dry_run is not None or not jobs:
        return CliExit.SUCCEEDED
    if args.watch or args.wait:
        if len(jobs) > 1:
            raise CliError(
                f"{args.file} holds {len(jobs)} FineTuneJobs; --watch and --wait need one", "Watch each by name."
            )
        at_job = connection.in_namespace(jobs[0].wire["metadata"]["namespace"])
        return watch_job(at_job, jobs[0].name, console_for(stderr=args.output != "table"), quiet=args.wait)
    if args.output == "table":
        at_job = connection.in_namespace(jobs[-1].wire["metadata"]["namespace"])
        finished = jobs[-1].change == "unchanged" and jobs[-1].wire.get("status", {}).get("completedAt")
        print(f"next     {at_job.command('retry' if finished else 'watch', jobs[-1].name)}")
    return CliExit.SUCCEEDED
