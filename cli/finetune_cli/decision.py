"""What approve and reject share."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from typing import Literal

from finetune_cli.errors import CliError, CliExit
from finetune_cli.local.objects import ObjectStore
from finetune_cli.local.registry import record_decision
from finetune_cli.local.state import open_state
from finetune_cli.options import add_output, add_state, current_user, namespace_of, parse_version_name
from finetune_cli.render.machine import print_machine

EXAMPLES_OF = {
    "approve": """
examples:
  finetune approve support-triage@v1
  finetune approve support-triage@v2 --reason "checked 50 samples"
""",
    "reject": """
examples:
  finetune reject support-triage@v2 --reason "wrong on refunds"
""",
}


def add_decision_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of a decision."""
    parser.add_argument("version", metavar="ADAPTER@VERSION", help="for example support-triage@v1")
    parser.add_argument("--reason", default="", help="why; kept with the decision")
    parser.add_argument("--as", dest="user", metavar="USER", default=None, help="who decides (default: you)")
    add_state(parser)
    add_output(parser)


def decide_version(args: argparse.Namespace, decision: Literal["approve", "reject"]) -> int:
    """Record a decision and say what the channels serve now."""
    wanted = parse_version_name(args.version)
    user = current_user() if args.user is None else args.user
    if not 1 <= len(user) <= 253:
        raise CliError("--as: a name of 1 to 253 characters is needed")
    if len(args.reason) > 1024:
        raise CliError("--reason: at most 1,024 characters")
    store = ObjectStore(open_state(args.state, create=False))
    version, adapter = record_decision(
        store, namespace_of(args), wanted, decision, user, args.reason, datetime.now(UTC)
    )
    if args.output != "table":
        print_machine({"version": version.to_wire(), "adapter": adapter.to_wire()}, args.output)
        return CliExit.SUCCEEDED
    status = version.status
    print(f"{wanted}: {status.phase if status else ''}, {status.message if status else ''}")
    for channel in adapter.status.channels if adapter.status else []:
        served = f"serves {channel.version} ({channel.digest[:12]})" if channel.version else "serves nothing"
        print(f"channel {channel.name} {served}" + (f": {channel.message}" if channel.message else ""))
    if not adapter.spec.policy.approvals.four_eyes:
        print("four eyes are not asked for in a local registry: the author's own decision counts")
    if decision == "approve":
        print(f'next     finetune try {wanted} "..."')
    return CliExit.SUCCEEDED
