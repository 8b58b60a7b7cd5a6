"""What approve and reject share."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from typing import Literal

from finetune_api.adapter import Adapter
from finetune_api.adapterversion import AdapterVersion
from finetune_cli.decision_rules import eyes_line
from finetune_cli.errors import CliError, CliExit
from finetune_cli.options import (
    VersionName,
    add_output,
    add_world,
    current_user,
    namespace_of,
    parse_version_name,
    state_of,
    wants_cluster,
)
from finetune_cli.render.machine import print_machine
from finetune_cli.render.tables import channel_lines

EXAMPLES_OF = {
    "approve": """
examples:
  kubectl finetune approve support-triage@v1 -n team-a --reason "checked 50 samples"
  finetune approve support-triage@v1
""",
    "reject": """
examples:
  kubectl finetune reject support-triage@v2 -n team-a --reason "wrong on refunds"
  finetune reject support-triage@v2 --reason "wrong on refunds"
""",
}
Word = Literal["approve", "reject"]


def add_decision_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of a decision."""
    parser.add_argument("version", metavar="ADAPTER@VERSION", help="for example support-triage@v1")
    parser.add_argument("--reason", default="", help="why; kept with the decision")
    parser.add_argument(
        "--as", dest="user", metavar="USER", default=None, help="who decides, in a local registry (default: you)"
    )
    add_world(parser)
    add_output(parser)


def decide_version(args: argparse.Namespace, decision: Word) -> int:
    """Record a decision and say what the channels serve now."""
    wanted = parse_version_name(args.version)
    if len(args.reason) > 1024:
        raise CliError("--reason: at most 1,024 characters")
    return _in_cluster(args, wanted, decision) if wants_cluster(args) else _in_registry(args, wanted, decision)


def _in_cluster(args: argparse.Namespace, wanted: VersionName, decision: Word) -> int:
    from finetune_cli.cluster.connection import connect
    from finetune_cli.cluster.decisions import decide_in_cluster, wait_for_answer

    if args.user is not None:
        raise CliError(
            "--as: in a cluster a decision carries the name of who makes it",
            "Leave --as out, or use that person's login.",
        )
    connection = connect(args)
    version, adapter = decide_in_cluster(connection, wanted, decision, args.reason, datetime.now(UTC))
    version, adapter, answered = wait_for_answer(connection, version)
    if args.output != "table":
        print_machine({"version": version.to_wire(), "adapter": adapter.to_wire()}, args.output)
        return CliExit.SUCCEEDED
    if answered:
        _print_decided(wanted, version, adapter)
    else:
        print(f"{wanted}: your decision is recorded; the operator has not looked at it yet")
        print(f"`{connection.command('versions', wanted.adapter)}` shows what becomes of it")
    return CliExit.SUCCEEDED


def _in_registry(args: argparse.Namespace, wanted: VersionName, decision: Word) -> int:
    from finetune_cli.local.objects import ObjectStore
    from finetune_cli.local.registry import record_decision
    from finetune_cli.local.state import open_state

    user = current_user() if args.user is None else args.user
    if not 1 <= len(user) <= 253:
        raise CliError("--as: a name of 1 to 253 characters is needed")
    store = ObjectStore(open_state(state_of(args), create=False))
    version, adapter = record_decision(
        store, namespace_of(args), wanted, decision, user, args.reason, datetime.now(UTC)
    )
    if args.output != "table":
        print_machine({"version": version.to_wire(), "adapter": adapter.to_wire()}, args.output)
        return CliExit.SUCCEEDED
    _print_decided(wanted, version, adapter)
    if not adapter.spec.policy.approvals.four_eyes:
        print("four eyes are not asked for in a local registry: the author's own decision counts")
    if decision == "approve":
        print(f'next     finetune try {wanted} "..."')
    return CliExit.SUCCEEDED


def _print_decided(wanted: VersionName, version: AdapterVersion, adapter: Adapter) -> None:
    status = version.status
    print(f"{wanted}: {status.phase if status else ''}, {status.message if status else ''}")
    if status is not None and status.phase == "PendingApproval":
        print(eyes_line(version, adapter.spec.policy))
    for line in channel_lines(adapter):
        print(line)
