"""Show how a job of the local registry stands or ended."""

from __future__ import annotations

import argparse

from finetune_api.adapterversion import AdapterVersion
from finetune_api.finetunejob import FineTuneJob
from finetune_api.stages import STAGES
from finetune_cli.errors import CliError, CliExit
from finetune_cli.local.objects import ObjectStore
from finetune_cli.local.state import open_state
from finetune_cli.options import add_output, add_state, checked_name, namespace_of
from finetune_cli.render.machine import print_machine
from finetune_cli.render.stages import duration, newest_attempt, stage_facts, stage_position, stage_seconds
from finetune_cli.render.summary import console_for, print_summary

EXAMPLES = """
examples:
  finetune status support-triage
  finetune status support-triage -o yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("name", metavar="NAME", help="name of the job")
    add_state(parser)
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """Show one job."""
    state = open_state(args.state, create=False)
    store = ObjectStore(state)
    namespace, name = namespace_of(args), checked_name(args.name, "NAME")
    job = store.get(FineTuneJob, namespace, name)
    if job is None:
        raise CliError(f"there is no FineTuneJob {name} in namespace {namespace}", "`finetune list` shows them.")
    if args.output != "table":
        print_machine(job.to_wire(), args.output)
        return CliExit.SUCCEEDED
    status = job.status
    print(f"{name}  run {status.run if status else 0}  {status.phase if status else 'Pending'}")
    for stage in STAGES if status is not None else ():
        attempt = newest_attempt(status, stage) if status else None
        if attempt is not None and status is not None:
            seconds = stage_seconds(attempt)
            taken = f" ({duration(seconds)})" if seconds is not None else ""
            facts = stage_facts(stage, status.results)
            print(f"{stage_position(stage)} {stage}: {attempt.state}{taken}  {facts}".rstrip())
    published = status.version.name if status and status.version else ""
    version = store.get(AdapterVersion, namespace, published) if published else None
    print_summary(console_for(), job, version, "finetune", state.runs / namespace)
    return CliExit.SUCCEEDED
