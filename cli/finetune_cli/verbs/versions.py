"""List the versions of an adapter in the local registry, and what its channels serve."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from finetune_cli.errors import CliExit
from finetune_cli.local.objects import ObjectStore
from finetune_cli.local.registry import refresh_adapter, versions_of
from finetune_cli.local.state import open_state
from finetune_cli.options import add_output, add_state, checked_name, namespace_of
from finetune_cli.render.machine import print_machine
from finetune_cli.render.summary import console_for
from finetune_cli.render.tables import versions_table

EXAMPLES = """
examples:
  finetune versions support-triage
  finetune versions support-triage -o json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("adapter", metavar="ADAPTER", help="name of the adapter")
    add_state(parser)
    add_output(parser)


def run(args: argparse.Namespace) -> int:
    """List versions."""
    store = ObjectStore(open_state(args.state, create=False))
    namespace, name = namespace_of(args), checked_name(args.adapter, "ADAPTER")
    now = datetime.now(UTC)
    adapter = refresh_adapter(store, namespace, name, now)
    versions = versions_of(store, namespace, name)
    if args.output != "table":
        print_machine({"adapter": adapter.to_wire(), "items": [item.to_wire() for item in versions]}, args.output)
        return CliExit.SUCCEEDED
    console_for().print(versions_table(versions, now))
    for channel in adapter.status.channels if adapter.status else []:
        print(
            f"channel {channel.name}: {channel.version or 'nothing'}"
            + (f" ({channel.message})" if channel.message else "")
        )
    return CliExit.SUCCEEDED
