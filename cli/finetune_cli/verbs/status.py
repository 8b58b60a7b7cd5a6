"""Show how a job stands: stages, progress, data, gates, cost, conditions, and what to do next."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from finetune_api.adapterversion import AdapterVersion
from finetune_api.finetunejob import FineTuneJob
from finetune_cli.errors import CliError, CliExit
from finetune_cli.options import add_output, add_world, checked_name, namespace_of, state_of, wants_cluster
from finetune_cli.render.machine import print_object
from finetune_cli.render.summary import console_for

WORLD = "both"
EXAMPLES = """
examples:
  kubectl finetune status support-triage
  kubectl finetune status support-triage --watch
  finetune status support-triage
  finetune status support-triage -o yaml

exit codes:
  0    shown, however the job stands (`wait` and `watch` tell by their exit code)
  2    there is no such job, or no access to it
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("name", metavar="NAME", help="name of the job")
    parser.add_argument(
        "-w", "--watch", action="store_true", help="show it again after each change, until it has ended"
    )
    add_world(parser)
    add_output(parser, "name")


def run(args: argparse.Namespace) -> int:
    """Show one job."""
    return _of_cluster(args) if wants_cluster(args) else _of_registry(args)


def _of_cluster(args: argparse.Namespace) -> int:
    from finetune_cli.cluster.connection import connect
    from finetune_cli.cluster.describe import describe_job
    from finetune_cli.cluster.objects import fetch
    from finetune_cli.cluster.resources import FINETUNE_JOBS
    from finetune_cli.cluster.watching import show_as_it_goes

    connection = connect(args)
    wire = fetch(connection, FINETUNE_JOBS, checked_name(args.name, "NAME"))
    if args.output != "table":
        print_object(wire, args.output, FINETUNE_JOBS.full_name)
    elif args.watch:
        return show_as_it_goes(connection, args.name, console_for())
    else:
        console_for().print(describe_job(connection, wire, datetime.now(UTC)))
    return CliExit.SUCCEEDED


def _of_registry(args: argparse.Namespace) -> int:
    from finetune_cli.local.objects import ObjectStore
    from finetune_cli.local.state import open_state
    from finetune_cli.render.costs import costs_of
    from finetune_cli.render.status import StatusView
    from finetune_cli.render.summary import local_steps

    if args.watch:
        raise CliError("--watch works on a cluster", "`finetune run FILE` shows a local run as it goes.")
    state = open_state(state_of(args), create=False)
    store = ObjectStore(state)
    namespace, name = namespace_of(args), checked_name(args.name, "NAME")
    job = store.get(FineTuneJob, namespace, name)
    if job is None:
        raise CliError(f"there is no FineTuneJob {name} in namespace {namespace}", "`finetune list` shows them.")
    if args.output != "table":
        print_object(job.to_wire(), args.output, "finetunejobs.finetune.dev")
        return CliExit.SUCCEEDED
    now = datetime.now(UTC)
    published = job.status.version.name if job.status is not None and job.status.version is not None else ""
    version = store.get(AdapterVersion, namespace, published) if published else None
    steps = list(local_steps(job, version))
    newest = job.status.stages[-1] if job.status is not None and job.status.stages else None
    if newest is not None:
        steps.append(f"{state.runs / namespace / newest.job_name / 'log.txt'}    the log of {newest.name}")
    console_for().print(StatusView(job, now, None, version, costs_of(job, None, now), steps))
    return CliExit.SUCCEEDED
