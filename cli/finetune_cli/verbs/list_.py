"""List jobs."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from finetune_api.finetunejob import FineTuneJob
from finetune_cli.errors import CliError, CliExit
from finetune_cli.options import add_output, add_world, namespace_of, state_of, wants_cluster
from finetune_cli.render.machine import print_machine, print_object
from finetune_cli.render.summary import console_for
from finetune_cli.render.tables import jobs_table, server_table

WORLD = "both"
EXAMPLES = """
examples:
  kubectl finetune list -n team-a
  kubectl finetune list -A -o wide
  finetune list
  finetune list -o json
"""
FULL_NAME = "finetunejobs.finetune.dev"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("-A", "--all-namespaces", action="store_true", help="the jobs of all namespaces of the cluster")
    add_world(parser)
    add_output(parser, "wide", "name")


def run(args: argparse.Namespace) -> int:
    """List jobs."""
    return _of_cluster(args) if wants_cluster(args) else _of_registry(args)


def _of_cluster(args: argparse.Namespace) -> int:
    from finetune_cli.cluster.connection import connect
    from finetune_cli.cluster.resources import FINETUNE_JOBS

    if args.all_namespaces and args.namespace is not None:
        raise CliError("-A and -n contradict each other", "Use one of them.")
    connection = connect(args)
    namespace = None if args.all_namespaces else connection.namespace
    with connection.asking("list", FINETUNE_JOBS, everywhere=args.all_namespaces):
        if args.output in ("json", "yaml", "name"):
            _print_items(connection.api.list(FINETUNE_JOBS, namespace)["items"], args.output)
            return CliExit.SUCCEEDED
        answer = connection.api.table(FINETUNE_JOBS, namespace)
    if answer.get("rows"):
        console = console_for()
        console.print(server_table(answer, wide=args.output == "wide", namespaces=args.all_namespaces))
    else:
        print("no jobs in the cluster" if namespace is None else f"no jobs in namespace {namespace}")
    return CliExit.SUCCEEDED


def _print_items(items: list[dict[str, object]], form: str) -> None:
    if form != "name":
        print_machine({"items": items}, form)
        return
    for item in items:
        print_object(item, form, FULL_NAME)


def _of_registry(args: argparse.Namespace) -> int:
    from finetune_cli.local.objects import ObjectStore
    from finetune_cli.local.state import open_state

    if args.all_namespaces:
        raise CliError("-A works on a cluster", "Use `kubectl finetune list -A`, or name a namespace with -n.")
    store = ObjectStore(open_state(state_of(args), create=False))
    jobs = store.list(FineTuneJob, namespace_of(args))
    if args.output in ("json", "yaml", "name"):
        _print_items([job.to_wire() for job in jobs], args.output)
    elif jobs:
        console_for().print(jobs_table(jobs, datetime.now(UTC)))
    else:
        print(f"no jobs in namespace {namespace_of(args)}")
    return CliExit.SUCCEEDED
