"""List the versions of an adapter, and what its channels serve."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from finetune_api.adapter import Adapter
from finetune_api.adapterversion import AdapterVersion
from finetune_cli.errors import CliExit
from finetune_cli.options import add_output, add_world, checked_name, namespace_of, state_of, wants_cluster
from finetune_cli.render.machine import print_machine
from finetune_cli.render.summary import console_for
from finetune_cli.render.tables import channel_lines, versions_table

WORLD = "both"
EXAMPLES = """
examples:
  kubectl finetune versions support-triage
  finetune versions support-triage
  finetune versions support-triage -o json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("adapter", metavar="ADAPTER", help="name of the adapter")
    add_world(parser)
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """List versions."""
    now = datetime.now(UTC)
    name = checked_name(args.adapter, "ADAPTER")
    adapter, versions = _of_cluster(args, name) if wants_cluster(args) else _of_registry(args, name, now)
    if args.output != "table":
        print_machine({"adapter": adapter.to_wire(), "items": [item.to_wire() for item in versions]}, args.output)
        return CliExit.SUCCEEDED
    console_for().print(versions_table(versions, now))
    for line in channel_lines(adapter):
        print(line)
    return CliExit.SUCCEEDED


def _of_cluster(args: argparse.Namespace, name: str) -> tuple[Adapter, list[AdapterVersion]]:
    from finetune_cli.cluster.connection import connect
    from finetune_cli.cluster.objects import fetch_adapter, fetch_versions

    connection = connect(args)
    return fetch_adapter(connection, name), fetch_versions(connection, name)


def _of_registry(args: argparse.Namespace, name: str, now: datetime) -> tuple[Adapter, list[AdapterVersion]]:
    from finetune_cli.local.objects import ObjectStore
    from finetune_cli.local.registry import refresh_adapter, versions_of
    from finetune_cli.local.state import open_state

    store, namespace = ObjectStore(open_state(state_of(args), create=False)), namespace_of(args)
    adapter = refresh_adapter(store, namespace, name, now)
    return adapter, versions_of(store, namespace, name)
